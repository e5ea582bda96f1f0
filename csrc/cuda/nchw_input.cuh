// Bands of channel planes on their way into shared memory, and from there into the form that
// ldmatrix reads.
#pragma once

#include "cuda/nchw_args.h"
#include "cuda/nchw_planes.cuh"
#include "cuda/rowstream_io.cuh"

namespace grouped_conv::cuda {

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
        tensor_(args.input, args.walk.input_h, args.walk.input_w, args.walk.channels, work.channel,
                work.image),
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
        channel[k] = source + k * bands.plane_pitch + tensor_.phase(area_, k);
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

}  // namespace grouped_conv::cuda
