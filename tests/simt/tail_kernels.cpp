// fprop with an epilogue or statistics for the emulator.
#include <array>
#include <utility>

#include "cuda/fprop.cuh"
#include "cuda/rowstream_launch.h"
#include "cuda/statistics.cuh"
#include "simt/kernels.h"

namespace grouped_conv::cuda {
namespace {

using Kernel = void (*)(RowstreamArgs);

template <int kId, typename T, Tail kTail>
constexpr Kernel kernel() {
  if constexpr (rowstream_has(kRowstreamConfigs[kId], kTail)) {
    return [](const RowstreamArgs args) { fprop_rowstream_kernel<kId, T, kTail>(args); };
  } else {
    return nullptr;
  }
}

template <typename T, Tail kTail>
Kernel kernel_of(int config) {
  static constexpr auto kKernels = []<int... kId>(std::integer_sequence<int, kId...>) {
    return std::array<Kernel, sizeof...(kId)>{kernel<kId, T, kTail>()...};
  }(std::make_integer_sequence<int, kRowstreamConfigCount>());
  return kKernels[size_t(config)];
}

template <typename T>
Kernel kernel_of(int config, Tail tail) {
  return tail == Tail::kAffine     ? kernel_of<T, Tail::kAffine>(config)
         : tail == Tail::kResidual ? kernel_of<T, Tail::kResidual>(config)
                                   : kernel_of<T, Tail::kStatistics>(config);
}

}  // namespace

std::vector<simt::Report> launch_with_tail(const PassArgs& pass, int config, void* workspace,
                                           int sm_count, const simt::Options& options) {
  const RowstreamPlan plan = plan_rowstream(config, pass.pass, pass.problem, sm_count);
  const Tail tail = tail_of(pass);
  RowstreamArgs args = make_rowstream_args(pass, plan);
  if (tail == Tail::kStatistics) {
    args.statistics = statistics_rows(workspace, statistics_rows_of(plan), args.channels);
  }
  const RowstreamLaunch shape = rowstream_launch(plan);
  const Kernel kernel = pass.dtype == DType::kFloat16 ? kernel_of<Float16>(config, tail)
                                                      : kernel_of<BFloat16>(config, tail);
  std::vector<simt::Report> reports{simt::launch(
      {{int(shape.blocks)}, shape.threads, shape.shared_bytes}, options, [&] { kernel(args); })};
  if (tail == Tail::kStatistics) {
    const StatisticsArgs reduce = make_statistics_args(pass, args.statistics);
    reports.push_back(simt::launch(
        {{int(statistics_blocks(reduce))}, 32 * kStatisticsWarps, kStatisticsSharedBytes}, options,
        [&] { statistics_reduce_kernel<kStatisticsWarps>(reduce); }));
  }
  return reports;
}

}  // namespace grouped_conv::cuda
