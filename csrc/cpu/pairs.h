// Strips and weights whose words are pairs of bfloat16: input channels 2i (low half) and 2i + 1
// (high half) of a group, the high half of an odd last channel zero. fma multiplies both halves and
// adds both products to the lane.
#pragma once

#include "slabs.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

template <>
struct StripLoader<2, ElementBF16> {
  using Tensor = Activation<ElementBF16>;

  // Pixels of kLanes channels, which are kLanes / 2 words.
  static void pixels(const Tensor& t, int64_t n, int64_t c0, int channels, int64_t row,
                     int64_t begin, int64_t cols, float* dst, int64_t rows_ahead) {
    constexpr int L = Vec::kLanes, kPitch = L / 2;
    const uint16_t* src = t.at(n, c0, row, begin);
    const int64_t ahead = rows_ahead * t.row_elements();
    if (t.nhwc) {
      for (int64_t j = 0; j < cols; ++j) {
        const uint16_t* at = src + j * t.channels;
        Vec::store_partial(dst + j * kPitch, Vec::load_words(at, channels), kPitch);
        prefetch_load(at + ahead);
      }
      return;
    }
    for (int64_t j0 = 0; j0 < cols; j0 += L) {
      const int nj = static_cast<int>(min64(L, cols - j0));
      Vec::Reg block[L];
      for (int i = 0; i < L; ++i) {
        block[i] = zipped(t, src + j0, 2 * i, channels, nj, ahead);
      }
      Vec::transpose(block);
      for (int j = 0; j < nj; ++j) Vec::store_partial(dst + (j0 + j) * kPitch, block[j], kPitch);
    }
  }

  // One plane per pair of channels.
  static void planes(const Tensor& t, int64_t n, int64_t c0, int64_t channels, int64_t row,
                     int64_t begin, int64_t cols, float* dst, int64_t plane, int64_t rows_ahead) {
    constexpr int L = Vec::kLanes;
    const uint16_t* src = t.at(n, c0, row, begin);
    const int64_t ahead = rows_ahead * t.row_elements();
    for (int64_t j0 = 0; j0 < cols; j0 += L) {
      const int nj = static_cast<int>(min64(L, cols - j0));
      if (!t.nhwc) {
        for (int64_t c = 0; c < channels; c += 2) {
          Vec::store_partial(dst + c / 2 * plane + j0, zipped(t, src + j0, c, channels, nj, ahead),
                             nj);
        }
        continue;
      }
      for (int64_t c = 0; c < channels; c += 2 * L) {
        const int nc = static_cast<int>(min64(2 * L, channels - c));
        Vec::Reg block[L];
        for (int j = 0; j < L; ++j) {
          const uint16_t* at = src + (j0 + j) * t.channels + c;
          block[j] = j < nj ? Vec::load_words(at, nc) : Vec::zero();
          prefetch_load(at + ahead);
        }
        Vec::transpose(block);
        for (int i = 0; 2 * i < nc; ++i) {
          Vec::store_partial(dst + (c / 2 + i) * plane + j0, block[i], nj);
        }
      }
    }
  }

 private:
  // n words of channels c and c + 1 of an NCHW row whose channel 0 is at src.
  static Vec::Reg zipped(const Tensor& t, const uint16_t* src, int64_t c, int64_t channels, int n,
                         int64_t ahead) {
    if (c >= channels) return Vec::zero();
    const int64_t plane = t.h * t.w;
    const uint16_t* low = src + c * plane;
    prefetch_load(low + ahead);
    if (c + 1 == channels) return Vec::zip_words(low, nullptr, n);
    prefetch_load(low + plane + ahead);
    return Vec::zip_words(low, low + plane, n);
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
