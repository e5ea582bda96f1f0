// The kernels that tests run in the emulator: each configuration for each element type, launched
// with the arguments of the launchers (launch.h) on device addresses of simt::Buffers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "simt/simt.h"

namespace grouped_conv::cuda {

struct EmulatedKernel {
  std::string name;  // of the configuration, unique within pass and dtype
  Pass pass;
  DType dtype;
  // Why this configuration cannot compute the problem; empty: it can.
  std::function<std::string(const ConvProblem&)> refusal;
  // Of device memory that the launches need beside their operands, on a GPU of sm_count
  // multiprocessors.
  std::function<int64_t(const ConvProblem&, int sm_count)> workspace_bytes;
  // All launches of the pass, in their order.
  std::function<std::vector<simt::Report>(const PassArgs&, void* workspace, int sm_count,
                                          const simt::Options&)>
      launch;
  bool planar = false;  // x and y are NCHW, else NHWC
  // Whether it takes the epilogue, without and with a residual, and the statistics of its
  // arguments.
  bool takes_epilogue = false;
  bool takes_residual = false;
  bool takes_statistics = false;
};

std::vector<EmulatedKernel> conv_kernels();  // fprop and dgrad
std::vector<EmulatedKernel> nchw_kernels();
std::vector<EmulatedKernel> wgrad_kernels();
std::vector<EmulatedKernel> tiled_kernels();
std::vector<EmulatedKernel> tiled_wgrad_kernels();
std::vector<EmulatedKernel> nchw_wgrad_kernels();

// fprop by a configuration of the row-streaming kernels, with the epilogue or the statistics of the
// arguments.
std::vector<simt::Report> launch_with_tail(const PassArgs& args, int config, void* workspace,
                                           int sm_count, const simt::Options& options);

}  // namespace grouped_conv::cuda
