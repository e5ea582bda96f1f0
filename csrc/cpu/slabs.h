// How channels map to vector lanes, and how a row of a tensor becomes a strip: the channels of one
// unit as 32-bit words, in the order in which the register tiles read them. A word is a float32
// here; pairs.h has the strips whose words are two bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "elements.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// A unit is the set of input channels that a strip holds, and the output channels made from them:
// in permute mode kLanes channels of several whole groups, in broadcast mode one group. Its output
// channels form slabs of at most kLanes lanes.
struct Slabs {
  bool permute;
  int64_t units, slabs_per_unit;
  int64_t in_unit, out_unit;  // channels per unit
  int64_t in_unit_words;      // words of one strip column
  int64_t in_channels, out_channels;
  int64_t in_per_group, out_per_group;

  int64_t slabs() const { return units * slabs_per_unit; }
  int64_t in_begin(int64_t unit) const { return unit * in_unit; }
  int64_t in_count(int64_t unit) const { return min64(in_unit, in_channels - unit * in_unit); }
  int64_t out_begin(int64_t slab) const {
    return slab / slabs_per_unit * out_unit + slab % slabs_per_unit * Vec::kLanes;
  }
  // Lanes of a slab that are channels of the tensor.
  int lanes(int64_t slab) const {
    const int64_t unit = slab / slabs_per_unit, first = slab % slabs_per_unit * Vec::kLanes;
    const int64_t in_this_unit = min64(out_unit, out_channels - unit * out_unit);
    return static_cast<int>(min64(Vec::kLanes, in_this_unit - first));
  }
};

constexpr int64_t words(int64_t channels) {
  return (channels + Vec::kChannelsPerWord - 1) / Vec::kChannelsPerWord;
}

inline Slabs make_slabs(int64_t groups, int64_t in_per_group, int64_t out_per_group) {
  constexpr int64_t L = Vec::kLanes;
  Slabs s{};
  s.in_per_group = in_per_group, s.out_per_group = out_per_group;
  s.in_channels = groups * in_per_group, s.out_channels = groups * out_per_group;
  s.permute = in_per_group == out_per_group && in_per_group < L && L % in_per_group == 0 &&
              in_per_group % Vec::kChannelsPerWord == 0;
  if (s.permute) {
    s.in_unit = s.out_unit = L;
    s.units = ceil_div(s.in_channels, L);
    s.slabs_per_unit = 1;
  } else {
    s.in_unit = in_per_group, s.out_unit = out_per_group;
    s.units = groups;
    s.slabs_per_unit = ceil_div(out_per_group, L);
  }
  s.in_unit_words = words(s.in_unit);
  return s;
}

// One activation tensor, [N, channels, h, w] in either layout.
template <class E>
struct Activation {
  typename E::T* data;
  bool nhwc;
  int64_t channels, h, w;

  // From an element to its neighbour in the next row.
  int64_t row_elements() const { return nhwc ? w * channels : w; }

  typename E::T* at(int64_t n, int64_t c, int64_t row, int64_t col) const {
    return nhwc ? data + ((n * h + row) * w + col) * channels + c
                : data + ((n * channels + c) * h + row) * w + col;
  }
};

// Columns [begin, begin + cols) of one row as pixels of kLanes channels; lanes beyond `channels`
// become zero. The same columns `rows_ahead` rows further down are prefetched.
template <class E>
inline void load_float_pixels(const Activation<E>& t, int64_t n, int64_t c0, int channels,
                              int64_t row, int64_t begin, int64_t cols, float* dst,
                              int64_t rows_ahead) {
  constexpr int L = Vec::kLanes;
  const typename E::T* src = t.at(n, c0, row, begin);
  const int64_t ahead = rows_ahead * t.row_elements();
  if (t.nhwc) {
    if (channels == L) {
      for (int64_t j = 0; j < cols; ++j) {
        const typename E::T* at = src + j * t.channels;
        Vec::store(dst + j * L, E::load(at));
        prefetch_load(at + ahead);
      }
    } else {
      for (int64_t j = 0; j < cols; ++j) {
        Vec::store(dst + j * L, E::load_partial(src + j * t.channels, channels));
      }
    }
    return;
  }
  transpose_in<E>(src, t.h * t.w, channels, cols, dst, L, ahead);
  if (channels < L) {
    for (int64_t j = 0; j < cols; ++j) {
      std::memset(dst + j * L + channels, 0, sizeof(float) * (L - channels));
    }
  }
}

// The same columns as one plane per channel, `plane` floats apart.
template <class E>
inline void load_float_planes(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels,
                              int64_t row, int64_t begin, int64_t cols, float* dst, int64_t plane,
                              int64_t rows_ahead) {
  constexpr int L = Vec::kLanes;
  const typename E::T* src = t.at(n, c0, row, begin);
  const int64_t ahead = rows_ahead * t.row_elements();
  if (t.nhwc) {
    transpose_in<E>(src, t.channels, cols, channels, dst, plane, ahead);
    return;
  }
  for (int64_t c = 0; c < channels; ++c, src += t.h * t.w, dst += plane) {
    int64_t j = 0;
    for (; j + L <= cols; j += L) {
      Vec::store(dst + j, E::load(src + j));
      prefetch_load(src + j + ahead);
    }
    if (j < cols) {
      const int rest = static_cast<int>(cols - j);
      Vec::store_partial(dst + j, E::load_partial(src + j, rest), rest);
      prefetch_load(src + j + ahead);
    }
  }
}

// The loads of strips whose words hold kChannels channels.
template <int kChannels, class E>
struct StripLoader {
  static_assert(kChannels == 1);

  static void pixels(const Activation<E>& t, int64_t n, int64_t c0, int channels, int64_t row,
                     int64_t begin, int64_t cols, float* dst, int64_t rows_ahead) {
    load_float_pixels<E>(t, n, c0, channels, row, begin, cols, dst, rows_ahead);
  }
  static void planes(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels, int64_t row,
                     int64_t begin, int64_t cols, float* dst, int64_t plane, int64_t rows_ahead) {
    load_float_planes<E>(t, n, c0, channels, row, begin, cols, dst, plane, rows_ahead);
  }
};

// Asks for the lines that store_pixels will write.
template <class E>
inline void prefetch_pixels(const Activation<E>& t, int64_t n, int64_t c0, int channels,
                            int64_t row) {
  const typename E::T* dst = t.at(n, c0, row, 0);
  if (t.nhwc) {
    for (int64_t j = 0; j < t.w; ++j) prefetch_store(dst + j * t.channels);
    return;
  }
  constexpr int64_t kLine = kCacheLine / sizeof(typename E::T);
  for (int i = 0; i < channels; ++i, dst += t.h * t.w) {
    for (int64_t j = 0; j < t.w; j += kLine) prefetch_store(dst + j);
  }
}

// A whole row of `channels` channels from float32 pixels of kLanes channels.
template <class E>
inline void store_pixels(const Activation<E>& t, int64_t n, int64_t c0, int channels, int64_t row,
                         const float* src) {
  constexpr int L = Vec::kLanes;
  typename E::T* dst = t.at(n, c0, row, 0);
  if (t.nhwc) {
    for (int64_t j = 0; j < t.w; ++j) {
      E::store_partial(dst + j * t.channels, Vec::load(src + j * L), channels);
    }
  } else {
    transpose_out<E>(src, L, channels, t.w, dst, t.h * t.w);
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
