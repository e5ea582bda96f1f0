// The tiled weight-gradient kernels for the emulator.
#include <utility>

#include "cuda/tiled_wgrad.cuh"
#include "cuda/tiled_wgrad_launch.h"
#include "cuda/tiled_wgrad_reduce.cuh"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, TiledMath kMath, bool kVector, bool kPlanar>
EmulatedKernel emulated(DType dtype) {
  using Element = typename TiledWgradElement<kMath>::type;
  EmulatedKernel kernel;
  kernel.name = std::string(kTiledWgradConfigs[kId].name) + (kVector ? "_vector" : "_gather") +
                (kMath == TiledMath::kTf32 ? "_tf32" : "");
  kernel.pass = Pass::kWgrad;
  kernel.dtype = dtype;
  kernel.planar = kPlanar;
  kernel.refusal = [dtype](const ConvProblem& p) -> std::string {
    if (const char* why = tiled_wgrad_refusal(p, dtype)) return why;
    return kVector && !tiled_wgrad_takes_vectors(kMath, p) ? "its slots are no vectors" : "";
  };
  kernel.workspace_bytes = [](const ConvProblem& p, int sm_count) {
    return plan_tiled_wgrad(kId, kMath, kPlanar, kVector, p, sm_count).workspace_bytes(p);
  };
  kernel.launch = [](const PassArgs& pass, void* workspace, int sm_count,
                     const simt::Options& options) {
    const ConvProblem& p = pass.problem;
    const TiledWgradPlan plan = plan_tiled_wgrad(kId, kMath, kPlanar, kVector, p, sm_count);
    const bool channels_last = pass.w.strides[1] == 1;
    const TiledWgradArgs args = make_tiled_wgrad_args(p, plan, pass.x.data, pass.y.data, workspace,
                                                      pass.w.data, channels_last);
    const auto run = [&](const WgradLaunch& shape, void (*function)(TiledWgradArgs)) {
      return simt::launch({{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options,
                          [&] { function(args); });
    };
    return std::vector<simt::Report>{
        run(tiled_wgrad_launch(plan), tiled_wgrad_kernel<kId, kMath, kVector>),
        run(tiled_wgrad_reduce_launch(args), tiled_wgrad_reduce_kernel<Element>)};
  };
  return kernel;
}

template <TiledMath kMath, int... kId>
void append(std::vector<EmulatedKernel>& list, DType dtype, std::integer_sequence<int, kId...>) {
  (list.insert(list.end(),
               {emulated<kId, kMath, true, false>(dtype), emulated<kId, kMath, false, false>(dtype),
                emulated<kId, kMath, false, true>(dtype)}),
   ...);
}

}  // namespace

std::vector<EmulatedKernel> tiled_wgrad_kernels() {
  constexpr std::make_integer_sequence<int, kTiledWgradConfigCount> kIds;
  std::vector<EmulatedKernel> list;
  append<TiledMath::kFloat16>(list, DType::kFloat16, kIds);
  append<TiledMath::kBFloat16>(list, DType::kBFloat16, kIds);
  append<TiledMath::kTf32>(list, DType::kFloat32, kIds);
  append<TiledMath::kFma>(list, DType::kFloat32, kIds);
  return list;
}

}  // namespace grouped_conv::cuda
