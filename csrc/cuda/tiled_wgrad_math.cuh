// What a warp of the tiled weight gradient makes of a stage: sums of 48 rows by kWarpCols columns
// in registers, by the tensor cores or in float32.
//
// With mma the rows, (r, s, c), are m, the columns, k, are n. Sixteen rows are two slots of 16-bit
// elements or four of 32-bit ones, and a slot has one tap: where products with padding must not be
// multiplied, each slot is multiplied by itself, with the pixels of dy masked that it does not
// meet.
#pragma once

#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/tiled_wgrad_io.cuh"

namespace grouped_conv::cuda {

// Where a warp's sums are in the block.
template <class Traits>
struct TiledWgradWarp {
  int group, row, col;  // group of the block; first row and column of the group's tile

  GC_DEVICE TiledWgradWarp() {
    const int warp = device::warp_index();
    group = warp / Traits::kWarpsOfGroup;
    const int of_group = warp - group * Traits::kWarpsOfGroup;
    row = of_group / Traits::kConfig.col_warps * kTiledWgradWarpRows;
    col = of_group % Traits::kConfig.col_warps * Traits::kWarpCols;
  }

  GC_DEVICE uint32_t x_offset() const {
    return uint32_t((group * Traits::kRows + row) * Traits::kElementBytes);
  }
  GC_DEVICE uint32_t dy_offset() const {
    return uint32_t(Traits::kXBytes + (group * Traits::kCols + col) * Traits::kElementBytes);
  }
};

// Tells which pixels of a stage meet x, and not its padding, in which rows.
template <class Traits>
class TiledWgradMeeting {
 public:
  GC_DEVICE TiledWgradMeeting(const TiledWgradArgs& args, const TiledWgradTile& tile, int chunk)
      : args_(args),
        tile_(tile),
        first_(TiledWgradPixel::first(args, int64_t(chunk) * Traits::kPixels)) {}

  GC_DEVICE TiledWgradRow row(const TiledWgradWarp<Traits>& warp, int slot) const {
    return TiledWgradRow::of_slot<Traits>(args_, tile_, tile_.first_group + warp.group,
                                          warp.row / Traits::kSlotElements + slot);
  }
  GC_DEVICE bool operator()(const TiledWgradRow& row, int pixel) const {
    const TiledWgradPixel at = first_.later(args_, pixel);
    const int h = at.p * args_.stride_h - args_.pad_h + row.r * args_.dilation_h;
    const int w = at.q * args_.stride_w - args_.pad_w + row.s * args_.dilation_w;
    return uint32_t(h) < uint32_t(args_.H) && uint32_t(w) < uint32_t(args_.W);
  }

 private:
  const TiledWgradArgs& args_;
  const TiledWgradTile& tile_;
  const TiledWgradPixel first_;
};

// The sums of a warp by mma; Leaf has the fragments of one element type.
template <class Traits, class Leaf>
class TiledWgradMma {
  static constexpr int kTilesM = kTiledWgradWarpRows / 16, kTilesN = Traits::kWarpCols / 8;
  static constexpr int kSlots = 16 / Traits::kSlotElements;  // of sixteen rows

 public:
  GC_DEVICE TiledWgradMma()
      : x_offset_(warp_.x_offset() + Leaf::x_offset()),
        dy_offset_(warp_.dy_offset() + Leaf::dy_offset()) {}

  static constexpr int kSteps = Traits::kPixels / Leaf::kStep;

  // One of the steps of a stage.
  GC_DEVICE void multiply(uint32_t stage, int step) {
    uint32_t a[kTilesM][4], b[kTilesN][2];
    GC_UNROLL
    for (int m = 0; m < kTilesM; ++m) load_x(a[m], stage, step, m);
    load_dy(b, stage, step);
    GC_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      GC_UNROLL
      for (int n = 0; n < kTilesN; ++n) Leaf::mma(sums_[m][n], a[m], b[n]);
    }
  }

  // As all steps of multiply, but without the products that do not exist. Where no Inf or NaN meets
  // padding the sums get the same bits.
  GC_DEVICE void multiply_masked(uint32_t stage, const TiledWgradMeeting<Traits>& meeting) {
    GC_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      GC_NO_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        const TiledWgradRow row = meeting.row(warp_, m * kSlots + slot);
        GC_NO_UNROLL
        for (int step = 0; step < kSteps; ++step) {
          const uint32_t mask[2] = {Leaf::mask(meeting, row, step * Leaf::kStep, 0),
                                    Leaf::mask(meeting, row, step * Leaf::kStep, 1)};
          multiply_slot(m, slot, stage, step, mask);
        }
      }
    }
  }

  GC_DEVICE void clear() {
    GC_UNROLL
    for (int i = 0; i < kTilesM * kTilesN * 4; ++i)
      sums_[i / (4 * kTilesN)][i / 4 % kTilesN][i % 4] = 0;
  }

  GC_DEVICE bool has_nan() const {
    bool found = false;
    GC_UNROLL
    for (int i = 0; i < kTilesM * kTilesN * 4; ++i) {
      const float sum = sums_[i / (4 * kTilesN)][i / 4 % kTilesN][i % 4];
      found |= sum != sum;
    }
    return found;
  }

  // Puts the sums into shared memory, as TiledWgradTraits::sum_offset says.
  GC_DEVICE void put_sums(uint32_t shared) const {
    const int lane = device::lane_index();
    const uint32_t first =
        shared + Traits::sum_offset(warp_.group, warp_.row + lane / 4, warp_.col + lane % 4 * 2);
    GC_UNROLL
    for (int i = 0; i < kTilesM * kTilesN * 4; ++i) {
      const int m = i / (4 * kTilesN), n = i / 4 % kTilesN, e = i % 4;
      device::store_shared_4(first + Traits::sum_offset(0, 16 * m + 8 * (e / 2), 8 * n + e % 2),
                             device::bits_of(sums_[m][n][e]));
    }
  }

 private:
  // Adds to the sums of one slot's rows alone.
  GC_DEVICE void multiply_slot(int m, int slot, uint32_t stage, int step,
                               const uint32_t (&mask)[2]) {
    uint32_t a[4], b[kTilesN][2];
    load_x(a, stage, step, m);
    load_dy(b, stage, step);
    GC_UNROLL
    for (int n = 0; n < kTilesN; ++n) {
      float (&sums)[4] = sums_[m][n];
      float all[4] = {sums[0], sums[1], sums[2], sums[3]};
      const uint32_t masked[2] = {b[n][0] & mask[0], b[n][1] & mask[1]};
      Leaf::mma(all, a, masked);
      GC_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = device::lane_index() / 4 + 8 * (e / 2);
        sums[e] = row / Traits::kSlotElements == slot ? all[e] : sums[e];
      }
    }
  }

  GC_DEVICE void load_x(uint32_t (&a)[4], uint32_t stage, int step, int m) const {
    Leaf::load_x(a, stage + x_offset_ + step * Leaf::kStep * Traits::kXPitch +
                        16 * m * Traits::kElementBytes);
  }
  GC_DEVICE void load_dy(uint32_t (&b)[kTilesN][2], uint32_t stage, int step) const {
    Leaf::load_dy(b, stage + dy_offset_ + step * Leaf::kStep * Traits::kDyPitch);
  }

  const TiledWgradWarp<Traits> warp_;
  const uint32_t x_offset_, dy_offset_;
  float sums_[kTilesM][kTilesN][4] = {};
};

// Sixteen pixels of 16-bit elements.
template <class Traits>
struct TiledWgradLeaf16 {
  static constexpr int kStep = 16;
  static constexpr int kTilesN = Traits::kWarpCols / 8;

  // Matrices of x: the m halves (rows), then the k halves (pixels). Of dy: the k halves, then two
  // n tiles.
  GC_DEVICE static uint32_t x_offset() {
    const int lane = device::lane_index();
    return uint32_t((lane % 8 + lane / 16 * 8) * Traits::kXPitch + lane / 8 % 2 * 16);
  }
  GC_DEVICE static uint32_t dy_offset() {
    const int lane = device::lane_index();
    return uint32_t((lane % 8 + lane / 8 % 2 * 8) * Traits::kDyPitch +
                    (kTilesN > 1 ? lane / 16 * 16 : 0));
  }
  GC_DEVICE static void load_x(uint32_t (&a)[4], uint32_t at) { device::ldmatrix_x4_trans(a, at); }
  GC_DEVICE static void load_dy(uint32_t (&b)[kTilesN][2], uint32_t at) {
    if constexpr (kTilesN == 1) {
      device::ldmatrix_x2_trans(b[0], at);
    } else {
      GC_UNROLL
      for (int n = 0; n < kTilesN; n += 2) {
        uint32_t two[4];
        device::ldmatrix_x4_trans(two, at + 16 * n);
        b[n][0] = two[0];
        b[n][1] = two[1];
        b[n + 1][0] = two[2];
        b[n + 1][1] = two[3];
      }
    }
  }
  GC_DEVICE static void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    device::mma_m16n8k16<typename Traits::Element>(sums, a, b);
  }
  // Ones where the lane's two pixels of either half of k meet.
  GC_DEVICE static uint32_t mask(const TiledWgradMeeting<Traits>& meeting, const TiledWgradRow& row,
                                 int pixel, int half) {
    const int first = pixel + 8 * half + device::lane_index() % 4 * 2;
    return (meeting(row, first) ? 0xffffu : 0) | (meeting(row, first + 1) ? 0xffff0000u : 0);
  }
};

// Eight pixels in tf32.
template <class Traits>
struct TiledWgradLeafTf32 {
  static constexpr int kStep = 8;
  static constexpr int kTilesN = Traits::kWarpCols / 8;

  GC_DEVICE static uint32_t x_offset() {
    const int lane = device::lane_index();
    return uint32_t(lane % 4 * Traits::kXPitch + lane / 4 * 4);
  }
  GC_DEVICE static uint32_t dy_offset() {
    const int lane = device::lane_index();
    return uint32_t(lane % 4 * Traits::kDyPitch + lane / 4 * 4);
  }
  GC_DEVICE static void load_x(uint32_t (&a)[4], uint32_t at) {
    GC_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = load(at + i / 2 * 4 * Traits::kXPitch + i % 2 * 32);
  }
  GC_DEVICE static void load_dy(uint32_t (&b)[kTilesN][2], uint32_t at) {
    GC_UNROLL
    for (int n = 0; n < kTilesN; ++n) {
      b[n][0] = load(at + 32 * n);
      b[n][1] = load(at + 32 * n + 4 * Traits::kDyPitch);
    }
  }
  GC_DEVICE static void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    device::mma_m16n8k8_tf32(sums, a, b);
  }
  // Ones where the lane's pixel of either half of k meets.
  GC_DEVICE static uint32_t mask(const TiledWgradMeeting<Traits>& meeting, const TiledWgradRow& row,
                                 int pixel, int half) {
    return meeting(row, pixel + 4 * half + device::lane_index() % 4) ? 0xffffffffu : 0;
  }

 private:
  GC_DEVICE static uint32_t load(uint32_t at) {
    return device::to_tf32(device::float_of(device::load_shared_4(at)));
  }
};

// The sums of a warp in float32: of a lane 12 rows, in three slots, by kWarpCols / 8 columns. Those
// of a stage are summed by themselves first, so that sums of many pixels stay exact for longer.
template <class Traits>
class TiledWgradFma {
  static constexpr int kSlots = kTiledWgradWarpRows / 16;  // of four rows; four lanes side by side
  static constexpr int kCols = Traits::kWarpCols / 8;
  static constexpr int kStep = 8;

 public:
  static constexpr int kSteps = Traits::kPixels / kStep;

  GC_DEVICE TiledWgradFma()
      : x_offset_(warp_.x_offset() + device::lane_index() / 8 * 16),
        dy_offset_(warp_.dy_offset() + device::lane_index() % 8 * kCols * 4) {}

  // One of the steps of a stage.
  GC_DEVICE void multiply(uint32_t stage, int step) {
    constexpr bool kMeet[kSlots] = {true, true, true};
    GC_NO_UNROLL
    for (int i = 0; i < kStep; ++i) multiply_pixel(stage, kStep * step + i, kMeet);
    if (step + 1 == kSteps) finish_stage();
  }

  // As all steps of multiply, but without the products that do not exist; the sums get the same
  // bits where no Inf or NaN meets padding.
  GC_DEVICE void multiply_masked(uint32_t stage, const TiledWgradMeeting<Traits>& meeting) {
    GC_NO_UNROLL
    for (int pixel = 0; pixel < Traits::kPixels; ++pixel) {
      bool meets[kSlots];
      GC_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        meets[slot] = meeting(meeting.row(warp_, device::lane_index() / 8 + 4 * slot), pixel);
      }
      multiply_pixel(stage, pixel, meets);
    }
    finish_stage();
  }

  GC_DEVICE void clear() {
    GC_UNROLL
    for (int i = 0; i < kSlots * 4 * kCols; ++i) sums_[i / kCols][i % kCols] = 0;
  }

  GC_DEVICE bool has_nan() const {
    bool found = false;
    GC_UNROLL
    for (int i = 0; i < kSlots * 4 * kCols; ++i) {
      const float sum = sums_[i / kCols][i % kCols];
      found |= sum != sum;
    }
    return found;
  }

  // See TiledWgradMma.
  GC_DEVICE void put_sums(uint32_t shared) const {
    const int lane = device::lane_index();
    const uint32_t first = shared + Traits::sum_offset(warp_.group, warp_.row + lane / 8 * 4,
                                                       warp_.col + lane % 8 * kCols);
    GC_UNROLL
    for (int i = 0; i < kSlots * kCols; ++i) {
      const int slot = i / kCols, col = i % kCols;
      device::Bytes16 rows;
      GC_UNROLL
      for (int e = 0; e < 4; ++e) rows.word[e] = device::bits_of(sums_[4 * slot + e][col]);
      device::store_shared_16(first + Traits::sum_offset(0, 16 * slot, col), rows);
    }
  }

 private:
  static_assert(kCols == 1 || kCols == 4);
  static_assert(kSlots == 3);

  GC_DEVICE void multiply_pixel(uint32_t stage, int pixel, const bool (&meets)[kSlots]) {
    const uint32_t dy_at = stage + dy_offset_ + pixel * Traits::kDyPitch;
    float dy[kCols];
    if constexpr (kCols == 1) {
      dy[0] = device::float_of(device::load_shared_4(dy_at));
    } else {
      const device::Bytes16 values = device::load_shared_16(dy_at);
      GC_UNROLL
      for (int col = 0; col < kCols; ++col) dy[col] = device::float_of(values.word[col]);
    }
    GC_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      const uint32_t at = stage + x_offset_ + pixel * Traits::kXPitch + 64 * slot;
      const device::Bytes16 x = device::load_shared_16(at);
      GC_UNROLL
      for (int i = 0; i < 4 * kCols; ++i) {
        float& sum = of_stage_[4 * slot + i / kCols][i % kCols];
        const float more =
            device::multiply_add(device::float_of(x.word[i / kCols]), dy[i % kCols], sum);
        sum = meets[slot] ? more : sum;
      }
    }
  }

  GC_DEVICE void finish_stage() {
    GC_UNROLL
    for (int i = 0; i < kSlots * 4 * kCols; ++i) {
      sums_[i / kCols][i % kCols] += of_stage_[i / kCols][i % kCols];
      of_stage_[i / kCols][i % kCols] = 0;
    }
  }

  const TiledWgradWarp<Traits> warp_;
  const uint32_t x_offset_, dy_offset_;
  float sums_[4 * kSlots][kCols] = {};
  float of_stage_[4 * kSlots][kCols] = {};
};

template <class Traits>
using TiledWgradSums =
    std::conditional_t<Traits::kMath == TiledMath::kFma, TiledWgradFma<Traits>,
                       TiledWgradMma<Traits, std::conditional_t<Traits::kMath == TiledMath::kTf32,
                                                                TiledWgradLeafTf32<Traits>,
                                                                TiledWgradLeaf16<Traits>>>>;

}  // namespace grouped_conv::cuda
