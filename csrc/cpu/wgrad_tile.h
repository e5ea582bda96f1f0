// The register tile of the weight gradient: the three horizontal taps of a row of taps, for a few
// input channels and kLanes output channels, summed over some rows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tile.h"
#include "weights.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// Strips consist of 32-bit words, one of each channel in a column. A word is one pixel, or with a
// fma of two products two: the same pixel of two images, or of the upper and the lower half of one.
// All words of a row then meet through the same taps, as single pixels do.
constexpr int kPixels = Vec::kChannelsPerWord;

// One output row and the input row that it meets through a row of taps.
struct WgradRow {
  const float* x;
  const float* dy;  // words of kLanes channels
  uint32_t used;    // bits of the words that lie in both tensors: all, none or those of one pixel
};

struct WgradBlock {
  const WgradRow* rows;
  int64_t count;
  int64_t in_w, out_w, pad;
  int64_t x_offset;         // words from x to the block's first channel
  Vec::Index lane_channel;  // permute: lane -> first channel of the block in its group
  bool first;               // overwrites the sums instead of adding to them
  float* sums;              // [kC][9][kLanes], at tap (r, 0) of the block's first channel
  PacedWalks* ahead;        // wanted by later blocks
};

// Asks for the lines of some walks, the last one first, which is in registers meanwhile.
class Asking {
 public:
  explicit Asking(PacedWalks& walks) : walks_(walks), pace_(walks.pace), due_(walks.due) { take(); }
  ~Asking() {
    walks_.due = due_, walks_.pace = pace_;
    if (walks_.count > 0) walks_.walks[walks_.count - 1] = walk_;
  }
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;

  // For those that are due after so many more steps.
  inline __attribute__((always_inline)) void ask(int64_t steps) {
    for (due_ += pace_ * steps; due_ >= PacedWalks::kLine; due_ -= PacedWalks::kLine) {
      prefetch(walk_.next());
      if (walk_.outer == 0) {
        --walks_.count;
        take();
      }
    }
  }

 private:
  inline __attribute__((always_inline)) void take() {
    if (walks_.count > 0) {
      walk_ = walks_.walks[walks_.count - 1];
    } else {
      pace_ = due_ = 0;
    }
  }

  PacedWalks& walks_;
  PrefetchWalk walk_;
  int64_t pace_, due_;
};

struct NotAsking {
  explicit NotAsking(PacedWalks& /*walks*/) {}
};

// Steps between two times of asking: in the loop over them it would take registers from the sums.
// Rows of x of fewer columns than kAskingRow are in cache sooner, and their blocks ask beforehand.
constexpr int64_t kAskEvery = 8, kAskingRow = 24;

using WgradFunction = void (*)(const WgradBlock&);

template <bool kPermute, int kC>
inline __attribute__((always_inline)) Vec::Reg expand(const float* x, const Vec::Index (&lane)[kC],
                                                      int c) {
  if constexpr (kPermute) {
    return Vec::permute(x, lane[c]);
  } else {
    return Vec::broadcast(x + c);
  }
}

template <class V = Vec>
inline __attribute__((always_inline)) typename V::Reg only(typename V::Reg word, uint32_t bits) {
  if constexpr (kPixels == 2) {
    return V::mask(word, bits);
  } else {
    return word;
  }
}

// A step u takes the input columns from u * kStride - pad on: with stride 1 the column meets dy
// columns u - s, with 2 the first meets u (s = 0) and u - 1 (s = 2), the second u (s = 1).
template <int kStride>
struct WgradStep {
  static constexpr int kReach = 2 / kStride;  // columns of dy left of u
  static constexpr int kAllTaps = 7;
  static constexpr int part(int s) { return s % kStride; }
  static constexpr int back(int s) { return s / kStride; }
  static constexpr int taps_of(int part) { return kStride == 1 ? 7 : part == 0 ? 5 : 2; }

  // The taps, as bits, through which the step's columns meet columns of dy.
  static int taps(const WgradBlock& b, int64_t u) {
    int taps = 0;
    for (int s = 0; s < 3; ++s) {
      const int64_t i = u * kStride - b.pad + part(s), q = u - back(s);
      if (i >= 0 && i < b.in_w && q >= 0 && q < b.out_w) taps |= 1 << s;
    }
    return taps;
  }
};

// The products of the columns of step u with what they meet through `kTapBits`. Masked: of words
// that lie in both tensors by halves.
template <bool kPermute, int kStride, int kC, int kTapBits, bool kMasked>
inline __attribute__((always_inline)) void add_step(Vec::Reg (&acc)[3][kC],
                                                    const Vec::Index (&lane)[kC], const float* x,
                                                    const float* dy, uint32_t used) {
  using Step = WgradStep<kStride>;
  unroll<kStride>([&](auto part) __attribute__((always_inline)) {
    if constexpr ((kTapBits & Step::taps_of(part)) != 0) {
      Vec::Reg d[3];
      unroll<3>([&](auto s) __attribute__((always_inline)) {
        if constexpr ((kTapBits & Step::taps_of(part) & 1 << s) != 0) {
          d[s] = Vec::load(dy - Step::back(s) * Vec::kLanes);
          if constexpr (kMasked) d[s] = only(d[s], used);
        }
      });
      unroll<kC>([&](auto c) __attribute__((always_inline)) {
        Vec::Reg v = expand<kPermute, kC>(x + part * Vec::kLanes, lane, c);
        if constexpr (kMasked) v = only(v, used);
        unroll<3>([&](auto s) __attribute__((always_inline)) {
          if constexpr ((kTapBits & Step::taps_of(part) & 1 << s) != 0) {
            acc[s][c] = Vec::fma(v, d[s], acc[s][c]);
          }
        });
      });
    }
  });
}

template <bool kPermute, int kStride, int kC, bool kAsks>
__attribute__((flatten)) void wgrad_block(const WgradBlock& b) {
  using Step = WgradStep<kStride>;
  constexpr int64_t L = Vec::kLanes;
  Vec::Reg acc[3][kC];
  unroll<3>([&](auto s) { unroll<kC>([&](auto c) { acc[s][c] = Vec::zero(); }); });
  Vec::Index lane[kC];
  lane[0] = b.lane_channel;
  if constexpr (kPermute) {
    for (int c = 1; c < kC; ++c) lane[c] = Vec::next(lane[c - 1]);
  }

  [[maybe_unused]] std::conditional_t<kAsks, Asking, NotAsking> asking(*b.ahead);
  const int64_t steps = b.out_w + Step::kReach;
  const int64_t last = b.in_w - kStride + b.pad;
  const int64_t full_begin = min64(steps, max64(Step::kReach, ceil_div(b.pad, kStride)));
  const int64_t full_end = min64(b.out_w, last < 0 ? 0 : last / kStride + 1);
  const auto add_row = [&](const WgradRow& row, auto masked) __attribute__((always_inline)) {
    constexpr bool kMasked = decltype(masked)::value;
    const float *x = row.x + b.x_offset - b.pad * L, *dy = row.dy;
    int64_t u = 0;
    const auto edge = [&](int64_t end) __attribute__((always_inline)) {
      for (; u < end; ++u, x += kStride * L, dy += L) {
        const int taps = Step::taps(b, u);
        unroll<Step::kAllTaps>([&](auto i) __attribute__((always_inline)) {
          if (taps == i + 1) {
            add_step<kPermute, kStride, kC, i + 1, kMasked>(acc, lane, x, dy, row.used);
          }
        });
      }
    };
    edge(full_begin);
    do {
      int64_t end = full_end;
      if constexpr (kAsks) {
        end = min64(full_end, u + kAskEvery);
        asking.ask(end - u);
      }
      for (; u < end; ++u, x += kStride * L, dy += L) {
        add_step<kPermute, kStride, kC, Step::kAllTaps, kMasked>(acc, lane, x, dy, row.used);
      }
    } while (kAsks && u < full_end);
    edge(steps);
  };
  for (const WgradRow *row = b.rows, *end = row + b.count; row != end; ++row) {
    if (row->used == 0) continue;
    if constexpr (kPixels == 2) {
      if (row->used != ~uint32_t{0}) {
        add_row(*row, std::true_type{});
        continue;
      }
    }
    add_row(*row, std::false_type{});
  }

  unroll<kC>([&](auto c) {
    unroll<3>([&](auto s) {
      float* sum = b.sums + (c * kTaps + s) * L;
      Vec::store(sum, b.first ? acc[s][c] : Vec::add(Vec::load(sum), acc[s][c]));
    });
  });
}

template <bool kPermute, int kC>
inline WgradFunction select_wgrad(int stride, bool asks) {
  if (asks)
    return stride == 1 ? wgrad_block<kPermute, 1, kC, true> : wgrad_block<kPermute, 2, kC, true>;
  return stride == 1 ? wgrad_block<kPermute, 1, kC, false> : wgrad_block<kPermute, 2, kC, false>;
}

template <bool kPermute>
inline WgradFunction select_wgrad(int stride, int channels, bool asks) {
  if constexpr (Vec::kWgradChannels == 8) {
    if (channels == 8) return select_wgrad<kPermute, 8>(stride, asks);
  }
  return channels == 4 ? select_wgrad<kPermute, 4>(stride, asks)
                       : select_wgrad<kPermute, 1>(stride, asks);
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
