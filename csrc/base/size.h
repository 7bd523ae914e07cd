#pragma once
// Products of extents. Sizes are 64-bit; what no machine can hold is an error and not an overflow.

#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/error.h"

namespace fusecell {

constexpr int64_t kLargestSize = int64_t(1) << 46;

// The product, all factors being at least 0. Throws Error (memory) above kLargestSize; `what` names the array.
inline int64_t checked_product(const std::string& what, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors) {
    if (factor == 0) return 0;
  }
  for (int64_t factor : factors) {
    if (product > kLargestSize / factor) memory_error(what);
    product *= factor;
  }
  return product;
}

}  // namespace fusecell
