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
// threads.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "scratch.h"
#include "slabs.h"
#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

struct WgradBlock {
  const float* const* x_rows;   // per output row of the band: its input row for tap r, or null
  const float* const* dy_rows;  // per output row of the band: pixels of kLanes channels
  int64_t rows;
  int64_t plane;  // broadcast: floats from one channel plane to the next
  int64_t in_w, out_w, pad;
  Vec::Index lane_channel;  // permute: lane -> first channel of the block in its group
  float* sums;              // [kC][9][kLanes], at tap (r, 0) of the block's first channel
};

using WgradFunction = void (*)(const WgradBlock&);

template <bool kPermute, int kC>
inline __attribute__((always_inline)) Vec::Reg expand(const WgradBlock& b, const float* x,
                                                      const Vec::Index (&lane)[kC], int c) {
  if constexpr (kPermute) {
    return Vec::permute(x, lane[c]);
  } else {
    return Vec::broadcast(x + c * b.plane);
  }
}

template <bool kPermute, int kStride, int kC>
__attribute__((flatten)) void wgrad_block(const WgradBlock& b) {
  constexpr int64_t L = Vec::kLanes;
  constexpr int64_t kPitch = kPermute ? L : 1;
  Vec::Reg acc[3][kC];
  unroll<3>([&](auto s) { unroll<kC>([&](auto c) { acc[s][c] = Vec::zero(); }); });
  Vec::Index lane[kC];
  lane[0] = b.lane_channel;
  if constexpr (kPermute) {
    for (int c = 1; c < kC; ++c) lane[c] = Vec::next(lane[c - 1]);
  }

  // Input column i meets output column q through tap s where i = q * kStride - pad + s. One step
  // takes the kStride input columns from u * kStride - pad: with stride 1 column u meets q = u - s,
  // with stride 2 its even column meets q = u (s = 0) and q = u - 1 (s = 2), its odd one q = u.
  for (int64_t row = 0; row < b.rows; ++row) {
    const float* x_row = b.x_rows[row];
    if (x_row == nullptr) continue;
    const float* dy_row = b.dy_rows[row];
    const auto step = [&](int64_t u, auto checked) __attribute__((always_inline)) {
      constexpr bool kChecked = decltype(checked)::value;
      unroll<kStride>([&](auto half) {
        const int64_t i = u * kStride - b.pad + half;
        if (kChecked && (i < 0 || i >= b.in_w)) return;
        Vec::Reg dy[3];
        bool use[3];
        unroll<3>([&](auto s) {
          if constexpr ((s - half) % kStride == 0) {
            const int64_t q = u - (s - half) / kStride;
            use[s] = !kChecked || (q >= 0 && q < b.out_w);
            dy[s] = use[s] ? Vec::load(dy_row + q * L) : Vec::zero();
          }
        });
        unroll<kC>([&](auto c) {
          const Vec::Reg x = expand<kPermute, kC>(b, x_row + i * kPitch, lane, c);
          unroll<3>([&](auto s) {
            if constexpr ((s - half) % kStride == 0) {
              if (use[s]) acc[s][c] = Vec::fma(x, dy[s], acc[s][c]);
            }
          });
        });
      });
    };
    constexpr int64_t kReach = kStride == 1 ? 2 : 1;  // output columns left of u that a step meets
    const int64_t steps = b.out_w + kReach;
    int64_t full_begin = max64(kReach, ceil_div(b.pad, kStride));
    int64_t full_end = min64(b.out_w, (b.in_w + b.pad) / kStride);
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

// Bytes of strips: they stay in L1.
constexpr int64_t kWgradStripBudget = int64_t{24} << 10;
// Output pixels summed in registers.
constexpr int64_t kRunPixels = 16;
// Tasks wanted, so that many threads find work: fixed, for results must not depend on the threads.
constexpr int64_t kWgradTasks = 64;

struct WgradPlan {
  ConvProblem p;
  Slabs s;
  int64_t x_row;      // floats of one strip row of x
  int64_t dy_row;     // floats of one strip row of dy, one slab
  int64_t band_rows;  // output rows per band
  int64_t chunks, chunk_images;
  int64_t slab_floats;  // sums of one slab: [c_per_group][9][kLanes]

  int64_t window() const { return (band_rows - 1) * p.stride_h + 3; }
  int64_t unit_floats() const { return s.slabs_per_unit * slab_floats; }
  int64_t tasks() const { return s.units * chunks; }
};

inline WgradPlan make_wgrad_plan(const PassArgs& args) {
  WgradPlan plan{};
  plan.p = args.problem;
  const ConvProblem& p = plan.p;
  plan.s = make_slabs(p.G, p.C / p.G, p.K / p.G);
  plan.x_row = p.W * plan.s.in_unit;
  plan.dy_row = p.Q * Vec::kLanes;
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
  return plan;
}

// The sums of one unit over one chunk of the batch.
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
    dy_strip_ = x_strip_ + plan.window() * plan.x_row + Vec::kLanes;
    image_sums_ = dy_strip_ + plan.band_rows * plan.dy_row;
    if (plan.s.permute) group_base_ = Vec::group_base(static_cast<int>(plan.s.in_per_group));
  }

  // sums: [slabs_per_unit][c_per_group][9][kLanes], overwritten.
  void run(int64_t unit, int64_t chunk, float* sums) {
    const int64_t n_begin = chunk * plan_.chunk_images;
    const int64_t n_end = min64(plan_.p.N, n_begin + plan_.chunk_images);
    for (int64_t n = n_begin; n < n_end; ++n) {
      float* image = n == n_begin ? sums : image_sums_;
      std::memset(image, 0, sizeof(float) * plan_.unit_floats());
      int64_t loaded = 0;  // rows of x below this one are in the ring
      for (int64_t p0 = 0; p0 < plan_.p.P; p0 += plan_.band_rows) {
        const int64_t rows = min64(plan_.band_rows, plan_.p.P - p0);
        loaded = load_x(n, unit, p0, rows, loaded);
        for (int64_t j = 0; j < plan_.s.slabs_per_unit; ++j) {
          const int64_t slab = unit * plan_.s.slabs_per_unit + j;
          load_dy(n, slab, p0, rows);
          for (int r = 0; r < 3; ++r) accumulate(p0, rows, r, image + j * plan_.slab_floats);
        }
      }
      if (n == n_begin) continue;
      for (int64_t i = 0; i < plan_.unit_floats(); i += Vec::kLanes) {
        Vec::store(sums + i, Vec::add(Vec::load(sums + i), Vec::load(image + i)));
      }
    }
  }

 private:
  static size_t scratch_bytes(const WgradPlan& plan) {
    return sizeof(float) * (plan.window() * plan.x_row + plan.band_rows * plan.dy_row +
                            plan.unit_floats() + 2 * Vec::kLanes) +
           sizeof(float*) * 2 * plan.band_rows;
  }

  float* slot(int64_t h) { return x_strip_ + h % plan_.window() * plan_.x_row; }

  int64_t load_x(int64_t n, int64_t unit, int64_t p0, int64_t rows, int64_t loaded) {
    const ConvProblem& p = plan_.p;
    const Slabs& s = plan_.s;
    const int64_t first = p0 * p.stride_h - p.pad_h;
    const int64_t end = min64(p.H, first + (rows - 1) * p.stride_h + 3);
    int64_t h = max64(max64(0, first), loaded);
    for (; h < end; ++h) {
      if (s.permute) {
        load_float_pixels<E>(x_, n, s.in_begin(unit), static_cast<int>(s.in_count(unit)), h, 0, p.W,
                             slot(h), plan_.band_rows * p.stride_h);
      } else {
        load_float_planes<E>(x_, n, s.in_begin(unit), s.in_count(unit), h, 0, p.W, slot(h), p.W,
                             plan_.band_rows * p.stride_h);
      }
    }
    return h;
  }

  void load_dy(int64_t n, int64_t slab, int64_t p0, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      float* row = dy_strip_ + i * plan_.dy_row;
      load_float_pixels<E>(dy_, n, plan_.s.out_begin(slab), plan_.s.lanes(slab), p0 + i, 0,
                           plan_.p.Q, row, plan_.band_rows);
      dy_rows_[i] = row;
    }
  }

  void accumulate(int64_t p0, int64_t rows, int r, float* slab_sums) {
    const ConvProblem& p = plan_.p;
    const bool permute = plan_.s.permute;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = (p0 + i) * p.stride_h - p.pad_h + r;
      x_rows_[i] = h >= 0 && h < p.H ? slot(h) : nullptr;
    }
    const int64_t run = max64(1, kRunPixels / p.Q);
    WgradBlock b{x_rows_, dy_rows_, run, p.W, p.W, p.Q, p.pad_w, group_base_, nullptr};
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
        block(b);
      }
      for (int i = 0; i < channels; ++i) b.lane_channel = Vec::next(b.lane_channel);
      for (int64_t i = 0; i < rows; ++i) {
        if (!permute && x_rows_[i] != nullptr) x_rows_[i] += channels * b.plane;
      }
      c += channels;
    }
  }

  const WgradPlan& plan_;
  ScratchLease scratch_;
  Activation<E> x_, dy_;
  float *x_strip_, *dy_strip_, *image_sums_;
  const float **x_rows_, **dy_rows_;
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
          const int64_t unit = i % x.plan.s.units, chunk = i / x.plan.s.units;
          task.run(unit, chunk, x.partials + i * x.plan.unit_floats());
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
