// Runs the weight-gradient kernels in the emulator, and computes the same in double.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "cuda/wgrad.cuh"
#include "cuda/wgrad_reduce.cuh"
#include "problem.h"
#include "simt/simt.h"

namespace grouped_conv::cuda {

enum class WgradElement { kFloat16, kBFloat16 };
inline constexpr WgradElement kWgradElements[] = {WgradElement::kFloat16, WgradElement::kBFloat16};

inline uint16_t encode(WgradElement element, float value) {
  return element == WgradElement::kFloat16 ? simt::to_float16(value) : simt::to_bfloat16(value);
}
inline float decode(WgradElement element, uint16_t bits) {
  return element == WgradElement::kFloat16 ? simt::from_float16(bits) : simt::from_bfloat16(bits);
}

// Half a unit in the last place, relative.
inline double rounding(WgradElement element) {
  return element == WgradElement::kFloat16 ? 0x1p-11 : 0x1p-8;
}

// x is [N, H, W, C], dy is [N, P, Q, K].
struct WgradInputs {
  WgradElement element;
  std::vector<uint16_t> x, dy;

  static WgradInputs random(const ConvProblem& p, WgradElement element, uint64_t seed) {
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal;
    WgradInputs inputs{element, {}, {}};
    inputs.x.resize(size_t(p.N * p.H * p.W * p.C));
    inputs.dy.resize(size_t(p.N * p.P * p.Q * p.K));
    for (auto* values : {&inputs.x, &inputs.dy}) {
      for (uint16_t& value : *values) value = encode(element, normal(rng));
    }
    return inputs;
  }
};

// The index of dw[k, c, r, s] in the memory of dw.
inline int64_t dw_index(const ConvProblem& p, bool channels_last, int64_t k, int64_t c,
                        int64_t tap) {
  const int64_t per_group = p.c_per_group();
  return channels_last ? (k * 9 + tap) * per_group + c : (k * per_group + c) * 9 + tap;
}

struct WgradReference {
  std::vector<double> sum;
  std::vector<double> magnitude;  // the sum of the absolute values
};

// By definition; positions of the padding do not exist.
inline WgradReference wgrad_reference(const ConvProblem& p, const WgradInputs& inputs,
                                      bool channels_last) {
  const int64_t per_group = p.c_per_group();
  WgradReference result;
  result.sum.resize(size_t(p.K * per_group * 9));
  result.magnitude.resize(result.sum.size());
  for (int64_t n = 0; n < p.N; ++n) {
    for (int64_t pq = 0; pq < p.P * p.Q; ++pq) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t h = pq / p.Q * p.stride_h - p.pad_h + tap / 3;
        const int64_t w = pq % p.Q * p.stride_w - p.pad_w + tap % 3;
        if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
        const uint16_t* x = &inputs.x[size_t(((n * p.H + h) * p.W + w) * p.C)];
        const uint16_t* dy = &inputs.dy[size_t((n * p.P * p.Q + pq) * p.K)];
        for (int64_t k = 0; k < p.K; ++k) {
          const double dy_value = decode(inputs.element, dy[k]);
          for (int64_t c = 0; c < per_group; ++c) {
            const double product =
                dy_value * decode(inputs.element, x[k / per_group * per_group + c]);
            const size_t i = size_t(dw_index(p, channels_last, k, c, tap));
            result.sum[i] += product;
            result.magnitude[i] += std::abs(product);
          }
        }
      }
    }
  }
  return result;
}

struct WgradRun {
  std::vector<float> dw;
  bool complete;
  simt::Report rowstream, reduce;
};

template <int kId, typename T>
WgradRun run_wgrad_kernels(const ConvProblem& p, const WgradPlan& plan, const WgradInputs& inputs,
                           bool channels_last, const simt::Options& options) {
  using Use = simt::Buffer::Use;
  const size_t count = size_t(p.K * p.c_per_group() * 9);
  simt::Buffer x("x", inputs.x.size() * 2, Use::kInput);
  simt::Buffer dy("dy", inputs.dy.size() * 2, Use::kInput);
  simt::Buffer partials("partials", size_t(plan.workspace_bytes(p)), Use::kWorkspace);
  simt::Buffer dw("dw", count * 2, Use::kOutput);
  std::copy(inputs.x.begin(), inputs.x.end(), x.host<uint16_t>());
  std::copy(inputs.dy.begin(), inputs.dy.end(), dy.host<uint16_t>());
  const WgradArgs args = make_wgrad_args(p, plan, x.device<void>(), dy.device<void>(),
                                         partials.device<void>(), dw.device<void>(), channels_last);
  const auto launch = [&](const WgradLaunch& shape, const auto& kernel) {
    return simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options,
                        [&] { kernel(args); });
  };
  WgradRun run;
  run.rowstream = launch(wgrad_rowstream_launch(plan), wgrad_rowstream_kernel<kId, T>);
  run.reduce = launch(wgrad_reduce_launch(p), wgrad_reduce_kernel<T>);
  run.complete = dw.complete();
  for (size_t i = 0; i < count; ++i) {
    run.dw.push_back(decode(inputs.element, dw.host<uint16_t>()[i]));
  }
  return run;
}

inline WgradRun run_wgrad(const ConvProblem& p, const WgradPlan& plan, const WgradInputs& inputs,
                          bool channels_last, const simt::Options& options) {
  using Runner = WgradRun (*)(const ConvProblem&, const WgradPlan&, const WgradInputs&, bool,
                              const simt::Options&);
  static constexpr auto kRunners = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<std::array<Runner, 2>, sizeof...(kId)>{
        {{run_wgrad_kernels<kId, Float16>, run_wgrad_kernels<kId, BFloat16>}...}};
  }(std::make_integer_sequence<int, kWgradConfigCount>());
  return kRunners[size_t(plan.config)][size_t(inputs.element)](p, plan, inputs, channels_last,
                                                               options);
}

}  // namespace grouped_conv::cuda
