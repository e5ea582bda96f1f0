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
  // Lane -> first word of its group in a pixel of kLanes channels.
  static Index group_base(int channels_per_group) {
    return _mm512_srli_epi32(Avx512::group_base(channels_per_group), 1);
  }

  // 2 * kLanes bfloat16 at p, the first n of them, as words; the rest is zero.
  static Reg load_words(const uint16_t* p, int n) {
    const __mmask32 mask = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1u;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  // The upper half of the lanes.
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
  // Words (a[i], b[i]) for the first n of kLanes; b may be null, which stands for zeros.
  static Reg zip_words(const uint16_t* a, const uint16_t* b, int n) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), a));
    if (b == nullptr) return _mm512_castsi512_ps(low);
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
};

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
