// From a problem to the arguments and the shape of a row-streaming launch: plain C++, for the
// launcher and for the emulator.
#pragma once

#include "cuda/configs.h"
#include "cuda/launch.h"
#include "cuda/rowstream_args.h"

namespace grouped_conv::cuda {

struct RowstreamLaunch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

inline RowstreamLaunch rowstream_launch(const RowstreamPlan& plan) {
  const RowstreamConfig& config = kRowstreamConfigs[plan.config];
  return {plan.blocks(), config.threads(), config.shared_bytes()};
}

// Of fprop or dgrad. x and y must be dense NHWC and w dense, KRSC or KCRS; the plan is one of the
// problem. In shared memory an output channel's weights take weight_row_bytes.
inline RowstreamArgs make_rowstream_args(const PassArgs& pass, const RowstreamPlan& plan,
                                         int weight_row_bytes) {
  const ConvProblem& p = pass.problem;
  const bool fprop = pass.pass == Pass::kFprop;
  const bool reversed = !fprop && p.stride_h == 1;
  const bool krsc = pass.w.strides[1] == 1 && p.c_per_group() > 1;
  RowstreamArgs args{};
  args.input = fprop ? pass.x.data : pass.y.data;
  args.weight = pass.w.data;
  args.bias = fprop ? pass.bias : nullptr;
  args.output = fprop ? pass.y.data : pass.x.data;
  args.bias_stride = pass.bias_stride;
  args.batch = int(p.N);
  args.channels = int(p.C);
  args.input_h = int(fprop ? p.H : p.P);
  args.input_w = int(fprop ? p.W : p.Q);
  args.output_h = int(fprop ? p.P : p.H);
  args.output_w = int(fprop ? p.Q : p.W);
  args.pad_h = int(reversed ? 2 - p.pad_h : p.pad_h);
  args.pad_w = int(reversed ? 2 - p.pad_w : p.pad_w);
  args.input_row_bytes = 2 * int64_t(args.input_w) * args.channels;
  args.output_row_bytes = 2 * int64_t(args.output_w) * args.channels;
  args.input_tile_bytes = plan.images * args.input_h * args.input_row_bytes;
  args.output_tile_bytes = plan.images * args.output_h * args.output_row_bytes;
  const int c = int(p.c_per_group());
  const int shared_row = weight_row_bytes / 2;
  args.order = weight_order(pass.pass, int(p.stride_h), c, krsc, 9 * c);
  args.shared_order = weight_order(pass.pass, int(p.stride_h), c, krsc, shared_row);
  args.plan = plan;
  args.epilogue = pass.epilogue;
  return args;
}

inline RowstreamArgs make_rowstream_args(const PassArgs& pass, const RowstreamPlan& plan) {
  return make_rowstream_args(pass, plan, kRowstreamConfigs[plan.config].weight_row_bytes());
}

inline Tail tail_of(const PassArgs& pass) {
  if (pass.statistics.sum != nullptr) return Tail::kStatistics;
  if (pass.epilogue.residual != nullptr) return Tail::kResidual;
  return pass.epilogue.empty() ? Tail::kNone : Tail::kAffine;
}

// Sets of blocks that have the same pixels.
inline int statistics_rows_of(const RowstreamPlan& plan) {
  return int(plan.blocks() / plan.channel_blocks);
}

// Of the second launch of Tail::kStatistics, which reads what the first one has put into
// args.statistics.
inline StatisticsArgs make_statistics_args(const PassArgs& pass, const StatisticsRows& partial) {
  const ConvProblem& p = pass.problem;
  return {partial, static_cast<float*>(pass.statistics.sum),
          static_cast<float*>(pass.statistics.squares), int(p.K), float(p.N * p.P * p.Q)};
}

// Enqueues the kernel, and for statistics the one that combines the partial ones in the workspace,
// on a cudaStream_t; the result is a cudaError_t.
int launch_rowstream(const PassArgs& pass, const RowstreamPlan& plan, void* workspace,
                     void* stream);

// The same for one element type, Float16 or BFloat16 (rowstream_launch.cuh, instantiated in a .cu
// file for each).
template <typename T>
int launch_rowstream_kernel(const RowstreamArgs& args, Tail tail, void* stream);

// statistics.cu
int launch_statistics(const StatisticsArgs& args, void* stream);

}  // namespace grouped_conv::cuda
