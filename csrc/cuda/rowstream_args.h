// The arguments of the row-streaming kernels of fprop and dgrad.
#pragma once

#include <cstdint>

#include "cuda/configs.h"
#include "cuda/launch.h"
#include "cuda/statistics_args.h"

namespace grouped_conv::cuda {

// Input is what the walk reads (x, or dy in dgrad), output what it writes. Both are dense NHWC.
struct RowstreamArgs {
  const void* input;
  const void* weight;
  const void* bias;  // of the output channels, or null
  void* output;
  int64_t bias_stride;
  int64_t input_row_bytes, input_tile_bytes;  // of a row, and of a tile's images
  int64_t output_row_bytes, output_tile_bytes;
  int batch, channels;
  int input_h, input_w, output_h, output_w;
  int pad_h, pad_w;
  WeightOrder order, shared_order;  // of the weights in global and in shared memory
  RowstreamPlan plan;
  Epilogue epilogue;          // Tail::kAffine, Tail::kResidual
  StatisticsRows statistics;  // Tail::kStatistics
};

}  // namespace grouped_conv::cuda
