#include "simt/mutation.h"

namespace simt {
namespace {

using Kind = Mutation::Kind;

std::vector<Kind> kinds_of(Leaf leaf) {
  switch (leaf) {
    case Leaf::kLoadGlobal:
      return {Kind::kIgnorePredicate, Kind::kStalePointer};
    case Leaf::kStoreGlobal:
      return {Kind::kDrop, Kind::kIgnorePredicate, Kind::kStalePointer};
    case Leaf::kLoadShared:
      return {Kind::kStaleAddress};  // a superfluous load harms nobody
    case Leaf::kStoreShared:
      return {Kind::kDrop, Kind::kIgnorePredicate, Kind::kStaleAddress};
    case Leaf::kCopyAsync:
      return {Kind::kDrop, Kind::kIgnorePredicate, Kind::kDropZeroFill, Kind::kStaleAddress,
              Kind::kStalePointer};
    case Leaf::kWait:
      return {Kind::kDrop, Kind::kWeakenWait};
    case Leaf::kLdmatrix:
      return {Kind::kStaleAddress, Kind::kSwapLanes};
    case Leaf::kMma:
      return {Kind::kDrop, Kind::kSwapRegisters};
    case Leaf::kShuffle:
      return {Kind::kSwapLanes};
    case Leaf::kCommit:
    case Leaf::kSyncWarp:
    case Leaf::kSyncThreads:
      return {Kind::kDrop};
  }
  return {};
}

}  // namespace

const char* name(Kind kind) {
  constexpr const char* kNames[] = {
      "none",          "drop",          "weaken wait", "ignore predicate", "drop zero fill",
      "stale address", "stale pointer", "swap lanes",  "swap registers"};
  return kNames[int(kind)];
}

std::vector<Mutation> mutations_of(const Counts& counts) {
  std::vector<Mutation> mutations;
  for (const SiteCounts& site : counts.sites) {
    for (const Kind kind : kinds_of(site.leaf)) {
      mutations.push_back({kind, site.file, site.line, site.column});
    }
  }
  return mutations;
}

}  // namespace simt
