// The Python module grouped_conv._C: facts about the build and the machine. It works without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build_info.h"

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
#if defined(__x86_64__)
  __builtin_cpu_init();
  return {
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
#else
  return {};
#endif
}

}  // namespace
}  // namespace grouped_conv

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the build and the machine; needs no torch.";
  m.def("build_info", &grouped_conv::build_info,
        "Versions of what the libraries were built with, and why CUDA kernels are absent.");
  m.def("cpu_features", &grouped_conv::cpu_features,
        "Instruction sets that the kernels have variants for, and whether this machine has them.");
}
