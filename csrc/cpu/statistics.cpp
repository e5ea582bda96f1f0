// From the moments of rows to those of channels.
#include <algorithm>

#include "kernels.h"

namespace grouped_conv::cpu {
namespace {

constexpr int64_t kChunk = 16;  // channels that are combined at a time

struct Combination {
  const RowMoments& rows;
  int64_t count, pixels, channels;
  float *sum, *squares;
};

// Rows are of one length: the mean of their means, and what the means deviate from it beside what
// the pixels deviate from them.
void combine(int64_t begin, int64_t end, void* opaque) {
  const Combination& a = *static_cast<const Combination*>(opaque);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kChunk;
    const int64_t lanes = std::min(kChunk, a.channels - first);
    const float *mean = a.rows.mean + first, *squares = a.rows.squares + first;
    double pivot[kChunk] = {}, shift[kChunk] = {}, spread[kChunk] = {}, inner[kChunk] = {};
    for (int64_t k = 0; k < lanes; ++k) pivot[k] = mean[k];
    for (int64_t row = 0; row < a.count; ++row, mean += a.channels, squares += a.channels) {
      for (int64_t k = 0; k < lanes; ++k) {
        const double d = mean[k] - pivot[k];
        shift[k] += d;
        spread[k] += d * d;
        inner[k] += squares[k];
      }
    }
    const double rows = static_cast<double>(a.count), pixels = static_cast<double>(a.pixels);
    for (int64_t k = 0; k < lanes; ++k) {
      const double between = spread[k] - shift[k] * shift[k] / rows;
      const double all = inner[k] + pixels * between;
      a.sum[first + k] = static_cast<float>(pixels * (rows * pivot[k] + shift[k]));
      a.squares[first + k] = static_cast<float>(all < 0.0 ? 0.0 : all);  // NaN stays
    }
  }
}

// Of one channel after the other, in two passes: float64 is for comparisons, not for speed.
void exact(int64_t begin, int64_t end, void* opaque) {
  const PassArgs& args = *static_cast<const PassArgs*>(opaque);
  const ConvProblem& p = args.problem;
  const bool nhwc = args.layout == Layout::kNHWC;
  const int64_t plane = p.P * p.Q, step = nhwc ? p.K : 1;
  for (int64_t k = begin; k < end; ++k) {
    const auto* y = static_cast<const double*>(args.y) + (nhwc ? k : k * plane);
    double sum = 0, squares = 0;
    for (int64_t n = 0; n < p.N; ++n) {
      for (int64_t i = 0; i < plane; ++i) sum += y[n * p.K * plane + i * step];
    }
    const double mean = sum / static_cast<double>(p.N * plane);
    for (int64_t n = 0; n < p.N; ++n) {
      for (int64_t i = 0; i < plane; ++i) {
        const double d = y[n * p.K * plane + i * step] - mean;
        squares += d * d;
      }
    }
    static_cast<double*>(args.statistics.sum)[k] = sum;
    static_cast<double*>(args.statistics.squares)[k] = squares;
  }
}

}  // namespace

void statistics(const PassArgs& args) {
  const ConvProblem& p = args.problem;
  if (args.dtype == DType::kFloat64) {
    args.parallel.run(p.K, exact, const_cast<PassArgs*>(&args));
    return;
  }
  Combination a{args.moments,
                p.N * p.P,
                p.Q,
                p.K,
                static_cast<float*>(args.statistics.sum),
                static_cast<float*>(args.statistics.squares)};
  args.parallel.run((p.K + kChunk - 1) / kChunk, combine, &a);
}

}  // namespace grouped_conv::cpu
