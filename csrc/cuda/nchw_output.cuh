// Lines of output on their way into bands of channel planes, and bands into global memory.
#pragma once

#include "cuda/nchw_args.h"
#include "cuda/nchw_planes.cuh"
#include "cuda/rowstream_exact.cuh"

namespace grouped_conv::cuda {

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
        tensor_(args.output, args.walk.output_h, args.walk.output_w, args.walk.channels,
                work.channel, work.image),
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
                          tensor_.phase(area_, plane_ + i);
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
