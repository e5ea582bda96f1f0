// Launches the weight-gradient kernels for NCHW tensors of one element type.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/nchw_wgrad.cuh"
#include "cuda/nchw_wgrad_launch.h"

namespace grouped_conv::cuda {

template <typename T>
int launch_nchw_wgrad_kernels(const NchwWgradArgs& args, const NchwWgradPlan& plan, void* stream) {
  using Kernel = void (*)(NchwWgradArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, sizeof...(kId)>{nchw_wgrad_kernel<kId, T>...};
  }(std::make_integer_sequence<int, kNchwWgradConfigCount>());
  const Kernel kernel = kKernels[size_t(plan.tiles.config)];
  const WgradLaunch shape = nchw_wgrad_launch(plan);
  // Beyond 48 KB only on request; the attribute belongs to the current device.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(args);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return launch_wgrad_reduce<T>(args.wgrad, stream);
}

}  // namespace grouped_conv::cuda
