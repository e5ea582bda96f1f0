// What the threads of a tiled kernel know of their block: which output it computes, which taps that
// meets, and where everything lies in shared memory.
#pragma once

#include "cuda/device/device.h"
#include "cuda/tiled_args.h"
#include "cuda/tiled_configs.h"

namespace grouped_conv::cuda {

template <int kId, TiledMath kMath_, bool kDirect_>
struct TiledTraits {
  static constexpr TiledMath kMath = kMath_;
  static constexpr bool kDirect = kDirect_;
  static constexpr TiledConfig kConfig = kTiledConfigs[kId];
  static constexpr int kChannels = kConfig.channels;
  static constexpr int kGroups = kConfig.groups;
  static constexpr int kPixels = kConfig.pixels();
  static constexpr int kStages = kDirect ? kConfig.stages : 2;
  static constexpr int kElementBytes = tiled_element_bytes(kMath);
  static constexpr int kUnit = kUnitBytes / kElementBytes;  // elements
  static constexpr int kPitch = kConfig.pitch(kDirect);
  // In shared memory.
  static constexpr int kRing = kConfig.table_bytes();
  static constexpr int kStageBytes = kConfig.stage_bytes();
  static constexpr int kTileBytes = kTiledRows * kChunkBytes;  // of the input, in a stage
};

GC_DEVICE int divide(const Divider& by, int n) {
  return int(uint64_t(uint32_t(n)) * by.multiplier >> by.shift);
}

// The taps of an axis that a phase of the output meets; see TiledAxis.
struct Taps {
  int first, count, origin;

  GC_DEVICE Taps(const TiledAxis& axis, int phase) : first(0), count(0), origin(0) {
    const int classes = axis.taps < axis.tap_step ? axis.taps : axis.tap_step;
    GC_NO_UNROLL
    for (; first < classes; ++first) {
      const int distance = phase + axis.padding - first * axis.dilation;
      if (distance % axis.phases != 0) continue;
      origin = distance / axis.phases;
      count = (axis.taps - first + axis.tap_step - 1) / axis.tap_step;
      return;
    }
  }
};

// Byte of a unit of a row of a stage's input or weights, in the place of another unit of the row
// such that eight rows at one unit lie in all banks. Eight rows further on it is the same; so units
// of a lane's rows lie at fixed distances, and unit u at the place of unit 0 with 16 u flipped.
GC_DEVICE uint32_t unit_offset(int row, int unit) {
  return uint32_t(row * kChunkBytes + (unit ^ (row >> 1 & 3)) * kUnitBytes);
}

// The input's, where neighbouring lanes copy units of four groups, 32 rows apart: they meet all
// banks, too.
template <class Traits>
GC_DEVICE uint32_t input_offset(int row, int unit) {
  if constexpr (Traits::kGroups == 1) return unit_offset(row, unit);
  const int group = row / Traits::kPixels;
  return unit_offset(row ^ (group & 1), unit ^ (group & 2));
}

// Where a block is, and its taps.
struct TiledBlock {
  int64_t first_pixel;
  int group, channel_tile;
  int phase_h, phase_w;
  Taps taps_h, taps_w;

  template <class Traits>
  GC_DEVICE static TiledBlock of(const TiledArgs& args, Traits) {
    const int block = device::block_index_x();
    const int channel_block = block % args.channel_blocks;
    const int phases = args.h.phases * args.w.phases;
    const int rest = block / args.channel_blocks;
    const int phase_h = rest % phases / args.w.phases, phase_w = rest % args.w.phases;
    return {int64_t(rest / phases) * Traits::kPixels,
            channel_block / args.channel_tiles * Traits::kGroups,
            channel_block % args.channel_tiles,
            phase_h,
            phase_w,
            Taps(args.h, phase_h),
            Taps(args.w, phase_w)};
  }

  GC_DEVICE int units(const TiledArgs& args) const {
    return taps_h.count * taps_w.count * args.units;
  }
};

inline constexpr int kNoRow = -(1 << 29);  // that no tap brings into an image

// What the first tap of a row of the tile meets: which row and column, and its element.
struct RowInput {
  int64_t offset;
  int h, w;
};

// A row of the tile.
struct TiledRow {
  RowInput input;
  int64_t output;  // its element; -1: none

  template <class Traits>
  GC_DEVICE static TiledRow of(const TiledArgs& args, const TiledBlock& block, int row, Traits) {
    TiledRow result{{0, kNoRow, kNoRow}, -1};
    const int group = block.group + row / Traits::kPixels;
    const int64_t image = block.first_pixel / args.image.divisor;
    const int first = int(block.first_pixel - image * args.image.divisor);
    const int pixel = row % Traits::kPixels;
    if (block.first_pixel + pixel >= args.pixels || group >= args.groups) return result;
    const int images = divide(args.image, first + pixel);
    const int index = first + pixel - images * args.image.divisor;
    const int i = divide(args.columns, index), j = index - i * args.columns.divisor;
    const int64_t n = image + images;
    RowInput& input = result.input;
    input.h = i * args.h.step + block.taps_h.origin;
    input.w = j * args.w.step + block.taps_w.origin;
    const int64_t (&from)[4] = args.input_strides;
    input.offset = n * from[0] + int64_t(group) * args.in_channels * from[1] + input.h * from[2] +
                   input.w * from[3];
    const int out_h = i * args.h.phases + block.phase_h, out_w = j * args.w.phases + block.phase_w;
    if (out_h >= args.h.output || out_w >= args.w.output) return result;
    const int64_t (&to)[4] = args.output_strides;
    const int channel = group * args.out_channels + block.channel_tile * args.tile_channels;
    result.output = n * to[0] + channel * to[1] + out_h * to[2] + out_w * to[3];
    return result;
  }
};

// Rows in a table in shared memory, such that lanes that read one of each of four groups, 32 rows
// apart, meet different banks.
GC_DEVICE uint32_t place_of_row(int row) { return uint32_t(row ^ row >> 5); }

GC_DEVICE void put_row(uint32_t table, int row, const TiledRow& value) {
  const uint64_t input = uint64_t(value.input.offset), output = uint64_t(value.output);
  const uint32_t place = place_of_row(row);
  device::store_shared_16(table + 16 * place, {{uint32_t(input), uint32_t(input >> 32),
                                                uint32_t(value.input.h), uint32_t(value.input.w)}});
  device::store_shared_8(table + kTiledRows * 16 + 8 * place,
                         {{uint32_t(output), uint32_t(output >> 32)}});
}

GC_DEVICE int64_t output_of_row(uint32_t table, int row) {
  const device::Bytes8 v = device::load_shared_8(table + kTiledRows * 16 + 8 * place_of_row(row));
  return int64_t(uint64_t(v.word[1]) << 32 | v.word[0]);
}

GC_DEVICE RowInput input_of_row(uint32_t table, int row) {
  const device::Bytes16 v = device::load_shared_16(table + 16 * place_of_row(row));
  return {int64_t(uint64_t(v.word[1]) << 32 | v.word[0]), int(v.word[2]), int(v.word[3])};
}

// Goes through the units of the block's taps: where the input of a row's first tap has to go to
// meet the present one.
class UnitCursor {
 public:
  GC_DEVICE UnitCursor(const TiledArgs& args, const TiledBlock& block)
      : units_(args.units),
        columns_(block.taps_w.count),
        rows_left_(block.taps_h.count),
        by_w_(args.w.delta),
        by_h_(args.h.delta),
        h_(block.units(args) > 0 ? 0 : kNoRow) {}

  GC_DEVICE void advance(const TiledArgs& args, int units) {
    unit_ += units;
    bytes_ += units * args.unit_step;
    while (unit_ >= units_) {
      unit_ -= units_;
      bytes_ += args.column_step - units_ * args.unit_step;
      w_ += by_w_;
      if (++column_ == columns_) {
        bytes_ += args.row_step - columns_ * args.column_step;
        column_ = w_ = 0;
        h_ = --rows_left_ > 0 ? h_ + by_h_ : kNoRow;
      }
    }
  }

  GC_DEVICE int64_t bytes() const { return bytes_; }
  GC_DEVICE int unit() const { return unit_; }

  // Whether there is such a tap and it lies in the image of a row.
  GC_DEVICE bool meets(const TiledArgs& args, int h, int w) const {
    return (uint32_t(h + h_) < uint32_t(args.h.input)) &
           (uint32_t(w + w_) < uint32_t(args.w.input));
  }

 private:
  int units_, columns_, rows_left_, by_w_, by_h_;
  int unit_ = 0, column_ = 0;
  int h_, w_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace grouped_conv::cuda
