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
// fma of two products two: output columns 2p and 2p + 1 in word p of dy, and in the word of input
// column i those columns that the two meet through the same tap, i and i + stride.
constexpr int kPixels = Vec::kChannelsPerWord;

struct WgradBlock {
  const float* const* x_rows;   // per output row of the band: its input row for tap r, or null
  const float* const* dy_rows;  // per output row of the band: words of kLanes channels
  int64_t rows;
  int64_t in_w, out_w, pad;
  int64_t x_first;          // input column of the strip's first word
  Vec::Index lane_channel;  // permute: lane -> first channel of the block in its group
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

// The bits of a word that a product of the sum takes: its first (half 0) or second pixel, of input
// column i and word u of dy.
inline __attribute__((always_inline)) uint32_t used_half(const WgradBlock& b, int64_t i, int64_t u,
                                                         int half, int stride) {
  if (half >= kPixels) return 0;
  const int64_t column = i + half * stride, q = u * kPixels + half;
  const bool used = column >= 0 && column < b.in_w && q >= 0 && q < b.out_w;
  return used ? 0xffffu << (16 * half) : 0;
}

// The pixels of a word that used_half() names.
template <class V = Vec>
inline __attribute__((always_inline)) typename V::Reg only(typename V::Reg word, uint32_t bits) {
  if constexpr (kPixels == 2) {
    return V::mask(word, bits);
  } else {
    return word;
  }
}

template <bool kPermute, int kStride, int kC>
__attribute__((flatten)) void wgrad_block(const WgradBlock& b) {
  constexpr int64_t L = Vec::kLanes;
  Vec::Reg acc[3][kC];
  unroll<3>([&](auto s) { unroll<kC>([&](auto c) { acc[s][c] = Vec::zero(); }); });
  Vec::Index lane[kC];
  lane[0] = b.lane_channel;
  if constexpr (kPermute) {
    for (int c = 1; c < kC; ++c) lane[c] = Vec::next(lane[c - 1]);
  }

  // Word u of dy meets the word of input column i through tap s where i = u * kStep - pad + s. One
  // step takes the words from u * kStep - pad on: with kStep 1 the word meets dy words u - s, with
  // 2 the first meets u (s = 0) and u - 1 (s = 2), the second u; with 4 the first three meet u.
  constexpr int kStep = kStride * kPixels;
  constexpr int kReach = 2 / kStep;                 // words of dy left of u that a step meets
  constexpr int kLast = kStep < 3 ? kStep - 1 : 2;  // word of a step that is used last
  const int64_t dy_words = ceil_div(b.out_w, kPixels);
  for (int64_t row = 0; row < b.rows; ++row) {
    if (b.x_rows[row] == nullptr) continue;
    const float* x_row = b.x_rows[row] - b.x_first * L;
    const float* dy_row = b.dy_rows[row];
    const auto step = [&](int64_t u, auto checked) __attribute__((always_inline)) {
      constexpr bool kChecked = decltype(checked)::value;
      unroll<kLast + 1>([&](auto part) {
        const int64_t i = u * kStep - b.pad + part;
        if (kChecked && kPixels == 1 && (i < 0 || i >= b.in_w)) return;
        Vec::Reg dy[3];
        uint32_t use[3];
        unroll<3>([&](auto s) {
          if constexpr ((s - part) % kStep == 0) {
            const int64_t at = u - (s - part) / kStep;
            use[s] =
                kChecked ? used_half(b, i, at, 0, kStride) | used_half(b, i, at, 1, kStride) : 1;
            dy[s] = use[s] ? Vec::load(dy_row + at * L) : Vec::zero();
            if constexpr (kChecked) dy[s] = only(dy[s], use[s]);
          } else {
            use[s] = 0;
          }
        });
        if (kChecked && (use[0] | use[1] | use[2]) == 0) return;
        unroll<kC>([&](auto c) {
          const Vec::Reg x = expand<kPermute, kC>(x_row + i * L, lane, c);
          unroll<3>([&](auto s) {
            if constexpr ((s - part) % kStep == 0) {
              const Vec::Reg used = kChecked ? only(x, use[s]) : x;
              if (use[s]) acc[s][c] = Vec::fma(used, dy[s], acc[s][c]);
            }
          });
        });
      });
    };
    const int64_t steps = dy_words + kReach;
    const int64_t last_x = b.in_w - 1 - kLast - (kPixels - 1) * kStride;
    int64_t full_begin = max64(kReach, ceil_div(b.pad, kStep));
    int64_t full_end = last_x + b.pad < 0 ? 0 : (last_x + b.pad) / kStep + 1;
    full_end = min64(full_end, b.out_w / kPixels);
    if (full_end < full_begin) full_begin = full_end = steps;
    int64_t u = 0;
    for (; u < full_begin; ++u) step(u, std::true_type{});
    for (; u < full_end; ++u) step(u, std::false_type{});
    for (; u < steps; ++u) step(u, std::true_type{});
  }

  unroll<kC>([&](auto c) {
    unroll<3>([&](auto s) {
      float* sum = b.sums + (c * kTaps + s) * L;
      Vec::store(sum, Vec::add(Vec::load(sum), acc[s][c]));
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

// Rows of x and dy as strips whose words hold kPixelsPerWord pixels; pairs.h has the one for two.
template <int kPixelsPerWord, class E>
struct PixelLoader {
  static_assert(kPixelsPerWord == 1);

  static void x(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                int64_t h_end, int64_t first, int64_t words, int64_t /*stride*/,
                const StripRows& strip) {
    load_rows<WordLoader<1, E>>(t, n, c0, channels, h_begin, h_end, first, words, strip);
  }
  static void dy(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                 int64_t h_end, const StripRows& strip) {
    load_rows<WordLoader<1, E>>(t, n, c0, channels, h_begin, h_end, 0, t.w, strip);
  }
};

// Bytes of one unit's strips, which stay in L1, and of a block's strips and sums, which stay in L2.
constexpr int64_t kWgradStripBudget = int64_t{12} << 10;
constexpr int64_t kWgradBlockBudget = int64_t{128} << 10;
// Output pixels summed in registers.
constexpr int64_t kRunPixels = 32;
// Tasks wanted, so that many threads find work: fixed, for results must not depend on the threads.
constexpr int64_t kWgradTasks = 64;

struct WgradPlan {
  ConvProblem p;
  Slabs s;
  int64_t x_first;    // input column of a strip's first word
  int64_t x_words;    // words of a channel in a strip row of x
  int64_t x_row;      // floats of one strip row of x
  int64_t dy_row;     // floats of one strip row of dy, one slab
  int64_t band_rows;  // output rows per band
  int64_t chunks, chunk_images;
  int64_t units_per_block, blocks;
  int64_t slab_floats;  // sums of one slab: [c_per_group][9][kLanes]

  int64_t window() const { return (band_rows - 1) * p.stride_h + 3; }
  int64_t unit_floats() const { return s.slabs_per_unit * slab_floats; }
  int64_t x_floats() const { return window() * x_row + Vec::kLanes; }  // strips of one unit
  int64_t tasks() const { return blocks * chunks; }
};

inline WgradPlan make_wgrad_plan(const PassArgs& args) {
  WgradPlan plan{};
  plan.p = args.problem;
  const ConvProblem& p = plan.p;
  plan.s = make_slabs(p.G, p.C / p.G, p.K / p.G);
  const int64_t dy_words = ceil_div(p.Q, kPixels);
  plan.x_first = kPixels == 1 ? 0 : -p.pad_w;
  plan.x_words = kPixels == 1 ? p.W : (dy_words - 1) * kPixels * p.stride_w + 3;
  plan.x_row = plan.s.in_chunks * plan.x_words * Vec::kLanes;
  plan.dy_row = dy_words * Vec::kLanes;
  plan.slab_floats = plan.s.in_per_group * kTaps * Vec::kLanes;
  plan.band_rows = 1;
  const auto bytes = [&](int64_t rows) {
    return static_cast<int64_t>(sizeof(float)) *
           (((rows - 1) * p.stride_h + 3) * plan.x_row + rows * plan.dy_row);
  };
  while (plan.band_rows < p.P && bytes(plan.band_rows + 1) <= kWgradStripBudget) ++plan.band_rows;
  plan.chunks = max64(1, min64(p.N, ceil_div(kWgradTasks, plan.s.units)));
  plan.chunk_images = ceil_div(p.N, plan.chunks);
  plan.chunks = max64(1, ceil_div(p.N, max64(1, plan.chunk_images)));

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
    x_rows_ = reinterpret_cast<const float**>(scratch_.floats());  // first: they are aligned there
    dy_rows_ = x_rows_ + plan.band_rows;
    x_strip_ = reinterpret_cast<float*>(dy_rows_ + plan.band_rows);
    dy_strip_ = x_strip_ + plan.units_per_block * plan.x_floats();
    image_sums_ = dy_strip_ + plan.band_rows * plan.dy_row;
    if (plan.s.permute) group_base_ = Vec::group_base(static_cast<int>(plan.s.in_per_group));
  }

  // sums: of all units, [slab][c_per_group][9][kLanes]; those of the block are overwritten.
  void run(int64_t block, int64_t chunk, float* sums) {
    unit_begin_ = block * plan_.units_per_block;
    unit_end_ = min64(plan_.s.units, unit_begin_ + plan_.units_per_block);
    sums += unit_begin_ * plan_.unit_floats();
    const int64_t floats = (unit_end_ - unit_begin_) * plan_.unit_floats();
    const int64_t n_begin = chunk * plan_.chunk_images;
    const int64_t n_end = min64(plan_.p.N, n_begin + plan_.chunk_images);
    for (int64_t n = n_begin; n < n_end; ++n) {
      float* image = n == n_begin ? sums : image_sums_;
      std::memset(image, 0, sizeof(float) * floats);
      for (int64_t p0 = 0; p0 < plan_.p.P; p0 += plan_.band_rows) {
        const int64_t rows = min64(plan_.band_rows, plan_.p.P - p0);
        for (int64_t unit = unit_begin_; unit < unit_end_; ++unit) {
          band(n, p0, rows, unit, n + 1 < n_end,
               image + (unit - unit_begin_) * plan_.unit_floats());
        }
      }
      if (n == n_begin) continue;
      for (int64_t i = 0; i < floats; i += Vec::kLanes) {
        Vec::store(sums + i, Vec::add(Vec::load(sums + i), Vec::load(image + i)));
      }
    }
  }

 private:
  static size_t scratch_bytes(const WgradPlan& plan) {
    return sizeof(float) * (plan.units_per_block * (plan.x_floats() + plan.unit_floats()) +
                            plan.band_rows * plan.dy_row + 2 * Vec::kLanes) +
           sizeof(float*) * 2 * plan.band_rows;
  }

  void band(int64_t n, int64_t p0, int64_t rows, int64_t unit, bool more_images, float* sums) {
    float* x_strip = x_strip_ + (unit - unit_begin_) * plan_.x_floats();
    load_x(n, unit, p0, rows, x_strip);
    look_ahead(n, p0, unit, more_images);
    for (int64_t j = 0; j < plan_.s.slabs_per_unit; ++j) {
      load_dy(n, unit * plan_.s.slabs_per_unit + j, p0, rows);
      for (int r = 0; r < 3; ++r) accumulate(p0, rows, r, x_strip, sums + j * plan_.slab_floats);
    }
  }

  // Input rows of the band that starts at output row p0, less those of the band before.
  int64_t x_begin(int64_t p0) const {
    const int64_t first = p0 * plan_.p.stride_h - plan_.p.pad_h;
    return max64(0, p0 == 0 ? first : max64(first, x_end(p0 - 1)));
  }
  // The input row behind those that output rows up to `last` need.
  int64_t x_end(int64_t last) const {
    return max64(0, min64(plan_.p.H, last * plan_.p.stride_h - plan_.p.pad_h + 3));
  }

  void load_x(int64_t n, int64_t unit, int64_t p0, int64_t rows, float* x_strip) {
    const int64_t begin = x_begin(p0), end = x_end(p0 + rows - 1);
    if (begin >= end) return;
    const StripRows strip{x_strip, plan_.window(), plan_.x_row, plan_.x_words * Vec::kLanes, 0};
    PixelLoader<kPixels, E>::x(x_, n, plan_.s.in_begin(unit), plan_.s.in_count(unit), begin, end,
                               plan_.x_first, plan_.x_words, plan_.p.stride_w, strip);
  }

  // Lets the sums of one unit ask for its share of what the block's next band reads.
  void look_ahead(int64_t n, int64_t p0, int64_t unit, bool more_images) {
    const Slabs& s = plan_.s;
    ahead_[0] = ahead_[1] = {};
    p0 += plan_.band_rows;
    if (p0 >= plan_.p.P) {
      if (!more_images) return;
      ++n, p0 = 0;
    }
    const int64_t rows = min64(plan_.band_rows, plan_.p.P - p0);
    const int64_t c = s.in_begin(unit_begin_), k = unit_begin_ * s.out_unit;
    ahead_[0] = walk_rows(x_, n, c, min64(s.in_channels, s.in_begin(unit_end_)) - c, x_begin(p0),
                          x_end(p0 + rows - 1));
    ahead_[1] =
        walk_rows(dy_, n, k, min64(s.out_channels, unit_end_ * s.out_unit) - k, p0, p0 + rows);
    const int64_t calls = s.slabs_per_unit * 3 * ceil_div(s.in_per_group, Vec::kWgradChannels) *
                          ceil_div(rows, run_rows());
    for (int i = 0; i < 2; ++i) {
      ahead_[i].take_share(unit - unit_begin_, unit_end_ - unit_begin_);
      quota_[i] = ceil_div(ahead_[i].total(), calls);
    }
  }

  int64_t run_rows() const { return max64(1, kRunPixels / plan_.p.Q); }

  void load_dy(int64_t n, int64_t slab, int64_t p0, int64_t rows) {
    const StripRows strip{dy_strip_, plan_.p.P, plan_.dy_row, 0, -p0 * plan_.dy_row};
    PixelLoader<kPixels, E>::dy(dy_, n, plan_.s.out_begin(slab), plan_.s.lanes(slab), p0, p0 + rows,
                                strip);
    for (int64_t i = 0; i < rows; ++i) dy_rows_[i] = dy_strip_ + i * plan_.dy_row;
  }

  void accumulate(int64_t p0, int64_t rows, int r, const float* x_strip, float* slab_sums) {
    const ConvProblem& p = plan_.p;
    const bool permute = plan_.s.permute;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = (p0 + i) * p.stride_h - p.pad_h + r;
      x_rows_[i] = h >= 0 && h < p.H ? x_strip + h % plan_.window() * plan_.x_row : nullptr;
    }
    const int64_t run = run_rows();
    WgradBlock b{x_rows_, dy_rows_, run, p.W, p.Q, p.pad_w, plan_.x_first, group_base_, nullptr};
    int64_t c = 0;
    while (c < plan_.s.in_per_group) {
      const int64_t left = plan_.s.in_per_group - c;
      const int channels = left >= Vec::kWgradChannels ? Vec::kWgradChannels : left >= 4 ? 4 : 1;
      b.sums = slab_sums + (c * kTaps + 3 * r) * Vec::kLanes;
      const int stride = static_cast<int>(p.stride_h);
      const WgradFunction block =
          permute ? select_wgrad<true>(stride, channels) : select_wgrad<false>(stride, channels);
      for (int64_t i = 0; i < rows; i += run) {
        b.x_rows = x_rows_ + i, b.dy_rows = dy_rows_ + i, b.rows = min64(run, rows - i);
        for (int k = 0; k < 2; ++k) ahead_[k].fetch(quota_[k]);
        block(b);
      }
      c += channels;
      // A chunk holds kLanes channels of every column.
      const int64_t next =
          c % Vec::kLanes == 0 ? (plan_.x_words - 1) * Vec::kLanes + channels : channels;
      for (int i = 0; i < channels; ++i) b.lane_channel = Vec::next(b.lane_channel);
      for (int64_t i = 0; i < rows; ++i) {
        if (!permute && x_rows_[i] != nullptr) x_rows_[i] += next;
      }
    }
  }

  const WgradPlan& plan_;
  ScratchLease scratch_;
  Activation<E> x_, dy_;
  float *x_strip_, *dy_strip_, *image_sums_;
  const float **x_rows_, **dy_rows_;
  int64_t unit_begin_ = 0, unit_end_ = 0;
  PrefetchWalk ahead_[2];  // x and dy
  int64_t quota_[2] = {};
  Vec::Index group_base_{};
};

// Adds the chunks of one slab in order and writes its rows of dw, [lane][c_per_group][9].
template <class E>
inline void reduce_slab(const WgradPlan& plan, const float* partials, int64_t slab,
                        typename E::T* dw) {
  constexpr int64_t L = Vec::kLanes;
  const int64_t per_chunk = plan.s.slabs() * plan.slab_floats;
  const int64_t vectors = plan.s.in_per_group * kTaps;
  typename E::T* rows = dw + plan.s.out_begin(slab) * vectors;
  const float* first = partials + slab * plan.slab_floats;
  for (int64_t v0 = 0; v0 < vectors; v0 += L) {
    const int count = static_cast<int>(min64(L, vectors - v0));
    alignas(64) float block[L * L];
    for (int v = 0; v < count; ++v) {
      const float* at = first + (v0 + v) * L;
      Vec::Reg sum = Vec::load(at);
      for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
        sum = Vec::add(sum, Vec::load(at + chunk * per_chunk));
      }
      Vec::store(block + v * L, sum);
    }
    transpose_out<E>(block, L, plan.s.lanes(slab), count, rows + v0, vectors);
  }
}

template <class E>
void direct_wgrad(const PassArgs& args) {
  const WgradPlan plan = make_wgrad_plan(args);
  const ScratchLease partials(ScratchSlot::kShared,
                              sizeof(float) * plan.chunks * plan.s.slabs() * plan.slab_floats);
  struct Context {
    const WgradPlan& plan;
    const PassArgs& args;
    float* partials;
  } context{plan, args, partials.floats()};

  args.parallel.run(
      plan.tasks(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        WgradTask<E> task(x.plan, x.args);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t block = i % x.plan.blocks, chunk = i / x.plan.blocks;
          task.run(block, chunk, x.partials + chunk * x.plan.s.units * x.plan.unit_floats());
        }
      },
      &context);
  args.parallel.run(
      plan.s.slabs(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        auto* dw = static_cast<typename E::T*>(x.args.w);
        for (int64_t slab = begin; slab < end; ++slab) {
          reduce_slab<E>(x.plan, x.partials, slab, dw);
        }
      },
      &context);
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
