// Preferences of configurations: set, asked for and forgotten by many threads at once; and what
// plan_fast makes of a name.
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cuda/heuristics.h"
#include "cuda/preferences.h"

using namespace grouped_conv;
using cuda::Preferences;

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

ConvProblem problem(int64_t batch, int64_t c_per_group, int64_t stride = 1) {
  const int64_t c = 32 * c_per_group;
  return ConvProblem::make(batch, c, 14, 14, c, 3, 3, 32, 1, 1, stride, stride, 1, 1);
}

void test_keys() {
  Preferences preferences;
  const ConvProblem p = problem(8, 16);
  expect(preferences.get(0, Pass::kFprop, p).empty(), "nothing is preferred at first");
  preferences.set(0, Pass::kFprop, p, "a");
  expect(preferences.get(0, Pass::kFprop, p) == "a", "what was set is found");
  expect(preferences.get(1, Pass::kFprop, p).empty(), "not for another device");
  expect(preferences.get(0, Pass::kDgrad, p).empty(), "not for another pass");
  expect(preferences.get(0, Pass::kFprop, problem(9, 16)).empty(), "not for another batch");
  expect(preferences.get(0, Pass::kFprop, problem(8, 16, 2)).empty(), "not for another stride");
  preferences.set(0, Pass::kFprop, p, "b");
  expect(preferences.get(0, Pass::kFprop, p) == "b", "the last one counts");
  preferences.set(0, Pass::kFprop, p, "");
  expect(preferences.get(0, Pass::kFprop, p).empty(), "an empty name forgets");
}

void test_threads() {
  Preferences preferences;
  constexpr int kThreads = 4, kProblems = 500;
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kProblems; ++i) {
        const ConvProblem mine = problem(1 + i, 16 << (t % 2));
        preferences.set(t, Pass::kFprop, mine, std::to_string(i));
        wrong[t] += preferences.get(t, Pass::kFprop, mine) != std::to_string(i);
        wrong[t] += preferences.get((t + 1) % kThreads, Pass::kDgrad, mine) != "";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < kThreads; ++t) expect(wrong[t] == 0, "threads see what they have set");
}

void test_plans() {
  const auto name = [](Pass pass, const ConvProblem& p, const std::string& wanted,
                       cuda::Tail tail = cuda::Tail::kNone) {
    return std::string(
        cuda::plan_fast(pass, p, {132}, cuda::Layout::kChannelsLast, tail, wanted).name);
  };
  const ConvProblem p = problem(64, 16);
  for (const Pass pass : {Pass::kFprop, Pass::kDgrad}) {
    for (const char* wanted : {"conv_c16_s1", "conv_c16_s1_narrow"}) {
      expect(name(pass, p, wanted) == wanted, "a preference is obeyed");
    }
    const std::string chosen = name(pass, p, "");
    for (const char* wanted : {"conv_c32_s1", "fprop_c16_s2", "conv_c16_s1_nchw", "nonsense"}) {
      expect(name(pass, p, wanted) == chosen, "but not where it does not compute the problem");
    }
  }
  expect(name(Pass::kFprop, p, "conv_c16_s1", cuda::Tail::kStatistics) == "conv_c16_s1_narrow",
         "nor where it is not compiled with the tail");
  expect(name(Pass::kWgrad, p, "conv_c16_s1") == name(Pass::kWgrad, p, ""),
         "nor by the weight gradient");
}

}  // namespace

int main() {
  test_keys();
  test_threads();
  test_plans();
  if (failures == 0) std::printf("preferences: all passed\n");
  return failures == 0 ? 0 : 1;
}
