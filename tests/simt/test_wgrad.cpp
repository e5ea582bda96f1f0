// Every weight-gradient kernel, in both element types and both orders of dw, on odd shapes: right
// to rounding, and nothing for the emulator to report.
#include <cstdio>

#include "simt/wgrad_driver.h"

namespace {

using namespace grouped_conv;
using namespace grouped_conv::cuda;

struct Shape {
  int N, H, W, pad_h, pad_w;
  int extra_eights;  // channels beyond one block's: a second block, only partly filled
  int splits;        // blocks that share the rows; 0: as planned
};

// Widths from one pixel to more than a tile, rows that end in the middle of an image, images that
// do not fill the last tile, padding from none to two.
constexpr Shape kShapes[] = {
    {3, 7, 7, 1, 1, 0, 2},    {9, 7, 7, 1, 1, 1, 3},  {2, 14, 14, 1, 1, 0, 5},
    {1, 5, 33, 1, 1, 0, 1},   {1, 4, 70, 1, 1, 0, 3}, {2, 3, 131, 1, 1, 0, 2},
    {3, 6, 5, 0, 0, 0, 2},    {2, 5, 6, 2, 2, 0, 3},  {2, 4, 9, 0, 2, 0, 4},
    {1, 3, 66, 2, 0, 0, 2},   {17, 1, 1, 1, 1, 0, 1}, {2, 1, 3, 2, 2, 0, 0},
    {1, 9, 64, 1, 1, 0, 4},   {1, 3, 63, 1, 1, 1, 1}, {5, 3, 4, 1, 1, 0, 0},
    {1, 11, 12, 1, 1, 0, 11},
};

int failures = 0;

void check(int config_index, const Shape& shape, WgradElement element, bool channels_last,
           uint64_t seed) {
  const WgradConfig& config = kWgradConfigs[config_index];
  // Whole groups, in eights.
  const int unit = std::max(8, config.c_per_group);
  const int64_t C = config.channels + unit * shape.extra_eights;
  const ConvProblem p =
      ConvProblem::make(shape.N, C, shape.H, shape.W, C, 3, 3, C / config.c_per_group, shape.pad_h,
                        shape.pad_w, config.stride, config.stride, 1, 1);
  if (!wgrad_supports(config, p)) return;  // an image smaller than the kernel
  WgradPlan plan = plan_wgrad(config_index, p, 132);
  if (shape.splits > 0) plan.splits = std::min(shape.splits, plan.rows);

  const WgradInputs inputs = WgradInputs::random(p, element, seed);
  const WgradRun run = run_wgrad(p, plan, inputs, channels_last, {.schedule = seed % 3});
  const WgradReference reference = wgrad_reference(p, inputs, channels_last);
  int64_t wrong = 0;
  double worst = 0;
  for (size_t i = 0; i < run.dw.size(); ++i) {
    const double error = std::abs(run.dw[i] - reference.sum[i]);
    const double allowed =
        std::abs(reference.sum[i]) * rounding(element) + reference.magnitude[i] * 0x1p-21 + 0x1p-24;
    if (!(error <= allowed)) ++wrong;
    worst = std::max(worst, error / allowed);
  }
  if (wrong || !run.complete || !run.rowstream.clean() || !run.reduce.clean()) {
    ++failures;
    std::printf(
        "FAILED %s %s %s N=%d C=%d H=%d W=%d pad=%d,%d splits=%d: %d wrong, worst %.2f\n%s%s",
        config.name, element == WgradElement::kFloat16 ? "float16" : "bfloat16",
        channels_last ? "KRSC" : "KCRS", int(p.N), int(p.C), int(p.H), int(p.W), int(p.pad_h),
        int(p.pad_w), plan.splits, int(wrong), worst, run.rowstream.text().c_str(),
        run.reduce.text().c_str());
  }
}

}  // namespace

int main() {
  int runs = 0;
  for (int config = 0; config < kWgradConfigCount; ++config) {
    int shape_index = 0;
    for (const Shape& shape : kShapes) {
      // Each shape in one order of dw, and each element type in both over the shapes.
      const bool channels_last = (shape_index + config) % 2 != 0;
      const WgradElement element = kWgradElements[(shape_index / 2 + config) % 2];
      check(config, shape, element, channels_last, uint64_t(runs));
      ++shape_index;
      ++runs;
    }
  }
  std::printf("%d runs, %d failures\n", runs, failures);
  return failures != 0;
}
