// The direct kernels of one instruction set: included once by each isa_*.cpp, after its vec_*.h.
#pragma once

#include "direct_conv.h"
#include "direct_wgrad.h"
#include "moments.h"
#include "winograd.h"

namespace grouped_conv::cpu::GROUPED_CONV_ISA {

template <class E>
void direct_element(const PassArgs& args) {
  const bool winograd = uses_winograd(args);
  if (args.pass == Pass::kWgrad) {
    winograd ? winograd_wgrad<E>(args) : direct_wgrad<E>(args);
  } else if (winograd) {
    winograd_conv<E>(args);
    if (args.moments.mean != nullptr) all_row_moments<E>(args);
  } else {
    direct_conv<E>(args);
  }
}

void direct(const PassArgs& args) {
  switch (args.dtype) {
    case DType::kFloat32:
      return direct_element<ElementF32>(args);
    case DType::kBFloat16:
      return direct_element<ElementBF16>(args);
    case DType::kFloat16:
      return direct_element<ElementF16>(args);
    case DType::kFloat64:
      return;  // direct_refusal() names it
  }
}

}  // namespace grouped_conv::cpu::GROUPED_CONV_ISA
