// The ops for dispatch key CPU: validate, make tensors dense, allocate, choose the kernel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "kernels.h"

namespace grouped_conv::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

DType to_dtype(ScalarType t) {
  switch (t) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false,
                      "grouped_conv: the CPU kernels take float32, bfloat16, float16 and "
                      "float64 tensors");
  }
}

MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

Tensor dense(const Tensor& t, bool channels_last) {
  return torch::stable::contiguous(t, memory_format(channels_last));
}

Tensor allocate(const Tensor& like, const int64_t (&sizes)[4], bool channels_last) {
  return torch::stable::empty({sizes, 4}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, memory_format(channels_last));
}

// Whether a weight is dense [K, R, S, C/G] and not dense [K, C/G, R, S] at once.
bool lies_channels_last(const Tensor& w) {
  const auto size = w.sizes(), stride = w.strides();
  return !w.is_contiguous() && stride[1] == 1 && stride[3] == size[1] &&
         stride[2] == size[3] * size[1] && stride[0] == size[2] * size[3] * size[1];
}

// A weight as the kernel of a problem reads it: the direct ones take it in either order.
Tensor readable_weight(const Tensor& w, const ConvProblem& p) {
  const bool direct = direct_refusal(p, to_dtype(w.scalar_type())) == nullptr;
  return direct && lies_channels_last(w) ? w : torch::stable::contiguous(w);
}

void run_parallel(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, body, context));
}

// The memory of a tensor that a pass writes, or only reads: PyTorch copies a lazy clone that is
// asked for memory to write.
void* memory(const Tensor& t, bool writes) {
  return writes ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
}

void launch(Pass pass, const ConvProblem& p, ScalarType dtype, bool channels_last, const Tensor& x,
            const Tensor& w, const Tensor& y, const void* bias, const Epilogue& epilogue = {},
            const RowMoments& moments = {}, const Statistics& wanted = {}) {
  if (p.N == 0) {
    if (pass == Pass::kWgrad) torch::stable::zero_(const_cast<Tensor&>(w));
    return;
  }
  uint32_t threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  const PassArgs args{pass,
                      p,
                      to_dtype(dtype),
                      channels_last ? Layout::kNHWC : Layout::kNCHW,
                      memory(x, pass == Pass::kDgrad),
                      memory(w, pass == Pass::kWgrad),
                      memory(y, pass == Pass::kFprop),
                      bias,
                      {run_parallel, threads},
                      epilogue,
                      lies_channels_last(w) ? Layout::kNHWC : Layout::kNCHW,
                      moments,
                      wanted};
  if (direct_refusal(p, args.dtype) == nullptr) {
    isa_kernels().direct(args);
  } else {
    simple(args);
    if (moments.mean != nullptr) isa_kernels().moments(args);
  }
  if (wanted.sum != nullptr) statistics(args);
}

// scale or shift in the precision of the sums.
std::optional<Tensor> factor(const std::optional<Tensor>& t, ScalarType activation) {
  if (!t.has_value()) return std::nullopt;
  const ScalarType wide = activation == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(t->scalar_type() == wide ? *t : torch::stable::to(*t, wide));
}

const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

Tensor fprop_affine(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                    const std::optional<Tensor>& residual, bool relu, const IntList& stride,
                    const IntList& padding, const IntList& dilation, int64_t groups,
                    bool /*allow_tf32*/) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  check_epilogue(input, p, scale, shift, residual);
  to_dtype(input.scalar_type());
  const bool channels_last = suggests_channels_last(input);
  const Tensor x = dense(input, channels_last);
  const Tensor w = readable_weight(weight, p);
  std::optional<Tensor> b, r;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  if (residual.has_value()) r = dense(*residual, channels_last);
  const std::optional<Tensor> scales = factor(scale, input.scalar_type());
  const std::optional<Tensor> shifts = factor(shift, input.scalar_type());
  Tensor y = allocate(input, {p.N, p.K, p.P, p.Q}, channels_last);
  launch(Pass::kFprop, p, x.scalar_type(), channels_last, x, w, y, data_or_null(b),
         {data_or_null(scales), data_or_null(shifts), data_or_null(r), relu});
  return y;
}

Tensor fprop(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
             bool allow_tf32) {
  return fprop_affine(input, weight, bias, std::nullopt, std::nullopt, std::nullopt, false, stride,
                      padding, dilation, groups, allow_tf32);
}

std::tuple<Tensor, Tensor, Tensor> fprop_stats(const Tensor& input, const Tensor& weight,
                                               std::optional<Tensor> bias, IntList stride,
                                               IntList padding, IntList dilation, int64_t groups,
                                               bool /*allow_tf32*/) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  const bool wide = to_dtype(input.scalar_type()) == DType::kFloat64;
  const bool channels_last = suggests_channels_last(input);
  const Tensor x = dense(input, channels_last);
  const Tensor w = readable_weight(weight, p);
  std::optional<Tensor> b;
  if (bias.has_value()) b = torch::stable::contiguous(*bias);
  Tensor y = allocate(input, {p.N, p.K, p.P, p.Q}, channels_last);
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  Tensor sum = torch::stable::empty({{p.K}}, type, std::nullopt, input.device());
  Tensor squares = torch::stable::empty({{p.K}}, type, std::nullopt, input.device());
  if (p.N == 0) {
    torch::stable::zero_(sum);
    torch::stable::zero_(squares);
    return {y, sum, squares};
  }
  const int64_t rows = wide ? 0 : p.N * p.P * p.K;
  Tensor workspace =
      torch::stable::empty({{2 * rows}}, ScalarType::Float, std::nullopt, x.device());
  RowMoments moments;
  if (!wide) {
    moments.mean = static_cast<float*>(workspace.mutable_data_ptr());
    moments.squares = moments.mean + rows;
  }
  launch(Pass::kFprop, p, x.scalar_type(), channels_last, x, w, y, data_or_null(b), {}, moments,
         {sum.mutable_data_ptr(), squares.mutable_data_ptr()});
  return {y, sum, squares};
}

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, IntList input_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last,
             bool /*allow_tf32*/) {
  const ConvProblem p =
      check_dgrad(grad_output, weight, input_size, {stride, padding, dilation, groups});
  to_dtype(grad_output.scalar_type());
  const Tensor dy = dense(grad_output, channels_last);
  const Tensor w = readable_weight(weight, p);
  Tensor dx = allocate(grad_output, {p.N, p.C, p.H, p.W}, channels_last);
  launch(Pass::kDgrad, p, dy.scalar_type(), channels_last, dx, w, dy, nullptr);
  return dx;
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, IntList weight_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last,
             bool /*allow_tf32*/) {
  const ConvProblem p =
      check_wgrad(grad_output, input, weight_size, {stride, padding, dilation, groups});
  to_dtype(input.scalar_type());
  // The activations keep the layout of input; channels_last speaks of dw.
  const bool nhwc = suggests_channels_last(input);
  const Tensor x = dense(input, nhwc);
  const Tensor dy = dense(grad_output, nhwc);
  const bool in_place = channels_last && direct_refusal(p, to_dtype(x.scalar_type())) == nullptr;
  Tensor dw = allocate(input, {p.K, p.c_per_group(), p.R, p.S}, in_place);
  launch(Pass::kWgrad, p, x.scalar_type(), nhwc, x, dw, dy, nullptr);
  if (channels_last == in_place) return dw;
  // A copy, not contiguous(): that keeps other strides where an extent is 1.
  Tensor out = allocate(input, {p.K, p.c_per_group(), p.R, p.S}, true);
  torch::stable::copy_(out, dw);
  return out;
}

}  // namespace
}  // namespace grouped_conv::cpu

STABLE_TORCH_LIBRARY_IMPL(grouped_conv, CPU, m) {
  m.impl("fprop", TORCH_BOX(&grouped_conv::cpu::fprop));
  m.impl("fprop_affine", TORCH_BOX(&grouped_conv::cpu::fprop_affine));
  m.impl("fprop_stats", TORCH_BOX(&grouped_conv::cpu::fprop_stats));
  m.impl("dgrad", TORCH_BOX(&grouped_conv::cpu::dgrad));
  m.impl("wgrad", TORCH_BOX(&grouped_conv::cpu::wgrad));
}
