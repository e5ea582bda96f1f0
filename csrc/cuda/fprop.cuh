// Row-streaming grouped 3x3 convolution, NHWC, 16 bits; dgrad at stride 1 is the same with the taps
// reversed, the channels exchanged and the padding 2 - pad (WeightOrder, RowstreamArgs).
//
//   y[n, p, q, k] = bias[k] + sum_{r, s, c} w[k, c, r, s]
//                             x[n, p stride - pad + r, q stride - pad + s, c]
//
// Mapping: a block owns planes of 8 channels and a line of pixel slots (images side by side, one
// image, or a strip of its columns), and walks down the rows. Each row comes to shared memory once,
// some stages ahead; a tap is a shift by slots, so that an operand is loaded three times (s) and
// serves three output rows (r). Warps share planes and slots. A finished line goes through shared
// memory and leaves during the next step: one barrier for a step.
// Registers: a warp's weights for the whole walk, and the sums of the rows under way.
// Supports: 4 to 64 channels per group, padding 0 to 2, weights KRSC or KCRS. Sums are float, in a
// fixed order: the same bits in each run. For Inf and NaN see rowstream_exact.cuh.
// Source: the streaming of rows is that of Spio's kernels for 8 channels per group.
#pragma once

#include "cuda/rowstream_block.cuh"
#include "cuda/rowstream_tail.cuh"

namespace grouped_conv::cuda {

template <class Traits>
using TileAccumulators = float[Traits::kTiles][Traits::kSlabs][4];

// A row of input at stride 1, for all tiles of the warp: tap row 2 finishes `older`, tap row 1 goes
// to `newer`, and tap row 0 begins a sum that takes the place of `older`. The first row of an image
// has no older outputs of its own: there `older` is the last line of the image before, finished
// already. put(sums, tile) takes what is finished.
template <class Traits, typename Put>
GC_DEVICE void unit_stride_row(TileAccumulators<Traits>& older, TileAccumulators<Traits>& newer,
                               const WeightTile<Traits>& weights, const Start<Traits>& start,
                               bool first, uint32_t input, uint32_t input_of_single,
                               const Put& put) {
  constexpr int kAtOnce = Traits::kTilesAtOnce;
  constexpr uint32_t kTileBytes = 16 * 16;
  GC_UNROLL
  for (int base = 0; base < Traits::kTiles; base += kAtOnce) {
    InputTile<Traits> tile[kAtOnce];
    GC_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      tile[i].load(input + (base + i) * kTileBytes, input_of_single + (base + i) * kTileBytes);
    }
    if (!first) {
      GC_UNROLL
      for (int i = 0; i < kAtOnce; ++i) accumulate<Traits>(older[base + i], tile[i], weights, 2);
    }
    GC_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      accumulate<Traits>(newer[base + i], tile[i], weights, 1);
      put(older[base + i], base + i);
      start.set(older[base + i]);
      accumulate<Traits>(older[base + i], tile[i], weights, 0);
    }
  }
}

// A pair of rows at stride 2: tap rows 1 and 2 finish `sum`, tap row 0 of the second row begins the
// next one. put: as above.
template <class Traits, typename Put>
GC_DEVICE void stride_2_rows(TileAccumulators<Traits>& sum, const WeightTile<Traits>& weights,
                             const Start<Traits>& start, uint32_t input, uint32_t input_of_single,
                             const Put& put) {
  constexpr uint32_t kTileBytes = 16 * 16;
  constexpr uint32_t kRowBytes = Traits::kInputRowBytes;
  GC_UNROLL
  for (int i = 0; i < Traits::kTiles; ++i) {
    const uint32_t offset = i * kTileBytes;
    InputTile<Traits> tile;
    tile.load(input + offset, input_of_single + offset);
    accumulate<Traits>(sum[i], tile, weights, 1);
    tile.load(input + kRowBytes + offset, input_of_single + kRowBytes + offset);
    accumulate<Traits>(sum[i], tile, weights, 2);
    put(sum[i], i);
    start.set(sum[i]);
    accumulate<Traits>(sum[i], tile, weights, 0);
  }
}

template <int kId, typename T, Tail kTail>
GC_GLOBAL(kRowstreamConfigs[kId].threads(), kRowstreamConfigs[kId].blocks_per_sm)
fprop_rowstream_kernel(GC_GRID_CONSTANT const RowstreamArgs args) {
  using Traits = RowstreamTraits<kId, T>;
  constexpr bool kUnit = Traits::kWalk == Walk::kUnitStride;
  static_assert(Traits::kWalk != Walk::kDgradStride2);

  GC_DYNAMIC_SHARED(dynamic_shared);
  const SharedLayout<Traits> shared(device::shared_address(dynamic_shared));
  const BlockWork work = block_work<Traits>(args);
  const WarpPart<Traits> part;

  InputStream<Traits> rows(args, work, shared.stages);
  bool nonfinite;
  const WeightTile<Traits> weights =
      start_block<Traits>(args, work, shared, part.slab * 8, rows, nonfinite);
  const Start<Traits> start(args, work.channel + part.slab * 8);
  OutputStream<Traits> lines(args, work, shared.lines);
  [[maybe_unused]] auto tail = [&] {
    if constexpr (kTail == Tail::kAffine) {
      return LaneEpilogue<Traits>(args, work.channel + part.slab * 8);
    } else if constexpr (kTail == Tail::kResidual) {
      return ResidualEpilogue<Traits>(args, work.channel + part.slab * 8);
    } else if constexpr (kTail == Tail::kStatistics) {
      return LineStatistics<Traits>(args, work, shared.lines);
    } else {
      return NoTail{};
    }
  }();
  const auto store_line = [&](uint32_t at) {
    lines.store(at);
    if constexpr (kTail == Tail::kStatistics) tail.add(at);
  };
  const uint32_t input = shared.stages + part.input_offset() + InputTile<Traits>::lane_offset();
  const uint32_t input_of_single =
      shared.stages + part.input_offset() + InputTile<Traits>::lane_offset_of_single();
  const uint32_t output = shared.lines + part.output_offset() + output_lane_offset();

  // The walk. `stage` and `buffer` are offsets of the present stage and line.
  TileAccumulators<Traits> sums[kUnit ? 2 : 1];
  GC_UNROLL
  for (auto& sum : sums) {
    GC_UNROLL
    for (auto& tile : sum) start.set(tile);
  }
  const int steps = work.tiles * work.steps_per_tile() + (work.steps.tail ? 1 : 0);
  uint32_t stage = 0;
  uint32_t buffer = 0;
  bool finished = false;  // the step before this one has finished a line
  int row = 0;            // of the tile's
  [[maybe_unused]] bool has_line = work.steps.lead == 0;  // the present step finishes one
  if constexpr (kTail == Tail::kResidual) {
    if (has_line) {
      device::sync_threads();  // the weights may have been where the line is
      lines.prefetch_residual(buffer, true, false);
      device::cp_async_wait<0>();
    }
  }
  const auto step = [&](int index, TileAccumulators<Traits>& older,
                        [[maybe_unused]] TileAccumulators<Traits>& newer) {
    // Of a residual, whose line of this step came in the last but one group, all before came, too.
    device::cp_async_wait<kTail == Tail::kResidual ? 1 : Traits::kStages - 2>();
    if constexpr (Traits::kSharedSlab) nonfinite |= rows.clear_nonfinite_of(stage);
    device::sync_threads();
    if constexpr (kTail != Tail::kResidual) rows.prefetch();
    if (finished) store_line(buffer ^ Traits::kLineBytes);
    [[maybe_unused]] bool next_has_line = false;
    if constexpr (kTail == Tail::kResidual) {
      const bool is_last = row + 1 == work.steps_per_tile();
      next_has_line = index + 1 < steps && (is_last ? work.steps.tail || work.steps.lead == 0
                                                    : row + 1 >= work.steps.lead);
      lines.prefetch_residual(buffer ^ Traits::kLineBytes, next_has_line, has_line);
      rows.prefetch();
    }

    const bool first = row == 0;
    const auto put_line = [&, line = output + buffer](const SlabAccumulators<Traits>& sum,
                                                      int tile) {
      const uint32_t address = line + tile * 16 * 16;
      if constexpr (kTail == Tail::kAffine) {
        tail.put(sum, address);
      } else if constexpr (kTail == Tail::kResidual) {
        tail.put(sum, address, has_line);
      } else {
        put<Traits>(sum, address);
      }
    };
    if constexpr (kUnit) {
      unit_stride_row<Traits>(older, newer, weights, start, first, input + stage,
                              input_of_single + stage, put_line);
    } else {
      stride_2_rows<Traits>(older, weights, start, input + stage, input_of_single + stage,
                            put_line);
    }
    finished = kTail == Tail::kResidual
                   ? has_line
                   : (first && work.steps.tail && index > 0) || row >= work.steps.lead;
    has_line = next_has_line;

    buffer ^= Traits::kLineBytes;
    stage = stage + Traits::kStageBytes == Traits::kRingBytes ? 0 : stage + Traits::kStageBytes;
    if (++row == work.steps_per_tile()) {
      row = 0;
      // What tap row 0 of an image's last row began is of no output.
      GC_UNROLL
      for (auto& tile : older) start.set(tile);
    }
  };
  GC_NO_UNROLL
  for (int i = 0;;) {
    step(i, sums[0], sums[kUnit ? 1 : 0]);
    if (++i == steps) break;
    if constexpr (kUnit) {
      step(i, sums[1], sums[0]);
      if (++i == steps) break;
    }
  }

  device::cp_async_wait<0>();
  nonfinite = device::sync_threads_or(nonfinite);
  if (finished) store_line(buffer ^ Traits::kLineBytes);
  [[maybe_unused]] uint32_t bad_channels = 0;
  if (nonfinite) {
    recompute_nonfinite<Traits>(args, work, [&](const ExactSum& sum, int channel, int64_t offset) {
      if constexpr (kTail == Tail::kAffine || kTail == Tail::kResidual) {
        return tail.exact(args, sum.value, channel, offset);
      }
      if constexpr (kTail == Tail::kStatistics) {
        bad_channels |= uint32_t(sum.nonfinite_term) << channel % 8;
      }
      return sum.value;
    });
  }
  if constexpr (kTail == Tail::kStatistics) tail.store(args, work, shared.stages, bad_channels);
}

}  // namespace grouped_conv::cuda
