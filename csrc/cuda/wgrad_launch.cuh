// Launches the weight-gradient kernels of one element type.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/wgrad.cuh"
#include "cuda/wgrad_launch.h"
#include "cuda/wgrad_reduce.cuh"

namespace grouped_conv::cuda {

// Enqueues a kernel whose launch is `shape`.
inline int launch_wgrad_kernel(void (*kernel)(WgradArgs), const WgradLaunch& shape,
                               const WgradArgs& args, void* stream) {
  // Beyond 48 KB only on request; the attribute belongs to the current device.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

template <typename T>
int launch_wgrad_reduce(const WgradArgs& args, void* stream) {
  return launch_wgrad_kernel(wgrad_reduce_kernel<T>, wgrad_reduce_launch(args), args, stream);
}

template <typename T>
int launch_wgrad_kernels(const WgradArgs& args, void* stream) {
  using Kernel = void (*)(WgradArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, sizeof...(kId)>{wgrad_rowstream_kernel<kId, T>...};
  }(std::make_integer_sequence<int, kWgradConfigCount>());
  const int error = launch_wgrad_kernel(kKernels[size_t(args.plan.config)],
                                        wgrad_rowstream_launch(args.plan), args, stream);
  return error != cudaSuccess ? error : launch_wgrad_reduce<T>(args, stream);
}

}  // namespace grouped_conv::cuda
