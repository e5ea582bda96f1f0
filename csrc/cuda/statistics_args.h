// Statistics of an fprop on their way from its blocks to the tensors. Plain C++ without CUDA.
#pragma once

#include <cstdint>

namespace grouped_conv::cuda {

// Mean and squared deviations of each channel over the pixels of each of `rows` sets of blocks,
// which have the same pixels and different channels, and how many pixels those are: [rows,
// channels] and [rows], one after the other in a workspace.
struct StatisticsRows {
  float* mean;
  float* squares;
  float* count;
  int rows;
};

constexpr int64_t statistics_bytes(int64_t rows, int64_t channels) {
  return 4 * rows * (2 * channels + 1);
}

inline StatisticsRows statistics_rows(void* workspace, int rows, int64_t channels) {
  float* const begin = static_cast<float*>(workspace);
  return {begin, begin + rows * channels, begin + 2 * rows * channels, rows};
}

struct StatisticsArgs {
  StatisticsRows partial;
  float* sum;      // [channels]
  float* squares;  // [channels]: of the deviations from the mean
  int channels;
  float pixels;  // of a channel, in all
};

// The shape of the launch of statistics_reduce_kernel<kStatisticsWarps>.
inline constexpr int kStatisticsWarps = 16;
inline constexpr int kStatisticsChannels = 32;  // of a block, a lane for each
inline constexpr int kStatisticsSharedBytes = 3 * 4 * 32 * kStatisticsWarps;

constexpr int64_t statistics_blocks(const StatisticsArgs& args) {
  return (args.channels + kStatisticsChannels - 1) / kStatisticsChannels;
}

}  // namespace grouped_conv::cuda
