// Faults to plant into a kernel while it runs, at one call of a leaf in its source. A test that
// passes with a fault planted would not have noticed the fault.
#pragma once

#include <string>
#include <vector>

#include "simt/report.h"

namespace simt {

struct Mutation {
  enum class Kind {
    kNone,
    kDrop,             // the barrier, wait, commit, copy, store or mma does not happen
    kWeakenWait,       // one more group may stay under way
    kIgnorePredicate,  // what was inactive is done, what was invalid is fetched
    kDropZeroFill,     // an invalid copy leaves what was there instead of zeros
    kStaleAddress,     // the address of shared memory of the thread's previous call (no advance)
    kStalePointer,     // the same with the address of global memory
    kSwapLanes,        // lanes 0 and 1 give each other's address or take each other's value
    kSwapRegisters,    // the first two registers of operand A change places
  };

  Kind kind = Kind::kNone;
  std::string file;
  int line = 0, column = 0;
};
const char* name(Mutation::Kind kind);

// Every fault that can be planted into a kernel, from the counts of a run of it. Some may make no
// difference, such as to ignore a predicate that is always true: Report::effects tells.
std::vector<Mutation> mutations_of(const Counts& counts);

}  // namespace simt
