// For test programs: count what does not hold, and say where.
#pragma once

#include <cstdio>
#include <string>

namespace simt {

inline int failures = 0;

inline bool check(bool holds, const std::string& what) {
  if (!holds) {
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
  }
  return holds;
}

}  // namespace simt
