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
#include <string>
#include <tuple>

#include "checks.h"
#include "cuda/heuristics.h"
#include "cuda/launch.h"
#include "cuda/preferences.h"
#include "cuda/rowstream_launch.h"

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

bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

// Whether a weight is dense [K, R, S, C/G] or [K, C/G, R, S].
bool is_dense_weight(const Tensor& w) {
  const auto size = w.sizes(), stride = w.strides();
  const bool krsc = stride[1] == 1 && stride[3] == size[1] && stride[2] == size[3] * size[1] &&
                    stride[0] == size[2] * size[3] * size[1];
  return krsc || w.is_contiguous();
}

// An operand as these kernels read it: the same values, dense and aligned.
Tensor readable(const Tensor& t, MemoryFormat format) {
  Tensor dense = torch::stable::contiguous(t, format);
  if (is_aligned(dense)) return dense;
  return torch::stable::clone(dense);
}

Tensor readable_weight(const Tensor& w) {
  return is_dense_weight(w) && is_aligned(w) ? w : readable(w, MemoryFormat::Contiguous);
}

// scale or shift in the precision of the sums.
std::optional<Tensor> factor(const std::optional<Tensor>& t, DType dtype) {
  if (!t.has_value()) return std::nullopt;
  const ScalarType wide = dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(t->scalar_type() == wide ? *t : torch::stable::to(*t, wide));
}

const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

Preferences& preferences() {
  static Preferences all;
  return all;
}

// Compute the one of x, w and y that the pass writes; and of fprop the epilogue, or the statistics.
void run(Pass pass, const ConvProblem& problem, Tensor x, Tensor w, Tensor y, bool allow_tf32,
         const std::optional<Tensor>& bias = std::nullopt, const Epilogue& epilogue = {},
         const Statistics& statistics = {}) {
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const DType dtype = dtype_of(x);
  const bool channels_last = suggests_channels_last(x);
  const Layout layout = channels_last ? Layout::kChannelsLast : Layout::kPlanar;
  const bool rowstream = rowstream_refusal(pass, problem, dtype) == nullptr;
  const bool tiled = !rowstream && any_tiled_refusal(pass, problem, dtype) == nullptr;
  const bool fast = rowstream || tiled;
  if (fast) {
    // What the pass writes is fresh, hence dense and aligned already.
    const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    if (pass != Pass::kDgrad) x = readable(x, format);
    if (pass != Pass::kWgrad) w = readable_weight(w);
    if (pass != Pass::kFprop) y = readable(y, format);
  }
  PassArgs args{pass,
                problem,
                dtype,
                operand(x),
                operand(w),
                operand(y),
                bias ? bias->data_ptr() : nullptr,
                bias ? bias->stride(0) : 0,
                epilogue,
                statistics,
                allow_tf32};
  if (!fast) {
    STD_CUDA_CHECK(static_cast<cudaError_t>(launch_simple(args, stream)));
    if (statistics.sum != nullptr) {
      STD_CUDA_CHECK(static_cast<cudaError_t>(launch_simple_statistics(args, stream)));
    }
    return;
  }
  // What a kernel does not do itself is done to y in a pass of its own: the tiled kernels count
  // nothing, those for NCHW neither count nor apply an epilogue.
  Epilogue later{};
  const bool counts_later = (tiled || layout == Layout::kPlanar) && statistics.sum != nullptr;
  if (tiled) {
    args.statistics = {};
  } else if (layout == Layout::kPlanar) {
    later = args.epilogue;
    args.epilogue = {};
    args.statistics = {};
  }
  DeviceTraits traits{};
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&traits.sm_count, cudaDevAttrMultiProcessorCount, device));
  const FastPlan plan =
      tiled ? plan_fast_tiled(pass, problem, tiled_math(dtype, allow_tf32), traits, layout)
            : plan_fast(pass, problem, traits, layout, tail_of(args),
                        preferences().get(device, pass, problem));
  // The allocator hands memory out again in the order of the stream: freeing it here is safe.
  std::optional<Tensor> workspace;
  if (plan.workspace_bytes > 0) {
    workspace =
        torch::stable::empty({{plan.workspace_bytes}}, ScalarType::Byte, std::nullopt, x.device());
  }
  void* scratch = workspace ? workspace->data_ptr() : nullptr;
  STD_CUDA_CHECK(static_cast<cudaError_t>(launch_fast(args, plan, scratch, stream)));
  if (!later.empty()) {
    args.epilogue = later;
    STD_CUDA_CHECK(static_cast<cudaError_t>(launch_epilogue(args, stream)));
  }
  if (counts_later) {
    args.statistics = statistics;
    STD_CUDA_CHECK(static_cast<cudaError_t>(launch_simple_statistics(args, stream)));
  }
}

Tensor fprop(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool allow_tf32) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  const Tensor output = allocate({p.N, p.K, p.P, p.Q}, input, suggests_channels_last(input));
  run(Pass::kFprop, p, input, weight, output, allow_tf32, bias);
  return output;
}

Tensor fprop_affine(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias,
                    std::optional<Tensor> scale, std::optional<Tensor> shift,
                    std::optional<Tensor> residual, bool relu, IntList stride, IntList padding,
                    IntList dilation, int64_t groups, bool allow_tf32) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  check_epilogue(input, p, scale, shift, residual);
  const bool channels_last = suggests_channels_last(input);
  const Tensor output = allocate({p.N, p.K, p.P, p.Q}, input, channels_last);
  const DType dtype = dtype_of(input);
  const std::optional<Tensor> scales = factor(scale, dtype), shifts = factor(shift, dtype);
  std::optional<Tensor> r;
  if (residual.has_value()) {
    r = readable(*residual, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  }
  run(Pass::kFprop, p, input, weight, output, allow_tf32, bias,
      {data_or_null(scales), data_or_null(shifts), data_or_null(r), relu});
  return output;
}

std::tuple<Tensor, Tensor, Tensor> fprop_stats(const Tensor& input, const Tensor& weight,
                                               std::optional<Tensor> bias, IntList stride,
                                               IntList padding, IntList dilation, int64_t groups,
                                               bool allow_tf32) {
  const ConvProblem p = check_fprop(input, weight, bias, {stride, padding, dilation, groups});
  const Tensor output = allocate({p.N, p.K, p.P, p.Q}, input, suggests_channels_last(input));
  const ScalarType wide =
      dtype_of(input) == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  Tensor sum = torch::stable::empty({{p.K}}, wide, std::nullopt, input.device());
  Tensor squares = torch::stable::empty({{p.K}}, wide, std::nullopt, input.device());
  run(Pass::kFprop, p, input, weight, output, allow_tf32, bias, {},
      {sum.mutable_data_ptr(), squares.mutable_data_ptr()});
  return {output, sum, squares};
}

Tensor dgrad(const Tensor& grad_output, const Tensor& weight, IntList input_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last,
             bool allow_tf32) {
  const ConvProblem p =
      check_dgrad(grad_output, weight, input_size, {stride, padding, dilation, groups});
  const Tensor grad_input = allocate(input_size, grad_output, channels_last);
  run(Pass::kDgrad, p, grad_input, weight, grad_output, allow_tf32);
  return grad_input;
}

Tensor wgrad(const Tensor& grad_output, const Tensor& input, IntList weight_size, IntList stride,
             IntList padding, IntList dilation, int64_t groups, bool channels_last,
             bool allow_tf32) {
  const ConvProblem p =
      check_wgrad(grad_output, input, weight_size, {stride, padding, dilation, groups});
  const Tensor grad_weight = allocate(weight_size, input, channels_last);
  run(Pass::kWgrad, p, input, grad_weight, grad_output, allow_tf32);
  return grad_weight;
}

}  // namespace
}  // namespace grouped_conv::cuda

// For grouped_conv/backends/native.py, through ctypes: from now on a configuration computes a pass
// (0 fprop, 1 dgrad, 2 wgrad) of a problem (extents in the order of ConvProblem::make) on a device,
// if it can; an empty name leaves it to the heuristics.
extern "C" __attribute__((visibility("default"))) void grouped_conv_prefer(int device, int pass,
                                                                           const int64_t* e,
                                                                           const char* name) {
  using grouped_conv::ConvProblem;
  const ConvProblem p = ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8],
                                          e[9], e[10], e[11], e[12], e[13]);
  grouped_conv::cuda::preferences().set(device, grouped_conv::Pass(pass), p, name);
}

STABLE_TORCH_LIBRARY_IMPL(grouped_conv, CUDA, m) {
  m.impl("fprop", TORCH_BOX(&grouped_conv::cuda::fprop));
  m.impl("fprop_affine", TORCH_BOX(&grouped_conv::cuda::fprop_affine));
  m.impl("fprop_stats", TORCH_BOX(&grouped_conv::cuda::fprop_stats));
  m.impl("dgrad", TORCH_BOX(&grouped_conv::cuda::dgrad));
  m.impl("wgrad", TORCH_BOX(&grouped_conv::cuda::wgrad));
}
