// The Python module _launches: what the launchers would hand to the GPU, for the interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/heuristics.h"
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

// Extents in the order of ConvProblem::make; addresses of device memory, 0 for no bias.
std::vector<py::dict> launches(const std::string& pass_name, const std::vector<int64_t>& e,
                               bool channels_last, int sm_count, uint64_t x, uint64_t w, uint64_t y,
                               uint64_t bias, uint64_t workspace) {
  const std::map<std::string, Pass> passes = {
      {"fprop", Pass::kFprop}, {"dgrad", Pass::kDgrad}, {"wgrad", Pass::kWgrad}};
  if (e.size() != 14) throw std::invalid_argument("expected 14 extents");
  const ConvProblem p = ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8],
                                          e[9], e[10], e[11], e[12], e[13]);
  const Pass pass = passes.at(pass_name);
  if (const char* why = rowstream_refusal(pass, p, DType::kFloat16)) {
    throw std::invalid_argument(why);
  }
  const FastPlan plan = plan_fast(pass, p, {sm_count});
  if (pass == Pass::kWgrad) {
    const WgradArgs args = make_wgrad_args(
        p, plan.wgrad, reinterpret_cast<void*>(x), reinterpret_cast<void*>(y),
        reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(w), channels_last);
    return {describe("wgrad_rowstream_kernel", plan.wgrad.config,
                     wgrad_rowstream_launch(plan.wgrad), args),
            describe("wgrad_reduce_kernel", -1, wgrad_reduce_launch(args), args)};
  }
  PassArgs args{};
  args.pass = pass;
  args.problem = p;
  args.x = operand(x, true, p.C, p.H, p.W);
  args.w = operand(w, channels_last, p.c_per_group(), p.R, p.S);
  args.y = operand(y, true, p.K, p.P, p.Q);
  args.bias = reinterpret_cast<void*>(bias);
  args.bias_stride = 1;
  const bool phases = kRowstreamConfigs[plan.rowstream.config].walk == Walk::kDgradStride2;
  return {describe(phases ? "dgrad_rowstream_kernel" : "fprop_rowstream_kernel",
                   plan.rowstream.config, rowstream_launch(plan.rowstream),
                   make_rowstream_args(args, plan.rowstream))};
}

}  // namespace
}  // namespace grouped_conv::cuda

PYBIND11_MODULE(_launches, m) {
  m.def("launches", &grouped_conv::cuda::launches, py::arg("pass_name"), py::arg("extents"),
        py::kw_only(), py::arg("channels_last"), py::arg("sm_count"), py::arg("x"), py::arg("w"),
        py::arg("y"), py::arg("bias"), py::arg("workspace"),
        "The launches of a pass in their order, each with the bytes of its argument.");
}
