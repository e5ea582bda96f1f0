#include "cuda/nchw_wgrad_launch.h"

namespace grouped_conv::cuda {

struct Float16;
struct BFloat16;

int launch_nchw_wgrad(const ConvProblem& problem, DType dtype, const NchwWgradPlan& plan,
                      const void* x, const void* dy, void* workspace, void* dw, bool channels_last,
                      void* stream) {
  const NchwWgradArgs args =
      make_nchw_wgrad_args(problem, plan, x, dy, workspace, dw, channels_last);
  return dtype == DType::kFloat16 ? launch_nchw_wgrad_kernels<Float16>(args, plan, stream)
                                  : launch_nchw_wgrad_kernels<BFloat16>(args, plan, stream);
}

}  // namespace grouped_conv::cuda
