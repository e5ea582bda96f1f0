// What fprop does to a float sum before it is rounded, once, and stored:
//
//   y = act(scale[k] * sum + shift[k] + residual)
//
// with the bias in the sum already, and act the maximum with zero or nothing. What is not asked for
// is a scale of 1, a shift of 0 and a floor of minus infinity: one body for all.
#pragma once

#include "cuda/device/device.h"
#include "cuda/launch.h"

namespace grouped_conv::cuda {

// scale and shift of one output channel.
struct ChannelFactors {
  float scale, shift;

  ChannelFactors() = default;
  // Of no channel where it is not active: 1 and 0.
  GC_DEVICE ChannelFactors(const Epilogue& e, int channel, bool active) {
    const bool scaled = e.scale != nullptr && active;
    const uint32_t bits =
        device::load_global_4(static_cast<const float*>(e.scale) + channel, scaled);
    scale = scaled ? device::float_of(bits) : 1.f;
    shift = device::float_of(device::load_global_4(static_cast<const float*>(e.shift) + channel,
                                                   e.shift != nullptr && active));
  }
};

// The activation is the maximum with this.
GC_DEVICE float activation_floor(const Epilogue& e) {
  return e.relu ? 0.f : device::float_of(0xff800000u);
}

// NaN stays NaN, as in torch.relu.
GC_DEVICE float activate(float value, float floor) { return value < floor ? floor : value; }

GC_DEVICE float finish(float sum, const ChannelFactors& factors, float floor) {
  return activate(device::multiply_add(sum, factors.scale, factors.shift), floor);
}

GC_DEVICE float finish(float sum, const ChannelFactors& factors, float residual, float floor) {
  return activate(device::multiply_add(sum, factors.scale, factors.shift) + residual, floor);
}

}  // namespace grouped_conv::cuda
