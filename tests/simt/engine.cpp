// Runs the threads of a block as fibers. A thread runs until it meets a collective; when all lanes
// of a warp have met one, it is executed, and they go on. Blocks run one after the other.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "simt/fiber.h"
#include "simt/global_memory.h"
#include "simt/shared_memory.h"
#include "simt/simt.h"
#include "simt/trace.h"
#include "simt/warp_ops.h"

namespace simt {
namespace {

using Planted = Mutation::Kind;

// What a thread asks of its warp or block, on its own stack while it waits.
struct Request {
  Leaf leaf;
  int site;
  // ldmatrix: registers and the row's address. mma: operands. shuffle, votes: value and operand.
  uint32_t* registers = nullptr;
  const uint32_t *a = nullptr, *b = nullptr;
  float* d = nullptr;
  uint32_t value = 0;
  int operand = 0;    // ldmatrix: the number of matrices
  bool flag = false;  // ldmatrix: transposed; votes: in and out
  Shuffle shuffle{};
  MmaShape shape{};
  bool vote = false;
};

struct Copy {
  uint32_t target;
  const void* source;
  bool valid;
  int site;
};

enum class State : uint8_t { kReady, kAtWarp, kAtBlock, kDone };

struct Thread {
  State state = State::kReady;
  Request* request = nullptr;
  std::vector<Copy> copies;    // under way, oldest first
  std::vector<size_t> groups;  // how many of them each closed group holds
  size_t open = 0;             // and how many the open one
  int64_t in_flight = 0;       // bytes
};

struct Warp {
  explicit Warp(Sites& sites) : trace(sites) {}
  uint32_t syncs = 0;
  WarpTrace trace;
};

class Engine {
 public:
  static Engine& instance() {
    static Engine engine;
    return engine;
  }

  Report run(const Shape& shape, const Options& options, const std::function<void()>& kernel);

  // For the running thread.
  int thread() const { return thread_; }
  Dim3 block() const { return block_; }
  Dim3 grid() const { return shape_.grid; }
  int site(const Site& site, Leaf leaf);
  bool planted(Planted kind, int site) const {
    return site == mutated_site_ && options_.mutation.kind == kind;
  }
  // As planted(), where it makes a difference if `matters`.
  bool takes_effect(Planted kind, int site, bool matters = true) {
    const bool effect = matters && planted(kind, site);
    effects_ += effect;
    return effect;
  }
  void meet(Request& request, State state);
  void load_global(void* value, const void* source, int bytes, bool active, int site);
  void store_global(void* target, const void* value, int bytes, bool active, int site);
  void load_shared(void* value, uint32_t source, int bytes, bool active, int site);
  void store_shared(uint32_t target, const void* value, int bytes, bool active, int site);
  void copy(uint32_t target, const void* source, bool valid, bool active, int site);
  void commit(int site);
  void wait(int groups_left, int site);
  // The address for this call under a planted fault, which makes no difference unless `active`.
  template <typename Address>
  Address stale(Planted kind, int site, Address address, bool active);

 private:
  void run_block();
  void run_warp(int warp);
  // Whether the warp can go on; executes its collective if all lanes have met it.
  bool settle(int warp);
  bool release_barrier();
  void execute(int warp);
  void execute_ldmatrix(int warp);
  void execute_shuffle(int warp);
  void diverged(int warp, const std::string& how);
  void land(Thread& thread, size_t copies);
  int first_thread(int warp) const { return warp * kLanes; }
  Request& request(int warp, int lane) {
    return *threads_[size_t(first_thread(warp) + lane)].request;
  }

  void fault(Fault kind, int site, const std::string& message);
  template <typename Problem>
  void note(const std::optional<Problem>& problem, int site);
  SharedShadow::Actor actor(int thread, int site) const {
    return {thread, warps_[size_t(thread / kLanes)].syncs, site};
  }

  Fibers fibers_;
  GlobalMemory& global_ = GlobalMemory::instance();
  SharedShadow shared_;
  Sites sites_;

  Shape shape_{};
  Options options_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<FaultRecord> faults_;
  std::map<std::pair<Fault, int>, size_t> fault_index_;
  std::mt19937_64 random_;
  int mutated_site_ = -1;
  int64_t effects_ = 0;                   // of the planted fault
  std::map<int, uint64_t> last_address_;  // of each thread at the mutated site

  Dim3 block_;
  int64_t block_number_ = 0;
  int thread_ = 0;
  bool abandoned_ = false;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;

  int64_t in_flight_at_waits_ = 0, waits_ = 0;
};

int Engine::site(const Site& site, Leaf leaf) {
  const size_t known = sites_.counts().size();
  const int index = sites_.index(site, leaf);
  if (sites_.counts().size() > known && options_.mutation.kind != Planted::kNone) {
    const SiteCounts& counts = sites_.counts().back();
    const Mutation& mutation = options_.mutation;
    if (counts.file == mutation.file && counts.line == mutation.line &&
        counts.column == mutation.column) {
      mutated_site_ = index;
    }
  }
  return index;
}

void Engine::fault(Fault kind, int site, const std::string& message) {
  const auto [entry, fresh] = fault_index_.try_emplace({kind, site}, faults_.size());
  if (!fresh) {
    ++faults_[entry->second].count;
    return;
  }
  const std::string place = "block " + std::to_string(block_.x) + "," + std::to_string(block_.y) +
                            "," + std::to_string(block_.z) + ": ";
  faults_.push_back({kind, sites_.counts()[size_t(site)].where(), place + message, 1});
}

template <typename Problem>
void Engine::note(const std::optional<Problem>& problem, int site) {
  if (!problem) return;
  std::string message = problem->message;
  if constexpr (requires { problem->other_site; }) {
    if (problem->other_site >= 0) {
      message += ", at " + sites_.counts()[size_t(problem->other_site)].where();
    }
  } else {
    message = "thread " + std::to_string(thread_) + ": " + message;
  }
  fault(problem->fault, site, message);
}

template <typename Address>
Address Engine::stale(Planted kind, int site, Address address, bool active) {
  if (!planted(kind, site)) return address;
  uint64_t now = 0;
  std::memcpy(&now, &address, sizeof address);
  const auto [entry, first] = last_address_.try_emplace(thread_, now);
  const uint64_t before = std::exchange(entry->second, now);
  if (first || before == now || !active) return address;
  ++effects_;
  std::memcpy(&address, &before, sizeof address);
  return address;
}

// Memory ------------------------------------------------------------------------------------------

void Engine::load_global(void* value, const void* source, int bytes, bool active, int site) {
  active |= takes_effect(Planted::kIgnorePredicate, site, !active);
  source = stale(Planted::kStalePointer, site, source, active);
  if (options_.count) {
    warps_[size_t(thread_ / kLanes)].trace.global_access(
        site, thread_ % kLanes, reinterpret_cast<uintptr_t>(source), bytes, active);
  }
  if (active) {
    note(global_.read(value, source, bytes), site);
  } else {
    std::memset(value, 0, size_t(bytes));
  }
}

void Engine::store_global(void* target, const void* value, int bytes, bool active, int site) {
  active |= takes_effect(Planted::kIgnorePredicate, site, !active);
  active &= !takes_effect(Planted::kDrop, site, active);
  target = stale(Planted::kStalePointer, site, target, active);
  if (options_.count) {
    warps_[size_t(thread_ / kLanes)].trace.global_access(
        site, thread_ % kLanes, reinterpret_cast<uintptr_t>(target), bytes, active);
  }
  if (active) {
    note(global_.write(target, value, bytes, block_number_ * shape_.threads + thread_), site);
  }
}

void Engine::load_shared(void* value, uint32_t source, int bytes, bool active, int site) {
  active |= takes_effect(Planted::kIgnorePredicate, site, !active);
  source = stale(Planted::kStaleAddress, site, source, active);
  if (options_.count) {
    warps_[size_t(thread_ / kLanes)].trace.shared_access(site, thread_ % kLanes, source, bytes,
                                                         active);
  }
  if (active) {
    note(shared_.read(value, source, bytes, actor(thread_, site)), site);
  } else {
    std::memset(value, 0, size_t(bytes));
  }
}

void Engine::store_shared(uint32_t target, const void* value, int bytes, bool active, int site) {
  active |= takes_effect(Planted::kIgnorePredicate, site, !active);
  active &= !takes_effect(Planted::kDrop, site, active);
  target = stale(Planted::kStaleAddress, site, target, active);
  if (options_.count) {
    warps_[size_t(thread_ / kLanes)].trace.shared_access(site, thread_ % kLanes, target, bytes,
                                                         active);
  }
  if (active) note(shared_.write(target, value, bytes, actor(thread_, site)), site);
}

void Engine::copy(uint32_t target, const void* source, bool valid, bool active, int site) {
  constexpr int kBytes = 16;
  valid |= takes_effect(Planted::kIgnorePredicate, site, active && !valid);
  active &= !takes_effect(Planted::kDropZeroFill, site, active && !valid);
  active &= !takes_effect(Planted::kDrop, site, active);
  target = stale(Planted::kStaleAddress, site, target, active);
  source = stale(Planted::kStalePointer, site, source, active && valid);
  if (options_.count) {
    WarpTrace& trace = warps_[size_t(thread_ / kLanes)].trace;
    trace.global_access(site, thread_ % kLanes, reinterpret_cast<uintptr_t>(source), kBytes,
                        active && valid);
    trace.shared_access(site, thread_ % kLanes, target, kBytes, active);
  }
  if (!active) return;
  note(shared_.begin_copy(target, actor(thread_, site)), site);
  Thread& thread = threads_[size_t(thread_)];
  thread.copies.push_back({target, source, valid, site});
  ++thread.open;
  if (valid) thread.in_flight += kBytes;
}

void Engine::commit(int site) {
  if (options_.count) warps_[size_t(thread_ / kLanes)].trace.no_access(site, thread_ % kLanes);
  if (takes_effect(Planted::kDrop, site)) return;
  Thread& thread = threads_[size_t(thread_)];
  thread.groups.push_back(std::exchange(thread.open, 0));
}

void Engine::land(Thread& thread, size_t copies) {
  constexpr int kBytes = 16;
  for (size_t i = 0; i < copies; ++i) {
    const Copy& copy = thread.copies[i];
    uint8_t value[kBytes] = {};
    if (copy.valid) {
      note(global_.read(value, copy.source, kBytes), copy.site);
      thread.in_flight -= kBytes;
    }
    shared_.end_copy(copy.target, value, actor(thread_, copy.site));
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + std::ptrdiff_t(copies));
}

void Engine::wait(int groups_left, int site) {
  if (options_.count) warps_[size_t(thread_ / kLanes)].trace.no_access(site, thread_ % kLanes);
  if (takes_effect(Planted::kDrop, site)) return;
  groups_left += takes_effect(Planted::kWeakenWait, site);
  Thread& thread = threads_[size_t(thread_)];
  in_flight_at_waits_ += thread.in_flight;
  ++waits_;
  size_t copies = 0;
  const size_t done = thread.groups.size() - std::min(thread.groups.size(), size_t(groups_left));
  for (size_t i = 0; i < done; ++i) copies += thread.groups[i];
  thread.groups.erase(thread.groups.begin(), thread.groups.begin() + std::ptrdiff_t(done));
  land(thread, copies);
}

// Collectives
// ---------------------------------------------------------------------------------------

void Engine::meet(Request& request, State state) {
  Thread& thread = threads_[size_t(thread_)];
  thread.request = &request;
  thread.state = state;
  fibers_.leave();
}

void Engine::execute_ldmatrix(int warp) {
  const Request& any = request(warp, 0);
  SiteCounts& counts = sites_.counts()[size_t(any.site)];
  for (int matrix = 0; matrix < any.operand; ++matrix) {
    uint16_t rows[8][8];
    uint64_t addresses[kLanes] = {};
    uint32_t lanes = 0;
    for (int i = 0; i < 8; ++i) {
      const int lane = matrix * 8 + i;
      lanes |= 1u << i;
      addresses[i] = request(warp, lane).value;
      // Who reads is who receives.
      int receivers[8];
      for (int j = 0; j < 8; ++j) {
        receivers[j] = first_thread(warp) + (any.flag ? j * 4 + i / 2 : i * 4 + j / 2);
      }
      note(shared_.read_row(rows[i], request(warp, lane).value, receivers,
                            actor(first_thread(warp), any.site)),
           any.site);
    }
    const Wavefronts passes = wavefronts(addresses, lanes, 16);
    counts.wavefronts += passes.passes;
    counts.conflicts += passes.conflicts;
    counts.bytes += 128;
    if (!options_.arithmetic) continue;
    uint32_t registers[kLanes];
    distribute(rows, any.flag, registers);
    for (int lane = 0; lane < kLanes; ++lane) {
      request(warp, lane).registers[matrix] = registers[lane];
    }
  }
}

void Engine::execute_shuffle(int warp) {
  const Request& any = request(warp, 0);
  if (any.vote) {
    bool voted = false;
    for (int lane = 0; lane < kLanes; ++lane) voted |= request(warp, lane).flag;
    for (int lane = 0; lane < kLanes; ++lane) request(warp, lane).flag = voted;
    return;
  }
  uint32_t values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = request(warp, lane).value;
  if (takes_effect(Planted::kSwapLanes, any.site, values[0] != values[1])) {
    std::swap(values[0], values[1]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    Request& own = request(warp, lane);
    int from = own.operand;
    if (own.shuffle == Shuffle::kXor) from = lane ^ own.operand;
    if (own.shuffle == Shuffle::kDown) from = lane + own.operand;
    if (from < 0 || from >= kLanes) from = own.shuffle == Shuffle::kIndex ? from & 31 : lane;
    own.value = values[from];
  }
}

void Engine::execute(int warp) {
  const Request& any = request(warp, 0);
  SiteCounts& counts = sites_.counts()[size_t(any.site)];
  ++counts.warp_instructions;
  switch (any.leaf) {
    case Leaf::kMma: {
      counts.flops += 2 * 16 * 8 * any.shape.k;
      if (takes_effect(Planted::kDrop, any.site) || !options_.arithmetic) break;
      MmaOperands operands;
      uint32_t swapped[kLanes][4];
      for (int lane = 0; lane < kLanes; ++lane) {
        const Request& own = request(warp, lane);
        operands.d[lane] = own.d;
        operands.a[lane] = own.a;
        operands.b[lane] = own.b;
        if (planted(Planted::kSwapRegisters, any.site)) {
          const int registers = any.shape.format == Format::kTf32 ? 4 : any.shape.k / 4;
          std::copy(own.a, own.a + registers, swapped[lane]);
          effects_ += swapped[lane][0] != swapped[lane][1];
          std::swap(swapped[lane][0], swapped[lane][1]);
          operands.a[lane] = swapped[lane];
        }
      }
      mma(any.shape, operands);
      break;
    }
    case Leaf::kLdmatrix:
      if (takes_effect(Planted::kSwapLanes, any.site)) {
        std::swap(request(warp, 0).value, request(warp, 1).value);
      }
      execute_ldmatrix(warp);
      break;
    case Leaf::kShuffle:
      execute_shuffle(warp);
      break;
    default:
      ++warps_[size_t(warp)].syncs;
  }
}

void Engine::diverged(int warp, const std::string& how) {
  std::string message = "warp " + std::to_string(warp) + ": " + how + ":";
  int site = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Thread& thread = threads_[size_t(first_thread(warp) + lane)];
    if (thread.state == State::kDone) continue;
    if (thread.request->site != site || message.back() == ':') {
      site = thread.request->site;
      message += " lane " + std::to_string(lane) + " at " + sites_.counts()[size_t(site)].where();
    }
  }
  fault(Fault::kDivergence, site, message);
  abandoned_ = true;
}

bool Engine::settle(int warp) {
  const auto begin = threads_.begin() + first_thread(warp);
  const auto end = begin + kLanes;
  const auto done = std::count_if(begin, end, [](auto& t) { return t.state == State::kDone; });
  if (done == kLanes) {
    warps_[size_t(warp)].trace.flush();
    return false;
  }
  if (done > 0) {
    diverged(warp, std::to_string(done) + " lanes have returned");
    return false;
  }
  const bool together = std::all_of(begin, end, [&](const Thread& t) {
    return t.state == begin->state && t.request->site == begin->request->site;
  });
  if (!together) {
    diverged(warp, "lanes are at different collectives");
    return false;
  }
  warps_[size_t(warp)].trace.flush();
  if (begin->state == State::kAtBlock) return false;
  execute(warp);
  std::for_each(begin, end, [](Thread& t) { t.state = State::kReady; });
  return true;
}

void Engine::run_warp(int warp) {
  // From which lane on, and in which direction.
  const int turn = options_.schedule ? int(random_() % 64) : 0;
  const int rotate = turn % 32, flip = turn / 32 * 31;
  for (int i = 0; i < kLanes; ++i) {
    thread_ = first_thread(warp) + ((i + rotate) % kLanes ^ flip);
    if (threads_[size_t(thread_)].state == State::kReady) fibers_.enter(thread_);
  }
}

bool Engine::release_barrier() {
  bool voted = false;
  bool waiting = false;
  for (const Thread& thread : threads_) {
    if (thread.state == State::kDone) continue;
    waiting = true;
    voted |= thread.request->flag;
  }
  if (!waiting) return false;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    if (thread.state == State::kDone) continue;
    if (i % kLanes == 0) ++sites_.counts()[size_t(thread.request->site)].warp_instructions;
    thread.request->flag = voted;
    thread.state = State::kReady;
  }
  shared_.barrier();
  return true;
}

void Engine::run_block() {
  shared_.begin_block(shape_.shared_bytes, options_.detect);
  for (Thread& thread : threads_) thread = {};
  for (Warp& warp : warps_) warp.syncs = 0;
  abandoned_ = false;
  last_address_.clear();
  fibers_.reset(shape_.threads, [](int thread) {
    Engine& engine = instance();
    (*engine.kernel_)();
    engine.threads_[size_t(thread)].state = State::kDone;
  });
  std::vector<int> ready;
  do {
    ready.resize(warps_.size());
    std::iota(ready.begin(), ready.end(), 0);
    while (!ready.empty()) {
      const size_t pick = options_.schedule ? random_() % ready.size() : 0;
      run_warp(ready[pick]);
      const bool goes_on = settle(ready[pick]);
      if (abandoned_) return;
      if (!goes_on) ready.erase(ready.begin() + std::ptrdiff_t(pick));
    }
  } while (release_barrier());
}

Report Engine::run(const Shape& shape, const Options& options,
                   const std::function<void()>& kernel) {
  if (shape.threads <= 0 || shape.threads % kLanes != 0 || shape.threads > 1024) {
    std::fprintf(stderr, "simt: %d threads in a block\n", shape.threads);
    std::abort();
  }
  shape_ = shape;
  options_ = options;
  kernel_ = &kernel;
  faults_.clear();
  fault_index_.clear();
  sites_.clear();
  mutated_site_ = -1;
  effects_ = 0;
  random_.seed(options.schedule);
  threads_.assign(size_t(shape.threads), {});
  warps_.assign(size_t(shape.threads / kLanes), Warp(sites_));
  in_flight_at_waits_ = waits_ = 0;
  global_.begin_launch();

  const int64_t grid_blocks = int64_t(shape.grid.x) * shape.grid.y * shape.grid.z;
  std::vector<int64_t> blocks(
      size_t(options.most_blocks ? std::min(options.most_blocks, grid_blocks) : grid_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  if (options.schedule) std::shuffle(blocks.begin(), blocks.end(), random_);
  for (const int64_t number : blocks) {
    block_number_ = number;
    block_ = {int(number % shape.grid.x), int(number / shape.grid.x % shape.grid.y),
              int(number / shape.grid.x / shape.grid.y)};
    run_block();
  }

  Report report;
  report.faults = std::move(faults_);
  report.effects = effects_;
  report.counts.blocks = int64_t(blocks.size());
  report.counts.grid_blocks = grid_blocks;
  report.counts.threads = shape.threads;
  report.counts.shared_bytes = shape.shared_bytes;
  report.counts.sites = sites_.counts();
  report.counts.buffers = global_.traffic();
  if (waits_ > 0) {
    report.counts.bytes_in_flight = double(in_flight_at_waits_) / double(waits_) * shape.threads;
  }
  return report;
}

Engine& engine() { return Engine::instance(); }

}  // namespace

Report launch(const Shape& shape, const Options& options, const std::function<void()>& kernel) {
  return engine().run(shape, options, kernel);
}

int thread_index() { return engine().thread(); }
Dim3 block_index() { return engine().block(); }
Dim3 grid_extent() { return engine().grid(); }

void sync_threads(Site site) { sync_threads_or(false, site); }

bool sync_threads_or(bool condition, Site site) {
  Request request{.leaf = Leaf::kSyncThreads, .site = engine().site(site, Leaf::kSyncThreads)};
  if (engine().takes_effect(Planted::kDrop, request.site)) return condition;
  request.flag = condition;
  engine().meet(request, State::kAtBlock);
  return request.flag;
}

void sync_warp(Site site) {
  Request request{.leaf = Leaf::kSyncWarp, .site = engine().site(site, Leaf::kSyncWarp)};
  if (engine().takes_effect(Planted::kDrop, request.site)) return;
  engine().meet(request, State::kAtWarp);
}

bool warp_any(bool condition, Site site) {
  Request request{.leaf = Leaf::kShuffle, .site = engine().site(site, Leaf::kShuffle)};
  request.vote = true;
  request.flag = condition;
  engine().meet(request, State::kAtWarp);
  return request.flag;
}

uint32_t shuffle(Shuffle kind, uint32_t value, int operand, Site site) {
  Request request{.leaf = Leaf::kShuffle, .site = engine().site(site, Leaf::kShuffle)};
  request.shuffle = kind;
  request.value = value;
  request.operand = operand;
  engine().meet(request, State::kAtWarp);
  return request.value;
}

void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t row, Site site) {
  Request request{.leaf = Leaf::kLdmatrix, .site = engine().site(site, Leaf::kLdmatrix)};
  request.registers = r;
  request.operand = matrices;
  request.flag = transposed;
  request.value = engine().stale(Planted::kStaleAddress, request.site, row, true);
  engine().meet(request, State::kAtWarp);
}

void mma(MmaShape shape, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Request request{.leaf = Leaf::kMma, .site = engine().site(site, Leaf::kMma)};
  request.shape = shape;
  request.d = d;
  request.a = a;
  request.b = b;
  engine().meet(request, State::kAtWarp);
}

void load_global(void* value, const void* source, int bytes, bool active, Site site) {
  engine().load_global(value, source, bytes, active, engine().site(site, Leaf::kLoadGlobal));
}
void store_global(void* target, const void* value, int bytes, bool active, Site site) {
  engine().store_global(target, value, bytes, active, engine().site(site, Leaf::kStoreGlobal));
}
void load_shared(void* value, uint32_t source, int bytes, bool active, Site site) {
  engine().load_shared(value, source, bytes, active, engine().site(site, Leaf::kLoadShared));
}
void store_shared(uint32_t target, const void* value, int bytes, bool active, Site site) {
  engine().store_shared(target, value, bytes, active, engine().site(site, Leaf::kStoreShared));
}
void cp_async_16(uint32_t target, const void* source, bool valid, bool active, Site site) {
  engine().copy(target, source, valid, active, engine().site(site, Leaf::kCopyAsync));
}
void cp_async_commit(Site site) { engine().commit(engine().site(site, Leaf::kCommit)); }
void cp_async_wait(int groups_left, Site site) {
  engine().wait(groups_left, engine().site(site, Leaf::kWait));
}

}  // namespace simt
