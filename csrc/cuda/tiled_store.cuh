// From the sums of a block, in shared memory, to its output: the epilogue, rounding, and stores
// along the channels (whole units) or along the pixels (any strides). And the way out where a sum
// is not finite.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/tiled_math.cuh"

namespace grouped_conv::cuda {

// One element as a float; zero where it is not active.
template <class Traits>
GC_DEVICE float load_element(const void* data, int64_t index, bool active = true) {
  const char* source = static_cast<const char*>(data) + index * Traits::kElementBytes;
  if constexpr (Traits::kElementBytes == 4) {
    return device::float_of(device::load_global_4(source, active));
  } else {
    using T = typename TiledElement<Traits::kMath>::Type;
    return device::to_float<T>(device::load_global_2(source, active));
  }
}

// Rounds values to words of elements.
template <class Traits>
GC_DEVICE uint32_t pack_word(const float* values, int word) {
  if constexpr (Traits::kElementBytes == 4) {
    return device::bits_of(values[word]);
  } else {
    using T = typename TiledElement<Traits::kMath>::Type;
    return device::pack2<T>(values[2 * word], values[2 * word + 1]);
  }
}

// A factor as it was multiplied.
template <class Traits>
GC_DEVICE float load_factor(const void* data, int64_t index) {
  const float value = load_element<Traits>(data, index);
  return Traits::kMath == TiledMath::kTf32 ? device::float_of(device::to_tf32(value)) : value;
}

// A sum by the definition of the convolution, over the taps that exist: the padding, which the tile
// has as zeros, is not multiplied. On FMA units a finite one has the bits that it would have there.
template <class Traits>
GC_DEVICE float tiled_exact_sum(const TiledArgs& args, const TiledBlock& block, const RowInput& row,
                                int group, int channel) {
  const TiledWeight& order = args.order;
  const int64_t weights = group * order.by_group + channel * order.by_out;
  float sum = 0.f, chain = 0.f;
  int chains = 0;
  GC_NO_UNROLL
  for (int tap = 0; tap < block.taps_h.count * block.taps_w.count; ++tap) {
    const int tap_h = tap / block.taps_w.count, tap_w = tap % block.taps_w.count;
    const int by_h = tap_h * args.h.delta, by_w = tap_w * args.w.delta;
    if (uint32_t(row.h + by_h) >= uint32_t(args.h.input) ||
        uint32_t(row.w + by_w) >= uint32_t(args.w.input)) {
      continue;
    }
    const int64_t input = row.offset + by_h * args.input_strides[2] + by_w * args.input_strides[3];
    const int r = block.taps_h.first + tap_h * args.h.tap_step;
    const int s = block.taps_w.first + tap_w * args.w.tap_step;
    GC_NO_UNROLL
    for (int c = 0; c < args.in_channels; ++c) {
      const int64_t weight = weights + c * order.by_in + r * order.by_r + s * order.by_s;
      const int unit = tap * args.units + c / Traits::kUnit;
      if (const int index = unit / (kChunksOfChain * kChunkUnits); index != chains) {
        sum += chain;
        chain = 0.f;
        chains = index;
      }
      chain =
          device::multiply_add(load_factor<Traits>(args.input, input + c * args.input_strides[1]),
                               load_factor<Traits>(args.weight, weight), chain);
    }
  }
  return sum + chain;
}

// Writes anew the sums of the tile that are not finite: one scalar loop for each, since this is the
// way of a computation that has failed already.
template <class Traits>
GC_DEVICE void recompute_nonfinite_sums(const TiledArgs& args, const TiledBlock& block,
                                        uint32_t table, uint32_t tile) {
  const int index = device::thread_index();
  const RowInput row = input_of_row(table, index);
  const bool has_output = output_of_row(table, index) >= 0;
  const int first = block.channel_tile * args.tile_channels;
  GC_NO_UNROLL
  for (int n = 0; n < args.tile_channels; ++n) {
    const uint32_t address = tile + uint32_t(4 * (index * Traits::kPitch + n));
    const uint32_t exponent = device::load_shared_4(address) & 0x7f800000u;
    if (exponent != 0x7f800000u || !has_output || first + n >= args.out_channels) continue;
    device::store_shared_4(
        address, device::bits_of(tiled_exact_sum<Traits>(
                     args, block, row, block.group + index / Traits::kPixels, first + n)));
  }
}

// What becomes of the sum of a channel of y, counted over all groups.
template <class Traits>
GC_DEVICE float finished(const TiledArgs& args, float sum, int channel, float residual,
                         bool active) {
  const int64_t bias = channel * args.bias_stride;
  sum += load_element<Traits>(args.bias, bias, args.bias != nullptr && active);
  const ChannelFactors factors(args.epilogue, channel, active);
  return finish(sum, factors, residual, activation_floor(args.epilogue));
}

GC_DEVICE bool has_epilogue(const TiledArgs& args) {
  const Epilogue& e = args.epilogue;
  return args.bias != nullptr || e.scale != nullptr || e.shift != nullptr ||
         e.residual != nullptr || e.relu;
}

// Stores units of 16 bytes, neighbouring lanes those of a pixel.
template <class Traits>
GC_DEVICE void store_units(const TiledArgs& args, const TiledBlock& block, uint32_t table,
                           uint32_t tile) {
  constexpr int kUnit = Traits::kUnit;
  const bool epilogue = has_epilogue(args);
  GC_NO_UNROLL
  for (int step = 0; step < args.output_units.divisor; ++step) {
    const int index = device::thread_index() + step * kTiledThreads;
    const int group = index % Traits::kGroups;
    const int pixel = divide(args.output_units, index / Traits::kGroups);
    const int unit = index / Traits::kGroups - pixel * args.output_units.divisor;
    const int row = group * Traits::kPixels + pixel;
    const int channel = block.channel_tile * args.tile_channels + unit * kUnit;
    const int64_t output = output_of_row(table, row);
    const bool active = output >= 0 && channel < args.out_channels;
    const int64_t offset = (output + unit * kUnit) * Traits::kElementBytes;
    float values[kUnit];
    GC_UNROLL
    for (int i = 0; i < kUnit; i += 4) {
      const device::Bytes16 four =
          device::load_shared_16(tile + uint32_t(4 * (row * Traits::kPitch + unit * kUnit + i)));
      GC_UNROLL
      for (int j = 0; j < 4; ++j) values[i + j] = device::float_of(four.word[j]);
    }
    if (epilogue) {
      const void* residual = args.epilogue.residual;
      GC_UNROLL
      for (int i = 0; i < kUnit; ++i) {
        const float more = load_element<Traits>(residual, output + unit * kUnit + i,
                                                residual != nullptr && active);
        values[i] = finished<Traits>(
            args, values[i], (block.group + group) * args.out_channels + channel + i, more, active);
      }
    }
    device::Bytes16 packed;
    GC_UNROLL
    for (int i = 0; i < 4; ++i) packed.word[i] = pack_word<Traits>(values, i);
    device::store_global_16(static_cast<char*>(args.output) + offset, packed, active);
  }
}

// Stores element by element, neighbouring lanes those of neighbouring pixels.
template <class Traits>
GC_DEVICE void store_rows(const TiledArgs& args, const TiledBlock& block, uint32_t table,
                          uint32_t tile) {
  const bool epilogue = has_epilogue(args);
  const int row = device::thread_index();
  const int64_t output = output_of_row(table, row);
  const int first = block.channel_tile * args.tile_channels;
  const int group = block.group + row / Traits::kPixels;
  const int channels = args.out_channels - first < args.tile_channels ? args.out_channels - first
                                                                      : args.tile_channels;
  GC_NO_UNROLL
  for (int n = 0; n < channels; ++n) {
    float value =
        device::float_of(device::load_shared_4(tile + uint32_t(4 * (row * Traits::kPitch + n))));
    const int64_t index = output + n * args.output_strides[1];
    const bool active = output >= 0;
    if (epilogue) {
      const void* residual = args.epilogue.residual;
      const float more = load_element<Traits>(residual, index, residual != nullptr && active);
      value = finished<Traits>(args, value, group * args.out_channels + first + n, more, active);
    }
    char* target = static_cast<char*>(args.output) + index * Traits::kElementBytes;
    if constexpr (Traits::kElementBytes == 4) {
      device::store_global_4(target, device::bits_of(value), active);
    } else {
      using T = typename TiledElement<Traits::kMath>::Type;
      device::store_global_2(target, device::pack1<T>(value), active);
    }
  }
}

}  // namespace grouped_conv::cuda
