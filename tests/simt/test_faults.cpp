// For each fault that the emulator knows, two kernels that differ in it alone: of the right one it
// must say nothing, and of the wrong one just that fault, on every schedule.
#include <functional>
#include <vector>

#include "cuda/device/device.h"
#include "simt/check.h"
#include "simt/simt.h"

namespace {

using namespace grouped_conv::cuda::device;
using simt::Buffer;
using simt::Fault;

constexpr int kThreads = 64;
constexpr int kShared = 4096;
constexpr int kBlocks = 2;

struct Args {
  const uint32_t* x;
  uint32_t* y;
  bool wrong;
};

// Each thread of the block on its own word of x and y.
int own(int thread) { return block_index_x() * kThreads + thread; }

// Hands x to the thread at the other end of the block.
void reverse(const Args& args, const std::function<void()>& between) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  store_shared_4(base + uint32_t(4 * t), load_global_4(args.x + own(t)));
  between();
  store_global_4(args.y + own(t), load_shared_4(base + uint32_t(4 * (kThreads - 1 - t))));
}

void no_barrier(const Args& args) {
  reverse(args, [&] {
    if (!args.wrong) sync_threads();
  });
}

// What is read is overwritten in the next turn.
void no_barrier_before_reuse(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  uint32_t sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    store_shared_4(base + uint32_t(4 * t), load_global_4(args.x + own(t)) + uint32_t(turn));
    sync_threads();
    sum += load_shared_4(base + uint32_t(4 * (kThreads - 1 - t)));
    if (!args.wrong) sync_threads();
  }
  store_global_4(args.y + own(t), sum);
}

// The same between the lanes of a warp.
void no_sync_warp(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const int t = thread_index();
  const uint32_t base = shared_address(memory) + uint32_t(warp_index() * 128);
  uint32_t sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    store_shared_4(base + uint32_t(4 * lane_index()), load_global_4(args.x + own(t)));
    sync_warp();
    sum += load_shared_4(base + uint32_t(4 * (lane_index() ^ 1)));
    if (!args.wrong) sync_warp();
  }
  store_global_4(args.y + own(t), sum);
}

// A lane's own row, which ldmatrix gives to other lanes: shuffles and ldmatrix order nothing.
void no_sync_before_ldmatrix(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const int t = thread_index();
  const uint32_t row = shared_address(memory) + uint32_t(16 * t);
  const uint32_t v = load_global_4(args.x + own(t));
  store_shared_16(row, Bytes16{{v, v, v, v}});
  if (!args.wrong) sync_warp();
  uint32_t r[4];
  ldmatrix_x4(r, row);
  store_global_4(args.y + own(t), r[0] + r[1] + r[2] + r[3]);
}

void two_writers(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  store_shared_2(base + uint32_t(2 * (args.wrong ? t / 2 : t)), uint16_t(t));
  sync_threads();
  store_global_4(args.y + own(t), load_shared_4(base + uint32_t(4 * (t % 16))));
}

// An asynchronous copy lands while other threads may still read what was there.
void copy_over_readers(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  store_shared_16(base + uint32_t(16 * t), Bytes16{});
  sync_threads();
  const uint32_t v = load_shared_4(base + uint32_t(16 * (t ^ 1)));
  if (!args.wrong) sync_threads();
  cp_async_16(base + uint32_t(16 * t), args.x, true);
  cp_async_commit();
  cp_async_wait<0>();
  store_global_4(args.y + own(t), v);
}

void copied(const Args& args, bool committed, int waits_left, bool barrier) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  for (int stage = 0; stage < 2; ++stage) {
    const uint32_t row = base + uint32_t(stage * 1024 + 16 * t);
    cp_async_16(row, args.x + (stage * 4), t != 0);
    if (committed || stage == 0) cp_async_commit();
  }
  if (waits_left == 0) cp_async_wait<0>();
  if (waits_left == 1) cp_async_wait<1>();
  if (barrier) sync_threads();
  const uint32_t from = base + uint32_t(1024 + 16 * (barrier ? kThreads - 1 - t : t));
  store_global_4(args.y + own(t), load_shared_4(from));
}
void no_wait(const Args& args) { copied(args, true, args.wrong ? 2 : 0, true); }
void wait_one_too_few(const Args& args) { copied(args, true, args.wrong ? 1 : 0, true); }
void no_commit(const Args& args) { copied(args, !args.wrong, 0, true); }
void wait_without_barrier(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  cp_async_16(base + uint32_t(16 * t), args.x, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!args.wrong) sync_threads();
  store_global_4(args.y + own(t), load_shared_4(base + uint32_t(16 * (kThreads - 1 - t))));
}

void uninitialised_shared(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  store_shared_4(base + uint32_t(4 * t), 0, !(args.wrong && t == 37));
  sync_threads();
  store_global_4(args.y + own(t), load_shared_4(base + uint32_t(4 * (t ^ 1))));
}

void uninitialised_global(const Args& args) {
  const int t = thread_index();
  const uint32_t v = args.wrong && t == 5 ? load_global_4(args.y + kBlocks * kThreads + t) : 0;
  store_global_4(args.y + own(t), v);
}

void outside_shared(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t base = shared_address(memory);
  const int t = thread_index();
  const uint32_t last = kShared - 4 * kThreads + (args.wrong ? 2 : 0) * 2;
  store_shared_4(base + last + uint32_t(4 * t), 1);
  store_global_4(args.y + own(t), 0);
}

void outside_input(const Args& args) {
  const int t = thread_index();
  store_global_4(args.y + own(t), load_global_4(args.x + (args.wrong ? t - 1 : t)));
}

void outside_input_by_copy(const Args& args) {
  GC_DYNAMIC_SHARED(memory);
  const uint32_t row = shared_address(memory) + uint32_t(16 * thread_index());
  const int first = block_index_x() * kThreads + 4 * thread_index();
  cp_async_16(row, args.x + first, args.wrong || first + 4 <= kBlocks * kThreads);
  cp_async_commit();
  cp_async_wait<0>();
  store_global_4(args.y + own(thread_index()), load_shared_4(row));
}

void outside_output(const Args& args) {
  const int t = thread_index();
  // The last block's last thread stores once more.
  store_global_4(args.y + own(t), 0);
  store_global_4(args.y + own(t) + 2 * kBlocks * kThreads, 0,
                 args.wrong && own(t) == kBlocks * kThreads - 1);
}

void misaligned(const Args& args) {
  const int t = thread_index();
  const Bytes16 v = load_global_16(args.x + (args.wrong ? 1 : 0));
  store_global_4(args.y + own(t), v.word[0]);
}

void divergent_mma(const Args& args) {
  float d[4] = {};
  const uint32_t a[2] = {}, b[1] = {};
  if (!(args.wrong && lane_index() == 7)) mma_m16n8k8<grouped_conv::cuda::Float16>(d, a, b);
  store_global_4(args.y + own(thread_index()), bits_of(d[0]));
}

void divergent_barrier(const Args& args) {
  const int t = thread_index();
  store_global_4(args.y + own(t), 0);
  if (args.wrong && t % 2) {
    sync_threads();
  } else {
    sync_threads();
  }
}

void written_twice(const Args& args) {
  const int t = thread_index();
  store_global_4(args.y + own(t), 0);
  store_global_4(args.y, 1, args.wrong && own(t) == kBlocks * kThreads - 1);
}

void read_back(const Args& args) {
  const int t = thread_index();
  store_global_4(args.y + own(t), 0);
  load_global_4(args.y, args.wrong && own(t) == 0);
}

void input_written(const Args& args) {
  const int t = thread_index();
  store_global_4(args.wrong ? const_cast<uint32_t*>(args.x) + own(t) : args.y + own(t), 0);
}

struct Case {
  const char* name;
  void (*kernel)(const Args&);
  std::vector<Fault> expected;  // any of them, and nothing else
};

const Case kCases[] = {
    {"missing barrier", no_barrier, {Fault::kRace, Fault::kUninitialised}},
    {"missing barrier before reuse", no_barrier_before_reuse, {Fault::kRace}},
    {"missing sync_warp", no_sync_warp, {Fault::kRace}},
    {"missing sync_warp before ldmatrix",
     no_sync_before_ldmatrix,
     {Fault::kRace, Fault::kUninitialised}},
    {"two writers of one place", two_writers, {Fault::kRace, Fault::kUninitialised}},
    {"copy over what is read", copy_over_readers, {Fault::kRace}},
    {"missing wait", no_wait, {Fault::kPendingCopy}},
    {"wait one too few", wait_one_too_few, {Fault::kPendingCopy}},
    {"missing commit", no_commit, {Fault::kPendingCopy}},
    {"missing barrier after wait",
     wait_without_barrier,
     {Fault::kRace, Fault::kPendingCopy, Fault::kUninitialised}},
    {"uninitialised shared memory", uninitialised_shared, {Fault::kUninitialised}},
    {"uninitialised global memory", uninitialised_global, {Fault::kUninitialised}},
    {"outside of shared memory", outside_shared, {Fault::kOutOfBounds}},
    {"outside of an input", outside_input, {Fault::kOutOfBounds}},
    {"copy from outside of an input", outside_input_by_copy, {Fault::kOutOfBounds}},
    {"outside of an output", outside_output, {Fault::kOutOfBounds}},
    {"misaligned load", misaligned, {Fault::kMisaligned}},
    {"divergent mma", divergent_mma, {Fault::kDivergence}},
    {"divergent barrier", divergent_barrier, {Fault::kDivergence}},
    {"output written twice", written_twice, {Fault::kDoubleWrite}},
    {"output read back", read_back, {Fault::kReadBack}},
    {"input written", input_written, {Fault::kReadOnlyBuffer}},
};

simt::Report run(const Case& c, bool wrong, uint64_t schedule) {
  Buffer x("x", kBlocks * kThreads * 4, Buffer::Use::kInput);
  Buffer y("y", 2 * kBlocks * kThreads * 4, Buffer::Use::kOutput);
  for (int i = 0; i < kBlocks * kThreads; ++i) x.host<uint32_t>()[i] = uint32_t(i);
  const Args args{x.device<uint32_t>(), y.device<uint32_t>(), wrong};
  return simt::launch({{kBlocks}, kThreads, kShared}, {.schedule = schedule},
                      [&] { c.kernel(args); });
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    for (const uint64_t schedule : {0, 1, 2, 3, 4}) {
      const std::string name = std::string(c.name) + ", schedule " + std::to_string(schedule);
      const simt::Report right = run(c, false, schedule);
      simt::check(right.clean(), name + ": the right kernel is reported:\n" + right.text());
      const simt::Report wrong = run(c, true, schedule);
      simt::check(wrong.found(c.expected[0]), name + " is not found:\n" + wrong.text());
      for (const simt::FaultRecord& record : wrong.faults) {
        bool expected = false;
        for (const Fault fault : c.expected) expected |= fault == record.fault;
        simt::check(expected, name + ": unexpected " + wrong.text());
      }
    }
  }
  std::printf("%zu faults, %d failures\n", std::size(kCases), simt::failures);
  return simt::failures != 0;
}
