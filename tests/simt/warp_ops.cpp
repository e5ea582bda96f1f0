#include "simt/warp_ops.h"

#include <cmath>

namespace simt {
namespace {

constexpr int kM = 16, kN = 8, kMaxK = 16;

float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

struct Matrices {
  double a[kM][kMaxK];
  double b[kMaxK][kN];
};

template <float (*convert)(uint16_t)>
void gather(const MmaOperands& operands, int k, Matrices& m) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < k / 4; ++r) {
      const uint32_t pair = operands.a[lane][r];
      double* to = &m.a[g + r % 2 * 8][2 * t + r / 2 * 8];
      to[0] = convert(uint16_t(pair));
      to[1] = convert(uint16_t(pair >> 16));
    }
    for (int r = 0; r < k / 8; ++r) {
      const uint32_t pair = operands.b[lane][r];
      m.b[2 * t + r * 8][g] = convert(uint16_t(pair));
      m.b[2 * t + r * 8 + 1][g] = convert(uint16_t(pair >> 16));
    }
  }
}

void gather_tf32(const MmaOperands& operands, Matrices& m) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
      m.a[g + r % 2 * 8][t + r / 2 * 4] = from_tf32(operands.a[lane][r]);
    }
    for (int r = 0; r < 2; ++r) m.b[t + r * 4][g] = from_tf32(operands.b[lane][r]);
  }
}

// Rounds the exponent and mantissa to the nearest; the caller has dealt with NaN.
uint16_t round_to_bfloat16(uint32_t bits) {
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace

void mma(MmaShape shape, const MmaOperands& operands) {
  Matrices m;
  switch (shape.format) {
    case Format::kFloat16:
      gather<from_float16>(operands, shape.k, m);
      break;
    case Format::kBFloat16:
      gather<from_bfloat16>(operands, shape.k, m);
      break;
    case Format::kTf32:
      gather_tf32(operands, m);
      break;
  }
  for (int row = 0; row < kM; ++row) {
    // The lane of columns 2t, 2t + 1 is 4 g + t; its registers for row g + 8 come second.
    const int g = row % 8, half = row / 8 * 2;
    double sums[kN];
    for (int n = 0; n < kN; ++n) sums[n] = operands.d[4 * g + n / 2][half + n % 2];
    for (int k = 0; k < shape.k; ++k) {
      const double a = m.a[row][k];
      for (int n = 0; n < kN; ++n) sums[n] += a * m.b[k][n];
    }
    for (int n = 0; n < kN; ++n) operands.d[4 * g + n / 2][half + n % 2] = float(sums[n]);
  }
}

void distribute(const uint16_t (&rows)[8][8], bool transposed, uint32_t (&registers)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const uint16_t low = transposed ? rows[2 * t][g] : rows[g][2 * t];
    const uint16_t high = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
    registers[lane] = low | uint32_t(high) << 16;
  }
}

uint16_t to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  return round_to_bfloat16(std::bit_cast<uint32_t>(value));
}

uint32_t to_tf32(float value) {
  if (std::isnan(value)) return 0x7fffffff;
  return (std::bit_cast<uint32_t>(value) + 0x1000u) & 0xffffe000u;
}

uint16_t to_float16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const float magnitude = std::abs(value);
  if (magnitude >= 65520.f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) {
    // Subnormal: adding 0.5 puts its unit, 2^-24, at the end of the mantissa, rounded.
    return sign | uint16_t(std::bit_cast<uint32_t>(magnitude + 0.5f) - 0x3f000000u);
  }
  const uint32_t rebased = std::bit_cast<uint32_t>(magnitude) - (112u << 23);
  return sign | uint16_t((rebased + 0x0fffu + (rebased >> 13 & 1)) >> 13);
}

}  // namespace simt
