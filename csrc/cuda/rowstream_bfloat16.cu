#include "cuda/rowstream_launch.cuh"

namespace grouped_conv::cuda {

template int launch_rowstream_kernel<BFloat16>(const RowstreamArgs&, void*);

}  // namespace grouped_conv::cuda
