// Row-streaming gradient of x of a grouped 3x3 convolution of stride 2, NHWC, 16 bits (at stride 1
// it is fprop_rowstream_kernel's work).
//
//   dx[n, h, w, c] = sum_{r, s, k} dy[n, (h + pad - r) / 2, (w + pad - s) / 2, k] w[k, c, r, s]
//
// over the r and s for which the quotients are whole: by the parities of h + pad and w + pad a
// pixel has 1, 2 or 4 of the nine taps. Mapping: as in fprop.cuh. A step reads one row of dy and
// finishes two rows of dx, all four phases from the one row in shared memory: r = 0 finishes the
// even row, of which r = 2 of the row before was kept in registers; r = 1 is the odd row; s = 0, 2
// make even columns and s = 1 odd ones. Supports: as fprop.cuh; the weights are transposed on their
// way to registers. Sums are float, in a fixed order: the same bits in each run. For Inf and NaN
// see rowstream_exact.cuh.
#pragma once

#include "cuda/rowstream_block.cuh"

namespace grouped_conv::cuda {

// The sums for the even and the odd columns of a row of dx.
template <class Traits>
struct ColumnPhases {
  SlabAccumulators<Traits> even, odd;
};

// A row of dy for all tiles of the warp. `carried` has tap row 2 of the row before, and receives
// that of this one. Where `last_line` holds, the row is an image's first and `carried` is the last
// line of the image before, finished already. put(sums, tile, row, run) takes what is finished: of
// the line's row, its columns.
template <class Traits, typename Put>
GC_DEVICE void dgrad_stride_2_row(ColumnPhases<Traits> (&carried)[Traits::kTiles],
                                  const WeightTile<Traits>& weights, bool first, bool last_line,
                                  uint32_t input, const Put& put) {
  constexpr uint32_t kTileBytes = 16 * 16;
  GC_UNROLL
  for (int i = 0; i < Traits::kTiles; ++i) {
    ColumnPhases<Traits>& even_row = carried[i];
    InputTile<Traits> tile;
    tile.load(input + i * kTileBytes, 0);
    if (!last_line) {
      if (first) {
        set_zero<Traits>(even_row.even);
        set_zero<Traits>(even_row.odd);
      }
      accumulate_even<Traits>(even_row.even, tile, weights, 0);
      accumulate_odd<Traits>(even_row.odd, tile, weights, 0);
    }
    put(even_row.even, i, 0, 0);
    put(even_row.odd, i, 0, 1);

    ColumnPhases<Traits> odd_row;
    set_zero<Traits>(odd_row.even);
    set_zero<Traits>(odd_row.odd);
    accumulate_even<Traits>(odd_row.even, tile, weights, 1);
    accumulate_odd<Traits>(odd_row.odd, tile, weights, 1);
    put(odd_row.even, i, 1, 0);
    put(odd_row.odd, i, 1, 1);

    set_zero<Traits>(even_row.even);
    set_zero<Traits>(even_row.odd);
    accumulate_even<Traits>(even_row.even, tile, weights, 2);
    accumulate_odd<Traits>(even_row.odd, tile, weights, 2);
  }
}

template <int kId, typename T>
GC_GLOBAL(kRowstreamConfigs[kId].threads(), kRowstreamConfigs[kId].blocks_per_sm)
dgrad_rowstream_kernel(GC_GRID_CONSTANT const RowstreamArgs args) {
  using Traits = RowstreamTraits<kId, T>;
  static_assert(Traits::kWalk == Walk::kDgradStride2);

  GC_DYNAMIC_SHARED(dynamic_shared);
  const SharedLayout<Traits> shared(device::shared_address(dynamic_shared));
  const BlockWork work = block_work<Traits>(args);
  const WarpPart<Traits> part;

  InputStream<Traits> rows(args, work, shared.stages);
  bool nonfinite;
  const WeightTile<Traits> weights =
      start_block<Traits>(args, work, shared, part.slab * 8, rows, nonfinite);
  OutputStream<Traits> even_rows(args, work, shared.lines, 0);
  OutputStream<Traits> odd_rows(args, work, shared.lines + 2 * Traits::kOutputRunBytes, 1);
  const int even_lead = work.steps.lead + even_rows.range().begin - work.line;
  const int odd_end = work.steps.lead + odd_rows.range().end - work.line;
  const uint32_t input = shared.stages + part.input_offset() + InputTile<Traits>::lane_offset();
  const uint32_t output = shared.lines + part.output_offset() + output_lane_offset();

  // The walk. `stage` and `buffer` are offsets of the present stage and line.
  ColumnPhases<Traits> carried[Traits::kTiles];
  GC_UNROLL
  for (auto& phases : carried) {
    set_zero<Traits>(phases.even);
    set_zero<Traits>(phases.odd);
  }
  const int real_steps = work.tiles * work.steps_per_tile();
  const int steps = real_steps + (work.steps.tail ? 1 : 0);
  uint32_t stage = 0;
  uint32_t buffer = 0;
  bool even_finished = false;  // by the step before this one
  bool odd_finished = false;
  int row = 0;  // of the tile's
  GC_NO_UNROLL
  for (int i = 0; i < steps; ++i) {
    device::cp_async_wait<Traits::kStages - 2>();
    if constexpr (Traits::kSharedSlab) nonfinite |= rows.clear_nonfinite_of(stage);
    device::sync_threads();
    rows.prefetch();
    if (even_finished) even_rows.store(buffer ^ Traits::kLineBytes);
    if (odd_finished) odd_rows.store(buffer ^ Traits::kLineBytes);

    const bool first = row == 0;
    const bool last_line = first && work.steps.tail && i > 0;
    const auto put_line = [line = output + buffer](const SlabAccumulators<Traits>& sum, int tile,
                                                   int r, int run) {
      put<Traits>(sum, line + tile * 16 * 16 + (2 * r + run) * Traits::kOutputRunBytes);
    };
    dgrad_stride_2_row<Traits>(carried, weights, first, last_line, input + stage, put_line);
    even_finished = last_line || row >= even_lead;
    odd_finished = row >= work.steps.lead && row < odd_end && i < real_steps;

    buffer ^= Traits::kLineBytes;
    stage = stage + Traits::kStageBytes == Traits::kRingBytes ? 0 : stage + Traits::kStageBytes;
    if (++row == work.steps_per_tile()) row = 0;
  }

  device::cp_async_wait<0>();
  nonfinite = device::sync_threads_or(nonfinite);
  if (even_finished) even_rows.store(buffer ^ Traits::kLineBytes);
  if (odd_finished) odd_rows.store(buffer ^ Traits::kLineBytes);
  if (nonfinite) recompute_nonfinite<Traits>(args, work);
}

}  // namespace grouped_conv::cuda
