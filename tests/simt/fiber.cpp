#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
Fibers* current = nullptr;

}  // namespace

#if defined(__x86_64__)

extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");

#endif

Fibers::~Fibers() {
  if (stacks_) munmap(stacks_, stack_count_ * kStackBytes);
}

void Fibers::trampoline() {
  Fibers& fibers = *current;
  fibers.body_(fibers.running_);
  fibers.leave();
  std::abort();  // a fiber that has ended was entered again
}

void Fibers::reset(int count, void (*body)(int)) {
  body_ = body;
  current = this;
  if (size_t(count) > stack_count_) {
    if (stacks_) munmap(stacks_, stack_count_ * kStackBytes);
    stack_count_ = size_t(count);
    void* memory = mmap(nullptr, stack_count_ * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("simt: no memory for the stacks of a block");
      std::abort();
    }
    stacks_ = static_cast<std::byte*>(memory);
    // A stack that overflows meets this page, not its neighbour.
    for (size_t i = 0; i < stack_count_; ++i) {
      mprotect(stacks_ + i * kStackBytes, size_t(sysconf(_SC_PAGESIZE)), PROT_NONE);
    }
  }
  fibers_.resize(size_t(count));
  for (size_t i = 0; i < fibers_.size(); ++i) {
    // Staggered: else the tops of all stacks would share one set of each cache.
    std::byte* top = stacks_ + (i + 1) * kStackBytes - i % 61 * 832;
#if defined(__x86_64__)
    // What simt_switch_stack pops: six registers and the return address. One word above them makes
    // the stack aligned as a called function expects it.
    auto* words = reinterpret_cast<void**>(top) - 8;
    for (int w = 0; w < 6; ++w) words[w] = nullptr;
    words[6] = reinterpret_cast<void*>(&Fibers::trampoline);
    words[7] = nullptr;
    fibers_[i].stack_pointer = words;
#else
    getcontext(&fibers_[i].context);
    fibers_[i].context.uc_stack.ss_sp = stacks_ + i * kStackBytes;
    fibers_[i].context.uc_stack.ss_size = size_t(top - (stacks_ + i * kStackBytes));
    fibers_[i].context.uc_link = nullptr;
    makecontext(&fibers_[i].context, &Fibers::trampoline, 0);
#endif
  }
}

void Fibers::enter(int index) {
  running_ = index;
#if defined(__x86_64__)
  simt_switch_stack(&outside_.stack_pointer, fibers_[size_t(index)].stack_pointer);
#else
  swapcontext(&outside_.context, &fibers_[size_t(index)].context);
#endif
}

void Fibers::leave() {
#if defined(__x86_64__)
  simt_switch_stack(&fibers_[size_t(running_)].stack_pointer, outside_.stack_pointer);
#else
  swapcontext(&fibers_[size_t(running_)].context, &outside_.context);
#endif
}

}  // namespace simt
