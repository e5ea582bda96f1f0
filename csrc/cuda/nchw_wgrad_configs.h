// The weight-gradient kernels for NCHW tensors that are compiled, and how a problem is cut up for
// one of them. Plain C++ without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "cuda/nchw_bands.h"
#include "cuda/wgrad_configs.h"

namespace grouped_conv::cuda {

// One instantiation of nchw_wgrad_kernel (nchw_wgrad.cuh says what the fields do).
struct NchwWgradConfig : WgradShape {
  int slot_parts;     // parts that the slots of a row are dealt out to, each with its warps
  int row_parts;      // and the rows of a band
  int blocks_per_sm;  // that the registers must suffice for

  constexpr int parts() const { return slot_parts * row_parts; }
  constexpr int warps() const { return warps_per_part() * parts(); }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int sum_bytes() const { return parts() * sum_lines() * sum_line_bytes(); }
  // Of shared memory, that a block of any plan may have: what there is on sm_86, sm_89 and sm_120,
  // and the share of it on the largest multiprocessors. 1 KB of each block is the system's.
  constexpr int most_shared_bytes() const {
    return std::min(100 * 1024, 228 * 1024 / blocks_per_sm) - 1024;
  }
};

// clang-format off
inline constexpr NchwWgradConfig kNchwWgradConfigs[] = {
    // name                cpg stride channels slots co_tiles slot_parts row_parts blocks_per_sm
    {"nchw_wgrad_c4_s1",    4,  1,     16,      64,   1,       4,         1,        2},
    {"nchw_wgrad_c8_s1",    8,  1,     16,      64,   1,       4,         1,        2},
    {"nchw_wgrad_c16_s1",  16,  1,     16,      32,   1,       2,         2,        3},
    {"nchw_wgrad_c32_s1",  32,  1,     32,      64,   2,       4,         1,        1},
    {"nchw_wgrad_c64_s1",  64,  1,     64,      32,   2,       1,         1,        1},
    {"nchw_wgrad_c4_s2",    4,  2,     16,      32,   1,       2,         2,        2},
    {"nchw_wgrad_c8_s2",    8,  2,     16,      32,   1,       2,         2,        2},
    {"nchw_wgrad_c16_s2",  16,  2,     16,      16,   1,       1,         4,        3},
    {"nchw_wgrad_c32_s2",  32,  2,     32,      16,   2,       1,         4,        1},
    {"nchw_wgrad_c64_s2",  64,  2,     64,      16,   2,       1,         1,        1},
};
// clang-format on
inline constexpr int kNchwWgradConfigCount = int(std::size(kNchwWgradConfigs));

// A tile is a row of `images` images side by side in the slots, `pitch` apart, which is even: two
// pixels that are multiplied together are of one image. Or it is one strip of a row. A band is
// `rows_of_band` rows of dy of a tile, with the rows of x that it meets; those of all tiles, one
// after the other, are dealt out to the splits in equal runs. Bands of x take turns in two places,
// those of dy in `dy_places`: three where a band looks at the last rows of dy of the one before.
struct NchwWgradPlan {
  WgradPlan tiles;  // `config` is an index into kNchwWgradConfigs, `rows` are bands
  NchwBands x, dy;
  int rows_of_band, bands_of_tile;
  int dy_places;

  // Places lie 16 bytes apart, for the taps of a row's first and last columns.
  static constexpr int kGap = 16;
  constexpr int x_place_bytes() const { return x.bytes + kGap; }
  constexpr int dy_place_bytes() const { return dy.bytes + kGap; }
  constexpr int band_bytes() const {
    return kGap + 2 * x_place_bytes() + dy_places * dy_place_bytes();
  }
  constexpr int shared_bytes() const {
    return std::max(band_bytes(), kNchwWgradConfigs[tiles.config].sum_bytes());
  }
  constexpr int64_t blocks() const { return tiles.blocks(); }
};

// Bytes of a channel plane up to which whole images are copied in one run, or half of them where
// every second pixel is wanted. Larger planes lose little by runs of their own, whose pitch keeps
// them off each other's banks.
inline constexpr int kMostPlaneOfImageRun = 512;

// Of a plan's tiles; tells whether the bands fit.
constexpr bool cut_wgrad_bands(NchwWgradPlan& plan, const ConvProblem& p, int rows_of_band) {
  const NchwWgradConfig& config = kNchwWgradConfigs[plan.tiles.config];
  const bool strips = plan.tiles.strips > 1;
  plan.rows_of_band = std::min(rows_of_band, int(p.P));
  plan.bands_of_tile = int(ceil_div(p.P, plan.rows_of_band));
  const bool whole = plan.bands_of_tile == 1;
  plan.dy_places = whole ? 2 : 3;
  const auto runs_of = [&](int64_t pixels, int stride) {
    if (strips) return Runs::kRow;
    return whole && 2 * pixels * stride <= kMostPlaneOfImageRun ? Runs::kImage : Runs::kRows;
  };
  NchwTile tile{};
  tile.images = plan.tiles.images;
  tile.channels = config.channels;
  tile.rows_of_step = 1;
  tile.whole_images = whole;
  tile.height = int(p.H);
  tile.width = int(p.W);
  tile.columns = strips ? config.stride * (plan.tiles.strip - 1) + 3 : tile.width;
  const int x_rows = config.stride * plan.rows_of_band + 3 - config.stride;
  plan.x = bands_of(tile, runs_of(p.H * p.W, config.stride), std::min(x_rows, tile.height));
  tile.height = int(p.P);
  tile.width = int(p.Q);
  tile.columns = strips ? plan.tiles.strip : tile.width;
  plan.dy = bands_of(tile, runs_of(p.P * p.Q, 1), plan.rows_of_band);
  return plan.shared_bytes() <= config.most_shared_bytes();
}

// As many images side by side as fit as a whole; else bands of rows, eight of them if they fit,
// which are whole sectors of an even width.
constexpr void cut_wgrad_tiles(NchwWgradPlan& plan, const ConvProblem& p) {
  constexpr int kMostWholeRows = 16;
  constexpr int kMostRows = 8, kLeastRows = 4;
  const int stride = kNchwWgradConfigs[plan.tiles.config].stride;
  const int most_images = plan.tiles.images;
  if (p.P <= kMostWholeRows) {
    for (; plan.tiles.images >= (most_images + 1) / 2; --plan.tiles.images) {
      if (cut_wgrad_bands(plan, p, int(p.P))) return;
    }
  }
  plan.tiles.images = most_images;
  for (;; --plan.tiles.images) {
    // A band looks back at two rows of dy, or one at stride 2, of the band before it.
    const int least = plan.tiles.images > 1 ? kLeastRows : 3 - stride;
    for (int rows = kMostRows; rows >= least; --rows) {
      if (cut_wgrad_bands(plan, p, rows)) return;
    }
  }
}

// Whether `config` computes the problem.
inline bool nchw_wgrad_supports(const NchwWgradConfig& config, const ConvProblem& p) {
  return wgrad_supports(config, p);
}

inline NchwWgradPlan plan_nchw_wgrad(int config_index, const ConvProblem& p, int sm_count) {
  const NchwWgradConfig& config = kNchwWgradConfigs[config_index];
  NchwWgradPlan plan{};
  WgradPlan& tiles = plan.tiles;
  tiles.config = config_index;
  tiles.pitch = int(p.Q + p.Q % 2);
  if (tiles.pitch <= config.slots) {
    tiles.images = int(std::min({config.slots / int64_t(tiles.pitch), p.N,
                                 kMaxImageBytes / std::max<int64_t>(wgrad_image_bytes(p), 1)}));
    tiles.strips = 1;
    tiles.strip = int(p.Q);
  } else {
    tiles.images = 1;
    tiles.strips = int(ceil_div(p.Q, config.slots));
    tiles.strip = int(ceil_div(p.Q, tiles.strips));
    tiles.pitch = config.slots;
  }
  cut_wgrad_tiles(plan, p);
  tiles.rows = int(ceil_div(p.N, tiles.images) * tiles.strips * plan.bands_of_tile);
  tiles.channel_blocks = int(ceil_div(p.C, config.channels));

  const int64_t x_pixels = config.stride * config.stride;
  const int64_t band_bytes = 2 * config.channels * int64_t(tiles.images) * tiles.strip *
                             plan.rows_of_band * (1 + x_pixels);
  // A band until the first one arrives, and the partial sums written and read.
  const int64_t block_bytes =
      band_bytes + 2 * 4 * 9 * int64_t(config.channels) * config.c_per_group;
  tiles.splits = wgrad_splits(tiles.rows, band_bytes, block_bytes, tiles.channel_blocks,
                              config.warps(), config.blocks_per_sm, sm_count);
  return plan;
}

inline NchwWgradPlan plan_nchw_wgrad(const ConvProblem& p, int sm_count) {
  int index = 0;
  while (!nchw_wgrad_supports(kNchwWgradConfigs[index], p)) ++index;
  return plan_nchw_wgrad(index, p, sm_count);
}

}  // namespace grouped_conv::cuda
