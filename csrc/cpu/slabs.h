// How channels map to vector lanes, and how rows of a tensor become strips, from which the register
// tiles read, and back. A strip row holds the channels of one unit in chunks, which fill a vector:
// [chunk][column][kLanes] 32-bit words. A word is a float32 here; pairs.h has the strips whose
// words are two bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "elements.h"
#include "epilogue.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// A unit is the set of input channels that a strip holds, and the output channels made from them:
// in permute mode one chunk of several whole groups; in broadcast mode one group, or as many as
// fill a chunk. Its output channels form slabs of at most kLanes lanes.
struct Slabs {
  bool permute;
  int64_t units, slabs_per_unit;
  int64_t slabs_per_group;    // broadcast
  int64_t in_unit, out_unit;  // channels per unit
  int64_t in_chunks;          // chunks of a strip row
  int64_t in_channels, out_channels;
  int64_t in_per_group, out_per_group;

  int64_t slabs() const { return units * slabs_per_unit; }
  int64_t in_begin(int64_t unit) const { return unit * in_unit; }
  int64_t in_count(int64_t unit) const { return min64(in_unit, in_channels - unit * in_unit); }
  int64_t out_begin(int64_t slab) const {
    return slab / slabs_per_unit * out_unit + slab % slabs_per_unit * Vec::kLanes;
  }
  // Lanes of a slab that are channels of the tensor: none in slabs that the last unit has in
  // excess.
  int lanes(int64_t slab) const {
    const int64_t unit = slab / slabs_per_unit, first = slab % slabs_per_unit * Vec::kLanes;
    const int64_t in_this_unit = min64(out_unit, out_channels - unit * out_unit);
    return static_cast<int>(max64(0, min64(Vec::kLanes, in_this_unit - first)));
  }
  // The word of a pixel at which the input of a slab's first lane begins.
  int64_t first_word(int64_t slab) const {
    const int64_t in_unit_slab = slab % slabs_per_unit;
    return permute ? in_unit_slab * Vec::kLanes / Vec::kChannelsPerWord
                   : in_unit_slab / slabs_per_group * in_per_group / Vec::kChannelsPerWord;
  }
};

constexpr int64_t words(int64_t channels) {
  return (channels + Vec::kChannelsPerWord - 1) / Vec::kChannelsPerWord;
}

// Lane -> first word of its group in a pixel of kLanes channels.
template <class V = Vec>
inline typename V::Index word_base(int channels_per_group) {
  if constexpr (V::kChannelsPerWord == 2) {
    return V::halve(V::group_base(channels_per_group));
  } else {
    return V::group_base(channels_per_group);
  }
}

// chunk: channels that fill a vector of a strip.
inline Slabs make_slabs(int64_t groups, int64_t in_per_group, int64_t out_per_group,
                        int64_t chunk) {
  constexpr int64_t L = Vec::kLanes;
  Slabs s{};
  s.in_per_group = in_per_group, s.out_per_group = out_per_group;
  s.in_channels = groups * in_per_group, s.out_channels = groups * out_per_group;
  s.permute = in_per_group == out_per_group && in_per_group < L && L % in_per_group == 0 &&
              in_per_group % Vec::kChannelsPerWord == 0;
  if (s.permute) {
    s.in_unit = s.out_unit = chunk;
    s.slabs_per_unit = chunk / L;
  } else {
    // A chunk of kLanes channels holds one group, for wgrad works on one at a time.
    const bool fills = chunk > L && chunk % in_per_group == 0 &&
                       in_per_group % Vec::kChannelsPerWord == 0 && out_per_group % L == 0;
    const int64_t unit_groups = fills ? min64(groups, chunk / in_per_group) : 1;
    s.in_unit = unit_groups * in_per_group, s.out_unit = unit_groups * out_per_group;
    s.slabs_per_group = ceil_div(out_per_group, L);
    s.slabs_per_unit = unit_groups * s.slabs_per_group;
  }
  s.units = ceil_div(s.in_channels, s.in_unit);
  s.in_chunks = ceil_div(s.in_unit, chunk);
  return s;
}

// One activation tensor, [N, channels, h, w] in either layout.
template <class E>
struct Activation {
  typename E::T* data;
  bool nhwc;
  int64_t channels, h, w;

  typename E::T* at(int64_t n, int64_t c, int64_t row, int64_t col) const {
    return nhwc ? data + ((n * h + row) * w + col) * channels + c
                : data + ((n * channels + c) * h + row) * w + col;
  }
};

// Where the columns of some rows of one unit go.
struct StripRows {
  float* ring;
  int64_t slots;   // rows of the ring
  int64_t row;     // words of a strip row
  int64_t chunk;   // words of one chunk of a row
  int64_t offset;  // words in front of the first column
  int64_t shift;   // row h is in slot (h + shift) % slots

  float* at(int64_t h) const { return ring + (h + shift) % slots * row + offset; }
};

// Walks over the columns of strip rows, from one row to the next.
struct StripCursor {
  const StripRows& strip;
  int64_t row, col, cols, chunk;
  float* dst = strip.at(row) + chunk;

  float* next() {
    if (col == cols) col = 0, dst = strip.at(++row) + chunk;
    return dst + col++ * Vec::kLanes;
  }
};

// How kChunk channels of E become kLanes words.
template <int kChannels, class E>
struct WordLoader {
  static_assert(kChannels == 1);
  using T = typename E::T;
  static constexpr int kChunk = Vec::kLanes;

  // `channels` neighbouring channels of one pixel, zeros behind them.
  static void pixel(const T* src, int channels, float* dst) {
    Vec::store(dst, load_first<E>(src, channels));
  }
  // The words of `channels` channels, `plane` elements apart, one per vector, of n neighbouring
  // columns; zeros beyond either.
  static void block(Vec::Reg (&words)[Vec::kLanes], const T* src, int64_t plane, int64_t channels,
                    int64_t n) {
    const int count = static_cast<int>(min64(Vec::kLanes, n));
    for (int i = 0; i < Vec::kLanes; ++i) {
      words[i] = i < channels ? load_first<E>(src + i * plane, count) : Vec::zero();
    }
  }
};

// Columns [begin, begin + cols) of rows [h_begin, h_end) of `channels` channels into strips.
template <class Words, class E>
inline void load_rows(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels,
                      int64_t h_begin, int64_t h_end, int64_t begin, int64_t cols,
                      const StripRows& strip, const Words& words = {}) {
  constexpr int64_t L = Vec::kLanes;
  constexpr int kChunk = Words::kChunk;
  if (t.nhwc) {
    for (int64_t h = h_begin; h < h_end; ++h) {
      const typename E::T* src = t.at(n, c0, h, begin);
      float* dst = strip.at(h);
      for (int64_t c = 0; c < channels; c += kChunk, src += kChunk, dst += strip.chunk) {
        const int count = static_cast<int>(min64(kChunk, channels - c));
        if (count == kChunk) {
          for (int64_t j = 0; j < cols; ++j) words.pixel(src + j * t.channels, kChunk, dst + j * L);
        } else {
          for (int64_t j = 0; j < cols; ++j) words.pixel(src + j * t.channels, count, dst + j * L);
        }
      }
    }
    return;
  }
  // Whole rows of a channel follow each other without a gap: narrow ones share a vector.
  const int64_t joined = cols == t.w ? h_end - h_begin : 1;
  const int64_t span = joined * cols, plane = t.h * t.w;
  for (int64_t h = h_begin; h < h_end; h += joined) {
    for (int64_t c = 0; c < channels; c += kChunk) {
      const typename E::T* src = t.at(n, c0 + c, h, begin);
      StripCursor at{strip, h, 0, cols, c / kChunk * strip.chunk};
      for (int64_t j0 = 0; j0 < span; j0 += L) {
        const int64_t count = min64(L, span - j0);
        Vec::Reg block[L];
        words.block(block, src + j0, plane, channels - c, count);
        Vec::transpose(block);
        for (int64_t j = 0; j < count; ++j) Vec::store(at.next(), block[j]);
      }
    }
  }
}

// What one tile asks for while it computes: a burst between the tiles would wait for itself, for a
// core follows only so many misses at a time. It costs two instructions per line: lists of lines
// cost as much as the multiply-adds that they are to hide behind.
struct Ahead {
  const char* at = nullptr;
  int64_t pieces = 0, step = 0;  // pieces of `lines` cache lines, step bytes apart
  int64_t lines = 0;
  int64_t per_word = 0;  // pieces to ask for while one input word is summed

  inline __attribute__((always_inline)) void ask() {
    for (int64_t i = min64(per_word, pieces); i > 0; --i, --pieces, at += step) {
      const char* const end = at + lines * kCacheLine;
      for (const char* line = at; line != end; line += kCacheLine) prefetch(line);
    }
  }
};

// Memory that will be wanted soon: `outer` pieces, `step` bytes apart, of `lines` cache lines each.
struct PrefetchWalk {
  const char* at = nullptr;
  int64_t outer = 0, step = 0;
  int lines = 0, line = 0;

  int64_t total() const { return outer * lines - line; }
  const char* next() {
    const char* p = at + line * kCacheLine;
    if (++line == lines) line = 0, at += step, --outer;
    return p;
  }
  void fetch(int64_t count) {
    for (; count > 0; --count) prefetch(next());
  }
  // The next pieces of a walk of which no line was fetched, for a tile of some words.
  Ahead take(int64_t pieces, int64_t words) {
    pieces = min64(pieces, outer);
    const Ahead ahead{at, pieces, step, lines, ceil_div(pieces, words)};
    at += pieces * step, outer -= pieces;
    return ahead;
  }
  // Keeps the i-th of n parts.
  void take_share(int64_t i, int64_t n) {
    const int64_t begin = outer * i / n, end = outer * (i + 1) / n;
    at += begin * step, outer = end - begin;
  }
};

// Several walks, one after the other, whose lines are asked for at an even pace.
struct PacedWalks {
  static constexpr int kMaxWalks = 5;
  static constexpr int64_t kLine = 64;  // of the pace

  PrefetchWalk walks[kMaxWalks];
  int count = 0;
  int64_t pace = 0, due = 0;  // lines per step, and lines to ask for, in 1/kLine

  void add(const PrefetchWalk& walk) {
    if (walk.total() > 0) walks[count++] = walk;
  }
  // All lines within `steps` steps.
  void spread(int64_t steps) {
    int64_t lines = 0;
    for (int i = 0; i < count; ++i) lines += walks[i].total();
    pace = ceil_div(lines * kLine, max64(1, steps)), due = 0;
  }
};

// The lines of `channels` channels of rows [h_begin, h_end).
template <class E>
inline PrefetchWalk walk_rows(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels,
                              int64_t h_begin, int64_t h_end) {
  if (h_begin >= h_end) return {};
  constexpr int64_t kSize = sizeof(typename E::T);
  const char* at = reinterpret_cast<const char*>(t.at(n, c0, h_begin, 0));
  const int64_t pixels = (h_end - h_begin) * t.w;
  const auto lines = [](int64_t bytes) { return static_cast<int>((bytes - 1) / kCacheLine + 1); };
  if (t.nhwc) return {at, pixels, t.channels * kSize, lines(channels * kSize), 0};
  // A run of pixels that does not start on a line may end on one more.
  return {at, channels, t.h * t.w * kSize, lines(pixels * kSize) + 1, 0};
}

// Rows h, h + step, ... of `channels` channels from float32 strips of kLanes channels, after
// finish(values, element of the tensor, count).
template <class E, class Finish>
inline void store_rows(const Activation<E>& t, int64_t n, int64_t c0, int channels, int64_t h,
                       int64_t step, int rows, const float* src, int64_t src_row,
                       const Finish& finish) {
  constexpr int L = Vec::kLanes;
  if (t.nhwc) {
    for (int i = 0; i < rows; ++i) {
      typename E::T* dst = t.at(n, c0, h + i * step, 0);
      for (int64_t j = 0; j < t.w; ++j) {
        typename E::T* pixel = dst + j * t.channels;
        const Vec::Reg sum = Vec::load(src + i * src_row + j * L);
        E::store_partial(pixel, finish(sum, pixel - t.data, channels), channels);
      }
    }
    return;
  }
  const int64_t joined = step == 1 ? rows : 1;
  const int64_t span = joined * t.w;
  for (int i = 0; i < rows; i += static_cast<int>(joined)) {
    typename E::T* dst = t.at(n, c0, h + i * step, 0);
    int64_t row = i, col = 0;
    for (int64_t j0 = 0; j0 < span; j0 += L) {
      const int count = static_cast<int>(min64(L, span - j0));
      Vec::Reg block[L];
      for (int j = 0; j < L; ++j) {
        block[j] = j < count ? Vec::load(src + row * src_row + col * L) : Vec::zero();
        if (++col == t.w) col = 0, ++row;
      }
      Vec::transpose(block);
      for (int c = 0; c < channels; ++c) {
        typename E::T* run = dst + c * t.h * t.w + j0;
        E::store_partial(run, finish(block[c], run - t.data, count), count);
      }
    }
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
