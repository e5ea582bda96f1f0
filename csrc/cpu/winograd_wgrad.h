// Sums of a weight gradient in the transform domain of Winograd's F(3x3, 2x2), at stride 1: 16
// multiplications where the direct kernel needs 36.
//
//   dw = G^T [ sum_tiles (A dy A^T) * (B^T x B) ] G      over tiles of 2x2 pixels of dy, 4x4 of x
//
// with the matrices of F(2x2, 3x3) (winograd.h), of which this is the transpose. Both operands are
// made from the strips of a band, tile by tile; then each of the 16 places of the transform domain
// is a product of matrices, kSumChannels input channels by kLanes output channels in registers over
// the tiles of the band. What an odd extent cuts off the last tiles is not multiplied. G is applied
// once per chain of bands.
#pragma once

#include <cstdint>

#include "slabs.h"
#include "tile.h"
#include "wgrad_plan.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// All products of one place over the tiles of a band.
struct PlaceArgs {
  const float* v;  // [tiles][kSumChannels]
  const float* w;  // [tiles][kLanes]
  int64_t tiles;
  bool first;   // overwrites the sums instead of adding to them
  float* sums;  // [kSumChannels][kLanes]
};

template <int kC>
__attribute__((flatten)) void place_products(const PlaceArgs& a) {
  constexpr int L = Vec::kLanes;
  Vec::Reg acc[kC];
  unroll<kC>([&](auto c) { acc[c] = Vec::zero(); });
  const float *v = a.v, *w = a.w;
  for (int64_t t = 0; t < a.tiles; ++t, v += kSumChannels, w += L) {
    const Vec::Reg d = Vec::load(w);
    unroll<kC>([&](auto c) { acc[c] = Vec::fma(Vec::broadcast(v + c), d, acc[c]); });
  }
  if (!a.first) {
    unroll<kC>([&](auto c) { acc[c] = Vec::add(Vec::load(a.sums + c * L), acc[c]); });
  }
  unroll<kC>([&](auto c) { Vec::store(a.sums + c * L, acc[c]); });
}

using PlaceFunction = void (*)(const PlaceArgs&);

inline PlaceFunction select_place(int64_t channels) {
  if (2 * channels > kSumChannels) return place_products<kSumChannels>;
  if (4 * channels > kSumChannels) return place_products<kSumChannels / 2>;
  return place_products<kSumChannels / 4>;
}

// Rows of dy, elements of S, from the first column of a band on.
template <class S>
struct OutputRows {
  const typename S::T* at;
  int64_t row, pixel;
  int lanes;
};

// The sums of a block of units.
class WinogradSums {
 public:
  WinogradSums(const WgradPlan& plan, float* scratch)
      : plan_(plan),
        sums_(scratch),
        v_(sums_ + plan.units_per_block * plan.unit_winograd_floats()),
        w_(v_ + plan.sum_runs * run_floats()) {}

  static int64_t floats(const WgradPlan& plan) {
    if (!plan.winograd) return 0;
    return plan.units_per_block * plan.unit_winograd_floats() +
           kPlaces * plan.band_tiles() * (plan.sum_runs * kSumChannels + Vec::kLanes);
  }

  // Takes the rows of x that output rows [p0, p0 + rows) meet. S is the type of the rows that
  // row_of(h) gives, from column 0 on; `pixel` and `chunk` are the elements between their pixels
  // and between their chunks of kLanes channels.
  template <class S, class RowOf>
  void take_inputs(int64_t p0, int64_t rows, int64_t pixel, int64_t chunk, const RowOf& row_of) {
    constexpr int L = Vec::kLanes;
    static constexpr typename S::T kZeros[L] = {};
    const ConvProblem& p = plan_.p;
    for (int64_t row = 0; 2 * row < rows; ++row) {
      InputRows<typename S::T> from{};
      int64_t next_chunk[4];
      for (int i = 0; i < 4; ++i) {
        // Of a tile of one row the last row of x is in no strip, nor in any product.
        const int64_t h = p0 + 2 * row - p.pad_h + i;
        const bool inside = h >= 0 && h < p.H && (i < 3 || 2 * row + 1 < rows);
        from.at[i] = inside ? row_of(h) : kZeros;
        from.pixel[i] = inside ? pixel : 0, next_chunk[i] = inside ? chunk : 0;
      }
      for (int64_t i = 0; i < plan_.s.in_chunks; ++i) {
        float* v = v_ + i * L / kSumChannels * run_floats() + i * L % kSumChannels;
        const int channels = static_cast<int>(min64(L, plan_.s.in_per_group - i * L));
        if (channels == L) {
          transform_inputs<S, true>(from, L, row, v);
        } else {
          transform_inputs<S, false>(from, channels, row, v);
        }
        for (int j = 0; j < 4; ++j) from.at[j] += next_chunk[j];
      }
    }
  }

  // Adds the products with `rows` rows of dy for the slab-th slab of a unit of the block.
  template <class S>
  void add(int64_t unit, int64_t slab, int64_t rows, const OutputRows<S>& dy, bool first,
           PacedWalks& ahead) {
    if (dy.lanes == Vec::kLanes) {
      transform_outputs<S, true>(rows, dy);
    } else {
      transform_outputs<S, false>(rows, dy);
    }
    const int64_t cols = plan_.tile_cols(), full_cols = plan_.p.Q / 2;
    float* sums = slab_sums(unit, slab);
    for (int64_t run = 0; run < plan_.sum_runs; ++run) {
      const PlaceFunction multiply = select_place(plan_.s.in_per_group - run * kSumChannels);
      for (int place = 0; place < kPlaces; ++place, sums += kSumChannels * Vec::kLanes) {
        Asking(ahead).ask(1);
        const int64_t tile_rows = place < 12 ? ceil_div(rows, 2) : rows / 2;
        const int64_t tiles = tile_rows * (place % 4 < 3 ? cols : full_cols);
        const float* v = v_ + run * run_floats() + place * plan_.band_tiles() * kSumChannels;
        const float* w = w_ + place * plan_.band_tiles() * Vec::kLanes;
        // Rows of more tiles than a chain of sums may have are cut.
        int64_t done = 0;
        do {
          const int64_t count = min64(kWinogradTiles, tiles - done);
          multiply(
              {v + done * kSumChannels, w + done * Vec::kLanes, count, first && done == 0, sums});
          done += count;
        } while (done < tiles);
      }
    }
  }

  // Writes the gradient of one unit of the block, [slab][c_per_group][9][kLanes], or adds it to
  // what is there. Returns whether all of it is finite.
  __attribute__((flatten)) bool finish(int64_t unit, bool add, float* dw) const {
    constexpr int64_t L = Vec::kLanes;
    constexpr float kHalf = 0.5f;
    const Vec::Reg half = Vec::broadcast(&kHalf), zero = Vec::zero();
    Vec::Reg check = zero;
    for (int64_t slab = 0; slab < plan_.s.slabs_per_unit; ++slab) {
      for (int64_t c = 0; c < plan_.s.in_per_group; ++c, dw += kTaps * L) {
        const float* m = slab_sums(unit, slab) +
                         (c / kSumChannels * kPlaces * kSumChannels + c % kSumChannels) * L;
        // The product of G^T with four values, of which the last one has the other sign.
        const auto reduce = [&](Vec::Reg m0, Vec::Reg m1, Vec::Reg m2, Vec::Reg m3,
                                Vec::Reg(&to)[3]) {
          const Vec::Reg both = Vec::fma(half, Vec::add(m1, m2), zero);
          to[0] = Vec::add(m0, both), to[1] = Vec::fma(half, Vec::sub(m1, m2), zero);
          to[2] = Vec::sub(both, m3);
        };
        const auto at = [&](int place) { return Vec::load(m + place * kSumChannels * L); };
        Vec::Reg rows[4][3];
        unroll<4>([&](auto i) {
          reduce(at(4 * i), at(4 * i + 1), at(4 * i + 2), at(4 * i + 3), rows[i]);
        });
        unroll<3>([&](auto s) {
          Vec::Reg taps[3];
          reduce(rows[0][s], rows[1][s], rows[2][s], rows[3][s], taps);
          unroll<3>([&](auto r) {
            float* sum = dw + (3 * r + s) * L;
            const Vec::Reg value = add ? Vec::add(Vec::load(sum), taps[r]) : taps[r];
            check = Vec::fma(value, zero, check);
            Vec::store(sum, value);
          });
        });
      }
    }
    float lanes[L];
    Vec::store(lanes, check);
    for (const float lane : lanes) {
      if (lane != 0.0f) return false;
    }
    return true;
  }

 private:
  template <class T>
  struct InputRows {
    const T* at[4];    // column 0
    int64_t pixel[4];  // elements between pixels; none in rows of zeros
  };

  int64_t run_floats() const { return kPlaces * plan_.band_tiles() * kSumChannels; }

  float* slab_sums(int64_t unit, int64_t slab) const {
    return sums_ + unit * plan_.unit_winograd_floats() +
           slab * plan_.sum_runs * kPlaces * kSumChannels * Vec::kLanes;
  }

  // Calls store(place, tile) for the 16 places of a tile. A tile of one column has no product in
  // the last column of places, which leaves it out.
  template <class Store>
  inline __attribute__((always_inline)) void for_each_place(int64_t row, int64_t col,
                                                            const Store& store) const {
    const int64_t cols = plan_.tile_cols(), full_cols = plan_.p.Q / 2;
    const int64_t tile = row * cols + col;
    unroll<4>([&](auto i) {
      unroll<3>([&](auto j) { store(i, j, tile); });
      if (col < full_cols) {
        store(i, std::integral_constant<int, 3>{}, row * full_cols + col);
      }
    });
  }

  // One row of tiles, B^T x B.
  template <class S, bool kWhole>
  __attribute__((flatten)) void transform_inputs(const InputRows<typename S::T>& from, int channels,
                                                 int64_t row, float* v) const {
    const ConvProblem& p = plan_.p;
    const int64_t place_floats = plan_.band_tiles() * kSumChannels;
    // Columns 0 and 1 of a tile, and 2 and 3, which are 0 and 1 of its neighbour.
    Vec::Reg left[2][4], right[2][4];
    const auto column = [&](int64_t w, Vec::Reg(&to)[4]) {
      if (w < 0 || w >= p.W) {
        unroll<4>([&](auto i) { to[i] = Vec::zero(); });
        return;
      }
      Vec::Reg d[4];
      unroll<4>([&](auto i) {
        const typename S::T* at = from.at[i] + w * from.pixel[i];
        d[i] = kWhole ? S::load(at) : S::load_partial(at, channels);
      });
      to[0] = Vec::sub(d[0], d[2]), to[1] = Vec::add(d[1], d[2]);
      to[2] = Vec::sub(d[2], d[1]), to[3] = Vec::sub(d[1], d[3]);
    };
    unroll<2>([&](auto j) { column(j - p.pad_w, left[j]); });
    for (int64_t col = 0; col < plan_.tile_cols(); ++col) {
      unroll<2>([&](auto j) { column(2 * col + 2 + j - p.pad_w, right[j]); });
      for_each_place(row, col, [&](auto i, auto j, int64_t tile) {
        Vec::Reg value;
        if constexpr (j == 0) value = Vec::sub(left[0][i], right[0][i]);
        if constexpr (j == 1) value = Vec::add(left[1][i], right[0][i]);
        if constexpr (j == 2) value = Vec::sub(right[0][i], left[1][i]);
        if constexpr (j == 3) value = Vec::sub(left[1][i], right[1][i]);
        Vec::store(v + (4 * i + j) * place_floats + tile * kSumChannels, value);
      });
      unroll<2>([&](auto j) { unroll<4>([&](auto i) { left[j][i] = right[j][i]; }); });
    }
  }

  // A dy A^T of the tiles of some rows, less the signs of its last row and column.
  template <class S, bool kWhole>
  __attribute__((flatten)) void transform_outputs(int64_t rows, const OutputRows<S>& dy) {
    constexpr int64_t L = Vec::kLanes;
    const int64_t place_floats = plan_.band_tiles() * L;
    const auto load = [&](const typename S::T* at) {
      return kWhole ? S::load(at) : S::load_partial(at, dy.lanes);
    };
    for (int64_t row = 0; 2 * row < rows; ++row) {
      const typename S::T* upper = dy.at + 2 * row * dy.row;
      const bool tall = 2 * row + 1 < rows;
      for (int64_t col = 0; col < plan_.tile_cols(); ++col) {
        Vec::Reg d[2][4];
        unroll<2>([&](auto j) {
          const typename S::T* at = upper + (2 * col + j) * dy.pixel;
          const bool inside = 2 * col + j < plan_.p.Q;
          d[j][0] = inside ? load(at) : Vec::zero();
          d[j][3] = inside && tall ? load(at + dy.row) : Vec::zero();
          d[j][1] = Vec::add(d[j][0], d[j][3]), d[j][2] = Vec::sub(d[j][0], d[j][3]);
        });
        for_each_place(row, col, [&](auto i, auto j, int64_t tile) {
          Vec::Reg value;
          if constexpr (j == 0) value = d[0][i];
          if constexpr (j == 1) value = Vec::add(d[0][i], d[1][i]);
          if constexpr (j == 2) value = Vec::sub(d[0][i], d[1][i]);
          if constexpr (j == 3) value = d[1][i];
          Vec::store(w_ + (4 * i + j) * place_floats + tile * L, value);
        });
      }
    }
  }

  const WgradPlan& plan_;
  float* sums_;  // [unit][slab][run][place][kSumChannels][kLanes]
  float* v_;     // [run][place][tile][kSumChannels]
  float* w_;     // [place][tile][kLanes]
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
