// Launches the weight-gradient kernels of one element type.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/wgrad.cuh"
#include "cuda/wgrad_launch.h"
#include "cuda/wgrad_reduce.cuh"

namespace grouped_conv::cuda {

template <typename T>
int launch_wgrad_kernels(const WgradArgs& args, void* stream) {
  using Kernel = void (*)(WgradArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, sizeof...(kId)>{wgrad_rowstream_kernel<kId, T>...};
  }(std::make_integer_sequence<int, kWgradConfigCount>());
  const auto launch = [&](Kernel kernel, const WgradLaunch& shape) {
    // Beyond 48 KB only on request; the attribute belongs to the current device.
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    if (error != cudaSuccess) return error;
    kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
             static_cast<cudaStream_t>(stream)>>>(args);
    return cudaGetLastError();
  };
  const cudaError_t error =
      launch(kKernels[size_t(args.plan.config)], wgrad_rowstream_launch(args.plan));
  if (error != cudaSuccess) return error;
  return launch(wgrad_reduce_kernel<T>, wgrad_reduce_launch(args));
}

}  // namespace grouped_conv::cuda
