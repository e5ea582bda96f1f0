// Bands of x and dy in shared memory, for the weight gradient of NCHW tensors, and pixels from
// there: as they are, at any even address.
//
// Step p of a tile has row p of dy, and rows stride * p - pad and, at stride 2, the one after it of
// x. Row i of those (0 or 1) meets, for the taps r with r % stride == i, the row of dy r / stride
// before row p. A band begins with the step of its first row of dy; the last one of a tile, or of a
// block's share, has the steps behind its last row too.
#pragma once

#include "cuda/nchw_planes.cuh"
#include "cuda/nchw_wgrad_launch.h"

namespace grouped_conv::cuda {

template <int kId, typename T>
struct NchwWgradTraits {
  static constexpr NchwWgradConfig kConfig = kNchwWgradConfigs[kId];
  using Element = T;

  static constexpr int kPerGroup = kConfig.c_per_group;
  static constexpr int kStride = kConfig.stride;
  static constexpr int kChannels = kConfig.channels;
  static constexpr int kCoTiles = kConfig.co_tiles;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kBlocksPerSm = kConfig.blocks_per_sm;
  static constexpr int kWarpsPerPart = kConfig.warps_per_part();
  static constexpr int kRowParts = kConfig.row_parts;
  static constexpr int kParts = kConfig.parts();
  static constexpr int kTilesPerPart = kConfig.slots / 16 / kConfig.slot_parts;
  static constexpr int kSumLines = kConfig.sum_lines();
  static constexpr int kSumLineBytes = kConfig.sum_line_bytes();

  // Rows of dy that a step looks at.
  static constexpr int kDyRows = kStride == 1 ? 3 : 2;

  static_assert(kStride == 1 || kStride == 2);
  static_assert(kChannels % 8 == 0 && kChannels % kPerGroup == 0, "a block has whole groups");
  static_assert(kTilesPerPart * 16 * kConfig.slot_parts == kConfig.slots);
};

// A band of a block's share.
struct NchwWgradBand {
  int image, images;
  int columns;             // of dy
  int first_x;             // column of x that the first column of dy meets with s = 0
  int dy_first, dy_begin;  // first row of dy in the share and the tile, and in the band
  int dy_end;
  int step, step_end;
  BandArea x, dy;

  // Band `index` of all, of the share [begin, end).
  GC_DEVICE NchwWgradBand(const NchwWgradArgs& band_args, int index, int begin, int end) {
    const WgradArgs& args = band_args.wgrad;
    const int tile = index / band_args.bands_of_tile;
    const int first_of_tile = tile * band_args.bands_of_tile;
    const int in_tile = index - first_of_tile;
    const int group = tile / args.plan.strips;
    const int column = (tile - group * args.plan.strips) * args.plan.strip;
    const bool last = in_tile + 1 == band_args.bands_of_tile || index + 1 == end;
    const int more = last ? 3 - args.stride : 0;
    image = group * args.plan.images;
    images = smaller(args.plan.images, args.N - image);
    columns = smaller(args.plan.strip, args.Q - column);
    first_x = column * args.stride - args.pad_w;
    dy_first = begin > first_of_tile ? (begin - first_of_tile) * band_args.rows_of_band : 0;
    dy_begin = in_tile * band_args.rows_of_band;
    dy_end = smaller(dy_begin + band_args.rows_of_band, args.P);
    // Without the steps that have no row of x.
    step = larger(dy_begin, args.pad_h / args.stride);
    step_end = smaller(dy_end + more, (args.H - 1 + args.pad_h) / args.stride + 1);
    x = {0, args.H, 0, args.W};
    dy = {0, args.P, 0, args.Q};
    if (band_args.x.runs != Runs::kImage) {
      x.row = larger(dy_begin * args.stride - args.pad_h, 0);
      x.row_end = larger(smaller(dy_end * args.stride + more - args.pad_h, args.H), x.row);
    }
    if (band_args.dy.runs != Runs::kImage) {
      dy.row = dy_begin;
      dy.row_end = dy_end;
    }
    if (band_args.x.runs == Runs::kRow) {
      x.column = larger(first_x, 0);
      x.column_end = smaller(first_x + (columns - 1) * args.stride + 3, args.W);
      dy.column = column;
      dy.column_end = column + columns;
    }
  }

 private:
  GC_DEVICE static int smaller(int a, int b) { return a < b ? a : b; }
  GC_DEVICE static int larger(int a, int b) { return a > b ? a : b; }
};

// What a lane has of a tile of 16 slots, which are the k extent of mma: in either half of it two
// pixels of dy next to each other.
template <class Traits>
struct NchwWgradPixels {
  uint32_t x_offset[2], dy_offset[2];  // from the first column of the first image
  uint32_t taps[3][2];                 // by s: ones where there are and they meet pixels of x

  GC_DEVICE NchwWgradPixels(const NchwWgradArgs& args, const NchwWgradBand& band, int first_slot) {
    GC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int slot = first_slot + 8 * half + 2 * (device::lane_index() % 4);
      const int image = slot / args.wgrad.plan.pitch;
      const int column = slot - image * args.wgrad.plan.pitch;
      const bool used = image < band.images && column < band.columns;
      const bool next_used = used && column + 1 < band.columns;
      x_offset[half] = used ? image * args.x.image_pitch + 2 * column * Traits::kStride : 0;
      dy_offset[half] = used ? image * args.dy.image_pitch + 2 * column : 0;
      GC_UNROLL
      for (int s = 0; s < 3; ++s) {
        const int x = band.first_x + column * Traits::kStride + s;
        taps[s][half] = ones(used && uint32_t(x) < uint32_t(args.wgrad.W),
                             next_used && uint32_t(x + Traits::kStride) < uint32_t(args.wgrad.W));
      }
    }
  }

 private:
  GC_DEVICE static uint32_t ones(bool low, bool high) {
    return (low ? 0xffffu : 0) | (high ? 0xffff0000u : 0);
  }
};

// The rows of a band, of the channel that a lane reads and of those by eights behind it.
template <class Traits>
class NchwWgradRows {
 public:
  // x_at, dy_at and dy_before_at: where the bands of x and dy and the one of dy before lie.
  GC_DEVICE NchwWgradRows(const NchwWgradArgs& args, const NchwWgradBand& band, uint32_t x_at,
                          uint32_t dy_at, uint32_t dy_before_at)
      : args_(args),
        band_(band),
        x_(args.x, args.wgrad.H, args.wgrad.W, args.wgrad.C, 0, 0),
        dy_(args.dy, args.wgrad.P, args.wgrad.Q, args.wgrad.C, 0, 0),
        x_at_(x_at + 2 * (band.first_x - band.x.column)),
        dy_at_(dy_at),
        dy_before_at_(dy_before_at) {}

  GC_DEVICE const NchwWgradArgs& args() const { return args_; }
  GC_DEVICE const NchwWgradBand& band() const { return band_; }

  GC_DEVICE bool has_dy(int row) const { return row >= band_.dy_first && row < band_.dy_end; }
  // Of row i of those of a step.
  GC_DEVICE int x_row(int step, int i) const {
    return step * Traits::kStride + i - args_.wgrad.pad_h;
  }
  GC_DEVICE bool has_x(int row) const { return row >= band_.x.row && row < band_.x.row_end; }

  // Brings, for kPlanes planes eight channels apart from `plane` on, the lane's pixels of a row of
  // dy: others where there are none, which meet zeros of x, and zeros where the row is not the
  // block's. With kBefore the row may be one of the band before.
  template <bool kBefore, int kPlanes>
  GC_DEVICE void load_dy(uint32_t (&pixels)[kPlanes][2], const NchwWgradPixels<Traits>& lane,
                         int row, int plane) const {
    // Another row in place of one that there is not, which is masked.
    const bool wanted = kBefore ? has_dy(row) : row < band_.dy_end;
    const int loaded = wanted ? row : band_.dy_end - 1;
    const bool before = kBefore && loaded < band_.dy_begin;
    BandArea area = band_.dy;
    if (before) area.row -= args_.rows_of_band;
    const uint32_t at = (before ? dy_before_at_ : dy_at_) + plane * args_.dy.plane_pitch +
                        (loaded - area.row) * args_.dy.row_pitch + dy_.phase(area, plane);
    const uint32_t word = at & ~3u, shift = at % 4 * 8, mask = wanted ? ~0u : 0;
    GC_UNROLL
    for (int i = 0; i < kPlanes; ++i) {
      GC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const uint32_t from = word + lane.dy_offset[half] + 8 * i * args_.dy.plane_pitch;
        const uint32_t low = device::load_shared_4(from), high = device::load_shared_4(from + 4);
        pixels[i][half] = shifted(low, high, shift) & mask;
      }
    }
  }

  // Brings the lane's pixels of a row of x by s, of one plane: zeros where there are none.
  GC_DEVICE void load_x(uint32_t (&pixels)[3][2], const NchwWgradPixels<Traits>& lane, int row,
                        int plane) const {
    const uint32_t at = x_at_ + plane * args_.x.plane_pitch +
                        (row - band_.x.row) * args_.x.row_pitch + x_.phase(band_.x, plane);
    const uint32_t word = at & ~3u, shift = at % 4 * 8;
    const bool wanted = Traits::kStride == 1 || has_x(row);
    GC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t from = word + lane.x_offset[half];
      uint32_t words[3];
      GC_UNROLL
      for (int i = 0; i < 3; ++i) words[i] = device::load_shared_4(from + 4 * i, wanted);
      const uint32_t first = shifted(words[0], words[1], shift);
      const uint32_t second = shifted(words[1], words[2], shift);
      if constexpr (Traits::kStride == 1) {
        pixels[0][half] = first;
        pixels[1][half] = shifted(words[0], words[1], shift + 16);
        pixels[2][half] = second;
      } else {
        const uint32_t third = words[2] >> shift;
        pixels[0][half] = (first & 0xffffu) | second << 16;
        pixels[1][half] = first >> 16 | (second & 0xffff0000u);
        pixels[2][half] = (second & 0xffffu) | third << 16;
      }
      GC_UNROLL
      for (int s = 0; s < 3; ++s) pixels[s][half] &= lane.taps[s][half];
    }
  }

 private:
  // Four bytes of eight, from bit `shift` on, at most 32.
  GC_DEVICE static uint32_t shifted(uint32_t low, uint32_t high, uint32_t shift) {
    return uint32_t((uint64_t(high) << 32 | low) >> shift);
  }

  const NchwWgradArgs& args_;
  const NchwWgradBand& band_;
  const PlanarTensor<Traits> x_, dy_;
  const uint32_t x_at_, dy_at_, dy_before_at_;
};

}  // namespace grouped_conv::cuda
