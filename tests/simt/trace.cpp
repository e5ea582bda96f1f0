#include "simt/trace.h"

#include <algorithm>
#include <bit>

#include "simt/global_memory.h"

namespace simt {
namespace {

constexpr int kLanes = 32;
constexpr size_t kTableSize = 4096;  // a power of two, far above the leaf calls of a kernel

// An aligned access lies in one sector.
int sectors(const uint64_t* addresses, uint32_t lanes) {
  uint64_t touched[kLanes];
  int count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes >> lane & 1) touched[count++] = addresses[lane] / kSectorBytes;
  }
  std::sort(touched, touched + count);
  return int(std::unique(touched, touched + count) - touched);
}

}  // namespace

void Sites::clear() {
  table_.assign(kTableSize, {});
  counts_.clear();
}

int Sites::index(const Site& site, Leaf leaf) {
  const char* file = site.file_name();
  size_t slot =
      (reinterpret_cast<uintptr_t>(file) >> 3) + site.line() * 31u + site.column() * 7919u;
  for (;; ++slot) {
    Entry& entry = table_[slot % kTableSize];
    if (entry.file == file && entry.line == site.line() && entry.column == site.column()) {
      return entry.index;
    }
    if (entry.file) continue;
    entry = {file, site.line(), site.column(), int(counts_.size())};
    SiteCounts counts;
    counts.leaf = leaf;
    counts.file = file;
    counts.file.erase(0, counts.file.find_last_of('/') + 1);
    counts.line = int(site.line());
    counts.column = int(site.column());
    counts_.push_back(counts);
    return entry.index;
  }
}

WarpTrace::Instruction& WarpTrace::next(int site, int lane, bool second_half) {
  if (size_t(site) >= per_site_.size()) per_site_.resize(size_t(site) + 1);
  PerSite& per_site = per_site_[size_t(site)];
  if (per_site.used == 0) touched_.push_back(site);
  const size_t turn = second_half ? per_site.count[lane] - 1 : per_site.count[lane]++;
  if (turn >= per_site.used) {
    per_site.used = turn + 1;
    if (per_site.used > per_site.instructions.size()) {
      per_site.instructions.resize(2 * per_site.used);
    }
    Instruction& fresh = per_site.instructions[turn];
    fresh.shared_lanes = fresh.global_lanes = fresh.passed = 0;
  }
  Instruction& instruction = per_site.instructions[turn];
  instruction.passed |= 1u << lane;
  return instruction;
}

void WarpTrace::global_access(int site, int lane, uintptr_t address, int bytes, bool active) {
  Instruction& instruction = next(site, lane, false);
  instruction.bytes = bytes;
  instruction.global[lane] = address;
  instruction.global_lanes |= uint32_t(active) << lane;
}

void WarpTrace::shared_access(int site, int lane, uint32_t address, int bytes, bool active) {
  const bool copies = sites_->counts()[size_t(site)].leaf == Leaf::kCopyAsync;
  Instruction& instruction = next(site, lane, copies);
  instruction.bytes = bytes;
  instruction.shared[lane] = address;
  instruction.shared_lanes |= uint32_t(active) << lane;
}

void WarpTrace::close(int site, PerSite& per_site) {
  SiteCounts& counts = sites_->counts()[size_t(site)];
  const uint32_t most = *std::max_element(per_site.count, per_site.count + kLanes);
  const bool ragged = *std::min_element(per_site.count, per_site.count + kLanes) != most;
  for (size_t i = 0; i < per_site.used; ++i) {
    const Instruction& instruction = per_site.instructions[i];
    const uint32_t active = instruction.shared_lanes | instruction.global_lanes;
    ++counts.warp_instructions;
    // A difference in number does not matter if only one instruction is in question.
    counts.ragged += ragged && most > 1;
    counts.bytes += int64_t(std::popcount(active)) * instruction.bytes;
    counts.sectors += sectors(instruction.global, instruction.global_lanes);
    const Wavefronts passes =
        wavefronts(instruction.shared, instruction.shared_lanes, instruction.bytes);
    counts.wavefronts += passes.passes;
    counts.conflicts += passes.conflicts;
  }
  per_site.used = 0;
  std::fill(per_site.count, per_site.count + kLanes, 0u);
}

void WarpTrace::flush() {
  for (const int site : touched_) close(site, per_site_[size_t(site)]);
  touched_.clear();
}

Wavefronts wavefronts(const uint64_t* addresses, uint32_t lanes, int bytes) {
  constexpr uint64_t kBanks = 32;
  const int together = bytes <= 4 ? kLanes : bytes == 8 ? kLanes / 2 : kLanes / 4;
  const int words = std::max(1, bytes / 4);
  Wavefronts total;
  for (int first = 0; first < kLanes; first += together) {
    // At most 32 words; one bank serves one of its words in a pass, to any number of lanes.
    uint64_t wanted[kLanes];
    int count = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int word = 0; word < words; ++word) {
        wanted[count++] = addresses[lane] / 4 + uint64_t(word);
      }
    }
    if (count == 0) continue;
    std::sort(wanted, wanted + count);
    count = int(std::unique(wanted, wanted + count) - wanted);
    int in_bank[kBanks] = {};
    int passes = 0;
    for (int i = 0; i < count; ++i) passes = std::max(passes, ++in_bank[wanted[i] % kBanks]);
    total.passes += passes;
    total.conflicts += passes - 1;
  }
  return total;
}

}  // namespace simt
