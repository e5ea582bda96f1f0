// wgrad_reduce_kernel: dw = the sum of the partial sums of wgrad_rowstream_kernel.
//
// Work: a thread sums four elements of dw over every reduce_slices-th split; the threads of the
//   first slice then add the sums of the others, in order: blocked sums, the same bits in each run.
//   Few slices where there are few splits, so that each thread has a few loads at once.
// Memory: 4 KB of shared memory. Accumulation in float, rounded once to float16 or bfloat16.
#pragma once

#include "cuda/device/device.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

GC_DEVICE void wgrad_add(float (&sums)[4], const device::Bytes16& values) {
  GC_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] += device::float_of(values.word[i]);
}

template <typename T>
GC_GLOBAL(kWgradReduceThreads, 4)
wgrad_reduce_kernel(const GC_GRID_CONSTANT WgradArgs args) {
  constexpr int kLoads = 4;  // of a thread at a time
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const int slices = args.reduce_slices;
  const int slice_threads = kWgradReduceThreads / slices;
  const int slice = device::thread_index() / slice_threads;
  const int elements = 4 * slice_threads;
  const int in_block = 4 * (device::thread_index() - slice * slice_threads);
  const int count = args.C * 9 * args.c_per_group;
  const int first = device::block_index_x() * elements;
  const bool in_dw = first + in_block < count;

  float sums[4] = {};
  const unsigned char* source = args.partials + int64_t(first + in_block) * 4;
  GC_NO_UNROLL
  for (int split = slice; split < args.plan.splits; split += kLoads * slices) {
    device::Bytes16 partials[kLoads];
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int at = split + i * slices;
      const unsigned char* partial = source + int64_t(at) * count * 4;
      partials[i] = device::load_global_16(partial, in_dw && at < args.plan.splits);
    }
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) wgrad_add(sums, partials[i]);
  }

  if (slices > 1) {
    const uint32_t own = shared + 4 * (slice * elements + in_block);
    const device::Bytes16 packed{{device::bits_of(sums[0]), device::bits_of(sums[1]),
                                  device::bits_of(sums[2]), device::bits_of(sums[3])}};
    device::store_shared_16(own, packed);
    device::sync_threads();
    GC_NO_UNROLL
    for (int other = 1; other < slices; ++other) {
      wgrad_add(sums, device::load_shared_16(own + 4 * other * elements, slice == 0));
    }
  }

  const device::Bytes8 rounded{
      {device::pack2<T>(sums[0], sums[1]), device::pack2<T>(sums[2], sums[3])}};
  device::store_global_8(args.dw + int64_t(first + in_block) * 2, rounded, slice == 0 && in_dw);
}

}  // namespace grouped_conv::cuda
