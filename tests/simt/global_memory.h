// Global memory: finds the buffer of an address and knows of each byte whether it was written, and
// of each sector whether the launch touched it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "simt/simt.h"

namespace simt {

inline constexpr int kSectorBytes = 32;

class GlobalMemory {
 public:
  struct Problem {
    Fault fault;
    std::string message;
  };

  static GlobalMemory& instance();

  void add(Buffer* buffer);
  void remove(Buffer* buffer);

  void begin_launch();
  std::vector<BufferTraffic> traffic() const;

  // The access by `thread`, counted over the whole grid. Zeros are read where nothing can be read.
  std::optional<Problem> read(void* value, const void* source, int bytes);
  std::optional<Problem> write(void* target, const void* value, int bytes, int64_t thread);

 private:
  Buffer* find(uintptr_t address, int bytes);
  Problem outside(uintptr_t address, int bytes, const char* what) const;

  std::vector<Buffer*> buffers_;
  Buffer* last_ = nullptr;
  uint32_t launch_ = 0;
};

}  // namespace simt
