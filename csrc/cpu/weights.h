// Weights between their [K, C/G, 3, 3] order and the order of the register tiles: for each slab of
// output channels [phase][input word][tap of the phase][kLanes].
#pragma once

#include <cstdint>

#include "correlation.h"
#include "slabs.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

constexpr int kTaps = 9;

inline int64_t packed_slab_floats(const Correlation& c) {
  return words(c.in_per_group) * kTaps * Vec::kLanes;
}

// Float offset, within a slab, of the weights of phase (row_phase, col_phase).
inline int64_t phase_offset(const Correlation& c, int row_phase, int col_phase) {
  int taps_before = 0;
  for (int i = 0; i < row_phase * c.axis_phases + col_phase; ++i) {
    taps_before += c.rows[i / c.axis_phases].taps * c.cols[i % c.axis_phases].taps;
  }
  return taps_before * words(c.in_per_group) * Vec::kLanes;
}

// Where each tap of the 3x3 kernel goes within a slab: `base` for the first input word, `step`
// floats from one input word to the next.
struct TapPlaces {
  int64_t base[kTaps], step[kTaps];

  explicit TapPlaces(const Correlation& c) {
    constexpr int L = Vec::kLanes;
    for (int rp = 0; rp < c.axis_phases; ++rp) {
      for (int cp = 0; cp < c.axis_phases; ++cp) {
        const PhaseAxis &row = c.rows[rp], &col = c.cols[cp];
        for (int i = 0; i < row.taps; ++i) {
          for (int j = 0; j < col.taps; ++j) {
            const int tap = row.tap_index[i] * 3 + col.tap_index[j];
            base[tap] = phase_offset(c, rp, cp) + (i * col.taps + j) * L;
            step[tap] = row.taps * col.taps * L;
          }
        }
      }
    }
  }
};

// Packs one slab: the 9 taps of kLanes kernels are transposed so that each tap becomes a vector.
// load(l, in, t0, taps) loads taps [t0, t0 + taps) of input word `in` from the kernel of lane l.
template <class Load>
inline void pack_taps(const Correlation& c, int lanes, float* packed, const Load& load) {
  constexpr int L = Vec::kLanes;
  const TapPlaces places(c);
  for (int64_t in = 0; in < words(c.in_per_group); ++in) {
    for (int t0 = 0; t0 < kTaps; t0 += L) {
      const int taps = static_cast<int>(min64(L, kTaps - t0));
      Vec::Reg block[L];
      for (int l = 0; l < L; ++l) block[l] = l < lanes ? load(l, in, t0, taps) : Vec::zero();
      Vec::transpose(block);
      for (int t = 0; t < taps; ++t) {
        Vec::store(packed + places.base[t0 + t] + in * places.step[t0 + t], block[t]);
      }
    }
  }
}

// kernels[l]: the taps that the output channel of lane l has for input channel 0. Returns the
// lanes.
template <class T>
inline int lane_kernels(const Correlation& c, const Slabs& s, const T* w, int64_t slab,
                        const T* (&kernels)[Vec::kLanes]) {
  const int lanes = s.lanes(slab);
  for (int l = 0; l < lanes; ++l) {
    const int64_t channel = s.out_begin(slab) + l;
    const int64_t group = channel / s.out_per_group, local = channel % s.out_per_group;
    kernels[l] = w + (group * c.w_group_stride + local * c.w_out_stride) * kTaps;
  }
  return lanes;
}

// The packing of words that hold kChannels channels; pairs.h has the one for two.
template <int kChannels, class E>
struct WeightPacker {
  static_assert(kChannels == 1);

  static void slab(const Correlation& c, const Slabs& s, const typename E::T* w, int64_t slab,
                   float* packed) {
    const typename E::T* kernels[Vec::kLanes];
    const int lanes = lane_kernels(c, s, w, slab, kernels);
    if (c.weights_in_order) {
      const int64_t length = c.in_per_group * kTaps;
      for (int64_t i = 0; i < length; i += Vec::kLanes) {
        const int count = static_cast<int>(min64(Vec::kLanes, length - i));
        Vec::Reg block[Vec::kLanes];
        for (int l = 0; l < Vec::kLanes; ++l) {
          block[l] = l < lanes ? load_first<E>(kernels[l] + i, count) : Vec::zero();
        }
        Vec::transpose(block);
        for (int j = 0; j < count; ++j) Vec::store(packed + (i + j) * Vec::kLanes, block[j]);
      }
      return;
    }
    pack_taps(c, lanes, packed, [&](int l, int64_t in, int t0, int taps) {
      return E::load_partial(kernels[l] + in * c.w_in_stride * kTaps + t0, taps);
    });
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
