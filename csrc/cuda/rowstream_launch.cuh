// Launches the kernels of fprop and dgrad of one element type.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <utility>

#include "cuda/dgrad.cuh"
#include "cuda/fprop.cuh"
#include "cuda/rowstream_launch.h"

namespace grouped_conv::cuda {

using RowstreamKernel = void (*)(RowstreamArgs);

template <int kId, typename T, Tail kTail>
constexpr RowstreamKernel rowstream_kernel() {
  if constexpr (!rowstream_has(kRowstreamConfigs[kId], kTail)) {
    return nullptr;
  } else if constexpr (kRowstreamConfigs[kId].walk == Walk::kDgradStride2) {
    return dgrad_rowstream_kernel<kId, T>;
  } else {
    return fprop_rowstream_kernel<kId, T, kTail>;
  }
}

template <typename T, Tail kTail>
inline constexpr auto kRowstreamKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
  return std::array<RowstreamKernel, sizeof...(kId)>{rowstream_kernel<kId, T, kTail>()...};
}(std::make_integer_sequence<int, kRowstreamConfigCount>());

template <typename T>
int launch_rowstream_kernel(const RowstreamArgs& args, Tail tail, void* stream) {
  const auto& kernels = tail == Tail::kNone       ? kRowstreamKernels<T, Tail::kNone>
                        : tail == Tail::kAffine   ? kRowstreamKernels<T, Tail::kAffine>
                        : tail == Tail::kResidual ? kRowstreamKernels<T, Tail::kResidual>
                                                  : kRowstreamKernels<T, Tail::kStatistics>;
  const RowstreamKernel kernel = kernels[size_t(args.plan.config)];
  const RowstreamLaunch shape = rowstream_launch(args.plan);
  // Beyond 48 KB only on request; the attribute belongs to the current device.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(shape.blocks), unsigned(shape.threads), size_t(shape.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace grouped_conv::cuda
