#include "cuda/tiled_launch.h"

namespace grouped_conv::cuda {

int launch_tiled(const PassArgs& pass, const TiledPlan& plan, void* workspace, void* stream) {
  const TiledArgs args = make_tiled_args(pass, plan, workspace);
  switch (plan.math) {
    case TiledMath::kFloat16:
      return launch_tiled_kernels<TiledMath::kFloat16>(args, plan, stream);
    case TiledMath::kBFloat16:
      return launch_tiled_kernels<TiledMath::kBFloat16>(args, plan, stream);
    case TiledMath::kTf32:
      return launch_tiled_kernels<TiledMath::kTf32>(args, plan, stream);
    case TiledMath::kFma:
      return launch_tiled_kernels<TiledMath::kFma>(args, plan, stream);
  }
  return 0;
}

}  // namespace grouped_conv::cuda
