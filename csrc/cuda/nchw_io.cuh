// Bands of channel planes on their way into shared memory and out of it (nchw_bands.h).
#pragma once

#include "cuda/nchw_args.h"
#include "cuda/rowstream_exact.cuh"

namespace grouped_conv::cuda {

template <int kId>
struct NchwConfigOf {
  static constexpr RowstreamConfig kConfig = kNchwConfigs[kId];
  static constexpr bool kPlanar = true;
};

template <int kId, typename Element>
struct NchwTraits : RowstreamTraitsOf<NchwConfigOf<kId>, Element> {};

// The rows and columns of a band.
struct BandArea {
  int row, row_end;
  int column, column_end;
};

// A block's part of a tensor: the images of one tile after the other.
template <class Traits>
class PlanarTensor {
 public:
  GC_DEVICE PlanarTensor(const RowstreamArgs& args, const BlockWork& work, const NchwBands& bands,
                         int height, int width)
      : bands_(bands),
        height_(height),
        width_(width),
        channels_(args.channels),
        first_channel_(work.channel),
        image_(work.image) {
    const int left = args.channels - work.channel;
    planes_ = left < Traits::kChannels ? left : Traits::kChannels;
  }

  GC_DEVICE const NchwBands& bands() const { return bands_; }
  GC_DEVICE int height() const { return height_; }
  GC_DEVICE int width() const { return width_; }
  GC_DEVICE int image() const { return image_; }
  GC_DEVICE void next_tile(int images) { image_ += images; }

  // The phase of the run that a row of the block's channel `plane` is part of.
  GC_DEVICE int phase(const BandArea& area, int row, int plane) const {
    const int first = bands_.runs == Runs::kRow ? row : area.row;
    return (2 * (first * width_ + area.column) + plane * bands_.plane_phase) % 16;
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
        const int phase = begin % 16;
        const int64_t image_begin =
            (int64_t(image_ + image) * channels_ + first_channel_) * plane_bytes;
        const uint32_t target =
            image * bands_.image_pitch + plane * bands_.plane_pitch + i * bands_.row_pitch;
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

// Brings bands of rows to shared memory, and from there row after row into slots, the form that
// ldmatrix reads, of which there are two stages.
template <class Traits>
class NchwInput {
  using Map = WalkMap<Traits::kWalk>;
  using T = typename Traits::T;
  static constexpr int kItems = Traits::kRuns * Traits::kSlots * Traits::kPlanes;
  static constexpr int kPerThread = kItems / Traits::kThreads;
  static_assert(kItems % Traits::kThreads == 0, "each thread has as many slots");

 public:
  GC_DEVICE NchwInput(const NchwArgs& args, const BlockWork& work, uint32_t bands, uint32_t stages)
      : args_(args.walk),
        work_(work),
        tensor_(args.walk, work, args.input, args.walk.input_h, args.walk.input_w),
        bands_(bands),
        stages_(stages),
        load_step_(work.steps.begin),
        load_images_left_(work.images_left),
        loads_left_(work.tiles * work.steps_per_tile()),
        step_(work.steps.begin),
        band_step_(work.steps.begin),
        images_left_(work.images_left),
        steps_left_(work.tiles * work.steps_per_tile()) {
    const bool strips = args_.plan.strips > 1;
    const int last = work.slot + args_.plan.strip + Traits::kHalo - 1;
    const int column = strips ? Map::input_column(args_, work.slot, 0) : 0;
    const int end = strips ? Map::input_column(args_, last, Traits::kRuns - 1) + 1 : args_.input_w;
    column_ = column < 0 ? 0 : column;
    column_end_ = end > args_.input_w ? args_.input_w : end;
    GC_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      const int item = device::thread_index() + i * Traits::kThreads;
      const int slot = item % Traits::kSlots;
      const int plane = item / Traits::kSlots % Traits::kPlanes;
      const int run = item / (Traits::kSlots * Traits::kPlanes);
      const Pixel pixel = pixel_of_slot(args_, slot);
      const int source = Map::input_column(args_, work.slot + pixel.slot, run);
      const bool wanted = pixel.in_tile && source >= column_ && source < column_end_ &&
                          work.channel + plane * 8 < args_.channels;
      image_[i] = wanted ? pixel.image : kNoImage;
      offset_[i] = (wanted ? pixel.image : 0) * tensor_.bands().image_pitch +
                   plane * 8 * tensor_.bands().plane_pitch + 2 * (source - column_);
      target_[i] = plane * Traits::kInputPlaneBytes + run * Traits::kOddRunBytes + slot * 16;
    }
  }

  // Starts to bring the first two bands, a group of copies each.
  GC_DEVICE void start() {
    clear_halo();
    load_band();
    load_band();
  }

  // Whether the next step to be filled is the first of a band.
  GC_DEVICE bool at_band() const { return step_ == band_step_; }

  // Starts to bring the next band in the place of the one that all threads have done with.
  GC_DEVICE void load_band() {
    if (loads_left_ > 0) {
      const int images = smaller(args_.plan.images, load_images_left_);
      const uint32_t band = bands_ + load_buffer_;
      const BandArea area = area_of(load_step_);
      tensor_.for_each_word(area, area.row < area.row_end ? images : 0,
                            [&](int64_t offset, uint32_t target, int, int, bool active) {
                              const char* source = static_cast<const char*>(args_.input) + offset;
                              device::cp_async_16(band + target, source, true, active);
                            });
      const int steps = smaller(tensor_.bands().steps, work_.steps.end - load_step_);
      loads_left_ -= steps;
      load_step_ += steps;
      if (load_step_ == work_.steps.end) {
        load_step_ = work_.steps.begin;
        load_images_left_ -= args_.plan.images;
        tensor_.next_tile(args_.plan.images);
      }
    }
    device::cp_async_commit();
    load_buffer_ ^= tensor_.bands().bytes;
  }

  // Fills the next stage with the rows of the next step; zeros where there is no pixel. Tells
  // whether this thread met values that are not finite; where groups share a slab, it zeroes them.
  GC_DEVICE bool fill() {
    const NchwBands& bands = tensor_.bands();
    if (at_band()) area_ = area_of(step_);
    bool found = false;
    GC_UNROLL
    for (int row = 0; row < Traits::kRows; ++row) {
      const int input_row = Map::input_row(args_, step_, row);
      const bool exists = steps_left_ > 0 && input_row >= 0 && input_row < args_.input_h;
      const int images = exists ? images_left_ : 0;
      const uint32_t source = bands_ + buffer_ + (input_row - area_.row) * bands.row_pitch;
      uint32_t channel[8];
      GC_UNROLL
      for (int k = 0; k < 8; ++k) {
        channel[k] = source + k * bands.plane_pitch + tensor_.phase(area_, input_row, k);
      }
      GC_UNROLL
      for (int i = 0; i < kPerThread; ++i) {
        const bool wanted = image_[i] < images;
        device::Bytes16 pixel;
        GC_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
          const uint32_t low = device::load_shared_2(channel[2 * pair] + offset_[i], wanted);
          const uint32_t high = device::load_shared_2(channel[2 * pair + 1] + offset_[i], wanted);
          pixel.word[pair] = low | high << 16;
        }
        if constexpr (Traits::kSharedSlab) {
          if (Nonfinite<T>::any(pixel)) {
            found = true;
            GC_UNROLL
            for (uint32_t& pair : pixel.word) {
              pair &= ~((Nonfinite<T>::signs(pair) >> 15) * 0xffffu);
            }
          }
        }
        device::store_shared_16(stages_ + stage_ + row * Traits::kInputRowBytes + target_[i],
                                pixel);
      }
    }
    stage_ ^= Traits::kStageBytes;
    advance();
    return found;
  }

 private:
  GC_DEVICE static int smaller(int a, int b) { return a < b ? a : b; }

  GC_DEVICE BandArea area_of(int step) const {
    if (tensor_.bands().runs == Runs::kImage) return {0, args_.input_h, 0, args_.input_w};
    const int end = smaller(step + tensor_.bands().steps, work_.steps.end);
    const int row = Map::input_row(args_, step, 0);
    const int row_end = Map::input_row(args_, end - 1, Traits::kRows - 1) + 1;
    return {row < 0 ? 0 : row, smaller(row_end, args_.input_h), column_, column_end_};
  }

  GC_DEVICE void advance() {
    --steps_left_;
    if (++step_ == work_.steps.end) {
      step_ = work_.steps.begin;
      images_left_ -= args_.plan.images;
    } else if (step_ - band_step_ < tensor_.bands().steps) {
      return;
    }
    band_step_ = step_;
    buffer_ ^= tensor_.bands().bytes;
  }

  // Zeroes the slots past those that fill() writes, in both stages.
  GC_DEVICE void clear_halo() const {
    constexpr int kPlanesInAll = Traits::kStages * Traits::kRows * Traits::kPlanes;
    for (int i = device::thread_index(); i < kPlanesInAll * Traits::kHalo; i += Traits::kThreads) {
      const uint32_t plane = stages_ + i / Traits::kHalo * Traits::kInputPlaneBytes;
      device::store_shared_16(plane + (Traits::kSlots + i % Traits::kHalo) * 16, {});
    }
  }

  const RowstreamArgs& args_;
  const BlockWork& work_;
  PlanarTensor<Traits> tensor_;
  const uint32_t bands_, stages_;
  int column_, column_end_;  // of the tile
  // The next band to be loaded.
  uint32_t load_buffer_ = 0;
  int load_step_, load_images_left_, loads_left_;
  // The next step to be filled, and its band.
  uint32_t buffer_ = 0, stage_ = 0;
  int step_, band_step_, images_left_, steps_left_;
  BandArea area_{};
  // This thread's slots.
  int image_[kPerThread];
  uint32_t offset_[kPerThread];  // from a row of the first image's channel to the pixel
  uint32_t target_[kPerThread];  // from the stage's beginning
};

// Collects finished lines in a band, and takes it away when it is full.
template <class Traits>
class NchwOutput {
  using Map = WalkMap<Traits::kWalk>;
  using T = typename Traits::T;

 public:
  GC_DEVICE NchwOutput(const NchwArgs& args, const BlockWork& work, uint32_t band, int first_slot,
                       int first_plane)
      : args_(args.walk),
        work_(work),
        tensor_(args.walk, work, args.output, args.walk.output_h, args.walk.output_w),
        band_(band),
        line_(work.line),
        images_left_(work.images_left) {
    const bool strips = args_.plan.strips > 1;
    const int last = work.slot + args_.plan.strip - 1;
    const int column = strips ? Map::output_column(args_, work.slot, 0) : 0;
    const int end =
        strips ? Map::output_column(args_, last, Traits::kOutputRuns - 1) + 1 : args_.output_w;
    area_.column = column < 0 ? 0 : column;
    area_.column_end = end > args_.output_w ? args_.output_w : end;
    begin_band();
    const int lane = device::lane_index();
    plane_ = first_plane + lane % 4 * 2;
    GC_UNROLL
    for (int tile = 0; tile < Traits::kTiles; ++tile) {
      GC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int slot = first_slot + tile * 16 + half * 8 + lane / 4;
        const Pixel pixel = pixel_of_slot(args_, slot);
        GC_UNROLL
        for (int run = 0; run < Traits::kOutputRuns; ++run) {
          const int target = Map::output_column(args_, work.slot + pixel.slot, run);
          const bool wanted = pixel.in_tile && pixel.slot < args_.plan.strip &&
                              target >= area_.column && target < area_.column_end;
          offset_[tile][half][run] =
              wanted ? pixel.image * tensor_.bands().image_pitch + 2 * (target - area_.column)
                     : kNowhere;
        }
      }
    }
  }

  // Makes ready for a step; `finished`: it finishes a line.
  GC_DEVICE void begin_line(bool finished) {
    finished_ = finished;
    GC_UNROLL
    for (int row = 0; row < Traits::kOutputRows; ++row) {
      const int output_row = Map::output_row(args_, line_, row);
      exists_[row] = finished && output_row >= 0 && output_row < args_.output_h;
      GC_UNROLL
      for (int i = 0; i < 2; ++i) {
        target_[row][i] = band_ + (output_row - area_.row) * tensor_.bands().row_pitch +
                          (plane_ + i) * tensor_.bands().plane_pitch +
                          tensor_.phase(area_, output_row, plane_ + i);
      }
    }
  }

  // Takes the columns `run` of a row of the line, for a tile of 16 slots.
  GC_DEVICE void put(const float (&sum)[Traits::kSlabs][4], int tile, int row = 0,
                     int run = 0) const {
    GC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int offset = offset_[tile][half][run];
      const bool wanted = exists_[row] && offset != kNowhere;
      GC_UNROLL
      for (int slab = 0; slab < Traits::kSlabs; ++slab) {
        const uint32_t both = device::pack2<T>(sum[slab][2 * half], sum[slab][2 * half + 1]);
        const uint32_t at = slab * 8 * tensor_.bands().plane_pitch + offset;
        device::store_shared_2(target_[row][0] + at, uint16_t(both), wanted);
        device::store_shared_2(target_[row][1] + at, uint16_t(both >> 16), wanted);
      }
    }
  }

  GC_DEVICE void end_line() {
    if (finished_) ++line_;
  }

  // Whether the band must leave before the next line comes.
  GC_DEVICE bool full() const { return line_ == band_end_; }

  // Stores the band, which all threads see, and begins the next one.
  GC_DEVICE void store() {
    for_each_word_of_band([&](char* target, uint32_t source, int begin, int end, bool active) {
      store_word(target, source, begin, end, active);
    });
    next_band();
  }

  // Of an output that has taken nothing: goes over all that this thread has stored by another one,
  // and writes anew what meets an infinity or a NaN.
  GC_DEVICE void recompute_nonfinite() {
    const char* output = static_cast<const char*>(args_.output);
    const int64_t plane_elements = int64_t(args_.output_h) * args_.output_w;
    GC_NO_UNROLL
    for (int tiles = work_.tiles; tiles > 0;) {
      for_each_word_of_band([&](char* target, uint32_t, int begin, int end, bool active) {
        GC_NO_UNROLL
        for (int byte = begin; byte < end && active; byte += 2) {
          const int64_t element = (target + byte - output) / 2;
          const int64_t plane = element / plane_elements;
          const int in_plane = int(element - plane * plane_elements);
          const int64_t image = plane / args_.channels;
          const int row = in_plane / args_.output_w;
          const char* input = static_cast<const char*>(args_.input) +
                              2 * image * args_.channels * args_.input_h * args_.input_w;
          const ExactSum sum = exact_sum<Traits>(args_, input, row, in_plane - row * args_.output_w,
                                                 int(plane - image * args_.channels));
          device::store_global_2(target + byte, device::pack1<T>(sum.value), sum.nonfinite_term);
        }
      });
      line_ = band_end_;
      if (next_band()) --tiles;
    }
  }

 private:
  static constexpr int kNowhere = -1;

  template <typename Function>
  GC_DEVICE void for_each_word_of_band(const Function& function) const {
    const int images = images_left_ < args_.plan.images ? images_left_ : args_.plan.images;
    tensor_.for_each_word(
        area_, images, [&](int64_t offset, uint32_t source, int begin, int end, bool active) {
          function(static_cast<char*>(args_.output) + offset, band_ + source, begin, end, active);
        });
  }

  // Stores bytes [begin, end) of a word; at the ends of a run, in pieces.
  GC_DEVICE static void store_word(char* target, uint32_t source, int begin, int end, bool active) {
    const bool whole = active && end - begin == 16;
    device::store_global_16(target, device::load_shared_16(source, whole), whole);
    if (!device::warp_any(active && !whole)) return;
    const auto piece = [&](int size, bool wanted) {
      const bool stored = active && !whole && wanted && begin + size <= end;
      if (size == 2) {
        device::store_global_2(target + begin, device::load_shared_2(source + begin, stored),
                               stored);
      } else if (size == 4) {
        device::store_global_4(target + begin, device::load_shared_4(source + begin, stored),
                               stored);
      } else {
        device::store_global_8(target + begin, device::load_shared_8(source + begin, stored),
                               stored);
      }
      begin += stored ? size : 0;
    };
    piece(2, (begin & 2) != 0);
    piece(4, (begin & 4) != 0);
    piece(8, true);
    piece(4, true);
    piece(2, true);
  }

  GC_DEVICE void begin_band() {
    const int end = line_ + tensor_.bands().steps;
    band_end_ = end < work_.line_end ? end : work_.line_end;
    const int row = Map::output_row(args_, line_, 0);
    const int row_end = Map::output_row(args_, band_end_ - 1, Traits::kOutputRows - 1) + 1;
    area_.row = row < 0 ? 0 : row;
    area_.row_end = row_end < args_.output_h ? row_end : args_.output_h;
  }

  // Tells whether the band is the first of a tile.
  GC_DEVICE bool next_band() {
    const bool tile_done = line_ == work_.line_end;
    if (tile_done) {
      line_ = work_.line;
      images_left_ -= args_.plan.images;
      tensor_.next_tile(args_.plan.images);
    }
    begin_band();
    return tile_done;
  }

  const RowstreamArgs& args_;
  const BlockWork& work_;
  PlanarTensor<Traits> tensor_;
  const uint32_t band_;
  int line_, band_end_;
  int images_left_;
  BandArea area_;
  bool finished_ = false;
  bool exists_[Traits::kOutputRows];
  uint32_t target_[Traits::kOutputRows][2];  // of the lane's two channels
  int plane_;                                // the first of them
  int offset_[Traits::kTiles][2][Traits::kOutputRuns];
};

}  // namespace grouped_conv::cuda
