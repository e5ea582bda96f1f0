#include "cuda/rowstream_launch.cuh"

namespace grouped_conv::cuda {

template int launch_rowstream_kernel<BFloat16>(const RowstreamArgs&, Tail, void*);

}  // namespace grouped_conv::cuda
