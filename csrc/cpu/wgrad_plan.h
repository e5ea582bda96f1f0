// How a weight gradient is cut into tasks, and what lies where in their strips.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "slabs.h"
#include "wgrad_tile.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Where the second pixel of a word lies, counted from the first.
struct PixelPair {
  int64_t images, rows;
};

// Rows of x and dy as strips whose words hold kPixelsPerWord pixels; pairs.h has the one for two.
template <int kPixelsPerWord, class E>
struct PixelLoader {
  static_assert(kPixelsPerWord == 1);

  // Rows [h_begin, h_end) of the words' first pixels, where they are rows of t.
  static void load(const Activation<E>& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                   int64_t h_end, const PixelPair& /*second*/, const StripRows& strip) {
    h_begin = max64(0, h_begin), h_end = min64(t.h, h_end);
    if (h_begin < h_end) {
      load_rows<WordLoader<1, E>>(t, n, c0, channels, h_begin, h_end, 0, t.w, strip);
    }
  }
};

// Bytes of one unit's strips, which stay in L1, and of a block's strips and sums, which stay in L2.
constexpr int64_t kWgradStripBudget = int64_t{14} << 10;
constexpr int64_t kWgradBlockBudget = int64_t{128} << 10;
// Output pixels summed in registers: fewer in images so small that they would make few runs.
inline int64_t run_pixels(const ConvProblem& p) { return p.P * p.Q < 192 ? 32 : 56; }
// Register sums added up in one chain.
constexpr int64_t kChainRuns = 16;
// Tasks wanted, so that many threads find work, and the bytes that sums of several chunks may take:
// fixed, for results must not depend on the threads.
constexpr int64_t kWgradTasks = 64;
constexpr int64_t kWgradChunkBudget = int64_t{8} << 20;
// Of Winograd's algorithm: places of the transform domain, input channels whose sums are in
// registers at a time, and the tiles summed there.
constexpr int kPlaces = 16;
constexpr int kSumChannels = Vec::kLanes > 8 ? Vec::kLanes : 8;
constexpr int64_t kWinogradTiles = 32;

struct WgradPlan {
  ConvProblem p;
  Slabs s;
  int64_t passes;    // over images, or pairs of images; with kPixels 1 or an even batch fewer than
                     // N means pairs
  PixelPair second;  // of a word of dy
  int64_t rows;      // output rows of a pass
  int64_t x_row;     // floats of one strip row of x, one chunk of kLanes channels
  int64_t dy_row;    // floats of one strip row of dy, one slab
  // What is brought at once, for lines hold more than one vector's channels: units of x, and slabs
  // of dy.
  int64_t units_at_once, slabs_at_once;
  int64_t band_rows;  // output rows per band
  int64_t run_rows;   // most output rows summed in registers
  int64_t chunks, chunk_passes;
  int64_t chain_passes;  // passes whose runs are added up in one chain
  int64_t units_per_block, blocks;
  int64_t slab_floats;  // sums of one slab: [c_per_group][9][kLanes]
  bool dw_channels_last;
  bool winograd;
  bool in_place;     // there are no strips: the transforms read channels_last pixels
  int64_t sum_runs;  // of kSumChannels input channels

  int64_t window() const { return (band_rows - 1) * p.stride_h + 3; }
  int64_t unit_floats() const { return s.slabs_per_unit * slab_floats; }
  int64_t tile_cols() const { return ceil_div(p.Q, 2); }
  int64_t band_tiles() const { return ceil_div(band_rows, 2) * tile_cols(); }
  int64_t unit_winograd_floats() const {
    return winograd ? s.slabs_per_unit * sum_runs * kPlaces * kSumChannels * Vec::kLanes : 0;
  }
  int64_t x_chunk() const { return window() * x_row + Vec::kLanes; }  // strips of one chunk
  int64_t x_floats() const { return in_place ? 0 : s.in_chunks * x_chunk(); }  // of one unit
  int64_t dy_slab() const { return in_place ? 0 : band_rows * dy_row; }        // of one slab
  int64_t tasks() const { return blocks * chunks; }
  int64_t image(int64_t pass) const { return pass * (second.images + 1); }
};

// Output rows of a band of which `bytes(rows)` are the strips of a unit.
template <class Bytes>
inline int64_t direct_band_rows(const WgradPlan& plan, const Bytes& bytes) {
  int64_t rows = 1;
  while (rows < plan.rows &&
         bytes(rows + 1) <= (rows < plan.run_rows ? 2 : 1) * kWgradStripBudget) {
    ++rows;
  }
  return ceil_div(plan.rows, ceil_div(plan.rows, rows));  // bands of one size
}

inline int64_t winograd_band_rows(const WgradPlan& plan) {
  const int64_t tile_rows = ceil_div(plan.rows, 2);
  const int64_t most = max64(1, kWinogradTiles / max64(1, plan.tile_cols()));
  return 2 * max64(1, ceil_div(tile_rows, ceil_div(tile_rows, most)));
}

inline WgradPlan make_wgrad_plan(const PassArgs& args, bool winograd) {
  WgradPlan plan{};
  plan.winograd = winograd;
  plan.in_place = winograd && args.layout == Layout::kNHWC;
  plan.p = args.problem;
  const ConvProblem& p = plan.p;
  plan.s = make_slabs(p.G, p.C / p.G, p.K / p.G, Vec::kLanes);
  plan.passes = p.N, plan.rows = p.P;
  if (kPixels == 2 && p.N % 2 == 0) {
    plan.second.images = 1;
    plan.passes /= 2;
  } else if (kPixels == 2) {
    plan.second.rows = plan.rows = ceil_div(p.P, 2);
  }
  plan.x_row = p.W * Vec::kLanes;
  plan.dy_row = p.Q * Vec::kLanes;
  plan.slab_floats = plan.s.in_per_group * kTaps * Vec::kLanes;
  plan.units_at_once = plan.slabs_at_once = 1;
  if (kPixels == 2 && args.layout == Layout::kNHWC) {
    plan.slabs_at_once = 2;
    plan.units_at_once = plan.s.in_unit == Vec::kLanes && plan.s.out_unit == Vec::kLanes ? 2 : 1;
  }
  plan.dw_channels_last = args.w_layout == Layout::kNHWC;
  plan.sum_runs = ceil_div(plan.s.in_per_group, kSumChannels);
  const auto bytes = [&](int64_t rows) {
    return static_cast<int64_t>(sizeof(float)) *
           (((rows - 1) * p.stride_h + 3) * plan.s.in_chunks * plan.x_row + rows * plan.dy_row);
  };
  plan.run_rows = max64(1, run_pixels(p) / p.Q);
  plan.band_rows = winograd ? winograd_band_rows(plan) : direct_band_rows(plan, bytes);
  const int64_t chunk_bytes = sizeof(float) * plan.s.slabs() * plan.slab_floats;
  plan.chunks = max64(1, min64(plan.passes, min64(ceil_div(kWgradTasks, plan.s.units),
                                                  kWgradChunkBudget / chunk_bytes)));
  plan.chunk_passes = ceil_div(plan.passes, plan.chunks);
  plan.chunks = max64(1, ceil_div(plan.passes, max64(1, plan.chunk_passes)));

  const int64_t bands = ceil_div(plan.rows, plan.band_rows);
  const int64_t band_runs = winograd ? 1 : ceil_div(plan.band_rows, plan.run_rows);
  plan.chain_passes = max64(1, kChainRuns / max64(1, bands * band_runs));

  const int64_t unit_bytes =
      sizeof(float) * (plan.x_floats() + plan.unit_floats() + plan.unit_winograd_floats());
  const int64_t wanted = args.parallel.threads == 1 ? 1 : 4 * args.parallel.threads;
  plan.units_per_block = max64(1, min64(plan.s.units, kWgradBlockBudget / unit_bytes));
  while (plan.units_per_block > 1 &&
         ceil_div(plan.s.units, plan.units_per_block) * plan.chunks < wanted) {
    --plan.units_per_block;
  }
  plan.blocks = ceil_div(plan.s.units, plan.units_per_block);
  plan.units_per_block = ceil_div(plan.s.units, plan.blocks);  // blocks of one size
  plan.blocks = ceil_div(plan.s.units, plan.units_per_block);
  return plan;
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
