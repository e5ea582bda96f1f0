#include "cuda/nchw_wgrad_launch.cuh"

namespace grouped_conv::cuda {

template int launch_nchw_wgrad_kernels<BFloat16>(const NchwWgradArgs&, const NchwWgradPlan&, void*);

}  // namespace grouped_conv::cuda
