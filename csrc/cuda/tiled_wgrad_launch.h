// The arguments of the tiled weight-gradient kernels, and the two launches that make one pass.
// Plain C++ without CUDA: the launcher for the GPU and the emulator's driver use it.
#pragma once

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/tiled_wgrad_configs.h"
#include "cuda/wgrad_launch.h"
#include "problem.h"

namespace grouped_conv::cuda {

// Bytes from one element of an activation tensor to the next in each direction.
struct TiledWgradStrides {
  int64_t image;
  int row, column, channel;
};

// x and dy are dense, NHWC or NCHW; where slots are vectors, NHWC and aligned to 16 bytes.
struct TiledWgradArgs {
  const unsigned char* x;
  const unsigned char* dy;
  unsigned char* partials;  // float [splits][K][R][S][C/G]
  unsigned char* dw;
  TiledWgradStrides x_strides, dy_strides;
  int N, H, W, P, Q;
  int G, c_per_group, k_per_group;
  int R, S;
  int pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w;
  int step_n, step_p, step_q;  // from a pixel of a stage to that of the next stage

  bool channels_last;  // dw is [K, R, S, C/G] in memory, else [K, C/G, R, S]
  TiledWgradPlan plan;
  int reduce_slices;
};

inline TiledWgradStrides tiled_wgrad_strides(bool planar, int bytes, int64_t channels,
                                             int64_t height, int64_t width) {
  const int64_t image = bytes * channels * height * width;
  if (planar) return {image, int(bytes * width), bytes, int(bytes * height * width)};
  return {image, int(bytes * width * channels), int(bytes * channels), bytes};
}

inline TiledWgradArgs make_tiled_wgrad_args(const ConvProblem& p, const TiledWgradPlan& plan,
                                            const void* x, const void* dy, void* partials, void* dw,
                                            bool channels_last) {
  const int bytes = tiled_element_bytes(plan.math);
  const int pixels = kTiledWgradConfigs[plan.config].pixels(bytes);
  TiledWgradArgs args{};
  args.x = static_cast<const unsigned char*>(x);
  args.dy = static_cast<const unsigned char*>(dy);
  args.partials = static_cast<unsigned char*>(partials);
  args.dw = static_cast<unsigned char*>(dw);
  args.x_strides = tiled_wgrad_strides(plan.planar, bytes, p.C, p.H, p.W);
  args.dy_strides = tiled_wgrad_strides(plan.planar, bytes, p.K, p.P, p.Q);
  args.N = int(p.N);
  args.H = int(p.H);
  args.W = int(p.W);
  args.P = int(p.P);
  args.Q = int(p.Q);
  args.G = int(p.G);
  args.c_per_group = int(p.c_per_group());
  args.k_per_group = int(p.k_per_group());
  args.R = int(p.R);
  args.S = int(p.S);
  args.pad_h = int(p.pad_h);
  args.pad_w = int(p.pad_w);
  args.stride_h = int(p.stride_h);
  args.stride_w = int(p.stride_w);
  args.dilation_h = int(p.dilation_h);
  args.dilation_w = int(p.dilation_w);
  args.step_n = int(pixels / (p.P * p.Q));
  args.step_p = int(pixels / p.Q % p.P);
  args.step_q = int(pixels % p.Q);

  args.channels_last = channels_last;
  args.plan = plan;
  args.reduce_slices = wgrad_reduce_slices(plan.splits);
  return args;
}

inline WgradLaunch tiled_wgrad_launch(const TiledWgradPlan& plan) {
  const TiledWgradConfig& config = kTiledWgradConfigs[plan.config];
  return {plan.blocks(), config.threads(),
          config.shared_bytes(tiled_element_bytes(plan.math), plan.vector)};
}

inline int tiled_wgrad_elements(const TiledWgradArgs& args) {
  return args.G * args.k_per_group * args.R * args.S * args.c_per_group;
}

inline WgradLaunch tiled_wgrad_reduce_launch(const TiledWgradArgs& args) {
  return {ceil_div(tiled_wgrad_elements(args), kWgradReduceThreads / args.reduce_slices),
          kWgradReduceThreads, kWgradReduceThreads * int(sizeof(float))};
}

// Enqueues both kernels on a cudaStream_t; the result is a cudaError_t. The problem is not one
// of tiled_wgrad_refusal, the workspace has plan.workspace_bytes(problem).
int launch_tiled_wgrad(const TiledWgradArgs& args, void* stream);

// The same for one way to compute (tiled_wgrad_launch.cuh, instantiated in a .cu file for each).
template <TiledMath kMath>
int launch_tiled_wgrad_kernels(const TiledWgradArgs& args, void* stream);

}  // namespace grouped_conv::cuda
