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
std::optional<std::string> direct_refusal(const std::vector<int64_t>& e, const std::string& dtype) {
  const std::map<std::string, cpu::DType> dtypes = {{"float32", cpu::DType::kFloat32},
                                                    {"bfloat16", cpu::DType::kBFloat16},
                                                    {"float16", cpu::DType::kFloat16},
                                                    {"float64", cpu::DType::kFloat64}};
  if (e.size() != 14) throw std::invalid_argument("expected 14 extents");
  const ConvProblem p = ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8],
                                          e[9], e[10], e[11], e[12], e[13]);
  const char* reason = cpu::direct_refusal(p, dtypes.at(dtype));
  return reason != nullptr ? std::optional<std::string>(reason) : std::nullopt;
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
  m.def("output_extent", &grouped_conv::ConvProblem::output_extent, py::arg("size"),
        py::arg("kernel"), py::arg("padding"), py::arg("stride"), py::arg("dilation"),
        "Output extent of one spatial dimension, zero or less where the dilated kernel does not "
        "fit.");
}
