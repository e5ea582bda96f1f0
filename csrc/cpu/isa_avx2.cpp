#define GROUPED_CONV_ISA isa_avx2
#include "vec_avx2.h"
// The vector interface comes first: the kernels are written over it.
#include "direct.h"

namespace grouped_conv::cpu {
extern const IsaKernels kAvx2Kernels;
const IsaKernels kAvx2Kernels = {"avx2", cpu_has_avx2, isa_avx2::direct, isa_avx2::moments};
}  // namespace grouped_conv::cpu
