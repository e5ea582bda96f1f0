#include "cuda/wgrad_launch.h"

namespace grouped_conv::cuda {

struct Float16;
struct BFloat16;

int launch_wgrad(const ConvProblem& problem, DType dtype, const WgradPlan& plan, const void* x,
                 const void* dy, void* workspace, void* dw, bool channels_last, void* stream) {
  const WgradArgs args = make_wgrad_args(problem, plan, x, dy, workspace, dw, channels_last);
  return dtype == DType::kFloat16 ? launch_wgrad_kernels<Float16>(args, stream)
                                  : launch_wgrad_kernels<BFloat16>(args, stream);
}

}  // namespace grouped_conv::cuda
