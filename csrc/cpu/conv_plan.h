// How a pass of fprop or dgrad is cut into tasks, and what lies where in their strips.
#pragma once

#include <cstdint>

#include "correlation.h"
#include "cpu_info.h"
#include "kernels.h"
#include "slabs.h"
#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Bytes of strips and weights of a block, which stays in L2 and is wide enough for DRAM to be read
// in runs. What reads and writes pixels in order gains from wider blocks, most of all from one that
// has all channels; planes, and float32 pixels of which a stride skips three of four, do not.
constexpr int64_t kRingBudget = int64_t{48} << 10;
constexpr int64_t kWideRingBudget = int64_t{96} << 10;
constexpr int64_t kWholeRingBudget = int64_t{160} << 10;

// Tasks: images x blocks of units x bands of rows.
struct WorkSplit {
  int64_t images, units_per_block, blocks, bands, band_rows;

  int64_t tasks() const { return images * blocks * bands; }

  // Blocks of `wide` units or fewer and bands of a multiple of `row_step` rows, as many as keep
  // the threads busy. A band re-reads the rows that it shares with its neighbour: max_bands bounds
  // them.
  void split(int64_t n, int64_t units, int64_t wide, int64_t rows, int64_t row_step,
             int64_t max_bands, int64_t threads) {
    images = n;
    units_per_block = max64(1, min64(units, wide));
    const int64_t wanted = threads == 1 ? 1 : 4 * threads;
    while (units_per_block > 1 && n * ceil_div(units, units_per_block) * max_bands < wanted) {
      units_per_block = ceil_div(units_per_block, 2);
    }
    blocks = ceil_div(units, units_per_block);
    units_per_block = ceil_div(units, blocks);  // blocks of one size
    blocks = ceil_div(units, units_per_block);
    bands = 1;
    while (bands < max_bands && tasks() < wanted && tasks() % threads != 0) ++bands;
    band_rows = ceil_div(ceil_div(rows, bands), row_step) * row_step;
    bands = max64(1, ceil_div(rows, band_rows));
  }
};

struct ConvPlan : WorkSplit {
  Correlation c;
  Slabs s;
  int px;              // output pixels of a tile's row
  int window;          // input rows that one step of kTileRows grid rows needs
  int64_t row_origin;  // input row of grid row 0's first tap
  int64_t col_origin;  // input column of a strip's first column
  int64_t strip_cols;  // columns of a strip
  int64_t strip_row;   // words of one strip row
  int64_t grid_begin, grid_end;
  bool direct_store;
  Store store;            // of a tile that lies in the output
  int64_t out_strip_row;  // floats of one output row when it passes through a strip

  int64_t strip_floats() const { return window * strip_row; }
  // Weights that one task alone needs are packed by it, into memory that stays in its L2.
  bool task_packs() const { return images * bands == 1; }
};

// The tile width that wastes least of a row, the wider the better.
inline int choose_px(int64_t cols) {
  int best = kMaxPx;
  for (int px = kMaxPx; px >= kMinPx; --px) {
    if (ceil_div(cols, px) * px < ceil_div(cols, best) * best) best = px;
  }
  return best;
}

inline void plan_split(ConvPlan& plan, int64_t threads) {
  const int64_t unit_bytes =
      sizeof(float) * (plan.strip_floats() + plan.s.slabs_per_unit * packed_slab_floats(plan.c));
  const int64_t rows = plan.grid_end - plan.grid_begin;
  const bool in_order =
      plan.direct_store && (Vec::kChannelsPerWord == 2 || plan.c.stride * plan.c.out_step == 1);
  const int64_t budget = in_order ? kWideRingBudget : kRingBudget;
  const bool whole = in_order && plan.s.units * unit_bytes <= kWholeRingBudget;
  plan.split(plan.c.N, plan.s.units, whole ? plan.s.units : budget / unit_bytes, rows,
             Vec::kTileRows, max64(1, rows / (4 * Vec::kTileRows)), threads);
}

// Whether a float32 output is too large to be found in the caches later, and lies so that whole
// vectors can be stored past them.
inline bool streams_output(const PassArgs& args, const Correlation& c, const Slabs& s) {
  const int64_t bytes = c.N * c.out_channels * c.out_h * c.out_w * item_size(args.dtype);
  const void* out = args.pass == Pass::kFprop ? args.y : args.x;
  return args.dtype == DType::kFloat32 && bytes > last_level_cache_bytes() &&
         c.out_channels % Vec::kLanes == 0 && s.out_unit % Vec::kLanes == 0 &&
         reinterpret_cast<uintptr_t>(out) % (sizeof(float) * Vec::kLanes) == 0;
}

inline ConvPlan make_conv_plan(const PassArgs& args) {
  ConvPlan plan{};
  plan.c = make_correlation(args);
  const Correlation& c = plan.c;
  plan.s =
      make_slabs(c.groups, c.in_per_group, c.out_per_group, Vec::kLanes * Vec::kChannelsPerWord);

  int64_t cols = 0;
  int64_t last_tap_row = 0;
  plan.row_origin = plan.col_origin = INT64_MAX;
  plan.grid_begin = INT64_MAX, plan.grid_end = 0;
  for (int i = 0; i < c.axis_phases; ++i) {
    const PhaseAxis &row = c.rows[i], &col = c.cols[i];
    cols = max64(cols, col.end - col.begin);
    plan.row_origin = min64(plan.row_origin, row.in_offset);
    last_tap_row =
        i == 0 ? row.in_offset + row.taps - 1 : max64(last_tap_row, row.in_offset + row.taps - 1);
    plan.col_origin = min64(plan.col_origin, col.begin * c.stride + col.in_offset);
    plan.grid_begin = min64(plan.grid_begin, row.begin);
    plan.grid_end = max64(plan.grid_end, row.end);
  }
  plan.window =
      static_cast<int>((Vec::kTileRows - 1) * c.stride + last_tap_row - plan.row_origin + 1);
  plan.px = choose_px(cols);
  for (int i = 0; i < c.axis_phases; ++i) {
    const PhaseAxis& col = c.cols[i];
    const int64_t first = col.begin * c.stride + col.in_offset - plan.col_origin;
    const int64_t swept = ceil_div(max64(1, col.end - col.begin), plan.px) * plan.px;
    plan.strip_cols = max64(plan.strip_cols, first + (swept - 1) * c.stride + col.taps);
  }
  plan.strip_row = plan.s.in_chunks * plan.strip_cols * Vec::kLanes;
  plan.out_strip_row = (c.out_w + c.out_step * (plan.px + 1)) * Vec::kLanes;

  plan.direct_store = args.layout == Layout::kNHWC;
  plan.store = streams_output(args, c, plan.s)  ? Store::kStream
               : args.dtype == DType::kBFloat16 ? Store::kBFloat16
               : args.dtype == DType::kFloat16  ? Store::kFloat16
                                                : Store::kFloat32;
  plan_split(plan, args.parallel.threads);
  return plan;
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
