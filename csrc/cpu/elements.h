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
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_partial(p, v, n); }
};

struct ElementBF16 {
  using T = uint16_t;
  static constexpr bool kIsFloat = false;
  static Vec::Reg load(const T* p) { return Vec::load_bf16(p); }
  static Vec::Reg load_partial(const T* p, int n) { return Vec::load_bf16_partial(p, n); }
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_bf16_partial(p, v, n); }
};

struct ElementF16 {
  using T = uint16_t;
  static constexpr bool kIsFloat = false;
  static Vec::Reg load(const T* p) { return Vec::load_f16(p); }
  static Vec::Reg load_partial(const T* p, int n) { return Vec::load_f16_partial(p, n); }
  static void store_partial(T* p, Vec::Reg v, int n) { Vec::store_f16_partial(p, v, n); }
};

template <class E>
inline Vec::Reg load_first(const typename E::T* p, int n) {
  return n == Vec::kLanes ? E::load(p) : E::load_partial(p, n);
}

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A prefetch may name any address. Loads fetch into the second level: the first is full of strips.
inline void prefetch_load(const void* p) { __builtin_prefetch(p, 0, 2); }
inline void prefetch_store(const void* p) { __builtin_prefetch(p, 1, 3); }

constexpr int64_t kCacheLine = 64;

// dst[j][i] = src[i][j] for an [rows, cols] matrix of E, written as float32. Strides are in
// elements. What lies `ahead` elements further is prefetched: the rows that will be wanted next.
template <class E>
inline void transpose_in(const typename E::T* src, int64_t src_stride, int64_t rows, int64_t cols,
                         float* dst, int64_t dst_stride, int64_t ahead = 0) {
  constexpr int L = Vec::kLanes;
  for (int64_t i0 = 0; i0 < rows; i0 += L) {
    const int ni = static_cast<int>(min64(L, rows - i0));
    for (int64_t j0 = 0; j0 < cols; j0 += L) {
      const int nj = static_cast<int>(min64(L, cols - j0));
      Vec::Reg block[L];
      for (int i = 0; i < L; ++i) {
        const typename E::T* at = src + (i0 + i) * src_stride + j0;
        block[i] = i < ni ? load_first<E>(at, nj) : Vec::zero();
        prefetch_load(at + ahead);
      }
      Vec::transpose(block);
      float* out = dst + j0 * dst_stride + i0;
      if (ni == L) {
        for (int j = 0; j < nj; ++j) Vec::store(out + j * dst_stride, block[j]);
      } else {
        for (int j = 0; j < nj; ++j) Vec::store_partial(out + j * dst_stride, block[j], ni);
      }
    }
  }
}

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
    for (int i = 0; i < channels; ++i) {
      E::store_partial(dst + i * dst_stride + j0, block[i], nj);
    }
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
