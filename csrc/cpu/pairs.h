// Strips and weights whose words are pairs of bfloat16: input channels 2i (low half) and 2i + 1
// (high half) of a group, the high half of an odd last channel zero. fma multiplies both halves and
// adds both products to the lane. For wgrad the words are pairs of pixels (direct_wgrad.h).
#pragma once

#include "direct_wgrad.h"
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
  // kPitch vectors of the first kLanes columns, and as many of the next.
  static void block(Vec::Reg (&words)[Vec::kLanes], const uint16_t* src, int64_t plane,
                    int64_t channels, int64_t n) {
    constexpr int L = Vec::kLanes;
    for (int i = 0; i < kPitch; ++i, src += 2 * plane) {
      const int64_t left = channels - 2 * i;
      if (left >= 2 && n >= 2 * L) {
        Vec::zip_words(src, src + plane, words[i], words[kPitch + i]);
        continue;
      }
      const uint16_t* high = left >= 2 ? src + plane : nullptr;
      for (int part = 0; part < 2; ++part) {
        const int count = static_cast<int>(min64(L, n - part * L));
        words[part * kPitch + i] =
            left < 1 || count < 1
                ? Vec::zero()
                : Vec::zip_words(src + part * L, high == nullptr ? high : high + part * L, count);
      }
    }
  }
  // A vector holds the words of two pixels.
  static void store(float* dst, Vec::Reg v, int part) {
    if (part == 0) {
      Vec::store_low(dst, v);
    } else {
      Vec::store_high(dst, v);
    }
  }
};

template <>
struct WeightPacker<2, ElementBF16> {
  static void slab(const Correlation& c, const Slabs& s, const uint16_t* w, int64_t slab,
                   float* packed) {
    if (!c.fprop && c.w_channels_last) {
      pack_neighbours(c, s, w, slab, packed, [](const uint16_t* low, const uint16_t* high, int n) {
        return Vec::zip_words(low, high, n);
      });
      return;
    }
    const uint16_t* kernels[Vec::kLanes];
    const int lanes = lane_kernels(c, s, w, slab, kernels);
    if (c.w_channels_last) {
      pack_runs(c, s, w, slab, packed, [&](int l, int64_t i, int n) {
        return channels_last_words(kernels[l], c.in_per_group, i, n);
      });
      return;
    }
    const int64_t next = c.w_in_stride * kTaps;
    NextKernels ahead(c, s, w, slab);
    pack_taps(c, lanes, packed, [&](int l, int64_t in, int t0, int taps) {
      if (c.fprop) ahead.ask();
      const uint16_t* low = kernels[l] + 2 * in * next + t0;
      return Vec::zip_words(low, 2 * in + 1 < c.in_per_group ? low + next : nullptr, taps);
    });
  }

 private:
  // n words from word i on of a kernel [3, 3, channels].
  static Vec::Reg channels_last_words(const uint16_t* kernel, int64_t channels, int64_t i, int n) {
    if (channels % 2 == 0) return Vec::load_words(kernel + 2 * i, 2 * n);
    // The last word of each tap has one channel.
    alignas(64) uint16_t pairs[2 * Vec::kLanes] = {};
    for (int j = 0; j < n; ++j) {
      const int64_t tap = (i + j) / words(channels), first = (i + j) % words(channels) * 2;
      pairs[2 * j] = kernel[tap * channels + first];
      if (first + 1 < channels) pairs[2 * j + 1] = kernel[tap * channels + first + 1];
    }
    return Vec::load_words(pairs, 2 * Vec::kLanes);
  }
};

template <>
struct PixelLoader<2, ElementBF16> {
  using Tensor = Activation<ElementBF16>;

  static void x(const Tensor& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                int64_t h_end, int64_t first, int64_t words, int64_t stride,
                const StripRows& strip) {
    load(t, n, c0, channels, h_begin, h_end, {first, 1, stride}, words, strip);
  }
  static void dy(const Tensor& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                 int64_t h_end, const StripRows& strip) {
    load(t, n, c0, channels, h_begin, h_end, {0, 2, 1}, ceil_div(t.w, 2), strip);
  }

 private:
  // Word j holds columns first + j * step and, behind it, first + j * step + gap.
  struct Columns {
    int64_t first, step, gap;
  };

  // Columns outside the tensor are zeros. Words of kLanes channels, padded with zeros.
  static void load(const Tensor& t, int64_t n, int64_t c0, int64_t channels, int64_t h_begin,
                   int64_t h_end, const Columns& at, int64_t words, const StripRows& strip) {
    constexpr int64_t L = Vec::kLanes;
    for (int64_t h = h_begin; h < h_end; ++h) {
      for (int64_t c = 0; c < channels; c += L) {
        const uint16_t* row = t.at(n, c0 + c, h, 0);
        const int count = static_cast<int>(min64(L, channels - c));
        float* dst = strip.at(h) + c / L * strip.chunk;
        if (t.nhwc) {
          load_nhwc(row, t.channels, t.w, count, at, words, dst);
        } else {
          load_nchw(row, t.h * t.w, t.w, count, at, words, dst);
        }
      }
    }
  }

  static void load_nhwc(const uint16_t* row, int64_t pixel, int64_t width, int channels,
                        const Columns& at, int64_t words, float* dst) {
    for (int64_t j = 0; j < words; ++j) {
      const int64_t low = at.first + j * at.step, high = low + at.gap;
      const int n_low = low >= 0 && low < width ? channels : 0;
      const int n_high = high >= 0 && high < width ? channels : 0;
      Vec::store(dst + j * Vec::kLanes,
                 Vec::zip_words(row + low * pixel, 0, n_low, row + high * pixel, 0, n_high));
    }
  }

  static void load_nchw(const uint16_t* row, int64_t plane, int64_t width, int channels,
                        const Columns& at, int64_t words, float* dst) {
    constexpr int64_t L = Vec::kLanes;
    for (int64_t j0 = 0; j0 < words; j0 += L) {
      const int64_t low = at.first + j0 * at.step, high = low + at.gap;
      Vec::Reg block[L];
      for (int c = 0; c < L; ++c) {
        const uint16_t* src = row + c * plane;
        if (c >= channels) {
          block[c] = Vec::zero();
        } else if (at.step == 2) {  // neighbouring columns are words already
          block[c] = Vec::load_words(src + low, static_cast<int>(min64(2 * L, width - low)));
        } else {
          block[c] = Vec::zip_words(src + low, begin(low), end(low, width), src + high, begin(high),
                                    end(high, width));
        }
      }
      Vec::transpose(block);
      const int64_t count = min64(L, words - j0);
      for (int64_t j = 0; j < count; ++j) Vec::store(dst + (j0 + j) * L, block[j]);
    }
  }

  // Of kLanes columns from `column` on, those in [begin, end) lie in a row of `width`.
  static int begin(int64_t column) {
    return static_cast<int>(min64(Vec::kLanes, max64(0, -column)));
  }
  static int end(int64_t column, int64_t width) {
    return static_cast<int>(max64(0, min64(Vec::kLanes, width - column)));
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
