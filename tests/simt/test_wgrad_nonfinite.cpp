// Inf and NaN in x or dy change those elements of dw that have a product with them, as the
// definition says, and no others: not through padding, nor the gaps between images side by side,
// nor the products of a slab that are dropped.
#include <cstdio>

#include "simt/wgrad_driver.h"

namespace {

using namespace grouped_conv;
using namespace grouped_conv::cuda;

int failures = 0;

// One element of dw depends on one channel of x and on one of dy: each planted channel is a test of
// its own. Every third channel stays as it is.
bool planted(int64_t channel) { return channel % 3 != 2; }

// Plants a value in each planted channel, the pixel given by the channel and the turn, so that all
// pixels have their turn.
void plant(std::vector<uint16_t>& values, WgradElement element, int64_t pixels, int64_t channels,
           int64_t turn) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kValues[] = {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()};
  for (int64_t c = 0; c < channels; ++c) {
    if (!planted(c)) continue;
    const int64_t pixel = (turn * channels + c - c / 3) % pixels;
    values[size_t(pixel * channels + c)] = encode(element, kValues[(c / 3 + turn) % 3]);
  }
}

bool same_class(double expected, float actual) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return double(actual) == expected;
  return std::isfinite(actual);
}

struct Case {
  int H, W, pad_h, pad_w;
};

void check(int config_index, WgradElement element, const Case& shape, bool channels_last) {
  const WgradConfig& config = kWgradConfigs[config_index];
  constexpr int64_t kImages = 3;
  const int64_t C = config.channels;
  const ConvProblem p =
      ConvProblem::make(kImages, C, shape.H, shape.W, C, 3, 3, C / config.c_per_group, shape.pad_h,
                        shape.pad_w, config.stride, config.stride, 1, 1);
  WgradPlan plan = plan_wgrad(config_index, p, 132);
  plan.splits = std::min(2, plan.rows);
  const WgradInputs clean = WgradInputs::random(p, element, 1);
  const WgradRun clean_run = run_wgrad(p, plan, clean, channels_last, {});

  for (const bool in_x : {true, false}) {
    const int64_t pixels = in_x ? p.N * p.H * p.W : p.N * p.P * p.Q;
    const int64_t per_turn = C - C / 3;
    for (int64_t turn = 0; turn * per_turn < pixels; ++turn) {
      WgradInputs inputs = clean;
      plant(in_x ? inputs.x : inputs.dy, element, pixels, C, turn);
      const WgradRun run = run_wgrad(p, plan, inputs, channels_last, {.schedule = uint64_t(turn)});
      const WgradReference reference = wgrad_reference(p, inputs, channels_last);
      int wrong_class = 0, wrong_value = 0, changed = 0;
      for (int64_t k = 0; k < p.K; ++k) {
        for (int64_t c = 0; c < config.c_per_group; ++c) {
          const bool touched = planted(in_x ? k / config.c_per_group * config.c_per_group + c : k);
          for (int64_t tap = 0; tap < 9; ++tap) {
            const size_t i = size_t(dw_index(p, channels_last, k, c, tap));
            const double expected = reference.sum[i];
            const double allowed =
                std::abs(expected) * rounding(element) + reference.magnitude[i] * 0x1p-21;
            if (!same_class(expected, run.dw[i])) ++wrong_class;
            if (std::isfinite(expected) && !(std::abs(run.dw[i] - expected) <= allowed + 0x1p-24)) {
              ++wrong_value;
            }
            if (!touched && run.dw[i] != clean_run.dw[i]) ++changed;
          }
        }
      }
      if (wrong_class || wrong_value || changed || !run.rowstream.clean() || !run.reduce.clean()) {
        ++failures;
        std::printf(
            "FAILED %s %s in %s, turn %d: %d of the wrong class, %d wrong, %d changed\n%s%s",
            config.name, element == WgradElement::kFloat16 ? "float16" : "bfloat16",
            in_x ? "x" : "dy", int(turn), wrong_class, wrong_value, changed,
            run.rowstream.text().c_str(), run.reduce.text().c_str());
      }
    }
  }
}

}  // namespace

int main() {
  constexpr Case kCases[] = {{4, 5, 1, 1}, {5, 4, 2, 0}, {4, 6, 0, 2}};
  for (int config = 0; config < kWgradConfigCount; ++config) {
    int turn = config;
    for (const Case& shape : kCases) {
      check(config, kWgradElements[turn % 2], shape, turn / 2 % 2 != 0);
      ++turn;
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
