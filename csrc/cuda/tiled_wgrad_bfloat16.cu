#include "cuda/tiled_wgrad_launch.cuh"

namespace grouped_conv::cuda {

template int launch_tiled_wgrad_kernels<TiledMath::kBFloat16>(const TiledWgradArgs&, void*);

}  // namespace grouped_conv::cuda
