// Launches the tiled kernels of one way to compute.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/tiled_conv.cuh"
#include "cuda/tiled_launch.h"

namespace grouped_conv::cuda {

template <TiledMath kMath>
int launch_tiled_kernels(const TiledArgs& args, const TiledPlan& plan, void* stream_handle) {
  using Kernel = void (*)(TiledArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<std::array<Kernel, 2>, sizeof...(kId)>{
        {{tiled_conv_kernel<kId, kMath, false>, tiled_conv_kernel<kId, kMath, true>}...}};
  }(std::make_integer_sequence<int, kTiledConfigCount>());
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const Kernel kernel = kKernels[size_t(plan.config)][plan.direct];
  // Beyond 48 KB only on request; the attribute belongs to the current device.
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           plan.shared_bytes());
  if (error != cudaSuccess) return error;
  pack_tiled_kernel<kMath><<<unsigned(tiled_pack_blocks(plan)), kTiledThreads, 0, stream>>>(args);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(plan.blocks()), kTiledThreads, size_t(plan.shared_bytes()), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace grouped_conv::cuda
