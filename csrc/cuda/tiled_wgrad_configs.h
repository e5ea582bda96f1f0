// The configurations of the tiled weight-gradient kernels, and how a problem is cut up for one of
// them. Plain C++ without CUDA: the heuristics, the launcher, the emulator's drivers and the tests
// include it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "cuda/launch.h"
#include "cuda/tiled_configs.h"
#include "cuda/wgrad_configs.h"
#include "problem.h"

namespace grouped_conv::cuda {

// A warp computes this many rows of a tile, whatever the configuration.
inline constexpr int kTiledWgradWarpRows = 48;

// A block computes `groups` tiles, each of one group: `rows` of (r, s, c) by `cols` of k, with
// warps of 48 rows by cols / col_warps. A stage is as many pixels as there are threads for a few
// neighbouring slots of 16 bytes, `halves` of 16 bits or half as many of 32.
struct TiledWgradConfig {
  const char* name;
  int rows, cols;
  int groups;
  int col_warps;
  int halves;
  int blocks_per_sm;  // that the registers must suffice for

  constexpr int warps_of_group() const { return rows / kTiledWgradWarpRows * col_warps; }
  constexpr int threads() const { return 32 * groups * warps_of_group(); }
  constexpr int pixels(int element_bytes) const { return halves * 2 / element_bytes; }

  // From a pixel to the next one. 16 bits: an odd number of slots, for ldmatrix; 32 bits: 8 or 24
  // words beyond a multiple of 32, for a lane's four pixels of eight neighbours.
  static constexpr int pitch_bytes(int elements, int element_bytes) {
    const int slots = elements * element_bytes / 16;
    return 16 * (element_bytes == 2 ? slots | 1 : slots + (6 - slots % 4) % 4);
  }
  constexpr int x_pitch_bytes(int element_bytes) const {
    return pitch_bytes(groups * rows, element_bytes);
  }
  constexpr int dy_pitch_bytes(int element_bytes) const {
    return pitch_bytes(groups * cols, element_bytes);
  }
  constexpr int stage_bytes(int element_bytes) const {
    return pixels(element_bytes) * (x_pitch_bytes(element_bytes) + dy_pitch_bytes(element_bytes));
  }
  // Where a pixel's slots are found, 16 bytes for each.
  constexpr int table_bytes(int element_bytes) const {
    return groups * (rows + cols) * element_bytes;
  }
  // Asynchronous copies run two stages ahead of the multiplication, registers one.
  static constexpr int stages(bool vector) { return vector ? 3 : 2; }
  constexpr int shared_bytes(int element_bytes, bool vector) const {
    return stages(vector) * stage_bytes(element_bytes) + table_bytes(element_bytes);
  }
};

// clang-format off
inline constexpr TiledWgradConfig kTiledWgradConfigs[] = {
    // name                  rows cols groups col_warps halves blocks_per_sm
    {"tiled_wgrad_48x8",       48,   8,     4,        1,    32,            4},
    {"tiled_wgrad_144x32",    144,  32,     1,        1,    48,            4},
    {"tiled_wgrad_144x64",    144,  64,     1,        2,    48,            2},
};
// clang-format on
inline constexpr int kTiledWgradConfigCount = int(std::size(kTiledWgradConfigs));

// Of all partial sums together, if there is more than one split.
inline constexpr int64_t kTiledWgradMostWorkspace = int64_t(256) << 20;

// How a problem is cut up. The pixels (n, p, q) of dy, in their order and `pixels` of a stage at a
// time, are dealt out to `splits` blocks in equal runs; the tiles of all groups to the others.
struct TiledWgradPlan {
  int config;
  TiledMath math;
  bool planar;  // x and dy are NCHW, else NHWC
  bool vector;  // a slot of 16 bytes is one copy, else its elements are gathered
  int group_blocks, row_tiles, col_tiles;
  int chunks;
  int splits;

  constexpr int64_t tiles() const { return int64_t(group_blocks) * row_tiles * col_tiles; }
  constexpr int64_t blocks() const { return tiles() * splits; }
  int64_t workspace_bytes(const ConvProblem& p) const {
    return splits * p.K * p.c_per_group() * p.R * p.S * int64_t(sizeof(float));
  }
};

// Bytes of the larger of an image of x with its padding and one of dy; offsets inside it have 32
// bits.
inline int64_t tiled_wgrad_image_bytes(const ConvProblem& p, TiledMath math) {
  const int64_t x = (p.H + 2 * p.pad_h) * (p.W + 2 * p.pad_w) * p.C;
  return tiled_element_bytes(math) * std::max(x, p.P * p.Q * p.K);
}

// Why the tiled kernels do not compute the weight gradient, in any configuration; nullptr: they do.
// What does not depend on the batch and the image is mirrored in backends/native.py.
inline const char* tiled_wgrad_refusal(const ConvProblem& p, DType dtype) {
  if (dtype == DType::kFloat64) return "the tiled kernels do not compute in float64";
  if (p.N == 0 || p.H == 0 || p.W == 0 || p.P == 0 || p.Q == 0) {
    return "the tiled kernels are for images and batches that have pixels";
  }
  const int64_t reach = std::max(p.dilation_h * (p.R - 1), p.dilation_w * (p.S - 1));
  const int64_t stride = std::max(p.stride_h, p.stride_w);
  for (const int64_t extent : {p.H, p.W, p.C, p.K, reach, stride, p.pad_h, p.pad_w}) {
    if (extent > kMostTiledExtent) return "the tiled kernels are for extents up to 2^28";
  }
  if (tiled_wgrad_image_bytes(p, tiled_math(dtype, false)) > kMaxImageBytes) {
    return "the tiled kernels take the weight gradient of images below 2 GiB, padding included";
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (p.K * p.c_per_group() * p.R * p.S > kMost || p.N * p.P * p.Q / 16 > kMost) {
    return "the tiled kernels take the weight gradient of weights below 2^30 elements and batches "
           "below 2^34 pixels";
  }
  return nullptr;
}

// Whether slots of 16 bytes lie in one piece in tensors that are NHWC.
inline bool tiled_wgrad_takes_vectors(TiledMath math, const ConvProblem& p) {
  const int elements = 16 / tiled_element_bytes(math);
  return p.c_per_group() % elements == 0 && p.k_per_group() % elements == 0;
}

// The tiles of a problem, with no splits yet. Rows of a tap fill whole slots.
inline TiledWgradPlan tile_wgrad(int config_index, TiledMath math, bool planar, bool vector,
                                 const ConvProblem& p) {
  const TiledWgradConfig& config = kTiledWgradConfigs[config_index];
  const int bytes = tiled_element_bytes(math);
  const int elements = 16 / bytes;
  const int64_t rows = p.R * p.S * ceil_div(p.c_per_group(), elements) * elements;
  TiledWgradPlan plan{};
  plan.config = config_index;
  plan.math = math;
  plan.planar = planar;
  plan.vector = vector;
  plan.group_blocks = int(ceil_div(p.G, config.groups));
  plan.row_tiles = int(ceil_div(rows, config.rows));
  plan.col_tiles = int(ceil_div(p.k_per_group(), config.cols));
  plan.chunks = int(ceil_div(p.N * p.P * p.Q, config.pixels(bytes)));
  return plan;
}

// Cycles of a multiprocessor of an H100, in 1/1024, for a pixel of all tiles: the multiplication at
// an attainable rate or the bytes from L2, whichever takes longer.
inline int64_t tiled_wgrad_cost(const TiledWgradPlan& plan) {
  const TiledWgradConfig& config = kTiledWgradConfigs[plan.config];
  const int64_t per_cycle = plan.math == TiledMath::kFma    ? 100
                            : plan.math == TiledMath::kTf32 ? 300
                                                            : 600;
  constexpr int64_t kBytesPerCycle = 24;
  const int64_t multiply = 1024 * config.groups * config.rows * config.cols / per_cycle;
  const int64_t bytes =
      int64_t(config.groups) * (config.rows + config.cols) * tiled_element_bytes(plan.math);
  return plan.tiles() * std::max(multiply, 1024 * bytes / kBytesPerCycle);
}

// The splits that keep the busiest multiprocessor busy for the shortest time, in stages: those of
// its blocks, what a block needs to start, and the partial sums written and read.
inline void split_tiled_wgrad(TiledWgradPlan& plan, const ConvProblem& p, int sm_count) {
  const TiledWgradConfig& config = kTiledWgradConfigs[plan.config];
  const int bytes = tiled_element_bytes(plan.math);
  const int64_t chunk_bytes =
      int64_t(config.groups) * (config.rows + config.cols) * config.pixels(bytes) * bytes;
  const int64_t partial_bytes = 2 * 4 * int64_t(config.groups) * config.rows * config.cols;
  const int64_t of_one = p.K * p.c_per_group() * p.R * p.S * int64_t(sizeof(float));
  const int64_t affordable = std::max<int64_t>(kTiledWgradMostWorkspace / of_one, 1);
  constexpr int kChunksToStart = 3;
  int64_t least_cost = std::numeric_limits<int64_t>::max();
  for (int blocks_of_sm = 1; blocks_of_sm <= 2 * config.blocks_per_sm; ++blocks_of_sm) {
    const int64_t most = std::clamp<int64_t>(blocks_of_sm * int64_t(sm_count) / plan.tiles(), 1,
                                             std::min<int64_t>(plan.chunks, affordable));
    // No more splits than give the longest share that length.
    const int64_t share = ceil_div(plan.chunks, most);
    const int64_t splits = ceil_div(plan.chunks, share);
    const int64_t blocks_of_busiest = ceil_div(plan.tiles() * splits, sm_count);
    const int64_t cost =
        blocks_of_busiest * ((share + kChunksToStart) * chunk_bytes + partial_bytes);
    if (cost < least_cost) {
      least_cost = cost;
      plan.splits = int(splits);
    }
  }
}

// The plan of one configuration.
inline TiledWgradPlan plan_tiled_wgrad(int config_index, TiledMath math, bool planar, bool vector,
                                       const ConvProblem& p, int sm_count) {
  TiledWgradPlan plan = tile_wgrad(config_index, math, planar, vector, p);
  split_tiled_wgrad(plan, p, sm_count);
  return plan;
}

// The plan of the configuration that is expected to be fastest.
inline TiledWgradPlan plan_tiled_wgrad(TiledMath math, bool planar, const ConvProblem& p,
                                       int sm_count) {
  const bool vector = !planar && tiled_wgrad_takes_vectors(math, p);
  TiledWgradPlan best = tile_wgrad(0, math, planar, vector, p);
  for (int i = 1; i < kTiledWgradConfigCount; ++i) {
    const TiledWgradPlan plan = tile_wgrad(i, math, planar, vector, p);
    if (tiled_wgrad_cost(plan) < tiled_wgrad_cost(best)) best = plan;
  }
  split_tiled_wgrad(best, p, sm_count);
  return best;
}

}  // namespace grouped_conv::cuda
