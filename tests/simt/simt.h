// A SIMT emulator: runs the source of a CUDA kernel on the CPU, thread by thread, and reports what
// a GPU would do without a word. README.md says what it models and what it does not.
//
//   simt::Buffer x("x", bytes, simt::Buffer::Use::kInput);      // fill x.host<T>()
//   simt::Buffer y("y", bytes, simt::Buffer::Use::kOutput);
//   const simt::Report report = simt::launch({{blocks}, threads, shared_bytes}, {},
//                                            [&] { kernel(x.device<T>(), y.device<T>()); });
//
// One launch at a time in a process; use several processes to use several cores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "simt/lane.h"
#include "simt/mutation.h"
#include "simt/report.h"

namespace simt {

// Global memory. Kernels get device addresses, which are not addresses of the host: only leaves can
// follow them. Pages that nobody touches cost nothing, so a buffer may be larger than the memory.
class Buffer {
 public:
  enum class Use {
    kInput,      // initialised by the host; the kernel must not write
    kOutput,     // uninitialised
    kWorkspace,  // as kOutput; a later launch may read what an earlier one wrote, and write it anew
  };

  Buffer(std::string name, size_t bytes, Use use);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* host() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  T* device() const {
    return reinterpret_cast<T*>(address_);
  }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  // Whether all bytes have been written by launches.
  bool complete() const;

 private:
  friend class GlobalMemory;

  std::string name_;
  size_t bytes_;
  Use use_;
  uintptr_t address_;
  std::byte* data_;
  // For each two bytes who wrote them: the launch, and (mod 2^24) the thread; 0: nobody.
  uint32_t* writers_;
  // For each sector whether this launch read it (bit 0), wrote it (bit 1).
  uint8_t* sectors_;
};

struct Shape {
  Dim3 grid;
  int threads;  // of a block; a multiple of 32, at most 1024
  int shared_bytes;
};

struct Options {
  // Which lanes and warps and blocks go first. 0: in order; others are random.
  uint64_t schedule = 0;
  bool detect = true;       // races, uninitialised and pending reads of shared memory
  bool count = true;        // sectors and wavefronts
  bool arithmetic = true;   // if not, mma and ldmatrix leave their registers as they are
  int64_t most_blocks = 0;  // run the first ones of the grid only; 0: all
  Mutation mutation = {};
};

Report launch(const Shape& shape, const Options& options, const std::function<void()>& kernel);

}  // namespace simt
