#pragma once
// Scratch memory: the same walk over the pieces measures it (no base) and hands it out (with one).

#include <cstdint>

namespace fusecell::cpu {

class Arena {
 public:
  static constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

  explicit Arena(void* base = nullptr)
      : base_(reinterpret_cast<uintptr_t>(base) + (base ? (-reinterpret_cast<uintptr_t>(base)) % kAlignment : 0)) {}

  template <class S>
  S* take(int64_t count) {
    const uintptr_t at = base_ + static_cast<uintptr_t>(used_);
    used_ += (count * static_cast<int64_t>(sizeof(S)) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ ? reinterpret_cast<S*>(at) : nullptr;
  }

  int64_t bytes() const { return used_ + kAlignment; }  // the base may have to be moved up to a boundary

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace fusecell::cpu
