#include "simt/report.h"

#include <algorithm>
#include <numeric>

namespace simt {
namespace {

template <typename Value>
int64_t sum(const std::vector<SiteCounts>& sites, Value value) {
  return std::accumulate(
      sites.begin(), sites.end(), int64_t{0},
      [&](int64_t total, const SiteCounts& site) { return total + value(site); });
}

}  // namespace

const char* name(Fault fault) {
  constexpr const char* kNames[] = {"race",          "out of bounds", "misaligned",
                                    "uninitialised", "pending copy",  "divergence",
                                    "double write",  "read back",     "read-only buffer"};
  return kNames[int(fault)];
}

const char* name(Leaf leaf) {
  constexpr const char* kNames[kLeafKinds] = {
      "load global", "store global", "load shared", "store shared", "cp.async",  "commit",
      "wait",        "ldmatrix",     "mma",         "shuffle",      "sync warp", "sync threads"};
  return kNames[int(leaf)];
}

int64_t Counts::warp_instructions(Leaf leaf) const {
  return sum(sites, [&](const SiteCounts& s) { return s.leaf == leaf ? s.warp_instructions : 0; });
}
int64_t Counts::warp_instructions() const {
  return sum(sites, [](const SiteCounts& s) { return s.warp_instructions; });
}
int64_t Counts::wavefronts() const {
  return sum(sites, [](const SiteCounts& s) { return s.wavefronts; });
}
int64_t Counts::wavefronts(Leaf leaf) const {
  return sum(sites, [&](const SiteCounts& s) { return s.leaf == leaf ? s.wavefronts : 0; });
}
int64_t Counts::conflicts() const {
  return sum(sites, [](const SiteCounts& s) { return s.conflicts; });
}
int64_t Counts::sectors() const {
  return sum(sites, [](const SiteCounts& s) { return s.sectors; });
}
int64_t Counts::flops() const {
  return sum(sites, [](const SiteCounts& s) { return s.flops; });
}

bool Report::found(Fault fault) const {
  return std::any_of(faults.begin(), faults.end(),
                     [&](const FaultRecord& record) { return record.fault == fault; });
}

std::string Report::text() const {
  std::string lines;
  for (const FaultRecord& record : faults) {
    lines += record.where + ": " + name(record.fault) + ": " + record.message + " (" +
             std::to_string(record.count) + " times)\n";
  }
  return lines;
}

}  // namespace simt
