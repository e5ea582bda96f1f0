#include "cuda/nchw_launch.cuh"

namespace grouped_conv::cuda {

template int launch_nchw_kernel<BFloat16>(const NchwArgs&, const NchwPlan&, void*);

}  // namespace grouped_conv::cuda
