// AVX-512 with bfloat16 dot products: 16 lanes of two products each. See vec_portable.h for the
// contract and pairs.h for the words.
#pragma once

#include "vec_avx512.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

struct Vec : Avx512 {
  static constexpr int kChannelsPerWord = 2;

  // a and b hold pairs of bfloat16.
  static Reg fma(Reg a, Reg b, Reg c) {
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
  }
  static Index halve(Index i) { return _mm512_srli_epi32(i, 1); }
  // Only these bits of every lane.
  static Reg mask(Reg v, uint32_t bits) {
    return _mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits))));
  }

  // 2 * kLanes bfloat16 at p, the first n of them, as words; the rest is zero.
  static Reg load_words(const uint16_t* p, int n) {
    const __mmask32 mask = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1u;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  // The lower and the upper half of the lanes.
  static void store_low(float* p, Reg v) { _mm256_storeu_ps(p, _mm512_castps512_ps256(v)); }
  static void store_high(float* p, Reg v) {
    _mm256_storeu_ps(p, _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  }
  static void store_bf16(uint16_t* p, Reg v) {
    const __m256i h = (__m256i)_mm512_cvtneps_pbh(v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
  }
  static void store_bf16_partial(uint16_t* p, Reg v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), (__m256i)_mm512_cvtneps_pbh(v));
  }
  // Words (a[i], b[i]) for 2 * kLanes.
  static void zip_words(const uint16_t* a, const uint16_t* b, Reg& first, Reg& second) {
    const __m512i low = _mm512_loadu_si512(a), high = _mm512_loadu_si512(b);
    first = _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, interleave(0, 32), high));
    second =
        _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, interleave(kLanes, kLanes + 32), high));
  }
  // Words (a[i], b[i]) for kLanes.
  static Reg zip_words(const uint16_t* a, const uint16_t* b) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(interleave(0, kLanes), both));
  }
  // Words (a[i], b[i]) for the first n of kLanes; null stands for zeros.
  static Reg zip_words(const uint16_t* a, const uint16_t* b, int n) {
    return _mm512_castsi512_ps(_mm512_or_si512(widen(a, n), _mm512_slli_epi32(widen(b, n), 16)));
  }

 private:
  // Not a load of nothing from null: a masked access to a page that is not there takes the
  // processor hundreds of cycles, though it loads nothing.
  static __m512i widen(const uint16_t* p, int n) {
    if (p == nullptr) return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  }
  // Elements a, b, a + 1, b + 1 and so on.
  static __m512i interleave(int a, int b) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi32(lanes, _mm512_set1_epi32(a));
    const __m512i high = _mm512_add_epi32(lanes, _mm512_set1_epi32(b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
