// AVX2 + FMA + F16C vector interface: 8 float lanes, 16 registers. See vec_portable.h for the
// contract.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

struct Vec {
  static constexpr int kLanes = 8;
  static constexpr int kChannelsPerWord = 1;
  static constexpr int kRunWords = 16;
  static constexpr int kTileRows = 1;
  static constexpr int kWgradChannels = 4;
  using Reg = __m256;
  using Index = __m256i;

  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_partial(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void store_partial(float* p, Reg v, int n) { _mm256_maskstore_ps(p, first(n), v); }
  static void stream(float* p, Reg v) { _mm256_stream_ps(p, v); }
  static void fence() { _mm_sfence(); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg affine(Reg v, Reg scale, Reg shift) { return _mm256_fmadd_ps(v, scale, shift); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }

  static Index group_base(int channels_per_group) {
    alignas(32) int32_t lanes[kLanes];
    for (int l = 0; l < kLanes; ++l) lanes[l] = l / channels_per_group * channels_per_group;
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes));
  }
  static Index next(Index i, int by = 1) { return _mm256_add_epi32(i, _mm256_set1_epi32(by)); }
  static Reg permute(const float* p, Index i) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(p), i);
  }

  static Reg load_bf16(const uint16_t* p) {
    return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg load_bf16_partial(const uint16_t* p, int n) { return widen_bf16(load16(p, n)); }
  static void store_bf16(uint16_t* p, Reg v) { store_bf16_partial(p, v, kLanes); }
  static void store_bf16_partial(uint16_t* p, Reg v, int n) { store16(p, narrow_bf16(v), n); }
  static Reg load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg load_f16_partial(const uint16_t* p, int n) { return _mm256_cvtph_ps(load16(p, n)); }
  static void store_f16(uint16_t* p, Reg v) { store_f16_partial(p, v, kLanes); }
  static void store_f16_partial(uint16_t* p, Reg v, int n) {
    store16(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), n);
  }

  static void transpose(Reg (&r)[kLanes]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }

 private:
  static Reg widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static __m128i narrow_bf16(Reg v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    const __m256i high = _mm256_srli_epi32(safe, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
  }
  // AVX2 has no 16-bit masked access: a short copy through the stack never touches what is beyond.
  static __m128i load16(const uint16_t* p, int n) {
    alignas(16) uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, p, sizeof(uint16_t) * n);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(lanes));
  }
  static void store16(uint16_t* p, __m128i v, int n) {
    if (n == kLanes) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
      return;
    }
    alignas(16) uint16_t lanes[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), v);
    std::memcpy(p, lanes, sizeof(uint16_t) * n);
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
