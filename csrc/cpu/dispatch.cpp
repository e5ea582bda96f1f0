// Which instruction set runs, and which problems the direct kernels take.
#include <cstdlib>
#include <cstring>

#include "cpu_info.h"
#include "kernels.h"

namespace grouped_conv::cpu {

#ifdef GROUPED_CONV_HAVE_AVX512BF16
extern const IsaKernels kAvx512Bf16Kernels;
#endif
#ifdef GROUPED_CONV_HAVE_AVX512
extern const IsaKernels kAvx512Kernels;
#endif
#ifdef GROUPED_CONV_HAVE_AVX2
extern const IsaKernels kAvx2Kernels;
#endif
extern const IsaKernels kPortableKernels;

namespace {

const IsaKernels* const kCompiled[] = {
#ifdef GROUPED_CONV_HAVE_AVX512BF16
    &kAvx512Bf16Kernels,
#endif
#ifdef GROUPED_CONV_HAVE_AVX512
    &kAvx512Kernels,
#endif
#ifdef GROUPED_CONV_HAVE_AVX2
    &kAvx2Kernels,
#endif
    &kPortableKernels,
};
constexpr int kCompiledCount = sizeof(kCompiled) / sizeof(kCompiled[0]);

// Best first; a cap is a place in this order, whether or not that variant was compiled.
const char* const kOrder[] = {"avx512bf16", "avx512", "avx2", "portable"};

int order_of(const char* name) {
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(name, kOrder[i]) == 0) return i;
  }
  return 0;  // an unknown cap caps nothing; grouped_conv/backends/native.py reports it
}

const IsaKernels& choose() {
  const char* cap = std::getenv("GROUPED_CONV_CPU_ISA");
  const int limit = cap != nullptr ? order_of(cap) : 0;
  for (const IsaKernels* kernels : kCompiled) {
    if (order_of(kernels->name) >= limit && kernels->available()) return *kernels;
  }
  return kPortableKernels;
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& best = choose();
  return best;
}

const IsaKernels* const* compiled_isa_kernels(int* count) {
  *count = kCompiledCount;
  return kCompiled;
}

const char* direct_refusal(const ConvProblem& p, DType dtype) {
  if (dtype == DType::kFloat64) return "the direct kernels compute in float32";
  if (p.R != 3 || p.S != 3) return "the direct kernels are for 3x3 filters";
  if (p.dilation_h != 1 || p.dilation_w != 1) return "the direct kernels are for dilation 1";
  if (p.stride_h != p.stride_w || p.stride_h > 2) {
    return "the direct kernels are for strides 1 and 2, equal in both directions";
  }
  return nullptr;
}

bool uses_winograd(const PassArgs& args) {
  const ConvProblem& p = args.problem;
  if (p.stride_h != 1 || p.c_per_group() < 16 || p.k_per_group() < 16) return false;
  if (args.pass != Pass::kWgrad) return true;
  // The error of the transforms hardly grows with the number of pixels that are summed. Over few of
  // them the sums of PyTorch are more exact, in NCHW over very few.
  const int64_t pixels = p.N * p.P * p.Q;
  if (args.layout == Layout::kNCHW) return pixels >= 128;
  return p.N >= 8 || (p.N >= 4 && pixels >= 700) || pixels >= 1500;
}

}  // namespace grouped_conv::cpu
