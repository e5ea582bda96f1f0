// The register tile of the direct kernels: kRows x kPx output pixels of kLanes output channels.
//
//   out[i][j][l] = bias[l]
//     + sum_{c,r,s} in[i*kStride + r][j*kStride + s][group(l), c] * w[c][r][s][l]
//
// and, where there is one, the epilogue of it (epilogue.h) before it leaves its register.
// Lanes are output channels. All accumulators (16 at most of 32 vector registers with AVX-512, 8 of
// 16 with AVX2) stay in registers over the whole reduction; for one input channel the kTR x kTS
// weight vectors stay there too, and each input pixel is expanded to the lanes once and used by
// every tap that touches it. Two ways to expand:
//   permute     the lanes span several groups of fewer than kLanes channels, whose words lie in
//               one vector of a strip: lane l receives channel c of its own group
//   broadcast   the lanes belong to one group
// Strips and weights consist of 32-bit words: one float32 channel, or two bfloat16 channels whose
// products fma adds up. c above counts words.
// No lane ever multiplies a value of another group, so Inf and NaN stay in theirs.
// Summation order: channels, then taps in row-major order, whatever the tile's shape. Sums over
// many channels are split into runs that are added to each other: shorter chains of roundings for a
// percent or two of the time.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "slabs.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

template <class F, int... I>
inline __attribute__((always_inline)) void unroll_sequence(F&& f,
                                                           std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// f(0), ..., f(N - 1) with compile-time arguments, so that arrays of registers are registers.
template <int N, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
  unroll_sequence(f, std::make_integer_sequence<int, N>{});
}

constexpr int kMaxInputRows = 5;

// Words whose products are summed in one chain; 0 where all are. Powers of two up to kRunWords are
// one chain in oneDNN, too, if a group has as many channels out as in. For other numbers ATen
// multiplies matrices: sums of 8 words, or of 4 where there are few, have at most 1.4 times its rms
// error, one chain 1.7 times.
inline int run_words(int words, bool as_many_out) {
  const bool power_of_two = (words & (words - 1)) == 0;
  if (as_many_out && power_of_two && words <= Vec::kRunWords) return 0;
  return words < 8 || (!as_many_out && words == 8) ? 4 : 8;
}

// How a tile stores its pixels: float32, past the caches, or narrowed to 16 bits.
enum class Store { kFloat32, kStream, kBFloat16, kFloat16 };

// The outermost rows and columns that a tile's taps reach, where they are padding.
enum Edge { kTop = 1, kBottom = 2, kLeft = 4, kRight = 8 };

struct TileArgs {
  const float* rows[kMaxInputRows];  // strip rows, at the tile's first column
  int padding;                       // of its edges, which are not read
  int64_t chunk;                     // words from one chunk of kLanes words to the next
  int words;                         // input channels per group, in words
  int run_words;                     // of one chain of sums, a power of two; 0 for all
  const float* weights;              // [words][kTR * kTS][kLanes]
  Vec::Index group_base;             // lane -> first word of its group (permute)
  const float* bias;                 // [kLanes]
  void* out;
  int64_t out_row, out_px;  // elements between output rows and between output pixels
  Store store;
  Ahead inputs, outputs;  // wanted by later tiles
  // Of tiles with kEpilogue.
  const LaneFactors* factors;
  const void* residual;  // null, or at the first pixel and laid out and typed as out
  float floor;           // of the activation
  Ahead residuals;       // wanted by later tiles
};

using TileFunction = void (*)(const TileArgs&);

constexpr bool touches(int in, int tap, int stride, int outs) {
  return in >= tap && (in - tap) % stride == 0 && (in - tap) / stride < outs;
}

template <bool kPermute, int kTR, int kTS, int kStride, int kRows, int kPx, bool kEpilogue>
__attribute__((flatten)) void tile(const TileArgs& a) {
  constexpr int L = Vec::kLanes;
  constexpr int kInRows = (kRows - 1) * kStride + kTR;
  constexpr int kInCols = (kPx - 1) * kStride + kTS;
  static_assert(kInRows <= kMaxInputRows);

  Vec::Reg acc[kRows][kPx];
  const Vec::Reg bias = Vec::load(a.bias);
  unroll<kRows>([&](auto i) { unroll<kPx>([&](auto j) { acc[i][j] = bias; }); });

  const float* rows[kInRows];
  unroll<kInRows>([&](auto i) { rows[i] = a.rows[i]; });
  const float* w = a.weights;
  Vec::Index lane_word = a.group_base;
  Vec::Reg runs[kRows][kPx];
  Ahead inputs = a.inputs, outputs = a.outputs;
  [[maybe_unused]] Ahead residuals = a.residuals;
  const int run = a.run_words, run_mask = run - 1;
  // The small taps of dgrad at stride 2 seldom meet padding, and the questions cost more there.
  constexpr bool kSkipsPadding = kTR == 3 && kTS == 3;
  // Volatile: the compiler would follow each answer to where the question is asked again, and
  // compile what lies between once for each of them.
  const auto pads = [&padding = static_cast<const volatile int&>(a.padding)](Edge edge) {
    return (padding & edge) != 0;
  };
  for (int c = 0; c < a.words; ++c) {
    if (run != 0 && c != 0 && (c & run_mask) == 0) {
      const bool first = c == run;
      unroll<kRows>([&](auto i) {
        unroll<kPx>([&](auto j) {
          runs[i][j] = first ? acc[i][j] : Vec::add(runs[i][j], acc[i][j]);
          acc[i][j] = Vec::zero();
        });
      });
    }
    // In permute mode the rows are the same for every channel: without this the compiler keeps them
    // all across the loop, on the stack.
    asm volatile("" ::: "memory");
    inputs.ask();
    outputs.ask();
    if constexpr (kEpilogue) residuals.ask();
    Vec::Reg taps[kTR][kTS];
    unroll<kTR>([&](auto r) {
      unroll<kTS>([&](auto s) { taps[r][s] = Vec::load(w + (r * kTS + s) * L); });
    });
    unroll<kInRows>([&](auto i) {
      if constexpr (kSkipsPadding && i == 0) {
        if (pads(kTop)) return;
      }
      if constexpr (kSkipsPadding && i == kInRows - 1) {
        if (pads(kBottom)) return;
      }
      unroll<kInCols>([&](auto j) {
        if constexpr (kSkipsPadding && j == 0) {
          if (pads(kLeft)) return;
        }
        if constexpr (kSkipsPadding && j == kInCols - 1) {
          if (pads(kRight)) return;
        }
        Vec::Reg x;
        if constexpr (kPermute) {
          x = Vec::permute(rows[i] + j * L, lane_word);
        } else {
          x = Vec::broadcast(rows[i] + j * L);
        }
        unroll<kTR>([&](auto r) {
          unroll<kTS>([&](auto s) {
            constexpr int kI = decltype(i)::value, kJ = decltype(j)::value;
            constexpr int kR = decltype(r)::value, kS = decltype(s)::value;
            if constexpr (touches(kI, kR, kStride, kRows) && touches(kJ, kS, kStride, kPx)) {
              Vec::Reg& sum = acc[(kI - kR) / kStride][(kJ - kS) / kStride];
              sum = Vec::fma(x, taps[kR][kS], sum);
            }
          });
        });
      });
    });
    w += kTR * kTS * L;
    if constexpr (kPermute) {
      lane_word = Vec::next(lane_word);
    } else {
      const int64_t next = (c + 1) % L == 0 ? a.chunk - L + 1 : 1;
      unroll<kInRows>([&](auto i) { rows[i] += next; });
    }
  }

  if (run != 0 && a.words > run) {
    unroll<kRows>(
        [&](auto i) { unroll<kPx>([&](auto j) { acc[i][j] = Vec::add(runs[i][j], acc[i][j]); }); });
  }
  const auto for_each_sum = [&](auto one) {
    unroll<kRows>([&](auto i) {
      unroll<kPx>([&](auto j) { one(i * a.out_row + j * a.out_px, acc[i][j]); });
    });
  };
  if constexpr (kEpilogue) {
    for_each_sum([&](int64_t, Vec::Reg& v) { v = a.factors->apply(v); });
    if (a.residual != nullptr) {
      const auto* narrow = static_cast<const uint16_t*>(a.residual);
      const auto* wide = static_cast<const float*>(a.residual);
      switch (a.store) {
        case Store::kBFloat16:
          for_each_sum(
              [&](int64_t at, Vec::Reg& v) { v = Vec::add(v, Vec::load_bf16(narrow + at)); });
          break;
        case Store::kFloat16:
          for_each_sum(
              [&](int64_t at, Vec::Reg& v) { v = Vec::add(v, Vec::load_f16(narrow + at)); });
          break;
        default:
          for_each_sum([&](int64_t at, Vec::Reg& v) { v = Vec::add(v, Vec::load(wide + at)); });
      }
    }
    for_each_sum([&](int64_t, Vec::Reg& v) { v = activate(v, a.floor); });
  }
  switch (a.store) {
    case Store::kFloat32:
      for_each_sum([&](int64_t at, Vec::Reg v) { Vec::store(static_cast<float*>(a.out) + at, v); });
      break;
    case Store::kStream:
      for_each_sum(
          [&](int64_t at, Vec::Reg v) { Vec::stream(static_cast<float*>(a.out) + at, v); });
      break;
    case Store::kBFloat16:
      for_each_sum(
          [&](int64_t at, Vec::Reg v) { Vec::store_bf16(static_cast<uint16_t*>(a.out) + at, v); });
      break;
    case Store::kFloat16:
      for_each_sum(
          [&](int64_t at, Vec::Reg v) { Vec::store_f16(static_cast<uint16_t*>(a.out) + at, v); });
      break;
  }
}

#ifndef GROUPED_CONV_MIN_PX
#define GROUPED_CONV_MIN_PX 5
#endif
constexpr int kMinPx = GROUPED_CONV_MIN_PX, kMaxPx = 8;

// The tile of px columns, kMinPx to kMaxPx.
template <bool kPermute, int kTR, int kTS, int kStride, int kRows, bool kEpilogue, int kPx = kMinPx>
inline TileFunction select_px(int px) {
  if constexpr (kPx < kMaxPx) {
    if (px > kPx) return select_px<kPermute, kTR, kTS, kStride, kRows, kEpilogue, kPx + 1>(px);
  }
  return tile<kPermute, kTR, kTS, kStride, kRows, kPx, kEpilogue>;
}

template <bool kPermute, int kTR, int kTS, int kStride, bool kEpilogue = false>
inline TileFunction select_rows(int rows, int px) {
  if constexpr (Vec::kTileRows == 2) {
    if (rows == 2) return select_px<kPermute, kTR, kTS, kStride, 2, kEpilogue>(px);
  }
  return select_px<kPermute, kTR, kTS, kStride, 1, kEpilogue>(px);
}

// The tap grids that occur: 3x3 at strides 1 and 2 (fprop, dgrad at stride 1) and the four phases
// of dgrad at stride 2. Only fprop has an epilogue; its tiles are instances of their own, so
// that the others do not carry it.
template <bool kPermute>
inline TileFunction select_taps(int tap_rows, int tap_cols, int stride, int rows, int px,
                                bool epilogue) {
  if (epilogue) {
    return stride == 2 ? select_rows<kPermute, 3, 3, 2, true>(rows, px)
                       : select_rows<kPermute, 3, 3, 1, true>(rows, px);
  }
  if (stride == 2) return select_rows<kPermute, 3, 3, 2>(rows, px);
  if (tap_rows == 3) return select_rows<kPermute, 3, 3, 1>(rows, px);
  if (tap_rows == 2 && tap_cols == 2) return select_rows<kPermute, 2, 2, 1>(rows, px);
  if (tap_rows == 2) return select_rows<kPermute, 2, 1, 1>(rows, px);
  if (tap_cols == 2) return select_rows<kPermute, 1, 2, 1>(rows, px);
  return select_rows<kPermute, 1, 1, 1>(rows, px);
}

inline TileFunction select_tile(bool permute, int tap_rows, int tap_cols, int stride, int rows,
                                int px, bool epilogue) {
  return permute ? select_taps<true>(tap_rows, tap_cols, stride, rows, px, epilogue)
                 : select_taps<false>(tap_rows, tap_cols, stride, rows, px, epilogue);
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
