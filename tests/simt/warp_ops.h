// The arithmetic of warp instructions on the fragments of 32 lanes, as the PTX ISA lays them out.
#pragma once

#include <cstdint>

#include "simt/lane.h"

namespace simt {

inline constexpr int kLanes = 32;

// The registers of each lane, by lane.
struct MmaOperands {
  float* d[kLanes];
  const uint32_t* a[kLanes];
  const uint32_t* b[kLanes];
};
void mma(MmaShape shape, const MmaOperands& operands);

// One 8x8 matrix of 16-bit elements, given by rows, to one register of each lane.
void distribute(const uint16_t (&rows)[8][8], bool transposed, uint32_t (&registers)[kLanes]);

}  // namespace simt
