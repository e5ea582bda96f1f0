// The Python module _simt: runs the CUDA kernels in the emulator on numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>

#include "simt/kernels.h"

namespace py = pybind11;

namespace grouped_conv::cuda {
namespace {

// 16-bit elements by their bits; C-contiguous, in the order of the memory.
using Bits = py::array_t<uint16_t, py::array::c_style>;

const std::vector<EmulatedKernel>& kernels() {
  static const std::vector<EmulatedKernel> all = [] {
    std::vector<EmulatedKernel> list = conv_kernels();
    std::vector<EmulatedKernel> more = wgrad_kernels();
    std::move(more.begin(), more.end(), std::back_inserter(list));
    return list;
  }();
  return all;
}

// Extents in the order of ConvProblem::make.
ConvProblem make_problem(const std::vector<int64_t>& e) {
  if (e.size() != 14) throw std::invalid_argument("expected 14 extents");
  return ConvProblem::make(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], e[11],
                           e[12], e[13]);
}

Operand nhwc(void* data, int64_t channels, int64_t height, int64_t width) {
  return {data, {height * width * channels, 1, width * channels, channels}};
}

Operand weights(void* data, const ConvProblem& p, bool channels_last) {
  if (channels_last) return nhwc(data, p.c_per_group(), p.R, p.S);
  return {data, {p.c_per_group() * p.R * p.S, p.R * p.S, p.S, 1}};
}

struct Result {
  Bits output;
  bool complete;  // whether each element of it was written
  std::vector<simt::Report> launches;
};

struct Operands {
  int64_t count;
  simt::Buffer buffer;

  Operands(const char* name, int64_t elements, bool written)
      : count(elements),
        buffer(name, size_t(elements) * sizeof(uint16_t),
               written ? simt::Buffer::Use::kOutput : simt::Buffer::Use::kInput) {}

  void fill(const std::optional<Bits>& values) {
    if (!values) return;
    if (values->size() != count) {
      throw std::invalid_argument(buffer.name() + " has " + std::to_string(values->size()) +
                                  " elements, the problem wants " + std::to_string(count));
    }
    std::copy_n(values->data(), count, buffer.host<uint16_t>());
  }
};

// Inputs that are None are zero. The one of x, w and y that the pass writes must be None.
Result run(const EmulatedKernel& kernel, const std::vector<int64_t>& extents,
           const std::optional<Bits>& x, const std::optional<Bits>& w, const std::optional<Bits>& y,
           const std::optional<Bits>& bias, bool channels_last, int sm_count,
           const simt::Options& options) {
  const ConvProblem p = make_problem(extents);
  if (const std::string why = kernel.refusal(p); !why.empty()) throw std::invalid_argument(why);
  Operands x_memory("x", p.N * p.H * p.W * p.C, kernel.pass == Pass::kDgrad);
  Operands w_memory("w", p.K * p.c_per_group() * p.R * p.S, kernel.pass == Pass::kWgrad);
  Operands y_memory("y", p.N * p.P * p.Q * p.K, kernel.pass == Pass::kFprop);
  Operands bias_memory("bias", p.K, false);
  x_memory.fill(x);
  w_memory.fill(w);
  y_memory.fill(y);
  bias_memory.fill(bias);
  simt::Buffer workspace("workspace", size_t(kernel.workspace_bytes(p, sm_count)),
                         simt::Buffer::Use::kWorkspace);
  const PassArgs args{kernel.pass,
                      p,
                      kernel.dtype,
                      nhwc(x_memory.buffer.device<void>(), p.C, p.H, p.W),
                      weights(w_memory.buffer.device<void>(), p, channels_last),
                      nhwc(y_memory.buffer.device<void>(), p.K, p.P, p.Q),
                      bias ? bias_memory.buffer.device<void>() : nullptr,
                      1};
  Result result;
  result.launches = kernel.launch(args, workspace.device<void>(), sm_count, options);
  Operands& written = kernel.pass == Pass::kDgrad   ? x_memory
                      : kernel.pass == Pass::kWgrad ? w_memory
                                                    : y_memory;
  result.complete = written.buffer.complete();
  result.output = Bits(written.count, written.buffer.host<uint16_t>());
  return result;
}

const char* name(Pass pass) {
  return pass == Pass::kFprop ? "fprop" : pass == Pass::kDgrad ? "dgrad" : "wgrad";
}

}  // namespace

PYBIND11_MODULE(_simt, m) {
  using simt::Counts;
  using simt::Mutation;
  using simt::Options;
  using simt::Report;
  using simt::SiteCounts;

  py::class_<SiteCounts>(m, "SiteCounts")
      .def_property_readonly("leaf", [](const SiteCounts& s) { return simt::name(s.leaf); })
      .def_property_readonly("where", &SiteCounts::where)
      .def_readonly("column", &SiteCounts::column)
      .def_readonly("warp_instructions", &SiteCounts::warp_instructions)
      .def_readonly("bytes", &SiteCounts::bytes)
      .def_readonly("wavefronts", &SiteCounts::wavefronts)
      .def_readonly("conflicts", &SiteCounts::conflicts)
      .def_readonly("sectors", &SiteCounts::sectors)
      .def_readonly("ragged", &SiteCounts::ragged)
      .def_readonly("flops", &SiteCounts::flops);
  py::class_<Counts>(m, "Counts")
      .def_readonly("blocks", &Counts::blocks)
      .def_readonly("threads", &Counts::threads)
      .def_readonly("shared_bytes", &Counts::shared_bytes)
      .def_readonly("sites", &Counts::sites)
      .def_readonly("dram_sectors_read", &Counts::dram_sectors_read)
      .def_readonly("dram_sectors_written", &Counts::dram_sectors_written)
      .def_readonly("bytes_in_flight", &Counts::bytes_in_flight);
  py::class_<Mutation>(m, "Mutation")
      .def_property_readonly("kind", [](const Mutation& mu) { return simt::name(mu.kind); })
      .def_property_readonly(
          "where", [](const Mutation& mu) { return mu.file + ":" + std::to_string(mu.line); });
  m.def("mutations_of", &simt::mutations_of, py::arg("counts"),
        "Every fault that can be planted into the kernel that the counts are of.");
  py::class_<Report>(m, "Report")
      .def_property_readonly("faults",
                             [](const Report& report) {
                               std::vector<std::string> names;
                               for (const auto& record : report.faults) {
                                 names.emplace_back(simt::name(record.fault));
                               }
                               return names;
                             })
      .def_readonly("counts", &Report::counts)
      .def_readonly("effects", &Report::effects)
      .def_property_readonly("text", &Report::text);
  py::class_<Result>(m, "Result")
      .def_readonly("output", &Result::output)
      .def_readonly("complete", &Result::complete)
      .def_readonly("launches", &Result::launches);

  py::class_<EmulatedKernel>(m, "Kernel")
      .def_readonly("name", &EmulatedKernel::name)
      .def_property_readonly("pass_name", [](const EmulatedKernel& k) { return name(k.pass); })
      .def_property_readonly("dtype",
                             [](const EmulatedKernel& k) {
                               return k.dtype == DType::kFloat16 ? "float16" : "bfloat16";
                             })
      .def("refusal",
           [](const EmulatedKernel& k, const std::vector<int64_t>& extents) {
             return k.refusal(make_problem(extents));
           })
      .def(
          "run",
          [](const EmulatedKernel& kernel, const std::vector<int64_t>& extents,
             const std::optional<Bits>& x, const std::optional<Bits>& w,
             const std::optional<Bits>& y, const std::optional<Bits>& bias, bool channels_last,
             int sm_count, uint64_t schedule, bool detect, bool count, bool arithmetic,
             const std::optional<Mutation>& mutation) {
            Options options;
            options.schedule = schedule;
            options.detect = detect;
            options.count = count;
            options.arithmetic = arithmetic;
            if (mutation) options.mutation = *mutation;
            return run(kernel, extents, x, w, y, bias, channels_last, sm_count, options);
          },
          py::arg("extents"), py::kw_only(), py::arg("x") = py::none(), py::arg("w") = py::none(),
          py::arg("y") = py::none(), py::arg("bias") = py::none(), py::arg("channels_last") = false,
          py::arg("sm_count") = 132, py::arg("schedule") = 0, py::arg("detect") = true,
          py::arg("count") = true, py::arg("arithmetic") = true, py::arg("mutation") = py::none(),
          "Run the pass. Arrays are uint16, in the order of the memory: x and y NHWC, w KCRS or, "
          "with channels_last, KRSC. Extents as of ConvProblem::make.");

  m.def("kernels", &kernels, "All configurations, for each element type.");
}

}  // namespace grouped_conv::cuda
