// Storage types of the direct kernels: how a row of float32, bfloat16 or float16 becomes a vector
// of float32 and back. Everything between load and store is float32.
#pragma once

#include <cstdint>

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

struct ElementF32 {
  using T = float;
  static constexpr bool kIsFloat = true;
  static Vec::Reg load(const T* p) { return Vec::load(p); }
  static Vec::Reg load_partial(const T* p, int n) { return Vec::load_partial(p, n); }
  static void store(T* p, Vec::Reg v) { Vec::store(p, v); }
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_partial(p, v, n); }
};

struct ElementBF16 {
  using T = uint16_t;
  static constexpr bool kIsFloat = false;
  static Vec::Reg load(const T* p) { return Vec::load_bf16(p); }
  static Vec::Reg load_partial(const T* p, int n) { return Vec::load_bf16_partial(p, n); }
  static void store(T* p, Vec::Reg v) { Vec::store_bf16(p, v); }
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_bf16_partial(p, v, n); }
};

struct ElementF16 {
  using T = uint16_t;
  static constexpr bool kIsFloat = false;
  static Vec::Reg load(const T* p) { return Vec::load_f16(p); }
  static Vec::Reg load_partial(const T* p, int n) { return Vec::load_f16_partial(p, n); }
  static void store(T* p, Vec::Reg v) { Vec::store_f16(p, v); }
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_f16_partial(p, v, n); }
};

template <class E>
inline Vec::Reg load_first(const typename E::T* p, int n) {
  return n == Vec::kLanes ? E::load(p) : E::load_partial(p, n);
}

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Into the second level: the first is full of strips. A line that no other core has arrives ready
// to be written, so outputs need no other kind. The address may be any. The empty statement keeps
// the compiler from removing loops that do nothing but prefetch.
inline void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
  asm volatile("" : : "r"(p));
}

constexpr int64_t kCacheLine = 64;

// dst[i][j] = src[j][i]: float32 pixels of kLanes channels, `src_stride` floats apart, become
// `channels` rows of `cols` elements, `dst_stride` elements apart.
template <class E>
inline void transpose_out(const float* src, int64_t src_stride, int channels, int64_t cols,
                          typename E::T* dst, int64_t dst_stride) {
  constexpr int L = Vec::kLanes;
  for (int64_t j0 = 0; j0 < cols; j0 += L) {
    const int nj = static_cast<int>(min64(L, cols - j0));
    Vec::Reg block[L];
    for (int j = 0; j < L; ++j) {
      block[j] = j < nj ? Vec::load(src + (j0 + j) * src_stride) : Vec::zero();
    }
    Vec::transpose(block);
    if (nj == L) {
      for (int i = 0; i < channels; ++i) E::store(dst + i * dst_stride + j0, block[i]);
    } else {
      for (int i = 0; i < channels; ++i) E::store_partial(dst + i * dst_stride + j0, block[i], nj);
    }
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
