#include "scratch.h"

#include <cstdlib>
#include <new>

namespace grouped_conv::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kKeepBytes = size_t{8} << 20;

struct Buffer {
  void* data = nullptr;
  size_t capacity = 0;

  void release() {
    std::free(data);
    data = nullptr;
    capacity = 0;
  }
  ~Buffer() { release(); }
};

thread_local Buffer buffers[3];

}  // namespace

ScratchLease::ScratchLease(ScratchSlot slot, size_t bytes) : slot_(slot) {
  Buffer& buffer = buffers[static_cast<int>(slot)];
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (buffer.capacity < rounded) {
    buffer.release();
    buffer.data = std::aligned_alloc(kAlignment, rounded);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.capacity = rounded;
  }
  data_ = buffer.data;
}

ScratchLease::~ScratchLease() {
  Buffer& buffer = buffers[static_cast<int>(slot_)];
  if (buffer.capacity > kKeepBytes) buffer.release();
}

}  // namespace grouped_conv::cpu
