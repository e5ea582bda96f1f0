// The arguments of the tiled kernels, the same for nvcc, the launcher and the emulator.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace grouped_conv::cuda {

// Division of numbers below 2^31 by a constant of the launch, by multiplication: with l =
// ceil(log2(divisor)), floor(2^(31 + l) / divisor) + 1 is too large by a part that numbers below
// 2^31 do not feel.
struct Divider {
  uint32_t multiplier;
  int shift;
  int divisor;

  Divider() = default;
  constexpr explicit Divider(int d) : multiplier(0), shift(31), divisor(d) {
    while ((int64_t(1) << (shift - 31)) < d) ++shift;
    multiplier = uint32_t((uint64_t(1) << shift) / uint64_t(d) + 1);
  }
};

// Rows or columns. Pixel i of phase f of the output is output i * phases + f; the taps that it
// meets are first, first + tap_step, ... and tap number t of them lies at input
// i * step + origin + t * delta. See taps_of().
struct TiledAxis {
  int input, output;  // extents
  int taps;           // of the filter
  int padding;        // negative in fprop
  int dilation;
  int phases, tap_step;
  int step, delta;
};

// Elements from a group's first to the next group's, and by output channel, input channel, row and
// column of the filter.
struct TiledWeight {
  int64_t by_group, by_out, by_in, by_r, by_s;
};

struct TiledArgs {
  const void* input;
  const void* weight;
  void* packed;
  void* output;
  const void* bias;
  int64_t bias_stride;
  Epilogue epilogue;
  TiledAxis h, w;
  TiledWeight order;
  // Of N, C, H, W, in elements.
  int64_t input_strides[4], output_strides[4];
  // Bytes of input from a unit to the next, from a tap to the next in its column and in its row.
  int64_t unit_step, row_step, column_step;
  int64_t pixels;          // of a phase, in all images
  Divider image, columns;  // pixels of an image, of a row
  Divider output_units;    // of 16 bytes, of a tile's channels
  int groups, in_channels, out_channels;
  int tile_channels, channel_tiles, channel_blocks;
  int units, chunks, classes_w, classes;
};

}  // namespace grouped_conv::cuda
