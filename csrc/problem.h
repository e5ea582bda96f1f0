// The one descriptor of a grouped 2-D convolution that every layer of the library shares.
// Plain C++: kernels include it, and it includes nothing of torch. grouped_conv/problem.py mirrors
// it.
#pragma once

#include <cstdint>

namespace grouped_conv {

// The three computations of a convolution: y from (x, w), dx from (dy, w), dw from (dy, x).
enum class Pass { kFprop, kDgrad, kWgrad };

// Memory order of a 4-D activation tensor. Sizes are always given as [N, C, H, W].
enum class Layout { kNCHW, kNHWC };

// Tensors: x [N, C, H, W], w [K, C/G, R, S], y [N, K, P, Q]. C and K are totals over all groups.
struct ConvProblem {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t G;
  int64_t pad_h, pad_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;

  int64_t c_per_group() const { return C / G; }
  int64_t k_per_group() const { return K / G; }

  // Multiply-adds counted as two operations; taps that fall into the padding are counted too, as
  // is customary in the literature.
  double flops() const { return 2.0 * N * K * P * Q * c_per_group() * R * S; }

  // The only place that computes an output extent; zero or less where the dilated kernel does not
  // fit. The division rounds down, as Python's does.
  static constexpr int64_t output_extent(int64_t in, int64_t kernel, int64_t pad, int64_t stride,
                                         int64_t dilation) {
    const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
    return (span >= 0 ? span / stride : -((stride - 1 - span) / stride)) + 1;
  }

  // Completes P and Q. Every other extent must have been validated (checks.h does so).
  static constexpr ConvProblem make(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                                    int64_t R, int64_t S, int64_t G, int64_t pad_h, int64_t pad_w,
                                    int64_t stride_h, int64_t stride_w, int64_t dilation_h,
                                    int64_t dilation_w) {
    return {N,
            C,
            H,
            W,
            K,
            R,
            S,
            output_extent(H, R, pad_h, stride_h, dilation_h),
            output_extent(W, S, pad_w, stride_w, dilation_w),
            G,
            pad_h,
            pad_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w};
  }
};

}  // namespace grouped_conv
