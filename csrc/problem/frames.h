#pragma once
// Where the elements of images lie. Sequences and states may be stored in any order of T, B and C, and with channels
// last: an element's place is the sum of its indices times their strides. A row's end and the next row's begin are
// neighbours, so the pixels of an image are one axis.

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

// In elements.
struct Strides {
  int64_t time = 0, batch = 0, channel = 0, pixel = 1;
};

// Pixels of one channel, from one of them on. null: there are none.
template <class T>
struct Pixels {
  T* data = nullptr;
  int64_t stride = 1;
};

// [C, P] of one sample at one time.
template <class T>
struct Image {
  T* data = nullptr;
  int64_t channel = 0, pixel = 1;

  FUSECELL_HD_METHOD Pixels<T> at(int64_t of_channel, int64_t p) const {
    return {data ? data + of_channel * channel + p * pixel : nullptr, pixel};
  }
};

// [B, C, P] at one time, or, from time 0 on, [T, B, C, P].
template <class T>
struct Frames {
  T* data = nullptr;
  Strides by;

  FUSECELL_HD_METHOD Frames at_time(int64_t t) const { return {data ? data + t * by.time : nullptr, by}; }
  FUSECELL_HD_METHOD Frames from_sample(int64_t b) const { return {data ? data + b * by.batch : nullptr, by}; }
  FUSECELL_HD_METHOD Image<T> image(int64_t b) const {
    return {data ? data + b * by.batch : nullptr, by.channel, by.pixel};
  }
};

template <class T>
FUSECELL_HD Frames<const T> to_read(const Frames<T>& frames) {
  return {frames.data, frames.by};
}

// [T, B, C, P] as the core itself keeps it: C-contiguous.
template <class T>
FUSECELL_HD Frames<T> contiguous_frames(T* data, int64_t batch, int64_t channels, int64_t pixels) {
  return {data, {batch * channels * pixels, channels * pixels, pixels, 1}};
}

}  // namespace fusecell
