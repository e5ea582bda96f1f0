// Launches the NCHW kernels of fprop and dgrad of one element type.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/nchw_conv.cuh"
#include "cuda/nchw_launch.h"

namespace grouped_conv::cuda {

template <typename T>
int launch_nchw_kernel(const NchwArgs& args, const NchwPlan& plan, void* stream) {
  using Kernel = void (*)(NchwArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, sizeof...(kId)>{nchw_conv_kernel<kId, T>...};
  }(std::make_integer_sequence<int, kNchwConfigCount>());
  const Kernel kernel = kKernels[size_t(plan.tiles.config)];
  const RowstreamLaunch shape = nchw_launch(plan);
  // Beyond 48 KB only on request; the attribute belongs to the current device.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace grouped_conv::cuda
