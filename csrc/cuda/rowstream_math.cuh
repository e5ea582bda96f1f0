// Fragments and tensor-core arithmetic of the row-streaming kernels. With g = lane / 4 and
// t = lane % 4 (device/matrix.h), the rows of A are pixels, its columns input channels and the
// columns of D output channels.
//
// Up to 8 channels per group a slab of 8 channels is one or two whole groups. Two taps of a row
// share one k16 multiplication, the third takes a k8 one: 6 multiplications for 9 taps. From 16
// channels per group k16 is two planes of one tap.
#pragma once

#include "cuda/rowstream_io.cuh"

namespace grouped_conv::cuda {

// The order in which the taps of a row are held. A k16 pair is (kTapOrder[0], kTapOrder[1]); in
// dgrad at stride 2 the first two make the even columns, the last one the odd columns.
template <Walk kWalk>
GC_DEVICE constexpr int tap_in_order(int position) {
  if (kWalk != Walk::kDgradStride2) return position;
  return position == 0 ? 2 : position - 1;
}

// The weights of a warp's output channels, in registers for the whole walk.
template <class Traits>
struct WeightTile {
  static constexpr int kPairsPerTap = Traits::kDepth / 2;  // 0 up to 8 channels per group
  static constexpr int kPairs = Traits::kCpg <= 8 ? 1 : 3 * kPairsPerTap;
  static constexpr int kSingles = Traits::kCpg <= 8 ? 1 : 0;

  uint32_t pair[3][kPairs][Traits::kSlabs][2];
  uint32_t single[3][Traits::kSlabs][1];

  // From the block's weights in shared memory; `first_n` is the warp's first output channel.
  GC_DEVICE WeightTile(const WeightOrder& order, uint32_t weights, int first_n) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      const int n = first_n + slab * 8 + device::lane_index() / 4;
      const int group = n / Traits::kCpg;
      const uint32_t base = weights + group * Traits::kCpg * Traits::kWeightRowBytes +
                            2 * (order.first + n % Traits::kCpg * order.by_n);
      GC_UNROLL
      for (int r = 0; r < 3; ++r) {
        if constexpr (Traits::kCpg <= 8) {
          pair[r][0][slab][0] = load(order, base, n, r, 0, 0);
          pair[r][0][slab][1] = load(order, base, n, r, 1, 0);
          single[r][slab][0] = load(order, base, n, r, 2, 0);
        } else {
          GC_UNROLL
          for (int i = 0; i < kPairs; ++i) {
            const int position = i / kPairsPerTap;
            const int plane = i % kPairsPerTap * 2;
            pair[r][i][slab][0] = load(order, base, n, r, position, plane);
            pair[r][i][slab][1] = load(order, base, n, r, position, plane + 1);
          }
        }
      }
    }
  }

 private:
  // Input channels 2t and 2t + 1 of a plane of the group.
  GC_DEVICE static uint32_t load(const WeightOrder& order, uint32_t base, int n, int r,
                                 int position, int plane) {
    const int tap = 3 * r + tap_in_order<Traits::kWalk>(position);
    const int k = plane * 8 + device::lane_index() % 4 * 2;
    // The two groups of a shared slab meet only zeros of each other.
    const bool own = !Traits::kSharedSlab || n % 8 / Traits::kCpg == k / Traits::kCpg;
    const uint32_t address = base + 2 * (k % Traits::kCpg * order.by_k + tap * order.by_tap);
    const uint32_t low = device::load_shared_2(address, own);
    const uint32_t high = device::load_shared_2(address + 2 * order.by_k, own);
    return low | high << 16;
  }
};

// One row of input for 16 slots of output: the A operands of all taps.
template <class Traits>
struct InputTile {
  static constexpr bool kUnit = Traits::kWalk == Walk::kUnitStride;
  static constexpr bool kDgrad2 = Traits::kWalk == Walk::kDgradStride2;
  static constexpr int kPlanePairs = Traits::kDepth / 2;
  // In dgrad at stride 2 two taps look at the same pixel.
  static constexpr int kShifts = kDgrad2 ? 2 : 3;
  static constexpr int kPairs = Traits::kCpg <= 8 ? 1 : kShifts * kPlanePairs;

  uint32_t pair[kPairs][4];
  uint32_t single[2];

  // Bytes from a slot to the pixel of a tap.
  GC_DEVICE static constexpr uint32_t shift(int position) {
    if (Traits::kWalk != Walk::kFpropStride2) return position * 16;
    return position == 0 ? 0 : position == 1 ? Traits::kOddRunBytes : 16;
  }

  // Where a lane reads, from the first slot of the warp's first plane.
  GC_DEVICE static uint32_t lane_offset() {
    const int lane = device::lane_index();
    const uint32_t upper = Traits::kCpg <= 8 ? shift(1) : uint32_t(Traits::kInputPlaneBytes);
    return lane % 16 * 16 + (lane / 16) * upper;
  }
  GC_DEVICE static uint32_t lane_offset_of_single() {
    return device::lane_index() % 16 * 16 + shift(2);
  }

  GC_DEVICE void load(uint32_t address, uint32_t address_of_single) {
    if constexpr (Traits::kCpg <= 8) {
      device::ldmatrix_x4(pair[0], address);
      if constexpr (kDgrad2) {
        single[0] = pair[0][2];
        single[1] = pair[0][3];
      } else {
        device::ldmatrix_x2(single, address_of_single);
      }
    } else {
      GC_UNROLL
      for (int i = 0; i < kPairs; ++i) {
        device::ldmatrix_x4(pair[i], address + shift(i / kPlanePairs) +
                                         i % kPlanePairs * 2 * Traits::kInputPlaneBytes);
      }
    }
  }
};

template <class Traits>
using SlabAccumulators = float[Traits::kSlabs][4];

// Adds tap row r of a row of input: all three taps.
template <class Traits>
GC_DEVICE void accumulate(SlabAccumulators<Traits>& sum, const InputTile<Traits>& input,
                          const WeightTile<Traits>& weights, int r) {
  using T = typename Traits::T;
  static_assert(Traits::kWalk != Walk::kDgradStride2);
  GC_UNROLL
  for (int i = 0; i < WeightTile<Traits>::kPairs; ++i) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      device::mma_m16n8k16<T>(sum[slab], input.pair[i], weights.pair[r][i][slab]);
    }
  }
  if constexpr (Traits::kCpg <= 8) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      device::mma_m16n8k8<T>(sum[slab], input.single, weights.single[r][slab]);
    }
  }
}

// Adds tap row r of a row of dy, at stride 2: taps 2 and 0 to the even columns of dx.
template <class Traits>
GC_DEVICE void accumulate_even(SlabAccumulators<Traits>& sum, const InputTile<Traits>& input,
                               const WeightTile<Traits>& weights, int r) {
  static_assert(Traits::kWalk == Walk::kDgradStride2);
  GC_UNROLL
  for (int i = 0; i < InputTile<Traits>::kPairs; ++i) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      device::mma_m16n8k16<typename Traits::T>(sum[slab], input.pair[i], weights.pair[r][i][slab]);
    }
  }
}

// The same, tap 1 to the odd columns.
template <class Traits>
GC_DEVICE void accumulate_odd(SlabAccumulators<Traits>& sum, const InputTile<Traits>& input,
                              const WeightTile<Traits>& weights, int r) {
  using T = typename Traits::T;
  static_assert(Traits::kWalk == Walk::kDgradStride2);
  GC_UNROLL
  for (int slab = 0; slab < Traits::kSlabs; ++slab) {
    if constexpr (Traits::kCpg <= 8) {
      device::mma_m16n8k8<T>(sum[slab], input.single, weights.single[r][slab]);
    } else {
      constexpr int kPlanePairs = InputTile<Traits>::kPlanePairs;
      GC_UNROLL
      for (int i = 0; i < kPlanePairs; ++i) {
        device::mma_m16n8k16<T>(sum[slab], input.pair[kPlanePairs + i],
                                weights.pair[r][2 * kPlanePairs + i][slab]);
      }
    }
  }
}

// What a sum starts from: the bias of the lane's output channels, or zero.
template <class Traits>
struct Start {
  float value[Traits::kSlabs][2];

  GC_DEVICE Start(const RowstreamArgs& args, int first_channel) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      GC_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = first_channel + slab * 8 + device::lane_index() % 4 * 2 + i;
        const char* source = static_cast<const char*>(args.bias) + 2 * (channel * args.bias_stride);
        const bool active = args.bias != nullptr && channel < args.channels;
        value[slab][i] =
            device::to_float<typename Traits::T>(device::load_global_2(source, active));
      }
    }
  }

  GC_DEVICE void set(SlabAccumulators<Traits>& sum) const {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      GC_UNROLL
      for (int i = 0; i < 4; ++i) sum[slab][i] = value[slab][i % 2];
    }
  }
};

template <class Traits>
GC_DEVICE void set_zero(SlabAccumulators<Traits>& sum) {
  GC_UNROLL
  for (int slab = 0; slab < Traits::kSlabs; ++slab) {
    GC_UNROLL
    for (int i = 0; i < 4; ++i) sum[slab][i] = 0.f;
  }
}

// Where a lane writes, from the first slot of the warp's first plane of output.
GC_DEVICE uint32_t output_lane_offset() {
  return device::lane_index() / 4 * 16 + device::lane_index() % 4 * 4;
}

// Rounds 16 slots of finished sums and puts them where OutputStream finds them.
template <class Traits>
GC_DEVICE void put(const SlabAccumulators<Traits>& sum, uint32_t address) {
  using T = typename Traits::T;
  GC_UNROLL
  for (int slab = 0; slab < Traits::kSlabs; ++slab) {
    const uint32_t plane = address + slab * Traits::kOutputPlaneBytes;
    device::store_shared_4(plane, device::pack2<T>(sum[slab][0], sum[slab][1]));
    device::store_shared_4(plane + 8 * 16, device::pack2<T>(sum[slab][2], sum[slab][3]));
  }
}

}  // namespace grouped_conv::cuda
