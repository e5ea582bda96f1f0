#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/simple.cuh"

namespace grouped_conv::cuda {
namespace {

// Enough blocks to fill any device; the kernels loop over the rest.
constexpr int64_t kMaxBlocks = int64_t(1) << 20;

template <typename T>
View<T> view(const Operand& operand) {
  const int64_t* s = operand.strides;
  return {static_cast<T*>(operand.data), {s[0], s[1], s[2], s[3]}};
}

template <typename T>
SimpleArgs<T> simple_args(const PassArgs& args) {
  using Acc = typename SimpleArgs<T>::Acc;
  const Epilogue& e = args.epilogue;
  return {args.problem,
          view<T>(args.x),
          view<T>(args.w),
          view<T>(args.y),
          static_cast<const T*>(args.bias),
          args.bias_stride,
          {static_cast<const Acc*>(e.scale), static_cast<const Acc*>(e.shift),
           static_cast<const T*>(e.residual), e.relu}};
}

unsigned grid(int64_t blocks) { return static_cast<unsigned>(std::min(blocks, kMaxBlocks)); }
unsigned grid_of_elements(int64_t count) { return grid((count + kThreads - 1) / kThreads); }

enum class Work { kPass, kEpilogue, kStatistics };

template <typename T>
int launch(const PassArgs& args, Work work, cudaStream_t stream) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  const SimpleArgs<T> simple = simple_args<T>(args);
  if (work == Work::kStatistics) {
    statistics_kernel<T><<<grid(p.K), kThreads, 0, stream>>>(
        simple, static_cast<Acc*>(args.statistics.sum), static_cast<Acc*>(args.statistics.squares));
  } else if (work == Work::kEpilogue) {
    const int64_t count = p.N * p.K * p.P * p.Q;
    if (count == 0) return cudaSuccess;
    epilogue_kernel<T><<<grid_of_elements(count), kThreads, 0, stream>>>(simple, count);
  } else if (args.pass == Pass::kFprop) {
    const int64_t count = p.N * p.K * p.P * p.Q;
    if (count == 0) return cudaSuccess;
    fprop_simple_kernel<T><<<grid_of_elements(count), kThreads, 0, stream>>>(simple, count);
  } else if (args.pass == Pass::kDgrad) {
    const int64_t count = p.N * p.C * p.H * p.W;
    if (count == 0) return cudaSuccess;
    dgrad_simple_kernel<T><<<grid_of_elements(count), kThreads, 0, stream>>>(simple, count);
  } else {
    const int64_t count = p.K * (p.C / p.G) * p.R * p.S;
    wgrad_simple_kernel<T><<<grid(count), kThreads, 0, stream>>>(simple, count);
  }
  return cudaGetLastError();
}

int launch(const PassArgs& args, Work work, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::kFloat32:
      return launch<float>(args, work, cuda_stream);
    case DType::kBFloat16:
      return launch<__nv_bfloat16>(args, work, cuda_stream);
    case DType::kFloat16:
      return launch<__half>(args, work, cuda_stream);
    case DType::kFloat64:
      return launch<double>(args, work, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int launch_simple(const PassArgs& args, void* stream) { return launch(args, Work::kPass, stream); }

int launch_epilogue(const PassArgs& args, void* stream) {
  return launch(args, Work::kEpilogue, stream);
}

int launch_simple_statistics(const PassArgs& args, void* stream) {
  return launch(args, Work::kStatistics, stream);
}

}  // namespace grouped_conv::cuda
