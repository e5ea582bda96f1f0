// Plants every fault that the emulator can plant into a small pipelined kernel, one at a time: each
// must be noticed, by a report, a wrong result or an incomplete one.
#include <vector>

#include "cuda/device/device.h"
#include "simt/check.h"
#include "simt/simt.h"

namespace {

using namespace grouped_conv::cuda;
using namespace grouped_conv::cuda::device;
using simt::Buffer;
using simt::check;

constexpr int kStages = 3;
constexpr int kThreads = 64;
constexpr int kSlots = 18;  // 16 pixels between two pads
constexpr int kPlane = kSlots * 16;
constexpr int kStage = 2 * kPlane;  // each warp has a plane
constexpr int kShared = kStages * kStage + 2 * kPlane;
constexpr int kRows = 7, kChannels = 16;

// y[row][pixel][c] = sum over taps s of x[row][pixel + s - 1][c], 16 bits, eight channels a warp;
// pixels from `width` on are zero in x and not written in y. The taps are summed by mma with unit
// matrices. One barrier a row; outputs leave through shared memory.
GC_GLOBAL(kThreads, 1) box_filter(const Float16* x, Float16* y, int width) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const uint32_t out = base + kStages * kStage;
  const int t = thread_index(), lane = lane_index(), warp = warp_index();
  for (int i = t; i < kStages * 4; i += kThreads) {
    const int plane = i / 2, slot = i % 2 * (kSlots - 1);
    store_shared_16(base + plane * kPlane + slot * 16, Bytes16{});
  }
  // Lanes of the first half bring in a pixel's eight channels.
  const int pixel = lane % 16;
  const bool mover = lane < 16;
  const auto load = [&](int row) {
    const uint32_t target = base + row % kStages * kStage + warp * kPlane + (pixel + 1) * 16;
    const Float16* source = x + (row * width + pixel) * kChannels + warp * 8;
    cp_async_16(target, source, row < kRows && pixel < width, mover && row < kRows);
    cp_async_commit();
  };
  load(0);
  load(1);
  const uint32_t unit[1] = {lane / 4 / 2 == lane % 4 ? (lane / 4 % 2 ? 0x3c000000u : 0x3c00u) : 0u};
  for (int row = 0; row < kRows; ++row) {
    cp_async_wait<1>();
    sync_threads();
    load(row + 2);
    float sums[4] = {};
    for (int s = 0; s < 3; ++s) {
      uint32_t a[2];
      ldmatrix_x2(a, base + row % kStages * kStage + warp * kPlane + (lane % 16 + s) * 16);
      mma_m16n8k8<Float16>(sums, a, unit);
    }
    const uint32_t plane = out + warp * kPlane + lane / 4 * 16 + lane % 4 * 4;
    store_shared_4(plane, pack2<Float16>(sums[0], sums[1]));
    store_shared_4(plane + 8 * 16, pack2<Float16>(sums[2], sums[3]));
    sync_warp();
    const Bytes16 v = load_shared_16(out + warp * kPlane + pixel * 16);
    store_global_16(y + (row * width + pixel) * kChannels + warp * 8, v, mover && pixel < width);
  }
}

struct Outcome {
  simt::Report report;
  bool right;
};

Outcome run(int width, const simt::Options& options) {
  Buffer x("x", size_t(kRows * width * kChannels * 2), Buffer::Use::kInput);
  Buffer y("y", size_t(kRows * width * kChannels * 2), Buffer::Use::kOutput);
  const auto at = [&](int row, int pixel, int c) { return (row * width + pixel) * kChannels + c; };
  const auto value = [](int row, int pixel, int c) { return row * 37 % 11 + pixel * 5 % 17 + c; };
  for (int row = 0; row < kRows; ++row) {
    for (int pixel = 0; pixel < width; ++pixel) {
      for (int c = 0; c < kChannels; ++c) {
        x.host<uint16_t>()[at(row, pixel, c)] = simt::to_float16(float(value(row, pixel, c)));
      }
    }
  }
  Outcome outcome;
  outcome.report = simt::launch({{1}, kThreads, kShared}, options, [&] {
    box_filter(x.device<Float16>(), y.device<Float16>(), width);
  });
  outcome.right = y.complete();
  for (int row = 0; row < kRows; ++row) {
    for (int pixel = 0; pixel < width; ++pixel) {
      for (int c = 0; c < kChannels; ++c) {
        int sum = 0;
        for (int p = pixel - 1; p <= pixel + 1; ++p)
          sum += p >= 0 && p < width ? value(row, p, c) : 0;
        outcome.right &= simt::from_float16(y.host<uint16_t>()[at(row, pixel, c)]) == float(sum);
      }
    }
  }
  return outcome;
}

}  // namespace

int main() {
  constexpr int kWidth = 13;
  for (const uint64_t schedule : {0, 1, 2, 3}) {
    const Outcome outcome = run(kWidth, {.schedule = schedule});
    check(outcome.report.clean() && outcome.right, "the filter: " + outcome.report.text());
    check(outcome.report.counts.conflicts() == 0, "conflicts");
  }
  const auto mutations = simt::mutations_of(run(kWidth, {}).report.counts);
  int planted = 0;
  for (const simt::Mutation& mutation : mutations) {
    const Outcome outcome = run(kWidth, {.mutation = mutation});
    if (outcome.report.effects == 0) continue;
    ++planted;
    const std::string name = std::string(simt::name(mutation.kind)) + " at " + mutation.file + ":" +
                             std::to_string(mutation.line);
    check(!outcome.report.clean() || !outcome.right, name + " is not noticed");
  }
  check(planted >= 20, "only " + std::to_string(planted) + " mutations made a difference");
  std::printf("%d mutations, %d failures\n", planted, simt::failures);
  return simt::failures != 0;
}
