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

const std::vector<EmulatedKernel>& kernels() {
  static const std::vector<EmulatedKernel> all = [] {
    std::vector<EmulatedKernel> list = conv_kernels();
    for (std::vector<EmulatedKernel> more :
         {wgrad_kernels(), nchw_kernels(), nchw_wgrad_kernels()}) {
      std::move(more.begin(), more.end(), std::back_inserter(list));
    }
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

Operand activations(void* data, bool planar, int64_t channels, int64_t height, int64_t width) {
  const int64_t image = height * width * channels;
  if (planar) return {data, {image, height * width, width, 1}};
  return {data, {image, 1, width * channels, channels}};
}

Operand weights(void* data, const ConvProblem& p, bool channels_last) {
  return activations(data, !channels_last, p.c_per_group(), p.R, p.S);
}

// A problem with its tensors in emulated memory.
class Session {
 public:
  Session(const EmulatedKernel& kernel, const std::vector<int64_t>& extents, bool bias,
          bool channels_last, int sm_count)
      : kernel_(kernel),
        p_(make_problem(extents)),
        bias_given_(bias),
        channels_last_(channels_last),
        sm_count_(sm_count),
        x_("x", bytes(p_.N * p_.H * p_.W * p_.C), use(Pass::kDgrad)),
        w_("w", bytes(p_.K * p_.c_per_group() * p_.R * p_.S), use(Pass::kWgrad)),
        y_("y", bytes(p_.N * p_.P * p_.Q * p_.K), use(Pass::kFprop)),
        bias_("bias", bytes(p_.K), simt::Buffer::Use::kInput),
        scale_("scale", 2 * bytes(p_.K), simt::Buffer::Use::kInput),
        shift_("shift", 2 * bytes(p_.K), simt::Buffer::Use::kInput),
        sum_("sum", 2 * bytes(p_.K), simt::Buffer::Use::kOutput),
        squares_("squares", 2 * bytes(p_.K), simt::Buffer::Use::kOutput) {
    const std::string why = kernel.refusal(p_);
    if (!why.empty()) throw std::invalid_argument(why);
    workspace_.emplace("workspace", size_t(kernel.workspace_bytes(p_, sm_count)),
                       simt::Buffer::Use::kWorkspace);
  }

  std::vector<simt::Report> run(const simt::Options& options) {
    PassArgs args{kernel_.pass,
                  p_,
                  kernel_.dtype,
                  activations(x_.device<void>(), kernel_.planar, p_.C, p_.H, p_.W),
                  weights(w_.device<void>(), p_, channels_last_),
                  activations(y_.device<void>(), kernel_.planar, p_.K, p_.P, p_.Q),
                  bias_given_ ? bias_.device<void>() : nullptr,
                  1};
    args.epilogue.relu = relu;
    if (affine) {
      args.epilogue.scale = scale_.device<void>();
      args.epilogue.shift = shift_.device<void>();
    }
    if (statistics) args.statistics = {sum_.device<void>(), squares_.device<void>()};
    return kernel_.launch(args, workspace_->device<void>(), sm_count_, options);
  }

  // What fprop shall do beside the convolution.
  bool affine = false;
  bool relu = false;
  bool statistics = false;

  bool complete() const {
    if (statistics && !(sum_.complete() && squares_.complete())) return false;
    return (kernel_.pass == Pass::kDgrad ? x_ : kernel_.pass == Pass::kWgrad ? w_ : y_).complete();
  }

  simt::Buffer& x() { return x_; }
  simt::Buffer& w() { return w_; }
  simt::Buffer& y() { return y_; }
  simt::Buffer& bias() { return bias_; }
  simt::Buffer& scale() { return scale_; }
  simt::Buffer& shift() { return shift_; }
  simt::Buffer& sum() { return sum_; }
  simt::Buffer& squares() { return squares_; }

 private:
  static size_t bytes(int64_t elements) { return size_t(elements) * sizeof(uint16_t); }
  simt::Buffer::Use use(Pass written_by) const {
    return kernel_.pass == written_by ? simt::Buffer::Use::kOutput : simt::Buffer::Use::kInput;
  }

  const EmulatedKernel& kernel_;
  ConvProblem p_;
  bool bias_given_, channels_last_;
  int sm_count_;
  simt::Buffer x_, w_, y_, bias_, scale_, shift_, sum_, squares_;
  std::optional<simt::Buffer> workspace_;
};

// A buffer's memory itself, which lives as long as the session.
template <simt::Buffer& (Session::*buffer)(), typename T = uint16_t>
py::array_t<T> view(const py::object& session) {
  simt::Buffer& memory = (session.cast<Session&>().*buffer)();
  return py::array_t<T>(py::ssize_t(memory.bytes() / sizeof(T)), memory.host<T>(), session);
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
  py::class_<simt::BufferTraffic>(m, "BufferTraffic")
      .def_readonly("name", &simt::BufferTraffic::name)
      .def_readonly("sectors_read", &simt::BufferTraffic::sectors_read)
      .def_readonly("sectors_written", &simt::BufferTraffic::sectors_written);
  py::class_<Counts>(m, "Counts")
      .def_readonly("blocks", &Counts::blocks)
      .def_readonly("threads", &Counts::threads)
      .def_readonly("shared_bytes", &Counts::shared_bytes)
      .def_readonly("sites", &Counts::sites)
      .def_readonly("grid_blocks", &Counts::grid_blocks)
      .def_readonly("buffers", &Counts::buffers)
      .def_readonly("bytes_in_flight", &Counts::bytes_in_flight);
  py::class_<Mutation>(m, "Mutation")
      .def_property_readonly("kind", [](const Mutation& mu) { return simt::name(mu.kind); })
      .def_property_readonly(
          "where", [](const Mutation& mu) { return mu.file + ":" + std::to_string(mu.line); })
      .def_readonly("column", &Mutation::column);
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
  py::class_<Session>(m, "Session")
      .def_property_readonly("x", &view<&Session::x>)
      .def_property_readonly("w", &view<&Session::w>)
      .def_property_readonly("y", &view<&Session::y>)
      .def_property_readonly("bias", &view<&Session::bias>)
      .def_property_readonly("scale", &view<&Session::scale, float>)
      .def_property_readonly("shift", &view<&Session::shift, float>)
      .def_property_readonly("sum", &view<&Session::sum, float>)
      .def_property_readonly("squares", &view<&Session::squares, float>)
      .def_readwrite("affine", &Session::affine, "fprop: whether scale and shift are applied.")
      .def_readwrite("relu", &Session::relu)
      .def_readwrite("statistics", &Session::statistics,
                     "fprop: whether sum and squares are written.")
      .def_property_readonly("complete", &Session::complete,
                             "Whether each element that the pass writes was written.")
      .def(
          "run",
          [](Session& session, uint64_t schedule, bool detect, bool count, bool arithmetic,
             int64_t most_blocks, const std::optional<Mutation>& mutation) {
            return session.run({.schedule = schedule,
                                .detect = detect,
                                .count = count,
                                .arithmetic = arithmetic,
                                .most_blocks = most_blocks,
                                .mutation = mutation.value_or(Mutation{})});
          },
          py::kw_only(), py::arg("schedule") = 0, py::arg("detect") = true, py::arg("count") = true,
          py::arg("arithmetic") = true, py::arg("most_blocks") = 0,
          py::arg("mutation") = py::none(), "A Report for each launch of the pass.");

  py::class_<EmulatedKernel>(m, "Kernel")
      .def_readonly("name", &EmulatedKernel::name)
      .def_readonly("planar", &EmulatedKernel::planar)
      .def_property_readonly("pass_name", [](const EmulatedKernel& k) { return name(k.pass); })
      .def_property_readonly("dtype",
                             [](const EmulatedKernel& k) {
                               return k.dtype == DType::kFloat16 ? "float16" : "bfloat16";
                             })
      .def_readonly("takes_epilogue", &EmulatedKernel::takes_epilogue)
      .def_readonly("takes_statistics", &EmulatedKernel::takes_statistics)
      .def("refusal",
           [](const EmulatedKernel& k, const std::vector<int64_t>& extents) {
             return k.refusal(make_problem(extents));
           })
      .def(
          "session",
          [](const EmulatedKernel& kernel, const std::vector<int64_t>& extents, bool bias,
             bool channels_last, int sm_count) {
            return std::make_unique<Session>(kernel, extents, bias, channels_last, sm_count);
          },
          py::arg("extents"), py::kw_only(), py::arg("bias") = false,
          py::arg("channels_last") = false, py::arg("sm_count") = 132, py::keep_alive<0, 1>(),
          "A problem, extents as of ConvProblem::make, with zeros in its tensors. Their elements "
          "are uint16, in the order of the memory: x and y NHWC, or NCHW of a planar kernel; w "
          "KCRS "
          "or, if channels_last, KRSC.");

  m.def("kernels", &kernels, py::return_value_policy::reference,
        "All configurations, for each element type.");
}

}  // namespace grouped_conv::cuda
