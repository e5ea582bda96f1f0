#include "cuda/tiled_launch.cuh"

namespace grouped_conv::cuda {

template int launch_tiled_kernels<TiledMath::kBFloat16>(const TiledArgs&, const TiledPlan&, void*);

}  // namespace grouped_conv::cuda
