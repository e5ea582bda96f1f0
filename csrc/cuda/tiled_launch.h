// From a problem to the arguments and the shape of the launches of the tiled kernels: plain C++,
// for the launcher and for the emulator.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/tiled_args.h"
#include "cuda/tiled_configs.h"

namespace grouped_conv::cuda {

inline TiledAxis tiled_axis(bool fprop, int64_t x, int64_t y, int64_t taps, int64_t padding,
                            int64_t stride, int64_t dilation) {
  if (fprop) {
    return {int(x), int(y), int(taps),   int(-padding), int(dilation),
            1,      1,      int(stride), int(dilation)};
  }
  // The taps of a phase lie lcm(stride, dilation) apart, which is so many pixels of y.
  const int64_t common = std::gcd(stride, dilation);
  return {int(y),
          int(x),
          int(taps),
          int(padding),
          int(dilation),
          int(stride),
          int(stride / common),
          1,
          int(-dilation / common)};
}

// Of fprop or dgrad. The plan is one of the problem, and the workspace has its bytes.
inline TiledArgs make_tiled_args(const PassArgs& pass, const TiledPlan& plan, void* workspace) {
  const ConvProblem& p = pass.problem;
  const bool fprop = pass.pass == Pass::kFprop;
  const TiledShape shape(pass.pass, p);
  const Operand& input = fprop ? pass.x : pass.y;
  const Operand& output = fprop ? pass.y : pass.x;
  TiledArgs args{};
  args.input = input.data;
  args.weight = pass.w.data;
  args.packed = workspace;
  args.output = output.data;
  args.bias = fprop ? pass.bias : nullptr;
  args.bias_stride = pass.bias_stride;
  args.epilogue = pass.epilogue;
  args.h = tiled_axis(fprop, p.H, p.P, p.R, p.pad_h, p.stride_h, p.dilation_h);
  args.w = tiled_axis(fprop, p.W, p.Q, p.S, p.pad_w, p.stride_w, p.dilation_w);
  const int64_t (&w)[4] = pass.w.strides;
  args.order = {p.k_per_group() * w[0], fprop ? w[0] : w[1], fprop ? w[1] : w[0], w[2], w[3]};
  std::copy(input.strides, input.strides + 4, args.input_strides);
  std::copy(output.strides, output.strides + 4, args.output_strides);
  const int64_t bytes = tiled_element_bytes(plan.math);
  args.unit_step = kUnitBytes * input.strides[1];
  args.row_step = bytes * args.h.delta * input.strides[2];
  args.column_step = bytes * args.w.delta * input.strides[3];
  args.pixels = p.N * shape.rows * shape.columns;
  args.image = Divider(int(shape.rows * shape.columns));
  args.columns = Divider(int(shape.columns));
  args.output_units = Divider(int(plan.tile_channels * bytes / kUnitBytes));
  args.groups = int(p.G);
  args.in_channels = int(shape.in_channels);
  args.out_channels = int(shape.out_channels);
  args.tile_channels = plan.tile_channels;
  args.channel_tiles = plan.channel_tiles;
  args.channel_blocks = plan.channel_blocks;
  args.units = plan.units;
  args.chunks = plan.chunks;
  args.classes_w = plan.classes_w;
  args.classes = plan.classes_h * plan.classes_w;
  return args;
}

// Blocks of kTiledThreads threads that pack the weight, a unit each.
inline int64_t tiled_pack_blocks(const TiledPlan& plan) {
  return ceil_of(plan.packed_units, kTiledThreads);
}

// Enqueues the kernel that packs the weight into the workspace and the one that computes, on a
// cudaStream_t; the result is a cudaError_t.
int launch_tiled(const PassArgs& pass, const TiledPlan& plan, void* workspace, void* stream);

// The same for one way to compute (tiled_launch.cuh, instantiated in a .cu file for each).
template <TiledMath kMath>
int launch_tiled_kernels(const TiledArgs& args, const TiledPlan& plan, void* stream);

}  // namespace grouped_conv::cuda
