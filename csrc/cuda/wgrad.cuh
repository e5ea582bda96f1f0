// wgrad_rowstream_kernel: dw[k,c,r,s] = sum_{n,p,q} dy[n,k,p,q] x[n,c,stride p - pad + r,...], as
// partial sums; wgrad_reduce_kernel (wgrad_reduce.cuh) adds them up.
//
// Work: a block has a slab of channels and a share of the rows of all images. It walks down them in
//   one unbroken pipeline. Narrow images lie side by side. Each row of x and dy comes from DRAM
//   once; where a share ends inside an image, two rows of x come twice.
// A step: wait for its rows, one barrier, start the copies of a later step, multiply. Warps share
//   the channels; from 16 channels per group also the slots of a row, k_split ways.
// Memory: `stages` rows of x and dy in shared memory. The sums stay in registers, 20 floats of a
//   thread up to 8 channels per group, 72 at 16, 144 from 32; they leave through shared memory.
// Inf and NaN: padding and the gaps between images are multiplied as zeros, and zero times Inf is a
//   NaN that the convolution does not have. A block with NaN in its sums walks again and masks such
//   products; sums that meet no Inf or NaN get the same bits. Groups share no sum.
// float16 and bfloat16, float accumulation, no atomics: the same bits in each run. Supports what
//   wgrad_supports says. Source: row streaming as in Spio; packing and walk are this project's.
#pragma once

#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/wgrad_rows.cuh"
#include "cuda/wgrad_sums.cuh"
#include "cuda/wgrad_tiles.cuh"

namespace grouped_conv::cuda {

template <class Traits>
using WgradTile =
    std::conditional_t<(Traits::kPerGroup <= 8), WgradSlab<Traits>, WgradSquare<Traits>>;

// The slots behind the last tile of a run of x, which taps of the last column look at: zeros for
// good.
template <class Traits>
GC_DEVICE void wgrad_clear_tail(uint32_t shared) {
  constexpr int kRuns = Traits::kXRingBytes / Traits::kRunBytes;
  constexpr int kTailSlots = 2;
  for (int first = 0; first < kRuns * Traits::kPlanes * kTailSlots; first += Traits::kThreads) {
    const int i = first + device::thread_index();
    const int plane = i / kTailSlots, slot = Traits::kSlots + i % kTailSlots;
    const uint32_t at = shared + plane * Traits::kPlaneBytes + 16 * slot;
    device::store_shared_16(at, device::Bytes16{}, plane < kRuns * Traits::kPlanes);
  }
}

// The rows that meet in the step that `current` has, after the one that `last` had.
template <class Traits>
GC_DEVICE WgradStepRows wgrad_rows_of(const WgradStage<Traits>& current,
                                      const WgradStage<Traits>& last) {
  const uint32_t b = Traits::kStride == 1 ? last.x : current.x + 2 * Traits::kRunBytes;
  return {current.x, b, current.dy, last.dy};
}

// The walk: copies run kStages - 2 steps ahead of the multiplication.
template <class Traits>
GC_DEVICE void wgrad_walk(WgradLoader<Traits> loader, WgradTile<Traits>& tile, uint32_t shared) {
  constexpr int kAhead = Traits::kStages - 2;
  WgradStage<Traits> loading = WgradStage<Traits>::first(shared), current = loading, last = loading;
  // What the steps under way can compute, the next step in the lowest bits.
  uint32_t steps = 0;
  GC_UNROLL
  for (int i = 0; i < kAhead; ++i) {
    steps |= loader.load_step(loading) << (kStepBits * i);
    loading = loading.next(shared);
  }
  GC_NO_UNROLL
  while (steps & kStepLive) {
    device::cp_async_wait<kAhead - 1>();
    device::sync_threads();
    const uint32_t step = steps & kStepRows;
    steps = steps >> kStepBits | loader.load_step(loading) << (kStepBits * (kAhead - 1));
    loading = loading.next(shared);
    const WgradStepRows rows = wgrad_rows_of(current, last);
    if (step == kStepRows) {
      tile.template multiply<true>(rows, step);
    } else if (step != 0) {
      tile.template multiply<false>(rows, step);
    }
    last = current;
    current = current.next(shared);
  }
}

// The same walk, one step at a time, without the products that padding has part in.
template <class Traits>
GC_DEVICE void wgrad_walk_masked(WgradLoader<Traits> loader, WgradTile<Traits>& tile,
                                 const WgradArgs& args, uint32_t shared) {
  WgradStage<Traits> current = WgradStage<Traits>::first(shared), last = current;
  GC_NO_UNROLL
  for (;;) {
    const WgradColumns columns = loader.columns();
    const uint32_t step = loader.load_step(current);
    if (!(step & kStepLive)) break;
    device::cp_async_wait<0>();
    device::sync_threads();
    if (step & kStepRows) {
      tile.multiply_masked(wgrad_rows_of(current, last), step, args, columns);
    }
    last = current;
    current = current.next(shared);
  }
}

template <int kId, typename T>
GC_GLOBAL((WgradTraits<kId, T>::kThreads), (WgradTraits<kId, T>::kBlocksPerSm))
wgrad_rowstream_kernel(const GC_GRID_CONSTANT WgradArgs args) {
  using Traits = WgradTraits<kId, T>;
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const int split = device::block_index_x() / args.plan.channel_blocks;
  const int first_channel =
      (device::block_index_x() - split * args.plan.channel_blocks) * Traits::kChannels;
  const int part = device::warp_index() / Traits::kWarpsPerPart;
  const int channel_warp = device::warp_index() % Traits::kWarpsPerPart;
  const int first_slot = part * Traits::kTilesPerWarp * 16;

  wgrad_clear_tail<Traits>(shared);
  WgradTile<Traits> tile(channel_warp, first_slot);
  wgrad_walk(WgradLoader<Traits>(args, first_channel, split), tile, shared);
  if (device::sync_threads_or(tile.has_nan())) {
    tile.clear();
    wgrad_walk_masked(WgradLoader<Traits>(args, first_channel, split), tile, args, shared);
    device::sync_threads();
  }
  wgrad_write_partials<Traits>(args, tile, shared, first_channel, split, part);
}

}  // namespace grouped_conv::cuda
