// What the lanes of a warp compute together, against plain matrices: fragments laid out as the PTX
// ISA has them, conversions, shuffles.
#include <cmath>
#include <limits>
#include <random>

#include "cuda/device/device.h"
#include "simt/check.h"
#include "simt/simt.h"

namespace {

using namespace grouped_conv::cuda;
using namespace grouped_conv::cuda::device;
using simt::Buffer;
using simt::check;

std::mt19937 rng(0);

float rounded(uint16_t bits, Float16) { return simt::from_float16(bits); }
float rounded(uint16_t bits, BFloat16) { return simt::from_bfloat16(bits); }

// The kernel stages A [16][K] and B [8][K] (column n is a row) and multiplies: A by ldmatrix, B by
// ldmatrix if it is stored by columns, transposed if by rows.
template <typename T, int K>
GC_GLOBAL(32, 1)
multiply(const T* a, const T* b, float* d, bool b_by_rows) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory), b_base = base + 16 * K * 2;
  const int lane = lane_index();
  for (int i = lane; i < 16 * K / 8; i += 32)
    store_shared_16(base + i * 16, load_global_16(a + i * 8));
  for (int i = lane; i < 8 * K / 8; i += 32) {
    store_shared_16(b_base + i * 16, load_global_16(b + i * 8));
  }
  sync_warp();
  float sums[4] = {1.f, 2.f, 3.f, 4.f};
  // Matrices of A: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
  const uint32_t a_row = base + (lane % 16 * K + lane / 16 * 8) * 2;
  if constexpr (K == 16) {
    uint32_t fa[4], fb[2];
    ldmatrix_x4(fa, a_row);
    if (b_by_rows) {
      ldmatrix_x2_trans(fb, b_base + lane % 16 * 8 * 2);
    } else {
      ldmatrix_x2(fb, b_base + (lane % 8 * K + lane / 8 % 2 * 8) * 2);
    }
    mma_m16n8k16<T>(sums, fa, fb);
  } else {
    uint32_t fa[2], fb[1];
    ldmatrix_x2(fa, base + lane % 16 * K * 2);
    if (b_by_rows) {
      ldmatrix_x1_trans(fb, b_base + lane % 8 * 8 * 2);
    } else {
      ldmatrix_x1(fb, b_base + lane % 8 * K * 2);
    }
    mma_m16n8k8<T>(sums, fa, fb);
  }
  const int g = lane / 4, t = lane % 4;
  store_global_8(d + g * 8 + 2 * t, Bytes8{{bits_of(sums[0]), bits_of(sums[1])}});
  store_global_8(d + (g + 8) * 8 + 2 * t, Bytes8{{bits_of(sums[2]), bits_of(sums[3])}});
}

template <typename T, int K>
void check_multiply(bool b_by_rows) {
  Buffer a("a", 16 * K * 2, Buffer::Use::kInput), b("b", 8 * K * 2, Buffer::Use::kInput);
  Buffer d("d", 16 * 8 * 4, Buffer::Use::kOutput);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 16 * K; ++i) a.host<uint16_t>()[i] = pack1<T>(normal(rng));
  for (int i = 0; i < 8 * K; ++i) b.host<uint16_t>()[i] = pack1<T>(normal(rng));
  const simt::Report report = simt::launch({{1}, 32, 24 * K * 2}, {}, [&] {
    multiply<T, K>(a.device<T>(), b.device<T>(), d.device<float>(), b_by_rows);
  });
  check(report.clean() && d.complete(), "multiply: " + report.text());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      double sum = 1 + n % 2 + m / 8 * 2;
      for (int k = 0; k < K; ++k) {
        sum += double(rounded(a.host<uint16_t>()[m * K + k], T{})) *
               double(rounded(b.host<uint16_t>()[b_by_rows ? k * 8 + n : n * K + k], T{}));
      }
      check(d.host<float>()[m * 8 + n] == float(sum),
            "m16n8k" + std::to_string(K) + " at " + std::to_string(m) + "," + std::to_string(n));
    }
  }
}

// tf32 operands are given to the lanes directly; the last bits must not count.
GC_GLOBAL(32, 1) multiply_tf32(const float* a, const float* b, float* d) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i)
    fa[i] = load_global_4(a + (g + i % 2 * 8) * 8 + t + i / 2 * 4) | 0x1fff;
  for (int i = 0; i < 2; ++i) fb[i] = load_global_4(b + (t + i * 4) * 8 + g) | 0x1fff;
  float sums[4] = {};
  mma_m16n8k8_tf32(sums, fa, fb);
  for (int i = 0; i < 4; ++i) {
    store_global_4(d + (g + i / 2 * 8) * 8 + 2 * t + i % 2, bits_of(sums[i]));
  }
}

void check_tf32() {
  Buffer a("a", 16 * 8 * 4, Buffer::Use::kInput), b("b", 8 * 8 * 4, Buffer::Use::kInput);
  Buffer d("d", 16 * 8 * 4, Buffer::Use::kOutput);
  std::uniform_int_distribution<int> small(-1023, 1023);  // exact in tf32
  for (int i = 0; i < 16 * 8; ++i) a.host<float>()[i] = float(small(rng)) / 64;
  for (int i = 0; i < 8 * 8; ++i) b.host<float>()[i] = float(small(rng)) / 64;
  const simt::Report report = simt::launch({{1}, 32, 0}, {}, [&] {
    multiply_tf32(a.device<float>(), b.device<float>(), d.device<float>());
  });
  check(report.clean() && d.complete(), "tf32: " + report.text());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      double sum = 0;
      for (int k = 0; k < 8; ++k) {
        sum += double(a.host<float>()[m * 8 + k]) * double(b.host<float>()[k * 8 + n]);
      }
      check(d.host<float>()[m * 8 + n] == float(sum), "tf32");
    }
  }
}

// Between two neighbours the nearer is taken, at the middle the one farther from zero.
void check_tf32_conversion() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const uint32_t low : {0u, 0x00002000u, 0x3f800000u, 0x3fffe000u, 0x42f6e000u, 0x7f7fe000u}) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const auto of = [&](uint32_t bits) { return to_tf32(float_of(sign | bits)) ^ sign; };
      check(of(low) == low && of(low + 0x0fff) == low, "tf32, towards zero");
      check(of(low + 0x1000) == low + 0x2000 && of(low + 0x1fff) == low + 0x2000,
            "tf32, away from zero");
    }
  }
  check(to_tf32(-kInfinity) == 0xff800000u, "tf32, infinity");
  check(to_tf32(float_of(0x7f800001u)) == 0x7fffffffu, "tf32, NaN");
}

GC_GLOBAL(32, 1) exchange(uint32_t* y) {
  const int lane = lane_index();
  const uint32_t value = 100 + uint32_t(lane);
  store_global_4(y + lane, shuffle_xor(value, 5));
  store_global_4(y + 32 + lane, shuffle_down(value, 9));
  store_global_4(y + 64 + lane, shuffle_index(value, lane / 4 * 4));
  store_global_4(y + 96 + lane, bits_of(shuffle_xor(float(lane), 1)));
  store_global_4(y + 128 + lane, warp_any(lane == 13));
  store_global_4(y + 160 + lane, warp_any(false));
  store_global_4(y + 192 + lane, sync_threads_or(lane == 31));
  store_global_4(y + 224 + lane, sync_threads_or(false));
}

void check_exchange() {
  Buffer y("y", 256 * 4, Buffer::Use::kOutput);
  const simt::Report report =
      simt::launch({{1}, 32, 0}, {.schedule = 1}, [&] { exchange(y.device<uint32_t>()); });
  check(report.clean() && y.complete(), "exchange: " + report.text());
  const uint32_t* v = y.host<uint32_t>();
  for (int lane = 0; lane < 32; ++lane) {
    check(v[lane] == 100u + uint32_t(lane ^ 5), "shuffle_xor");
    check(v[32 + lane] == 100u + uint32_t(lane + 9 < 32 ? lane + 9 : lane), "shuffle_down");
    check(v[64 + lane] == 100u + uint32_t(lane / 4 * 4), "shuffle_index");
    check(v[96 + lane] == bits_of(float(lane ^ 1)), "shuffle of a float");
    check(v[128 + lane] == 1 && v[160 + lane] == 0, "warp_any");
    check(v[192 + lane] == 1 && v[224 + lane] == 0, "sync_threads_or");
  }
}

// Every 16-bit value survives; between two of them the nearer is taken, at the middle the even one.
template <typename T>
void check_conversion(uint32_t infinity) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    const float low = rounded(uint16_t(bits), T{});
    const double high = bits + 1 < infinity
                            ? double(rounded(uint16_t(bits + 1), T{}))
                            : 2 * double(low) - double(rounded(uint16_t(bits - 1), T{}));
    const float middle = float((double(low) + high) / 2);
    const auto is = [](float value, uint32_t expected) {
      return pack1<T>(value) == expected && pack1<T>(-value) == (expected | 0x8000);
    };
    bool holds = is(low, bits) && is(middle, bits + bits % 2);
    if (middle > std::numeric_limits<float>::min()) {
      holds &=
          is(std::nextafter(middle, 0.f), bits) && is(std::nextafter(middle, kInfinity), bits + 1);
    }
    if (!check(holds, "conversion of " + std::to_string(bits))) return;
  }
  check(pack1<T>(kInfinity) == infinity, "infinity");
  check(pack1<T>(std::numeric_limits<float>::quiet_NaN()) == 0x7fff, "NaN");
  check(std::isnan(rounded(0x7fff, T{})) && std::isinf(rounded(uint16_t(infinity), T{})), "back");
  check(pack2<T>(1.f, 2.f) == (pack1<T>(1.f) | uint32_t(pack1<T>(2.f)) << 16), "pack2");
}

}  // namespace

int main() {
  for (const bool b_by_rows : {false, true}) {
    check_multiply<Float16, 16>(b_by_rows);
    check_multiply<Float16, 8>(b_by_rows);
    check_multiply<BFloat16, 16>(b_by_rows);
    check_multiply<BFloat16, 8>(b_by_rows);
  }
  check_tf32();
  check_tf32_conversion();
  check_exchange();
  check_conversion<Float16>(0x7c00);
  check_conversion<BFloat16>(0x7f80);
  std::printf("%d failures\n", simt::failures);
  return simt::failures != 0;
}
