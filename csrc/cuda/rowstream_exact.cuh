// Outputs that meet an infinity or a NaN, recomputed without tensor cores.
//
// Multiplying by zero keeps finite numbers apart, but not these: the zeros of a block-diagonal
// weight tile would carry them into a neighbouring group, the zeros of the padding into outputs
// whose tap lies outside the image. So non-finite weights, and non-finite input where groups share
// a slab, are zeroed in shared memory before the tensor cores see them. That leaves every output
// that meets none of them as it must be, to the last bit. The others are written anew after the
// walk, by the definition of the convolution: one scalar loop for each, since this is the way of a
// computation that has failed already.
#pragma once

#include "cuda/rowstream_io.cuh"

namespace grouped_conv::cuda {

// The row of input that a tap r of an output row meets (columns likewise); negative: none.
template <Walk kWalk>
GC_DEVICE int input_of_tap(int output, int tap, int pad) {
  if (kWalk == Walk::kUnitStride) return output + tap - pad;
  if (kWalk == Walk::kFpropStride2) return 2 * output + tap - pad;
  const int scaled = output + pad - tap;
  return scaled % 2 == 0 ? scaled / 2 : -1;
}

// Bytes from an image's first element to one of its elements, of a tensor of that height and width.
template <class Traits>
GC_DEVICE int64_t element_offset(const RowstreamArgs& args, int height, int width, int row,
                                 int column, int channel) {
  if constexpr (Traits::kPlanar) {
    return 2 * ((int64_t(channel) * height + row) * width + column);
  } else {
    return 2 * ((int64_t(row) * width + column) * args.channels + channel);
  }
}

struct ExactSum {
  float value;
  bool nonfinite_term;
};

// Output channel `channel` of one pixel; `image` is its image's input.
template <class Traits>
GC_DEVICE ExactSum exact_sum(const RowstreamArgs& args, const char* image, int row, int column,
                             int channel) {
  using T = typename Traits::T;
  constexpr int kCpg = Traits::kCpg;
  const int group = channel / kCpg;
  const char* weights =
      static_cast<const char*>(args.weight) +
      2 * (int64_t(group) * 9 * kCpg * kCpg + args.order.first + channel % kCpg * args.order.by_n);
  const char* bias = static_cast<const char*>(args.bias) + 2 * (channel * args.bias_stride);
  ExactSum sum{device::to_float<T>(device::load_global_2(bias, args.bias != nullptr)), false};
  GC_NO_UNROLL
  for (int tap = 0; tap < 9; ++tap) {
    const int h = input_of_tap<Traits::kWalk>(row, tap / 3, args.pad_h);
    const int w = input_of_tap<Traits::kWalk>(column, tap % 3, args.pad_w);
    if (h < 0 || h >= args.input_h || w < 0 || w >= args.input_w) continue;
    GC_NO_UNROLL
    for (int k = 0; k < kCpg; ++k) {
      const uint16_t a = device::load_global_2(
          image + element_offset<Traits>(args, args.input_h, args.input_w, h, w, group * kCpg + k));
      const uint16_t b =
          device::load_global_2(weights + 2 * (k * args.order.by_k + tap * args.order.by_tap));
      sum.value += device::to_float<T>(a) * device::to_float<T>(b);
      sum.nonfinite_term |= Nonfinite<T>::signs(a | uint32_t(b) << 16) != 0;
    }
  }
  return sum;
}

struct ExactValue {
  GC_DEVICE float operator()(const ExactSum& sum, int /*channel*/, int64_t /*offset*/) const {
    return sum.value;
  }
};

// Goes over the block's output; each thread over what it has stored itself. finish(sum, channel,
// offset) is what is stored, `offset` bytes behind the output's first element.
template <class Traits, typename Finish = ExactValue>
GC_DEVICE void recompute_nonfinite(const RowstreamArgs& args, const BlockWork& work,
                                   const Finish& finish = {}) {
  using Map = WalkMap<Traits::kWalk>;
  const int channel = work.channel + device::thread_index() % Traits::kPlanes * 8;
  if (channel >= args.channels) return;
  const int images = args.plan.images * work.tiles < work.images_left
                         ? args.plan.images * work.tiles
                         : work.images_left;
  const int first_slot = device::thread_index() / Traits::kPlanes;
  GC_NO_UNROLL
  for (int slot = first_slot; slot < Traits::kSlots; slot += Traits::kSlotStep) {
    const Pixel pixel = pixel_of_slot(args, slot);
    if (!pixel.in_tile || pixel.slot >= args.plan.strip) continue;
    GC_NO_UNROLL
    for (int i = pixel.image; i < images; i += args.plan.images) {
      const int64_t n = work.image + i;
      const char* input =
          static_cast<const char*>(args.input) + n * args.input_h * args.input_row_bytes;
      const int64_t output = n * args.output_h * args.output_row_bytes;
      const int rows = (work.line_end - work.line) * Traits::kOutputRows;
      GC_NO_UNROLL
      for (int j = 0; j < rows * Traits::kOutputRuns * 8; ++j) {
        const int c = channel + j % 8;
        const int run = j / 8 % Traits::kOutputRuns;
        const int index = j / 8 / Traits::kOutputRuns;
        const int column = Map::output_column(args, work.slot + pixel.slot, run);
        const int row = Map::output_row(args, work.line + index / Traits::kOutputRows,
                                        index % Traits::kOutputRows);
        if (row < 0 || row >= args.output_h || column < 0 || column >= args.output_w) continue;
        const ExactSum sum = exact_sum<Traits>(args, input, row, column, c);
        const int64_t offset =
            output + row * args.output_row_bytes + 2 * (int64_t(column) * args.channels + c);
        device::store_global_2(static_cast<char*>(args.output) + offset,
                               device::pack1<typename Traits::T>(finish(sum, c, offset)),
                               sum.nonfinite_term);
      }
    }
  }
}

}  // namespace grouped_conv::cuda
