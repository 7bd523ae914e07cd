#pragma once
// From one stack to another within an OS thread.

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(FUSECELL_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

namespace fusecell::emulation {

#if defined(__x86_64__) && !defined(FUSECELL_EMULATION_UCONTEXT)
// 256 threads x 20 barriers take 0.19 ms so and 1.3 ms with ucontext, which sets the signal mask at every switch.
struct Context {
  void* stack_pointer = nullptr;
};

// What the System V ABI lets a callee keep: six registers on the old stack, its stack pointer in *own, then the same
// from the new. (The rounding modes, which it names too, nobody here changes.)
[[gnu::naked, gnu::noinline, gnu::no_sanitize("thread")]] inline void exchange_stacks(void** /*own: rdi*/,
                                                                                      void* /*next: rsi*/) {
  __asm__(
      "pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

inline void switch_stack(Context& own, Context& next) { exchange_stacks(&own.stack_pointer, next.stack_pointer); }

// The first switch to `context` calls entry(), which never returns.
inline void prepare(Context& context, std::byte* bottom, size_t size, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(bottom) + size) & ~uintptr_t{15};
  auto* slot = reinterpret_cast<uintptr_t*>(top);
  *--slot = 0;  // where entry would return to; it also leaves the stack as a call does: 8 below a multiple of 16
  *--slot = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--slot = 0;
  context.stack_pointer = slot;
}
#else
struct Context {
  ucontext_t state;
};

inline void switch_stack(Context& own, Context& next) { swapcontext(&own.state, &next.state); }

inline void prepare(Context& context, std::byte* bottom, size_t size, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = bottom;
  context.state.uc_stack.ss_size = size;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
#endif

}  // namespace fusecell::emulation
