// Configurations that were measured to be faster than those that the heuristics expect to be.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "problem.h"

namespace grouped_conv::cuda {

// Names of configurations by device, pass and problem. Any thread may set and ask.
class Preferences {
 public:
  // An empty name forgets.
  void set(int device, Pass pass, const ConvProblem& p, const std::string& name) {
    const std::unique_lock lock(mutex_);
    if (name.empty()) {
      names_.erase(key(device, pass, p));
    } else {
      names_[key(device, pass, p)] = name;
    }
  }

  // Empty where there is none.
  std::string get(int device, Pass pass, const ConvProblem& p) const {
    const std::shared_lock lock(mutex_);
    const auto found = names_.find(key(device, pass, p));
    return found == names_.end() ? std::string() : found->second;
  }

 private:
  using Key = std::array<int64_t, 16>;

  static Key key(int device, Pass pass, const ConvProblem& p) {
    return {device,     int64_t(pass), p.N,          p.C,         p.H,     p.W,
            p.K,        p.R,           p.S,          p.G,         p.pad_h, p.pad_w,
            p.stride_h, p.stride_w,    p.dilation_h, p.dilation_w};
  }

  mutable std::shared_mutex mutex_;
  std::map<Key, std::string> names_;
};

}  // namespace grouped_conv::cuda
