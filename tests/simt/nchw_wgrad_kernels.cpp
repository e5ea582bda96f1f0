// The weight-gradient kernels for NCHW tensors for the emulator.
#include <utility>

#include "cuda/nchw_wgrad.cuh"
#include "cuda/nchw_wgrad_launch.h"
#include "cuda/wgrad_reduce.cuh"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, typename T>
std::vector<simt::Report> launch(const PassArgs& pass, void* workspace, int sm_count,
                                 const simt::Options& options) {
  const NchwWgradPlan plan = plan_nchw_wgrad(kId, pass.problem, sm_count);
  const NchwWgradArgs args = make_nchw_wgrad_args(pass.problem, plan, pass.x.data, pass.y.data,
                                                  workspace, pass.w.data, pass.w.strides[1] == 1);
  const auto run = [&](const WgradLaunch& shape, const auto& kernel) {
    return simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options, kernel);
  };
  return {run(nchw_wgrad_launch(plan), [&] { nchw_wgrad_kernel<kId, T>(args); }),
          run(wgrad_reduce_launch(args.wgrad), [&] { wgrad_reduce_kernel<T>(args.wgrad); })};
}

template <int kId, typename T>
EmulatedKernel emulated(DType dtype) {
  return {kNchwWgradConfigs[kId].name,
          Pass::kWgrad,
          dtype,
          [](const ConvProblem& p) -> std::string {
            return nchw_wgrad_supports(kNchwWgradConfigs[kId], p) ? ""
                                                                  : "nchw_wgrad_supports() says no";
          },
          [](const ConvProblem& p, int sm_count) {
            return plan_nchw_wgrad(kId, p, sm_count).tiles.workspace_bytes(p);
          },
          launch<kId, T>,
          true};
}

template <int... kId>
std::vector<EmulatedKernel> all(std::integer_sequence<int, kId...>) {
  return {emulated<kId, Float16>(DType::kFloat16)..., emulated<kId, BFloat16>(DType::kBFloat16)...};
}

}  // namespace

std::vector<EmulatedKernel> nchw_wgrad_kernels() {
  return all(std::make_integer_sequence<int, kNchwWgradConfigCount>());
}

}  // namespace grouped_conv::cuda
