// Stackful coroutines for the threads of a block. On x86-64 a switch saves six registers by hand;
// elsewhere it is swapcontext.
#pragma once

#include <cstddef>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

// A fixed set of fibers that run one function, one at a time, on stacks that are kept. One set may
// be in use at a time.
class Fibers {
 public:
  Fibers() = default;
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;
  ~Fibers();

  // Readies fibers 0 .. count - 1 to call body(index); whatever ran in them before is forgotten.
  void reset(int count, void (*body)(int));
  // From outside: runs one fiber until it leaves or its body returns.
  void enter(int index);
  // From inside the running fiber: back to whoever entered it.
  void leave();

 private:
  static void trampoline();

  struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
  };

  std::vector<Fiber> fibers_;
  Fiber outside_;
  void (*body_)(int) = nullptr;
  int running_ = -1;
  std::byte* stacks_ = nullptr;
  size_t stack_count_ = 0;
};

}  // namespace simt
