// Direct 3x3 convolution for fprop and dgrad at strides 1 and 2, any channels per group, both
// layouts, float32 sums.
//
// Work is split over images, blocks of units (slabs.h) and bands of grid rows. A task walks down
// its band: each input row is brought once into a strip in a small ring that stays in cache, zero
// padding included, and the register tiles (tile.h) sweep the rows. NHWC tiles store straight into
// the output, NCHW ones pass through a strip of output rows, behind which a residual is added.
// Between the tiles the inputs and outputs of the next step are prefetched. Weights are packed
// once per call. Each output is summed in one place in one order: results do not depend on the
// split.
#pragma once

#include <cstdint>
#include <cstring>

#include "conv_plan.h"
#include "correlation.h"
#include "kernels.h"
#include "moments.h"
#include "scratch.h"
#include "slabs.h"
#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// One walk down a band of grid rows for one block of units.
template <class E>
class ConvTask {
  using T = typename E::T;
  using Words = WordLoader<Vec::kChannelsPerWord, E>;

 public:
  // weights: packed for all slabs, unless plan.task_packs()
  ConvTask(const ConvPlan& plan, const PassArgs& args, const float* weights)
      : plan_(plan),
        bias_(static_cast<const T*>(args.bias)),
        epilogue_(args.epilogue),
        has_epilogue_(!args.epilogue.empty()),
        floor_(activation_floor(args.epilogue)),
        strip_floor_(args.epilogue.residual != nullptr ? kNoFloor : floor_),
        moments_(args.moments),
        kernels_(static_cast<const T*>(args.w)),
        weights_(weights),
        scratch_(ScratchSlot::kTask, scratch_bytes(plan)) {
    const bool nhwc = args.layout == Layout::kNHWC;
    const bool fprop = args.pass == Pass::kFprop;
    const Correlation& c = plan.c;
    in_ = {static_cast<T*>(fprop ? args.x : args.y), nhwc, c.in_channels, c.in_h, c.in_w};
    out_ = {static_cast<T*>(fprop ? args.y : args.x), nhwc, c.out_channels, c.out_h, c.out_w};
    // Read only, as the inputs are.
    residual_ = {static_cast<T*>(const_cast<void*>(args.epilogue.residual)), nhwc, c.out_channels,
                 c.out_h, c.out_w};
    ring_ = scratch_.floats();
    zero_row_ = ring_ + plan.units_per_block * plan.strip_floats();
    tile_out_ = zero_row_ + plan.strip_row;
    out_strip_ = tile_out_ + Vec::kTileRows * kMaxPx * Vec::kLanes;
    own_weights_ = out_strip_ + Vec::kTileRows * plan.out_strip_row;
    // The columns of padding are never written again.
    std::memset(ring_, 0, sizeof(float) * (tile_out_ - ring_));
    if (plan.s.permute) group_base_ = word_base(static_cast<int>(plan.s.in_per_group));
    for (int cp = 0; cp < c.axis_phases; ++cp) {
      tiles_per_row_ += ceil_div(c.cols[cp].end - c.cols[cp].begin, plan.px);
    }
    tiles_per_row_ = max64(1, tiles_per_row_);
    tiles_per_step_ = tiles_per_row_ * c.axis_phases * plan.s.slabs_per_unit;
    for (int rp = 0; rp < c.axis_phases; ++rp) {
      for (int cp = 0; cp < c.axis_phases; ++cp) {
        for (int rows = 1; rows <= Vec::kTileRows; ++rows) {
          tiles_[rp][cp][rows - 1] = select_tile(plan.s.permute, c.rows[rp].taps, c.cols[cp].taps,
                                                 c.stride, rows, plan.px, has_epilogue_);
        }
      }
    }
  }

  // `next` is the task that this thread runs after this one, or plan.tasks() if there is none.
  void run(int64_t task, int64_t next) {
    const Range at = range(task);
    if (plan_.task_packs()) pack_weights(at);
    int64_t loaded = INT64_MIN;  // input rows below this one are in the ring
    for (int64_t m = at.row_begin; m < at.row_end; m += Vec::kTileRows) {
      const int64_t first = m * plan_.c.stride + plan_.row_origin;
      for (int64_t unit = at.unit_begin; unit < at.unit_end; ++unit) {
        float* strip = ring_ + (unit - at.unit_begin) * plan_.strip_floats();
        load(at.n, unit, max64(first, loaded), first + plan_.window, strip);
        look_ahead(at, unit, m, next);
        for (int64_t j = 0; j < plan_.s.slabs_per_unit; ++j) {
          compute(at.n, unit * plan_.s.slabs_per_unit + j, m, at.row_end, strip);
        }
      }
      loaded = first + plan_.window;
      if (moments_.mean != nullptr) {
        const int64_t k0 = at.unit_begin * plan_.s.out_unit;
        const int64_t k1 = min64(plan_.c.out_channels, at.unit_end * plan_.s.out_unit);
        row_moments(out_, at.n, k0, k1 - k0, m, min64(at.row_end, m + Vec::kTileRows), moments_);
      }
    }
    if (plan_.store == Store::kStream) Vec::fence();
  }

 private:
  static size_t scratch_bytes(const ConvPlan& plan) {
    const int64_t rings = plan.units_per_block * plan.strip_floats() + plan.strip_row;
    const int64_t tile = Vec::kTileRows * kMaxPx * Vec::kLanes;
    const int64_t strip = Vec::kTileRows * plan.out_strip_row;
    const int64_t weights = plan.task_packs() ? plan.units_per_block * plan.s.slabs_per_unit *
                                                    packed_slab_floats(plan.c)
                                              : 0;
    return sizeof(float) * (rings + tile + strip + weights + 4 * Vec::kLanes);
  }

  struct Range {
    int64_t n, unit_begin, unit_end, row_begin, row_end;
  };

  Range range(int64_t task) const {
    const int64_t band = task % plan_.bands;
    const int64_t block = task / plan_.bands % plan_.blocks;
    Range at{};
    at.n = task / plan_.bands / plan_.blocks;
    at.unit_begin = block * plan_.units_per_block;
    at.unit_end = min64(plan_.s.units, at.unit_begin + plan_.units_per_block);
    at.row_begin = plan_.grid_begin + band * plan_.band_rows;
    at.row_end = min64(plan_.grid_end, at.row_begin + plan_.band_rows);
    return at;
  }

  void pack_weights(const Range& at) {
    first_slab_ = at.unit_begin * plan_.s.slabs_per_unit;
    weights_ = own_weights_;
    float* packed = own_weights_;
    for (int64_t slab = first_slab_; slab < at.unit_end * plan_.s.slabs_per_unit; ++slab) {
      WeightPacker<Vec::kChannelsPerWord, E>::slab(plan_.c, plan_.s, kernels_, slab, packed);
      packed += packed_slab_floats(plan_.c);
    }
  }

  void load(int64_t n, int64_t unit, int64_t h_begin, int64_t h_end, float* strip) {
    h_begin = max64(0, h_begin), h_end = min64(plan_.c.in_h, h_end);
    const int64_t begin = max64(0, plan_.col_origin);
    const int64_t cols = min64(plan_.c.in_w, plan_.col_origin + plan_.strip_cols) - begin;
    if (h_begin >= h_end || cols <= 0) return;
    const int64_t offset = (begin - plan_.col_origin) * Vec::kLanes;
    const StripRows rows{
        strip, plan_.window, plan_.strip_row, plan_.strip_cols * Vec::kLanes, offset, 0};
    load_rows<Words>(in_, n, plan_.s.in_begin(unit), plan_.s.in_count(unit), h_begin, h_end, begin,
                     cols, rows);
  }

  // Lets the tiles of one unit and step ask for the unit's share of what the next step of the
  // block, or the first step of the next task, reads and writes: whole runs of neighbouring
  // channels.
  void look_ahead(const Range& at, int64_t unit, int64_t m, int64_t next) {
    const Correlation& c = plan_.c;
    const Slabs& s = plan_.s;
    inputs_ = outputs_ = residuals_ = {};
    Range to = at;
    int64_t row = m + Vec::kTileRows, fresh = Vec::kTileRows * c.stride;
    if (row >= at.row_end) {
      if (next >= plan_.tasks()) return;
      to = range(next);
      row = to.row_begin, fresh = plan_.window;
    }
    const int64_t in_end = row * c.stride + plan_.row_origin + plan_.window;
    const int64_t in_begin = s.in_begin(to.unit_begin);
    inputs_ =
        walk_rows(in_, to.n, in_begin, min64(c.in_channels, s.in_begin(to.unit_end)) - in_begin,
                  max64(0, in_end - fresh), min64(c.in_h, in_end));
    inputs_.take_share(unit - at.unit_begin, at.unit_end - at.unit_begin);
    inputs_quota_ = ceil_div(inputs_.outer, tiles_per_step_);
    if (!plan_.direct_store) return;
    const int64_t out_begin = to.unit_begin * s.out_unit;
    const int64_t out_count = min64(c.out_channels, to.unit_end * s.out_unit) - out_begin;
    const int64_t out_end = min64(c.out_h, (row + Vec::kTileRows) * c.out_step);
    if (plan_.store != Store::kStream) {
      outputs_ = walk_rows(out_, to.n, out_begin, out_count, row * c.out_step, out_end);
      outputs_.take_share(unit - at.unit_begin, at.unit_end - at.unit_begin);
      outputs_quota_ = ceil_div(outputs_.outer, tiles_per_step_);
    }
    if (residual_.data != nullptr) {
      residuals_ = walk_rows(residual_, to.n, out_begin, out_count, row * c.out_step, out_end);
      residuals_.take_share(unit - at.unit_begin, at.unit_end - at.unit_begin);
      residuals_quota_ = ceil_div(residuals_.outer, tiles_per_step_);
    }
  }

  void load_bias(int64_t slab, float* dst) const {
    std::memset(dst, 0, sizeof(float) * Vec::kLanes);
    if (bias_ == nullptr) return;
    Vec::store(dst, E::load_partial(bias_ + plan_.s.out_begin(slab), plan_.s.lanes(slab)));
  }

  // All outputs of one slab for grid rows m .. m + kTileRows - 1.
  void compute(int64_t n, int64_t slab, int64_t m, int64_t end, float* strip) {
    const Correlation& c = plan_.c;
    constexpr int64_t L = Vec::kLanes;
    const int lanes = plan_.s.lanes(slab);
    if (lanes == 0) return;
    const int64_t k0 = plan_.s.out_begin(slab), first_word = plan_.s.first_word(slab);
    const bool in_place = plan_.direct_store && lanes == L;
    alignas(64) float bias[L];
    load_bias(slab, bias);
    LaneFactors factors;
    if (has_epilogue_) factors.load(epilogue_, k0, lanes);

    for (int rp = 0; rp < c.axis_phases; ++rp) {
      const PhaseAxis& row = c.rows[rp];
      const int64_t first = max64(m, row.begin);
      const int rows = static_cast<int>(min64(min64(row.end, end), m + Vec::kTileRows) - first);
      if (rows <= 0) continue;
      TileArgs t{};
      t.chunk = plan_.strip_cols * Vec::kLanes;
      t.words = static_cast<int>(words(c.in_per_group));
      t.run_words = run_words(t.words, c.in_per_group == c.out_per_group);
      t.group_base = Vec::next(group_base_, static_cast<int>(first_word));
      t.bias = bias;
      t.factors = &factors;
      const int64_t in_rows = (rows - 1) * c.stride + row.taps;
      const float* in_row[kMaxInputRows];
      for (int64_t i = 0; i < in_rows; ++i) {
        const int64_t h = first * c.stride + row.in_offset + i;
        in_row[i] = h >= 0 && h < c.in_h ? strip + h % plan_.window * plan_.strip_row : zero_row_;
        if (!plan_.s.permute) in_row[i] += first_word;
      }
      const int64_t top = first * c.stride + row.in_offset;
      const int row_padding = (top < 0 ? kTop : 0) | (top + in_rows > c.in_h ? kBottom : 0);
      const int64_t out_row = first * c.out_step + row.out_offset;
      if (!plan_.direct_store) {
        outputs_ = walk_rows(out_, n, k0, lanes, out_row, out_row + (rows - 1) * c.out_step + 1);
        outputs_quota_ = ceil_div(outputs_.outer, tiles_per_row_);
        if (residual_.data != nullptr) {
          residuals_ =
              walk_rows(residual_, n, k0, lanes, out_row, out_row + (rows - 1) * c.out_step + 1);
          residuals_quota_ = ceil_div(residuals_.outer, tiles_per_row_);
        }
      }
      for (int cp = 0; cp < c.axis_phases; ++cp) {
        const PhaseAxis& col = c.cols[cp];
        t.weights =
            weights_ + (slab - first_slab_) * packed_slab_floats(c) + phase_offset(c, rp, cp);
        for (int64_t q = col.begin; q < col.end; q += plan_.px) {
          const int64_t left = q * c.stride + col.in_offset;
          const int64_t right = left + (plan_.px - 1) * c.stride + col.taps - 1;
          const int64_t in_col = left - plan_.col_origin;
          for (int64_t i = 0; i < in_rows; ++i) t.rows[i] = in_row[i] + in_col * L;
          t.padding = row_padding | (left < 0 ? kLeft : 0) | (right >= c.in_w ? kRight : 0);
          t.inputs = inputs_.take(inputs_quota_, t.words);
          t.outputs = outputs_.take(outputs_quota_, t.words);
          if (has_epilogue_) t.residuals = residuals_.take(residuals_quota_, t.words);
          const int64_t out_col = q * c.out_step + col.out_offset;
          const int64_t px = min64(plan_.px, col.end - q);
          if (in_place) {
            store_tile(tiles_[rp][cp][rows - 1], t, out_.at(n, k0, out_row, out_col), rows, px);
          } else {
            t.out = out_strip_ + out_col * L;
            t.out_row = plan_.out_strip_row, t.out_px = c.out_step * L;
            t.store = Store::kFloat32;
            t.floor = strip_floor_;
            tiles_[rp][cp][rows - 1](t);
          }
        }
      }
      if (in_place) continue;
      if (residual_.data != nullptr) {
        store_rows<E>(out_, n, k0, lanes, out_row, c.out_step, rows, out_strip_,
                      plan_.out_strip_row, AddResidual<E>{residual_.data, floor_});
      } else {
        store_rows<E>(out_, n, k0, lanes, out_row, c.out_step, rows, out_strip_,
                      plan_.out_strip_row, Finished{});
      }
    }
  }

  // A full tile goes straight to the output, a ragged one through a buffer.
  void store_tile(TileFunction tile, TileArgs& t, T* out, int rows, int64_t px) {
    const Correlation& c = plan_.c;
    constexpr int64_t L = Vec::kLanes;
    const int64_t out_row = c.out_step * c.out_w * c.out_channels;
    const int64_t out_px = c.out_step * c.out_channels;
    if (px == plan_.px) {
      t.out = out, t.out_row = out_row, t.out_px = out_px, t.store = plan_.store;
      if (has_epilogue_) {
        t.residual = residual_.data != nullptr ? residual_.data + (out - out_.data) : nullptr;
        t.floor = floor_;
      }
      tile(t);
      return;
    }
    t.out = tile_out_, t.out_row = kMaxPx * L, t.out_px = L, t.store = Store::kFloat32;
    t.residual = nullptr, t.floor = strip_floor_;
    tile(t);
    const AddResidual<E> finish{residual_.data, floor_};
    for (int i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < px; ++j) {
        T* pixel = out + i * out_row + j * out_px;
        const Vec::Reg sum = Vec::load(tile_out_ + (i * kMaxPx + j) * L);
        E::store(pixel, residual_.data != nullptr ? finish(sum, pixel - out_.data, L) : sum);
      }
    }
  }

  const ConvPlan& plan_;
  const T* bias_;
  const Epilogue& epilogue_;
  const bool has_epilogue_;
  const float floor_;        // of a tile that stores y, and behind a residual
  const float strip_floor_;  // of a tile whose residual is yet to come
  const RowMoments& moments_;
  const T* kernels_;
  const float* weights_;  // of first_slab_ and those behind it
  int64_t first_slab_ = 0;
  ScratchLease scratch_;
  Activation<E> in_, out_, residual_;
  float *ring_, *zero_row_, *tile_out_, *out_strip_, *own_weights_;
  Vec::Index group_base_{};
  TileFunction tiles_[2][2][Vec::kTileRows];
  int64_t tiles_per_row_ = 0, tiles_per_step_ = 0;
  PrefetchWalk inputs_, outputs_, residuals_;
  int64_t inputs_quota_ = 0, outputs_quota_ = 0, residuals_quota_ = 0;
};

// Runs the tasks for which wanted(task) is true.
template <class E, class Wanted>
void run_conv_plan(const ConvPlan& plan, const PassArgs& args, const Wanted& wanted) {
  const int64_t floats = plan.task_packs() ? 0 : plan.s.slabs() * packed_slab_floats(plan.c);
  const ScratchLease packed(ScratchSlot::kShared, sizeof(float) * floats);
  struct Context {
    const ConvPlan& plan;
    const PassArgs& args;
    const Wanted& wanted;
    float* weights;
  } context{plan, args, wanted, packed.floats()};

  if (!plan.task_packs()) {
    args.parallel.run(
        plan.s.slabs(),
        [](int64_t begin, int64_t end, void* opaque) {
          const Context& x = *static_cast<Context*>(opaque);
          const auto* w = static_cast<const typename E::T*>(x.args.w);
          for (int64_t slab = begin; slab < end; ++slab) {
            WeightPacker<Vec::kChannelsPerWord, E>::slab(
                x.plan.c, x.plan.s, w, slab, x.weights + slab * packed_slab_floats(x.plan.c));
          }
        },
        &context);
  }
  args.parallel.run(
      plan.tasks(),
      [](int64_t begin, int64_t end, void* opaque) {
        const Context& x = *static_cast<Context*>(opaque);
        ConvTask<E> task(x.plan, x.args, x.weights);
        for (int64_t i = begin; i < end; ++i) {
          if (x.wanted(i)) task.run(i, i + 1 < end ? i + 1 : x.plan.tasks());
        }
      },
      &context);
}

template <class E>
void direct_conv(const PassArgs& args) {
  run_conv_plan<E>(make_conv_plan(args), args, [](int64_t /*task*/) { return true; });
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
