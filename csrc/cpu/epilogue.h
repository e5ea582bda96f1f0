// The epilogue of fprop, y = act(scale[k] * sum + shift[k] + residual), on vectors of float32 sums
// on their way to y. scale and shift are applied where the lanes are channels; the residual where
// the vector has the order of y, in which the lanes may be pixels (NCHW); and the activation with
// whichever comes last. What is not asked for is a scale of 1, a shift of 0 and a floor of minus
// infinity, so there is one body for all of it.
#pragma once

#include <cmath>
#include <cstdint>

#include "elements.h"
#include "kernels.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

// scale and shift of kLanes neighbouring channels.
struct LaneFactors {
  alignas(64) float scale[Vec::kLanes];
  alignas(64) float shift[Vec::kLanes];

  void load(const Epilogue& e, int64_t first_channel, int lanes) {
    load(e.scale, first_channel, lanes, 1.0f, scale);
    load(e.shift, first_channel, lanes, 0.0f, shift);
  }
  Vec::Reg apply(Vec::Reg sum) const {
    return Vec::affine(sum, Vec::load(scale), Vec::load(shift));
  }

 private:
  static void load(const void* factors, int64_t first_channel, int lanes, float absent,
                   float (&dst)[Vec::kLanes]) {
    const auto* src = static_cast<const float*>(factors);
    for (int l = 0; l < Vec::kLanes; ++l) {
      dst[l] = src != nullptr && l < lanes ? src[first_channel + l] : absent;
    }
  }
};

// The activation is the maximum with this.
constexpr float kNoFloor = -INFINITY;
inline float activation_floor(const Epilogue& e) { return e.relu ? 0.0f : kNoFloor; }

// NaN stays NaN.
inline Vec::Reg activate(Vec::Reg v, float floor) { return Vec::max(Vec::broadcast(&floor), v); }

// Adds the residual to values whose first goes to element `at` of y, and activates the first n.
template <class E>
struct AddResidual {
  const typename E::T* residual;  // laid out as y
  float floor;

  Vec::Reg operator()(Vec::Reg v, int64_t at, int n) const {
    return activate(Vec::add(v, load_first<E>(residual + at, n)), floor);
  }
};

// Values that are ready for y.
struct Finished {
  Vec::Reg operator()(Vec::Reg v, int64_t, int) const { return v; }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
