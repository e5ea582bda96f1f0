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
// runs of neighbouring channels. Where uses_winograd() says so the same walk feeds the sums of
// winograd_wgrad.h instead of the tile.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "scratch.h"
#include "slabs.h"
#include "weights.h"
#include "wgrad_plan.h"
#include "wgrad_tile.h"
#include "winograd_wgrad.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

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
template <class E, bool kWinograd>
class WgradTask {
 public:
  // not_finite, of Winograd's algorithm: one flag per chunk and unit.
  WgradTask(const WgradPlan& plan, const PassArgs& args, uint8_t* not_finite)
      : plan_(plan),
        not_finite_(not_finite),
        scratch_(ScratchSlot::kTask, scratch_bytes(plan)),
        winograd_(plan, scratch_.floats() + direct_floats(plan)) {
    using T = typename E::T;
    const bool nhwc = args.layout == Layout::kNHWC;
    const ConvProblem& p = plan.p;
    x_ = {static_cast<T*>(args.x), nhwc, p.C, p.H, p.W};
    dy_ = {static_cast<T*>(args.y), nhwc, p.K, p.P, p.Q};
    dw_ = static_cast<T*>(args.w);
    x_strip_ = scratch_.floats();
    dy_strip_ = x_strip_ + plan.units_per_block * plan.x_floats();
    chain_sums_ = dy_strip_ + plan.slabs_at_once * plan.dy_slab();
    block_sums_ = chain_sums_ + plan.units_per_block * plan.unit_floats();
    rows_ = reinterpret_cast<WgradRow*>(scratch_.floats() + floats(plan));
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
  // Whole vectors, so that every strip lies on lines of the cache.
  static int64_t direct_floats(const WgradPlan& plan) {
    const int64_t sums = plan.chunks == 1 ? 2 : 1;
    return plan.units_per_block * (plan.x_floats() + sums * plan.unit_floats()) +
           plan.slabs_at_once * plan.dy_slab() + 2 * Vec::kLanes;
  }
  static int64_t floats(const WgradPlan& plan) {
    return direct_floats(plan) + WinogradSums::floats(plan);
  }
  static size_t scratch_bytes(const WgradPlan& plan) {
    return sizeof(float) * floats(plan) + sizeof(WgradRow) * plan.band_rows;
  }

  void begin(int64_t block, int64_t chunk) {
    const bool unforeseen = block_ < 0;
    block_ = block, chunk_ = chunk;
    unit_begin_ = block * plan_.units_per_block;
    unit_end_ = min64(plan_.s.units, unit_begin_ + plan_.units_per_block);
    if (unforeseen && plan_.passes > 0) {
      ahead_.count = 0;
      walk_band({unit_begin_, unit_end_, chunk * plan_.chunk_passes, 0}, 0, 1);
      for (int i = 0; i < ahead_.count; ++i) ahead_.walks[i].fetch(ahead_.walks[i].total());
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
        for (int64_t unit = unit_begin_; unit < unit_end_; unit += plan_.units_at_once) {
          band(pass, p0, rows, unit, {link == 0 && p0 == 0, pass + 1 < end},
               chain + (unit - unit_begin_) * plan_.unit_floats());
        }
      }
      if constexpr (kWinograd) {
        if (link + 1 == plan_.chain_passes || pass + 1 == end) {
          finish_chain(pass - begin >= plan_.chain_passes, sums);
        }
        continue;
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

  // One band of the units that are brought at once. sums: of the first of them.
  void band(int64_t pass, int64_t p0, int64_t rows, int64_t first_unit, const Place& place,
            float* sums) {
    float* x_strips = x_strip_ + (first_unit - unit_begin_) * plan_.x_floats();
    const int64_t units = min64(plan_.units_at_once, unit_end_ - first_unit);
    if (!plan_.in_place) load_x(pass, first_unit, units, p0, rows, x_strips);
    const int64_t per_unit = plan_.s.slabs_per_unit, slabs = units * per_unit;
    for (int64_t j = 0; j < slabs; ++j) {
      const int64_t unit = first_unit + j / per_unit;
      if (j % per_unit == 0) look_ahead(pass, p0, rows, unit, place.more_passes);
      const int64_t at_once = plan_.slabs_at_once;
      if (j % at_once == 0 && !plan_.in_place) {
        load_dy(pass, first_unit * per_unit + j, min64(at_once, slabs - j), p0, rows);
      }
      if constexpr (kWinograd) {
        if (j == 0) take_inputs(pass, p0, rows, unit, x_strips);
        add_products(pass, p0, rows, first_unit * per_unit + j, place.first);
        continue;
      }
      const Strips strips{x_strips + (unit - first_unit) * plan_.x_floats(),
                          dy_strip_ + j % at_once * plan_.dy_slab()};
      for (int r = 0; r < 3; ++r) {
        accumulate(p0, rows, r, place.first, strips, sums + j * plan_.slab_floats);
      }
    }
  }

  void take_inputs(int64_t pass, int64_t p0, int64_t rows, int64_t unit, const float* x_strips) {
    if (plan_.in_place) {
      winograd_.template take_inputs<E>(p0, rows, plan_.p.C, Vec::kLanes, [&](int64_t h) {
        return x_.at(plan_.image(pass), plan_.s.in_begin(unit), h, 0);
      });
    } else {
      winograd_.template take_inputs<ElementF32>(
          p0, rows, Vec::kLanes, plan_.x_chunk(),
          [&](int64_t h) { return x_strips + (h + plan_.p.pad_h) % plan_.window() * plan_.x_row; });
    }
  }

  void add_products(int64_t pass, int64_t p0, int64_t rows, int64_t slab, bool first) {
    const int64_t unit = slab / plan_.s.slabs_per_unit - unit_begin_;
    const int64_t i = slab % plan_.s.slabs_per_unit;
    if (plan_.in_place) {
      const OutputRows<E> dy{dy_.at(plan_.image(pass), plan_.s.out_begin(slab), p0, 0),
                             plan_.p.Q * plan_.p.K, plan_.p.K, plan_.s.lanes(slab)};
      winograd_.add(unit, i, rows, dy, first, ahead_);
    } else {
      const OutputRows<ElementF32> dy{dy_strip_, plan_.dy_row, Vec::kLanes, Vec::kLanes};
      winograd_.add(unit, i, rows, dy, first, ahead_);
    }
  }

  void finish_chain(bool add, float* sums) {
    for (int64_t unit = unit_begin_; unit < unit_end_; ++unit) {
      const int64_t i = unit - unit_begin_;
      if (!winograd_.finish(i, add, sums + i * plan_.unit_floats())) {
        not_finite_[chunk_ * plan_.s.units + unit] = 1;
      }
    }
  }

  // Input rows, those of the padding included, of the band that starts at output row p0, less those
  // of the band before.
  int64_t x_begin(int64_t p0) const {
    return max64(p0 * plan_.p.stride_h, p0 == 0 ? 0 : x_end(p0 - 1)) - plan_.p.pad_h;
  }
  // The input row behind those that output rows up to `last` need, counted from the padding.
  int64_t x_end(int64_t last) const { return last * plan_.p.stride_h + 3; }

  void load_x(int64_t pass, int64_t unit, int64_t units, int64_t p0, int64_t rows,
              float* x_strips) {
    const int64_t pad = plan_.p.pad_h;
    const StripRows strip{x_strips, plan_.window(), plan_.x_row, plan_.x_chunk(), 0, pad};
    const int64_t begin = plan_.s.in_begin(unit);
    const int64_t end = min64(plan_.s.in_channels, plan_.s.in_begin(unit + units));
    PixelLoader<kPixels, E>::load(x_, plan_.image(pass), begin, end - begin, x_begin(p0),
                                  x_end(p0 + rows - 1) - pad, second_of_x(), strip);
  }

  PixelPair second_of_x() const {
    return {plan_.second.images, plan_.second.rows * plan_.p.stride_h};
  }

  struct Band {
    int64_t unit_begin, unit_end, pass, p0;
  };

  // The share-th of `shares` parts of what a band of a block of units reads.
  void walk_band(const Band& at, int64_t share, int64_t shares) {
    const Slabs& s = plan_.s;
    const int64_t rows = min64(plan_.band_rows, plan_.rows - at.p0);
    const int64_t c = s.in_begin(at.unit_begin), k = at.unit_begin * s.out_unit;
    const int64_t c_end = min64(s.in_channels, s.in_begin(at.unit_end));
    const int64_t k_end = min64(s.out_channels, at.unit_end * s.out_unit);
    const auto add = [&](const Activation<E>& t, int64_t n, int64_t first, int64_t last,
                         int64_t h_begin, int64_t h_end) {
      PrefetchWalk walk =
          walk_rows(t, n, first, last - first, max64(0, h_begin), min64(t.h, h_end));
      walk.take_share(share, shares);
      ahead_.add(walk);
    };
    for (int i = 0; i < kPixels; ++i) {
      const int64_t n = plan_.image(at.pass) + i * plan_.second.images;
      const int64_t h = i * second_of_x().rows, p = at.p0 + i * plan_.second.rows;
      add(dy_, n, k, k_end, p, p + rows);
      add(x_, n, c, c_end, x_begin(at.p0) + h, x_end(at.p0 + rows - 1) - plan_.p.pad_h + h);
    }
  }

  // Lets the sums of one unit ask for its share of what the next band reads, be it of this block or
  // the first of the next, and of what the block writes at its end.
  void look_ahead(int64_t pass, int64_t p0, int64_t rows, int64_t unit, bool more_passes) {
    const Slabs& s = plan_.s;
    const int64_t share = unit - unit_begin_, shares = unit_end_ - unit_begin_;
    ahead_.count = 0;
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
          PrefetchWalk outputs{reinterpret_cast<const char*>(dw_ + k * kernel),
                               ceil_div(bytes, kCacheLine), kCacheLine, 1, 0};
          outputs.take_share(share, shares);
          ahead_.add(outputs);
        }
      }
    }
    if (next.pass < plan_.passes) walk_band(next, share, shares);
    if constexpr (kWinograd) {
      ahead_.spread(s.slabs_per_unit * plan_.sum_runs * kPlaces);
      return;
    }
    const int64_t blocks = s.slabs_per_unit * 3 * ceil_div(s.in_per_group, Vec::kWgradChannels);
    // Steps at the ends of rows do not ask.
    ahead_.spread(blocks * rows * max64(1, plan_.p.Q - 2));
  }

  void load_dy(int64_t pass, int64_t slab, int64_t slabs, int64_t p0, int64_t rows) {
    const StripRows strip{dy_strip_,       plan_.rows,         plan_.dy_row,
                          plan_.dy_slab(), -p0 * plan_.dy_row, 0};
    const int64_t begin = plan_.s.out_begin(slab), last = slab + slabs - 1;
    const int64_t end = plan_.s.out_begin(last) + plan_.s.lanes(last);
    PixelLoader<kPixels, E>::load(dy_, plan_.image(pass), begin, end - begin, p0, p0 + rows,
                                  plan_.second, strip);
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

  struct Strips {
    const float *x, *dy;  // of a unit, and of one of its slabs
  };

  void accumulate(int64_t p0, int64_t rows, int r, bool first, const Strips& strips,
                  float* slab_sums) {
    const ConvProblem& p = plan_.p;
    const bool permute = plan_.s.permute;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t slot = ((p0 + i) * p.stride_h + r) % plan_.window();
      rows_[i] = {strips.x + slot * plan_.x_row, strips.dy + i * plan_.dy_row, used(p0 + i, r)};
    }
    const int64_t run = ceil_div(rows, ceil_div(rows, plan_.run_rows));  // runs of one size
    WgradBlock b{rows_, run, p.W, p.Q, p.pad_w, 0, group_base_, false, nullptr, &ahead_};
    const bool asks = p.W >= kAskingRow;
    int64_t c = 0;
    while (c < plan_.s.in_per_group) {
      const int64_t left = plan_.s.in_per_group - c;
      const int channels = left >= Vec::kWgradChannels ? Vec::kWgradChannels : left >= 4 ? 4 : 1;
      b.sums = slab_sums + (c * kTaps + 3 * r) * Vec::kLanes;
      if (!permute) b.x_offset = c / Vec::kLanes * plan_.x_chunk() + c % Vec::kLanes;
      const int stride = static_cast<int>(p.stride_h);
      const WgradFunction block = permute ? select_wgrad<true>(stride, channels, asks)
                                          : select_wgrad<false>(stride, channels, asks);
      for (int64_t i = 0; i < rows; i += run) {
        b.rows = rows_ + i, b.count = min64(run, rows - i), b.first = first && i == 0;
        if (!asks) Asking(ahead_).ask(b.count * max64(1, p.Q - 2));
        block(b);
      }
      c += channels;
      for (int i = 0; i < channels; ++i) b.lane_channel = Vec::next(b.lane_channel);
    }
  }

  const WgradPlan& plan_;
  uint8_t* not_finite_;
  ScratchLease scratch_;
  WinogradSums winograd_;
  Activation<E> x_, dy_;
  WgradRow* rows_;
  float *x_strip_, *dy_strip_, *chain_sums_, *block_sums_;
  typename E::T* dw_;
  int64_t block_ = -1, chunk_ = 0, unit_begin_ = 0, unit_end_ = 0;
  static_assert(2 * kPixels + 1 <= PacedWalks::kMaxWalks);
  PacedWalks ahead_;  // x and dy, of each pixel of a word, and dw
  Vec::Index group_base_{};
};

template <class E, bool kWinograd>
void run_wgrad_plan(const WgradPlan& plan, const PassArgs& args, uint8_t* not_finite) {
  const int64_t chunk_floats = plan.s.slabs() * plan.slab_floats;
  const ScratchLease partials(ScratchSlot::kShared,
                              sizeof(float) * (plan.chunks == 1 ? 0 : plan.chunks * chunk_floats));
  struct Context {
    const WgradPlan& plan;
    const PassArgs& args;
    uint8_t* not_finite;
    float* partials;
    int64_t chunk_floats;
  } context{plan, args, not_finite, partials.floats(), chunk_floats};

  args.parallel.run(
      plan.tasks(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        WgradTask<E, kWinograd> task(x.plan, x.args, x.not_finite);
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

template <class E>
void direct_wgrad(const PassArgs& args) {
  run_wgrad_plan<E, false>(make_wgrad_plan(args, false), args, nullptr);
}

// A transform mixes pixels. So an Inf or NaN, or a sum that overflows, would reach taps that have
// nothing to do with it: a group whose gradient is not finite is computed again by the direct
// kernel.
template <class E>
void winograd_wgrad(const PassArgs& args) {
  const WgradPlan plan = make_wgrad_plan(args, true);
  const int64_t flag_bytes = plan.chunks * plan.s.units;
  const ScratchLease flags(ScratchSlot::kFlags, flag_bytes);
  auto* const not_finite = reinterpret_cast<uint8_t*>(flags.floats());
  std::memset(not_finite, 0, flag_bytes);
  run_wgrad_plan<E, true>(plan, args, not_finite);
  if (std::memchr(not_finite, 1, flag_bytes) == nullptr) return;

  WgradPlan direct = make_wgrad_plan(args, false);
  direct.units_per_block = 1, direct.blocks = direct.s.units;
  direct.chunks = 1, direct.chunk_passes = direct.passes;
  struct Context {
    const WgradPlan& plan;
    const PassArgs& args;
    const uint8_t* not_finite;
    int64_t chunks;
  } context{direct, args, not_finite, plan.chunks};
  args.parallel.run(
      direct.blocks,
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        WgradTask<E, false> task(x.plan, x.args, nullptr);
        for (int64_t unit = begin; unit < end; ++unit) {
          for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
            if (x.not_finite[chunk * x.plan.s.units + unit] == 0) continue;
            task.run_and_reduce(unit);
            break;
          }
        }
      },
      &context);
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
