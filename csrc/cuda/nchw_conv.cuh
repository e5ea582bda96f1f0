// Grouped 3x3 convolution and its gradient of x, NCHW, 16 bits: the walks of fprop.cuh and
// dgrad.cuh, which say what is computed and how warps share it, with the same inner loops.
//
// Around them: bands of rows of channel planes come to shared memory as they are, in aligned words
// of 16 bytes and a band ahead (nchw_bands.h). Before a step its rows go from there into slots of
// eight channels of a pixel. Sums go from registers into a band of output, which leaves in aligned
// words as well when it is full. One barrier for a step, one more for a band of output.
// Supports: as fprop.cuh and dgrad.cuh, any height and width; no padding or copy of a tensor. Sums
// are float, in a fixed order: the same bits in each run, and those of the NHWC kernels. For Inf
// and NaN see rowstream_exact.cuh.
#pragma once

#include "cuda/dgrad.cuh"
#include "cuda/fprop.cuh"
#include "cuda/nchw_input.cuh"
#include "cuda/nchw_output.cuh"

namespace grouped_conv::cuda {

template <int kId>
struct NchwConfigOf {
  static constexpr RowstreamConfig kConfig = kNchwConfigs[kId];
  static constexpr bool kPlanar = true;
};

template <int kId, typename Element>
struct NchwTraits : RowstreamTraitsOf<NchwConfigOf<kId>, Element> {};

template <int kId, typename T>
GC_GLOBAL(kNchwConfigs[kId].threads(), kNchwConfigs[kId].blocks_per_sm)
nchw_conv_kernel(GC_GRID_CONSTANT const NchwArgs args) {
  using Traits = NchwTraits<kId, T>;
  constexpr bool kUnit = Traits::kWalk == Walk::kUnitStride;
  constexpr bool kDgrad2 = Traits::kWalk == Walk::kDgradStride2;

  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t bands = device::shared_address(dynamic_shared);
  const uint32_t stages = bands + 2 * args.input.bytes;
  const uint32_t output = stages + Traits::kRingBytes;
  BlockWork work = block_work<Traits>(args.walk);
  if (kDgrad2 && work.steps.tail) {
    // A line's two rows leave together here, so the last one has a step of its own.
    work.steps.tail = false;
    ++work.steps.end;
  }
  const WarpPart<Traits> part;

  NchwInput<Traits> rows(args, work, bands, stages);
  const uint32_t weights_at = Traits::kWeightsFirst ? bands : output;
  prefetch_weights<Traits>(args.walk, work, weights_at);
  if constexpr (!Traits::kWeightsFirst) rows.start();
  device::cp_async_wait<Traits::kWeightsFirst ? 0 : 2>();
  bool nonfinite = clear_nonfinite_weights<Traits>(weights_at);
  device::sync_threads();
  const WeightTile<Traits> weights(args.walk.shared_order, weights_at, part.slab * 8);
  if constexpr (Traits::kWeightsFirst) {
    device::sync_threads();
    rows.start();
  }
  device::cp_async_wait<1>();
  device::sync_threads();
  nonfinite |= rows.fill();

  const Start<Traits> start(args.walk, work.channel + part.slab * 8);
  NchwOutput<Traits> lines(args, work, output, part.slot, part.slab * 8);
  const uint32_t input = stages + part.input_offset() + InputTile<Traits>::lane_offset();
  const uint32_t input_of_single =
      stages + part.input_offset() + InputTile<Traits>::lane_offset_of_single();

  TileAccumulators<Traits> sums[kUnit ? 2 : 1];
  ColumnPhases<Traits> carried[kDgrad2 ? Traits::kTiles : 1];
  GC_UNROLL
  for (auto& sum : sums) {
    GC_UNROLL
    for (auto& tile : sum) start.set(tile);
  }
  const int steps = work.tiles * work.steps_per_tile() + (work.steps.tail ? 1 : 0);
  uint32_t stage = 0;
  int row = 0;  // of the tile's
  const auto step = [&](int index, TileAccumulators<Traits>& older,
                        [[maybe_unused]] TileAccumulators<Traits>& newer) {
    const bool at_band = rows.at_band();
    if (at_band) device::cp_async_wait<0>();
    device::sync_threads();
    if (at_band) rows.load_band();
    if (index + 1 < steps) nonfinite |= rows.fill();
    if (lines.full()) {
      lines.store();
      device::sync_threads();
    }

    const bool first = row == 0;
    lines.begin_line((first && work.steps.tail && index > 0) || row >= work.steps.lead);
    if constexpr (kDgrad2) {
      const auto put = [&](const SlabAccumulators<Traits>& sum, int tile, int r, int run) {
        lines.put(sum, tile, r, run);
      };
      dgrad_stride_2_row<Traits>(carried, weights, first, false, input + stage, put);
    } else {
      const auto put = [&](const SlabAccumulators<Traits>& sum, int tile) { lines.put(sum, tile); };
      if constexpr (kUnit) {
        unit_stride_row<Traits>(older, newer, weights, start, first, input + stage,
                                input_of_single + stage, put);
      } else {
        stride_2_rows<Traits>(older, weights, start, input + stage, input_of_single + stage, put);
      }
    }
    lines.end_line();

    stage ^= Traits::kStageBytes;
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
  if (lines.full()) lines.store();
  if (nonfinite) {
    NchwOutput<Traits>(args, work, output, part.slot, part.slab * 8).recompute_nonfinite();
  }
}

}  // namespace grouped_conv::cuda
