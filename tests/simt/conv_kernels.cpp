// The kernels of fprop and dgrad for the emulator.
#include <utility>

#include "cuda/dgrad.cuh"
#include "cuda/fprop.cuh"
#include "cuda/rowstream_launch.h"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, typename T>
std::vector<simt::Report> launch(const PassArgs& pass, void* workspace, int sm_count,
                                 const simt::Options& options) {
  if (tail_of(pass) != Tail::kNone) {
    return launch_with_tail(pass, kId, workspace, sm_count, options);
  }
  const RowstreamPlan plan = plan_rowstream(kId, pass.pass, pass.problem, sm_count);
  const RowstreamArgs args = make_rowstream_args(pass, plan);
  const RowstreamLaunch shape = rowstream_launch(plan);
  return {simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options, [&] {
    if constexpr (kRowstreamConfigs[kId].walk == Walk::kDgradStride2) {
      dgrad_rowstream_kernel<kId, T>(args);
    } else {
      fprop_rowstream_kernel<kId, T, Tail::kNone>(args);
    }
  })};
}

template <int kId, typename T>
EmulatedKernel emulated(Pass pass, DType dtype) {
  return {kRowstreamConfigs[kId].name,
          pass,
          dtype,
          [pass](const ConvProblem& p) -> std::string {
            return rowstream_supports(kRowstreamConfigs[kId], pass, p)
                       ? ""
                       : "rowstream_supports() says no";
          },
          [pass](const ConvProblem& p, int sm_count) -> int64_t {
            const RowstreamPlan plan = plan_rowstream(kId, pass, p, sm_count);
            return statistics_bytes(statistics_rows_of(plan), p.K);
          },
          launch<kId, T>,
          false,
          pass == Pass::kFprop && rowstream_has(kRowstreamConfigs[kId], Tail::kAffine),
          pass == Pass::kFprop && rowstream_has(kRowstreamConfigs[kId], Tail::kResidual),
          pass == Pass::kFprop && rowstream_has(kRowstreamConfigs[kId], Tail::kStatistics)};
}

// A configuration of stride 1 computes both passes.
template <int kId>
void add(std::vector<EmulatedKernel>& kernels) {
  constexpr Walk kWalk = kRowstreamConfigs[kId].walk;
  for (const Pass pass : {Pass::kFprop, Pass::kDgrad}) {
    const int stride = kWalk == Walk::kUnitStride ? 1 : 2;
    if (!rowstream_runs(kWalk, pass, stride)) continue;
    kernels.push_back(emulated<kId, Float16>(pass, DType::kFloat16));
    kernels.push_back(emulated<kId, BFloat16>(pass, DType::kBFloat16));
  }
}

}  // namespace

std::vector<EmulatedKernel> conv_kernels() {
  std::vector<EmulatedKernel> kernels;
  [&]<int... kId>(std::integer_sequence<int, kId...>) {
    (add<kId>(kernels), ...);
  }(std::make_integer_sequence<int, kRowstreamConfigCount>());
  return kernels;
}

}  // namespace grouped_conv::cuda
