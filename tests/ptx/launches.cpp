// The Python module _launches: what the launchers would hand to the GPU, for the interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/nchw_launch.h"
#include "cuda/nchw_wgrad_launch.h"
#include "cuda/rowstream_launch.h"
#include "cuda/tiled_launch.h"
#include "cuda/tiled_wgrad_launch.h"
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
                                    uint64_t scale, uint64_t shift, uint64_t residual, bool relu,
                                    uint64_t sum, uint64_t squares, uint64_t workspace) {
  const ConvProblem p = problem_of(extents);
  PassArgs pass{};
  pass.pass = Pass::kFprop;
  pass.problem = p;
  pass.x = operand(x, true, p.C, p.H, p.W);
  pass.w = operand(w, false, p.c_per_group(), p.R, p.S);
  pass.y = operand(y, true, p.K, p.P, p.Q);
  pass.epilogue = {reinterpret_cast<void*>(scale), reinterpret_cast<void*>(shift),
                   reinterpret_cast<void*>(residual), relu};
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

// Of a tiled kernel; `math` is the number of a TiledMath.
TiledPlan tiled_plan(const std::string& pass, int math, const std::string& config,
                     const std::vector<int64_t>& extents, bool channels_last) {
  const Pass which = pass == "fprop" ? Pass::kFprop : Pass::kDgrad;
  return plan_tiled(index_of(kTiledConfigs, config), which, problem_of(extents), TiledMath(math),
                    channels_last, 3);
}

int64_t tiled_workspace(const std::string& pass, int math, const std::string& config,
                        const std::vector<int64_t>& extents, bool channels_last) {
  return tiled_plan(pass, math, config, extents, channels_last).workspace_bytes();
}

// With a weight [K, C/G, R, S]; channels_last speaks of x and y.
std::vector<py::dict> tiled_launches(const std::string& pass, int math, const std::string& config,
                                     const std::vector<int64_t>& extents, bool channels_last,
                                     uint64_t x, uint64_t w, uint64_t y, uint64_t bias,
                                     uint64_t workspace) {
  const ConvProblem p = problem_of(extents);
  const TiledPlan plan = tiled_plan(pass, math, config, extents, channels_last);
  PassArgs args{};
  args.pass = pass == "fprop" ? Pass::kFprop : Pass::kDgrad;
  args.problem = p;
  args.x = operand(x, channels_last, p.C, p.H, p.W);
  args.w = operand(w, false, p.c_per_group(), p.R, p.S);
  args.y = operand(y, channels_last, p.K, p.P, p.Q);
  args.bias = reinterpret_cast<void*>(bias);
  args.bias_stride = 1;
  const TiledArgs tiled = make_tiled_args(args, plan, reinterpret_cast<void*>(workspace));
  const RowstreamLaunch pack{tiled_pack_blocks(plan), kTiledThreads, 0};
  const RowstreamLaunch conv{plan.blocks(), kTiledThreads, plan.shared_bytes()};
  std::vector<py::dict> both = {describe("pack_tiled_kernel", -1, pack, tiled),
                                describe("tiled_conv_kernel", plan.config, conv, tiled)};
  for (py::dict& launch : both) launch["direct"] = plan.direct;
  return both;
}

// The weight gradient by a tiled kernel, where slots are vectors if the problem allows that.
TiledWgradPlan tiled_wgrad_plan(int math, const std::string& config,
                                const std::vector<int64_t>& extents, bool planar, int sm_count) {
  const ConvProblem p = problem_of(extents);
  const bool vector = !planar && tiled_wgrad_takes_vectors(TiledMath(math), p);
  return plan_tiled_wgrad(index_of(kTiledWgradConfigs, config), TiledMath(math), planar, vector, p,
                          sm_count);
}

int64_t tiled_wgrad_workspace(int math, const std::string& config,
                              const std::vector<int64_t>& extents, bool planar, int sm_count) {
  return tiled_wgrad_plan(math, config, extents, planar, sm_count)
      .workspace_bytes(problem_of(extents));
}

// Into a dw [K, C/G, R, S].
std::vector<py::dict> tiled_wgrad_launches(int math, const std::string& config,
                                           const std::vector<int64_t>& extents, bool planar,
                                           int sm_count, uint64_t x, uint64_t w, uint64_t y,
                                           uint64_t workspace) {
  const TiledWgradPlan plan = tiled_wgrad_plan(math, config, extents, planar, sm_count);
  const TiledWgradArgs args = make_tiled_wgrad_args(
      problem_of(extents), plan, reinterpret_cast<void*>(x), reinterpret_cast<void*>(y),
      reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(w), false);
  std::vector<py::dict> both = {
      describe("tiled_wgrad_kernel", plan.config, tiled_wgrad_launch(plan), args),
      describe("tiled_wgrad_reduce_kernel", -1, tiled_wgrad_reduce_launch(args), args)};
  for (py::dict& launch : both) launch["vector"] = plan.vector;
  return both;
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
        py::arg("scale"), py::arg("shift"), py::arg("residual"), py::arg("relu"), py::arg("sum"),
        py::arg("squares"), py::arg("workspace"),
        "Those of fprop with an epilogue, or with statistics.");
  m.def("tiled_workspace", &grouped_conv::cuda::tiled_workspace, py::arg("pass_name"),
        py::arg("math"), py::arg("config"), py::arg("extents"), py::kw_only(),
        py::arg("channels_last"), "Bytes.");
  m.def("tiled_launches", &grouped_conv::cuda::tiled_launches, py::arg("pass_name"),
        py::arg("math"), py::arg("config"), py::arg("extents"), py::kw_only(),
        py::arg("channels_last"), py::arg("x"), py::arg("w"), py::arg("y"), py::arg("bias"),
        py::arg("workspace"), "Those of a tiled kernel, and whether it copies whole units.");
  m.def("tiled_wgrad_workspace", &grouped_conv::cuda::tiled_wgrad_workspace, py::arg("math"),
        py::arg("config"), py::arg("extents"), py::kw_only(), py::arg("planar"),
        py::arg("sm_count"), "Bytes.");
  m.def("tiled_wgrad_launches", &grouped_conv::cuda::tiled_wgrad_launches, py::arg("math"),
        py::arg("config"), py::arg("extents"), py::kw_only(), py::arg("planar"),
        py::arg("sm_count"), py::arg("x"), py::arg("w"), py::arg("y"), py::arg("workspace"),
        "Those of a tiled kernel of wgrad, and whether its slots are vectors.");
}
