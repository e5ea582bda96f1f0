#define GROUPED_CONV_ISA isa_avx512bf16
#include "vec_avx512bf16.h"
// The vector interface comes first: the kernels are written over it.
#include "direct_conv.h"
#include "pairs.h"

namespace grouped_conv::cpu {

extern const IsaKernels kAvx512Kernels;

namespace {

// float32 and float16 have no such instruction: they run as plain AVX-512.
void direct(const PassArgs& args) {
  using isa_avx512bf16::ElementBF16;
  if (args.dtype != DType::kBFloat16) {
    kAvx512Kernels.direct(args);
  } else if (args.pass == Pass::kWgrad) {
    isa_avx512bf16::direct_wgrad<ElementBF16>(args);
  } else {
    isa_avx512bf16::direct_conv<ElementBF16>(args);
  }
}

}  // namespace

extern const IsaKernels kAvx512Bf16Kernels;
const IsaKernels kAvx512Bf16Kernels = {"avx512bf16", cpu_has_avx512bf16, direct,
                                       kAvx512Kernels.moments};

}  // namespace grouped_conv::cpu
