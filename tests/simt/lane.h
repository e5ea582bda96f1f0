// What one thread of an emulated kernel can do: the interface that device leaves call. Each
// function takes the place in the kernel's source that it is called from; reports and counts name
// it.
#pragma once

#include <bit>
#include <cstdint>
#include <source_location>

namespace simt {

using Site = std::source_location;

struct Dim3 {
  int x = 1, y = 1, z = 1;
};

// Stands for a block's dynamic shared memory; has an address, but nothing to dereference.
class SharedMemory {
 public:
  uint32_t address() const { return 0; }
};

int thread_index();
Dim3 block_index();
Dim3 grid_extent();

// All threads of the block.
void sync_threads(Site site);
bool sync_threads_or(bool condition, Site site);

// All lanes of the warp.
enum class Shuffle { kXor, kDown, kIndex };
void sync_warp(Site site);
bool warp_any(bool condition, Site site);
uint32_t shuffle(Shuffle kind, uint32_t value, int operand, Site site);

// r has `matrices` registers: 1, 2 or 4.
void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t row, Site site);

enum class Format { kFloat16, kBFloat16, kTf32 };
struct MmaShape {
  Format format;
  int k;  // m is 16, n is 8
};
void mma(MmaShape shape, float* d, const uint32_t* a, const uint32_t* b, Site site);

// One lane. `bytes` is 2, 4, 8 or 16.
void load_global(void* value, const void* source, int bytes, bool active, Site site);
void store_global(void* target, const void* value, int bytes, bool active, Site site);
void load_shared(void* value, uint32_t source, int bytes, bool active, Site site);
void store_shared(uint32_t target, const void* value, int bytes, bool active, Site site);
void cp_async_16(uint32_t target, const void* source, bool valid, bool active, Site site);
void cp_async_commit(Site site);
void cp_async_wait(int groups_left, Site site);

template <typename T>
T load_global(const void* source, bool active, Site site) {
  T value;
  load_global(&value, source, int(sizeof(T)), active, site);
  return value;
}
template <typename T>
void store_global(void* target, const T& value, bool active, Site site) {
  store_global(target, &value, int(sizeof(T)), active, site);
}
template <typename T>
T load_shared(uint32_t source, bool active, Site site) {
  T value;
  load_shared(&value, source, int(sizeof(T)), active, site);
  return value;
}
template <typename T>
void store_shared(uint32_t target, const T& value, bool active, Site site) {
  store_shared(target, &value, int(sizeof(T)), active, site);
}

// Conversions as the hardware's cvt.rn: nearest even, overflow to infinity, NaN to 0x7fff.
uint16_t to_float16(float value);
uint16_t to_bfloat16(float value);
// As cvt.rna.tf32: the low 13 bits rounded off, ties away from zero, NaN to 0x7fffffff.
uint32_t to_tf32(float value);

inline float from_float16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000u) return std::bit_cast<float>(sign | 0x70000000u | magnitude);
  // The exponent's bias is 15 in one format and 127 in the other; subnormals come out right too.
  return std::bit_cast<float>(sign |
                              std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f));
}
inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

}  // namespace simt
