#pragma once
// About how many nanoseconds one core needs, to tell `parallel_for` whether a region is worth a helper. Rough: an EPYC
// 9005 multiplies three times as fast with AVX-512, a core with narrower vectors more slowly.

#include <cstdint>

namespace fusecell::cpu::work {

inline int64_t products(int64_t multiply_adds) { return multiply_adds / 32; }
inline int64_t copies(int64_t elements) { return elements / 2; }   // of neighbours
inline int64_t gathers(int64_t elements) { return 2 * elements; }  // of elements far apart
inline int64_t gates(int64_t elements) { return 4 * elements; }    // of the state, forward or backward

}  // namespace fusecell::cpu::work
