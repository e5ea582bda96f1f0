#include "cuda/tiled_wgrad_launch.h"

namespace grouped_conv::cuda {

int launch_tiled_wgrad(const TiledWgradArgs& args, void* stream) {
  switch (args.plan.math) {
    case TiledMath::kFloat16:
      return launch_tiled_wgrad_kernels<TiledMath::kFloat16>(args, stream);
    case TiledMath::kBFloat16:
      return launch_tiled_wgrad_kernels<TiledMath::kBFloat16>(args, stream);
    case TiledMath::kTf32:
      return launch_tiled_wgrad_kernels<TiledMath::kTf32>(args, stream);
    case TiledMath::kFma:
      break;
  }
  return launch_tiled_wgrad_kernels<TiledMath::kFma>(args, stream);
}

}  // namespace grouped_conv::cuda
