// Winograd convolution F(2x2, 3x3) for fprop and dgrad at stride 1 with 16 or more channels per
// group, both layouts, float32 sums: 16 multiplications where the direct kernels need 36.
//
//   out = A^T [ sum_c (G w G^T) * (B^T in B) ] A      for each 2x2 tile of outputs
//
// A block of tiles is carried through all three transforms while it is in L1: 4x4 inputs become V,
// read straight from an NHWC tensor or from strips of transposed NCHW rows; each of the four rows
// of the transform domain is multiplied in registers, 4 columns x kBlockTiles tiles of kLanes
// output channels, and leaves them reduced to the two columns of outputs; the rows are added up on
// the way to the output. What an odd extent cuts off the last tiles is not multiplied. The weights
// G w G^T are made once per call.
//
// A transform mixes inputs of the whole tile. So an Inf or NaN, or a sum that overflows, would
// reach outputs that it has nothing to do with: an image's group with an output that is not finite
// is computed again by the direct kernel. Each output is summed in one order: results do not depend
// on how the work is split. Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
// Networks, 2016.
#pragma once

#include <cstdint>
#include <cstring>

#include "correlation.h"
#include "cpu_info.h"
#include "direct_conv.h"
#include "epilogue.h"
#include "kernels.h"
#include "scratch.h"
#include "slabs.h"
#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Tiles of a block: 4 x 7 sums in 32 vector registers, 4 x 3 in 16.
constexpr int kBlockTiles = Vec::kTileRows == 2 ? 7 : 3;
// Channels whose products are summed in one chain.
constexpr int kRun = Vec::kRunWords;
static_assert(kRun % Vec::kLanes == 0);
// Floats of V per run: [row][column][tile][channel].
constexpr int kRunFloats = 16 * kBlockTiles * kRun;
// Bytes of transformed weights that the units of a block share L2 with.
constexpr int64_t kWinogradBlock = int64_t{128} << 10;
// Bytes of transformed weights that exist at a time.
constexpr int64_t kWinogradWave = int64_t{4} << 20;

// One row of the transform domain: all products over one run of channels.
struct ProductArgs {
  const float* v;  // [4][kBlockTiles][kRun]
  const float* u;  // [channels][4][kLanes]
  int channels;
  bool add;               // to the sums of earlier runs
  float* sums;            // [kBlockTiles][2][kLanes]
  Ahead inputs, outputs;  // wanted by later blocks
};

using ProductFunction = void (*)(const ProductArgs&);

// Tiles that keep one column of outputs need three columns of products.
template <int kCols, int kTiles>
__attribute__((flatten)) void products(const ProductArgs& a) {
  constexpr int L = Vec::kLanes;
  Vec::Reg acc[kCols][kTiles];
  unroll<kCols>([&](auto j) { unroll<kTiles>([&](auto t) { acc[j][t] = Vec::zero(); }); });
  const float *v = a.v, *u = a.u;
  Ahead inputs = a.inputs, outputs = a.outputs;
  for (int c = 0; c < a.channels; ++c, ++v, u += 4 * L) {
    inputs.ask();
    outputs.ask();
    unroll<kCols>([&](auto j) {
      const Vec::Reg weight = Vec::load(u + j * L);
      unroll<kTiles>([&](auto t) {
        acc[j][t] = Vec::fma(Vec::broadcast(v + (j * kBlockTiles + t) * kRun), weight, acc[j][t]);
      });
    });
  }
  unroll<kTiles>([&](auto t) {
    const auto finish = [&](float* sum, Vec::Reg value) {
      Vec::store(sum, a.add ? Vec::add(Vec::load(sum), value) : value);
    };
    float* sums = a.sums + t * 2 * L;
    finish(sums, Vec::add(Vec::add(acc[0][t], acc[1][t]), acc[2][t]));
    if constexpr (kCols == 4) {
      finish(sums + L, Vec::sub(Vec::sub(acc[1][t], acc[2][t]), acc[3][t]));
    }
  });
}

template <int kCols, int... kTiles>
inline ProductFunction select_products(int64_t tiles, std::integer_sequence<int, kTiles...>) {
  static constexpr ProductFunction kTable[] = {products<kCols, kTiles + 1>...};
  return kTable[tiles - 1];
}

inline ProductFunction select_products(int cols, int64_t tiles) {
  using Tiles = std::make_integer_sequence<int, kBlockTiles>;
  return cols == 2 ? select_products<4>(tiles, Tiles{}) : select_products<3>(tiles, Tiles{});
}

struct WinogradPlan : WorkSplit {  // of the units of a wave
  Correlation c;
  Slabs s;
  int64_t tile_rows;
  int64_t step_rows;   // tile rows that are done at a time
  int64_t step_calls;  // calls of products() for one unit
  int64_t window;      // input rows of a step
  int64_t runs;
  int64_t strip_row, out_strip_row;  // floats of one row on its way from or to an NCHW tensor
  bool nhwc, stream;
  int64_t wave_units;

  int64_t unit_weights() const { return s.slabs_per_unit * slab_weights(); }
  int64_t slab_weights() const { return 16 * c.in_per_group * Vec::kLanes; }
  int64_t strip_floats() const { return nhwc ? 0 : window * strip_row; }
  int64_t out_strip_floats() const { return nhwc ? 0 : 2 * step_rows * out_strip_row; }
  // Weights that one task alone needs are made by it, into memory that stays in its L2.
  bool task_transforms() const { return images * bands == 1; }
};

inline WinogradPlan make_winograd_plan(const PassArgs& args) {
  WinogradPlan plan{};
  plan.c = make_correlation(args);
  const Correlation& c = plan.c;
  plan.s = make_slabs(c.groups, c.in_per_group, c.out_per_group, Vec::kLanes);
  plan.tile_rows = ceil_div(c.out_h, 2);
  // Enough rows to fill a block; the tiles at the end of odd rows make blocks of their own.
  const int64_t full = c.out_w / 2;
  plan.step_rows = c.out_w % 2 != 0 ? 4 : max64(1, kBlockTiles / full);
  plan.step_rows = min64(plan.step_rows, plan.tile_rows);
  plan.window = 2 * plan.step_rows + 2;
  plan.runs = ceil_div(c.in_per_group, kRun);
  const int64_t blocks = ceil_div(full * plan.step_rows, kBlockTiles) +
                         ceil_div(c.out_w % 2 * plan.step_rows, kBlockTiles);
  plan.step_calls = 4 * blocks * plan.runs * plan.s.slabs_per_unit;
  plan.nhwc = args.layout == Layout::kNHWC;
  plan.strip_row = plan.s.in_chunks * c.in_w * Vec::kLanes;
  plan.out_strip_row = c.out_w * Vec::kLanes;
  plan.stream = plan.nhwc && streams_output(args, c, plan.s);
  const int64_t unit_bytes = sizeof(float) * plan.unit_weights();
  plan.wave_units = max64(1, min64(plan.s.units, kWinogradWave / unit_bytes));
  plan.wave_units = ceil_div(plan.s.units, ceil_div(plan.s.units, plan.wave_units));
  plan.split(c.N, plan.wave_units, kWinogradBlock / unit_bytes, plan.tile_rows, plan.step_rows,
             max64(1, plan.tile_rows / (2 * plan.step_rows)), args.parallel.threads);
  return plan;
}

// The weights of one slab, G w G^T, as [row][input channel][column][kLanes].
template <class E>
inline void transform_weights(const WinogradPlan& plan, const typename E::T* w, int64_t slab,
                              float* packed, float* out) {
  constexpr int L = Vec::kLanes;
  WeightPacker<1, E>::slab(plan.c, plan.s, w, slab, packed);
  constexpr float kHalves[] = {0.5f, -0.5f};
  const Vec::Reg half = Vec::broadcast(kHalves), minus_half = Vec::broadcast(kHalves + 1);
  // The product of G with three values.
  const auto expand = [&](Vec::Reg a, Vec::Reg b, Vec::Reg c, Vec::Reg(&to)[4]) {
    const Vec::Reg ends = Vec::fma(half, Vec::add(a, c), Vec::zero());
    to[0] = a, to[1] = Vec::fma(half, b, ends), to[2] = Vec::fma(minus_half, b, ends), to[3] = c;
  };
  const int64_t row = plan.c.in_per_group * 4 * L;
  for (int64_t c = 0; c < plan.c.in_per_group; ++c, packed += kTaps * L, out += 4 * L) {
    Vec::Reg cols[3][4];
    unroll<3>([&](auto s) {
      expand(Vec::load(packed + s * L), Vec::load(packed + (3 + s) * L),
             Vec::load(packed + (6 + s) * L), cols[s]);
    });
    unroll<4>([&](auto i) {
      Vec::Reg u[4];
      expand(cols[0][i], cols[1][i], cols[2][i], u);
      unroll<4>([&](auto j) { Vec::store(out + i * row + j * L, u[j]); });
    });
  }
}

// The inputs of a tile: its four rows at its first column. Rows of zeros have steps of zero.
template <class T>
struct TileRows {
  const T* at[4];
  int64_t pixel[4], chunk[4];  // elements between pixels and between chunks of kLanes channels
};

// One walk down a band of tile rows for one block of units.
template <class E>
class WinogradTask {
  using T = typename E::T;

 public:
  // weights: of the wave's units, unless plan.task_transforms(). not_finite: one flag per image,
  // unit and band.
  WinogradTask(const WinogradPlan& plan, const PassArgs& args, int64_t first_unit, int64_t end_unit,
               const float* weights, uint8_t* not_finite)
      : plan_(plan),
        kernels_(static_cast<const T*>(args.w)),
        bias_(static_cast<const T*>(args.bias)),
        epilogue_(args.epilogue),
        has_epilogue_(!args.epilogue.empty()),
        first_unit_(first_unit),
        end_unit_(end_unit),
        weights_(weights),
        not_finite_(not_finite),
        scratch_(ScratchSlot::kTask, sizeof(float) * scratch_floats(plan)) {
    const bool fprop = args.pass == Pass::kFprop;
    const Correlation& c = plan.c;
    in_ = {static_cast<T*>(fprop ? args.x : args.y), plan.nhwc, c.in_channels, c.in_h, c.in_w};
    out_ = {static_cast<T*>(fprop ? args.y : args.x), plan.nhwc, c.out_channels, c.out_h, c.out_w};
    v_ = scratch_.floats();
    sums_ = v_ + plan.runs * kRunFloats;
    ring_ = sums_ + kSumFloats;
    out_strip_ = ring_ + plan.units_per_block * plan.strip_floats();
    own_weights_ = out_strip_ + plan.s.slabs_per_unit * plan.out_strip_floats();
  }

  // `next` is the task that this thread runs after this one, or the number of tasks.
  void run(int64_t task, int64_t next) {
    const Range at = range(task);
    if (plan_.task_transforms()) transform_own_weights(at);
    int64_t loaded = INT64_MIN;  // input rows below this one are in the rings
    for (int64_t row = at.row_begin; row < at.row_end; row += plan_.step_rows) {
      const int64_t first = 2 * row + plan_.c.rows[0].in_offset;
      for (int64_t unit = at.unit_begin; unit < at.unit_end; ++unit) {
        float* strip = ring_ + (unit - at.unit_begin) * plan_.strip_floats();
        if (!plan_.nhwc) load(at.n, unit, max64(first, loaded), first + plan_.window, strip);
        look_ahead(at, unit, row, next);
        step(at, unit, row, min64(plan_.step_rows, at.row_end - row), strip);
      }
      loaded = first + plan_.window;
    }
    if (plan_.stream) Vec::fence();
  }

 private:
  static constexpr int64_t kSumFloats = 4 * kBlockTiles * 2 * Vec::kLanes;

  static int64_t scratch_floats(const WinogradPlan& plan) {
    const int64_t weights = plan.task_transforms() ? plan.units_per_block * plan.unit_weights() +
                                                         packed_slab_floats(plan.c)
                                                   : 0;
    return plan.runs * kRunFloats + kSumFloats + plan.units_per_block * plan.strip_floats() +
           plan.s.slabs_per_unit * plan.out_strip_floats() + weights;
  }

  struct Range {
    int64_t n, band, unit_begin, unit_end, row_begin, row_end;
  };

  struct Tile {
    int64_t row, col;
  };

  // Tiles [0, tall) have two rows of outputs, those behind them one; all have `cols` columns.
  struct Block {
    Tile tiles[kBlockTiles];
    int count, tall, cols;
  };

  Range range(int64_t task) const {
    Range at{};
    at.band = task % plan_.bands;
    const int64_t block = task / plan_.bands % plan_.blocks;
    at.n = task / plan_.bands / plan_.blocks;
    at.unit_begin = min64(end_unit_, first_unit_ + block * plan_.units_per_block);
    at.unit_end = min64(end_unit_, at.unit_begin + plan_.units_per_block);
    at.row_begin = at.band * plan_.band_rows;
    at.row_end = min64(plan_.tile_rows, at.row_begin + plan_.band_rows);
    return at;
  }

  void transform_own_weights(const Range& at) {
    first_unit_weights_ = at.unit_begin;
    weights_ = own_weights_;
    float* const packed = own_weights_ + plan_.units_per_block * plan_.unit_weights();
    float* out = own_weights_;
    const int64_t slabs = plan_.s.slabs_per_unit;
    for (int64_t slab = at.unit_begin * slabs; slab < at.unit_end * slabs; ++slab) {
      transform_weights<E>(plan_, kernels_, slab, packed, out);
      out += plan_.slab_weights();
    }
  }

  StripRows strip_rows(float* strip) const {
    return {strip, plan_.window, plan_.strip_row, plan_.c.in_w * Vec::kLanes, 0, 0};
  }

  void load(int64_t n, int64_t unit, int64_t h_begin, int64_t h_end, float* strip) const {
    h_begin = max64(0, h_begin), h_end = min64(plan_.c.in_h, h_end);
    if (h_begin >= h_end) return;
    load_rows<WordLoader<1, E>>(in_, n, plan_.s.in_begin(unit), plan_.s.in_count(unit), h_begin,
                                h_end, 0, plan_.c.in_w, strip_rows(strip));
  }

  // As in direct_conv.h: one unit's share of what the next step, or the next task, touches.
  void look_ahead(const Range& at, int64_t unit, int64_t row, int64_t next) {
    const Correlation& c = plan_.c;
    const Slabs& s = plan_.s;
    inputs_ = outputs_ = {};
    Range to = at;
    int64_t fresh = 2 * plan_.step_rows;
    row += plan_.step_rows;
    if (row >= at.row_end) {
      if (next >= plan_.tasks()) return;
      to = range(next);
      row = to.row_begin, fresh = plan_.window;
    }
    const int64_t in_end = 2 * row + c.rows[0].in_offset + plan_.window;
    inputs_ =
        walk_rows(in_, to.n, s.in_begin(to.unit_begin), (to.unit_end - to.unit_begin) * s.in_unit,
                  max64(0, in_end - fresh), min64(c.in_h, in_end));
    inputs_.take_share(unit - at.unit_begin, at.unit_end - at.unit_begin);
    inputs_quota_ = ceil_div(inputs_.outer, plan_.step_calls);
    if (!plan_.nhwc || plan_.stream) return;
    outputs_ = walk_rows(out_, to.n, to.unit_begin * s.out_unit,
                         (to.unit_end - to.unit_begin) * s.out_unit, 2 * row,
                         min64(c.out_h, 2 * (row + plan_.step_rows)));
    outputs_.take_share(unit - at.unit_begin, at.unit_end - at.unit_begin);
    outputs_quota_ = ceil_div(outputs_.outer, plan_.step_calls);
  }

  // All outputs of one unit for tile rows row .. row + rows - 1.
  void step(const Range& at, int64_t unit, int64_t row, int64_t rows, float* strip) {
    const Correlation& c = plan_.c;
    const int64_t k0 = unit * plan_.s.out_unit;
    const int64_t out_begin = 2 * row, out_end = min64(c.out_h, 2 * (row + rows));
    if (!plan_.nhwc) {
      outputs_ = walk_rows(out_, at.n, k0, plan_.s.out_unit, out_begin, out_end);
      outputs_quota_ = ceil_div(outputs_.outer, plan_.step_calls);
    }
    Vec::Reg check = Vec::zero();
    // Tiles two columns wide, then those that an odd width leaves.
    for (int cols = 2; cols >= 1; --cols) {
      const int64_t width = cols == 2 ? c.out_w / 2 : c.out_w % 2;
      const int64_t total = width * rows, blocks = ceil_div(total, kBlockTiles);
      Tile tile{row, cols == 2 ? 0 : c.out_w / 2};
      for (int64_t b = 0; b < blocks; ++b) {
        Block block{};
        block.cols = cols;
        for (int64_t left = total * (b + 1) / blocks - total * b / blocks; left > 0; --left) {
          block.tiles[block.count++] = tile;
          block.tall += 2 * tile.row + 1 < c.out_h;
          if (cols == 1 || ++tile.col == width) tile.col -= width * (cols - 1), ++tile.row;
        }
        if (plan_.nhwc) {
          transform_inputs<E>(block, in_.channels, Vec::kLanes, [&](int64_t h) {
            return in_.at(at.n, plan_.s.in_begin(unit), h, 0);
          });
        } else {
          const StripRows from = strip_rows(strip);
          transform_inputs<ElementF32>(block, Vec::kLanes, from.chunk,
                                       [&](int64_t h) { return from.at(h); });
        }
        for (int64_t i = 0; i < plan_.s.slabs_per_unit; ++i) {
          const int64_t slab = unit * plan_.s.slabs_per_unit + i;
          multiply(block, slab);
          if (plan_.nhwc) {
            T* const out = out_.at(at.n, plan_.s.out_begin(slab), 0, 0);
            transform_outputs<E>(block, slab, out, residual_of(out), c.out_w * out_.channels,
                                 out_.channels, plan_.s.lanes(slab), check);
          } else {
            transform_outputs<ElementF32>(
                block, slab,
                out_strip_ + i * plan_.out_strip_floats() - out_begin * plan_.out_strip_row,
                nullptr, plan_.out_strip_row, Vec::kLanes, Vec::kLanes, check);
          }
        }
      }
    }
    if (!plan_.nhwc) {
      for (int64_t i = 0; i < plan_.s.slabs_per_unit; ++i) {
        const int64_t slab = unit * plan_.s.slabs_per_unit + i;
        const auto store = [&](const auto& finish) {
          store_rows<E>(out_, at.n, plan_.s.out_begin(slab), plan_.s.lanes(slab), out_begin, 1,
                        static_cast<int>(out_end - out_begin),
                        out_strip_ + i * plan_.out_strip_floats(), plan_.out_strip_row, finish);
        };
        if (epilogue_.residual != nullptr) {
          store(AddResidual<E>{static_cast<const T*>(epilogue_.residual),
                               activation_floor(epilogue_)});
        } else {
          store(Finished{});
        }
      }
    }
    float lanes[Vec::kLanes];
    Vec::store(lanes, check);
    for (const float lane : lanes) {
      if (lane != 0.0f) {
        not_finite_[(at.n * plan_.s.units + unit) * plan_.bands + at.band] = 1;
      }
    }
  }

  // V of one block. S is the type of the rows that row_of(h) gives, whose pixels and chunks of
  // kLanes channels are `pixel` and `chunk` elements apart.
  template <class S, class RowOf>
  void transform_inputs(const Block& block, int64_t pixel, int64_t chunk, const RowOf& row_of) {
    constexpr int L = Vec::kLanes;
    static constexpr typename S::T kZeros[L] = {};
    const Correlation& c = plan_.c;
    TileRows<typename S::T> rows[kBlockTiles];
    for (int t = 0; t < block.count; ++t) {
      const Tile& tile = block.tiles[t];
      if (t > 0 && block.tiles[t - 1].row == tile.row) {
        rows[t] = rows[t - 1];
        for (int i = 0; i < 4; ++i) rows[t].at[i] += 2 * rows[t].pixel[i];
        continue;
      }
      for (int i = 0; i < 4; ++i) {
        const int64_t h = 2 * tile.row + c.rows[0].in_offset + i;
        const bool inside = h >= 0 && h < c.in_h;
        rows[t].pixel[i] = inside ? pixel : 0, rows[t].chunk[i] = inside ? chunk : 0;
        rows[t].at[i] = inside ? row_of(h) + (2 * tile.col + c.cols[0].in_offset) * pixel : kZeros;
      }
    }
    for (int64_t i = 0; i < plan_.s.in_chunks; ++i) {
      float* v = v_ + i * L / kRun * kRunFloats + i * L % kRun;
      const int channels = static_cast<int>(min64(L, c.in_per_group - i * L));
      if (channels == L) {
        transform_chunk<S, true>(block, rows, i, L, v);
      } else {
        transform_chunk<S, false>(block, rows, i, channels, v);
      }
    }
  }

  template <class S, bool kWhole>
  __attribute__((flatten)) void transform_chunk(const Block& block,
                                                const TileRows<typename S::T>* rows, int64_t chunk,
                                                int channels, float* v) const {
    const int64_t in_w = plan_.c.in_w, col_offset = plan_.c.cols[0].in_offset;
    // Columns 0 and 1 of a tile, and 2 and 3, which are 0 and 1 of its neighbour.
    Vec::Reg left[2][4], right[2][4];
    for (int t = 0; t < block.count; ++t, v += kRun) {
      const int64_t first = 2 * block.tiles[t].col + col_offset;
      const typename S::T* at[4];
      int64_t pixel[4];
      unroll<4>([&](auto i) {
        pixel[i] = rows[t].pixel[i];
        at[i] = rows[t].at[i] + chunk * rows[t].chunk[i];
      });
      const auto column = [&](auto j, Vec::Reg(&to)[4]) {
        if (first + j < 0 || first + j >= in_w) {
          unroll<4>([&](auto i) { to[i] = Vec::zero(); });
          return;
        }
        Vec::Reg d[4];
        unroll<4>([&](auto i) {
          const typename S::T* p = at[i] + j * pixel[i];
          d[i] = kWhole ? S::load(p) : S::load_partial(p, channels);
        });
        to[0] = Vec::sub(d[0], d[2]), to[1] = Vec::add(d[1], d[2]);
        to[2] = Vec::sub(d[2], d[1]), to[3] = Vec::sub(d[1], d[3]);
      };
      if (t > 0 && block.tiles[t - 1].row == block.tiles[t].row) {
        unroll<2>([&](auto j) { unroll<4>([&](auto i) { left[j][i] = right[j][i]; }); });
      } else {
        unroll<2>([&](auto j) { column(j, left[j]); });
      }
      unroll<2>(
          [&](auto j) { column(std::integral_constant<int, decltype(j)::value + 2>{}, right[j]); });
      unroll<4>([&](auto i) {
        const auto store = [&](int j, Vec::Reg value) {
          Vec::store(v + (i * 4 + j) * kBlockTiles * kRun, value);
        };
        store(0, Vec::sub(left[0][i], right[0][i]));
        store(1, Vec::add(left[1][i], right[0][i]));
        store(2, Vec::sub(right[0][i], left[1][i]));
        store(3, Vec::sub(left[1][i], right[1][i]));
      });
    }
  }

  void multiply(const Block& block, int64_t slab) {
    constexpr int L = Vec::kLanes;
    const int64_t channels = plan_.c.in_per_group;
    const float* u =
        weights_ + (slab - first_unit_weights_ * plan_.s.slabs_per_unit) * plan_.slab_weights();
    for (int i = 0; i < 4; ++i) {
      const int tiles = i < 3 ? block.count : block.tall;
      if (tiles == 0) continue;
      const ProductFunction multiply_row = select_products(block.cols, tiles);
      for (int64_t run = 0; run < plan_.runs; ++run) {
        const int in_run = static_cast<int>(min64(kRun, channels - run * kRun));
        multiply_row({v_ + run * kRunFloats + i * 4 * kBlockTiles * kRun,
                      u + (i * channels + run * kRun) * 4 * L, in_run, run > 0,
                      sums_ + i * kBlockTiles * 2 * L, inputs_.take(inputs_quota_, in_run),
                      outputs_.take(outputs_quota_, in_run)});
      }
    }
  }

  // The residual of the output at `out`, or null.
  const T* residual_of(const T* out) const {
    const auto* residual = static_cast<const T*>(epilogue_.residual);
    return residual == nullptr ? nullptr : residual + (out - out_.data);
  }

  // S is the type of the outputs at `out`, and of the residuals if there are any, elements `row`
  // and `pixel` apart. Adds NaN to `check` for a sum that is not finite, else zero.
  template <class S>
  __attribute__((flatten)) void transform_outputs(const Block& block, int64_t slab,
                                                  typename S::T* out, const typename S::T* residual,
                                                  int64_t row, int64_t pixel, int lanes,
                                                  Vec::Reg& check) const {
    constexpr int L = Vec::kLanes, kRow = kBlockTiles * 2 * L;
    const Vec::Reg zero = Vec::zero();
    const Vec::Reg bias = bias_ == nullptr
                              ? zero
                              : load_first<E>(bias_ + plan_.s.out_begin(slab), plan_.s.lanes(slab));
    const bool stream = plan_.stream;
    LaneFactors factors;
    // What is stored before its residual is added is not activated yet.
    const float floor = residual == nullptr && epilogue_.residual != nullptr
                            ? kNoFloor
                            : activation_floor(epilogue_);
    if (has_epilogue_) {
      factors.load(epilogue_, plan_.s.out_begin(slab), plan_.s.lanes(slab));
    }
    const auto store = [&](typename S::T* at, Vec::Reg value) {
      if (has_epilogue_) {
        value = factors.apply(value);
        if (residual != nullptr)
          value = Vec::add(value, load_first<S>(residual + (at - out), lanes));
        value = activate(value, floor);
      }
      if (stream) {
        if constexpr (S::kIsFloat) Vec::stream(at, value);
      } else if (lanes == L) {
        S::store(at, value);
      } else {
        S::store_partial(at, value, lanes);
      }
    };
    Vec::Reg upper_check = zero, lower_check = zero;
    for (int t = 0; t < block.count; ++t) {
      typename S::T* at = out + 2 * block.tiles[t].row * row + 2 * block.tiles[t].col * pixel;
      const float* sums = sums_ + t * 2 * L;
      for (int j = 0; j < block.cols; ++j, at += pixel, sums += L) {
        const Vec::Reg second = Vec::load(sums + kRow), third = Vec::load(sums + 2 * kRow);
        const Vec::Reg upper = Vec::add(Vec::add(Vec::add(Vec::load(sums), second), third), bias);
        upper_check = Vec::fma(upper, zero, upper_check);
        store(at, upper);
        if (t < block.tall) {
          const Vec::Reg lower =
              Vec::add(Vec::sub(Vec::sub(second, third), Vec::load(sums + 3 * kRow)), bias);
          lower_check = Vec::fma(lower, zero, lower_check);
          store(at + row, lower);
        }
      }
    }
    check = Vec::add(check, Vec::add(upper_check, lower_check));
  }

  const WinogradPlan& plan_;
  const T* kernels_;
  const T* bias_;
  const Epilogue& epilogue_;
  const bool has_epilogue_;
  const int64_t first_unit_, end_unit_;
  const float* weights_;  // of first_unit_weights_ and those behind it
  int64_t first_unit_weights_ = first_unit_;
  uint8_t* not_finite_;
  ScratchLease scratch_;
  Activation<E> in_, out_;
  float *v_, *sums_, *ring_, *out_strip_, *own_weights_;
  PrefetchWalk inputs_, outputs_;
  int64_t inputs_quota_ = 0, outputs_quota_ = 0;
};

template <class E>
void winograd_conv(const PassArgs& args) {
  const WinogradPlan plan = make_winograd_plan(args);
  const int64_t flags_per_unit = plan.bands, flag_bytes = plan.c.N * plan.s.units * plan.bands;
  const ScratchLease flags(ScratchSlot::kFlags, flag_bytes);
  auto* const not_finite = reinterpret_cast<uint8_t*>(flags.floats());
  std::memset(not_finite, 0, flag_bytes);
  {
    const int64_t wave_floats = plan.task_transforms() ? 0 : plan.wave_units * plan.unit_weights();
    const ScratchLease weights(ScratchSlot::kShared, sizeof(float) * wave_floats);
    struct Context {
      const WinogradPlan& plan;
      const PassArgs& args;
      float* weights;
      uint8_t* not_finite;
      int64_t first_unit, end_unit;
    } context{plan, args, weights.floats(), not_finite, 0, 0};
    for (; context.first_unit < plan.s.units; context.first_unit = context.end_unit) {
      context.end_unit = min64(plan.s.units, context.first_unit + plan.wave_units);
      if (!plan.task_transforms()) {
        args.parallel.run((context.end_unit - context.first_unit) * plan.s.slabs_per_unit,
                          [](int64_t begin, int64_t end, void* opaque) {
                            const Context& x = *static_cast<Context*>(opaque);
                            const ScratchLease packed(ScratchSlot::kTask,
                                                      sizeof(float) * packed_slab_floats(x.plan.c));
                            const int64_t first_slab = x.first_unit * x.plan.s.slabs_per_unit;
                            for (int64_t slab = begin; slab < end; ++slab) {
                              transform_weights<E>(x.plan,
                                                   static_cast<const typename E::T*>(x.args.w),
                                                   first_slab + slab, packed.floats(),
                                                   x.weights + slab * x.plan.slab_weights());
                            }
                          },
                          &context);
      }
      args.parallel.run(
          plan.tasks(),
          [](int64_t begin, int64_t end, void* opaque) {
            const Context& x = *static_cast<Context*>(opaque);
            WinogradTask<E> task(x.plan, x.args, x.first_unit, x.end_unit, x.weights, x.not_finite);
            for (int64_t i = begin; i < end; ++i) task.run(i, i + 1 < end ? i + 1 : x.plan.tasks());
          },
          &context);
    }
  }
  if (std::memchr(not_finite, 1, flag_bytes) == nullptr) return;
  ConvPlan direct = make_conv_plan(args);
  direct.units_per_block = 1, direct.blocks = direct.s.units, direct.bands = 1;
  direct.band_rows = ceil_div(direct.grid_end, Vec::kTileRows) * Vec::kTileRows;
  run_conv_plan<E>(direct, args, [&](int64_t task) {
    return std::memchr(not_finite + task * flags_per_unit, 1, flags_per_unit) != nullptr;
  });
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
