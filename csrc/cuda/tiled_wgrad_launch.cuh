// Launches the tiled weight-gradient kernels of one way to compute.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/tiled_wgrad.cuh"
#include "cuda/tiled_wgrad_launch.h"
#include "cuda/tiled_wgrad_reduce.cuh"

namespace grouped_conv::cuda {

template <TiledMath kMath>
int launch_tiled_wgrad_kernels(const TiledWgradArgs& args, void* stream) {
  using Kernel = void (*)(TiledWgradArgs);
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, 2 * sizeof...(kId)>{tiled_wgrad_kernel<kId, kMath, false>...,
                                                  tiled_wgrad_kernel<kId, kMath, true>...};
  }(std::make_integer_sequence<int, kTiledWgradConfigCount>());
  const auto launch = [&](Kernel kernel, const WgradLaunch& shape) {
    // Beyond 48 KB only on request; the attribute belongs to the current device.
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    if (error != cudaSuccess) return error;
    kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
             static_cast<cudaStream_t>(stream)>>>(args);
    return cudaGetLastError();
  };
  const int index = args.plan.config + (args.plan.vector ? kTiledWgradConfigCount : 0);
  const cudaError_t error = launch(kKernels[size_t(index)], tiled_wgrad_launch(args.plan));
  if (error != cudaSuccess) return error;
  return launch(tiled_wgrad_reduce_kernel<typename TiledWgradElement<kMath>::type>,
                tiled_wgrad_reduce_launch(args));
}

}  // namespace grouped_conv::cuda
