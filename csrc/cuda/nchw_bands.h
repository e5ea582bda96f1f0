// How rows of channel planes (NCHW) lie in shared memory. Plain C++ without CUDA.
//
// A band is some neighbouring rows of all the images and channels of a block. In global memory it
// consists of runs: pixels that are neighbours there, which come and go in aligned words of 16
// bytes. A run is the band's rows of one channel; or, where a tile has only a part of each row,
// every row by itself; or, where a band has whole images, all channels of an image. In shared
// memory a run begins as many bytes after a word's beginning as it does in global memory, its
// phase, so words are copied as they are. A row is `row_pitch` bytes behind the one above it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace grouped_conv::cuda {

enum class Runs { kRow, kRows, kImage };

struct NchwBands {
  Runs runs;
  int steps;  // steps of the walk (of output: lines) that a band has the rows of
  int row_pitch, plane_pitch, image_pitch;  // bytes of shared memory
  int bytes;                                // of shared memory
  int plane_phase;                          // what a channel adds to its first run's phase
  int lanes_log2;                           // threads that share a run
};

// What a band is made of.
struct NchwTile {
  int images, channels;
  int height, width;  // of an image
  int columns;        // of each row, in the tile; at least width: all of them
  int rows_of_step;
  bool whole_images;  // a block walks through all rows
  int image_slots;    // from an image to the next; 0: nobody looks at both at the same time
};

constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

// The least pitch for `bytes` that is so much above a multiple of `unit`.
constexpr int pitch_of(int bytes, int above, int unit) {
  return bytes <= above ? above : round_up(bytes - above, unit) + above;
}

// How many threads share a run of words: as many as find work for four fifths of their turns.
constexpr int lanes_log2_of(int words) {
  int log2 = 5;
  while (log2 > 1 && 4 * round_up(words, 1 << log2) > 5 * words) --log2;
  return log2;
}

// Bands of `steps` steps. Pitches keep lanes that look at neighbouring planes or images at the same
// time off each other's banks.
constexpr NchwBands bands_of(const NchwTile& tile, Runs runs, int steps) {
  NchwBands bands{};
  bands.runs = runs;
  bands.steps = steps;
  bands.plane_phase = 2 * tile.height * tile.width % 16;
  const int rows = steps * tile.rows_of_step;
  const int row_bytes = 2 * std::min(tile.columns, tile.width);
  const int latest_phase = 16 - std::gcd(16, 2 * tile.width);
  int words = 0;
  bands.row_pitch = row_bytes;
  if (runs == Runs::kImage) {
    bands.plane_pitch = tile.height * row_bytes;
    bands.plane_phase = 0;
    words = tile.channels * bands.plane_pitch / 16;
  } else if (runs == Runs::kRows) {
    words = (latest_phase + rows * row_bytes + 15) / 16;
    bands.plane_pitch = pitch_of(16 * words, 16, 64);
  } else {
    // Rows have no word in common, and their phases are those of the first one and the pitch.
    words = (14 + row_bytes + 15) / 16;
    bands.row_pitch = pitch_of(row_bytes + 15, 2 * tile.width % 16, 16);
    bands.plane_pitch = pitch_of(round_up(14 + rows * bands.row_pitch, 16), 16, 64);
  }
  bands.lanes_log2 = lanes_log2_of(words);
  bands.image_pitch = tile.channels * bands.plane_pitch;
  if (tile.images > 1 && tile.image_slots > 0) {
    bands.image_pitch = pitch_of(bands.image_pitch, round_up(2 * tile.image_slots, 16) % 128, 128);
  }
  bands.bytes = tile.images * bands.image_pitch;
  return bands;
}

// Whole images if they fit, else the largest bands that do, but not of more than eight rows: few
// words of theirs are shared with the next. Of `bytes` 0: not even one step fits.
constexpr NchwBands cut_bands(const NchwTile& tile, int most_bytes) {
  constexpr int kMostRows = 8;
  constexpr int kAllSteps = 1 << 30;
  const bool whole_rows = tile.columns >= tile.width;
  if (tile.whole_images && whole_rows && tile.height <= 2 * kMostRows) {
    NchwBands bands = bands_of(tile, Runs::kImage, 1);
    bands.steps = kAllSteps;
    if (bands.bytes <= most_bytes) return bands;
  }
  const Runs runs = whole_rows ? Runs::kRows : Runs::kRow;
  int steps = std::max(kMostRows / tile.rows_of_step, 1);
  while (steps > 0 && bands_of(tile, runs, steps).bytes > most_bytes) --steps;
  if (steps == 0) return {};
  // Bands that all begin as the first one does, from a sector on if they can.
  const int row_bytes = 2 * tile.width * tile.rows_of_step;
  const int sectors = 32 / std::gcd(32, row_bytes);
  const int unit = sectors <= steps ? sectors : 16 / std::gcd(16, row_bytes);
  if (steps > unit) steps = steps / unit * unit;
  return bands_of(tile, runs, steps);
}

}  // namespace grouped_conv::cuda
