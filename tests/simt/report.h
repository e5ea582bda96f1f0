// What a launch reports: faults, and counts of what the memory system and the tensor cores did.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

enum class Fault {
  kRace,            // two threads, one byte of shared memory, one of them writes, nothing between
  kOutOfBounds,     // shared or global
  kMisaligned,      // an address that is no multiple of the access
  kUninitialised,   // a read of what nobody wrote
  kPendingCopy,     // shared memory touched before the wait of an asynchronous copy into it
  kDivergence,      // lanes of a warp, or threads of a block, at different collectives
  kDoubleWrite,     // a byte of global memory written by two threads of one launch
  kReadBack,        // a read of global memory that the same launch wrote
  kReadOnlyBuffer,  // a write to an input
};
const char* name(Fault fault);

// The first occurrence of a kind of fault at one place of the source, and how often it came.
struct FaultRecord {
  Fault fault;
  std::string where;  // file:line
  std::string message;
  int64_t count;
};

enum class Leaf {
  kLoadGlobal,
  kStoreGlobal,
  kLoadShared,
  kStoreShared,
  kCopyAsync,
  kCommit,
  kWait,
  kLdmatrix,
  kMma,
  kShuffle,
  kSyncWarp,
  kSyncThreads,
};
inline constexpr int kLeafKinds = 12;
const char* name(Leaf leaf);

// One call of a leaf in the kernel's source.
struct SiteCounts {
  Leaf leaf{};
  std::string file;
  int line = 0, column = 0;
  std::string where() const { return file + ":" + std::to_string(line); }

  int64_t warp_instructions = 0;
  int64_t bytes = 0;       // asked for by all active lanes
  int64_t wavefronts = 0;  // of shared memory: 128 bytes, each bank once
  int64_t conflicts = 0;   // wavefronts beyond what conflict-free addresses take
  int64_t sectors = 0;     // of global memory: 32 bytes, once for each warp instruction
  int64_t ragged = 0;      // instructions whose lanes could not be told apart for certain
  int64_t flops = 0;       // issued to tensor cores
};

// Different sectors of a buffer in the whole launch: what crosses DRAM if each crosses once.
struct BufferTraffic {
  std::string name;
  int64_t sectors_read = 0, sectors_written = 0;
};

struct Counts {
  int64_t blocks = 0, grid_blocks = 0;  // that were run, that there are
  int threads = 0, shared_bytes = 0;    // of a block
  std::vector<SiteCounts> sites;

  std::vector<BufferTraffic> buffers;
  // Bytes of a block's asynchronous copies under way when its threads come to a wait: the mean.
  double bytes_in_flight = 0;

  int64_t warp_instructions(Leaf leaf) const;
  int64_t warp_instructions() const;
  int64_t wavefronts() const;
  int64_t wavefronts(Leaf leaf) const;
  int64_t conflicts() const;
  int64_t sectors() const;
  int64_t flops() const;
};

struct Report {
  std::vector<FaultRecord> faults;
  Counts counts;
  int64_t effects = 0;  // how often a planted fault made a difference

  bool clean() const { return faults.empty(); }
  bool found(Fault fault) const;
  // One line for each fault.
  std::string text() const;
};

}  // namespace simt
