// Tensor-core arithmetic and the loads that feed it. With g = lane / 4 and t = lane % 4, a lane
// holds (PTX ISA, "Matrix Fragments"), two 16-bit elements in a register:
//
//   ldmatrix           register i: row g of matrix i, columns 2t, 2t + 1; .trans: rows 2t, 2t + 1
//                      of column g. Lane 8i + j gives the address of row j of matrix i (x1: lanes
//                      0 to 7, x2: 0 to 15); a row is 8 elements, 16 bytes.
//   A [16, k]          a[0]: row g, columns 2t, 2t + 1; a[1]: row g + 8; k16 also a[2], a[3]:
//                      the same rows, columns 2t + 8, 2t + 9
//   B [k, 8]           b[0]: rows 2t, 2t + 1 of column g; k16 also b[1]: rows 2t + 8, 2t + 9
//   D [16, 8] (float)  d[0], d[1]: row g, columns 2t, 2t + 1; d[2], d[3]: row g + 8
//   tf32               one element in a register; A: row g + 8 (i % 2), column t + 4 (i / 2);
//                      B: row t + 4 i, column g; the low 13 bits are ignored
//
// mma adds A B to d. What the hardware rounds in between is its own secret. The emulator sums in
// double, sum = d; sum += a[k] b[k] for k = 0, 1, ... (the products are exact), and rounds once.
#pragma once

#include "cuda/device/element.h"

namespace grouped_conv::cuda::device {

#if GC_PTX

GC_DEVICE void ldmatrix_x1(uint32_t (&r)[1], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row)
               : "memory");
}
GC_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}
GC_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
GC_DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row)
               : "memory");
}
GC_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}
GC_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

template <typename T>
GC_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
GC_DEVICE void mma_m16n8k16<Float16>(float (&d)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
GC_DEVICE void mma_m16n8k16<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <typename T>
GC_DEVICE void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]);
template <>
GC_DEVICE void mma_m16n8k8<Float16>(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
template <>
GC_DEVICE void mma_m16n8k8<BFloat16>(float (&d)[4], const uint32_t (&a)[2],
                                     const uint32_t (&b)[1]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

GC_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

inline void ldmatrix_x1(uint32_t (&r)[1], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 1, false, row, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 2, false, row, site);
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 4, false, row, site);
}
inline void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 1, true, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 2, true, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, Site site = Site::current()) {
  ::simt::ldmatrix(r, 4, true, row, site);
}

template <typename T>
inline constexpr ::simt::Format kFormat = ::simt::Format::kFloat16;
template <>
inline constexpr ::simt::Format kFormat<BFloat16> = ::simt::Format::kBFloat16;

template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Site site = Site::current()) {
  ::simt::mma({kFormat<T>, 16}, d, a, b, site);
}
template <typename T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                 Site site = Site::current()) {
  ::simt::mma({kFormat<T>, 8}, d, a, b, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Site site = Site::current()) {
  ::simt::mma({::simt::Format::kTf32, 8}, d, a, b, site);
}

#endif

}  // namespace grouped_conv::cuda::device
