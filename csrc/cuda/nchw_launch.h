// From a problem to the arguments and the shape of a launch of the NCHW kernels: plain C++, for the
// launcher and for the emulator.
#pragma once

#include "cuda/launch.h"
#include "cuda/nchw_args.h"
#include "cuda/nchw_configs.h"
#include "cuda/rowstream_launch.h"

namespace grouped_conv::cuda {

inline RowstreamLaunch nchw_launch(const NchwPlan& plan) {
  return {plan.tiles.blocks(), kNchwConfigs[plan.tiles.config].threads(), plan.shared_bytes()};
}

// Of fprop or dgrad. x and y must be dense NCHW and w dense, KRSC or KCRS; the plan is one of the
// problem.
inline NchwArgs make_nchw_args(const PassArgs& pass, const NchwPlan& plan) {
  const int weight_row = kNchwConfigs[plan.tiles.config].weight_row_bytes();
  return {make_rowstream_args(pass, plan.tiles, weight_row), plan.input, plan.output};
}

// Enqueues the kernel on a cudaStream_t; the result is a cudaError_t.
int launch_nchw(const PassArgs& pass, const NchwPlan& plan, void* stream);

// The same for one element type, Float16 or BFloat16 (nchw_launch.cuh, instantiated in a .cu file
// for each).
template <typename T>
int launch_nchw_kernel(const NchwArgs& args, const NchwPlan& plan, void* stream);

}  // namespace grouped_conv::cuda
