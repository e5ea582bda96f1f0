// The weight-gradient kernels that are compiled, and how a problem is cut up for one of them. Plain
// C++ without CUDA: the heuristics, the launcher, the emulator's drivers and the tests include it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "problem.h"

namespace grouped_conv::cuda {

// The part of dw that a block sums, and how its warps share it; of tensors in either layout. A
// block works on `channels` channels and tiles of `slots` pixel slots of one row.
struct WgradShape {
  const char* name;
  int c_per_group;  // equals k_per_group
  int stride;
  int channels;
  int slots;
  int co_tiles;  // output channels of a warp, in sixteens; from 16 channels per group

  constexpr int planes() const { return channels / 8; }
  // Warps that share the channels: one per eight channels, or per co_tiles x 16 output by 16 input
  // channels.
  constexpr int warps_per_part() const {
    return c_per_group <= 8 ? planes() : channels / (16 * co_tiles) * (c_per_group / 16);
  }

  // The sums of a block on their way out, those of each part by themselves: a line for each output
  // channel, in co_tiles passes. Lines lie so far apart that a warp's stores meet every bank once.
  constexpr int sum_lines() const { return channels / co_tiles; }
  constexpr int sum_line_bytes() const {
    return 4 * (9 * c_per_group + (c_per_group == 4 ? 0 : c_per_group == 8 ? 4 : 8));
  }
};

// One instantiation of wgrad_rowstream_kernel (wgrad.cuh says what the fields do).
struct WgradConfig : WgradShape {
  int k_split;        // parts that the slots of a row are dealt out to, each with its warps
  int stages;         // rows in shared memory: the present one, the last one, those under way
  int blocks_per_sm;  // that the registers must suffice for

  constexpr int threads() const { return 32 * warps_per_part() * k_split; }

  // A plane is a line of 16-byte slots, eight channels of one pixel each, and two more slots that
  // the last taps look at. Planes lie so far apart that writing by pixel meets every bank once.
  constexpr int plane_bytes() const {
    const int used = slots + 2;
    return 16 * (planes() % 8 == 0 ? used | 1 : used + (10 - used % 8) % 8);
  }
  constexpr int run_bytes() const { return planes() * plane_bytes(); }
  // A stage of x is a row, or at stride 2 the even and the odd columns of two rows; of dy a row.
  // At stride 2 the last step's rows of x are not wanted any more, so there is a stage less of x.
  constexpr int x_stage_bytes() const { return run_bytes() * (stride == 1 ? 1 : 4); }
  constexpr int x_stages() const { return stride == 1 ? stages : stages - 1; }
  constexpr int ring_bytes() const { return x_stages() * x_stage_bytes() + stages * run_bytes(); }

  constexpr int sum_bytes() const { return k_split * sum_lines() * sum_line_bytes(); }
  constexpr int shared_bytes() const { return std::max(ring_bytes(), sum_bytes()); }
};

// clang-format off
inline constexpr WgradConfig kWgradConfigs[] = {
    // name            cpg stride channels slots co_tiles k_split stages blocks_per_sm
    {"wgrad_c4_s1",     4,  1,     64,      64,   1,       1,      5,     2},
    {"wgrad_c8_s1",     8,  1,     64,      64,   1,       1,      5,     2},
    {"wgrad_c16_s1",   16,  1,     32,      64,   1,       4,      8,     2},
    {"wgrad_c32_s1",   32,  1,     32,      64,   2,       4,      8,     1},
    {"wgrad_c64_s1",   64,  1,     64,      64,   2,       1,      5,     1},
    {"wgrad_c4_s2",     4,  2,     32,      64,   1,       2,      5,     2},
    {"wgrad_c8_s2",     8,  2,     32,      64,   1,       2,      5,     2},
    {"wgrad_c16_s2",   16,  2,     32,      64,   1,       4,      5,     2},
    {"wgrad_c32_s2",   32,  2,     32,      64,   2,       4,      5,     1},
    {"wgrad_c64_s2",   64,  2,     64,      32,   2,       1,      5,     1},
};
// clang-format on
inline constexpr int kWgradConfigCount = int(std::size(kWgradConfigs));

// Threads of a block of the second kernel, and the slices that they sum the splits in: 4 to 8
// splits a slice, or more where there are more than 64.
inline constexpr int kWgradReduceThreads = 256;
constexpr int wgrad_reduce_slices(int splits) {
  return splits < 8 ? 1 : splits < 16 ? 2 : splits < 32 ? 4 : 8;
}

// How a problem is cut up. A tile is a row of `images` images side by side, `pitch` slots apart, or
// of one of `strips` strips of `strip` output columns where a whole row does not fit. The rows of
// all tiles, one tile after the other, are dealt out to `splits` blocks in equal runs.
struct WgradPlan {
  int config;
  int images;
  int strips, strip;
  int pitch;
  int rows;
  int channel_blocks;
  int splits;

  constexpr int64_t blocks() const { return int64_t(channel_blocks) * splits; }
  // Each split has its own sum of the whole of dw, in float.
  int64_t workspace_bytes(const ConvProblem& p) const {
    return splits * p.K * p.c_per_group() * p.R * p.S * int64_t(sizeof(float));
  }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline constexpr int64_t kMaxImageBytes = std::numeric_limits<int32_t>::max();

// Bytes of the larger of an image of x and one of dy; offsets inside it have 32 bits.
inline int64_t wgrad_image_bytes(const ConvProblem& p) {
  return 2 * std::max(p.H * p.W * p.C, p.P * p.Q * p.K);
}

// Whether a kernel of this shape computes the problem. There must be output: where there is none,
// dw is zero and nothing is to be launched.
inline bool wgrad_supports(const WgradShape& config, const ConvProblem& p) {
  return p.R == 3 && p.S == 3 && p.dilation_h == 1 && p.dilation_w == 1 &&
         p.stride_h == config.stride && p.stride_w == config.stride &&
         p.c_per_group() == config.c_per_group && p.k_per_group() == config.c_per_group &&
         p.C % 8 == 0 && p.pad_h <= 2 && p.pad_w <= 2 && p.N > 0 && p.H > 0 && p.W > 0 && p.P > 0 &&
         p.Q > 0 && wgrad_image_bytes(p) <= kMaxImageBytes &&
         p.N * p.P * ceil_div(p.Q, config.slots / 2) <= std::numeric_limits<int32_t>::max();
}

// In how many equal shares to deal out `units` of work to the blocks of each block of channels, so
// that the busiest multiprocessor is busy for the shortest time: counted in bytes that pass through
// it, of the units and `block_bytes` of each block; more where it has few warps, `warps` of each of
// `blocks_at_once` blocks, and so hides less of their latencies.
inline int wgrad_splits(int64_t units, int64_t unit_bytes, int64_t block_bytes, int channel_blocks,
                        int warps, int blocks_at_once, int sm_count) {
  int64_t least_cost = std::numeric_limits<int64_t>::max();
  int64_t best = 1;
  for (int blocks_of_sm = 1; blocks_of_sm <= 4; ++blocks_of_sm) {
    const int64_t most = std::clamp<int64_t>(blocks_of_sm * sm_count / channel_blocks, 1, units);
    // No more splits than give the longest share that length.
    const int64_t share = ceil_div(units, most);
    const int64_t splits = ceil_div(units, share);
    const int64_t blocks_of_busiest = ceil_div(channel_blocks * splits, sm_count);
    const int64_t bytes = blocks_of_busiest * (share * unit_bytes + block_bytes);
    const int64_t present = std::min<int64_t>(blocks_of_busiest, blocks_at_once) * warps;
    const int64_t cost = bytes + (present < 8 ? bytes / 2 : present < 16 ? bytes / 8 : 0);
    if (cost < least_cost) {
      least_cost = cost;
      best = splits;
    }
  }
  return int(best);
}

// The cut of a problem: rows of x and dy, and twice the partial sums, are what is counted.
inline WgradPlan plan_wgrad(int config_index, const ConvProblem& p, int sm_count) {
  const WgradConfig& config = kWgradConfigs[config_index];
  WgradPlan plan{};
  plan.config = config_index;
  // The taps of a row of output reach over stride 1: Q + 2 columns, of which neighbours share the
  // padding; stride 2: Q + 1 even ones.
  const int64_t pitch = config.stride == 1 ? p.W + p.pad_w : p.Q + 1;
  if (pitch <= config.slots) {
    plan.images = int(std::min(
        {config.slots / pitch, p.N, kMaxImageBytes / std::max<int64_t>(wgrad_image_bytes(p), 1)}));
    plan.strips = 1;
    plan.strip = int(p.Q);
    plan.pitch = int(pitch);
  } else {
    const int halo = config.stride == 1 ? 2 : 1;
    plan.images = 1;
    plan.strips = int(ceil_div(p.Q, config.slots - halo));
    plan.strip = int(ceil_div(p.Q, plan.strips));
    plan.pitch = plan.strip + halo;
  }
  plan.rows = int(ceil_div(p.N, plan.images) * plan.strips * p.P);
  plan.channel_blocks = int(ceil_div(p.C, config.channels));

  const int64_t row_bytes =
      2 * config.channels * int64_t(plan.images) * plan.strip * (1 + config.stride * config.stride);
  const int64_t partial_bytes = 2 * 4 * 9 * int64_t(config.channels) * config.c_per_group;
  constexpr int kRowsToStart = 3;  // rows of x read twice, and the time until the first ones arrive
  constexpr int kWarps = 16;       // rows come so far ahead that few warps do as well
  plan.splits = wgrad_splits(plan.rows, row_bytes, kRowsToStart * row_bytes + partial_bytes,
                             plan.channel_blocks, kWarps, 1, sm_count);
  return plan;
}

}  // namespace grouped_conv::cuda
