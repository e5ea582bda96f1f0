// The sums of the weight gradient in registers, and their way out through shared memory into a
// block's part of the partial sums; of tensors in either layout.
#pragma once

#include "cuda/device/device.h"
#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

// The sums of one part on their way out: a line of shared memory for each output channel, in the
// order of dw.
template <class Traits>
class WgradSumLines {
 public:
  GC_DEVICE WgradSumLines(uint32_t first, bool channels_last)
      : first_(first), channels_last_(channels_last) {}

  GC_DEVICE void put(int line, int ci, int tap, float sum, bool wanted) const {
    device::store_shared_4(at(line, ci, tap), device::bits_of(sum), wanted);
  }
  // For ci, which is even, and ci + 1.
  GC_DEVICE void put_pair(int line, int ci, int tap, float sum, float next) const {
    if (channels_last_) {
      const device::Bytes8 both{{device::bits_of(sum), device::bits_of(next)}};
      device::store_shared_8(at(line, ci, tap), both);
    } else {
      // The lanes of one half start with ci, the others with ci + 1: so they meet every bank once.
      const bool swap = device::lane_index() >= device::kWarpSize / 2;
      device::store_shared_4(at(line, ci + swap, tap), device::bits_of(swap ? next : sum));
      device::store_shared_4(at(line, ci + !swap, tap), device::bits_of(swap ? sum : next));
    }
  }

 private:
  GC_DEVICE uint32_t at(int line, int ci, int tap) const {
    const int in_line = channels_last_ ? tap * Traits::kPerGroup + ci : ci * 9 + tap;
    return first_ + uint32_t(line * Traits::kSumLineBytes + 4 * in_line);
  }

  const uint32_t first_;
  const bool channels_last_;
};

// The sums of a warp from 16 channels per group on: co_tiles x 16 output channels, the m extent of
// mma, by 16 input channels of the same group, the n extent.
template <class Traits>
class WgradSquareSums {
  using T = typename Traits::Element;
  static constexpr int kCoTiles = Traits::kCoTiles;
  static constexpr int kCiWarps = Traits::kPerGroup / 16;
  static_assert(Traits::kPerGroup % 16 == 0 && Traits::kPerGroup % (16 * kCoTiles) == 0);

 public:
  GC_DEVICE explicit WgradSquareSums(int channel_warp)
      : co_warp_(channel_warp / kCiWarps), ci_(channel_warp % kCiWarps * 16) {}

  GC_DEVICE void clear() {
    GC_UNROLL
    for (int tap = 0; tap < 9; ++tap) {
      GC_UNROLL
      for (int i = 0; i < kCoTiles * 8; ++i) sums_[tap / 3][tap % 3][i / 8][i / 4 % 2][i % 4] = 0;
    }
  }

  GC_DEVICE bool has_nan() const {
    bool found = false;
    GC_UNROLL
    for (int tap = 0; tap < 9; ++tap) {
      GC_UNROLL
      for (int i = 0; i < kCoTiles * 8; ++i) {
        const float sum = sums_[tap / 3][tap % 3][i / 8][i / 4 % 2][i % 4];
        found |= sum != sum;
      }
    }
    return found;
  }

  // Puts the sums of pass m of the way out into their lines: pass m has the m-th sixteen output
  // channels of each warp.
  GC_DEVICE void put_sums(int m, const WgradSumLines<Traits>& lines) const {
    const int lane = device::lane_index();
    GC_UNROLL
    for (int tap = 0; tap < 9; ++tap) {
      GC_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float (&sums)[4] = sums_[tap / 3][tap % 3][m][n];
        const int line = co_warp_ * 16 + lane / 4;
        const int ci = ci_ + n * 8 + lane % 4 * 2;
        lines.put_pair(line, ci, tap, sums[0], sums[1]);
        lines.put_pair(line + 8, ci, tap, sums[2], sums[3]);
      }
    }
  }

 protected:
  using Fragments = float[kCoTiles][2][4];

  // The warp's first output and input channels, of the block's.
  GC_DEVICE int first_co() const { return co_warp_ * 16 * kCoTiles; }
  GC_DEVICE int first_ci() const {
    return first_co() / Traits::kPerGroup * Traits::kPerGroup + ci_;
  }

  GC_DEVICE static void accumulate(Fragments& sums, const uint32_t (&dy)[kCoTiles][4],
                                   const uint32_t (&x)[4]) {
    GC_UNROLL
    for (int n = 0; n < 2; ++n) {
      const uint32_t of_tile[2] = {x[2 * n], x[2 * n + 1]};
      GC_UNROLL
      for (int m = 0; m < kCoTiles; ++m) device::mma_m16n8k16<T>(sums[m][n], dy[m], of_tile);
    }
  }

  Fragments sums_[3][3] = {};  // [r][s]

 private:
  const int co_warp_, ci_;
};

// Adds the sums of the parts, in order, and writes them as the block's part of a dw. Nobody
// looks at the rows in shared memory any more.
template <class Traits, class Tile>
GC_DEVICE void wgrad_write_partials(const WgradArgs& args, const Tile& tile, uint32_t shared,
                                    int first_channel, int split, int part) {
  constexpr int kPerOutput = 9 * Traits::kPerGroup;
  constexpr int kLineVectors = kPerOutput / 4;
  constexpr int kPartBytes = Traits::kSumLines * Traits::kSumLineBytes;
  const WgradSumLines<Traits> lines(shared + part * kPartBytes, args.channels_last);
  unsigned char* target =
      args.partials + (int64_t(split) * args.C + first_channel) * kPerOutput * int(sizeof(float));
  GC_UNROLL
  for (int m = 0; m < Traits::kCoTiles; ++m) {
    if (m > 0) device::sync_threads();
    tile.put_sums(m, lines);
    device::sync_threads();
    for (int first = 0; first < Traits::kSumLines * kLineVectors; first += Traits::kThreads) {
      const int i = first + device::thread_index();
      const int line = i / kLineVectors, vector = i - line * kLineVectors;
      const int co = (line / 16 * Traits::kCoTiles + m) * 16 + line % 16;
      const bool wanted = line < Traits::kSumLines && first_channel + co < args.C;
      const uint32_t at = shared + line * Traits::kSumLineBytes + 16 * vector;
      device::Bytes16 sums = device::load_shared_16(at, wanted);
      GC_UNROLL
      for (int other = 1; other < Traits::kParts; ++other) {
        const device::Bytes16 more = device::load_shared_16(at + other * kPartBytes, wanted);
        GC_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float sum = device::float_of(sums.word[e]) + device::float_of(more.word[e]);
          sums.word[e] = device::bits_of(sum);
        }
      }
      device::store_global_16(target + 4 * (co * kPerOutput + 4 * vector), sums, wanted);
    }
  }
}

}  // namespace grouped_conv::cuda
