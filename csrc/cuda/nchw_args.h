// The arguments of the NCHW kernels of fprop and dgrad.
#pragma once

#include "cuda/nchw_configs.h"
#include "cuda/rowstream_args.h"

namespace grouped_conv::cuda {

struct NchwArgs {
  RowstreamArgs walk;  // tensors are dense NCHW; what it says of rows and tiles in bytes is unused
  NchwBands input, output;
};

}  // namespace grouped_conv::cuda
