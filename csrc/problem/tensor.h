#pragma once
// An array as the core sees it: where it lies, what it holds, how large it is. C-contiguous, but for the sequences and
// states of a ConvLSTM.

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "problem/frames.h"

namespace fusecell {

using Shape = std::vector<int64_t>;

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::unknown;
  std::string dtype_given;  // as the caller named it, for messages
  Shape shape;
  Shape strides;         // of each axis, in elements; empty: C-contiguous
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

  // As frames, of a tensor [B, C, H, W] or [T, B, C, H, W] that was validated; an absent one has no data.
  template <class S>
  Frames<S> frames() const {
    return {as<S>(), present ? image_strides() : Strides{}};
  }

 private:
  Strides image_strides() const;
};

std::string to_string(const Shape& shape);

}  // namespace fusecell
