#pragma once
// An array as the core sees it: where it lies, what it holds, how large it is. Always C-contiguous.

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace fusecell {

using Shape = std::vector<int64_t>;

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::unknown;
  std::string dtype_given;  // as the caller named it, for messages
  Shape shape;
  bool present = false;  // an optional argument that was not given is absent; an empty array is present

  template <class S>
  S* as() const {
    return static_cast<S*>(data);
  }

  int64_t size() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
};

std::string to_string(const Shape& shape);

}  // namespace fusecell
