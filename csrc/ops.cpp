// The one place with op schemas. Kernels register per dispatch key (cpu/ops_cpu.cpp,
// cuda/ops_cuda.cpp); fake kernels, autograd and autocast are in grouped_conv/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(grouped_conv, m) {
  // allow_tf32: whether CUDA kernels may cut float32 factors to TF32. It is part of a call, not
  // read where a kernel is chosen, so that a graph that was captured or compiled keeps its
  // precision.
  //
  // y [N, K, P, Q]; channels_last exactly when the strides of input are.
  m.def(
      "fprop(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, bool allow_tf32=False) -> Tensor");
  // y = act(scale[k] * (fprop + bias[k]) + shift[k] + residual), act the maximum with zero if relu.
  // scale and shift are [K], of the input's dtype or float32; residual is like y.
  m.def(
      "fprop_affine(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "Tensor? residual, bool relu, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
      "SymInt groups, bool allow_tf32=False) -> Tensor");
  // fprop, and of each channel of y, as it was rounded, the sum and the sum of the squared
  // deviations from the mean: [K], float32 (float64 of float64). Deterministic.
  m.def(
      "fprop_stats(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, bool allow_tf32=False) "
      "-> (Tensor output, Tensor sum, Tensor squares)");
  // Batch normalization of y by its own statistics, as fprop_stats returns them; [K] all of them.
  m.def(
      "normalize(Tensor input, Tensor sum, Tensor squares, Tensor? weight, Tensor? bias, "
      "float eps) -> Tensor");
  // dx [N, C, H, W], in the memory format that channels_last states.
  m.def(
      "dgrad(Tensor grad_output, Tensor weight, SymInt[] input_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last, "
      "bool allow_tf32=False) -> Tensor");
  // dw [K, C/G, R, S], in the memory format that channels_last states.
  m.def(
      "wgrad(Tensor grad_output, Tensor input, SymInt[] weight_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool channels_last, "
      "bool allow_tf32=False) -> Tensor");
}
