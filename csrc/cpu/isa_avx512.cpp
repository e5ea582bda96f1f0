#define GROUPED_CONV_ISA isa_avx512
#include "vec_avx512.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {
using Vec = Avx512;
}

// The vector interface comes first: the kernels are written over it.
#include "direct.h"

namespace grouped_conv::cpu {
extern const IsaKernels kAvx512Kernels;
const IsaKernels kAvx512Kernels = {"avx512", cpu_has_avx512, isa_avx512::direct,
                                   isa_avx512::moments};
}  // namespace grouped_conv::cpu
