// Tensors and attributes -> ConvProblem. The one place in C++ that validates; kernels assume.
// Messages follow ATen's wording, so that a user who searches for one finds the usual advice.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "problem.h"

namespace grouped_conv {

using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

inline std::string format_sizes(const int64_t* sizes, size_t n) {
  std::string text = "[";
  for (size_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::string format_sizes(const Tensor& t) {
  return format_sizes(t.sizes().data(), t.sizes().size());
}

// c10's is_channels_last_strides_2d: true for every tensor whose strides order it N, H, W, C, dense
// or not. Ambiguous shapes (C == 1 or H == W == 1) resolve as they do in ATen.
inline bool suggests_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  int64_t min = 0;
  if (strides[1] == 0) return false;
  for (const size_t d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < min) return false;
    if (d == 0 && min == strides[1]) return false;
    min = strides[d];
    if (sizes[d] > 1) min *= sizes[d];
  }
  return true;
}

struct ConvAttributes {
  const IntList& stride;
  const IntList& padding;
  const IntList& dilation;
  int64_t groups;
};

namespace detail {

inline void check_attributes(const ConvAttributes& a) {
  STD_TORCH_CHECK(a.stride.size() == 2 && a.padding.size() == 2 && a.dilation.size() == 2,
                  "grouped_conv: stride, padding and dilation must have two elements each");
  STD_TORCH_CHECK(a.groups > 0, "non-positive groups is not supported");
  STD_TORCH_CHECK(a.stride[0] > 0 && a.stride[1] > 0, "non-positive stride is not supported");
  STD_TORCH_CHECK(a.padding[0] >= 0 && a.padding[1] >= 0, "negative padding is not supported");
  STD_TORCH_CHECK(a.dilation[0] > 0 && a.dilation[1] > 0, "dilation should be greater than zero");
}

inline ConvProblem make_problem(const int64_t* x, const int64_t* w, const ConvAttributes& a) {
  STD_TORCH_CHECK(w[0] > 0 && w[1] > 0 && w[2] > 0 && w[3] > 0,
                  "grouped_conv: expected a non-empty weight, but got sizes ", format_sizes(w, 4));
  STD_TORCH_CHECK(x[0] >= 0 && x[2] >= 0 && x[3] >= 0, "grouped_conv: negative input size ",
                  format_sizes(x, 4));
  STD_TORCH_CHECK(w[0] % a.groups == 0, "Given groups=", a.groups, ", expected weight to be ",
                  "divisible by ", a.groups, " at dimension 0, but got weight of size ",
                  format_sizes(w, 4), " instead");
  STD_TORCH_CHECK(x[1] == w[1] * a.groups, "Given groups=", a.groups, ", weight of size ",
                  format_sizes(w, 4), ", expected input", format_sizes(x, 4), " to have ",
                  w[1] * a.groups, " channels, but got ", x[1], " channels instead");
  const ConvProblem p =
      ConvProblem::make(x[0], x[1], x[2], x[3], w[0], w[2], w[3], a.groups, a.padding[0],
                        a.padding[1], a.stride[0], a.stride[1], a.dilation[0], a.dilation[1]);
  STD_TORCH_CHECK(p.P > 0 && p.Q > 0, "Calculated padded input size per channel: (",
                  p.H + 2 * p.pad_h, " x ", p.W + 2 * p.pad_w, "). Kernel size: (",
                  p.dilation_h * (p.R - 1) + 1, " x ", p.dilation_w * (p.S - 1) + 1,
                  "). Kernel size can't be greater than actual input size");
  return p;
}

inline void check_rank(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4, "grouped_conv: expected ", name, " to have 4 dimensions, but got ",
                  t.dim(), " dimensions of size ", format_sizes(t));
}

inline void check_same_kind(const Tensor& a, const char* a_name, const Tensor& b,
                            const char* b_name) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), "grouped_conv: ", a_name, " and ", b_name,
                  " should have the same dtype");
  STD_TORCH_CHECK(a.device() == b.device(), "grouped_conv: expected ", a_name, " and ", b_name,
                  " to be on the same device");
}

inline void check_output_size(const Tensor& dy, const ConvProblem& p) {
  const int64_t expected[4] = {p.N, p.K, p.P, p.Q};
  const auto sizes = dy.sizes();
  STD_TORCH_CHECK(sizes[0] == p.N && sizes[1] == p.K && sizes[2] == p.P && sizes[3] == p.Q,
                  "grouped_conv: expected grad_output of size ", format_sizes(expected, 4),
                  ", but got ", format_sizes(dy));
}

// scale or shift, one number for each channel of the output.
inline void check_factor(const Tensor& x, const ConvProblem& p, const std::optional<Tensor>& t,
                         const char* name) {
  if (!t.has_value()) return;
  STD_TORCH_CHECK(t->scalar_type() == x.scalar_type() ||
                      t->scalar_type() == torch::headeronly::ScalarType::Float,
                  "grouped_conv: expected ", name, " of the input's dtype or float32");
  STD_TORCH_CHECK(t->device() == x.device(), "grouped_conv: expected input and ", name,
                  " to be on the same device");
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == p.K, "grouped_conv: expected ", name,
                  " to be 1-dimensional with ", p.K, " elements, but got size ", format_sizes(*t));
}

}  // namespace detail

inline ConvProblem check_fprop(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                               const ConvAttributes& a) {
  detail::check_rank(x, "input");
  detail::check_rank(w, "weight");
  detail::check_attributes(a);
  detail::check_same_kind(x, "input", w, "weight");
  const ConvProblem p = detail::make_problem(x.sizes().data(), w.sizes().data(), a);
  if (bias.has_value()) {
    detail::check_same_kind(x, "input", *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.K, "Given weight of size ",
                    format_sizes(w), ", expected bias to be 1-dimensional with ", p.K,
                    " elements, but got bias of size ", format_sizes(*bias), " instead");
  }
  return p;
}

// scale, shift and residual of fprop_affine, whose other arguments are those of fprop.
inline void check_epilogue(const Tensor& x, const ConvProblem& p,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                           const std::optional<Tensor>& residual) {
  detail::check_factor(x, p, scale, "scale");
  detail::check_factor(x, p, shift, "shift");
  if (!residual.has_value()) return;
  detail::check_same_kind(x, "input", *residual, "residual");
  const int64_t expected[4] = {p.N, p.K, p.P, p.Q};
  const auto sizes = residual->sizes();
  STD_TORCH_CHECK(residual->dim() == 4 && std::equal(expected, expected + 4, sizes.begin()),
                  "grouped_conv: expected residual of the output's size ",
                  format_sizes(expected, 4), ", but got ", format_sizes(*residual));
}

inline ConvProblem check_dgrad(const Tensor& dy, const Tensor& w, const IntList& input_size,
                               const ConvAttributes& a) {
  detail::check_rank(dy, "grad_output");
  detail::check_rank(w, "weight");
  detail::check_attributes(a);
  detail::check_same_kind(dy, "grad_output", w, "weight");
  STD_TORCH_CHECK(input_size.size() == 4, "grouped_conv: expected input_size to have 4 elements");
  const ConvProblem p = detail::make_problem(input_size.data(), w.sizes().data(), a);
  detail::check_output_size(dy, p);
  return p;
}

inline ConvProblem check_wgrad(const Tensor& dy, const Tensor& x, const IntList& weight_size,
                               const ConvAttributes& a) {
  detail::check_rank(dy, "grad_output");
  detail::check_rank(x, "input");
  detail::check_attributes(a);
  detail::check_same_kind(dy, "grad_output", x, "input");
  STD_TORCH_CHECK(weight_size.size() == 4, "grouped_conv: expected weight_size to have 4 elements");
  const ConvProblem p = detail::make_problem(x.sizes().data(), weight_size.data(), a);
  detail::check_output_size(dy, p);
  return p;
}

}  // namespace grouped_conv
