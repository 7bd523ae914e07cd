#pragma once
// Runs of pixels from one place to another. Neighbours have a loop of their own, which the compiler vectorises.

#include <algorithm>
#include <cstdint>

#include "problem/frames.h"

namespace fusecell::cpu {

// to = from; what is absent is zero.
template <class S>
void copy_pixels(const Pixels<const S>& from, int64_t n, const Pixels<S>& to) {
  if (from.data && from.stride == 1 && to.stride == 1) {
    std::copy_n(from.data, n, to.data);
  } else {
    for (int64_t i = 0; i < n; ++i) to.data[i * to.stride] = from.data ? from.data[i * from.stride] : S(0);
  }
}

// to += from
template <class S>
void add_pixels(const Pixels<const S>& from, int64_t n, const Pixels<S>& to) {
  if (from.stride == 1 && to.stride == 1) {
    for (int64_t i = 0; i < n; ++i) to.data[i] += from.data[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to.data[i * to.stride] += from.data[i * from.stride];
  }
}

}  // namespace fusecell::cpu
