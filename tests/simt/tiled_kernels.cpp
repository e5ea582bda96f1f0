// The tiled kernels of fprop and dgrad for the emulator.
#include <string>
#include <utility>

#include "cuda/tiled_conv.cuh"
#include "cuda/tiled_launch.h"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

template <int kId, TiledMath kMath>
EmulatedKernel emulated(Pass pass, DType dtype, bool planar) {
  const auto plan_of = [pass, planar](const ConvProblem& p, int sm_count) {
    return plan_tiled(kId, pass, p, kMath, !planar, sm_count);
  };
  EmulatedKernel kernel{
      std::string(kTiledConfigs[kId].name) + (kMath == TiledMath::kTf32 ? "_tf32" : ""),
      pass,
      dtype,
      [pass, dtype](const ConvProblem& p) -> std::string {
        if (const char* why = tiled_refusal(pass, p, dtype)) return why;
        return tiled_runs(kTiledConfigs[kId], pass, p) ? "" : "tiled_runs() says no";
      },
      [plan_of](const ConvProblem& p, int sm_count) {
        return plan_of(p, sm_count).workspace_bytes();
      },
      [plan_of](const PassArgs& args, void* workspace, int sm_count,
                const simt::Options& options) -> std::vector<simt::Report> {
        const TiledPlan plan = plan_of(args.problem, sm_count);
        const TiledArgs tiled = make_tiled_args(args, plan, workspace);
        simt::Options all = options;  // what is packed is wanted whole
        all.most_blocks = 0;
        return {
            simt::launch({{int(tiled_pack_blocks(plan))}, kTiledThreads, 0}, all,
                         [&] { pack_tiled_kernel<kMath>(tiled); }),
            simt::launch({{int(plan.blocks())}, kTiledThreads, plan.shared_bytes()}, options, [&] {
              if (plan.direct) {
                tiled_conv_kernel<kId, kMath, true>(tiled);
              } else {
                tiled_conv_kernel<kId, kMath, false>(tiled);
              }
            })};
      }};
  kernel.planar = planar;
  kernel.takes_epilogue = pass == Pass::kFprop;
  kernel.takes_residual = kernel.takes_epilogue;
  return kernel;
}

template <int kId>
void add(std::vector<EmulatedKernel>& kernels) {
  for (const Pass pass : {Pass::kFprop, Pass::kDgrad}) {
    for (const bool planar : {false, true}) {
      kernels.push_back(emulated<kId, TiledMath::kFloat16>(pass, DType::kFloat16, planar));
      kernels.push_back(emulated<kId, TiledMath::kBFloat16>(pass, DType::kBFloat16, planar));
      kernels.push_back(emulated<kId, TiledMath::kTf32>(pass, DType::kFloat32, planar));
      kernels.push_back(emulated<kId, TiledMath::kFma>(pass, DType::kFloat32, planar));
    }
  }
}

}  // namespace

std::vector<EmulatedKernel> tiled_kernels() {
  std::vector<EmulatedKernel> kernels;
  [&]<int... kId>(std::integer_sequence<int, kId...>) {
    (add<kId>(kernels), ...);
  }(std::make_integer_sequence<int, kTiledConfigCount>());
  return kernels;
}

}  // namespace grouped_conv::cuda
