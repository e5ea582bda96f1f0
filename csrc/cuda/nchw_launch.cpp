#include "cuda/nchw_launch.h"

namespace grouped_conv::cuda {

struct Float16;
struct BFloat16;

int launch_nchw(const PassArgs& pass, const NchwPlan& plan, void* stream) {
  const NchwArgs args = make_nchw_args(pass, plan);
  return pass.dtype == DType::kFloat16 ? launch_nchw_kernel<Float16>(args, plan, stream)
                                       : launch_nchw_kernel<BFloat16>(args, plan, stream);
}

}  // namespace grouped_conv::cuda
