// What fprop's row-streaming kernel does beside the convolution, chosen at compile time (Tail): the
// epilogue of fprop_affine on the sums, or the statistics of fprop_stats on the finished lines.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/rowstream_math.cuh"

namespace grouped_conv::cuda {

struct NoTail {};

// The epilogue of a lane's output channels, in registers for the whole walk.
template <class Traits>
struct LaneEpilogue {
  ChannelFactors factors[Traits::kSlabs][2];
  float floor;

  GC_DEVICE LaneEpilogue(const RowstreamArgs& args, int first_channel)
      : floor(activation_floor(args.epilogue)) {
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      GC_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int channel = first_channel + slab * 8 + device::lane_index() % 4 * 2 + i;
        factors[slab][i] = ChannelFactors(args.epilogue, channel, channel < args.channels);
      }
    }
  }

  // put() of what the sums come to.
  GC_DEVICE void put(const SlabAccumulators<Traits>& sum, uint32_t address) const {
    SlabAccumulators<Traits> finished;
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      GC_UNROLL
      for (int i = 0; i < 4; ++i) {
        finished[slab][i] = finish(sum[slab][i], factors[slab][i % 2], floor);
      }
    }
    ::grouped_conv::cuda::put<Traits>(finished, address);
  }

  // Of one element that is recomputed.
  GC_DEVICE static float exact(const RowstreamArgs& args, float sum, int channel, int64_t) {
    return finish(sum, ChannelFactors(args.epilogue, channel, true),
                  activation_floor(args.epilogue));
  }
};

// The epilogue with a residual, whose lines have come to where those of output go: a lane finds
// what is added to its sums where it puts them.
template <class Traits>
struct ResidualEpilogue : LaneEpilogue<Traits> {
  using T = typename Traits::T;
  using LaneEpilogue<Traits>::LaneEpilogue;

  // Where the sums are not finished, there is no line of the residual.
  GC_DEVICE void put(const SlabAccumulators<Traits>& sum, uint32_t address, bool has_line) const {
    SlabAccumulators<Traits> finished;
    GC_UNROLL
    for (int slab = 0; slab < Traits::kSlabs; ++slab) {
      const uint32_t plane = address + slab * Traits::kOutputPlaneBytes;
      float added[4];
      device::unpack2<T>(device::load_shared_4(plane, has_line), added[0], added[1]);
      device::unpack2<T>(device::load_shared_4(plane + 8 * 16, has_line), added[2], added[3]);
      GC_UNROLL
      for (int i = 0; i < 4; ++i) {
        finished[slab][i] = finish(sum[slab][i], this->factors[slab][i % 2], added[i], this->floor);
      }
    }
    ::grouped_conv::cuda::put<Traits>(finished, address);
  }

  GC_DEVICE static float exact(const RowstreamArgs& args, float sum, int channel, int64_t offset) {
    const uint16_t added =
        device::load_global_2(static_cast<const char*>(args.epilogue.residual) + offset);
    return finish(sum, ChannelFactors(args.epilogue, channel, true), device::to_float<T>(added),
                  activation_floor(args.epilogue));
  }
};

// Sums over what a block stores: of each channel, and of its square, both about the value of the
// block's first pixel, so that a mean much larger than the deviation costs no accuracy. A thread
// takes two neighbouring channels of every kStep-th slot of a finished line in shared memory. The
// sums of the threads are added in a fixed order and leave as mean and squared deviations of the
// block (StatisticsRows); statistics.cuh combines the blocks.
template <class Traits>
class LineStatistics {
  using T = typename Traits::T;
  static constexpr int kPairs = 4 * Traits::kPlanes;
  static constexpr int kStep = Traits::kThreads / kPairs;
  static constexpr int kLoads = Traits::kSlots / kStep;
  static_assert(Traits::kThreads % kPairs == 0 && Traits::kSlots % kStep == 0);
  static_assert(kLoads <= 32, "a bit for each");
  static_assert(20 * Traits::kThreads <= Traits::kRingBytes, "the sums take the ring's place");

 public:
  GC_DEVICE LineStatistics(const RowstreamArgs& args, const BlockWork& work, uint32_t lines)
      : lines_of_tile_(work.line_end - work.line), lines_left_(work.tiles * lines_of_tile_) {
    const int pair = device::thread_index() % kPairs;
    const int first_slot = device::thread_index() / kPairs;
    first_ = lines + pair / 4 * Traits::kOutputPlaneBytes + pair % 4 * 4;
    own_ = first_ + first_slot * 16;
    const int images_of_last = work.images_left - (work.tiles - 1) * args.plan.images;
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const Pixel pixel = pixel_of_slot(args, first_slot + i * kStep);
      const bool inside =
          pixel.in_tile && pixel.slot < args.plan.strip && work.slot + pixel.slot < args.output_w;
      all_ |= uint32_t(inside) << i;
      last_ |= uint32_t(inside && pixel.image < images_of_last) << i;
    }
  }

  // Adds the line that lies `buffer` bytes after the first.
  GC_DEVICE void add(uint32_t buffer) {
    if (is_first_) {
      device::unpack2<T>(device::load_shared_4(first_ + buffer), pivot_[0], pivot_[1]);
      is_first_ = false;
    }
    const uint32_t wanted = lines_left_ <= lines_of_tile_ ? last_ : all_;
    --lines_left_;
    GC_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const bool active = (wanted >> i & 1) != 0;
      float value[2];
      device::unpack2<T>(device::load_shared_4(own_ + buffer + i * kStep * 16, active), value[0],
                         value[1]);
      GC_UNROLL
      for (int k = 0; k < 2; ++k) {
        const float d = active ? value[k] - pivot_[k] : 0.f;
        sum_[k] += d;
        squares_[k] = device::multiply_add(d, d, squares_[k]);
      }
    }
  }

  // After the walk: the partial results of the block. `shared` is memory that nobody uses any more;
  // bit k of `nonfinite` says that channel k of the thread's plane (as in OutputStream) has an
  // element that is not finite and that the lines did not show.
  GC_DEVICE void store(const RowstreamArgs& args, const BlockWork& work, uint32_t shared,
                       uint32_t nonfinite) const {
    const int thread = device::thread_index();
    const uint32_t flags = shared + 16 * Traits::kThreads;
    const device::Bytes16 sums{{device::bits_of(sum_[0]), device::bits_of(sum_[1]),
                                device::bits_of(squares_[0]), device::bits_of(squares_[1])}};
    device::store_shared_16(shared + 16 * thread, sums);
    device::store_shared_4(flags + 4 * thread, nonfinite);
    device::sync_threads();

    const int channel = work.channel + 2 * thread;
    const bool active = thread < kPairs && channel < args.channels;
    float total[2] = {}, squares[2] = {};
    GC_NO_UNROLL
    for (int j = 0; j < kStep; ++j) {
      const device::Bytes16 part =
          device::load_shared_16(shared + 16 * (j * kPairs + thread), active);
      GC_UNROLL
      for (int k = 0; k < 2; ++k) {
        total[k] += device::float_of(part.word[k]);
        squares[k] += device::float_of(part.word[2 + k]);
      }
    }
    uint32_t bad = 0;
    GC_NO_UNROLL
    for (int j = 0; j < Traits::kSlotStep; ++j) {
      bad |= device::load_shared_4(flags + 4 * (j * Traits::kPlanes + thread / 4), active);
    }
    const float count = float(pixels(args, work));
    uint32_t mean_bits[2], squares_bits[2];
    GC_UNROLL
    for (int k = 0; k < 2; ++k) {
      const float shift = total[k] / count;
      const bool is_bad = (bad >> (thread % 4 * 2 + k) & 1) != 0;
      mean_bits[k] = is_bad ? kNan : device::bits_of(pivot_[k] + shift);
      squares_bits[k] =
          is_bad ? kNan : device::bits_of(device::multiply_add(-total[k], shift, squares[k]));
    }
    const int row = device::block_index_x() / args.plan.channel_blocks;
    const int64_t at = int64_t(row) * args.channels + channel;
    device::store_global_8(args.statistics.mean + at, {{mean_bits[0], mean_bits[1]}}, active);
    device::store_global_8(args.statistics.squares + at, {{squares_bits[0], squares_bits[1]}},
                           active);
    device::store_global_4(args.statistics.count + row, device::bits_of(count),
                           thread == 0 && work.channel == 0);
  }

 private:
  static constexpr uint32_t kNan = 0x7fffffffu;

  GC_DEVICE static int pixels(const RowstreamArgs& args, const BlockWork& work) {
    const int whole = args.plan.images * work.tiles;
    const int images = whole < work.images_left ? whole : work.images_left;
    const int beyond = args.output_w - work.slot;
    const int columns = args.plan.strip < beyond ? args.plan.strip : beyond;
    return images * columns * (work.line_end - work.line);
  }

  uint32_t first_, own_;  // in the first of the buffered lines: of slot 0, and the thread's first
  uint32_t all_ = 0, last_ = 0;  // which of the thread's slots are pixels, and in the last tile
  int lines_of_tile_, lines_left_;
  bool is_first_ = true;
  float pivot_[2] = {}, sum_[2] = {}, squares_[2] = {};
};

}  // namespace grouped_conv::cuda
