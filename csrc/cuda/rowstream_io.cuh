// Rows of input on their way into shared memory, and lines of output on their way out.
#pragma once

#include <type_traits>

#include "cuda/rowstream.cuh"

namespace grouped_conv::cuda {

// No tile has so many images.
inline constexpr int kNoImage = 0x7fffffff;

// For the two elements of a register: an exponent that is all ones, and what makes it, and no
// other, overflow into the sign.
template <typename T>
struct Nonfinite {
  static constexpr bool kHalf = std::is_same_v<T, Float16>;
  static constexpr uint32_t kExponents = kHalf ? 0x7c007c00u : 0x7f807f80u;
  static constexpr uint32_t kOverflow = kHalf ? 0x04000400u : 0x00800080u;
  static constexpr uint32_t kSigns = 0x80008000u;

  // In the sign bits: whether the elements are not finite.
  GC_DEVICE static uint32_t signs(uint32_t pair) {
    return ((pair & kExponents) + kOverflow) & kSigns;
  }

  // Whether 16 bytes have an element that is not finite. An overflow out of a low element may make
  // the high one seem so too; that changes nothing.
  GC_DEVICE static bool any(const device::Bytes16& v) {
    uint32_t changed = 0;
    GC_UNROLL
    for (int i = 0; i < 4; ++i) changed |= (v.word[i] + kOverflow) ^ v.word[i];
    return (changed & kSigns) != 0;
  }

  // Zeroes the elements of 16 bytes of shared memory that are not finite. A loop, since it is code
  // that is hardly ever run in the midst of code that always is.
  GC_DEVICE static void clear(uint32_t address) {
    GC_NO_UNROLL
    for (int i = 0; i < 16; i += 4) {
      const uint32_t pair = device::load_shared_4(address + i);
      device::store_shared_4(address + i, pair & ~((signs(pair) >> 15) * 0xffffu));
    }
  }
};

// Brings the input of one step after the other into a ring of stages. Padding is written as zeros
// by the same copies.
template <class Traits>
class InputStream {
  using Map = WalkMap<Traits::kWalk>;
  using T = typename Traits::T;

 public:
  GC_DEVICE InputStream(const RowstreamArgs& args, const BlockWork& work, uint32_t stages)
      : args_(args),
        work_(work),
        steps_left_(work.tiles * work.steps_per_tile()),
        step_(work.steps.begin),
        images_left_(work.images_left) {
    const int plane = device::thread_index() % Traits::kPlanes;
    const int first_slot = device::thread_index() / Traits::kPlanes;
    const int channel = work.channel + plane * 8;
    row_ = static_cast<const char*>(args.input) +
           int64_t(work.image) * args.input_h * args.input_row_bytes +
           Map::input_row(args, step_, 0) * args.input_row_bytes;
    ring_begin_ = stages + plane * Traits::kInputPlaneBytes + first_slot * 16;
    target_ = ring_begin_;
    GC_UNROLL
    for (int i = 0; i < Traits::kPerThread; ++i) {
      const Pixel pixel = pixel_of_slot(args, first_slot + i * Traits::kSlotStep);
      const bool wanted = pixel.in_tile && channel < args.channels;
      const int image = wanted ? pixel.image : 0;  // beyond the tile the offset might overflow
      const int even = Map::input_column(args, work.slot + pixel.slot, 0);
      offset_[i] = 2 * ((image * args.input_h * args.input_w + even) * args.channels + channel);
      GC_UNROLL
      for (int run = 0; run < Traits::kRuns; ++run) {
        const int column = Map::input_column(args, work.slot + pixel.slot, run);
        const bool used = pixel.slot + run < args.plan.strip + Traits::kHalo;
        const bool inside = wanted && used && column >= 0 && column < args.input_w;
        image_[run][i] = inside ? pixel.image : kNoImage;
      }
    }
  }

  // Fills the ring but for one stage, which the first step's prefetch() fills.
  GC_DEVICE void start(uint32_t stages) {
    clear_halo(stages);
    GC_UNROLL
    for (int i = 0; i < Traits::kStages - 1; ++i) prefetch();
  }

  // Starts the copies of the next step, as a group of its own.
  GC_DEVICE void prefetch() {
    GC_UNROLL
    for (int row = 0; row < Traits::kRows; ++row) {
      const int input_row = Map::input_row(args_, step_, row);
      const bool exists = steps_left_ > 0 && input_row >= 0 && input_row < args_.input_h;
      const int images = exists ? images_left_ : 0;
      GC_UNROLL
      for (int i = 0; i < Traits::kPerThread; ++i) {
        GC_UNROLL
        for (int run = 0; run < Traits::kRuns; ++run) {
          device::cp_async_16(
              target_ + place(row, run, i),
              row_ + row * args_.input_row_bytes + offset_[i] + run * 2 * args_.channels,
              image_[run][i] < images);
        }
      }
    }
    device::cp_async_commit();
    advance();
  }

  // Zeroes what is not finite among what this thread has brought into the stage at `stage` bytes
  // from the first, and tells whether something was.
  GC_DEVICE bool clear_nonfinite_of(uint32_t stage) const {
    bool found = false;
    GC_UNROLL
    for (int row = 0; row < Traits::kRows; ++row) {
      GC_UNROLL
      for (int i = 0; i < Traits::kPerThread; ++i) {
        GC_UNROLL
        for (int run = 0; run < Traits::kRuns; ++run) {
          const uint32_t address = ring_begin_ + stage + place(row, run, i);
          found |= Nonfinite<T>::any(device::load_shared_16(address));
        }
      }
    }
    if (!found) return false;
    GC_NO_UNROLL
    for (int row = 0; row < Traits::kRows; ++row) {
      GC_NO_UNROLL
      for (int i = 0; i < Traits::kPerThread; ++i) {
        GC_NO_UNROLL
        for (int run = 0; run < Traits::kRuns; ++run) {
          Nonfinite<T>::clear(ring_begin_ + stage + place(row, run, i));
        }
      }
    }
    return true;
  }

 private:
  // Zeroes the slots past those that prefetch() writes, in all stages.
  GC_DEVICE void clear_halo(uint32_t stages) const {
    constexpr int kPlanesInAll = Traits::kStages * Traits::kRows * Traits::kPlanes;
    for (int i = device::thread_index(); i < kPlanesInAll * Traits::kHalo; i += Traits::kThreads) {
      const uint32_t plane = stages + i / Traits::kHalo * Traits::kInputPlaneBytes;
      device::store_shared_16(plane + (Traits::kSlots + i % Traits::kHalo) * 16, {});
    }
  }

  GC_DEVICE static constexpr uint32_t place(int row, int run, int i) {
    return row * Traits::kInputRowBytes + run * Traits::kOddRunBytes + i * Traits::kSlotStep * 16;
  }

  GC_DEVICE void advance() {
    target_ += Traits::kStageBytes;
    if (target_ == ring_begin_ + Traits::kRingBytes) target_ = ring_begin_;
    --steps_left_;
    row_ += Traits::kRows * args_.input_row_bytes;
    if (++step_ == work_.steps.end) {
      step_ = work_.steps.begin;
      row_ +=
          args_.input_tile_bytes - work_.steps_per_tile() * Traits::kRows * args_.input_row_bytes;
      images_left_ -= args_.plan.images;
    }
  }

  const RowstreamArgs& args_;
  const BlockWork& work_;
  const char* row_;  // of the next step, in the tile's first image
  int steps_left_;
  int step_;
  int images_left_;
  uint32_t ring_begin_, target_;  // this thread's first slot, in the first and in the next stage
  int32_t offset_[Traits::kPerThread];  // from row_ to the run of even columns
  int image_[Traits::kRuns][Traits::kPerThread];
};

// Takes one of the rows of the finished lines out of shared memory, in the order in which they were
// finished.
template <class Traits>
class OutputStream {
  using Map = WalkMap<Traits::kWalk>;

 public:
  // `lines` is the address of the row in the first of the buffered lines.
  GC_DEVICE OutputStream(const RowstreamArgs& args, const BlockWork& work, uint32_t lines,
                         int row = 0)
      : args_(args),
        range_(Map::lines_with(args, work.line, work.line_end, row)),
        line_(range_.begin),
        images_left_(work.images_left) {
    const int plane = device::thread_index() % Traits::kPlanes;
    const int first_slot = device::thread_index() / Traits::kPlanes;
    const int channel = work.channel + plane * 8;
    row_ = static_cast<char*>(args.output) +
           int64_t(work.image) * args.output_h * args.output_row_bytes +
           Map::output_row(args, line_, row) * args.output_row_bytes;
    source_ = lines + plane * Traits::kOutputPlaneBytes + first_slot * 16;
    GC_UNROLL
    for (int i = 0; i < Traits::kPerThread; ++i) {
      const Pixel pixel = pixel_of_slot(args, first_slot + i * Traits::kSlotStep);
      const bool wanted = pixel.in_tile && pixel.slot < args.plan.strip && channel < args.channels;
      const int image = wanted ? pixel.image : 0;
      const int even = Map::output_column(args, work.slot + pixel.slot, 0);
      offset_[i] = 2 * ((image * args.output_h * args.output_w + even) * args.channels + channel);
      GC_UNROLL
      for (int run = 0; run < Traits::kOutputRuns; ++run) {
        const int column = Map::output_column(args, work.slot + pixel.slot, run);
        const bool inside = wanted && column >= 0 && column < args.output_w;
        image_[run][i] = inside ? pixel.image : kNoImage;
      }
    }
  }

  // Lines of the block that have the row, in each tile.
  GC_DEVICE LineRange range() const { return range_; }

  // Stores the row of the line that lies `buffer` bytes after the first.
  GC_DEVICE void store(uint32_t buffer) {
    GC_UNROLL
    for (int i = 0; i < Traits::kPerThread; ++i) {
      GC_UNROLL
      for (int run = 0; run < Traits::kOutputRuns; ++run) {
        const uint32_t source = source_ + buffer + run * Traits::kOutputRunBytes;
        const device::Bytes16 pixel = device::load_shared_16(source + i * Traits::kSlotStep * 16);
        device::store_global_16(row_ + offset_[i] + run * 2 * args_.channels, pixel,
                                image_[run][i] < images_left_);
      }
    }
    advance();
  }

  // Starts to bring a line of the epilogue's residual, which lies as the output does, to `buffer`
  // bytes after the first line in shared memory: that of the next line to be stored or, if it is
  // `behind` that, of the second. A group of copies, empty where no line is wanted. This thread
  // must have stored what was there.
  GC_DEVICE void prefetch_residual(uint32_t buffer, bool wanted, bool behind) const {
    static_assert(Traits::kOutputRuns == 1 && Traits::kOutputRows == 1);
    if (wanted) {
      OutputStream at = *this;
      if (behind) at.advance();
      const int64_t distance =
          static_cast<const char*>(args_.epilogue.residual) - static_cast<char*>(args_.output);
      GC_UNROLL
      for (int i = 0; i < Traits::kPerThread; ++i) {
        device::cp_async_16(source_ + buffer + i * Traits::kSlotStep * 16,
                            at.row_ + offset_[i] + distance, image_[0][i] < at.images_left_);
      }
    }
    device::cp_async_commit();
  }

 private:
  GC_DEVICE void advance() {
    row_ += Traits::kOutputRows * args_.output_row_bytes;
    if (++line_ == range_.end) {
      line_ = range_.begin;
      row_ += args_.output_tile_bytes -
              (range_.end - range_.begin) * Traits::kOutputRows * args_.output_row_bytes;
      images_left_ -= args_.plan.images;
    }
  }

  const RowstreamArgs& args_;
  const LineRange range_;
  char* row_;  // of the next line, in the tile's first image
  int line_;
  int images_left_;
  uint32_t source_;
  int32_t offset_[Traits::kPerThread];  // from row_ to the run of even columns
  int image_[Traits::kOutputRuns][Traits::kPerThread];
};

}  // namespace grouped_conv::cuda
