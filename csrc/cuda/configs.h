// The row-streaming kernels of fprop and dgrad that are compiled, and how a problem is cut up for
// one of them. Plain C++ without CUDA: the heuristics, the launcher, the emulator's drivers and the
// tests include it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>

#include "problem.h"

namespace grouped_conv::cuda {

// How a kernel goes down an image. "Input" is what it reads (x, or dy in dgrad), "output" what it
// writes (y, or dx).
enum class Walk {
  kUnitStride,    // fprop and dgrad at stride 1: dgrad is fprop with the taps reversed
  kFpropStride2,  // a step reads two rows and finishes one
  kDgradStride2,  // a step reads one row and finishes two, in both phases of the columns
};

// One instantiation of fprop_rowstream_kernel or dgrad_rowstream_kernel. A block works on
// `channels` channels of a line of slots() pixel slots.
struct RowstreamConfig {
  const char* name;
  Walk walk;
  int c_per_group;    // equals k_per_group
  int channels;       // of a block
  int slot_warps;     // warps that share the slots; the others share the channels
  int tiles;          // of 16 slots, of a warp
  int slabs;          // of 8 output channels, of a warp
  int tiles_at_once;  // tiles whose input is in registers at a time
  int stages;         // steps' inputs in shared memory: the present one and those under way
  int blocks_per_sm;  // that the registers must suffice for

  constexpr int planes() const { return channels / 8; }
  constexpr int warps() const { return slot_warps * planes() / slabs; }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int slots() const { return 16 * tiles * slot_warps; }
  // Slots of input beyond those of output that the taps reach.
  constexpr int halo() const { return walk == Walk::kUnitStride ? 2 : 1; }

  // A plane is a line of 16-byte slots, eight channels of one pixel each. Planes lie so far apart
  // that eight accesses by pixel, like eight by plane, meet every bank once.
  constexpr int plane_bytes(int used) const {
    return 16 * (planes() % 8 == 0 ? used | 1 : used + (10 - used % 8) % 8);
  }
  // Rows of input in a stage, and runs of slots in a row: even and odd columns lie apart where
  // every second pixel is wanted.
  constexpr int input_rows() const { return walk == Walk::kFpropStride2 ? 2 : 1; }
  constexpr int input_runs() const { return walk == Walk::kFpropStride2 ? 2 : 1; }
  constexpr int odd_run_bytes() const { return 16 * (slots() + halo()); }
  constexpr int input_plane_bytes() const { return plane_bytes(input_runs() * slots() + halo()); }
  constexpr int input_row_bytes() const { return planes() * input_plane_bytes(); }
  constexpr int stage_bytes() const { return input_rows() * input_row_bytes(); }

  // Rows of output that a step finishes, and output columns of a slot.
  constexpr int output_rows() const { return walk == Walk::kDgradStride2 ? 2 : 1; }
  constexpr int output_runs() const { return walk == Walk::kDgradStride2 ? 2 : 1; }
  constexpr int output_plane_bytes() const { return plane_bytes(slots()); }
  constexpr int output_run_bytes() const { return planes() * output_plane_bytes(); }
  constexpr int line_bytes() const { return output_rows() * output_runs() * output_run_bytes(); }

  // The weights of an output channel of w, and so much more from 16 channels per group on that the
  // lanes of a warp, which read a few of each of eight channels, meet different banks.
  constexpr int weight_row_bytes() const { return 18 * c_per_group + (c_per_group >= 16 ? 16 : 0); }
  constexpr int weight_bytes() const { return channels * weight_row_bytes(); }
  // The weights are in registers before the first line of output comes to lie where they were;
  // large ones before the first row of input does.
  constexpr bool weights_first() const { return c_per_group >= 64; }
  constexpr int shared_bytes() const {
    const int ring = stages * stage_bytes();
    if (weights_first()) return std::max(ring + 2 * line_bytes(), weight_bytes());
    return ring + std::max(2 * line_bytes(), weight_bytes());
  }
};

// clang-format off
inline constexpr RowstreamConfig kRowstreamConfigs[] = {
    // name           walk                cpg channels slot_warps tiles slabs at_once stages blocks
    {"conv_c4_s1",   Walk::kUnitStride,     4,  64,        1,       4,    1,    1,      4,     2},
    {"conv_c8_s1",   Walk::kUnitStride,     8,  64,        1,       4,    1,    1,      4,     2},
    {"conv_c16_s1",  Walk::kUnitStride,    16,  64,        2,       2,    2,    1,      4,     2},
    {"conv_c32_s1",  Walk::kUnitStride,    32,  64,        2,       2,    2,    2,      6,     1},
    {"conv_c16_s1_narrow", Walk::kUnitStride, 16, 32,    2,       2,    2,    1,      7,     3},
    {"conv_c32_s1_narrow", Walk::kUnitStride, 32, 32,    2,       2,    2,    2,      8,     2},
    {"conv_c64_s1",  Walk::kUnitStride,    64,  64,        1,       4,    1,    1,      6,     1},
    {"fprop_c4_s2",  Walk::kFpropStride2,   4,  64,        1,       2,    1,    1,      3,     2},
    {"fprop_c8_s2",  Walk::kFpropStride2,   8,  64,        1,       2,    1,    1,      3,     2},
    {"fprop_c16_s2", Walk::kFpropStride2,  16,  64,        1,       2,    2,    1,      3,     3},
    {"fprop_c32_s2", Walk::kFpropStride2,  32,  64,        1,       2,    2,    1,      3,     2},
    {"fprop_c64_s2", Walk::kFpropStride2,  64,  64,        1,       2,    1,    1,      4,     1},
    {"dgrad_c4_s2",  Walk::kDgradStride2,   4,  64,        1,       2,    1,    1,      7,     2},
    {"dgrad_c8_s2",  Walk::kDgradStride2,   8,  64,        1,       2,    1,    1,      7,     2},
    {"dgrad_c16_s2", Walk::kDgradStride2,  16,  64,        1,       2,    2,    1,      7,     2},
    {"dgrad_c32_s2", Walk::kDgradStride2,  32,  64,        1,       2,    2,    1,      8,     2},
    {"dgrad_c64_s2", Walk::kDgradStride2,  64,  64,        1,       2,    1,    1,      5,     1},
};
// clang-format on
inline constexpr int kRowstreamConfigCount = int(std::size(kRowstreamConfigs));

// Where the weights of a group lie: weight (n, k, tap) of output channel n and input channel k,
// both counted in the group, and tap = 3 r + s, is element first + n * by_n + k * by_k + tap *
// by_tap. Input and output are those of the walk.
struct WeightOrder {
  int first, by_n, by_k, by_tap;
};

// `row` is the distance, in elements, of the output channels of w.
constexpr WeightOrder weight_order(Pass pass, int stride, int c_per_group, bool krsc, int row) {
  const int by_tap = krsc ? c_per_group : 1;
  const int by_c = krsc ? 1 : 9;
  if (pass == Pass::kFprop) return {0, row, by_c, by_tap};
  if (stride == 2) return {0, by_c, row, by_tap};
  return {8 * by_tap, by_c, row, -by_tap};
}

// How a problem is cut up. A tile is `images` images side by side, `pitch` slots apart, or one of
// `strips` strips of `strip` slots of output where a whole row does not fit. A block walks down one
// of `row_strips` strips of `row_strip` lines of one tile, then of the next, `tiles` in all. A line
// is what a step finishes.
struct RowstreamPlan {
  int config;
  int images, pitch;
  int strips, strip;
  int lines, row_strips, row_strip;
  int tiles;
  int tile_blocks;
  int channel_blocks;
  int64_t cost;  // rowstream_cost()

  constexpr int64_t blocks() const {
    return int64_t(channel_blocks) * strips * row_strips * tile_blocks;
  }
};

inline constexpr int64_t kMaxTileBytes = std::numeric_limits<int32_t>::max();

// Bytes of the larger of an image of x and one of y; offsets inside a tile have 32 bits.
constexpr int64_t rowstream_image_bytes(const ConvProblem& p) {
  return 2 * std::max(p.H * p.W * p.C, p.P * p.Q * p.K);
}

constexpr bool rowstream_runs(Walk walk, Pass pass, int64_t stride) {
  if (pass == Pass::kWgrad) return false;
  if (stride == 1) return walk == Walk::kUnitStride;
  return walk == (pass == Pass::kFprop ? Walk::kFpropStride2 : Walk::kDgradStride2);
}

// Whether `config` computes the pass. There must be output: where there is none, nothing is to be
// launched.
constexpr bool rowstream_supports(const RowstreamConfig& config, Pass pass, const ConvProblem& p) {
  return p.R == 3 && p.S == 3 && p.dilation_h == 1 && p.dilation_w == 1 &&
         (p.stride_h == 1 || p.stride_h == 2) && p.stride_w == p.stride_h &&
         rowstream_runs(config.walk, pass, p.stride_h) && p.c_per_group() == config.c_per_group &&
         p.k_per_group() == config.c_per_group && p.C % 8 == 0 && p.pad_h <= 2 && p.pad_w <= 2 &&
         p.N > 0 && p.H > 0 && p.W > 0 && p.P > 0 && p.Q > 0 &&
         p.N <= std::numeric_limits<int32_t>::max() / 2 &&
         rowstream_image_bytes(p) <= kMaxTileBytes;
}

// What fprop does beside the convolution: nothing, the epilogue of fprop_affine on its sums, the
// statistics of fprop_stats, or the epilogue with a residual.
enum class Tail { kNone, kAffine, kStatistics, kResidual };

// Whether a configuration is compiled with a tail.
constexpr bool rowstream_has(const RowstreamConfig& config, Tail tail) {
  if (tail == Tail::kNone) return true;
  if (config.walk == Walk::kDgradStride2) return false;
  // Two blocks of 256 threads leave no registers for more than factors; the narrow configuration
  // has them.
  return tail == Tail::kAffine || config.c_per_group != 16 || config.blocks_per_sm != 2;
}

constexpr int64_t ceil_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Cuts an image into about `row_strips` strips of lines, and gives a block `tiles` tiles.
constexpr void cut_blocks(RowstreamPlan& plan, const ConvProblem& p, int row_strips, int tiles) {
  plan.row_strip = int(ceil_of(plan.lines, row_strips));
  plan.row_strips = int(ceil_of(plan.lines, plan.row_strip));
  plan.tiles = tiles;
  plan.tile_blocks = int(ceil_of(p.N, int64_t(plan.images) * tiles));
}

// Cuts a problem into tiles and lines, with a block for each tile.
constexpr RowstreamPlan cut_tiles(const RowstreamConfig& config, Pass pass, const ConvProblem& p) {
  const bool fprop = pass == Pass::kFprop;
  RowstreamPlan plan{};

  // Neighbouring images share the padding between them.
  int64_t pitch = 0;
  int64_t columns = 0;
  int64_t lines = 0;
  if (config.walk == Walk::kDgradStride2) {
    pitch = p.Q + 1;
    columns = (p.W - 1 + p.pad_w) / 2 - p.pad_w / 2 + 1;
    lines = (p.H - 1 + p.pad_h) / 2 - p.pad_h / 2 + 1;
  } else if (config.walk == Walk::kFpropStride2) {
    pitch = p.Q + 1;
    columns = p.Q;
    lines = p.P;
  } else {
    pitch = fprop ? p.W + p.pad_w : p.Q + 2 - p.pad_w;
    columns = fprop ? p.Q : p.W;
    lines = fprop ? p.P : p.H;
  }
  if (pitch <= config.slots()) {
    plan.images =
        int(std::min({config.slots() / pitch, p.N, kMaxTileBytes / rowstream_image_bytes(p)}));
    plan.pitch = int(pitch);
    plan.strips = 1;
    plan.strip = int(columns);
  } else {
    plan.images = 1;
    plan.pitch = config.slots();
    plan.strip = int(ceil_of(columns, ceil_of(columns, config.slots() - config.halo())));
    plan.strips = int(ceil_of(columns, plan.strip));
  }
  plan.lines = int(lines);
  plan.channel_blocks = int(ceil_of(p.C, config.channels));
  cut_blocks(plan, p, 1, 1);
  return plan;
}

// Bytes that pass through the busiest multiprocessor: rows of input and output, and the weights of
// each block; more where it has few warps, and so hides less of its latencies.
constexpr int64_t rowstream_cost(const RowstreamConfig& config, const RowstreamPlan& plan,
                                 int sm_count) {
  constexpr int kStepsToStart = 3;  // until the first rows arrive
  const int halo_steps = plan.row_strips > 1 ? config.halo() : 0;
  const int64_t steps = int64_t(plan.tiles) * (plan.row_strip + halo_steps) + kStepsToStart;
  // At stride 1 a slot of a step is one pixel in and one out, at stride 2 four and one.
  const int pixels = config.walk == Walk::kUnitStride ? 2 : 5;
  const int64_t step_bytes = int64_t(2) * config.channels * plan.images * plan.strip * pixels;
  const int64_t rounds = ceil_of(plan.blocks(), sm_count);
  const int64_t bytes = rounds * (steps * step_bytes + config.weight_bytes());
  const int64_t warps = std::min<int64_t>(rounds, config.blocks_per_sm) * config.warps();
  return bytes + (warps < 8 ? bytes / 2 : warps < 16 ? bytes / 8 : 0);
}

// The cheapest way to deal out the tiles of a cut to blocks.
constexpr RowstreamPlan deal_out(const RowstreamConfig& config, RowstreamPlan plan,
                                 const ConvProblem& p, int sm_count) {
  constexpr int kMostRowStrips = 64;
  constexpr int kMostRounds = 8;  // blocks of a multiprocessor
  RowstreamPlan best{};
  cut_blocks(plan, p, 1, 1);
  const int64_t all_tiles = plan.tile_blocks;
  for (int row_strips = 1; row_strips <= kMostRowStrips; ++row_strips) {
    cut_blocks(plan, p, row_strips, 1);
    if (plan.row_strips != row_strips) continue;  // the same as with fewer
    const int64_t blocks_of_tile = plan.blocks() / all_tiles;
    for (int rounds = 1; rounds <= kMostRounds; ++rounds) {
      const int64_t wanted = std::max<int64_t>(rounds * sm_count / blocks_of_tile, 1);
      const int64_t tile_blocks = std::min(wanted, all_tiles);
      cut_blocks(plan, p, row_strips, int(ceil_of(all_tiles, tile_blocks)));
      plan.cost = rowstream_cost(config, plan, sm_count);
      if (best.cost == 0 || plan.cost < best.cost) best = plan;
      if (tile_blocks == all_tiles) break;
    }
  }
  return best;
}

// The cheapest cut for a configuration.
constexpr RowstreamPlan plan_rowstream(int config_index, Pass pass, const ConvProblem& p,
                                       int sm_count) {
  const RowstreamConfig& config = kRowstreamConfigs[config_index];
  RowstreamPlan plan = cut_tiles(config, pass, p);
  plan.config = config_index;
  return deal_out(config, plan, p, sm_count);
}

// The best of the plans of all configurations that compute the pass; there must be one.
constexpr RowstreamPlan plan_rowstream(Pass pass, const ConvProblem& p, int sm_count,
                                       Tail tail = Tail::kNone) {
  RowstreamPlan best{};
  for (int i = 0; i < kRowstreamConfigCount; ++i) {
    const RowstreamConfig& config = kRowstreamConfigs[i];
    if (!rowstream_supports(config, pass, p) || !rowstream_has(config, tail)) continue;
    const RowstreamPlan plan = plan_rowstream(i, pass, p, sm_count);
    if (best.cost == 0 || plan.cost < best.cost) best = plan;
  }
  return best;
}

}  // namespace grouped_conv::cuda
