// Raw-pointer entry points of the CPU kernels. No torch here: tests/cpp runs them by themselves.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace grouped_conv::cpu {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int64_t item_size(DType t) {
  return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2;
}

// Where the work runs. `run` calls body(begin, end, context) over a partition of [0, count); a
// kernel's result does not depend on the partition.
struct Parallel {
  void (*run)(int64_t count, void (*body)(int64_t begin, int64_t end, void* context),
              void* context);
  int64_t threads;
};

// What fprop does to its sums before they are rounded and stored:
//
//   y = act(scale[k] * sum + shift[k] + residual)
//
// in the precision of the sums, with act the maximum with zero or nothing. A null pointer stands
// for a scale of 1, a shift of 0 or no residual. scale and shift are float32, or float64 where the
// tensors are; the residual has y's type, shape and layout, and is dense.
struct Epilogue {
  const void* scale = nullptr;
  const void* shift = nullptr;
  const void* residual = nullptr;
  bool relu = false;

  bool empty() const {
    return scale == nullptr && shift == nullptr && residual == nullptr && !relu;
  }
};

// Mean, and sum of the squared deviations from it, of each channel over each row of y: [N, P, K]
// both, or null where they are not wanted. What fprop writes for statistics().
struct RowMoments {
  float* mean = nullptr;
  float* squares = nullptr;
};

// Sum, and sum of the squared deviations from the mean, of each channel of y: [K] both, float32 or,
// where y is, float64.
struct Statistics {
  void* sum = nullptr;
  void* squares = nullptr;
};

// One pass over dense tensors. `pass` says which of x, w and y is written; the other two are read.
// x and y are dense in `layout`; w is dense [K, C/G, R, S] (w_layout kNCHW) or, for the direct
// kernels only, [K, R, S, C/G] (kNHWC). bias (fprop only) may be null, and the epilogue of the
// other passes is empty. The direct kernels accumulate in float32, the simple ones in float64.
struct PassArgs {
  Pass pass;
  ConvProblem problem;
  DType dtype;
  Layout layout;
  void* x;
  void* w;
  void* y;
  const void* bias;
  Parallel parallel;
  Epilogue epilogue = {};
  Layout w_layout = Layout::kNCHW;
  RowMoments moments = {};     // of fprop, by the direct kernels
  Statistics statistics = {};  // of fprop, by statistics() alone
};

using PassFunction = void (*)(const PassArgs&);

// The direct 3x3 kernels of one instruction set.
struct IsaKernels {
  const char* name;
  bool (*available)();
  PassFunction direct;
  // args.moments of a y that is complete, whoever has computed it; not of float64.
  PassFunction moments;
};

// Best instruction set of this processor, capped by GROUPED_CONV_CPU_ISA (portable, avx2, avx512,
// avx512bf16) as it stood at the first call.
const IsaKernels& isa_kernels();

// Every instruction set that was compiled, best first; `count` receives how many.
const IsaKernels* const* compiled_isa_kernels(int* count);

// Why the direct kernels do not take a pass, or null if they do.
const char* direct_refusal(const ConvProblem& p, DType dtype);

// Whether the direct kernels compute a pass that they take by Winograd's algorithm. bfloat16 with
// instructions of its own is always direct.
bool uses_winograd(const PassArgs& args);

// Any kernel size, stride, padding and dilation, any dtype: plain loops.
void simple(const PassArgs& args);

// args.statistics of a y that is complete, from args.moments; of float64 from y itself. The sums
// are float64, in a fixed order.
void statistics(const PassArgs& args);

}  // namespace grouped_conv::cpu
