// What a kernel's source needs from the compiler. Under nvcc the leaves of this directory are PTX;
// under a plain C++20 compiler they call the SIMT emulator (tests/simt), which runs the same kernel
// source on the CPU, checks each access and counts. Kernels include "cuda/device/device.h" alone.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#define GC_PTX 1
#define GC_DEVICE __device__ __forceinline__
// A kernel: GC_GLOBAL(threads per block, wanted blocks per multiprocessor) name(arguments) {...}
#define GC_GLOBAL(max_threads, min_blocks) \
  __global__ void __launch_bounds__(max_threads, min_blocks)
#define GC_GRID_CONSTANT __grid_constant__
// The block's dynamic shared memory; only shared_address() takes the name.
#define GC_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define GC_UNROLL _Pragma("unroll")
#define GC_NO_UNROLL _Pragma("unroll 1")

#else

#include "simt/lane.h"

#define GC_PTX 0
#define GC_DEVICE inline
#define GC_GLOBAL(max_threads, min_blocks) void
#define GC_GRID_CONSTANT
#define GC_DYNAMIC_SHARED(name) const ::simt::SharedMemory name
#define GC_UNROLL
#define GC_NO_UNROLL

namespace grouped_conv::cuda::device {
// Where in the kernel's source a leaf was called; each emulated leaf takes it as a last argument
// that nobody writes.
using Site = ::simt::Site;
}  // namespace grouped_conv::cuda::device

#endif

namespace grouped_conv::cuda::device {

inline constexpr int kWarpSize = 32;

struct alignas(8) Bytes8 {
  uint32_t word[2];
};

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

}  // namespace grouped_conv::cuda::device
