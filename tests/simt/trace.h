// Groups what the lanes of a warp do into warp instructions, and counts what these cost.
//
// Lanes run one after the other, so the accesses of one instruction come apart. Between two
// collectives of the warp, the n-th access of each lane at one place of the source belongs to one
// instruction. That is certain if all lanes come by equally often; if not, the instructions are
// counted as `ragged`.
#pragma once

#include <cstdint>
#include <vector>

#include "simt/lane.h"
#include "simt/report.h"

namespace simt {

// The places of the kernel's source where leaves are called, numbered as they are met.
class Sites {
 public:
  void clear();
  int index(const Site& site, Leaf leaf);
  std::vector<SiteCounts>& counts() { return counts_; }

 private:
  struct Entry {
    const char* file = nullptr;
    uint32_t line = 0, column = 0;
    int index = 0;
  };
  std::vector<Entry> table_;
  std::vector<SiteCounts> counts_;
};

class WarpTrace {
 public:
  explicit WarpTrace(Sites& sites) : sites_(&sites) {}

  // One lane's access; `active` false: the lane comes by and does nothing.
  void global_access(int site, int lane, uintptr_t address, int bytes, bool active);
  void shared_access(int site, int lane, uint32_t address, int bytes, bool active);
  void no_access(int site, int lane) { next(site, lane, false).bytes = 0; }
  // Closes the instructions: every lane has arrived at a collective.
  void flush();

 private:
  struct Instruction {
    uint64_t shared[32], global[32];
    uint32_t shared_lanes = 0, global_lanes = 0, passed = 0;
    int bytes = 0;
  };
  struct PerSite {
    std::vector<Instruction> instructions;
    size_t used = 0;
    uint32_t count[32] = {};
  };
  Instruction& next(int site, int lane, bool second_half);
  void close(int site, PerSite& per_site);

  Sites* sites_;
  std::vector<PerSite> per_site_;
  std::vector<int> touched_;
};

// Passes of shared memory for the lanes' accesses, and how many of them are due to conflicts.
// 32 banks of 4 bytes; 8-byte accesses go by half warps, 16-byte accesses by quarters.
struct Wavefronts {
  int passes = 0, conflicts = 0;
};
Wavefronts wavefronts(const uint64_t* addresses, uint32_t lanes, int bytes);

}  // namespace simt
