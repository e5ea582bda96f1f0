// Input and packed weights of a tiled kernel on their way to shared memory. Two ways for the input:
// TiledCopies brings 16 bytes at a time asynchronously, where the channels of a pixel lie together
// in whole units; TiledGather takes any strides and numbers of channels, element by element through
// registers, the lanes of a warp along the pixels. What is no element, beyond a group's channels,
// the image or the taps, becomes zero in both factors: nothing of another group is ever multiplied.
#pragma once

#include "cuda/tiled_block.cuh"

namespace grouped_conv::cuda {

// The packed weights of the block's channels, all of it in whole units.
template <class Traits>
class TiledWeights {
  static constexpr int kTileUnits = Traits::kGroups * Traits::kChannels * kChunkUnits;
  static constexpr int kCopies = (kTileUnits + kTiledThreads - 1) / kTiledThreads;

 public:
  GC_DEVICE TiledWeights(const TiledArgs& args, const TiledBlock& block)
      : chunk_bytes_(args.tile_channels * kChunkBytes) {
    const int index = block.taps_h.first * args.classes_w + block.taps_w.first;
    const int64_t class_bytes = int64_t(args.chunks) * chunk_bytes_;
    const int64_t group_bytes = class_bytes * args.classes * args.channel_tiles;
    source_ = static_cast<const char*>(args.packed) + block.group * group_bytes +
              (int64_t(block.channel_tile) * args.classes + index) * class_bytes;
    GC_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      const int row = (device::thread_index() + i * kTiledThreads) / kChunkUnits;
      const int group = row / Traits::kChannels, channel = row % Traits::kChannels;
      const bool wanted = row < Traits::kGroups * Traits::kChannels && channel < args.tile_channels;
      wanted_[i] = wanted;
      valid_[i] = block.group + group < args.groups;
      offset_[i] = group * group_bytes + channel * kChunkBytes +
                   device::thread_index() % kChunkUnits * kUnitBytes;
    }
    target_ =
        unit_offset(device::thread_index() / kChunkUnits, device::thread_index() % kChunkUnits);
  }

  // The next chunk, to the weights of a stage.
  GC_DEVICE void copy(uint32_t target) {
    GC_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      // Copies of a thread lie 32 rows apart.
      device::cp_async_16(target + target_ + uint32_t(i * kTiledThreads * kUnitBytes),
                          source_ + offset_[i], valid_[i], wanted_[i]);
    }
    source_ += chunk_bytes_;
  }

 private:
  const char* source_;
  int chunk_bytes_;
  uint32_t target_;
  int64_t offset_[kCopies];
  bool wanted_[kCopies], valid_[kCopies];
};

// A thread copies one unit of each of four rows: of a pixel's groups, where there are several,
// neighbouring lanes take one each.
template <class Traits>
class TiledCopies {
  static constexpr int kRows = kTiledRows * kChunkUnits / kTiledThreads;
  static constexpr int kRowStep = Traits::kPixels / kRows;

 public:
  GC_DEVICE TiledCopies(const TiledArgs& args, const TiledBlock& block, uint32_t table)
      : args_(args), cursor_(args, block) {
    const int index = device::thread_index() / Traits::kGroups;
    const int unit = index % kChunkUnits;
    const int first =
        device::thread_index() % Traits::kGroups * Traits::kPixels + index / kChunkUnits;
    GC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const RowInput row = input_of_row(table, first + i * kRowStep);
      source_[i] = static_cast<const char*>(args.input) + row.offset * Traits::kElementBytes;
      h_[i] = row.h;
      w_[i] = row.w;
    }
    target_ = input_offset<Traits>(first, unit);
    cursor_.advance(args, unit);
  }

  // Begins the next chunk. It is there when its copies have been waited for.
  GC_DEVICE void begin(uint32_t stage) {
    GC_UNROLL
    for (int i = 0; i < kRows; ++i) {
      device::cp_async_16_cached(stage + target_ + uint32_t(i * kRowStep * kChunkBytes),
                                 source_[i] + cursor_.bytes(), cursor_.meets(args_, h_[i], w_[i]));
    }
    cursor_.advance(args_, kChunkUnits);
  }

  GC_DEVICE void end(uint32_t /*stage*/) {}

 private:
  const TiledArgs& args_;
  UnitCursor cursor_;
  uint32_t target_;
  const char* source_[kRows];
  int h_[kRows], w_[kRows];
};

// Two elements of 16 bits, or one of 32, of a row; zero where they are not active.
template <class Traits>
GC_DEVICE uint32_t load_elements(const char* source, int64_t step, bool first, bool second) {
  if constexpr (Traits::kElementBytes == 4) {
    return device::load_global_4(source, first);
  } else {
    return device::load_global_2(source, first) |
           uint32_t(device::load_global_2(source + step, second)) << 16;
  }
}

// A thread brings the row of its own number.
template <class Traits>
class TiledGather {
  static constexpr int kPerWord = 4 / Traits::kElementBytes;

 public:
  GC_DEVICE TiledGather(const TiledArgs& args, const TiledBlock& block, uint32_t table)
      : args_(args), cursor_(args, block), step_(args.input_strides[1] * Traits::kElementBytes) {
    const RowInput row = input_of_row(table, device::thread_index());
    source_ = static_cast<const char*>(args.input) + row.offset * Traits::kElementBytes;
    h_ = row.h;
    w_ = row.w;
  }

  // Loads the next chunk into registers.
  GC_DEVICE void begin(uint32_t /*stage*/) {
    GC_UNROLL
    for (int u = 0; u < kChunkUnits; ++u) {
      const char* source = source_ + cursor_.bytes();
      const int channels =
          cursor_.meets(args_, h_, w_) ? args_.in_channels - cursor_.unit() * Traits::kUnit : 0;
      GC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int channel = i * kPerWord;
        values_[u].word[i] =
            load_elements<Traits>(source, step_, channel < channels, channel + 1 < channels);
        source += kPerWord * step_;
      }
      cursor_.advance(args_, 1);
    }
  }

  // Stores what begin() has loaded.
  GC_DEVICE void end(uint32_t stage) {
    GC_UNROLL
    for (int u = 0; u < kChunkUnits; ++u) {
      device::store_shared_16(stage + input_offset<Traits>(device::thread_index(), u), values_[u]);
    }
  }

 private:
  const TiledArgs& args_;
  UnitCursor cursor_;
  int64_t step_;
  const char* source_;
  int h_, w_;
  device::Bytes16 values_[kChunkUnits];
};

}  // namespace grouped_conv::cuda
