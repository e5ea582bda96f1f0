// wgrad_reduce_kernel: dw = the sum of the partial sums of wgrad_rowstream_kernel.
//
// Work: a block has 128 elements of dw, four per lane; warp i adds splits i, i + 8, ..., then one
//   thread per element adds the eight sums, in order: blocked sums, the same bits in each run.
// Inf and NaN: the first kernel multiplies padding, and the gaps between images, as zeros. Inf or
//   NaN times these is NaN, which the convolution does not have. So each sum that is NaN is
//   computed again by a warp, from x and dy, pixel by pixel and without padding, until it is NaN
//   for certain. Finite and infinite sums have met no such product. Groups share no sum, nothing
//   else leaks.
// Memory: 4.5 KB of shared memory. Accumulation in float, rounded once to float16 or bfloat16.
#pragma once

#include "cuda/device/device.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

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
  for (int n = 0; n < args.N; ++n) {
    const unsigned char* x = args.x + int64_t(n) * args.H * args.W * args.C * 2;
    const unsigned char* dy = args.dy + int64_t(n) * pixels * args.C * 2;
    for (int first = 0; first < pixels; first += device::kWarpSize) {
      if (device::warp_any(sum != sum)) break;
      const int i = first + device::lane_index();
      const int p = i / args.Q, q = i - p * args.Q;
      const int h = p * args.stride + first_h, w = q * args.stride + first_w;
      const bool inside = i < pixels && h >= 0 && h < args.H && w >= 0 && w < args.W;
      const uint32_t x_at = (uint32_t(h * args.W + w) * args.C + c) * 2;
      const uint32_t dy_at = (uint32_t(i) * args.C + k) * 2;
      const float x_value = device::to_float<T>(device::load_global_2(x + x_at, inside));
      const float dy_value = device::to_float<T>(device::load_global_2(dy + dy_at, inside));
      sum += x_value * dy_value;
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
  constexpr int kElements = kWgradReduceElements;
  constexpr int kWarps = kWgradReduceThreads / device::kWarpSize;
  static_assert(kElements == 4 * device::kWarpSize, "a warp has all elements, four per lane");
  static_assert(kElements <= kWgradReduceThreads && kElements % kWarps == 0);
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const int thread = device::thread_index(), warp = device::warp_index();
  const int count = args.C * 9 * args.c_per_group;
  const int first = device::block_index_x() * kElements;

  const int of_lane = 4 * device::lane_index();
  float sums[4] = {};
  const unsigned char* source = args.partials + int64_t(first + of_lane) * 4;
  GC_NO_UNROLL
  for (int split = warp; split < args.plan.splits; split += kWarps) {
    const device::Bytes16 partial =
        device::load_global_16(source + int64_t(split) * count * 4, first + of_lane < count);
    GC_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] += device::float_of(partial.word[i]);
  }
  device::Bytes16 packed;
  GC_UNROLL
  for (int i = 0; i < 4; ++i) packed.word[i] = device::bits_of(sums[i]);
  device::store_shared_16(shared + 4 * (warp * kElements + of_lane), packed);
  device::sync_threads();

  float sum = 0;
  GC_UNROLL
  for (int i = 0; i < kWarps; ++i) {
    const uint32_t at = shared + 4 * (i * kElements + thread);
    sum += device::float_of(device::load_shared_4(at, thread < kElements));
  }
  const uint32_t totals = shared + 4 * kWarps * kElements;
  device::store_shared_4(totals + 4 * thread, device::bits_of(sum), thread < kElements);
  if (device::sync_threads_or(sum != sum)) {
    for (int i = warp; i < kElements && first + i < count; i += kWarps) {
      const float total = device::float_of(device::load_shared_4(totals + 4 * i));
      if (total != total) {
        const float exact = wgrad_by_definition<T>(args, first + i);
        device::sync_warp();
        device::store_shared_4(totals + 4 * i, device::bits_of(exact), device::lane_index() == 0);
      }
    }
    device::sync_threads();
  }

  const bool writes = thread < kElements / 2 && first + 2 * thread < count;
  const device::Bytes8 pair = device::load_shared_8(totals + 8 * thread, writes);
  const uint32_t rounded =
      device::pack2<T>(device::float_of(pair.word[0]), device::float_of(pair.word[1]));
  device::store_global_4(args.dw + 2 * int64_t(first + 2 * thread), rounded, writes);
}

}  // namespace grouped_conv::cuda
