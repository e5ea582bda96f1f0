// tiled_wgrad_reduce_kernel: dw = the sum of the partial sums of tiled_wgrad_kernel.
//
// Work: as wgrad_reduce_kernel, but a thread has one element of dw, in the order of the partial
//   sums, since dw has any number of them; where dw is KCRS it is written across.
// Memory: 1 KB of shared memory. Accumulation in float, rounded once to a 16-bit type.
#pragma once

#include "cuda/device/device.h"
#include "cuda/tiled_wgrad_launch.h"

namespace grouped_conv::cuda {

template <typename T>
GC_GLOBAL(kWgradReduceThreads, 4)
tiled_wgrad_reduce_kernel(const GC_GRID_CONSTANT TiledWgradArgs args) {
  constexpr int kLoads = 4;  // of a thread at a time
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const int slices = args.reduce_slices;
  const int elements = kWgradReduceThreads / slices;
  const int slice = device::thread_index() / elements;
  const int in_block = device::thread_index() - slice * elements;
  const int taps = args.R * args.S;
  const int count = args.G * args.k_per_group * taps * args.c_per_group;
  const int index = device::block_index_x() * elements + in_block;
  const bool in_dw = index < count;

  float sum = 0;
  const unsigned char* source = args.partials + int64_t(index) * 4;
  GC_NO_UNROLL
  for (int split = slice; split < args.plan.splits; split += kLoads * slices) {
    uint32_t partials[kLoads];
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int at = split + i * slices;
      const unsigned char* partial = source + int64_t(at) * count * 4;
      partials[i] = device::load_global_4(partial, in_dw && at < args.plan.splits);
    }
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) sum += device::float_of(partials[i]);
  }

  if (slices > 1) {
    const uint32_t own = shared + 4 * uint32_t(device::thread_index());
    device::store_shared_4(own, device::bits_of(sum));
    device::sync_threads();
    GC_NO_UNROLL
    for (int other = 1; other < slices; ++other) {
      sum += device::float_of(device::load_shared_4(own + 4 * other * elements, slice == 0));
    }
  }

  int target = index;
  if (!args.channels_last) {
    const int row = index / args.c_per_group, c = index - row * args.c_per_group;
    const int k = row / taps, tap = row - k * taps;
    target = (k * args.c_per_group + c) * taps + tap;
  }
  unsigned char* dw = args.dw + int64_t(target) * int(sizeof(T));
  if constexpr (sizeof(T) == 4) {
    device::store_global_4(dw, device::bits_of(sum), slice == 0 && in_dw);
  } else {
    device::store_global_2(dw, device::pack1<T>(sum), slice == 0 && in_dw);
  }
}

}  // namespace grouped_conv::cuda
