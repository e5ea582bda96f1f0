// What a warp accumulates of the weight gradient of NCHW tensors. The pixels of a channel are
// neighbours, as mma wants both operands' k extent: a lane loads the words that its fragments are
// made of from the band itself.
//
// NchwWgradSlab: up to 8 channels per group. A warp has a plane of 8 channels; the products between
//   groups are dropped. A row of x meets two rows of dy at once, the m extent of mma, and a third
//   time dy alone, with two taps of x as the m extent: five mma for nine taps.
// NchwWgradSquare: from 16 channels per group, as WgradSquare.
#pragma once

#include "cuda/nchw_wgrad_rows.cuh"
#include "cuda/wgrad_sums.cuh"

namespace grouped_conv::cuda {

template <class Traits>
class NchwWgradSlab {
  using T = typename Traits::Element;
  static_assert(Traits::kPerGroup == 4 || Traits::kPerGroup == 8);
  static_assert(Traits::kCoTiles == 1);
  // Taps r of the two rows of dy at once, and of the one alone, and the row of x that it meets.
  static constexpr int kSecondR = Traits::kStride;
  static constexpr int kSingleR = 3 - Traits::kStride;
  static constexpr int kSingleX = kSingleR % Traits::kStride;

 public:
  static constexpr int kDyPlanes = 1;

  GC_DEVICE explicit NchwWgradSlab(int channel_warp) : plane_(channel_warp) {}

  // The lane's channel of dy, which is that of x as well; in NchwWgradSquare the first of several.
  GC_DEVICE int dy_channel() const { return plane_ * 8 + device::lane_index() / 4; }

  // Adds a step: dy[i] has the lane's pixels of the i-th row before the step's. With kExact only
  // products that the convolution has; where no Inf or NaN meets padding the sums get the same
  // bits.
  template <bool kExact>
  GC_DEVICE void add_step(const NchwWgradRows<Traits>& rows, const NchwWgradPixels<Traits>& lane,
                          int step, const uint32_t (&dy)[Traits::kDyRows][1][2]) {
    const uint32_t (&single_dy)[2] = dy[kSingleR / Traits::kStride][0];
    uint32_t x[3][2];
    rows.load_x(x, lane, rows.x_row(step, 0), dy_channel());
    if constexpr (kExact) {
      if (rows.has_x(rows.x_row(step, 0))) {
        GC_UNROLL
        for (int s = 0; s < 3; ++s) {
          if (rows.has_dy(step)) add_half(both_[s], 0, dy[0][0], x[s], lane.taps[s]);
          if (rows.has_dy(step - 1)) add_half(both_[s], 1, dy[1][0], x[s], lane.taps[s]);
        }
      }
    } else {
      const uint32_t two_rows[4] = {dy[0][0][0], dy[1][0][0], dy[0][0][1], dy[1][0][1]};
      GC_UNROLL
      for (int s = 0; s < 3; ++s) device::mma_m16n8k16<T>(both_[s], two_rows, x[s]);
    }
    if constexpr (kSingleX != 0) rows.load_x(x, lane, rows.x_row(step, kSingleX), dy_channel());
    if constexpr (kExact) {
      if (rows.has_x(rows.x_row(step, kSingleX)) &&
          rows.has_dy(step - kSingleR / Traits::kStride)) {
        GC_UNROLL
        for (int s = 0; s < 3; ++s) {
          add_half(single_[s / 2], s % 2, x[s], single_dy, lane.taps[s]);
        }
      }
    } else {
      const uint32_t two_taps[4] = {x[0][0], x[1][0], x[0][1], x[1][1]};
      const uint32_t third_tap[4] = {x[2][0], x[2][0], x[2][1], x[2][1]};
      device::mma_m16n8k16<T>(single_[0], two_taps, single_dy);
      device::mma_m16n8k16<T>(single_[1], third_tap, single_dy);
    }
  }

  GC_DEVICE void clear() {
    GC_UNROLL
    for (int e = 0; e < 4; ++e) {
      both_[0][e] = both_[1][e] = both_[2][e] = 0;
      single_[0][e] = single_[1][e] = 0;
    }
  }

  GC_DEVICE bool has_nan() const {
    bool found = single_[1][0] != single_[1][0] || single_[1][1] != single_[1][1];
    GC_UNROLL
    for (int e = 0; e < 4; ++e) {
      found |= single_[0][e] != single_[0][e];
      GC_UNROLL
      for (int s = 0; s < 3; ++s) found |= both_[s][e] != both_[s][e];
    }
    return found;
  }

  GC_DEVICE void put_sums(int, const WgradSumLines<Traits>& lines) const {
    const int row = device::lane_index() / 4;
    GC_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int column = device::lane_index() % 4 * 2 + e;
      const bool wanted = row / Traits::kPerGroup == column / Traits::kPerGroup;
      const int in_group = column % Traits::kPerGroup;
      GC_UNROLL
      for (int s = 0; s < 3; ++s) {
        lines.put(plane_ * 8 + row, in_group, s, both_[s][e], wanted);
        lines.put(plane_ * 8 + row, in_group, 3 * kSecondR + s, both_[s][2 + e], wanted);
        lines.put(plane_ * 8 + column, row % Traits::kPerGroup, 3 * kSingleR + s,
                  single_[s / 2][s % 2 * 2 + e], wanted);
      }
    }
  }

 private:
  // One half of the m extent, `m` by `n`, both without what the mask does not have.
  GC_DEVICE static void add_half(float (&sums)[4], int half, const uint32_t (&m)[2],
                                 const uint32_t (&n)[2], const uint32_t (&mask)[2]) {
    float both[4] = {sums[0], sums[1], sums[2], sums[3]};
    const uint32_t low = m[0] & mask[0], high = m[1] & mask[1];
    const uint32_t a[4] = {low, low, high, high};
    const uint32_t b[2] = {n[0] & mask[0], n[1] & mask[1]};
    device::mma_m16n8k16<T>(both, a, b);
    sums[2 * half] = both[2 * half];
    sums[2 * half + 1] = both[2 * half + 1];
  }

  const int plane_;
  float both_[3][4] = {};  // [s], output by input channels: r = 0 in the upper half of m, kSecondR
                           // in the lower
  float single_[2][4] = {};  // r = kSingleR, input by output channels: s = 0 and 1; s = 2 twice
};

template <class Traits>
class NchwWgradSquare : public WgradSquareSums<Traits> {
  using Sums = WgradSquareSums<Traits>;
  using T = typename Traits::Element;
  using Sums::sums_;

 public:
  static constexpr int kDyPlanes = 2 * Traits::kCoTiles;

  GC_DEVICE explicit NchwWgradSquare(int channel_warp) : Sums(channel_warp) {}

  GC_DEVICE int dy_channel() const { return this->first_co() + device::lane_index() / 4; }

  // See NchwWgradSlab.
  template <bool kExact>
  GC_DEVICE void add_step(const NchwWgradRows<Traits>& rows, const NchwWgradPixels<Traits>& lane,
                          int step, const uint32_t (&dy)[Traits::kDyRows][kDyPlanes][2]) {
    const int channel = this->first_ci() + device::lane_index() / 4;
    GC_UNROLL
    for (int i = 0; i < Traits::kStride; ++i) {
      const int x_row = rows.x_row(step, i);
      if (kExact && !rows.has_x(x_row)) continue;
      GC_UNROLL
      for (int n = 0; n < 2; ++n) {
        uint32_t x[3][2];
        rows.load_x(x, lane, x_row, channel + 8 * n);
        GC_UNROLL
        for (int r = i; r < 3; r += Traits::kStride) {
          const int before = r / Traits::kStride;
          if (kExact && !rows.has_dy(step - before)) continue;
          GC_UNROLL
          for (int s = 0; s < 3; ++s) {
            GC_UNROLL
            for (int m = 0; m < Traits::kCoTiles; ++m) {
              const uint32_t (&upper)[2] = dy[before][2 * m];
              const uint32_t (&lower)[2] = dy[before][2 * m + 1];
              uint32_t a[4] = {upper[0], lower[0], upper[1], lower[1]};
              if constexpr (kExact) {
                GC_UNROLL
                for (int j = 0; j < 4; ++j) a[j] &= lane.taps[s][j / 2];
              }
              device::mma_m16n8k16<T>(sums_[r][s][m][n], a, x[s]);
            }
          }
        }
      }
    }
  }
};

}  // namespace grouped_conv::cuda
