#include "cuda/rowstream_launch.h"

namespace grouped_conv::cuda {

struct Float16;
struct BFloat16;

int launch_rowstream(const PassArgs& pass, const RowstreamPlan& plan, void* workspace,
                     void* stream) {
  RowstreamArgs args = make_rowstream_args(pass, plan);
  const Tail tail = tail_of(pass);
  if (tail == Tail::kStatistics) {
    args.statistics = statistics_rows(workspace, statistics_rows_of(plan), args.channels);
  }
  const int error = pass.dtype == DType::kFloat16
                        ? launch_rowstream_kernel<Float16>(args, tail, stream)
                        : launch_rowstream_kernel<BFloat16>(args, tail, stream);
  if (error != 0 || tail != Tail::kStatistics) return error;
  return launch_statistics(make_statistics_args(pass, args.statistics), stream);
}

}  // namespace grouped_conv::cuda
