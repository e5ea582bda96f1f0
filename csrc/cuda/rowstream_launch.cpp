#include "cuda/rowstream_launch.h"

namespace grouped_conv::cuda {

struct Float16;
struct BFloat16;

int launch_rowstream(const PassArgs& pass, const RowstreamPlan& plan, void* stream) {
  const RowstreamArgs args = make_rowstream_args(pass, plan);
  return pass.dtype == DType::kFloat16 ? launch_rowstream_kernel<Float16>(args, stream)
                                       : launch_rowstream_kernel<BFloat16>(args, stream);
}

}  // namespace grouped_conv::cuda
