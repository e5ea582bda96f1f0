// Direct 3x3 weight gradient at strides 1 and 2, any channels per group, both layouts, float32.
//
//   dw[k][c][r][s] = sum_{n,p,q} dy[n][k][p][q]
//     * x[n][group(k), c][p*stride - pad + r][q*stride - pad + s]
//
// Lanes are output channels, as in tile.h. For a row r of taps and a few input channels the three
// horizontal taps accumulate in registers over a band of rows; an input pixel is expanded to the
// lanes once for all of them. Only products that the sum contains are formed: padding is skipped,
// not multiplied, so Inf and NaN do not spread. Registers sum about kRunPixels pixels, those runs
// are added up per image, the images per chunk of the batch, and the chunks in order: short chains
// of roundings. The chunks depend on the problem alone: results are bitwise equal for any number of
// threads. Units are worked on in blocks, whose next rows are prefetched together: DRAM is read in
// runs of neighbouring channels.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "scratch.h"
#include "slabs.h"
#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Strips consist of 32-bit words, one of each channel in a column. A word is one pixel, or with a
// fma of two products two: the same pixel of two images, or of the upper and the lower half of one.
// All words of a row then meet through the same taps, as single pixels do.
constexpr int kPixels = Vec::kChannelsPerWord;

// One output row and the input row that it meets through a row of taps.
struct WgradRow {
  const float* x;
  const float* dy;  // words of kLanes channels
  uint32_t used;    // bits of the words that lie in both tensors: all, none or those of one pixel
};

struct WgradBlock {
  const WgradRow* rows;
  int64_t count;
  int64_t in_w, out_w, pad;
  int64_t x_offset;         // words from x to the block's first channel
  Vec::Index lane_channel;  // permute: lane -> first channel of the block in its group
  bool first;               // overwrites the sums instead of adding to them
  float* sums;              // [kC][9][kLanes], at tap (r, 0) of the block's first channel
};

using WgradFunction = void (*)(const WgradBlock&);

template <bool kPermute, int kC>
inline __attribute__((always_inline)) Vec::Reg expand(const float* x, const Vec::Index (&lane)[kC],
                                                      int c) {
  if constexpr (kPermute) {
    return Vec::permute(x, lane[c]);
  } else {
    return Vec::broadcast(x + c);
  }
}

template <class V = Vec>
inline __attribute__((always_inline)) typename V::Reg only(typename V::Reg word, uint32_t bits) {
  if constexpr (kPixels == 2) {
    return V::mask(word, bits);
  } else {
    return word;
  }
}

// A step u takes the input columns from u * kStride - pad on: with stride 1 the column meets dy
// columns u - s, with 2 the first meets u (s = 0) and u - 1 (s = 2), the second u (s = 1).
template <int kStride>
struct WgradStep {
  static constexpr int kReach = 2 / kStride;  // columns of dy left of u
  static constexpr int kAllTaps = 7;
  static constexpr int part(int s) { return s % kStride; }
  static constexpr int back(int s) { return s / kStride; }
  static constexpr int taps_of(int part) { return kStride == 1 ? 7 : part == 0 ? 5 : 2; }

  // The taps, as bits, through which the step's columns meet columns of dy.
  static int taps(const WgradBlock& b, int64_t u) {
    int taps = 0;
    for (int s = 0; s < 3; ++s) {
      const int64_t i = u * kStride - b.pad + part(s), q = u - back(s);
      if (i >= 0 && i < b.in_w && q >= 0 && q < b.out_w) taps |= 1 << s;
    }
    return taps;
  }
};

// The products of the columns of step u with what they meet through `kTapBits`. Masked: of words
// that lie in both tensors by halves.
template <bool kPermute, int kStride, int kC, int kTapBits, bool kMasked>
inline __attribute__((always_inline)) void add_step(Vec::Reg (&acc)[3][kC],
                                                    const Vec::Index (&lane)[kC], const float* x,
                                                    const float* dy, uint32_t used) {
  using Step = WgradStep<kStride>;
  unroll<kStride>([&](auto part) __attribute__((always_inline)) {
    if constexpr ((kTapBits & Step::taps_of(part)) != 0) {
      Vec::Reg d[3];
      unroll<3>([&](auto s) __attribute__((always_inline)) {
        if constexpr ((kTapBits & Step::taps_of(part) & 1 << s) != 0) {
          d[s] = Vec::load(dy - Step::back(s) * Vec::kLanes);
          if constexpr (kMasked) d[s] = only(d[s], used);
        }
      });
      unroll<kC>([&](auto c) __attribute__((always_inline)) {
        Vec::Reg v = expand<kPermute, kC>(x + part * Vec::kLanes, lane, c);
        if constexpr (kMasked) v = only(v, used);
        unroll<3>([&](auto s) __attribute__((always_inline)) {
          if constexpr ((kTapBits & Step::taps_of(part) & 1 << s) != 0) {
            acc[s][c] = Vec::fma(v, d[s], acc[s][c]);
          }
        });
      });
    }
  });
}

template <bool kPermute, int kStride, int kC>
__attribute__((flatten)) void wgrad_block(const WgradBlock& b) {
  using Step = WgradStep<kStride>;
  constexpr int64_t L = Vec::kLanes;
  Vec::Reg acc[3][kC];
  unroll<3>([&](auto s) { unroll<kC>([&](auto c) { acc[s][c] = Vec::zero(); }); });
  Vec::Index lane[kC];
  lane[0] = b.lane_channel;
  if constexpr (kPermute) {
    for (int c = 1; c < kC; ++c) lane[c] = Vec::next(lane[c - 1]);
  }

  const int64_t steps = b.out_w + Step::kReach;
  const int64_t last = b.in_w - kStride + b.pad;
  const int64_t full_begin = min64(steps, max64(Step::kReach, ceil_div(b.pad, kStride)));
  const int64_t full_end = min64(b.out_w, last < 0 ? 0 : last / kStride + 1);
  const auto add_row = [&](const WgradRow& row, auto masked) __attribute__((always_inline)) {
    constexpr bool kMasked = decltype(masked)::value;
    const float *x = row.x + b.x_offset - b.pad * L, *dy = row.dy;
    int64_t u = 0;
    const auto edge = [&](int64_t end) __attribute__((always_inline)) {
      for (; u < end; ++u, x += kStride * L, dy += L) {
        const int taps = Step::taps(b, u);
        unroll<Step::kAllTaps>([&](auto i) __attribute__((always_inline)) {
          if (taps == i + 1) {
            add_step<kPermute, kStride, kC, i + 1, kMasked>(acc, lane, x, dy, row.used);
          }
        });
      }
    };
    edge(full_begin);
    for (; u < full_end; ++u, x += kStride * L, dy += L) {
      add_step<kPermute, kStride, kC, Step::kAllTaps, kMasked>(acc, lane, x, dy, row.used);
    }
    edge(steps);
  };
  for (const WgradRow *row = b.rows, *end = row + b.count; row != end; ++row) {
    if (row->used == 0) continue;
    if constexpr (kPixels == 2) {
      if (row->used != ~uint32_t{0}) {
        add_row(*row, std::true_type{});
        continue;
      }
    }
    add_row(*row, std::false_type{});
  }

  unroll<kC>([&](auto c) {
    unroll<3>([&](auto s) {
      float* sum = b.sums + (c * kTaps + s) * L;
      Vec::store(sum, b.first ? acc[s][c] : Vec::add(Vec::load(sum), acc[s][c]));
    });
  });
}

template <bool kPermute>
inline WgradFunction select_wgrad(int stride, int channels) {
  if constexpr (Vec::kWgradChannels == 8) {
    if (channels == 8) {
      return stride == 1 ? wgrad_block<kPermute, 1, 8> : wgrad_block<kPermute, 2, 8>;
    }
  }
  if (channels == 4) {
    return stride == 1 ? wgrad_block<kPermute, 1, 4> : wgrad_block<kPermute, 2, 4>;
  }
  return stride == 1 ? wgrad_block<kPermute, 1, 1> : wgrad_block<kPermute, 2, 1>;
}

// Where the second pixel of a word lies, counted from the first.
struct PixelPair {
  int64_t images, rows;
};

// Rows of x and dy as strips whose words hold kPixelsPerWord pixels; pairs.h has the one for two.
template <int kPixelsPerWord, class E>
struct PixelLoader {
  static_assert(kPixelsPerWord == 1);

  // Rows [h_begin, h_end) of the words' first pixels, where they are rows of t.
  static void load(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                   int64_t h_end, const PixelPair& /*second*/, const StripRows& strip) {
    h_begin = max64(0, h_begin), h_end = min64(t.h, h_end);
    if (h_begin < h_end) {
      load_rows<WordLoader<1, E>>(t, n, c0, channels, h_begin, h_end, 0, t.w, strip);
    }
  }
};

// Bytes of one unit's strips, which stay in L1, and of a block's strips and sums, which stay in L2.
constexpr int64_t kWgradStripBudget = int64_t{14} << 10;
constexpr int64_t kWgradBlockBudget = int64_t{128} << 10;
// Output pixels summed in registers: fewer in images so small that they would make few runs.
inline int64_t run_pixels(const ConvProblem& p) { return p.P * p.Q < 192 ? 32 : 56; }
// Register sums added up in one chain.
constexpr int64_t kChainRuns = 16;
// Tasks wanted, so that many threads find work, and the bytes that sums of several chunks may take:
// fixed, for results must not depend on the threads.
constexpr int64_t kWgradTasks = 64;
constexpr int64_t kWgradChunkBudget = int64_t{8} << 20;

struct WgradPlan {
  ConvProblem p;
  Slabs s;
  int64_t passes;     // over images, or pairs of images; with kPixels 1 or an even batch fewer than
                      // N means pairs
  PixelPair second;   // of a word of dy
  int64_t rows;       // output rows of a pass
  int64_t x_row;      // floats of one strip row of x
  int64_t dy_row;     // floats of one strip row of dy, one slab
  int64_t band_rows;  // output rows per band
  int64_t run_rows;   // most output rows summed in registers
  int64_t chunks, chunk_passes;
  int64_t chain_passes;  // passes whose runs are added up in one chain
  int64_t units_per_block, blocks;
  int64_t slab_floats;  // sums of one slab: [c_per_group][9][kLanes]
  bool dw_channels_last;

  int64_t window() const { return (band_rows - 1) * p.stride_h + 3; }
  int64_t unit_floats() const { return s.slabs_per_unit * slab_floats; }
  int64_t x_floats() const { return window() * x_row + Vec::kLanes; }  // strips of one unit
  int64_t tasks() const { return blocks * chunks; }
  int64_t image(int64_t pass) const { return pass * (second.images + 1); }
};

inline WgradPlan make_wgrad_plan(const PassArgs& args) {
  WgradPlan plan{};
  plan.p = args.problem;
  const ConvProblem& p = plan.p;
  plan.s = make_slabs(p.G, p.C / p.G, p.K / p.G, Vec::kLanes);
  plan.passes = p.N, plan.rows = p.P;
  if (kPixels == 2 && p.N % 2 == 0) {
    plan.second.images = 1;
    plan.passes /= 2;
  } else if (kPixels == 2) {
    plan.second.rows = plan.rows = ceil_div(p.P, 2);
  }
  plan.x_row = plan.s.in_chunks * p.W * Vec::kLanes;
  plan.dy_row = p.Q * Vec::kLanes;
  plan.slab_floats = plan.s.in_per_group * kTaps * Vec::kLanes;
  plan.dw_channels_last = args.w_layout == Layout::kNHWC;
  plan.band_rows = 1;
  const auto bytes = [&](int64_t rows) {
    return static_cast<int64_t>(sizeof(float)) *
           (((rows - 1) * p.stride_h + 3) * plan.x_row + rows * plan.dy_row);
  };
  plan.run_rows = max64(1, run_pixels(p) / p.Q);
  while (plan.band_rows < plan.rows &&
         bytes(plan.band_rows + 1) <=
             (plan.band_rows < plan.run_rows ? 2 : 1) * kWgradStripBudget) {
    ++plan.band_rows;
  }
  plan.band_rows = ceil_div(plan.rows, ceil_div(plan.rows, plan.band_rows));  // bands of one size
  const int64_t chunk_bytes = sizeof(float) * plan.s.slabs() * plan.slab_floats;
  plan.chunks = max64(1, min64(plan.passes, min64(ceil_div(kWgradTasks, plan.s.units),
                                                  kWgradChunkBudget / chunk_bytes)));
  plan.chunk_passes = ceil_div(plan.passes, plan.chunks);
  plan.chunks = max64(1, ceil_div(plan.passes, max64(1, plan.chunk_passes)));

  const int64_t bands = ceil_div(plan.rows, plan.band_rows);
  plan.chain_passes = max64(1, kChainRuns / (bands * ceil_div(plan.band_rows, plan.run_rows)));

  const int64_t unit_bytes = sizeof(float) * (plan.x_floats() + plan.unit_floats());
  const int64_t wanted = args.parallel.threads == 1 ? 1 : 4 * args.parallel.threads;
  plan.units_per_block = max64(1, min64(plan.s.units, kWgradBlockBudget / unit_bytes));
  while (plan.units_per_block > 1 &&
         ceil_div(plan.s.units, plan.units_per_block) * plan.chunks < wanted) {
    --plan.units_per_block;
  }
  plan.blocks = ceil_div(plan.s.units, plan.units_per_block);
  plan.units_per_block = ceil_div(plan.s.units, plan.blocks);  // blocks of one size
  plan.blocks = ceil_div(plan.s.units, plan.units_per_block);
  return plan;
}

// Adds the chunks of one slab, `first` being the sums of the first, in order and writes its rows of
// dw, [lane][c_per_group][9] or [lane][9][c_per_group].
template <class E>
inline void reduce_slab(const WgradPlan& plan, const float* first, int64_t slab,
                        typename E::T* dw) {
  constexpr int64_t L = Vec::kLanes;
  const int64_t per_chunk = plan.s.slabs() * plan.slab_floats;
  const int64_t vectors = plan.s.in_per_group * kTaps;
  typename E::T* rows = dw + plan.s.out_begin(slab) * vectors;
  for (int64_t v0 = 0; v0 < vectors; v0 += L) {
    const int count = static_cast<int>(min64(L, vectors - v0));
    alignas(64) float block[L * L];
    for (int v = 0; v < count; ++v) {
      const int64_t in_order = plan.dw_channels_last ? (v0 + v) % plan.s.in_per_group * kTaps +
                                                           (v0 + v) / plan.s.in_per_group
                                                     : v0 + v;
      const float* at = first + in_order * L;
      Vec::Reg sum = Vec::load(at);
      for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
        sum = Vec::add(sum, Vec::load(at + chunk * per_chunk));
      }
      Vec::store(block + v * L, sum);
    }
    transpose_out<E>(block, L, plan.s.lanes(slab), count, rows + v0, vectors);
  }
}

// The sums of one block of units over one chunk of the batch.
template <class E>
class WgradTask {
 public:
  WgradTask(const WgradPlan& plan, const PassArgs& args)
      : plan_(plan), scratch_(ScratchSlot::kTask, scratch_bytes(plan)) {
    using T = typename E::T;
    const bool nhwc = args.layout == Layout::kNHWC;
    const ConvProblem& p = plan.p;
    x_ = {static_cast<T*>(args.x), nhwc, p.C, p.H, p.W};
    dy_ = {static_cast<T*>(args.y), nhwc, p.K, p.P, p.Q};
    dw_ = static_cast<T*>(args.w);
    rows_ = reinterpret_cast<WgradRow*>(scratch_.floats());  // first: they are aligned there
    x_strip_ = reinterpret_cast<float*>(rows_ + plan.band_rows);
    dy_strip_ = x_strip_ + plan.units_per_block * plan.x_floats();
    chain_sums_ = dy_strip_ + plan.band_rows * plan.dy_row;
    block_sums_ = chain_sums_ + plan.units_per_block * plan.unit_floats();
    if (plan.s.permute) group_base_ = Vec::group_base(static_cast<int>(plan.s.in_per_group));
  }

  // sums: of all units, [slab][c_per_group][9][kLanes]; those of the block are overwritten.
  void run(int64_t block, int64_t chunk, float* sums) {
    begin(block, chunk);
    add_chunk(sums + unit_begin_ * plan_.unit_floats());
  }

  // Where there is one chunk.
  void run_and_reduce(int64_t block) {
    begin(block, 0);
    add_chunk(block_sums_);
    const int64_t per_unit = plan_.s.slabs_per_unit, first = unit_begin_ * per_unit;
    for (int64_t slab = first; slab < unit_end_ * per_unit; ++slab) {
      reduce_slab<E>(plan_, block_sums_ + (slab - first) * plan_.slab_floats, slab, dw_);
    }
  }

 private:
  static size_t scratch_bytes(const WgradPlan& plan) {
    const int64_t sums = plan.chunks == 1 ? 2 : 1;
    return sizeof(float) * (plan.units_per_block * (plan.x_floats() + sums * plan.unit_floats()) +
                            plan.band_rows * plan.dy_row + 2 * Vec::kLanes) +
           sizeof(WgradRow) * plan.band_rows;
  }

  void begin(int64_t block, int64_t chunk) {
    const bool unforeseen = block_ < 0;
    block_ = block, chunk_ = chunk;
    unit_begin_ = block * plan_.units_per_block;
    unit_end_ = min64(plan_.s.units, unit_begin_ + plan_.units_per_block);
    if (unforeseen && plan_.passes > 0) {
      walk_band({unit_begin_, unit_end_, chunk * plan_.chunk_passes, 0});
      for (PrefetchWalk& walk : ahead_) walk.fetch(walk.total());
    }
  }

  // sums: of the block's units, overwritten.
  void add_chunk(float* sums) {
    const int64_t floats = (unit_end_ - unit_begin_) * plan_.unit_floats();
    const int64_t begin = chunk_ * plan_.chunk_passes;
    const int64_t end = min64(plan_.passes, begin + plan_.chunk_passes);
    if (begin >= end) std::memset(sums, 0, sizeof(float) * floats);  // an empty batch
    for (int64_t pass = begin; pass < end; ++pass) {
      const int64_t link = (pass - begin) % plan_.chain_passes;
      float* chain = pass - begin < plan_.chain_passes ? sums : chain_sums_;
      for (int64_t p0 = 0; p0 < plan_.rows; p0 += plan_.band_rows) {
        const int64_t rows = min64(plan_.band_rows, plan_.rows - p0);
        for (int64_t unit = unit_begin_; unit < unit_end_; ++unit) {
          band(pass, p0, rows, unit, {link == 0 && p0 == 0, pass + 1 < end},
               chain + (unit - unit_begin_) * plan_.unit_floats());
        }
      }
      if (chain == sums || (link + 1 < plan_.chain_passes && pass + 1 < end)) continue;
      for (int64_t i = 0; i < floats; i += Vec::kLanes) {
        Vec::store(sums + i, Vec::add(Vec::load(sums + i), Vec::load(chain + i)));
      }
    }
  }

  struct Place {
    bool first;        // of what its sums add up
    bool more_passes;  // follow it
  };

  void band(int64_t pass, int64_t p0, int64_t rows, int64_t unit, const Place& place, float* sums) {
    float* x_strip = x_strip_ + (unit - unit_begin_) * plan_.x_floats();
    load_x(pass, unit, p0, rows, x_strip);
    look_ahead(pass, p0, rows, unit, place.more_passes);
    for (int64_t j = 0; j < plan_.s.slabs_per_unit; ++j) {
      load_dy(pass, unit * plan_.s.slabs_per_unit + j, p0, rows);
      for (int r = 0; r < 3; ++r)
        accumulate(p0, rows, r, place.first, x_strip, sums + j * plan_.slab_floats);
    }
  }

  // Input rows, those of the padding included, of the band that starts at output row p0, less those
  // of the band before.
  int64_t x_begin(int64_t p0) const {
    return max64(p0 * plan_.p.stride_h, p0 == 0 ? 0 : x_end(p0 - 1)) - plan_.p.pad_h;
  }
  // The input row behind those that output rows up to `last` need, counted from the padding.
  int64_t x_end(int64_t last) const { return last * plan_.p.stride_h + 3; }

  void load_x(int64_t pass, int64_t unit, int64_t p0, int64_t rows, float* x_strip) {
    const int64_t pad = plan_.p.pad_h;
    const StripRows strip{x_strip, plan_.window(), plan_.x_row, plan_.p.W * Vec::kLanes, 0, pad};
    PixelLoader<kPixels, E>::load(x_, plan_.image(pass), plan_.s.in_begin(unit),
                                  plan_.s.in_count(unit), x_begin(p0), x_end(p0 + rows - 1) - pad,
                                  second_of_x(), strip);
  }

  PixelPair second_of_x() const {
    return {plan_.second.images, plan_.second.rows * plan_.p.stride_h};
  }

  struct Band {
    int64_t unit_begin, unit_end, pass, p0;
  };

  // What a band of a block of units reads.
  void walk_band(const Band& at) {
    const Slabs& s = plan_.s;
    const int64_t rows = min64(plan_.band_rows, plan_.rows - at.p0);
    const int64_t c = s.in_begin(at.unit_begin), k = at.unit_begin * s.out_unit;
    const int64_t c_end = min64(s.in_channels, s.in_begin(at.unit_end));
    const int64_t k_end = min64(s.out_channels, at.unit_end * s.out_unit);
    const auto walk = [&](const Activation<E>& t, int64_t n, int64_t first, int64_t last,
                          int64_t h_begin, int64_t h_end) {
      return walk_rows(t, n, first, last - first, max64(0, h_begin), min64(t.h, h_end));
    };
    for (int i = 0; i < kPixels; ++i) {
      const int64_t n = plan_.image(at.pass) + i * plan_.second.images;
      const int64_t h = i * second_of_x().rows, p = at.p0 + i * plan_.second.rows;
      ahead_[2 * i] =
          walk(x_, n, c, c_end, x_begin(at.p0) + h, x_end(at.p0 + rows - 1) - plan_.p.pad_h + h);
      ahead_[2 * i + 1] = walk(dy_, n, k, k_end, p, p + rows);
    }
  }

  // Lets the sums of one unit ask for its share of what the next band reads, be it of this block or
  // the first of the next, and of what the block writes at its end.
  void look_ahead(int64_t pass, int64_t p0, int64_t rows, int64_t unit, bool more_passes) {
    const Slabs& s = plan_.s;
    for (PrefetchWalk& walk : ahead_) walk = {};
    Band next{unit_begin_, unit_end_, pass, p0 + plan_.band_rows};
    if (next.p0 >= plan_.rows) {
      next.p0 = 0, ++next.pass;
      if (!more_passes) {
        const int64_t task = chunk_ * plan_.blocks + block_ + 1;
        next.unit_begin = task % plan_.blocks * plan_.units_per_block;
        next.unit_end = min64(s.units, next.unit_begin + plan_.units_per_block);
        next.pass = task / plan_.blocks * plan_.chunk_passes;
        if (plan_.chunks == 1) {
          const int64_t kernel = s.in_per_group * kTaps;
          const int64_t k = unit_begin_ * s.out_unit;
          const int64_t k_end = min64(s.out_channels, unit_end_ * s.out_unit);
          const int64_t bytes = (k_end - k) * kernel * static_cast<int64_t>(sizeof(typename E::T));
          ahead_[2 * kPixels] = {reinterpret_cast<const char*>(dw_ + k * kernel),
                                 ceil_div(bytes, kCacheLine), kCacheLine, 1, 0};
        }
      }
    }
    if (next.pass < plan_.passes) walk_band(next);
    const int64_t calls = s.slabs_per_unit * 3 * ceil_div(s.in_per_group, Vec::kWgradChannels) *
                          ceil_div(rows, plan_.run_rows);
    for (int i = 0; i < kWalks; ++i) {
      ahead_[i].take_share(unit - unit_begin_, unit_end_ - unit_begin_);
      quota_[i] = ceil_div(ahead_[i].total(), calls);
    }
  }

  void load_dy(int64_t pass, int64_t slab, int64_t p0, int64_t rows) {
    const StripRows strip{dy_strip_, plan_.rows, plan_.dy_row, 0, -p0 * plan_.dy_row, 0};
    PixelLoader<kPixels, E>::load(dy_, plan_.image(pass), plan_.s.out_begin(slab),
                                  plan_.s.lanes(slab), p0, p0 + rows, plan_.second, strip);
  }

  // The bits of a word of which output row p meets an input row through row r of taps.
  uint32_t used(int64_t p, int r) const {
    const ConvProblem& c = plan_.p;
    uint32_t bits = 0;
    for (int i = 0; i < kPixels; ++i, p += plan_.second.rows) {
      const int64_t h = p * c.stride_h - c.pad_h + r;
      if (p < c.P && h >= 0 && h < c.H) bits |= kPixels == 1 ? ~0u : 0xffffu << 16 * i;
    }
    return bits;
  }

  void accumulate(int64_t p0, int64_t rows, int r, bool first, const float* x_strip,
                  float* slab_sums) {
    const ConvProblem& p = plan_.p;
    const bool permute = plan_.s.permute;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t slot = ((p0 + i) * p.stride_h + r) % plan_.window();
      rows_[i] = {x_strip + slot * plan_.x_row, dy_strip_ + i * plan_.dy_row, used(p0 + i, r)};
    }
    const int64_t run = ceil_div(rows, ceil_div(rows, plan_.run_rows));  // runs of one size
    WgradBlock b{rows_, run, p.W, p.Q, p.pad_w, 0, group_base_, false, nullptr};
    int64_t c = 0;
    while (c < plan_.s.in_per_group) {
      const int64_t left = plan_.s.in_per_group - c;
      const int channels = left >= Vec::kWgradChannels ? Vec::kWgradChannels : left >= 4 ? 4 : 1;
      b.sums = slab_sums + (c * kTaps + 3 * r) * Vec::kLanes;
      // A chunk holds kLanes channels of every column.
      if (!permute) b.x_offset = c / Vec::kLanes * Vec::kLanes * p.W + c % Vec::kLanes;
      const int stride = static_cast<int>(p.stride_h);
      const WgradFunction block =
          permute ? select_wgrad<true>(stride, channels) : select_wgrad<false>(stride, channels);
      for (int64_t i = 0; i < rows; i += run) {
        b.rows = rows_ + i, b.count = min64(run, rows - i), b.first = first && i == 0;
        for (int k = 0; k < kWalks; ++k) ahead_[k].fetch(quota_[k]);
        block(b);
      }
      c += channels;
      for (int i = 0; i < channels; ++i) b.lane_channel = Vec::next(b.lane_channel);
    }
  }

  const WgradPlan& plan_;
  ScratchLease scratch_;
  Activation<E> x_, dy_;
  WgradRow* rows_;
  float *x_strip_, *dy_strip_, *chain_sums_, *block_sums_;
  typename E::T* dw_;
  int64_t block_ = -1, chunk_ = 0, unit_begin_ = 0, unit_end_ = 0;
  static constexpr int kWalks = 2 * kPixels + 1;
  PrefetchWalk ahead_[kWalks];  // x and dy, of each pixel of a word, and dw
  int64_t quota_[kWalks] = {};
  Vec::Index group_base_{};
};

template <class E>
void direct_wgrad(const PassArgs& args) {
  const WgradPlan plan = make_wgrad_plan(args);
  const int64_t chunk_floats = plan.s.slabs() * plan.slab_floats;
  const ScratchLease partials(ScratchSlot::kShared,
                              sizeof(float) * (plan.chunks == 1 ? 0 : plan.chunks * chunk_floats));
  struct Context {
    const WgradPlan& plan;
    const PassArgs& args;
    float* partials;
    int64_t chunk_floats;
  } context{plan, args, partials.floats(), chunk_floats};

  args.parallel.run(
      plan.tasks(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        WgradTask<E> task(x.plan, x.args);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t block = i % x.plan.blocks, chunk = i / x.plan.blocks;
          if (x.plan.chunks == 1) {
            task.run_and_reduce(block);
          } else {
            task.run(block, chunk, x.partials + chunk * x.chunk_floats);
          }
        }
      },
      &context);
  if (plan.chunks == 1) return;
  args.parallel.run(
      plan.s.slabs(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        auto* dw = static_cast<typename E::T*>(x.args.w);
        for (int64_t slab = begin; slab < end; ++slab) {
          reduce_slab<E>(x.plan, x.partials + slab * x.plan.slab_floats, slab, dw);
        }
      },
      &context);
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
