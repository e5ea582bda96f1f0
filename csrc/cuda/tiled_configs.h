// The tiled kernels of fprop and dgrad, for what the row-streaming kernels do not take: their
// configurations, and how a problem is cut up for one of them. Plain C++ without CUDA, as
// configs.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>

#include "cuda/configs.h"
#include "cuda/launch.h"
#include "problem.h"

namespace grouped_conv::cuda {

// How products are computed: on tensor cores in 16 bits or in TF32, or on FMA units.
enum class TiledMath { kFloat16, kBFloat16, kTf32, kFma };

constexpr int tiled_element_bytes(TiledMath math) {
  return math == TiledMath::kTf32 || math == TiledMath::kFma ? 4 : 2;
}

// A block computes kTiledRows rows of output: pixels of one group, or of each of a few groups as
// many, of up to `channels` channels. What it multiplies comes in chunks of 64 bytes a row: four
// units of 16 bytes, each of one tap of the filter.
inline constexpr int kTiledRows = 128;
inline constexpr int kTiledThreads = 128;
inline constexpr int kUnitBytes = 16;
inline constexpr int kChunkUnits = 4;
inline constexpr int kChunkBytes = kChunkUnits * kUnitBytes;

struct TiledConfig {
  const char* name;
  int channels;       // of output, of a group, that a block computes at most
  int groups;         // of a block
  int stages;         // chunks in shared memory where they are copied asynchronously
  int blocks_per_sm;  // that the registers must suffice for, on tensor cores
  int blocks_of_fma;  // and on FMA units, whose sums take a lane's operands beside them

  constexpr int blocks(TiledMath math) const {
    return math == TiledMath::kFma ? blocks_of_fma : blocks_per_sm;
  }
  constexpr int pixels() const { return kTiledRows / groups; }
  constexpr int stage_bytes() const { return (kTiledRows + groups * channels) * kChunkBytes; }
  // Of a row of sums, in floats: rows of four lanes meet different banks.
  constexpr int pitch(bool direct) const { return direct ? channels + 8 : channels + 1; }
  // Where a row's input and output lie; chunks, and later the sums.
  constexpr int table_bytes() const { return kTiledRows * 24; }
  constexpr int shared_bytes(bool direct) const {
    const int ring = (direct ? stages : 2) * stage_bytes();
    return table_bytes() + std::max(ring, kTiledRows * pitch(direct) * 4);
  }
};

// clang-format off
inline constexpr TiledConfig kTiledConfigs[] = {
    // name       channels groups stages blocks of_fma
    {"tiled_n8",     8,      4,     3,     5,     4},
    {"tiled_n32",   32,      1,     3,     4,     3},
    {"tiled_n64",   64,      1,     3,     3,     2},
};
// clang-format on
inline constexpr int kTiledConfigCount = int(std::size(kTiledConfigs));

// A pass as the kernels see it: output from input, whichever of x and y they are.
struct TiledShape {
  int64_t in_channels, out_channels;  // of a group
  int64_t phases_h, phases_w;         // of the output's rows and columns: the stride in dgrad
  int64_t step_h, step_w;             // from a tap to the next of the same phase
  int64_t rows, columns;              // of a phase, at most

  TiledShape(Pass pass, const ConvProblem& p)
      : in_channels(pass == Pass::kFprop ? p.c_per_group() : p.k_per_group()),
        out_channels(pass == Pass::kFprop ? p.k_per_group() : p.c_per_group()),
        phases_h(pass == Pass::kFprop ? 1 : p.stride_h),
        phases_w(pass == Pass::kFprop ? 1 : p.stride_w),
        step_h(phases_h / std::gcd(phases_h, p.dilation_h)),
        step_w(phases_w / std::gcd(phases_w, p.dilation_w)),
        rows(pass == Pass::kFprop ? p.P : ceil_of(p.H, phases_h)),
        columns(pass == Pass::kFprop ? p.Q : ceil_of(p.W, phases_w)) {}
};

inline bool tiled_direct(TiledMath math, bool channels_last, Pass pass, const ConvProblem& p) {
  const TiledShape shape(pass, p);
  const int unit = kUnitBytes / tiled_element_bytes(math);
  return channels_last && shape.in_channels % unit == 0 && shape.out_channels % unit == 0;
}

constexpr TiledMath tiled_math(DType dtype, bool allow_tf32) {
  if (dtype == DType::kFloat16) return TiledMath::kFloat16;
  if (dtype == DType::kBFloat16) return TiledMath::kBFloat16;
  return allow_tf32 ? TiledMath::kTf32 : TiledMath::kFma;
}

// How a problem is cut up. The weight is packed first: for each group and tile of channels, for
// each class of taps that meet in a phase, `chunks` chunks of tile_channels rows.
struct TiledPlan {
  int config;
  TiledMath math;
  bool direct;        // NHWC, whole units: copied asynchronously
  int tile_channels;  // a multiple of 8
  int channel_tiles;  // of a group
  int units;          // of a tap
  int classes_h, classes_w;
  int chunks;  // of the class with the most taps
  int channel_blocks;
  int64_t phases;
  int64_t pixel_tiles;
  int64_t packed_units;  // of the whole weight
  int64_t cost;          // tiled_cost()

  constexpr int64_t blocks() const { return channel_blocks * phases * pixel_tiles; }
  constexpr int64_t workspace_bytes() const { return packed_units * kUnitBytes; }
  constexpr int shared_bytes() const { return kTiledConfigs[config].shared_bytes(direct); }
};

inline constexpr int64_t kMostTiledExtent = 1 << 24;
inline constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

// Cycles of the busiest multiprocessor's shared memory, through which everything passes in lines of
// 128 bytes, and which is what limits these kernels most often (docs/cuda-counts-tiled.md).
inline int64_t tiled_cost(const TiledConfig& config, const TiledPlan& plan, int sm_count) {
  constexpr int64_t kStart = 300;   // until the first chunks arrive
  constexpr int64_t kGather = 200;  // of a chunk, which takes more instructions than cycles
  const bool fma = plan.math == TiledMath::kFma;
  const int64_t eights = plan.tile_channels / 8;
  const int64_t written = kTiledRows / 2 + config.groups * eights * 4;
  const int64_t read = fma ? 512 + 64 * eights : 64 + 16 * eights;
  const int64_t chunk = written + read + (plan.direct ? 0 : kGather);
  const int64_t block = kStart + 64 * eights + plan.chunks * chunk;
  const int64_t rounds = ceil_of(plan.blocks(), sm_count);
  // Few warps hide little of their latencies, but for the many independent sums on FMA units.
  const int64_t at_once = std::min<int64_t>(rounds, config.blocks(plan.math));
  return rounds * block * (at_once < (fma ? 2 : 3) ? 2 : 1);
}

// Whether `config` is for so many channels of output in a group. Few of them want several groups in
// a block: one alone would read half a sector of each pixel.
inline bool tiled_runs(const TiledConfig& config, Pass pass, const ConvProblem& p) {
  const bool few = TiledShape(pass, p).out_channels <= 8;
  return few == (config.groups > 1);
}

// There must be output, and tiled_runs() true.
inline TiledPlan plan_tiled(int config_index, Pass pass, const ConvProblem& p, TiledMath math,
                            bool channels_last, int sm_count) {
  const TiledConfig& config = kTiledConfigs[config_index];
  const TiledShape shape(pass, p);
  TiledPlan plan{};
  plan.config = config_index;
  plan.math = math;
  plan.direct = tiled_direct(math, channels_last, pass, p);
  // Tiles of about the same width.
  const int64_t eights = ceil_of(shape.out_channels, 8);
  const int64_t fewest_tiles = ceil_of(eights, config.channels / 8);
  plan.tile_channels = int(8 * ceil_of(eights, fewest_tiles));
  plan.channel_tiles = int(ceil_of(shape.out_channels, plan.tile_channels));
  plan.units = int(ceil_of(shape.in_channels * tiled_element_bytes(math), kUnitBytes));
  plan.classes_h = int(std::min(p.R, shape.step_h));
  plan.classes_w = int(std::min(p.S, shape.step_w));
  const int64_t taps = ceil_of(p.R, shape.step_h) * ceil_of(p.S, shape.step_w);
  plan.chunks = int(ceil_of(taps * plan.units, kChunkUnits));
  plan.channel_blocks = int(ceil_of(p.G, config.groups) * plan.channel_tiles);
  plan.phases = shape.phases_h * shape.phases_w;
  plan.pixel_tiles = ceil_of(p.N * shape.rows * shape.columns, config.pixels());
  plan.packed_units = p.G * plan.channel_tiles * plan.classes_h * plan.classes_w * plan.chunks *
                      plan.tile_channels * kChunkUnits;
  plan.cost = tiled_cost(config, plan, sm_count);
  return plan;
}

// The cheapest plan; the problem must not be refused.
inline TiledPlan plan_tiled(Pass pass, const ConvProblem& p, TiledMath math, bool channels_last,
                            int sm_count) {
  TiledPlan best{};
  for (int i = 0; i < kTiledConfigCount; ++i) {
    if (!tiled_runs(kTiledConfigs[i], pass, p)) continue;
    const TiledPlan plan = plan_tiled(i, pass, p, math, channels_last, sm_count);
    if (best.cost == 0 || plan.cost < best.cost) best = plan;
  }
  return best;
}

// Why the tiled kernels do not compute fprop or dgrad; nullptr: they do. What does not depend on
// the batch and the image is mirrored in backends/native.py.
inline const char* tiled_refusal(Pass pass, const ConvProblem& p, DType dtype) {
  if (dtype == DType::kFloat64) return "the tiled kernels do not compute in float64";
  if (p.N == 0 || p.H == 0 || p.W == 0 || p.P == 0 || p.Q == 0) {
    return "the tiled kernels are for images and batches that have pixels";
  }
  const int64_t reach = std::max(p.dilation_h * (p.R - 1), p.dilation_w * (p.S - 1));
  const int64_t stride = std::max(p.stride_h, p.stride_w);
  for (const int64_t extent : {p.H, p.W, p.P, p.Q, p.C, p.K, reach, stride, p.pad_h, p.pad_w}) {
    if (extent > kMostTiledExtent) return "the tiled kernels are for extents up to 2^24";
  }
  if (std::max(p.H * p.W, p.P * p.Q) > kMostBlocks - kTiledRows) {
    return "the tiled kernels are for images below 2^31 pixels";
  }
  const TiledPlan plan =
      plan_tiled(0, pass, p, TiledMath::kFma, false, 1);  // has the most blocks and taps
  if (plan.blocks() > kMostBlocks || plan.packed_units / kTiledThreads > kMostBlocks) {
    return "the tiled kernels are for fewer than 2^31 blocks";
  }
  return nullptr;
}

}  // namespace grouped_conv::cuda
