// Per-thread scratch memory that survives between calls: a fresh page costs more than the work done
// in it. A thread keeps at most kKeepBytes per slot and frees them when it ends.
#pragma once

#include <cstddef>

namespace grouped_conv::cpu {

// A thread may hold one lease of each slot at a time.
enum class ScratchSlot { kShared, kTask, kFlags };

class ScratchLease {
 public:
  // 64-byte aligned, uninitialised.
  ScratchLease(ScratchSlot slot, size_t bytes);
  ~ScratchLease();
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;
  float* floats() const { return static_cast<float*>(data_); }

 private:
  ScratchSlot slot_;
  void* data_;
};

}  // namespace grouped_conv::cpu
