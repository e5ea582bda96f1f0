// The plain kernels: every problem, every dtype, no staging. They are what other kernels are
// compared with, and what runs where no other kernel does.
//
// fprop: y[n,k,p,q] = bias[k] + sum_{c,r,s} x[n,c,p*stride-pad+r*dilation,...] * w[k,c,r,s]
//   and dgrad, its transpose: one thread per written element, in a grid-stride loop that walks the
//   tensor in its memory order.
// wgrad: one block per weight element; each thread sums every kThreads-th position (n,p,q), then
//   the block adds the partial sums in a fixed tree.
// epilogue and statistics of a y that another kernel has written: likewise.
// Accumulation: float32, float64 for float64. The same bits in each run. 64-bit indices throughout.
// The bodies are plain functions, so that a host program can run them too.
#pragma once

#include <cstdint>

#include "problem.h"

#if defined(__CUDACC__)
#define GROUPED_CONV_HOST_DEVICE __host__ __device__
#else
#define GROUPED_CONV_HOST_DEVICE
#endif

namespace grouped_conv::cuda {

template <typename T>
struct View {
  T* data;
  int64_t strides[4];

  GROUPED_CONV_HOST_DEVICE T& operator()(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return data[a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3]];
  }
};

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// Null pointers: a scale of 1, a shift of 0, no residual, which lies as y does.
template <typename T>
struct SimpleEpilogue {
  using Acc = typename Accumulator<T>::type;

  const Acc* scale;
  const Acc* shift;
  const T* residual;
  bool relu;
};

template <typename T>
struct SimpleArgs {
  using Element = T;
  using Acc = typename Accumulator<T>::type;

  ConvProblem problem;
  View<T> x, w, y;
  const T* bias;
  int64_t bias_stride;
  SimpleEpilogue<T> epilogue;
};

struct Position {
  int64_t n, c, h, w;
};

// The index-th element of a tensor of `channels` x `height` x `width` per image, counted in the
// order of its memory.
template <typename T>
GROUPED_CONV_HOST_DEVICE Position position(const View<T>& view, int64_t index, int64_t channels,
                                           int64_t height, int64_t width) {
  Position at;
  if (view.strides[1] == 1) {
    at.c = index % channels;
    index /= channels;
    at.w = index % width;
    index /= width;
    at.h = index % height;
    at.n = index / height;
  } else {
    at.w = index % width;
    index /= width;
    at.h = index % height;
    index /= height;
    at.c = index % channels;
    at.n = index / channels;
  }
  return at;
}

// What the epilogue makes of a sum that goes to an element of y.
template <typename T>
GROUPED_CONV_HOST_DEVICE T finished(const SimpleArgs<T>& args, typename SimpleArgs<T>::Acc sum,
                                    int64_t channel, const T& target) {
  const SimpleEpilogue<T>& e = args.epilogue;
  if (e.scale) sum *= e.scale[channel];
  if (e.shift) sum += e.shift[channel];
  if (e.residual) {
    sum += static_cast<typename SimpleArgs<T>::Acc>(e.residual[&target - args.y.data]);
  }
  return static_cast<T>(e.relu && sum < 0 ? 0 : sum);  // NaN stays
}

// The epilogue on an element of y that is there already.
template <typename T>
GROUPED_CONV_HOST_DEVICE void epilogue_element(const SimpleArgs<T>& args, int64_t index) {
  const ConvProblem& p = args.problem;
  const Position at = position(args.y, index, p.K, p.P, p.Q);
  T& y = args.y(at.n, at.c, at.h, at.w);
  y = finished(args, static_cast<typename SimpleArgs<T>::Acc>(y), at.c, y);
}

// The part of the sum of a channel of y, or of its squared deviations from a mean, that comes from
// pixels first, first + step, ...
template <typename T>
GROUPED_CONV_HOST_DEVICE typename SimpleArgs<T>::Acc statistics_partial(
    const SimpleArgs<T>& args, int64_t channel, const typename SimpleArgs<T>::Acc* mean,
    int64_t first, int64_t step) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  Acc sum = 0;
  for (int64_t i = first; i < p.N * p.P * p.Q; i += step) {
    const int64_t np = i / p.Q;
    const Acc value = static_cast<Acc>(args.y(np / p.P, channel, np % p.P, i % p.Q));
    sum += mean ? (value - *mean) * (value - *mean) : value;
  }
  return sum;
}

template <typename T>
GROUPED_CONV_HOST_DEVICE void fprop_simple_element(const SimpleArgs<T>& args, int64_t index) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  const Position at = position(args.y, index, p.K, p.P, p.Q);
  const int64_t c_per_group = p.C / p.G;
  const int64_t first_c = at.c / (p.K / p.G) * c_per_group;
  Acc sum = args.bias ? static_cast<Acc>(args.bias[at.c * args.bias_stride]) : Acc(0);
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t h = at.h * p.stride_h - p.pad_h + r * p.dilation_h;
    if (h < 0 || h >= p.H) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t w = at.w * p.stride_w - p.pad_w + s * p.dilation_w;
      if (w < 0 || w >= p.W) continue;
      for (int64_t c = 0; c < c_per_group; ++c) {
        sum += static_cast<Acc>(args.x(at.n, first_c + c, h, w)) *
               static_cast<Acc>(args.w(at.c, c, r, s));
      }
    }
  }
  T& y = args.y(at.n, at.c, at.h, at.w);
  y = finished(args, sum, at.c, y);
}

template <typename T>
GROUPED_CONV_HOST_DEVICE void dgrad_simple_element(const SimpleArgs<T>& args, int64_t index) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  const Position at = position(args.x, index, p.C, p.H, p.W);
  const int64_t c_per_group = p.C / p.G;
  const int64_t k_per_group = p.K / p.G;
  const int64_t first_k = at.c / c_per_group * k_per_group;
  Acc sum = 0;
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t scaled_p = at.h + p.pad_h - r * p.dilation_h;
    if (scaled_p < 0 || scaled_p % p.stride_h != 0 || scaled_p / p.stride_h >= p.P) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t scaled_q = at.w + p.pad_w - s * p.dilation_w;
      if (scaled_q < 0 || scaled_q % p.stride_w != 0 || scaled_q / p.stride_w >= p.Q) continue;
      for (int64_t k = first_k; k < first_k + k_per_group; ++k) {
        sum += static_cast<Acc>(args.y(at.n, k, scaled_p / p.stride_h, scaled_q / p.stride_w)) *
               static_cast<Acc>(args.w(k, at.c % c_per_group, r, s));
      }
    }
  }
  args.x(at.n, at.c, at.h, at.w) = static_cast<T>(sum);
}

// The part of one weight element's gradient that comes from positions first, first + step, ...
template <typename T>
GROUPED_CONV_HOST_DEVICE typename SimpleArgs<T>::Acc wgrad_simple_partial(const SimpleArgs<T>& args,
                                                                          const Position& weight,
                                                                          int64_t first,
                                                                          int64_t step) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  const int64_t c = weight.n / (p.K / p.G) * (p.C / p.G) + weight.c;
  Acc sum = 0;
  for (int64_t i = first; i < p.N * p.P * p.Q; i += step) {
    const int64_t q = i % p.Q;
    const int64_t np = i / p.Q;
    const int64_t h = np % p.P * p.stride_h - p.pad_h + weight.h * p.dilation_h;
    const int64_t w = q * p.stride_w - p.pad_w + weight.w * p.dilation_w;
    if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
    sum += static_cast<Acc>(args.y(np / p.P, weight.n, np % p.P, q)) *
           static_cast<Acc>(args.x(np / p.P, c, h, w));
  }
  return sum;
}

#if defined(__CUDACC__)

inline constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    fprop_simple_kernel(const SimpleArgs<T> args, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    fprop_simple_element(args, i);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dgrad_simple_kernel(const SimpleArgs<T> args, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    dgrad_simple_element(args, i);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const SimpleArgs<T> args, int64_t count) {
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    epilogue_element(args, i);
  }
}

// The sum of what the threads of a block pass, for all of them.
template <typename Acc>
__device__ Acc sum_of_block(Acc own) {
  static_assert((kThreads & (kThreads - 1)) == 0, "the tree halves the number of threads");
  __shared__ Acc partial[kThreads];
  partial[threadIdx.x] = own;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  const Acc total = partial[0];
  __syncthreads();
  return total;
}

// A block for each channel, in two passes: the mean first.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const SimpleArgs<T> args, typename SimpleArgs<T>::Acc* sums,
                      typename SimpleArgs<T>::Acc* squares) {
  using Acc = typename SimpleArgs<T>::Acc;
  const ConvProblem& p = args.problem;
  for (int64_t k = blockIdx.x; k < p.K; k += gridDim.x) {
    const Acc sum = sum_of_block(statistics_partial<T>(args, k, nullptr, threadIdx.x, kThreads));
    const Acc mean = sum / Acc(p.N * p.P * p.Q);
    const Acc rest = sum_of_block(statistics_partial<T>(args, k, &mean, threadIdx.x, kThreads));
    if (threadIdx.x == 0) {
      sums[k] = sum;
      squares[k] = rest;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    wgrad_simple_kernel(const SimpleArgs<T> args, int64_t count) {
  const ConvProblem& p = args.problem;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const Position weight = position(args.w, i, p.C / p.G, p.R, p.S);
    const auto sum = sum_of_block(wgrad_simple_partial(args, weight, threadIdx.x, kThreads));
    if (threadIdx.x == 0) {
      args.w(weight.n, weight.c, weight.h, weight.w) = static_cast<T>(sum);
    }
  }
}

#endif  // defined(__CUDACC__)

}  // namespace grouped_conv::cuda
