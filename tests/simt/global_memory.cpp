#include "simt/global_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simt {
namespace {

constexpr int kWriterGranule = 2;
constexpr uint32_t kThreadBits = 24;
constexpr uint32_t kLaunches = 1u << (32 - kThreadBits);
constexpr size_t kAddressSpace = size_t{1} << 42;
constexpr size_t kGap = size_t{1} << 20;  // between buffers: an address that strays meets nobody

void* map(size_t bytes, int protection) {
  void* memory = mmap(nullptr, std::max<size_t>(bytes, 1), protection,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: mmap");
    std::abort();
  }
  return memory;
}

// Device addresses are drawn from pages that nobody can touch: what follows one without a leaf,
// dies. They are handed out once.
uintptr_t new_address(size_t bytes) {
  static uintptr_t next = reinterpret_cast<uintptr_t>(map(kAddressSpace, PROT_NONE)) + kGap;
  const uintptr_t address = (next + 255) / 256 * 256;
  next = address + bytes + kGap;
  return address;
}

size_t shadow_bytes(size_t bytes) {
  return (bytes + kWriterGranule - 1) / kWriterGranule * sizeof(uint32_t);
}

size_t sector_count(size_t bytes) { return (bytes + kSectorBytes - 1) / kSectorBytes; }

template <typename T>
T* map_zeros(size_t bytes) {
  return static_cast<T*>(map(bytes, PROT_READ | PROT_WRITE));
}

void unmap(void* memory, size_t bytes) { munmap(memory, std::max<size_t>(bytes, 1)); }

std::string describe(uint32_t writer) {
  return "thread " + std::to_string(writer & ((1u << kThreadBits) - 1)) + " of the grid";
}

}  // namespace

Buffer::Buffer(std::string name, size_t bytes, Use use)
    : name_(std::move(name)),
      bytes_(bytes),
      use_(use),
      address_(new_address(bytes)),
      data_(map_zeros<std::byte>(bytes)),
      writers_(map_zeros<uint32_t>(shadow_bytes(bytes))),
      sectors_(map_zeros<uint8_t>(sector_count(bytes))) {
  GlobalMemory::instance().add(this);
}

Buffer::~Buffer() {
  GlobalMemory::instance().remove(this);
  unmap(data_, bytes_);
  unmap(writers_, shadow_bytes(bytes_));
  unmap(sectors_, sector_count(bytes_));
}

bool Buffer::complete() const {
  const uint32_t* end = writers_ + (bytes_ + kWriterGranule - 1) / kWriterGranule;
  return std::find(static_cast<const uint32_t*>(writers_), end, 0u) == end;
}

GlobalMemory& GlobalMemory::instance() {
  static GlobalMemory memory;
  return memory;
}

void GlobalMemory::add(Buffer* buffer) { buffers_.push_back(buffer); }

void GlobalMemory::remove(Buffer* buffer) {
  std::erase(buffers_, buffer);
  last_ = nullptr;
}

void GlobalMemory::begin_launch() {
  launch_ = launch_ % (kLaunches - 1) + 1;
  for (Buffer* buffer : buffers_) {
    // Zeros are not written over zeros: that would take memory for what nobody touched.
    for (size_t i = 0; i < sector_count(buffer->bytes_); ++i) {
      if (buffer->sectors_[i] != 0) buffer->sectors_[i] = 0;
    }
    if (launch_ > 1 || buffer->use_ == Buffer::Use::kInput) continue;
    // The launches are counted anew: what any of them wrote was written by the last.
    const size_t granules = (buffer->bytes_ + kWriterGranule - 1) / kWriterGranule;
    for (size_t i = 0; i < granules; ++i) {
      if (buffer->writers_[i] != 0) buffer->writers_[i] = (kLaunches - 1) << kThreadBits;
    }
  }
}

std::vector<BufferTraffic> GlobalMemory::traffic() const {
  std::vector<BufferTraffic> all;
  for (const Buffer* buffer : buffers_) {
    BufferTraffic& own = all.emplace_back(BufferTraffic{buffer->name_});
    for (size_t i = 0; i < sector_count(buffer->bytes_); ++i) {
      own.sectors_read += buffer->sectors_[i] & 1;
      own.sectors_written += buffer->sectors_[i] >> 1;
    }
  }
  return all;
}

Buffer* GlobalMemory::find(uintptr_t address, int bytes) {
  const auto holds = [&](const Buffer* buffer) {
    return address >= buffer->address_ &&
           address + uintptr_t(bytes) <= buffer->address_ + buffer->bytes_;
  };
  if (last_ && holds(last_)) return last_;
  const auto found = std::find_if(buffers_.begin(), buffers_.end(), holds);
  if (found == buffers_.end()) return nullptr;
  return last_ = *found;
}

GlobalMemory::Problem GlobalMemory::outside(uintptr_t address, int bytes, const char* what) const {
  const Buffer* nearest = nullptr;
  int64_t least = 0;
  for (const Buffer* buffer : buffers_) {
    const int64_t offset = int64_t(address - buffer->address_);
    const int64_t distance =
        offset < 0 ? -offset : std::max<int64_t>(0, offset - int64_t(buffer->bytes_));
    if (!nearest || distance < least) nearest = buffer, least = distance;
  }
  std::string message = std::string(what) + " of " + std::to_string(bytes) + " bytes";
  if (nearest) {
    message += " at byte " + std::to_string(int64_t(address - nearest->address_)) + " of " +
               nearest->name_ + ", which has " + std::to_string(nearest->bytes_);
  }
  return {Fault::kOutOfBounds, message};
}

std::optional<GlobalMemory::Problem> GlobalMemory::read(void* value, const void* source,
                                                        int bytes) {
  const auto address = reinterpret_cast<uintptr_t>(source);
  Buffer* buffer = find(address, bytes);
  if (!buffer) {
    std::memset(value, 0, size_t(bytes));
    return outside(address, bytes, "load");
  }
  const size_t offset = address - buffer->address_;
  std::memcpy(value, buffer->data_ + offset, size_t(bytes));
  if (offset % size_t(bytes) != 0) {
    return Problem{Fault::kMisaligned, "load of " + std::to_string(bytes) + " bytes at byte " +
                                           std::to_string(offset) + " of " + buffer->name_};
  }
  buffer->sectors_[offset / kSectorBytes] |= 1;
  if (buffer->use_ == Buffer::Use::kInput) return std::nullopt;
  for (size_t i = offset / kWriterGranule; i < (offset + size_t(bytes)) / kWriterGranule; ++i) {
    const uint32_t writer = buffer->writers_[i];
    if (writer != 0 && writer >> kThreadBits != launch_) continue;
    const std::string place = "byte " + std::to_string(i * kWriterGranule) + " of " + buffer->name_;
    if (writer == 0) return Problem{Fault::kUninitialised, place};
    return Problem{Fault::kReadBack, place + ", written in this launch by " + describe(writer)};
  }
  return std::nullopt;
}

std::optional<GlobalMemory::Problem> GlobalMemory::write(void* target, const void* value, int bytes,
                                                         int64_t thread) {
  const auto address = reinterpret_cast<uintptr_t>(target);
  Buffer* buffer = find(address, bytes);
  if (!buffer) return outside(address, bytes, "store");
  const size_t offset = address - buffer->address_;
  if (buffer->use_ == Buffer::Use::kInput) {
    return Problem{Fault::kReadOnlyBuffer,
                   "store at byte " + std::to_string(offset) + " of " + buffer->name_};
  }
  std::memcpy(buffer->data_ + offset, value, size_t(bytes));
  if (offset % size_t(bytes) != 0) {
    return Problem{Fault::kMisaligned, "store of " + std::to_string(bytes) + " bytes at byte " +
                                           std::to_string(offset) + " of " + buffer->name_};
  }
  buffer->sectors_[offset / kSectorBytes] |= 2;
  std::optional<Problem> problem;
  const uint32_t writer = launch_ << kThreadBits | (uint32_t(thread) & ((1u << kThreadBits) - 1));
  for (size_t i = offset / kWriterGranule; i < (offset + size_t(bytes)) / kWriterGranule; ++i) {
    const uint32_t before = buffer->writers_[i];
    if (before >> kThreadBits == launch_ && before != writer && !problem) {
      problem = Problem{Fault::kDoubleWrite, "byte " + std::to_string(i * kWriterGranule) + " of " +
                                                 buffer->name_ + ", written before by " +
                                                 describe(before)};
    }
    buffer->writers_[i] = writer;
  }
  return problem;
}

}  // namespace simt
