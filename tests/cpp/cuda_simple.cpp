// The bodies of the plain CUDA kernels, run on the host, against the plain CPU kernels: two
// programs that share nothing but the problem.
#include "cuda/simple.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/kernels.h"

namespace {

using namespace grouped_conv;

int failures = 0;

void run_all(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  body(0, count, context);
}

template <typename T>
std::vector<T> random_values(int64_t count, std::mt19937& rng) {
  std::uniform_real_distribution<T> uniform(-1, 1);
  std::vector<T> values(static_cast<size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return uniform(rng); });
  return values;
}

template <typename T>
cuda::View<T> view(std::vector<T>& values, Layout layout, int64_t c, int64_t h, int64_t w) {
  if (layout == Layout::kNHWC) return {values.data(), {h * w * c, 1, w * c, c}};
  return {values.data(), {c * h * w, h * w, w, 1}};
}

template <typename T>
void run_on_host(Pass pass, const cuda::SimpleArgs<T>& args) {
  const ConvProblem& p = args.problem;
  if (pass == Pass::kFprop) {
    for (int64_t i = 0; i < p.N * p.K * p.P * p.Q; ++i) cuda::fprop_simple_element(args, i);
  } else if (pass == Pass::kDgrad) {
    for (int64_t i = 0; i < p.N * p.C * p.H * p.W; ++i) cuda::dgrad_simple_element(args, i);
  } else {
    constexpr int64_t kThreads = 8;
    for (int64_t i = 0; i < p.K * (p.C / p.G) * p.R * p.S; ++i) {
      const cuda::Position at = cuda::position(args.w, i, p.C / p.G, p.R, p.S);
      T sum = 0;
      for (int64_t t = 0; t < kThreads; ++t) sum += wgrad_simple_partial(args, at, t, kThreads);
      args.w(at.n, at.c, at.h, at.w) = sum;
    }
  }
}

// Sum and squared deviations of y, against those of the CPU in float64.
template <typename T>
void check_statistics(const cuda::SimpleArgs<T>& args, Layout layout) {
  const ConvProblem& p = args.problem;
  const int64_t count = p.N * p.P * p.Q;
  if (count == 0) return;
  std::vector<double> y(static_cast<size_t>(count * p.K));
  std::copy_n(args.y.data, y.size(), y.begin());
  std::vector<double> sums(static_cast<size_t>(p.K)), squares(static_cast<size_t>(p.K));
  cpu::PassArgs wanted{Pass::kFprop, p,       cpu::DType::kFloat64, layout, nullptr, nullptr,
                       y.data(),     nullptr, {run_all, 1}};
  wanted.statistics = {sums.data(), squares.data()};
  cpu::statistics(wanted);
  const double allowed = double(count) * (std::is_same_v<T, double> ? 1e-14 : 1e-5);
  for (int64_t k = 0; k < p.K; ++k) {
    const T sum = cuda::statistics_partial<T>(args, k, nullptr, 0, 2) +
                  cuda::statistics_partial<T>(args, k, nullptr, 1, 2);
    const T mean = sum / T(count);
    const T rest = cuda::statistics_partial<T>(args, k, &mean, 0, 1);
    const size_t i = static_cast<size_t>(k);
    if (!(std::abs(double(sum) - sums[i]) <= allowed * (1 + std::abs(sums[i]))) ||
        !(std::abs(double(rest) - squares[i]) <= allowed * (1 + squares[i]))) {
      std::printf("statistics of channel %ld: %g and %g instead of %g and %g\n", long(k),
                  double(sum), double(rest), sums[i], squares[i]);
      ++failures;
    }
  }
}

template <typename T>
void compare(const ConvProblem& p, Layout layout, bool with_bias, std::mt19937& rng) {
  const bool is_double = std::is_same_v<T, double>;
  const auto x = random_values<T>(p.N * p.C * p.H * p.W, rng);
  const auto w = random_values<T>(p.K * p.c_per_group() * p.R * p.S, rng);
  const auto y = random_values<T>(p.N * p.K * p.P * p.Q, rng);
  const auto bias = random_values<T>(p.K, rng);
  const auto scale = random_values<T>(p.K, rng);
  const auto shift = random_values<T>(p.K, rng);
  const auto residual = random_values<T>(p.N * p.K * p.P * p.Q, rng);
  for (const Pass pass : {Pass::kFprop, Pass::kDgrad, Pass::kWgrad}) {
    std::vector<T> ours[3] = {x, w, y};
    std::vector<T> theirs[3] = {x, w, y};
    const bool fprop = pass == Pass::kFprop;
    const T* pass_bias = with_bias && fprop ? bias.data() : nullptr;
    // The epilogue with the pass where there is a bias, else in a pass of its own.
    const cuda::SimpleEpilogue<T> none{};
    const cuda::SimpleEpilogue<T> epilogue =
        fprop ? cuda::SimpleEpilogue<T>{scale.data(), shift.data(), residual.data(), true} : none;
    cuda::SimpleArgs<T> args{p,
                             view(ours[0], layout, p.C, p.H, p.W),
                             view(ours[1], Layout::kNCHW, p.c_per_group(), p.R, p.S),
                             view(ours[2], layout, p.K, p.P, p.Q),
                             pass_bias,
                             1,
                             with_bias ? epilogue : none};
    run_on_host<T>(pass, args);
    if (fprop) {
      args.epilogue = epilogue;
      const int64_t count = p.N * p.K * p.P * p.Q;
      for (int64_t i = 0; !with_bias && i < count; ++i) cuda::epilogue_element(args, i);
      check_statistics(args, layout);
    }
    cpu::simple({pass,
                 p,
                 is_double ? cpu::DType::kFloat64 : cpu::DType::kFloat32,
                 layout,
                 theirs[0].data(),
                 theirs[1].data(),
                 theirs[2].data(),
                 pass_bias,
                 {run_all, 1},
                 {epilogue.scale, epilogue.shift, epilogue.residual, epilogue.relu}});
    const size_t written = pass == Pass::kFprop ? 2 : pass == Pass::kDgrad ? 0 : 1;
    double worst = 0;
    for (size_t i = 0; i < ours[written].size(); ++i) {
      worst = std::max(worst, std::abs(double(ours[written][i]) - double(theirs[written][i])));
    }
    const double terms = double(std::max({p.N * p.P * p.Q, p.c_per_group() * p.R * p.S}));
    if (!(worst <= terms * (is_double ? 1e-15 : 1e-6))) {
      std::printf("pass %d, layout %d, N%ld C%ld H%ld W%ld K%ld R%ld S%ld G%ld: differs by %g\n",
                  int(pass), int(layout), long(p.N), long(p.C), long(p.H), long(p.W), long(p.K),
                  long(p.R), long(p.S), long(p.G), worst);
      ++failures;
    }
  }
}

}  // namespace

int main() {
  std::mt19937 rng(0);
  const auto between = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(rng);
  };
  int compared = 0;
  while (compared < 200) {
    const int64_t groups = between(1, 4);
    const ConvProblem p = ConvProblem::make(
        between(0, 3), groups * between(1, 5), between(1, 9), between(1, 9), groups * between(1, 5),
        between(1, 4), between(1, 4), groups, between(0, 3), between(0, 3), between(1, 3),
        between(1, 3), between(1, 2), between(1, 2));
    if (p.P <= 0 || p.Q <= 0) continue;
    for (const Layout layout : {Layout::kNCHW, Layout::kNHWC}) {
      compare<float>(p, layout, compared % 2 == 0, rng);
      compare<double>(p, layout, compared % 2 == 1, rng);
    }
    ++compared;
  }
  std::printf("%d problems, %d failures\n", compared, failures);
  return failures != 0;
}
