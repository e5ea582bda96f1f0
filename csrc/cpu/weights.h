// Weights between their [K, C/G, 3, 3] order and the order of the register tiles: for each slab of
// output channels [phase][input channel][tap of the phase][kLanes].
#pragma once

#include <cstdint>

#include "correlation.h"
#include "slabs.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

constexpr int kTaps = 9;

inline int64_t packed_slab_floats(const Correlation& c) {
  return c.in_per_group * kTaps * Vec::kLanes;
}

// Float offset, within a slab, of the weights of phase (row_phase, col_phase).
inline int64_t phase_offset(const Correlation& c, int row_phase, int col_phase) {
  int taps_before = 0;
  for (int i = 0; i < row_phase * c.axis_phases + col_phase; ++i) {
    taps_before += c.rows[i / c.axis_phases].taps * c.cols[i % c.axis_phases].taps;
  }
  return taps_before * c.in_per_group * Vec::kLanes;
}

// Packs one slab: the 9 taps of kLanes kernels are transposed so that each tap becomes a vector.
template <class E>
inline void pack_slab(const Correlation& c, const Slabs& s, const typename E::T* w, int64_t slab,
                      float* packed) {
  constexpr int L = Vec::kLanes;
  int64_t tap_base[kTaps] = {}, tap_step[kTaps] = {};
  for (int rp = 0; rp < c.axis_phases; ++rp) {
    for (int cp = 0; cp < c.axis_phases; ++cp) {
      const PhaseAxis &row = c.rows[rp], &col = c.cols[cp];
      for (int i = 0; i < row.taps; ++i) {
        for (int j = 0; j < col.taps; ++j) {
          const int tap = row.tap_index[i] * 3 + col.tap_index[j];
          tap_base[tap] = phase_offset(c, rp, cp) + (i * col.taps + j) * L;
          tap_step[tap] = row.taps * col.taps * L;
        }
      }
    }
  }

  const int lanes = s.lanes(slab);
  const typename E::T* kernels[L];
  for (int l = 0; l < lanes; ++l) {
    const int64_t channel = s.out_begin(slab) + l;
    const int64_t group = channel / s.out_per_group, local = channel % s.out_per_group;
    kernels[l] = w + (group * c.w_group_stride + local * c.w_out_stride) * kTaps;
  }
  for (int64_t in = 0; in < c.in_per_group; ++in) {
    const int64_t at = in * c.w_in_stride * kTaps;
    for (int t0 = 0; t0 < kTaps; t0 += L) {
      const int taps = static_cast<int>(min64(L, kTaps - t0));
      Vec::Reg block[L];
      for (int l = 0; l < L; ++l) {
        block[l] = l < lanes ? E::load_partial(kernels[l] + at + t0, taps) : Vec::zero();
      }
      Vec::transpose(block);
      for (int t = 0; t < taps; ++t) {
        Vec::store(packed + tap_base[t0 + t] + in * tap_step[t0 + t], block[t]);
      }
    }
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
