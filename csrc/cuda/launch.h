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
};

// Enqueue on a cudaStream_t; the result is a cudaError_t. Any kernel size, stride, padding,
// dilation and strides of the tensors.
int launch_simple(const PassArgs& args, void* stream);

struct FastPlan;  // heuristics.h

// Enqueue the row-streaming kernels, for a pass that they do not refuse. x and y are dense in the
// layout of the plan, w is dense in either order of its last three dimensions, dtype is 16 bits
// wide, and all pointers are multiples of 16 bytes but that of the bias. The workspace has the
// plan's bytes.
int launch_fast(const PassArgs& args, const FastPlan& plan, void* workspace, void* stream);

}  // namespace grouped_conv::cuda
