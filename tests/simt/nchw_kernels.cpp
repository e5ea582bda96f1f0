// The NCHW kernels of fprop and dgrad for the emulator.
#include <utility>

#include "cuda/nchw_conv.cuh"
#include "cuda/nchw_launch.h"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, typename T>
std::vector<simt::Report> launch(const PassArgs& pass, void*, int sm_count,
                                 const simt::Options& options) {
  const NchwPlan plan = plan_nchw(kId, pass.pass, pass.problem, sm_count);
  const NchwArgs args = make_nchw_args(pass, plan);
  const RowstreamLaunch shape = nchw_launch(plan);
  return {simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options,
                       [&] { nchw_conv_kernel<kId, T>(args); })};
}

template <int kId, typename T>
EmulatedKernel emulated(Pass pass, DType dtype) {
  return {kNchwConfigs[kId].name,
          pass,
          dtype,
          [pass](const ConvProblem& p) -> std::string {
            return nchw_supports(kNchwConfigs[kId], pass, p) ? "" : "nchw_supports() says no";
          },
          [](const ConvProblem&, int) -> int64_t { return 0; },
          launch<kId, T>,
          true};
}

// A configuration of stride 1 computes both passes.
template <int kId>
void add(std::vector<EmulatedKernel>& kernels) {
  constexpr Walk kWalk = kNchwConfigs[kId].walk;
  for (const Pass pass : {Pass::kFprop, Pass::kDgrad}) {
    if (!rowstream_runs(kWalk, pass, kWalk == Walk::kUnitStride ? 1 : 2)) continue;
    kernels.push_back(emulated<kId, Float16>(pass, DType::kFloat16));
    kernels.push_back(emulated<kId, BFloat16>(pass, DType::kBFloat16));
  }
}

}  // namespace

std::vector<EmulatedKernel> nchw_kernels() {
  std::vector<EmulatedKernel> kernels;
  [&]<int... kId>(std::integer_sequence<int, kId...>) {
    (add<kId>(kernels), ...);
  }(std::make_integer_sequence<int, kNchwConfigCount>());
  return kernels;
}

}  // namespace grouped_conv::cuda
