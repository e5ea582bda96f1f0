#include "cuda/tiled_wgrad_launch.cuh"

namespace grouped_conv::cuda {

template int launch_tiled_wgrad_kernels<TiledMath::kFma>(const TiledWgradArgs&, void*);

}  // namespace grouped_conv::cuda
