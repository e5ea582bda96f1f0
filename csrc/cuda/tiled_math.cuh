// The products of a chunk. Warp i has rows 32 i to 32 i + 31 of the tile, and of the weights all
// channels, or those of its group where a block has several.
#pragma once

#include "cuda/tiled_block.cuh"

namespace grouped_conv::cuda {

template <TiledMath kMath>
struct TiledElement {
  using Type = Float16;
};
template <>
struct TiledElement<TiledMath::kBFloat16> {
  using Type = BFloat16;
};

// The low 13 bits of the input's floats are rounded off here, those of the weights where they are
// packed.
template <TiledMath kMath>
GC_DEVICE void multiply_units(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kMath == TiledMath::kTf32) {
    device::mma_m16n8k8_tf32(sums, a, b);
  } else {
    device::mma_m16n8k16<typename TiledElement<kMath>::Type>(sums, a, b);
  }
}

// On tensor cores. 16 rows by two units are the left factor of an mma, in 16 bits as in TF32, and
// eight channels by a chunk the right factors of two.
template <class Traits>
class TiledSums {
  static constexpr int kEights = Traits::kChannels / 8;

 public:
  GC_DEVICE TiledSums() {
    const int lane = device::lane_index(), warp = device::warp_index();
    input_ = input_offset<Traits>(32 * warp + lane % 16, lane / 16);
    weights_ =
        unit_offset((Traits::kGroups == 1 ? 0 : warp * Traits::kChannels) + lane % 8, lane / 8);
  }

  GC_DEVICE void add(uint32_t input, uint32_t weights, int eights) {
    uint32_t a[2][2][4];
    GC_UNROLL
    for (int step = 0; step < 2; ++step) {
      GC_UNROLL
      for (int m = 0; m < 2; ++m) {
        const uint32_t row = input + input_ + uint32_t(16 * m * kChunkBytes);
        device::ldmatrix_x4(a[step][m], row ^ uint32_t(2 * step * kUnitBytes));
        if constexpr (Traits::kMath == TiledMath::kTf32) {
          for (uint32_t& value : a[step][m]) value = device::to_tf32(device::float_of(value));
        }
      }
    }
    GC_UNROLL
    for (int n = 0; n < kEights; ++n) {
      if (n >= eights) break;
      uint32_t b[4];
      device::ldmatrix_x4(b, weights + weights_ + uint32_t(8 * n * kChunkBytes));
      GC_UNROLL
      for (int step = 0; step < 2; ++step) {
        GC_UNROLL
        for (int m = 0; m < 2; ++m) {
          multiply_units<Traits::kMath>(sums_[m][n], a[step][m], {b[2 * step], b[2 * step + 1]});
        }
      }
    }
  }

  // To be called once, behind the last chunk.
  GC_DEVICE void complete() {}

  // Whether a sum is an infinity or a NaN.
  GC_DEVICE bool nonfinite() const {
    float zero = 0.f;
    GC_UNROLL
    for (int m = 0; m < 2; ++m) {
      GC_UNROLL
      for (int n = 0; n < kEights; ++n) {
        for (const float sum : sums_[m][n]) zero = device::multiply_add(sum, 0.f, zero);
      }
    }
    return !(zero == 0.f);
  }

  // Stores rows of kPitch floats.
  GC_DEVICE void put(uint32_t tile, int eights) const {
    const int lane = device::lane_index();
    const int row = 32 * device::warp_index() + lane / 4;
    GC_UNROLL
    for (int n = 0; n < kEights; ++n) {
      if (n >= eights) break;
      GC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int word = (row + 8 * i) * Traits::kPitch + 8 * n + lane % 4 * 2;
        const float (&pair)[4] = sums_[i / 2][n];
        const uint32_t low = device::bits_of(pair[i % 2 * 2]);
        const uint32_t high = device::bits_of(pair[i % 2 * 2 + 1]);
        if constexpr (Traits::kDirect) {
          device::store_shared_8(tile + uint32_t(4 * word), {{low, high}});
        } else {
          device::store_shared_4(tile + uint32_t(4 * word), low);
          device::store_shared_4(tile + uint32_t(4 * word + 4), high);
        }
      }
    }
  }

 private:
  uint32_t input_, weights_;  // in a stage
  float sums_[2][kEights][4] = {};
};

// Chunks that one chain of sums on FMA units goes over. The chains are added in their turn: the
// error of a sum of n terms grows with the square root of a chain's length and of their number, not
// of n.
inline constexpr int kChunksOfChain = 4;

// On FMA units: a lane has eight rows, four apart, and every eighth channel.
template <class Traits>
class TiledFmaSums {
  static constexpr int kEights = Traits::kChannels / 8;
  static constexpr int kRows = 8;

 public:
  GC_DEVICE TiledFmaSums() {
    const int lane = device::lane_index(), warp = device::warp_index();
    for (int i = 0; i < 2; ++i) input_[i] = input_offset<Traits>(32 * warp + lane / 8 + 4 * i, 0);
    weights_ = unit_offset((Traits::kGroups == 1 ? 0 : warp * Traits::kChannels) + lane % 8, 0);
  }

  GC_DEVICE void add(uint32_t input, uint32_t weights, int eights) {
    GC_UNROLL
    for (int unit = 0; unit < kChunkUnits; ++unit) {
      const uint32_t flipped = uint32_t(unit * kUnitBytes);
      device::Bytes16 a[kRows];
      GC_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const uint32_t row = input + input_[i % 2] + uint32_t(i / 2 * 8 * kChunkBytes);
        a[i] = device::load_shared_16(row ^ flipped);
      }
      GC_UNROLL
      for (int n = 0; n < kEights; ++n) {
        if (n >= eights) break;
        const uint32_t row = weights + weights_ + uint32_t(8 * n * kChunkBytes);
        const device::Bytes16 b = device::load_shared_16(row ^ flipped);
        GC_UNROLL
        for (int i = 0; i < kRows; ++i) {
          GC_UNROLL
          for (int k = 0; k < 4; ++k) {
            chains_[i][n] = device::multiply_add(device::float_of(a[i].word[k]),
                                                 device::float_of(b.word[k]), chains_[i][n]);
          }
        }
      }
    }
    if (++chunks_ % kChunksOfChain == 0) complete();
  }

  GC_DEVICE void complete() {
    GC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      GC_UNROLL
      for (int n = 0; n < kEights; ++n) {
        sums_[i][n] += chains_[i][n];
        chains_[i][n] = 0.f;
      }
    }
  }

  GC_DEVICE bool nonfinite() const {
    float zero = 0.f;
    GC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      for (const float sum : sums_[i]) zero = device::multiply_add(sum, 0.f, zero);
    }
    return !(zero == 0.f);
  }

  GC_DEVICE void put(uint32_t tile, int eights) const {
    const int lane = device::lane_index();
    const int row = 32 * device::warp_index() + lane / 8;
    GC_UNROLL
    for (int n = 0; n < kEights; ++n) {
      if (n >= eights) break;
      GC_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int word = (row + 4 * i) * Traits::kPitch + 8 * n + lane % 8;
        device::store_shared_4(tile + uint32_t(4 * word), device::bits_of(sums_[i][n]));
      }
    }
  }

 private:
  uint32_t input_[2], weights_;  // unit 0, in a stage
  int chunks_ = 0;
  float sums_[kRows][kEights] = {}, chains_[kRows][kEights] = {};
};

}  // namespace grouped_conv::cuda
