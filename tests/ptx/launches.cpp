// The Python module _launches: what the launchers would hand to the GPU, for the interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/nchw_launch.h"
#include "cuda/nchw_wgrad_launch.h"
#include "cuda/rowstream_launch.h"
#include "cuda/wgrad_launch.h"

namespace py = pybind11;

namespace grouped_conv::cuda {
namespace {

// A kernel by what its mangled name contains: its own name, and the index of its configuration, -1
// where it has none.
template <typename Launch, typename Args>
py::dict describe(const char* kernel, int config, const Launch& launch, const Args& args) {
  py::dict d;
  d["kernel"] = kernel;
  d["config"] = config;
  d["blocks"] = launch.blocks;
  d["threads"] = launch.threads;
  d["shared_bytes"] = launch.shared_bytes;
  d["arguments"] = py::bytes(reinterpret_cast<const char*>(&args), sizeof args);
  return d;
}

Operand operand(uint64_t address, bool channels_last, int64_t c, int64_t h, int64_t w) {
  void* data = reinterpret_cast<void*>(address);
  if (channels_last) return {data, {h * w * c, 1, w * c, c}};
  return {data, {c * h * w, h * w, w, 1}};
}

template <typename Config, size_t n>
int index_of(const Config (&table)[n], const std::string& name) {
  for (size_t i = 0; i < n; ++i) {
    if (table[i].name == name) return int(i);
  }
  throw std::invalid_argument("there is no configuration " + name);
}

// Extents in the order of ConvProblem::make.
ConvProblem problem_of(const std::vector<int64_t>& e) {
  if (e.size() != 14) throw std::invalid_argument("expected 14 extents");
  return ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], e[11],
                           e[12], e[13]);
}

// Configurations for NCHW tensors have names of their own.
bool is_planar(const std::string& config) { return config.starts_with("nchw"); }

int64_t workspace_bytes(const std::string& config, const std::vector<int64_t>& extents,
                        int sm_count) {
  const ConvProblem p = problem_of(extents);
  if (is_planar(config)) {
    const int index = index_of(kNchwWgradConfigs, config);
    return plan_nchw_wgrad(index, p, sm_count).tiles.workspace_bytes(p);
  }
  return plan_wgrad(index_of(kWgradConfigs, config), p, sm_count).workspace_bytes(p);
}

// Addresses are those of device memory, 0 for no bias.
std::vector<py::dict> launches(const std::string& pass, const std::string& config,
                               const std::vector<int64_t>& extents, bool channels_last,
                               int sm_count, uint64_t x, uint64_t w, uint64_t y, uint64_t bias,
                               uint64_t workspace) {
  const ConvProblem p = problem_of(extents);
  const bool planar = is_planar(config);
  if (pass == "wgrad" && planar) {
    const NchwWgradPlan plan = plan_nchw_wgrad(index_of(kNchwWgradConfigs, config), p, sm_count);
    const NchwWgradArgs args = make_nchw_wgrad_args(
        p, plan, reinterpret_cast<void*>(x), reinterpret_cast<void*>(y),
        reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(w), channels_last);
    return {describe("nchw_wgrad_kernel", plan.tiles.config, nchw_wgrad_launch(plan), args),
            describe("wgrad_reduce_kernel", -1, wgrad_reduce_launch(args.wgrad), args.wgrad)};
  }
  if (pass == "wgrad") {
    const WgradPlan plan = plan_wgrad(index_of(kWgradConfigs, config), p, sm_count);
    const WgradArgs args = make_wgrad_args(
        p, plan, reinterpret_cast<void*>(x), reinterpret_cast<void*>(y),
        reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(w), channels_last);
    return {describe("wgrad_rowstream_kernel", plan.config, wgrad_rowstream_launch(plan), args),
            describe("wgrad_reduce_kernel", -1, wgrad_reduce_launch(args), args)};
  }
  PassArgs args{};
  args.pass = pass == "fprop" ? Pass::kFprop : Pass::kDgrad;
  args.problem = p;
  args.x = operand(x, !planar, p.C, p.H, p.W);
  args.w = operand(w, channels_last, p.c_per_group(), p.R, p.S);
  args.y = operand(y, !planar, p.K, p.P, p.Q);
  args.bias = reinterpret_cast<void*>(bias);
  args.bias_stride = 1;
  if (planar) {
    const NchwPlan plan = plan_nchw(index_of(kNchwConfigs, config), args.pass, p, sm_count);
    return {describe("nchw_conv_kernel", plan.tiles.config, nchw_launch(plan),
                     make_nchw_args(args, plan))};
  }
  const RowstreamPlan plan =
      plan_rowstream(index_of(kRowstreamConfigs, config), args.pass, p, sm_count);
  const bool phases = kRowstreamConfigs[plan.config].walk == Walk::kDgradStride2;
  return {describe(phases ? "dgrad_rowstream_kernel" : "fprop_rowstream_kernel", plan.config,
                   rowstream_launch(plan), make_rowstream_args(args, plan))};
}

int64_t statistics_workspace(const std::string& config, const std::vector<int64_t>& extents,
                             int sm_count) {
  const ConvProblem p = problem_of(extents);
  const RowstreamPlan plan =
      plan_rowstream(index_of(kRowstreamConfigs, config), Pass::kFprop, p, sm_count);
  return statistics_bytes(statistics_rows_of(plan), p.K);
}

// fprop with an epilogue, or with statistics where `sum` is not 0; its bias is zero.
std::vector<py::dict> tail_launches(const std::string& config, const std::vector<int64_t>& extents,
                                    int sm_count, uint64_t x, uint64_t w, uint64_t y,
                                    uint64_t scale, uint64_t shift, bool relu, uint64_t sum,
                                    uint64_t squares, uint64_t workspace) {
  const ConvProblem p = problem_of(extents);
  PassArgs pass{};
  pass.pass = Pass::kFprop;
  pass.problem = p;
  pass.x = operand(x, true, p.C, p.H, p.W);
  pass.w = operand(w, false, p.c_per_group(), p.R, p.S);
  pass.y = operand(y, true, p.K, p.P, p.Q);
  pass.epilogue = {reinterpret_cast<void*>(scale), reinterpret_cast<void*>(shift), nullptr, relu};
  pass.statistics = {reinterpret_cast<void*>(sum), reinterpret_cast<void*>(squares)};
  const RowstreamPlan plan =
      plan_rowstream(index_of(kRowstreamConfigs, config), Pass::kFprop, p, sm_count);
  RowstreamArgs args = make_rowstream_args(pass, plan);
  if (sum == 0) {
    return {describe("fprop_rowstream_kernel", plan.config, rowstream_launch(plan), args)};
  }
  args.statistics =
      statistics_rows(reinterpret_cast<void*>(workspace), statistics_rows_of(plan), args.channels);
  const StatisticsArgs reduce = make_statistics_args(pass, args.statistics);
  const RowstreamLaunch shape{statistics_blocks(reduce), 32 * kStatisticsWarps,
                              kStatisticsSharedBytes};
  return {describe("fprop_rowstream_kernel", plan.config, rowstream_launch(plan), args),
          describe("statistics_reduce_kernel", kStatisticsWarps, shape, reduce)};
}

}  // namespace
}  // namespace grouped_conv::cuda

PYBIND11_MODULE(_launches, m) {
  m.def("workspace_bytes", &grouped_conv::cuda::workspace_bytes, py::arg("config"),
        py::arg("extents"), py::arg("sm_count"), "Of a configuration of the weight gradient.");
  m.def("launches", &grouped_conv::cuda::launches, py::arg("pass_name"), py::arg("config"),
        py::arg("extents"), py::kw_only(), py::arg("channels_last"), py::arg("sm_count"),
        py::arg("x"), py::arg("w"), py::arg("y"), py::arg("bias"), py::arg("workspace"),
        "The launches of a pass in their order, each with the bytes of its argument.");
  m.def("statistics_workspace", &grouped_conv::cuda::statistics_workspace, py::arg("config"),
        py::arg("extents"), py::arg("sm_count"), "Bytes, of fprop with statistics.");
  m.def("tail_launches", &grouped_conv::cuda::tail_launches, py::arg("config"), py::arg("extents"),
        py::kw_only(), py::arg("sm_count"), py::arg("x"), py::arg("w"), py::arg("y"),
        py::arg("scale"), py::arg("shift"), py::arg("relu"), py::arg("sum"), py::arg("squares"),
        py::arg("workspace"), "Those of fprop with an epilogue, or with statistics.");
}
