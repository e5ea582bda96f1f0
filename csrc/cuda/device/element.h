// The 16-bit element types, and their conversion from and to float; TF32. Two elements of 16 bits
// share a register, the first in the low half.
#pragma once

#include <cmath>

#include "cuda/device/platform.h"

namespace grouped_conv::cuda {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

namespace device {

#if GC_PTX

GC_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
GC_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// a * b + c, rounded once.
GC_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// Rounds to nearest even; overflow gives infinity, NaN the canonical 0x7fff.
template <typename T>
GC_DEVICE uint32_t pack2(float low, float high);
template <>
GC_DEVICE uint32_t pack2<Float16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
GC_DEVICE uint32_t pack2<BFloat16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// TF32, as bits of a float: 10 bits of mantissa, to nearest, ties away from zero; overflow gives
// infinity, NaN the canonical 0x7fffffff.
GC_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

template <typename T>
GC_DEVICE float to_float(uint16_t bits);
template <>
GC_DEVICE float to_float<Float16>(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
template <>
GC_DEVICE float to_float<BFloat16>(uint16_t bits) {
  return float_of(uint32_t(bits) << 16);
}

#else

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

template <typename T>
uint32_t pack2(float low, float high);
template <>
inline uint32_t pack2<Float16>(float low, float high) {
  return ::simt::to_float16(low) | uint32_t(::simt::to_float16(high)) << 16;
}
template <>
inline uint32_t pack2<BFloat16>(float low, float high) {
  return ::simt::to_bfloat16(low) | uint32_t(::simt::to_bfloat16(high)) << 16;
}

inline uint32_t to_tf32(float value) { return ::simt::to_tf32(value); }

template <typename T>
float to_float(uint16_t bits);
template <>
inline float to_float<Float16>(uint16_t bits) {
  return ::simt::from_float16(bits);
}
template <>
inline float to_float<BFloat16>(uint16_t bits) {
  return ::simt::from_bfloat16(bits);
}

#endif

// The two elements of a register.
template <typename T>
GC_DEVICE void unpack2(uint32_t packed, float& low, float& high) {
  low = to_float<T>(uint16_t(packed));
  high = to_float<T>(uint16_t(packed >> 16));
}

// One element, rounded as by pack2.
template <typename T>
GC_DEVICE uint16_t pack1(float value) {
  return uint16_t(pack2<T>(value, 0.f));
}

}  // namespace device
}  // namespace grouped_conv::cuda
