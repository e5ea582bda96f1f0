// The arguments of the weight-gradient kernels, and the two launches that make one pass. Plain C++
// without CUDA: the launcher for the GPU and the emulator's driver use it.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/wgrad_configs.h"
#include "problem.h"

namespace grouped_conv::cuda {

// Tensors are NHWC and dense; a pixel has C channels in x and in dy. Pointers are aligned to 16
// bytes.
struct WgradArgs {
  const unsigned char* x;
  const unsigned char* dy;
  unsigned char* partials;  // float [splits][the elements of dw, in its order]
  unsigned char* dw;
  int N, C, H, W, P, Q;
  int pad_h, pad_w;
  int stride;
  int c_per_group;
  bool channels_last;  // dw is [K, R, S, C/G] in memory, else [K, C/G, R, S]
  WgradPlan plan;
  int reduce_slices;
};

struct WgradLaunch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

inline WgradArgs make_wgrad_args(const ConvProblem& p, const WgradPlan& plan, const void* x,
                                 const void* dy, void* partials, void* dw, bool channels_last) {
  WgradArgs args{};
  args.x = static_cast<const unsigned char*>(x);
  args.dy = static_cast<const unsigned char*>(dy);
  args.partials = static_cast<unsigned char*>(partials);
  args.dw = static_cast<unsigned char*>(dw);
  args.N = int(p.N);
  args.C = int(p.C);
  args.H = int(p.H);
  args.W = int(p.W);
  args.P = int(p.P);
  args.Q = int(p.Q);
  args.pad_h = int(p.pad_h);
  args.pad_w = int(p.pad_w);
  args.stride = int(p.stride_h);
  args.c_per_group = int(p.c_per_group());
  args.channels_last = channels_last;
  args.plan = plan;
  args.reduce_slices = wgrad_reduce_slices(plan.splits);
  return args;
}

constexpr WgradLaunch wgrad_rowstream_launch(const WgradPlan& plan) {
  const WgradConfig& config = kWgradConfigs[plan.config];
  return {plan.blocks(), config.threads(), config.shared_bytes()};
}

inline WgradLaunch wgrad_reduce_launch(const WgradArgs& args) {
  const int elements = 4 * kWgradReduceThreads / args.reduce_slices;
  return {ceil_div(int64_t(args.C) * 9 * args.c_per_group, elements), kWgradReduceThreads,
          kWgradReduceThreads * 4 * int(sizeof(float))};
}

// Enqueues both kernels on a cudaStream_t; the result is a cudaError_t. The problem is one that the
// plan's configuration supports, the workspace has plan.workspace_bytes(problem).
int launch_wgrad(const ConvProblem& problem, DType dtype, const WgradPlan& plan, const void* x,
                 const void* dy, void* workspace, void* dw, bool channels_last, void* stream);

// The same for one element type, Float16 or BFloat16 (wgrad_launch.cuh, instantiated in a .cu file
// for each).
template <typename T>
int launch_wgrad_kernels(const WgradArgs& args, void* stream);

// The second kernel alone, which adds up the partial sums of any first one.
template <typename T>
int launch_wgrad_reduce(const WgradArgs& args, void* stream);

}  // namespace grouped_conv::cuda
