// Strips and weights whose words are pairs of bfloat16: input channels 2i (low half) and 2i + 1
// (high half) of a group, the high half of an odd last channel zero. fma multiplies both halves and
// adds both products to the lane.
#pragma once

#include "slabs.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

template <>
struct WordLoader<2, ElementBF16> {
  static constexpr int kPitch = Vec::kLanes / 2;

  static void pixel(const uint16_t* src, int channels, float* dst) {
    if (channels == Vec::kLanes) {
      std::memcpy(dst, src, sizeof(uint16_t) * Vec::kLanes);
    } else {
      Vec::store_partial(dst, Vec::load_words(src, channels), kPitch);
    }
  }
  static Vec::Reg columns(const uint16_t* src, int64_t plane, int64_t channels, int i, int n) {
    const int64_t c = 2 * i;
    if (c >= channels || n == 0) return Vec::zero();
    const uint16_t* low = src + c * plane;
    return Vec::zip_words(low, c + 1 < channels ? low + plane : nullptr, n);
  }
  // A vector holds the words of two pixels.
  static void store(float* dst, Vec::Reg v, int part) {
    if (part == 0) {
      Vec::store_partial(dst, v, kPitch);
    } else {
      Vec::store_high(dst, v);
    }
  }
};

template <>
struct WeightPacker<2, ElementBF16> {
  static void slab(const Correlation& c, const Slabs& s, const uint16_t* w, int64_t slab,
                   float* packed) {
    const uint16_t* kernels[Vec::kLanes];
    const int lanes = lane_kernels(c, s, w, slab, kernels);
    const int64_t next = c.w_in_stride * kTaps;
    pack_taps(c, lanes, packed, [&](int l, int64_t in, int t0, int taps) {
      const uint16_t* low = kernels[l] + 2 * in * next + t0;
      return Vec::zip_words(low, 2 * in + 1 < c.in_per_group ? low + next : nullptr, taps);
    });
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
