#pragma once
// Scratch memory: the same walk over the pieces measures it (no base) and hands it out (with one). Under
// AddressSanitizer the gaps between the pieces are forbidden ground, so that running over one piece into the next does
// not go unseen.

#include <cstdint>

#include "base/size.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fusecell {

class Arena {
 public:
  static constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

  explicit Arena(void* base = nullptr)
      : base_(reinterpret_cast<uintptr_t>(base) + (base ? (-reinterpret_cast<uintptr_t>(base)) % kAlignment : 0)) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
#if defined(__SANITIZE_ADDRESS__)
  ~Arena() {
    if (base_) ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(base_), static_cast<size_t>(used_));
  }
#endif

  template <class S>
  S* take(int64_t count) {
    const uintptr_t at = base_ + static_cast<uintptr_t>(used_);
    const int64_t size = checked_product("scratch", {count, static_cast<int64_t>(sizeof(S))});
    used_ += (size + kAlignment - 1) / kAlignment * kAlignment;
#if defined(__SANITIZE_ADDRESS__)
    used_ += kAlignment;
    const uintptr_t end = at + static_cast<uintptr_t>(size), next = base_ + static_cast<uintptr_t>(used_);
    if (base_) ASAN_POISON_MEMORY_REGION(reinterpret_cast<void*>(end), next - end);
#endif
    return base_ ? reinterpret_cast<S*>(at) : nullptr;
  }

  int64_t bytes() const { return used_ + kAlignment; }  // the base may have to be moved up to a boundary

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace fusecell
