// Entry points of the CUDA kernels: raw pointers, no torch and no CUDA headers.
#pragma once

#include <cstdint>

#include "problem.h"

namespace grouped_conv::cuda {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

// A 4-D tensor; strides are in elements and may be anything.
struct Operand {
  void* data;
  int64_t strides[4];
};

// What fprop does to its sums, bias included, before they are rounded and stored:
// y = act(scale[k] * sum + shift[k] + residual). A null pointer stands for a scale of 1, a shift of
// 0 or no residual. scale and shift are dense [K], float32, or float64 where the tensors are; the
// residual lies exactly as y does.
struct Epilogue {
  const void* scale;
  const void* shift;
  const void* residual;
  bool relu;

  bool empty() const {
    return scale == nullptr && shift == nullptr && residual == nullptr && !relu;
  }
};

// Of each channel of y, as it was rounded: the sum, and the sum of the squared deviations from the
// mean. [K] both, float32, or float64 where y is; null where they are not wanted.
struct Statistics {
  void* sum;
  void* squares;
};

// One pass. `pass` says which of x, w and y is written; the other two are read. bias (fprop only)
// may be null. Accumulation is in float32 (float64 for float64).
struct PassArgs {
  Pass pass;
  ConvProblem problem;
  DType dtype;
  Operand x;
  Operand w;
  Operand y;
  const void* bias;
  int64_t bias_stride;
  Epilogue epilogue = {};  // of fprop, by the kernels that take one
  // Of fprop, by the kernels that take them, where there is no epilogue.
  Statistics statistics = {};
  bool allow_tf32 = false;  // of float32
};

// Enqueue on a cudaStream_t; the result is a cudaError_t. Any kernel size, stride, padding,
// dilation and strides of the tensors.
int launch_simple(const PassArgs& args, void* stream);

// Enqueue, after an fprop that has done without them: the epilogue on y in place, rounded once
// more; the statistics of y. y may lie in any order of its dimensions.
int launch_epilogue(const PassArgs& args, void* stream);
int launch_simple_statistics(const PassArgs& args, void* stream);

struct FastPlan;  // heuristics.h

// Enqueue the row-streaming or the tiled kernels, for a pass that they do not refuse. x, y and the
// residual, which only the tiled ones take, are dense in the layout of the plan, w is dense in
// either order of its last three dimensions, and all pointers are multiples of 16 bytes but that of
// the bias. The workspace has the plan's bytes.
int launch_fast(const PassArgs& args, const FastPlan& plan, void* workspace, void* stream);

}  // namespace grouped_conv::cuda
