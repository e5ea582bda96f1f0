// Vector interface over compiler vectors: 4 float lanes, which are SSE registers on x86-64 and NEON
// registers on Arm. Also the statement of the contract that every vec_*.h fulfils:
//
//   Reg            kLanes floats;  zero, broadcast, load, store, stream (aligned, and non-temporal
//                  if there is such a store), add, sub, fma(a, b, c) = a * b + c, and for plain
//                  floats whatever a word is: affine(v, scale, shift) = v * scale + shift, max(a,
//                  b), which is b where either is NaN
//   *_partial      the first n lanes only, 0 <= n <= kLanes; memory beyond them is not touched, and
//                  loaded lanes beyond them are zero
//   Index          lane numbers for permute: group_base(g) holds l / g * g in lane l, next adds one
//   or a number permute(p, i)  lane l <- p[i[l]]; reads kLanes floats at p
//   *_bf16, *_f16  conversion from and to 16-bit floats, to nearest even
//   transpose(r)   lane j of r[i] <-> lane i of r[j]
//   kTileRows         output rows of a register tile
//   kWgradChannels    input channels that wgrad accumulates at once
//   kRunWords         most words of a group that fprop and dgrad sum in one chain; fewer
//                     where fma rounds twice
//   kChannelsPerWord  input channels in one 32-bit word of a strip: 1 (float32), or 2 (bfloat16,
//                     of which fma adds two products to each lane: pairs.h)
#pragma once

#include <cstdint>
#include <cstring>

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

struct Vec {
  static constexpr int kLanes = 4;
  static constexpr int kChannelsPerWord = 1;
#if defined(__aarch64__)
  static constexpr int kTileRows = 2;
  static constexpr int kWgradChannels = 4;
  static constexpr int kRunWords = 16;
#else
  static constexpr int kTileRows = 1;
  static constexpr int kWgradChannels = 4;
  static constexpr int kRunWords = 8;
#endif
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Index __attribute__((vector_size(16)));

  static Reg zero() { return Reg{}; }
  static Reg broadcast(const float* p) { return Reg{*p, *p, *p, *p}; }
  static Reg load(const float* p) {
    Reg v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Reg load_partial(const float* p, int n) {
    Reg v{};
    for (int l = 0; l < n; ++l) v[l] = p[l];
    return v;
  }
  static void store(float* p, Reg v) { std::memcpy(p, &v, sizeof(v)); }
  static void store_partial(float* p, Reg v, int n) {
    for (int l = 0; l < n; ++l) p[l] = v[l];
  }
  static void stream(float* p, Reg v) { store(p, v); }
  static void fence() {}
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg affine(Reg v, Reg scale, Reg shift) { return v * scale + shift; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }

  static Index group_base(int channels_per_group) {
    Index i{};
    for (int l = 0; l < kLanes; ++l) i[l] = l / channels_per_group * channels_per_group;
    return i;
  }
  static Index next(Index i, int by = 1) { return i + by; }
  static Reg permute(const float* p, Index i) { return Reg{p[i[0]], p[i[1]], p[i[2]], p[i[3]]}; }

  static Reg load_bf16(const uint16_t* p) { return load_bf16_partial(p, kLanes); }
  static Reg load_bf16_partial(const uint16_t* p, int n) {
    Reg v{};
    for (int l = 0; l < n; ++l) v[l] = from_bits(static_cast<uint32_t>(p[l]) << 16);
    return v;
  }
  static void store_bf16(uint16_t* p, Reg v) { store_bf16_partial(p, v, kLanes); }
  static void store_bf16_partial(uint16_t* p, Reg v, int n) {
    for (int l = 0; l < n; ++l) p[l] = narrow_bf16(v[l]);
  }
  static Reg load_f16(const uint16_t* p) { return load_f16_partial(p, kLanes); }
  static Reg load_f16_partial(const uint16_t* p, int n) {
    Reg v{};
    for (int l = 0; l < n; ++l) v[l] = widen_f16(p[l]);
    return v;
  }
  static void store_f16(uint16_t* p, Reg v) { store_f16_partial(p, v, kLanes); }
  static void store_f16_partial(uint16_t* p, Reg v, int n) {
    for (int l = 0; l < n; ++l) p[l] = narrow_f16(v[l]);
  }

  static void transpose(Reg (&r)[kLanes]) {
    const Reg a = r[0], b = r[1], c = r[2], d = r[3];
    for (int l = 0; l < kLanes; ++l) r[l] = Reg{a[l], b[l], c[l], d[l]};
  }

 private:
  static float from_bits(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    return f;
  }
  static uint32_t to_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof(bits));
    return bits;
  }
  static uint16_t narrow_bf16(float f) {
    const uint32_t bits = to_bits(f);
    if (f != f) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  // Rebias by multiplication: shifting an f16 pattern into place leaves the exponent 112 too small.
  static float widen_f16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
    const float scaled = from_bits(magnitude) * from_bits(0x77800000u);
    const uint32_t bits = (h & 0x7c00u) == 0x7c00u ? (magnitude | 0x7f800000u) : to_bits(scaled);
    return from_bits(sign | bits);
  }
  static uint16_t narrow_f16(float f) {
    const uint32_t bits = to_bits(f);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 aligns the mantissa so that the hardware rounds it to nearest even.
      const float aligned = from_bits(magnitude) + 0.5f;
      return sign | static_cast<uint16_t>(to_bits(aligned) - 0x3f000000u);
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
