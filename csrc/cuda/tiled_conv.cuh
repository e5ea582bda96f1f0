// fprop and dgrad of any grouped convolution by tiles: for what the row-streaming kernels do not
// take, which reuse more of what they read.
//
// For each group the convolution is a product of matrices, output pixels by (taps by input
// channels) times that by output channels; the left factor is never stored, its rows are read from
// where the taps lie in the input. In dgrad the pixels of one phase of the stride make a matrix:
// they meet the same taps, and no others are multiplied.
//
// A block of four warps has 128 rows and up to 64 channels of one group, or 32 pixels of four
// groups that have up to eight channels: a warp has one of them, so that groups never meet in a
// product. Both factors come to shared memory in chunks of 64 bytes of each row, some chunks ahead,
// and are multiplied from there (tiled_math.cuh). The weights lie in the workspace as the chunks
// want them (pack_tiled_kernel), those of TF32 rounded. At the end the sums go through shared
// memory, so that each warp stores what lies together, whatever the layout.
#pragma once

#include <type_traits>

#include "cuda/tiled_io.cuh"
#include "cuda/tiled_store.cuh"

namespace grouped_conv::cuda {

template <int kId, TiledMath kMath, bool kDirect>
GC_GLOBAL(kTiledThreads, kTiledConfigs[kId].blocks(kMath))
tiled_conv_kernel(const GC_GRID_CONSTANT TiledArgs args) {
  using Traits = TiledTraits<kId, kMath, kDirect>;
  using Input = std::conditional_t<kDirect, TiledCopies<Traits>, TiledGather<Traits>>;
  using Sums =
      std::conditional_t<kMath == TiledMath::kFma, TiledFmaSums<Traits>, TiledSums<Traits>>;
  constexpr int kAhead = Traits::kStages - 1;
  GC_DYNAMIC_SHARED(memory);
  const uint32_t table = device::shared_address(memory);
  const uint32_t ring = table + Traits::kRing;

  const TiledBlock block = TiledBlock::of(args, Traits{});
  const int row = device::thread_index();
  put_row(table, row, TiledRow::of(args, block, row, Traits{}));
  // Threads that gather, and store along the pixels, know of no row but their own.
  if constexpr (kDirect) device::sync_threads();

  Input input(args, block, table);
  TiledWeights<Traits> weights(args, block);
  const auto stage = [ring](int chunk) {
    return ring + uint32_t(chunk % Traits::kStages * Traits::kStageBytes);
  };
  const int chunks = (block.units(args) + kChunkUnits - 1) / kChunkUnits;
  GC_UNROLL
  for (int chunk = 0; chunk < kAhead; ++chunk) {
    if (chunk < chunks) {
      input.begin(stage(chunk));
      weights.copy(stage(chunk) + Traits::kTileBytes);
      input.end(stage(chunk));
    }
    device::cp_async_commit();
  }
  Sums sums;
  const int eights = args.tile_channels / 8;
  GC_NO_UNROLL
  for (int chunk = 0; chunk < chunks; ++chunk) {
    // The chunk has come, and nobody reads the one before it any more.
    device::cp_async_wait<kAhead - 1>();
    device::sync_threads();
    const uint32_t next = stage(chunk + kAhead);
    const bool more = chunk + kAhead < chunks;
    if (more) {
      input.begin(next);
      weights.copy(next + Traits::kTileBytes);
    }
    device::cp_async_commit();
    sums.add(stage(chunk), stage(chunk) + Traits::kTileBytes, eights);
    if (more) input.end(next);
  }

  sums.complete();
  device::sync_threads();
  sums.put(ring, eights);
  if (device::sync_threads_or(sums.nonfinite())) {
    recompute_nonfinite_sums<Traits>(args, block, table, ring);
    if constexpr (kDirect) device::sync_threads();
  }
  if constexpr (kDirect) {
    store_units<Traits>(args, block, table, ring);
  } else {
    store_rows<Traits>(args, block, table, ring);
  }
}

// The weight as the chunks want it: [group][tile of channels][class of taps][chunk][channel][unit],
// zero where there is no such channel or tap. A thread writes a unit.
template <TiledMath kMath>
GC_GLOBAL(kTiledThreads, 1)
pack_tiled_kernel(const GC_GRID_CONSTANT TiledArgs args) {
  constexpr int kElementBytes = kMath == TiledMath::kTf32 || kMath == TiledMath::kFma ? 4 : 2;
  constexpr int kUnit = kUnitBytes / kElementBytes;
  const int64_t index = int64_t(device::block_index_x()) * kTiledThreads + device::thread_index();
  int64_t rest = index / kChunkUnits;
  const auto next = [&rest](int extent) {
    const int digit = int(rest % extent);
    rest /= extent;
    return digit;
  };
  const int channel = next(args.tile_channels);
  const int unit = next(args.chunks) * kChunkUnits + int(index % kChunkUnits);
  const int taps = next(args.classes);
  const int out = next(args.channel_tiles) * args.tile_channels + channel;
  const int first_r = taps / args.classes_w, first_s = taps % args.classes_w;
  const int taps_w = (args.w.taps - first_s + args.w.tap_step - 1) / args.w.tap_step;
  const int tap = unit / args.units;
  const int r = first_r + tap / taps_w * args.h.tap_step;
  const int s = first_s + tap % taps_w * args.w.tap_step;
  const int first = unit % args.units * kUnit;
  const bool inside = rest < args.groups && out < args.out_channels && r < args.h.taps;
  const char* source =
      static_cast<const char*>(args.weight) +
      kElementBytes * (rest * args.order.by_group + out * args.order.by_out +
                       first * args.order.by_in + r * args.order.by_r + s * args.order.by_s);
  device::Bytes16 packed;
  GC_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (kElementBytes == 4) {
      packed.word[i] = device::load_global_4(source + 4 * i * args.order.by_in,
                                             inside && first + i < args.in_channels);
      if constexpr (kMath == TiledMath::kTf32) {
        packed.word[i] = device::to_tf32(device::float_of(packed.word[i]));
      }
    } else {
      const int k = 2 * i;
      packed.word[i] = device::load_global_2(source + 2 * k * args.order.by_in,
                                             inside && first + k < args.in_channels) |
                       uint32_t(device::load_global_2(source + 2 * (k + 1) * args.order.by_in,
                                                      inside && first + k + 1 < args.in_channels))
                           << 16;
    }
  }
  device::store_global_16(static_cast<char*>(args.packed) + index * kUnitBytes, packed,
                          rest < args.groups);
}

}  // namespace grouped_conv::cuda
