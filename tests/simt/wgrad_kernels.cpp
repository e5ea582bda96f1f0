// The weight-gradient kernels for the emulator.
#include <utility>

#include "cuda/wgrad.cuh"
#include "cuda/wgrad_launch.h"
#include "cuda/wgrad_reduce.cuh"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, typename T>
std::vector<simt::Report> launch(const PassArgs& pass, void* workspace, int sm_count,
                                 const simt::Options& options) {
  const WgradPlan plan = plan_wgrad(kId, pass.problem, sm_count);
  const WgradArgs args = make_wgrad_args(pass.problem, plan, pass.x.data, pass.y.data, workspace,
                                         pass.w.data, pass.w.strides[1] == 1);
  const auto run = [&](const WgradLaunch& shape, void (*kernel)(WgradArgs)) {
    return simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options,
                        [&] { kernel(args); });
  };
  return {run(wgrad_rowstream_launch(plan), wgrad_rowstream_kernel<kId, T>),
          run(wgrad_reduce_launch(args), wgrad_reduce_kernel<T>)};
}

template <int kId, typename T>
EmulatedKernel emulated(DType dtype) {
  return {kWgradConfigs[kId].name,
          Pass::kWgrad,
          dtype,
          [](const ConvProblem& p) -> std::string {
            return wgrad_supports(kWgradConfigs[kId], p) ? "" : "wgrad_supports() says no";
          },
          [](const ConvProblem& p, int sm_count) {
            return plan_wgrad(kId, p, sm_count).workspace_bytes(p);
          },
          launch<kId, T>};
}

template <int... kId>
std::vector<EmulatedKernel> all(std::integer_sequence<int, kId...>) {
  return {emulated<kId, Float16>(DType::kFloat16)..., emulated<kId, BFloat16>(DType::kBFloat16)...};
}

}  // namespace

std::vector<EmulatedKernel> wgrad_kernels() {
  return all(std::make_integer_sequence<int, kWgradConfigCount>());
}

}  // namespace grouped_conv::cuda
