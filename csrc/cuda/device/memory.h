// Loads, stores and asynchronous copies; the number is the bytes of one thread, and addresses are
// multiples of it.
//
// Global memory is addressed by pointers and loaded through the read-only path: nothing that the
// same launch writes may be loaded. Shared memory is addressed by 32-bit offsets, which start at
// shared_address(name) for GC_DYNAMIC_SHARED(name).
//
// `active` predicates one lane's access: an inactive load gives zero. Where a loop's condition
// differs between lanes, pass it so instead of branching around the call: the lanes of a warp then
// execute the same sequence of accesses, and the emulator can tell which of them are one.
#pragma once

#include "cuda/device/platform.h"

namespace grouped_conv::cuda::device {

#if GC_PTX

GC_DEVICE uint32_t shared_address(const unsigned char* dynamic_shared) {
  return uint32_t(__cvta_generic_to_shared(dynamic_shared));
}

GC_DEVICE Bytes16 load_global_16(const void* source, bool active = true) {
  Bytes16 v{};
  if (active) {
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(source));
  }
  return v;
}
GC_DEVICE Bytes8 load_global_8(const void* source, bool active = true) {
  Bytes8 v{};
  if (active) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.word[0]), "=r"(v.word[1])
                 : "l"(source));
  }
  return v;
}
GC_DEVICE uint32_t load_global_4(const void* source, bool active = true) {
  uint32_t v = 0;
  if (active) asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(source));
  return v;
}
GC_DEVICE uint16_t load_global_2(const void* source, bool active = true) {
  uint16_t v = 0;
  if (active) asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(source));
  return v;
}

GC_DEVICE void store_global_16(void* target, const Bytes16& v, bool active = true) {
  if (active) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(v.word[0]),
                 "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
  }
}
GC_DEVICE void store_global_8(void* target, const Bytes8& v, bool active = true) {
  if (active) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(target), "r"(v.word[0]), "r"(v.word[1])
                 : "memory");
  }
}
GC_DEVICE void store_global_4(void* target, uint32_t v, bool active = true) {
  if (active) asm volatile("st.global.u32 [%0], %1;" ::"l"(target), "r"(v) : "memory");
}
GC_DEVICE void store_global_2(void* target, uint16_t v, bool active = true) {
  if (active) asm volatile("st.global.u16 [%0], %1;" ::"l"(target), "h"(v) : "memory");
}

GC_DEVICE Bytes16 load_shared_16(uint32_t source, bool active = true) {
  Bytes16 v{};
  if (active) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(source)
                 : "memory");
  }
  return v;
}
GC_DEVICE Bytes8 load_shared_8(uint32_t source, bool active = true) {
  Bytes8 v{};
  if (active) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.word[0]), "=r"(v.word[1])
                 : "r"(source)
                 : "memory");
  }
  return v;
}
GC_DEVICE uint32_t load_shared_4(uint32_t source, bool active = true) {
  uint32_t v = 0;
  if (active) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(source) : "memory");
  return v;
}
GC_DEVICE uint16_t load_shared_2(uint32_t source, bool active = true) {
  uint16_t v = 0;
  if (active) asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(source) : "memory");
  return v;
}

GC_DEVICE void store_shared_16(uint32_t target, const Bytes16& v, bool active = true) {
  if (active) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(v.word[0]),
                 "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
  }
}
GC_DEVICE void store_shared_8(uint32_t target, const Bytes8& v, bool active = true) {
  if (active) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(target), "r"(v.word[0]), "r"(v.word[1])
                 : "memory");
  }
}
GC_DEVICE void store_shared_4(uint32_t target, uint32_t v, bool active = true) {
  if (active) asm volatile("st.shared.u32 [%0], %1;" ::"r"(target), "r"(v) : "memory");
}
GC_DEVICE void store_shared_2(uint32_t target, uint16_t v, bool active = true) {
  if (active) asm volatile("st.shared.u16 [%0], %1;" ::"r"(target), "h"(v) : "memory");
}

// Copies 16 bytes from global to shared memory without waiting; writes zeros, and does not look at
// the source, where it is not `valid`. Past L1, since nobody else in the block wants the bytes.
GC_DEVICE void cp_async_16(uint32_t target, const void* source, bool valid, bool active = true) {
  if (active) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
  }
}
// The same through L1, for bytes that the block copies several times.
GC_DEVICE void cp_async_16_cached(uint32_t target, const void* source, bool valid,
                                  bool active = true) {
  if (active) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
  }
}
// Closes the group of this thread's copies since the last call.
GC_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until no more than N of this thread's groups are under way. Other threads see what they
// brought only after a barrier.
template <int N>
GC_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

inline uint32_t shared_address(const ::simt::SharedMemory& memory) { return memory.address(); }

inline Bytes16 load_global_16(const void* source, bool active = true, Site site = Site::current()) {
  return ::simt::load_global<Bytes16>(source, active, site);
}
inline Bytes8 load_global_8(const void* source, bool active = true, Site site = Site::current()) {
  return ::simt::load_global<Bytes8>(source, active, site);
}
inline uint32_t load_global_4(const void* source, bool active = true, Site site = Site::current()) {
  return ::simt::load_global<uint32_t>(source, active, site);
}
inline uint16_t load_global_2(const void* source, bool active = true, Site site = Site::current()) {
  return ::simt::load_global<uint16_t>(source, active, site);
}

inline void store_global_16(void* target, const Bytes16& v, bool active = true,
                            Site site = Site::current()) {
  ::simt::store_global(target, v, active, site);
}
inline void store_global_8(void* target, const Bytes8& v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_global(target, v, active, site);
}
inline void store_global_4(void* target, uint32_t v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_global(target, v, active, site);
}
inline void store_global_2(void* target, uint16_t v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_global(target, v, active, site);
}

inline Bytes16 load_shared_16(uint32_t source, bool active = true, Site site = Site::current()) {
  return ::simt::load_shared<Bytes16>(source, active, site);
}
inline Bytes8 load_shared_8(uint32_t source, bool active = true, Site site = Site::current()) {
  return ::simt::load_shared<Bytes8>(source, active, site);
}
inline uint32_t load_shared_4(uint32_t source, bool active = true, Site site = Site::current()) {
  return ::simt::load_shared<uint32_t>(source, active, site);
}
inline uint16_t load_shared_2(uint32_t source, bool active = true, Site site = Site::current()) {
  return ::simt::load_shared<uint16_t>(source, active, site);
}

inline void store_shared_16(uint32_t target, const Bytes16& v, bool active = true,
                            Site site = Site::current()) {
  ::simt::store_shared(target, v, active, site);
}
inline void store_shared_8(uint32_t target, const Bytes8& v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_shared(target, v, active, site);
}
inline void store_shared_4(uint32_t target, uint32_t v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_shared(target, v, active, site);
}
inline void store_shared_2(uint32_t target, uint16_t v, bool active = true,
                           Site site = Site::current()) {
  ::simt::store_shared(target, v, active, site);
}

inline void cp_async_16(uint32_t target, const void* source, bool valid, bool active = true,
                        Site site = Site::current()) {
  ::simt::cp_async_16(target, source, valid, active, site);
}
inline void cp_async_16_cached(uint32_t target, const void* source, bool valid, bool active = true,
                               Site site = Site::current()) {
  ::simt::cp_async_16(target, source, valid, active, site);
}
inline void cp_async_commit(Site site = Site::current()) { ::simt::cp_async_commit(site); }
template <int N>
void cp_async_wait(Site site = Site::current()) {
  ::simt::cp_async_wait(N, site);
}

#endif

}  // namespace grouped_conv::cuda::device
