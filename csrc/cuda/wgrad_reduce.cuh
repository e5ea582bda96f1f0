// wgrad_reduce_kernel: dw = the sum of the partial sums of wgrad_rowstream_kernel.
//
// Work: a thread sums four elements of dw over every reduce_slices-th split; then the threads of
// the
//   first slice add the sums of the others, in order: blocked sums, the same bits in
//   each run. Few slices where there are few splits, so that each thread has a few loads at once.
// Inf and NaN: the first kernel multiplies padding, and the gaps between images, as zeros. Inf or
//   NaN times these is NaN, which the convolution does not have. So each sum that is NaN is
//   computed again by a warp, from x and dy, pixel by pixel and without padding, until it is NaN
//   for certain. Finite and infinite sums have met no such product. Groups share no sum, nothing
//   else leaks.
// Memory: 4 KB of shared memory. Accumulation in float, rounded once to float16 or bfloat16.
#pragma once

#include "cuda/device/device.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

GC_DEVICE device::Bytes16 wgrad_pack(const float (&values)[4]) {
  return {{device::bits_of(values[0]), device::bits_of(values[1]), device::bits_of(values[2]),
           device::bits_of(values[3])}};
}

GC_DEVICE void wgrad_add(float (&sums)[4], const device::Bytes16& values) {
  GC_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] += device::float_of(values.word[i]);
}

// One element of dw, in the order of dw's memory, by definition. All lanes of a warp get the sum.
template <typename T>
GC_DEVICE float wgrad_by_definition(const WgradArgs& args, int element) {
  const int per_output = 9 * args.c_per_group;
  const int k = element / per_output, rest = element - k * per_output;
  const int tap = args.channels_last ? rest / args.c_per_group : rest % 9;
  const int ci = args.channels_last ? rest % args.c_per_group : rest / 9;
  const int c = k - k % args.c_per_group + ci;
  const int first_h = tap / 3 - args.pad_h, first_w = tap % 3 - args.pad_w;
  const int pixels = args.P * args.Q;
  float sum = 0;
  bool is_nan = false;
  for (int n = 0; n < args.N && !is_nan; ++n) {
    const unsigned char* x = args.x + int64_t(n) * args.H * args.W * args.C * 2;
    const unsigned char* dy = args.dy + int64_t(n) * pixels * args.C * 2;
    for (int first = 0; first < pixels && !is_nan; first += device::kWarpSize) {
      const int i = first + device::lane_index();
      const int p = i / args.Q, q = i - p * args.Q;
      const int h = p * args.stride + first_h, w = q * args.stride + first_w;
      const bool inside = i < pixels && h >= 0 && h < args.H && w >= 0 && w < args.W;
      const uint32_t x_at = (uint32_t(h * args.W + w) * args.C + c) * 2;
      const uint32_t dy_at = (uint32_t(i) * args.C + k) * 2;
      const float x_value = device::to_float<T>(device::load_global_2(x + x_at, inside));
      const float dy_value = device::to_float<T>(device::load_global_2(dy + dy_at, inside));
      sum += x_value * dy_value;
      is_nan = device::warp_any(sum != sum);
    }
  }
  GC_UNROLL
  for (int distance = device::kWarpSize / 2; distance > 0; distance /= 2) {
    sum += device::shuffle_xor(sum, distance);
  }
  return sum;
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

  const uint32_t own = shared + 4 * (slice * elements + in_block);
  device::store_shared_16(own, wgrad_pack(sums), slice > 0);
  device::sync_threads();
  GC_NO_UNROLL
  for (int other = 1; other < slices; ++other) {
    wgrad_add(sums, device::load_shared_16(own + 4 * other * elements, slice == 0));
  }

  bool has_nan = false;
  GC_UNROLL
  for (int i = 0; i < 4; ++i) has_nan |= sums[i] != sums[i];
  if (device::sync_threads_or(slice == 0 && has_nan)) {
    device::store_shared_16(own, wgrad_pack(sums), slice == 0);
    device::sync_threads();
    constexpr int kWarps = kWgradReduceThreads / device::kWarpSize;
    for (int i = device::warp_index(); i < elements && first + i < count; i += kWarps) {
      const float sum = device::float_of(device::load_shared_4(shared + 4 * i));
      if (sum != sum) {
        const float exact = wgrad_by_definition<T>(args, first + i);
        device::sync_warp();
        device::store_shared_4(shared + 4 * i, device::bits_of(exact), device::lane_index() == 0);
      }
    }
    device::sync_threads();
    const device::Bytes16 exact = device::load_shared_16(own, slice == 0);
    GC_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] = device::float_of(exact.word[i]);
  }
  const device::Bytes8 rounded{
      {device::pack2<T>(sums[0], sums[1]), device::pack2<T>(sums[2], sums[3])}};
  device::store_global_8(args.dw + int64_t(first + in_block) * 2, rounded, slice == 0 && in_dw);
}

}  // namespace grouped_conv::cuda
