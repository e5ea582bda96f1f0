// Plain loops for every kernel size, stride, padding, dilation and dtype: what the direct kernels
// do not take, and what they are tested against. Both layouts are reached through strides. All sums
// are in float64.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace grouped_conv::cpu {
namespace {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}

uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof(bits));
  return bits;
}

double widen(double v) { return v; }
double widen(float v) { return v; }
double widen(BF16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
double widen(F16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t exponent = (v.bits >> 10) & 0x1fu, mantissa = v.bits & 0x3ffu;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

void narrow(double v, double* out) { *out = v; }
void narrow(double v, float* out) { *out = static_cast<float>(v); }
void narrow(double wide, BF16* out) {
  const float v = static_cast<float>(wide);
  const uint32_t bits = float_to_bits(v);
  out->bits = v != v ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
void narrow(double wide, F16* out) {
  const float v = static_cast<float>(wide);
  const uint32_t bits = float_to_bits(v), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) {
    out->bits = sign | 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    out->bits = sign | 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the mantissa so that the hardware rounds it to nearest even.
    out->bits =
        sign | static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u);
  } else {
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    out->bits = sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
  }
}

template <class T>
struct View {
  T* data;
  int64_t n, c, h, w;  // strides

  T& at(int64_t in, int64_t ic, int64_t ih, int64_t iw) const {
    return data[in * n + ic * c + ih * h + iw * w];
  }
};

template <class T>
View<T> activation(void* data, Layout layout, int64_t channels, int64_t h, int64_t w) {
  auto* typed = static_cast<T*>(data);
  if (layout == Layout::kNHWC) return {typed, h * w * channels, 1, w * channels, channels};
  return {typed, channels * h * w, h * w, w, 1};
}

// Taps [begin, end) of one axis for which index * stride - pad + tap * dilation lies in [0,
// extent).
struct TapRange {
  int64_t begin, end, first;

  TapRange(int64_t index, int64_t stride, int64_t pad, int64_t dilation, int64_t taps,
           int64_t extent) {
    first = index * stride - pad;
    begin = first >= 0 ? 0 : (-first + dilation - 1) / dilation;
    end = first >= extent ? 0 : (extent - 1 - first) / dilation + 1;
    if (end > taps) end = taps;
  }
};

template <class T>
struct Simple {
  const PassArgs& args;
  const ConvProblem& p;
  View<T> x, w, y;
  // Of scale and shift.
  using Factor = std::conditional_t<std::is_same_v<T, double>, double, float>;

  explicit Simple(const PassArgs& a)
      : args(a),
        p(a.problem),
        x(activation<T>(a.x, a.layout, p.C, p.H, p.W)),
        w(activation<T>(a.w, Layout::kNCHW, p.c_per_group(), p.R, p.S)),
        y(activation<T>(a.y, a.layout, p.K, p.P, p.Q)) {}

  // Calls f(index) for each index of [0, count), in parallel.
  template <class F>
  void for_each(int64_t count, const F& f) const {
    args.parallel.run(
        count,
        [](int64_t begin, int64_t end, void* context) {
          const F& body = *static_cast<const F*>(context);
          for (int64_t i = begin; i < end; ++i) body(i);
        },
        const_cast<F*>(&f));
  }

  // A NaN passes the comparison with zero.
  double finish(double sum, int64_t k, const T* residual) const {
    const Epilogue& e = args.epilogue;
    if (e.scale != nullptr) sum *= static_cast<const Factor*>(e.scale)[k];
    if (e.shift != nullptr) sum += static_cast<const Factor*>(e.shift)[k];
    if (residual != nullptr) sum += widen(*residual);
    return e.relu && sum < 0 ? 0.0 : sum;
  }

  void fprop() const {
    const T* bias = static_cast<const T*>(args.bias);
    const auto* residual = static_cast<const T*>(args.epilogue.residual);
    for_each(p.N * p.K * p.P, [&](int64_t i) {
      const int64_t row = i % p.P, k = i / p.P % p.K, n = i / p.P / p.K;
      const int64_t c0 = k / p.k_per_group() * p.c_per_group();
      const TapRange rs(row, p.stride_h, p.pad_h, p.dilation_h, p.R, p.H);
      for (int64_t col = 0; col < p.Q; ++col) {
        const TapRange ss(col, p.stride_w, p.pad_w, p.dilation_w, p.S, p.W);
        double sum = bias != nullptr ? widen(bias[k]) : 0.0;
        for (int64_t c = 0; c < p.c_per_group(); ++c) {
          for (int64_t r = rs.begin; r < rs.end; ++r) {
            for (int64_t s = ss.begin; s < ss.end; ++s) {
              sum +=
                  widen(x.at(n, c0 + c, rs.first + r * p.dilation_h, ss.first + s * p.dilation_w)) *
                  widen(w.at(k, c, r, s));
            }
          }
        }
        T* out = &y.at(n, k, row, col);
        narrow(finish(sum, k, residual != nullptr ? residual + (out - y.data) : nullptr), out);
      }
    });
  }

  // Gathers instead of scattering: each dx is the sum over the taps that reach it.
  void dgrad() const {
    for_each(p.N * p.C * p.H, [&](int64_t i) {
      const int64_t h = i % p.H, c = i / p.H % p.C, n = i / p.H / p.C;
      const int64_t g = c / p.c_per_group(), k0 = g * p.k_per_group();
      for (int64_t col = 0; col < p.W; ++col) {
        double sum = 0.0;
        for (int64_t r = 0; r < p.R; ++r) {
          const int64_t up = h + p.pad_h - r * p.dilation_h;
          if (up < 0 || up % p.stride_h != 0 || up / p.stride_h >= p.P) continue;
          for (int64_t s = 0; s < p.S; ++s) {
            const int64_t left = col + p.pad_w - s * p.dilation_w;
            if (left < 0 || left % p.stride_w != 0 || left / p.stride_w >= p.Q) continue;
            for (int64_t k = k0; k < k0 + p.k_per_group(); ++k) {
              sum += widen(y.at(n, k, up / p.stride_h, left / p.stride_w)) *
                     widen(w.at(k, c - g * p.c_per_group(), r, s));
            }
          }
        }
        narrow(sum, &x.at(n, c, h, col));
      }
    });
  }

  void wgrad() const {
    for_each(p.K * p.c_per_group(), [&](int64_t i) {
      const int64_t c = i % p.c_per_group(), k = i / p.c_per_group();
      const int64_t in = k / p.k_per_group() * p.c_per_group() + c;
      for (int64_t r = 0; r < p.R; ++r) {
        for (int64_t s = 0; s < p.S; ++s) {
          double sum = 0.0;
          for (int64_t n = 0; n < p.N; ++n) {
            for (int64_t row = 0; row < p.P; ++row) {
              const int64_t h = row * p.stride_h - p.pad_h + r * p.dilation_h;
              if (h < 0 || h >= p.H) continue;
              for (int64_t col = 0; col < p.Q; ++col) {
                const int64_t v = col * p.stride_w - p.pad_w + s * p.dilation_w;
                if (v < 0 || v >= p.W) continue;
                sum += widen(y.at(n, k, row, col)) * widen(x.at(n, in, h, v));
              }
            }
          }
          narrow(sum, &w.at(k, c, r, s));
        }
      }
    });
  }

  void run() const {
    switch (args.pass) {
      case Pass::kFprop:
        return fprop();
      case Pass::kDgrad:
        return dgrad();
      case Pass::kWgrad:
        return wgrad();
    }
  }
};

}  // namespace

void simple(const PassArgs& args) {
  switch (args.dtype) {
    case DType::kFloat64:
      return Simple<double>(args).run();
    case DType::kFloat32:
      return Simple<float>(args).run();
    case DType::kBFloat16:
      return Simple<BF16>(args).run();
    case DType::kFloat16:
      return Simple<F16>(args).run();
  }
}

}  // namespace grouped_conv::cpu
