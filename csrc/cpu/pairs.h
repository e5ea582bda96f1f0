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
  static constexpr int kChunk = 2 * Vec::kLanes;

  static void pixel(const uint16_t* src, int channels, float* dst) {
    Vec::store(dst, Vec::load_words(src, channels));
  }
  static void block(Vec::Reg (&words)[Vec::kLanes], const uint16_t* src, int64_t plane,
                    int64_t channels, int64_t n) {
    const int count = static_cast<int>(n);
    for (int i = 0; i < Vec::kLanes; ++i, src += 2 * plane) {
      const int64_t left = channels - 2 * i;
      if (left >= 2 && count == Vec::kLanes) {
        words[i] = Vec::zip_words(src, src + plane);
      } else if (left >= 1) {
        words[i] = Vec::zip_words(src, left >= 2 ? src + plane : nullptr, count);
      } else {
        words[i] = Vec::zero();
      }
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
    NextKernels next_kernels(c, s, w, slab);
    NextGroups next_groups(c, s, w, slab);
    pack_taps(c, lanes, packed, [&](int l, int64_t in, int t0, int taps) {
      if (c.fprop) {
        next_kernels.ask();
      } else if (l == 0) {
        next_groups.ask();
      }
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

// Words of two pixels of a channel; a null one is zero.
struct PixelPairWords {
  static constexpr int kChunk = Vec::kLanes;
  bool low, high;
  int64_t distance;  // elements from the first pixel to the second

  void pixel(const uint16_t* src, int channels, float* dst) const {
    Vec::store(dst, zip(src, channels));
  }
  void block(Vec::Reg (&words)[Vec::kLanes], const uint16_t* src, int64_t plane, int64_t channels,
             int64_t n) const {
    const int count = static_cast<int>(min64(Vec::kLanes, n));
    for (int i = 0; i < Vec::kLanes; ++i) {
      words[i] = i < channels ? zip(src + i * plane, count) : Vec::zero();
    }
  }

 private:
  Vec::Reg zip(const uint16_t* src, int n) const {
    if (low && high && n == Vec::kLanes) return Vec::zip_words(src, src + distance);
    return Vec::zip_words(low ? src : nullptr, high ? src + distance : nullptr, n);
  }
};

template <>
struct PixelLoader<2, ElementBF16> {
  static void load(const Activation<ElementBF16>& t, int64_t n, int64_t c0, int64_t channels,
                   int64_t h_begin, int64_t h_end, const PixelPair& second,
                   const StripRows& strip) {
    const int64_t distance = t.at(second.images, 0, second.rows, 0) - t.data;
    const auto inside = [&](int64_t h) { return h >= 0 && h < t.h; };
    for (int64_t h = h_begin, end; h < h_end; h = end) {
      const bool low = inside(h), high = inside(h + second.rows);
      end = h + 1;
      while (end < h_end && inside(end) == low && inside(end + second.rows) == high) ++end;
      if (low && high && t.nhwc) {
        load_pixels(t, n, c0, channels, h, end, distance, strip);
      } else if (low) {
        load_rows(t, n, c0, channels, h, end, 0, t.w, strip, PixelPairWords{low, high, distance});
      } else if (high) {
        // Counted from the second pixels, for the first ones lie outside the tensor.
        StripRows from_second = strip;
        from_second.shift -= second.rows;
        load_rows(t, n + second.images, c0, channels, h + second.rows, end + second.rows, 0, t.w,
                  from_second, PixelPairWords{low, high, 0});
      }
    }
  }

 private:
  // Two chunks at a time, a whole line of channels_last pixels.
  static void load_pixels(const Activation<ElementBF16>& t, int64_t n, int64_t c0, int64_t channels,
                          int64_t h_begin, int64_t h_end, int64_t distance,
                          const StripRows& strip) {
    constexpr int64_t L = Vec::kLanes;
    const PixelPairWords words{true, true, distance};
    for (int64_t h = h_begin; h < h_end; ++h) {
      const uint16_t* src = t.at(n, c0, h, 0);
      float* dst = strip.at(h);
      int64_t c = 0;
      for (; c + 2 * L <= channels; c += 2 * L, src += 2 * L, dst += 2 * strip.chunk) {
        for (int64_t j = 0; j < t.w; ++j) {
          const uint16_t* pixel = src + j * t.channels;
          Vec::Reg first, second;
          Vec::zip_words(pixel, pixel + distance, first, second);
          Vec::store(dst + j * L, first);
          Vec::store(dst + strip.chunk + j * L, second);
        }
      }
      for (; c < channels; c += L, src += L, dst += strip.chunk) {
        const int count = static_cast<int>(min64(L, channels - c));
        for (int64_t j = 0; j < t.w; ++j) words.pixel(src + j * t.channels, count, dst + j * L);
      }
    }
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
