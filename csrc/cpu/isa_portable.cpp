#define GROUPED_CONV_ISA isa_portable
#include "vec_portable.h"
// The vector interface comes first: the kernels are written over it.
#include "direct.h"

namespace grouped_conv::cpu {
extern const IsaKernels kPortableKernels;
const IsaKernels kPortableKernels = {"portable", [] { return true; }, isa_portable::direct,
                                     isa_portable::moments};
}  // namespace grouped_conv::cpu
