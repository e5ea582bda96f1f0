// The Python module grouped_conv._C: facts about the build and the machine. It works without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/cpu_info.h"
#include "cpu/kernels.h"
#include "cuda/heuristics.h"

namespace py = pybind11;

namespace grouped_conv {
namespace {

// Keys are always the same; what is unknown or absent is None.
py::dict build_info() {
  const auto or_none = [](const std::string& text) -> py::object {
    return text.empty() ? py::object(py::none()) : py::object(py::str(text));
  };
  const bool has_cuda = !std::string(kCudaVersion).empty();
  py::dict info;
  info["version"] = kVersion;
  info["torch"] = kTorchVersion;
  info["compiler"] = kCompiler;
  info["build_type"] = kBuildType;
  info["cuda"] = or_none(kCudaVersion);
  info["cuda_architectures"] = py::str(has_cuda ? kCudaArchitectures : "").attr("split")(";");
  if (!has_cuda) info["cuda_architectures"] = py::list();
  info["cuda_absent_reason"] = or_none(has_cuda ? "" : kCudaAbsentReason);
  return info;
}

// What the processor and the operating system together offer, by the names of the kernel variants.
std::map<std::string, bool> cpu_features() {
  return {{"avx2", cpu::cpu_has_avx2()},
          {"avx512", cpu::cpu_has_avx512()},
          {"avx512bf16", cpu::cpu_has_avx512bf16()}};
}

std::vector<std::string> compiled_isas() {
  int count = 0;
  const cpu::IsaKernels* const* kernels = cpu::compiled_isa_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(kernels[i]->name);
  return names;
}

// Extents in the order of ConvProblem::make.
ConvProblem problem_of(const std::vector<int64_t>& e) {
  if (e.size() != 14) throw std::invalid_argument("expected 14 extents");
  return ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], e[11],
                           e[12], e[13]);
}

std::optional<std::string> direct_refusal(const std::vector<int64_t>& extents,
                                          const std::string& dtype) {
  const std::map<std::string, cpu::DType> dtypes = {{"float32", cpu::DType::kFloat32},
                                                    {"bfloat16", cpu::DType::kBFloat16},
                                                    {"float16", cpu::DType::kFloat16},
                                                    {"float64", cpu::DType::kFloat64}};
  const char* reason = cpu::direct_refusal(problem_of(extents), dtypes.at(dtype));
  return reason != nullptr ? std::optional<std::string>(reason) : std::nullopt;
}

// The CUDA kernels' tables are plain C++: they are known where none is built, too.

const std::map<std::string, Pass> kPasses = {
    {"fprop", Pass::kFprop}, {"dgrad", Pass::kDgrad}, {"wgrad", Pass::kWgrad}};

std::vector<py::dict> cuda_kernels() {
  std::vector<py::dict> kernels;
  const auto add = [&](const char* name, std::vector<std::string> passes, const auto& config,
                       int stride) {
    py::dict kernel;
    kernel["name"] = name;
    kernel["passes"] = passes;
    kernel["c_per_group"] = config.c_per_group;
    kernel["stride"] = stride;
    kernel["threads"] = config.threads();
    kernel["shared_bytes"] = config.shared_bytes();
    kernel["blocks_per_sm"] = config.blocks_per_sm;
    kernels.push_back(kernel);
  };
  for (const cuda::RowstreamConfig& config : cuda::kRowstreamConfigs) {
    std::vector<std::string> passes;
    const int stride = config.walk == cuda::Walk::kUnitStride ? 1 : 2;
    for (const auto& [name, pass] : kPasses) {
      if (cuda::rowstream_runs(config.walk, pass, stride)) passes.push_back(name);
    }
    add(config.name, passes, config, stride);
  }
  for (const cuda::WgradConfig& config : cuda::kWgradConfigs) {
    add(config.name, {"wgrad"}, config, config.stride);
  }
  return kernels;
}

std::vector<py::dict> nchw_kernels() {
  std::vector<py::dict> kernels;
  for (const cuda::RowstreamConfig& config : cuda::kNchwConfigs) {
    py::dict kernel;
    const int stride = config.walk == cuda::Walk::kUnitStride ? 1 : 2;
    std::vector<std::string> passes;
    for (const auto& [name, pass] : kPasses) {
      if (cuda::rowstream_runs(config.walk, pass, stride)) passes.push_back(name);
    }
    kernel["name"] = config.name;
    kernel["passes"] = passes;
    kernel["c_per_group"] = config.c_per_group;
    kernel["stride"] = stride;
    kernel["threads"] = config.threads();
    kernel["shared_bytes"] = cuda::most_nchw_shared_bytes(config);
    kernel["blocks_per_sm"] = config.blocks_per_sm;
    kernels.push_back(kernel);
  }
  return kernels;
}

std::vector<py::dict> tiled_kernels() {
  std::vector<py::dict> kernels;
  for (const cuda::TiledConfig& config : cuda::kTiledConfigs) {
    py::dict kernel;
    kernel["name"] = config.name;
    kernel["passes"] = std::vector<std::string>{"dgrad", "fprop"};
    kernel["channels"] = config.channels;
    kernel["groups"] = config.groups;
    kernel["threads"] = cuda::kTiledThreads;
    kernel["shared_bytes"] = std::max(config.shared_bytes(false), config.shared_bytes(true));
    kernel["blocks_per_sm"] = config.blocks_per_sm;
    kernel["blocks_of_fma"] = config.blocks_of_fma;
    kernels.push_back(kernel);
  }
  return kernels;
}

std::vector<py::dict> tiled_wgrad_kernels() {
  std::vector<py::dict> kernels;
  for (const cuda::TiledWgradConfig& config : cuda::kTiledWgradConfigs) {
    py::dict kernel;
    kernel["name"] = config.name;
    kernel["rows"] = config.rows;
    kernel["cols"] = config.cols;
    kernel["groups"] = config.groups;
    kernel["threads"] = config.threads();
    kernel["shared_bytes"] = std::max(config.shared_bytes(2, true), config.shared_bytes(4, true));
    kernel["blocks_per_sm"] = config.blocks_per_sm;
    kernels.push_back(kernel);
  }
  return kernels;
}

cuda::Layout layout_of(bool channels_last) {
  return channels_last ? cuda::Layout::kChannelsLast : cuda::Layout::kPlanar;
}

const std::map<std::string, cuda::DType> kCudaDtypes = {{"float32", cuda::DType::kFloat32},
                                                        {"bfloat16", cuda::DType::kBFloat16},
                                                        {"float16", cuda::DType::kFloat16},
                                                        {"float64", cuda::DType::kFloat64}};

std::optional<std::string> rowstream_refusal(const std::string& pass,
                                             const std::vector<int64_t>& extents,
                                             const std::string& dtype, bool channels_last) {
  const char* reason = cuda::rowstream_refusal(kPasses.at(pass), problem_of(extents),
                                               kCudaDtypes.at(dtype), layout_of(channels_last));
  return reason != nullptr ? std::optional<std::string>(reason) : std::nullopt;
}

std::optional<std::string> tiled_refusal(const std::string& pass,
                                         const std::vector<int64_t>& extents,
                                         const std::string& dtype) {
  const char* reason =
      cuda::any_tiled_refusal(kPasses.at(pass), problem_of(extents), kCudaDtypes.at(dtype));
  return reason != nullptr ? std::optional<std::string>(reason) : std::nullopt;
}

py::dict as_dict(const cuda::FastPlan& plan) {
  py::dict dict;
  dict["name"] = plan.name;
  dict["blocks"] = plan.blocks;
  dict["threads"] = plan.threads;
  dict["shared_bytes"] = plan.shared_bytes;
  dict["workspace_bytes"] = plan.workspace_bytes;
  return dict;
}

py::dict plan_tiled(const std::string& pass, const std::vector<int64_t>& extents, int sm_count,
                    const std::string& dtype, bool channels_last, bool allow_tf32) {
  const ConvProblem problem = problem_of(extents);
  const cuda::DType type = kCudaDtypes.at(dtype);
  if (cuda::any_tiled_refusal(kPasses.at(pass), problem, type) != nullptr) {
    throw std::invalid_argument("the tiled kernels do not take this problem");
  }
  if (sm_count < 1) throw std::invalid_argument("expected a positive number of multiprocessors");
  const cuda::FastPlan plan =
      cuda::plan_fast_tiled(kPasses.at(pass), problem, cuda::tiled_math(type, allow_tf32),
                            {sm_count}, layout_of(channels_last));
  py::dict dict = as_dict(plan);
  dict["chunks"] = plan.tiled.chunks;
  dict["tile_channels"] = plan.tiled.tile_channels;
  return dict;
}

py::dict plan_fast(const std::string& pass, const std::vector<int64_t>& extents, int sm_count,
                   bool channels_last) {
  const ConvProblem problem = problem_of(extents);
  const cuda::Layout layout = layout_of(channels_last);
  if (cuda::rowstream_refusal(kPasses.at(pass), problem, cuda::DType::kFloat16, layout) !=
      nullptr) {
    throw std::invalid_argument("the row-streaming kernels do not take this problem");
  }
  if (sm_count < 1) throw std::invalid_argument("expected a positive number of multiprocessors");
  return as_dict(cuda::plan_fast(kPasses.at(pass), problem, {sm_count}, layout));
}

}  // namespace
}  // namespace grouped_conv

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the build and the machine; needs no torch.";
  m.def("build_info", &grouped_conv::build_info,
        "Versions of what the libraries were built with, and why CUDA kernels are absent.");
  m.def("cpu_features", &grouped_conv::cpu_features,
        "Instruction sets that the kernels have variants for, and whether this machine has them.");
  m.def("compiled_isas", &grouped_conv::compiled_isas,
        "Instruction sets of the CPU kernels in this build, best first.");
  m.def(
      "cpu_isa", [] { return std::string(grouped_conv::cpu::isa_kernels().name); },
      "The instruction set that the CPU kernels use in this process.");
  m.def(
      "direct_refusal", &grouped_conv::direct_refusal, py::arg("extents"), py::arg("dtype"),
      "Why the direct CPU kernels do not take a problem (N, C, H, W, K, R, S, G, padding, stride, "
      "dilation, flat), or None.");
  m.def("cuda_kernels", &grouped_conv::cuda_kernels,
        "Configurations of the row-streaming CUDA kernels for NHWC tensors, those of fprop and "
        "dgrad first.");
  m.def("nchw_kernels", &grouped_conv::nchw_kernels,
        "Configurations of the row-streaming CUDA kernels of fprop and dgrad for NCHW tensors; "
        "shared_bytes are the most that a problem needs.");
  m.def("rowstream_refusal", &grouped_conv::rowstream_refusal, py::arg("which"), py::arg("extents"),
        py::arg("dtype"), py::arg("channels_last") = true,
        "Why the row-streaming CUDA kernels do not take a pass (fprop, dgrad, wgrad) of a problem, "
        "extents as in direct_refusal, with NHWC or NCHW operands; or None.");
  m.def("plan_fast", &grouped_conv::plan_fast, py::arg("which"), py::arg("extents"),
        py::arg("sm_count"), py::arg("channels_last") = true,
        "Kernel, grid and workspace of a pass that rowstream_refusal does not refuse.");
  m.def("tiled_kernels", &grouped_conv::tiled_kernels,
        "Configurations of the tiled CUDA kernels: the channels of a group and the groups of a "
        "block; shared_bytes are the most that a block needs.");
  m.def("tiled_wgrad_kernels", &grouped_conv::tiled_wgrad_kernels,
        "Configurations of the tiled CUDA kernels of wgrad: rows (r, s, c) by columns k of a tile, "
        "and the groups of a block; shared_bytes are the most that a block needs.");
  m.def("tiled_refusal", &grouped_conv::tiled_refusal, py::arg("which"), py::arg("extents"),
        py::arg("dtype"),
        "Why the tiled CUDA kernels do not take a pass of a problem, in either layout; or None.");
  m.def("plan_tiled", &grouped_conv::plan_tiled, py::arg("which"), py::arg("extents"),
        py::arg("sm_count"), py::arg("dtype"), py::arg("channels_last") = true,
        py::arg("allow_tf32") = false,
        "Kernel, grid and workspace of a pass that tiled_refusal does not refuse.");
  m.def("output_extent", &grouped_conv::ConvProblem::output_extent, py::arg("size"),
        py::arg("kernel"), py::arg("padding"), py::arg("stride"), py::arg("dilation"),
        "Output extent of one spatial dimension, zero or less where the dilated kernel does not "
        "fit.");
}
