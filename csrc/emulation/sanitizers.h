#pragma once
// What the sanitizers are told about fibres, and what ThreadSanitizer may know of the engine's own locks.

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fusecell::emulation {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kUnderThreadSanitizer = true;

// While one exists, ThreadSanitizer sees neither what its thread reads and writes nor what it locks. The engine's locks
// would order what the kernel does not: who wakes late from a barrier takes the mutex after those who are at the next
// barrier already, and a race between the two would never be reported.
struct Unseen {
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

// The order that is meant: what a thread did before `before(edge)` precedes what another does after `after(edge)`.
inline void before(char& edge) { __tsan_release(&edge); }
inline void after(char& edge) { __tsan_acquire(&edge); }
#else
inline constexpr bool kUnderThreadSanitizer = false;
struct Unseen {
  Unseen() {}
};
inline void before(char&) {}
inline void after(char&) {}
#endif

// A stack as AddressSanitizer knows it.
struct StackBounds {
  const void* bottom = nullptr;
  size_t size = 0;
};

#if defined(__SANITIZE_ADDRESS__)
inline void leave_for(const StackBounds& next, void** own_fake_stack) {
  __sanitizer_start_switch_fiber(own_fake_stack, next.bottom, next.size);
}
inline void arrive_from(StackBounds* last, void* own_fake_stack) {
  __sanitizer_finish_switch_fiber(own_fake_stack, last ? &last->bottom : nullptr, last ? &last->size : nullptr);
}
inline void unpoison(void* bottom, size_t size) { __asan_unpoison_memory_region(bottom, size); }
inline constexpr size_t kStackBytes = 256 << 10;
#else
inline void leave_for(const StackBounds&, void**) {}
inline void arrive_from(StackBounds*, void*) {}
inline void unpoison(void*, size_t) {}
inline constexpr size_t kStackBytes = 64 << 10;
#endif

}  // namespace fusecell::emulation
