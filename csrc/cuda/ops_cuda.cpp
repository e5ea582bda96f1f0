// The operators for CUDA tensors: validation, allocation, the current stream.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "checks.h"
#include "cuda/launch.h"

namespace grouped_conv::cuda {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "grouped_conv: expected float32, bfloat16, float16 or float64");
  }
}

Operand operand(const Tensor& t) {
  const auto s = t.strides();
  return {t.data_ptr(), {s[0], s[1], s[2], s[3]}};
}

Tensor allocate(const IntList& sizes, const Tensor& like, bool channels_last) {
  return torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

void run(Pass pass, const ConvProblem& problem, const Tensor& x, const Tensor& w, const Tensor& y,
         const std::optional<Tensor>& bias = std::nullopt) {
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const PassArgs args{pass,
                      problem,
                      dtype_of(x),
                      operand(x),
                      operand(w),
                      operand(y),
                      bias ? bias->data_ptr() : nullptr,
                      bias ? bias->stride(0) : 0};
  STD_CUDA_CHECK(static_cast<cudaError_t>(launch_simple(args, stream)));
}

Tensor fprop(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, IntList stride,
             IntList padding, IntList dilation, int64_t groups) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  const Tensor output = allocate({p.N, p.K, p.P, p.Q}, input, suggests_channels_last(input));
  run(Pass::kFprop, p, input, weight, output, bias);
  return output;
}

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, IntList input_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last) {
  const ConvProblem p =
      check_dgrad(grad_output, weight, input_size, {stride, padding, dilation, groups});
  const Tensor grad_input = allocate(input_size, grad_output, channels_last);
  run(Pass::kDgrad, p, grad_input, weight, grad_output);
  return grad_input;
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, IntList weight_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last) {
  const ConvProblem p =
      check_wgrad(grad_output, input, weight_size, {stride, padding, dilation, groups});
  const Tensor grad_weight = allocate(weight_size, input, channels_last);
  run(Pass::kWgrad, p, input, grad_weight, grad_output);
  return grad_weight;
}

}  // namespace
}  // namespace grouped_conv::cuda

STABLE_TORCH_LIBRARY_IMPL(grouped_conv, CUDA, m) {
  m.impl("fprop", TORCH_BOX(&grouped_conv::cuda::fprop));
  m.impl("dgrad", TORCH_BOX(&grouped_conv::cuda::dgrad));
  m.impl("wgrad", TORCH_BOX(&grouped_conv::cuda::wgrad));
}
