#define GROUPED_CONV_ISA isa_avx512bf16
#include "vec_avx512bf16.h"
// The vector interface comes first: the kernels are written over it.
#include "direct_conv.h"
#include "pairs.h"

namespace grouped_conv::cpu {

extern const IsaKernels kAvx512Kernels;

namespace {

// Dot products serve fprop and dgrad in bfloat16. wgrad sums over pixels, whose pairs are not
// adjacent, and float32 and float16 have no such instruction: they run as plain AVX-512.
void direct(const PassArgs& args) {
  if (args.dtype == DType::kBFloat16 && args.pass != Pass::kWgrad) {
    isa_avx512bf16::direct_conv<isa_avx512bf16::ElementBF16>(args);
  } else {
    kAvx512Kernels.direct(args);
  }
}

}  // namespace

extern const IsaKernels kAvx512Bf16Kernels;
const IsaKernels kAvx512Bf16Kernels = {"avx512bf16", cpu_has_avx512bf16, direct};

}  // namespace grouped_conv::cpu
