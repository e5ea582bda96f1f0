#include "cuda/wgrad_launch.cuh"

namespace grouped_conv::cuda {

template int launch_wgrad_kernels<BFloat16>(const WgradArgs&, void*);

}  // namespace grouped_conv::cuda
