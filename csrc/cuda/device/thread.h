// Who a thread is, barriers, and what the lanes of a warp tell each other. Blocks are
// one-dimensional, of whole warps. All 32 lanes take part in sync_warp, shuffles and votes.
#pragma once

#include "cuda/device/element.h"

namespace grouped_conv::cuda::device {

#if GC_PTX

GC_DEVICE int thread_index() { return int(threadIdx.x); }
GC_DEVICE int lane_index() { return int(threadIdx.x) % kWarpSize; }
GC_DEVICE int warp_index() { return int(threadIdx.x) / kWarpSize; }
GC_DEVICE int block_index_x() { return int(blockIdx.x); }
GC_DEVICE int block_index_y() { return int(blockIdx.y); }
GC_DEVICE int block_index_z() { return int(blockIdx.z); }
GC_DEVICE int grid_extent_x() { return int(gridDim.x); }
GC_DEVICE int grid_extent_y() { return int(gridDim.y); }
GC_DEVICE int grid_extent_z() { return int(gridDim.z); }

GC_DEVICE void sync_threads() { __syncthreads(); }
// Whether any thread of the block passed true; a barrier as well.
GC_DEVICE bool sync_threads_or(bool condition) { return __syncthreads_or(condition) != 0; }
GC_DEVICE void sync_warp() { __syncwarp(); }

GC_DEVICE bool warp_any(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

// The value of lane (own ^ mask), (own + delta) or `lane`. A lane beyond the last: the own value.
GC_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
GC_DEVICE uint32_t shuffle_down(uint32_t value, int delta) {
  return __shfl_down_sync(0xffffffffu, value, unsigned(delta));
}
GC_DEVICE uint32_t shuffle_index(uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
GC_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
GC_DEVICE float shuffle_down(float value, int delta) {
  return __shfl_down_sync(0xffffffffu, value, unsigned(delta));
}
GC_DEVICE float shuffle_index(float value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

#else

inline int thread_index() { return ::simt::thread_index(); }
inline int lane_index() { return ::simt::thread_index() % kWarpSize; }
inline int warp_index() { return ::simt::thread_index() / kWarpSize; }
inline int block_index_x() { return ::simt::block_index().x; }
inline int block_index_y() { return ::simt::block_index().y; }
inline int block_index_z() { return ::simt::block_index().z; }
inline int grid_extent_x() { return ::simt::grid_extent().x; }
inline int grid_extent_y() { return ::simt::grid_extent().y; }
inline int grid_extent_z() { return ::simt::grid_extent().z; }

inline void sync_threads(Site site = Site::current()) { ::simt::sync_threads(site); }
inline bool sync_threads_or(bool condition, Site site = Site::current()) {
  return ::simt::sync_threads_or(condition, site);
}
inline void sync_warp(Site site = Site::current()) { ::simt::sync_warp(site); }

inline bool warp_any(bool condition, Site site = Site::current()) {
  return ::simt::warp_any(condition, site);
}

inline uint32_t shuffle_xor(uint32_t value, int mask, Site site = Site::current()) {
  return ::simt::shuffle(::simt::Shuffle::kXor, value, mask, site);
}
inline uint32_t shuffle_down(uint32_t value, int delta, Site site = Site::current()) {
  return ::simt::shuffle(::simt::Shuffle::kDown, value, delta, site);
}
inline uint32_t shuffle_index(uint32_t value, int lane, Site site = Site::current()) {
  return ::simt::shuffle(::simt::Shuffle::kIndex, value, lane, site);
}
inline float shuffle_xor(float value, int mask, Site site = Site::current()) {
  return float_of(shuffle_xor(bits_of(value), mask, site));
}
inline float shuffle_down(float value, int delta, Site site = Site::current()) {
  return float_of(shuffle_down(bits_of(value), delta, site));
}
inline float shuffle_index(float value, int lane, Site site = Site::current()) {
  return float_of(shuffle_index(bits_of(value), lane, site));
}

#endif

}  // namespace grouped_conv::cuda::device
