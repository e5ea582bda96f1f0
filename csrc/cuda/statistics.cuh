// statistics_reduce_kernel: sum and squared deviations of each channel from those of an fprop's
// blocks (rowstream_tail.cuh), by their means m_b, squared deviations q_b and counts n_b:
//
//   mean = sum n_b m_b / n,   squares = sum q_b + sum n_b (m_b - mean)^2
//
// with the m_b taken about m_0, so that nothing large cancels.
// Work: a lane has a channel; the warps share the rows and are added in order: the same bits in
//   each run. Memory: 6 KB of shared memory with 16 warps. All sums are float.
#pragma once

#include "cuda/device/device.h"
#include "cuda/statistics_args.h"

namespace grouped_conv::cuda {

template <int kWarps>
GC_GLOBAL(32 * kWarps, 1)
statistics_reduce_kernel(const GC_GRID_CONSTANT StatisticsArgs args) {
  constexpr int kThreads = device::kWarpSize * kWarps;
  constexpr int kLoads = 4;  // rows of a warp at a time
  static_assert(kStatisticsChannels == device::kWarpSize);
  GC_DYNAMIC_SHARED(dynamic_shared);
  const uint32_t shared = device::shared_address(dynamic_shared);
  const StatisticsRows& partial = args.partial;
  const int channel = device::block_index_x() * kStatisticsChannels + device::lane_index();
  const bool exists = channel < args.channels;
  const float pivot = device::float_of(device::load_global_4(partial.mean + channel, exists));

  float sums[3] = {};  // of n_b d, n_b d^2 and q_b, where d = m_b - m_0
  GC_NO_UNROLL
  for (int first = device::warp_index(); first < partial.rows; first += kLoads * kWarps) {
    uint32_t mean[kLoads], squares[kLoads], count[kLoads];
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const int row = first + i * kWarps;
      const bool active = exists && row < partial.rows;
      const int64_t at = int64_t(row) * args.channels + channel;
      mean[i] = device::load_global_4(partial.mean + at, active);
      squares[i] = device::load_global_4(partial.squares + at, active);
      count[i] = device::load_global_4(partial.count + row, active);
    }
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const float n = device::float_of(count[i]);
      const float d = device::float_of(mean[i]) - pivot;
      sums[0] = device::multiply_add(n, d, sums[0]);
      sums[1] = device::multiply_add(n * d, d, sums[1]);
      sums[2] += device::float_of(squares[i]);
    }
  }
  const uint32_t own = shared + 4 * device::thread_index();
  GC_UNROLL
  for (int k = 0; k < 3; ++k) {
    device::store_shared_4(own + 4 * kThreads * k, device::bits_of(sums[k]));
  }
  device::sync_threads();
  const bool active = exists && device::warp_index() == 0;
  float totals[3] = {};
  GC_NO_UNROLL
  for (int warp = 0; warp < kWarps; ++warp) {
    GC_UNROLL
    for (int k = 0; k < 3; ++k) {
      const uint32_t at = own + 4 * (kThreads * k + device::kWarpSize * warp);
      totals[k] += device::float_of(device::load_shared_4(at, active));
    }
  }
  const float between = device::multiply_add(-totals[0], totals[0] / args.pixels, totals[1]);
  const float squares = totals[2] + between;
  device::store_global_4(args.sum + channel,
                         device::bits_of(device::multiply_add(pivot, args.pixels, totals[0])),
                         active);
  // Rounding may leave less than nothing; NaN stays.
  device::store_global_4(args.squares + channel, device::bits_of(squares < 0.f ? 0.f : squares),
                         active);
}

}  // namespace grouped_conv::cuda
