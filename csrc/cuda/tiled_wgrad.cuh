// tiled_wgrad_kernel: dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,stride p - pad + dilation r,...],
// as partial sums; tiled_wgrad_reduce_kernel adds them up.
//
// Work: an implicit matrix product for each group: rows (r, s, c), columns k, summed over pixels. A
//   block has one tile of one group, or of each of a few groups, and a share of the pixels.
// A step: a stage of pixels arrives in shared memory, by 16-byte copies two stages ahead where the
//   channels of NHWC tensors allow that, else element by element through registers; one barrier;
//   multiply. Each of the R S taps brings x anew, from L2.
// Memory: two or three stages. The sums stay in registers, 48 floats of a thread or 12; they leave
//   through shared memory.
// Inf and NaN: padding is multiplied as zeros, and zero times Inf is a NaN that the convolution
// does
//   not have. A block with NaN in its sums walks again without such products; sums that meet no Inf
//   or NaN get the same bits. Groups share no sum.
// Float accumulation, no atomics: the same bits in each run. Any filter, stride, padding, dilation
//   and number of channels: all but what tiled_wgrad_refusal says.
#pragma once

#include "cuda/device/device.h"
#include "cuda/tiled_wgrad_io.cuh"
#include "cuda/tiled_wgrad_math.cuh"

namespace grouped_conv::cuda {

template <class Traits>
GC_DEVICE void tiled_wgrad_walk(const TiledWgradArgs& args, const TiledWgradTile& tile,
                                TiledWgradSums<Traits>& sums, uint32_t shared) {
  constexpr int kSteps = TiledWgradSums<Traits>::kSteps;
  constexpr uint32_t kEnd = Traits::kStages * Traits::kStageBytes;
  TiledWgradLoader<Traits> loader(args, tile, shared + Traits::kTableOffset);
  uint32_t current = 0;
  if constexpr (Traits::kVector) {
    constexpr int kAhead = Traits::kStages - 1;
    uint32_t loading = 0;
    const auto copy = [&] {
      loader.copy(shared + loading);
      loading = loading + Traits::kStageBytes == kEnd ? 0 : loading + Traits::kStageBytes;
    };
    GC_UNROLL
    for (int i = 0; i < kAhead; ++i) copy();
    GC_NO_UNROLL
    for (int chunk = 0; chunk < tile.chunks; ++chunk) {
      device::cp_async_wait<kAhead - 1>();
      device::sync_threads();
      copy();
      GC_UNROLL
      for (int step = 0; step < kSteps; ++step) sums.multiply(shared + current, step);
      current = current + Traits::kStageBytes == kEnd ? 0 : current + Traits::kStageBytes;
    }
  } else {
    loader.bring(shared);
    GC_NO_UNROLL
    for (int chunk = 0; chunk < tile.chunks; ++chunk) {
      device::sync_threads();
      const uint32_t next = Traits::kStageBytes - current;
      // A step's share of the next stage is on its way during the step.
      typename TiledWgradLoader<Traits>::template Slots<kSteps> slots;
      const bool more = chunk + 1 < tile.chunks;
      GC_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        loader.fetch(slots, step, more);
        sums.multiply(shared + current, step);
        loader.put(shared + next, slots, step);
      }
      loader.advance();
      current = next;
    }
  }
}

// The same walk, one stage at a time, without the products that padding has part in.
template <class Traits>
GC_DEVICE void tiled_wgrad_walk_masked(const TiledWgradArgs& args, const TiledWgradTile& tile,
                                       TiledWgradSums<Traits>& sums, uint32_t shared) {
  TiledWgradLoader<Traits> loader(args, tile, shared + Traits::kTableOffset);
  GC_NO_UNROLL
  for (int chunk = 0; chunk < tile.chunks; ++chunk) {
    if constexpr (Traits::kVector) {
      loader.copy(shared);
      device::cp_async_wait<0>();
    } else {
      loader.bring(shared);
    }
    device::sync_threads();
    sums.multiply_masked(shared, TiledWgradMeeting<Traits>(args, tile, tile.first_chunk + chunk));
    device::sync_threads();
  }
}

// Writes the sums that exist as the block's part of a dw. Nobody looks at the stages any more.
template <class Traits>
GC_DEVICE void tiled_wgrad_write_partials(const TiledWgradArgs& args, const TiledWgradTile& tile,
                                          const TiledWgradSums<Traits>& sums, uint32_t shared) {
  const int64_t of_channel = int64_t(args.R) * args.S * args.c_per_group;
  const int64_t of_split = args.G * args.k_per_group * of_channel;
  unsigned char* target = args.partials + tile.split * of_split * int(sizeof(float));
  sums.put_sums(shared);
  device::sync_threads();
  constexpr int kSums = Traits::kGroups * Traits::kCols * Traits::kRows;
  static_assert(kSums % Traits::kThreads == 0);
  GC_NO_UNROLL
  for (int i = device::thread_index(); i < kSums; i += Traits::kThreads) {
    const int line = i / Traits::kRows, row = i - line * Traits::kRows;
    const int in_block = line / Traits::kCols, col = line - in_block * Traits::kCols;
    const int group = tile.first_group + in_block;
    const int slot = row / Traits::kSlotElements, in_slot = row - slot * Traits::kSlotElements;
    const auto at = TiledWgradRow::of_slot<Traits>(args, tile, group, slot);
    const int k = tile.col_tile * Traits::kCols + col;
    const int64_t index = (int64_t(group) * args.k_per_group + k) * of_channel +
                          (at.r * args.S + at.s) * args.c_per_group + at.c + in_slot;
    device::store_global_4(target + index * int(sizeof(float)),
                           device::load_shared_4(shared + Traits::sum_offset(in_block, row, col)),
                           in_slot < at.live && k < args.k_per_group);
  }
}

template <int kId, TiledMath kMath, bool kVector>
GC_GLOBAL((TiledWgradTraits<kId, kMath, kVector>::kThreads),
          (TiledWgradTraits<kId, kMath, kVector>::kBlocksPerSm))
tiled_wgrad_kernel(const GC_GRID_CONSTANT TiledWgradArgs args) {
  using Traits = TiledWgradTraits<kId, kMath, kVector>;
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const TiledWgradTile tile(args, Traits::kGroups);
  tiled_wgrad_find_sources<Traits>(args, tile, shared + Traits::kTableOffset);
  device::sync_threads();
  TiledWgradSums<Traits> sums;
  tiled_wgrad_walk<Traits>(args, tile, sums, shared);
  if (device::sync_threads_or(sums.has_nan())) {
    sums.clear();
    tiled_wgrad_walk_masked<Traits>(args, tile, sums, shared);
  }
  tiled_wgrad_write_partials<Traits>(args, tile, sums, shared);
}

}  // namespace grouped_conv::cuda
