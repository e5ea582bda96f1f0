// Weights between their [K, C/G, 3, 3] or [K, 3, 3, C/G] order and the order of the register tiles:
// for each slab of output channels [phase][input word][tap of the phase][kLanes].
#pragma once

#include <cstdint>
#include <cstring>

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

// The kernels of one slab of fprop lie side by side, and those of the next slab behind them: those
// are prefetched in order, for the packing jumps from kernel to kernel.
struct NextKernels {
  const char *at, *end;

  template <class T>
  NextKernels(const Correlation& c, const Slabs& s, const T* w, int64_t slab) {
    const int64_t behind = s.out_begin(slab) + s.lanes(slab);
    const int64_t kernel = c.in_per_group * kTaps;
    at = reinterpret_cast<const char*>(w + behind * kernel);
    end = reinterpret_cast<const char*>(w + min64(s.out_channels, behind + Vec::kLanes) * kernel);
  }
  void ask() {
    if (at < end) prefetch(at), at += kCacheLine;
  }
};

// The kernels that a slab of dgrad meets are those of its groups, which lie side by side; slabs of
// one group read parts of the same lines. Those of the next groups are prefetched, by each slab of
// a group its share of them.
struct NextGroups {
  const char *at, *end;
  int64_t lines_per_word;

  template <class T>
  NextGroups(const Correlation& c, const Slabs& s, const T* w, int64_t slab) {
    const int64_t first = s.out_begin(slab) / s.out_per_group;
    const int64_t behind = (s.out_begin(slab) + max64(1, s.lanes(slab)) - 1) / s.out_per_group + 1;
    const int64_t bytes = c.w_group_stride * kTaps * static_cast<int64_t>(sizeof(T));
    const int64_t size = (min64(c.groups, 2 * behind - first) - behind) * bytes;
    const int64_t shares = max64(1, s.slabs_per_group), share = slab % shares;
    at = reinterpret_cast<const char*>(w) + behind * bytes;
    end = at + size * (share + 1) / shares;
    at += size * share / shares;
    lines_per_word = ceil_div(ceil_div(end - at, kCacheLine), words(c.in_per_group));
  }
  void ask() {
    for (int64_t i = lines_per_word; i > 0 && at < end; --i, at += kCacheLine) prefetch(at);
  }
};

// Packs the kernels of fprop of one slab, each a run of words: load(l, i, n) loads n words from
// word i on of the kernel of lane l.
template <class T, class Load>
inline void pack_runs(const Correlation& c, const Slabs& s, const T* w, int64_t slab, float* packed,
                      const Load& load) {
  constexpr int L = Vec::kLanes;
  const int lanes = s.lanes(slab);
  NextKernels next(c, s, w, slab);
  const TapPlaces places(c);
  const int64_t per_tap = words(c.in_per_group);
  int64_t tap = 0, in = 0;
  for (int64_t i = 0; i < per_tap * kTaps; i += L) {
    const int count = static_cast<int>(min64(L, per_tap * kTaps - i));
    Vec::Reg block[L];
    for (int l = 0; l < L; ++l) {
      block[l] = l < lanes ? load(l, i, count) : Vec::zero();
      next.ask();
    }
    Vec::transpose(block);
    for (int j = 0; j < count; ++j) {
      Vec::store(packed + places.base[tap] + in * places.step[tap], block[j]);
      if (c.w_channels_last) {
        if (++in == per_tap) in = 0, ++tap;
      } else {
        if (++tap == kTaps) tap = 0, ++in;
      }
    }
  }
}

// Packs one slab of dgrad from channels_last weights, where its lanes lie side by side, group by
// group. load(low, next, n) loads n words; `next` channels behind low, or null, are the second ones
// of words of two channels.
template <class T, class Load>
inline void pack_neighbours(const Correlation& c, const Slabs& s, const T* w, int64_t slab,
                            float* packed, const Load& load) {
  const TapPlaces places(c);
  NextGroups ahead(c, s, w, slab);
  const int lanes = s.lanes(slab);
  if (lanes < Vec::kLanes) std::memset(packed, 0, sizeof(float) * packed_slab_floats(c));
  for (int64_t l = 0; l < lanes;) {
    const int64_t group = (s.out_begin(slab) + l) / s.out_per_group;
    const int64_t local = (s.out_begin(slab) + l) % s.out_per_group;
    const int n = static_cast<int>(min64(lanes - l, s.out_per_group - local));
    const int64_t kernel = kTaps * s.out_per_group;
    for (int64_t in = 0; in < words(c.in_per_group); ++in) {
      ahead.ask();
      const int64_t first = in * Vec::kChannelsPerWord;
      const T* low = w + (group * c.in_per_group + first) * kernel + local;
      const T* high = first + 1 < c.in_per_group ? low + kernel : nullptr;
      for (int tap = 0; tap < kTaps; ++tap) {
        const int64_t at = tap * s.out_per_group;
        Vec::store_partial(packed + places.base[tap] + in * places.step[tap] + l,
                           load(low + at, high == nullptr ? high : high + at, n), n);
      }
    }
    l += n;
  }
}

// The packing of words that hold kChannels channels; pairs.h has the one for two.
template <int kChannels, class E>
struct WeightPacker {
  static_assert(kChannels == 1);

  static void slab(const Correlation& c, const Slabs& s, const typename E::T* w, int64_t slab,
                   float* packed) {
    if (!c.fprop && c.w_channels_last) {
      pack_neighbours(c, s, w, slab, packed, [](const auto* low, const auto* /*high*/, int n) {
        return load_first<E>(low, n);
      });
      return;
    }
    const typename E::T* kernels[Vec::kLanes];
    const int lanes = lane_kernels(c, s, w, slab, kernels);
    if (c.fprop) {
      pack_runs(c, s, w, slab, packed,
                [&](int l, int64_t i, int n) { return load_first<E>(kernels[l] + i, n); });
      return;
    }
    NextGroups ahead(c, s, w, slab);
    pack_taps(c, lanes, packed, [&](int l, int64_t in, int t0, int taps) {
      if (l == 0) ahead.ask();
      return E::load_partial(kernels[l] + in * c.w_in_stride * kTaps + t0, taps);
    });
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
