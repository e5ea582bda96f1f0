#include "cuda/wgrad_launch.cuh"

namespace grouped_conv::cuda {

template int launch_wgrad_kernels<BFloat16>(const WgradArgs&, void*);
template int launch_wgrad_reduce<BFloat16>(const WgradArgs&, void*);

}  // namespace grouped_conv::cuda
