#include "cuda/statistics.cuh"

#include <cuda_runtime_api.h>

#include "cuda/rowstream_launch.h"

namespace grouped_conv::cuda {

int launch_statistics(const StatisticsArgs& args, void* stream) {
  statistics_reduce_kernel<kStatisticsWarps>
      <<<unsigned(statistics_blocks(args)), 32 * kStatisticsWarps, kStatisticsSharedBytes,
         static_cast<cudaStream_t>(stream)>>>(args);
  return cudaGetLastError();
}

}  // namespace grouped_conv::cuda
