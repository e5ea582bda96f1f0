// What a warp accumulates of the weight gradient: fragments of dw, with pixels as the k extent of
// mma. Both operands come through transposed ldmatrix, since shared memory has pixels as rows.
//
// WgradSlab: up to 8 channels per group. A warp has a plane of 8 channels; the products between
//   groups are dropped. The m extent of mma takes two taps: s = 0 and 1 of a row, or s = 2 of rows
//   A and B: five mma for nine taps.
// WgradSquare: from 16 channels per group. A warp has co_tiles x 16 output channels, of which dy is
//   the A operand, and 16 input channels of the same group.
#pragma once

#include "cuda/wgrad_rows.cuh"
#include "cuda/wgrad_sums.cuh"

namespace grouped_conv::cuda {

// Shared addresses of the rows that meet in a step.
struct WgradStepRows {
  uint32_t a, b;
  uint32_t dy, dy_before;
};

// For tap s and either half of k of a tile of 16 slots: ones where the lane's two pixels meet.
struct WgradMask {
  uint32_t half[2];

  GC_DEVICE WgradMask(const WgradArgs& args, const WgradColumns& columns, int first_slot, int s) {
    GC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int slot = first_slot + 8 * h + 2 * (device::lane_index() % 4);
      half[h] = (columns.meet(args, slot, s) ? 0xffffu : 0) |
                (columns.meet(args, slot + 1, s) ? 0xffff0000u : 0);
    }
  }
};

template <class Traits>
class WgradSlab {
  using T = typename Traits::Element;

 public:
  GC_DEVICE WgradSlab(int channel_warp, int first_slot)
      : plane_(channel_warp), first_slot_(first_slot) {
    const int lane = device::lane_index();
    const int row = lane % 8, first_half = lane / 8 % 2, second_half = lane / 16;
    const uint32_t slots = plane_ * Traits::kPlaneBytes + 16 * (first_slot + row);
    // Matrices of x: the m halves (taps), then the k halves (pixels). Of dy: the k halves, then the
    // row of this step and the one before.
    pair_offset_ =
        slots + second_half * 128 + (first_half ? Traits::tap_offset(1) : Traits::tap_offset(0));
    third_offset_ = slots + second_half * 128 + Traits::tap_offset(2);
    dy_offset_ = slots + first_half * 128;
    third_row_b_ = first_half != 0;
    dy_row_before_ = second_half != 0;
  }

  // Adds a step; with kAll its three pairs of rows are all there, else those that `step` names. A
  // row that is not there is not read: shared memory has something else in its place.
  template <bool kAll>
  GC_DEVICE void multiply(const WgradStepRows& rows, uint32_t step) {
    const bool row_a = kAll || (step & kStepRowA);
    const bool row_b = kAll || (step & kStepRowB);
    const bool before = kAll || (step & kStepDyBefore);
    const bool has_a = row_a || before, has_dy = row_a || row_b;
    const bool third_b = row_b && (third_row_b_ || !has_a);
    const uint32_t third_at = (third_b ? rows.b : rows.a) + third_offset_;
    const bool dy_before = before && (dy_row_before_ || !has_dy);
    const uint32_t dy_at = (dy_before ? rows.dy_before : rows.dy) + dy_offset_;
    GC_UNROLL
    for (int tile = 0; tile < Traits::kTilesPerWarp; ++tile) {
      const uint32_t offset = 256 * tile;
      uint32_t a[4], b[4], third[4], both_dy[4];
      device::ldmatrix_x4_trans(both_dy, dy_at + offset);
      device::ldmatrix_x4_trans(third, third_at + offset);
      const uint32_t dy[2] = {both_dy[0], both_dy[1]};
      const uint32_t dy_last[2] = {both_dy[2], both_dy[3]};
      if (has_a) device::ldmatrix_x4_trans(a, rows.a + pair_offset_ + offset);
      if (row_b) device::ldmatrix_x4_trans(b, rows.b + pair_offset_ + offset);
      if (row_a) device::mma_m16n8k16<T>(pair_[Traits::kRowA], a, dy);
      if (row_b) device::mma_m16n8k16<T>(pair_[Traits::kRowB], b, dy);
      if (before) device::mma_m16n8k16<T>(pair_[2], a, dy_last);
      if (has_dy) {
        const uint32_t present[4] = {row_a ? third[0] : 0, row_b ? third[1] : 0,
                                     row_a ? third[2] : 0, row_b ? third[3] : 0};
        device::mma_m16n8k16<T>(third_[0], present, dy);
      }
      if (before) device::mma_m16n8k16<T>(third_[1], third, dy_last);
    }
  }

  // As multiply<false>, but without the products that `columns` does not have. Where no Inf or NaN
  // meets padding the sums get the same bits.
  GC_DEVICE void multiply_masked(const WgradStepRows& rows, uint32_t step, const WgradArgs& args,
                                 const WgradColumns& columns) {
    const bool row_a = step & kStepRowA, row_b = step & kStepRowB, before = step & kStepDyBefore;
    const uint32_t a_at = row_a || before ? rows.a : rows.b;
    const uint32_t third_at = (third_row_b_ && row_b ? rows.b : a_at) + third_offset_;
    const uint32_t c_at = row_a || row_b ? rows.dy : rows.dy_before;
    const uint32_t dy_at = (dy_row_before_ && before ? rows.dy_before : c_at) + dy_offset_;
    GC_NO_UNROLL
    for (int tile = 0; tile < Traits::kTilesPerWarp; ++tile) {
      const uint32_t offset = 256 * tile;
      const int slot = first_slot_ + 16 * tile;
      uint32_t pair[4], third[4], dy[4];
      device::ldmatrix_x4_trans(dy, dy_at + offset);
      device::ldmatrix_x4_trans(third, third_at + offset);
      const WgradMask mask(args, columns, slot, 2);
      GC_UNROLL
      for (int i = 0; i < 4; ++i) third[i] &= mask.half[i / 2];
      if (row_a) multiply_half(third_[0], 0, third, &dy[0], mask);
      if (row_b) multiply_half(third_[0], 1, third, &dy[0], mask);
      if (before) multiply_half(third_[1], 0, third, &dy[2], mask);
      const WgradMask masks[2] = {WgradMask(args, columns, slot, 0),
                                  WgradMask(args, columns, slot, 1)};
      const auto load_pair = [&](uint32_t row) {
        device::ldmatrix_x4_trans(pair, row + pair_offset_ + offset);
        GC_UNROLL
        for (int i = 0; i < 4; ++i) pair[i] &= masks[i % 2].half[i / 2];
      };
      if (row_a || before) load_pair(rows.a);
      GC_UNROLL
      for (int s = 0; s < 2; ++s) {
        if (row_a) multiply_half(pair_[Traits::kRowA], s, pair, &dy[0], masks[s]);
        if (before) multiply_half(pair_[2], s, pair, &dy[2], masks[s]);
      }
      if (row_b) load_pair(rows.b);
      GC_UNROLL
      for (int s = 0; s < 2; ++s) {
        if (row_b) multiply_half(pair_[Traits::kRowB], s, pair, &dy[0], masks[s]);
      }
    }
  }

  GC_DEVICE void clear() {
    GC_UNROLL
    for (int e = 0; e < 4; ++e) {
      GC_UNROLL
      for (int r = 0; r < 3; ++r) pair_[r][e] = 0;
      third_[0][e] = third_[1][e] = 0;
    }
  }

  GC_DEVICE bool has_nan() const {
    bool found = third_[1][0] != third_[1][0] || third_[1][1] != third_[1][1];
    GC_UNROLL
    for (int e = 0; e < 4; ++e) {
      found |= third_[0][e] != third_[0][e];
      GC_UNROLL
      for (int r = 0; r < 3; ++r) found |= pair_[r][e] != pair_[r][e];
    }
    return found;
  }

  // Puts the sums of pass m of the way out into their lines.
  GC_DEVICE void put_sums(int, const WgradSumLines<Traits>& lines) const {
    const int lane = device::lane_index();
    const int ci = lane / 4, in_group = ci % Traits::kPerGroup;
    GC_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int co = lane % 4 * 2 + e;
      const int line = plane_ * 8 + co;
      const bool wanted = co / Traits::kPerGroup == ci / Traits::kPerGroup;
      GC_UNROLL
      for (int r = 0; r < 3; ++r) {
        lines.put(line, in_group, 3 * r, pair_[r][e], wanted);
        lines.put(line, in_group, 3 * r + 1, pair_[r][2 + e], wanted);
      }
      lines.put(line, in_group, 3 * Traits::kRowA + 2, third_[0][e], wanted);
      lines.put(line, in_group, 3 * Traits::kRowB + 2, third_[0][2 + e], wanted);
      lines.put(line, in_group, 8, third_[1][e], wanted);
    }
  }

 private:
  static_assert(Traits::kPerGroup == 4 || Traits::kPerGroup == 8);
  static_assert(Traits::kCoTiles == 1);

  // One half of the m extent, with its own mask for dy.
  GC_DEVICE static void multiply_half(float (&sums)[4], int half, const uint32_t (&x)[4],
                                      const uint32_t* dy, const WgradMask& mask) {
    float both[4] = {sums[0], sums[1], sums[2], sums[3]};
    const uint32_t masked[2] = {dy[0] & mask.half[0], dy[1] & mask.half[1]};
    device::mma_m16n8k16<T>(both, x, masked);
    sums[2 * half] = both[2 * half];
    sums[2 * half + 1] = both[2 * half + 1];
  }

  const int plane_, first_slot_;
  uint32_t pair_offset_, third_offset_, dy_offset_;
  bool third_row_b_, dy_row_before_;
  float pair_[3][4] = {};   // [r]: s = 0 in the upper half of m, 1 in the lower
  float third_[2][4] = {};  // s = 2: r of row A and of row B; r = 2 and nothing
};

template <class Traits>
class WgradSquare : public WgradSquareSums<Traits> {
  using Sums = WgradSquareSums<Traits>;
  using Sums::accumulate, Sums::sums_;
  using typename Sums::Fragments;
  static constexpr int kCoTiles = Traits::kCoTiles;

 public:
  GC_DEVICE WgradSquare(int channel_warp, int first_slot)
      : Sums(channel_warp), first_slot_(first_slot) {
    const int lane = device::lane_index();
    const int row = lane % 8, first_half = lane / 8 % 2, second_half = lane / 16;
    const int first_co = this->first_co(), first_ci = this->first_ci();
    const uint32_t slots = 16 * (first_slot + row);
    // Matrices of dy: the m halves (channels), then the k halves (pixels). Of x: the k halves, then
    // the two n tiles.
    dy_offset_ = (first_co / 8 + first_half) * Traits::kPlaneBytes + slots + second_half * 128;
    x_offset_ = (first_ci / 8 + second_half) * Traits::kPlaneBytes + slots + first_half * 128;
  }

  // See WgradSlab.
  template <bool kAll>
  GC_DEVICE void multiply(const WgradStepRows& rows, uint32_t step) {
    const bool row_a = kAll || (step & kStepRowA);
    const bool row_b = kAll || (step & kStepRowB);
    const bool before = kAll || (step & kStepDyBefore);
    GC_UNROLL
    for (int tile = 0; tile < Traits::kTilesPerWarp; ++tile) {
      const uint32_t offset = 256 * tile;
      uint32_t dy[kCoTiles][4], dy_before[kCoTiles][4], x[4];
      GC_UNROLL
      for (int m = 0; m < kCoTiles; ++m) {
        const uint32_t at = dy_offset_ + offset + 2 * m * Traits::kPlaneBytes;
        if (row_a || row_b) device::ldmatrix_x4_trans(dy[m], rows.dy + at);
        if (before) device::ldmatrix_x4_trans(dy_before[m], rows.dy_before + at);
      }
      GC_UNROLL
      for (int s = 0; s < 3; ++s) {
        const uint32_t at = x_offset_ + offset + Traits::tap_offset(s);
        if (row_a || before) device::ldmatrix_x4_trans(x, rows.a + at);
        if (row_a) accumulate(sums_[Traits::kRowA][s], dy, x);
        if (before) accumulate(sums_[2][s], dy_before, x);
        if (row_b) {
          device::ldmatrix_x4_trans(x, rows.b + at);
          accumulate(sums_[Traits::kRowB][s], dy, x);
        }
      }
    }
  }

  // See WgradSlab.
  GC_DEVICE void multiply_masked(const WgradStepRows& rows, uint32_t step, const WgradArgs& args,
                                 const WgradColumns& columns) {
    const bool row_a = step & kStepRowA, row_b = step & kStepRowB, before = step & kStepDyBefore;
    GC_NO_UNROLL
    for (int tile = 0; tile < Traits::kTilesPerWarp; ++tile) {
      GC_UNROLL
      for (int s = 0; s < 3; ++s) {
        const WgradMask mask(args, columns, first_slot_ + 16 * tile, s);
        const auto add = [&](Fragments& sums, uint32_t dy_row, uint32_t x_row) {
          uint32_t dy[kCoTiles][4], x[4];
          device::ldmatrix_x4_trans(x, x_row + x_offset_ + 256 * tile + Traits::tap_offset(s));
          GC_UNROLL
          for (int i = 0; i < 4; ++i) x[i] &= mask.half[i % 2];
          GC_UNROLL
          for (int m = 0; m < kCoTiles; ++m) {
            const uint32_t at = dy_offset_ + 256 * tile + 2 * m * Traits::kPlaneBytes;
            device::ldmatrix_x4_trans(dy[m], dy_row + at);
            GC_UNROLL
            for (int i = 0; i < 4; ++i) dy[m][i] &= mask.half[i / 2];
          }
          accumulate(sums, dy, x);
        };
        if (row_a) add(sums_[Traits::kRowA][s], rows.dy, rows.a);
        if (before) add(sums_[2][s], rows.dy_before, rows.a);
        if (row_b) add(sums_[Traits::kRowB][s], rows.dy, rows.b);
      }
    }
  }

 private:
  const int first_slot_;
  uint32_t dy_offset_, x_offset_;
};

}  // namespace grouped_conv::cuda
