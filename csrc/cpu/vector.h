#pragma once
// The widest vector of the instruction set this file is compiled for. Only the per-instruction-set objects include it.

#include <cstdint>

#include "base/macros.h"

namespace fusecell::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class S>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};

template <class S>
using Vector = typename VectorOf<S>::type;

template <class S>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(S));

template <class S>
FUSECELL_HD Vector<S> load(const S* p) {
  Vector<S> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class S>
FUSECELL_HD void store(S* p, Vector<S> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class S, int kBytes>
struct Narrow {
  typedef S type __attribute__((vector_size(kBytes)));
};

// The lanes' sum as a tree (upper half onto lower half, and so on), so that its order is fixed and its error small.
template <class S, int kBytes = kVectorBytes>
FUSECELL_HD S sum_of_lanes(typename Narrow<S, kBytes>::type v) {
  if constexpr (kBytes > 16) {
    typename Narrow<S, kBytes / 2>::type half[2];
    __builtin_memcpy(half, &v, sizeof v);
    return sum_of_lanes<S, kBytes / 2>(half[0] + half[1]);
  } else if constexpr (sizeof(S) == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    return v[0] + v[1];
  }
}

}  // namespace
}  // namespace fusecell::cpu
