// Bands of channel planes between global and shared memory (nchw_bands.h).
#pragma once

#include "cuda/device/device.h"
#include "cuda/nchw_bands.h"

namespace grouped_conv::cuda {

// The rows and columns of a band.
struct BandArea {
  int row, row_end;
  int column, column_end;
};

// A block's part of a tensor: the images of one tile after the other.
template <class Traits>
class PlanarTensor {
 public:
  // Of `channels` channels, from `first_channel` on; `image` is the first tile's first.
  GC_DEVICE PlanarTensor(const NchwBands& bands, int height, int width, int channels,
                         int first_channel, int image)
      : bands_(bands),
        height_(height),
        width_(width),
        channels_(channels),
        first_channel_(first_channel),
        image_(image) {
    const int left = channels - first_channel;
    planes_ = left < Traits::kChannels ? left : Traits::kChannels;
  }

  GC_DEVICE const NchwBands& bands() const { return bands_; }
  GC_DEVICE int height() const { return height_; }
  GC_DEVICE int width() const { return width_; }
  GC_DEVICE int image() const { return image_; }
  GC_DEVICE void next_tile(int images) { image_ += images; }

  // The phase of the first run of the block's channel `plane`.
  GC_DEVICE uint32_t phase(const BandArea& area, int plane) const {
    return uint32_t(2 * (area.row * width_ + area.column) + plane * bands_.plane_phase) % 16;
  }

  // Calls function(offset, target, begin, end, active) for the words of a band that are this
  // thread's: `offset` bytes from the tensor's beginning, `target` bytes from the band's; bytes
  // [begin, end) of the word belong to the run.
  template <typename Function>
  GC_DEVICE void for_each_word(const BandArea& area, int images, const Function& function) const {
    const bool by_image = bands_.runs == Runs::kImage;
    const bool by_row = bands_.runs == Runs::kRow;
    const int plane_bytes = 2 * height_ * width_;
    const int rows = area.row_end - area.row;
    const int run_bytes = by_image ? planes_ * plane_bytes
                          : by_row ? 2 * (area.column_end - area.column)
                                   : 2 * rows * width_;
    const int runs = by_image ? images : images * Traits::kChannels;
    const int lanes = 1 << bands_.lanes_log2;
    const int lane = device::thread_index() & (lanes - 1);
    const int words = by_image ? run_bytes / 16 : (14 + run_bytes + 15) / 16;
    GC_NO_UNROLL
    for (int i = 0; i < (by_row ? rows : 1); ++i) {
      const int in_plane = 2 * ((area.row + i) * width_ + area.column);
      GC_NO_UNROLL
      for (int first = 0; first < runs; first += Traits::kThreads >> bands_.lanes_log2) {
        const int run = first + (device::thread_index() >> bands_.lanes_log2);
        const int image = by_image ? run : run / Traits::kChannels;
        const int plane = by_image ? 0 : run % Traits::kChannels;
        const int begin = plane * plane_bytes + (by_image ? 0 : in_plane);
        const int phase = int(uint32_t(begin) % 16);
        const int64_t image_begin =
            (int64_t(image_ + image) * channels_ + first_channel_) * plane_bytes;
        const uint32_t target = image * bands_.image_pitch + plane * bands_.plane_pitch +
                                this->phase(area, plane) + i * bands_.row_pitch - phase;
        const bool exists = run < runs && plane < planes_;
        GC_NO_UNROLL
        for (int at = 0; at < words; at += lanes) {
          const int byte = 16 * (at + lane);
          const int from = byte < phase ? phase - byte : 0;
          const int to = phase + run_bytes - byte < 16 ? phase + run_bytes - byte : 16;
          function(image_begin + (begin - phase + byte), target + byte, from, to,
                   exists && to > from);
        }
      }
    }
  }

 private:
  const NchwBands& bands_;
  const int height_, width_, channels_, first_channel_;
  int planes_;  // of the block's that the tensor has
  int image_;   // the tile's first
};

}  // namespace grouped_conv::cuda
