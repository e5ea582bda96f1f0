// The kernels of fprop and dgrad for NCHW tensors that are compiled, and how a problem is cut up
// for one of them. Plain C++ without CUDA. The fields are those of RowstreamConfig, but `stages`
// are rows in the form that ldmatrix reads: the present one and the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "cuda/configs.h"
#include "cuda/nchw_bands.h"

namespace grouped_conv::cuda {

// clang-format off
inline constexpr RowstreamConfig kNchwConfigs[] = {
    // name                walk                cpg channels slot_warps tiles slabs at_once stages blocks
    {"nchw_conv_c4_s1",   Walk::kUnitStride,     4,  32,      2,       2,    1,    1,      2,     2},
    {"nchw_conv_c8_s1",   Walk::kUnitStride,     8,  32,      2,       2,    1,    1,      2,     2},
    {"nchw_conv_c16_s1",  Walk::kUnitStride,    16,  32,      4,       1,    2,    1,      2,     2},
    {"nchw_conv_c32_s1",  Walk::kUnitStride,    32,  32,      2,       2,    2,    1,      2,     2},
    {"nchw_conv_c64_s1",  Walk::kUnitStride,    64,  64,      1,       2,    1,    1,      2,     1},
    {"nchw_fprop_c4_s2",  Walk::kFpropStride2,   4,  32,      2,       1,    1,    1,      2,     2},
    {"nchw_fprop_c8_s2",  Walk::kFpropStride2,   8,  32,      2,       1,    1,    1,      2,     2},
    {"nchw_fprop_c16_s2", Walk::kFpropStride2,  16,  32,      2,       1,    2,    1,      2,     2},
    {"nchw_fprop_c32_s2", Walk::kFpropStride2,  32,  32,      2,       1,    2,    1,      2,     2},
    {"nchw_fprop_c64_s2", Walk::kFpropStride2,  64,  64,      1,       2,    1,    1,      2,     1},
    {"nchw_dgrad_c4_s2",  Walk::kDgradStride2,   4,  32,      1,       2,    1,    1,      2,     2},
    {"nchw_dgrad_c8_s2",  Walk::kDgradStride2,   8,  32,      1,       2,    1,    1,      2,     2},
    {"nchw_dgrad_c16_s2", Walk::kDgradStride2,  16,  32,      2,       1,    2,    1,      2,     2},
    {"nchw_dgrad_c32_s2", Walk::kDgradStride2,  32,  32,      2,       1,    2,    1,      2,     2},
    {"nchw_dgrad_c64_s2", Walk::kDgradStride2,  64,  64,      1,       2,    1,    1,      2,     1},
};
// clang-format on
inline constexpr int kNchwConfigCount = int(std::size(kNchwConfigs));

// What a band may take; a block has two of input and one of output, beside its stages. In all it is
// what a block can have on sm_86, sm_89 and sm_120.
constexpr int nchw_band_bytes(const RowstreamConfig& config) {
  constexpr int kMost = 27 * 1024;  // whole images of 7x7
  constexpr int kShared = 99 * 1024;
  return std::min(kMost, (kShared - config.stages * config.stage_bytes()) / 3);
}

// The weights lie in the band of output before there is any, or, large ones, at the very beginning.
constexpr int nchw_shared_bytes(const RowstreamConfig& config, int input_bytes, int output_bytes) {
  const int before = 2 * input_bytes + config.stages * config.stage_bytes();
  if (config.weights_first()) return std::max(before + output_bytes, config.weight_bytes());
  return before + std::max(output_bytes, config.weight_bytes());
}

// Of any plan.
constexpr int most_nchw_shared_bytes(const RowstreamConfig& config) {
  return nchw_shared_bytes(config, nchw_band_bytes(config), nchw_band_bytes(config));
}

struct NchwPlan {
  RowstreamPlan tiles;  // `config` is an index into kNchwConfigs
  NchwBands input, output;

  constexpr int shared_bytes() const {
    return nchw_shared_bytes(kNchwConfigs[tiles.config], input.bytes, output.bytes);
  }
};

// Cuts the rows of a plan's tiles into bands.
constexpr void cut_plan_bands(NchwPlan& plan, Pass pass, const ConvProblem& p) {
  const RowstreamConfig& config = kNchwConfigs[plan.tiles.config];
  const bool fprop = pass == Pass::kFprop;
  const bool strips = plan.tiles.strips > 1;
  NchwTile tile{};
  tile.images = plan.tiles.images;
  tile.channels = config.channels;
  tile.whole_images = plan.tiles.row_strips == 1;
  tile.height = int(fprop ? p.H : p.P);
  tile.width = int(fprop ? p.W : p.Q);
  tile.columns = strips ? config.input_runs() * (plan.tiles.strip + config.halo()) : tile.width;
  tile.rows_of_step = config.input_rows();
  tile.image_slots = config.input_runs() * plan.tiles.pitch;
  plan.input = cut_bands(tile, nchw_band_bytes(config));
  tile.height = int(fprop ? p.P : p.H);
  tile.width = int(fprop ? p.Q : p.W);
  tile.columns = strips ? config.output_runs() * plan.tiles.strip : tile.width;
  tile.rows_of_step = config.output_rows();
  tile.image_slots = config.output_runs() * plan.tiles.pitch;
  plan.output = cut_bands(tile, nchw_band_bytes(config));
}

// Whether `config` computes the pass.
constexpr bool nchw_supports(const RowstreamConfig& config, Pass pass, const ConvProblem& p) {
  return rowstream_supports(config, pass, p);
}

// The cheapest cut for a configuration, with as many images side by side as shared memory takes.
constexpr NchwPlan plan_nchw(int config_index, Pass pass, const ConvProblem& p, int sm_count) {
  const RowstreamConfig& config = kNchwConfigs[config_index];
  NchwPlan plan{};
  RowstreamPlan cut = cut_tiles(config, pass, p);
  cut.config = config_index;
  for (;; --cut.images) {
    plan.tiles = cut;
    plan.tiles.row_strips = 2;  // the bands that need most
    cut_plan_bands(plan, pass, p);
    if (plan.input.bytes > 0 && plan.output.bytes > 0) break;
  }
  plan.tiles = deal_out(config, cut, p, sm_count);
  cut_plan_bands(plan, pass, p);
  return plan;
}

constexpr NchwPlan plan_nchw(Pass pass, const ConvProblem& p, int sm_count) {
  int index = 0;
  while (!nchw_supports(kNchwConfigs[index], pass, p)) ++index;
  return plan_nchw(index, pass, p, sm_count);
}

}  // namespace grouped_conv::cuda
