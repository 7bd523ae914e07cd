#pragma once
// Where the k-th tap of a convolution meets a pixel: images read in place, so that nothing is unfolded in memory. The
// same walk serves the convolution, its transpose (the gradient of its input) and the weights' gradient.

#include "cuda/device.cuh"
#include "problem/frames.h"

namespace fusecell::cuda {

// One row of the weights: its channel of the image, and how far from the pixel's place it reads.
struct alignas(16) Tap {
  int32_t channel, h, w;
  int32_t in_kernel;  // which of the kernel's places it is
};

// Where channels come last they are read by pieces of 16 bytes: so many neighbours.
constexpr int kPieceBytes = 16;
constexpr int kMostBuffers = 4;  // stages in shared memory
template <class S>
constexpr int kPiece = kPieceBytes / int(sizeof(S));

// Pixel (row, column) of the result stands at row * step - low in the source. divide: the transpose of a stride; a tap
// meets only multiples of it.
struct Geometry {
  int32_t extent[2];  // of the source
  int32_t columns;    // of the result
  int32_t step[2], low[2], divide[2];
};

// The images of one operand: sample n is batch element n % batch at time `time + n / batch`.
//
// T is the element type. The state before a step (shift: -1, or 1 in reverse) comes from the sequence's output where
// the step before took place, and from `initial` otherwise. What is null reads as zero.
template <class T>
struct Images {
  Frames<const T> frames;   // from time `time` + `shift` on
  Frames<const T> initial;  // null: zero
  const T* mask;            // [B, mask_image], multiplies; null: none
  int64_t mask_image;
  int64_t batch, time, steps;
  const int64_t* lengths;  // [B]; null: every step takes place
  int shift;               // 0: frames holds the step itself
};

template <class T>
FUSECELL_DEVICE bool takes_place(const Images<T>& of, int64_t b, int64_t time) {
  return time >= 0 && time < of.steps && (!of.lengths || time < of.lengths[b]);
}

// The image of sample n; null reads as zero.
template <class T>
FUSECELL_DEVICE Image<const T> image_of(const Images<T>& of, int64_t n, int64_t& b) {
  const int64_t slot = quotient(n, of.batch), time = of.time + slot;
  b = n - slot * of.batch;
  if (!takes_place(of, b, time)) return {};
  if (of.shift == 0 || takes_place(of, b, time + of.shift)) return of.frames.at_time(slot).image(b);
  return of.initial.image(b);
}

constexpr int32_t kNowhere = INT32_MIN / 2;  // outside of every image, whatever a tap adds to it, kNowhere included

// A pixel of the result, as a source sees it. Strides in 32 bits and without a sign, as a product with 64 bits is one
// instruction: a tap's place costs no more than without them.
template <class T>
struct Column {
  const T *image = nullptr, *mask = nullptr;
  uint32_t channel = 0, pixel = 0;  // strides of the image
  int32_t h = kNowhere, w = kNowhere;
};

template <class T>
FUSECELL_DEVICE Column<T> column_of(const Images<T>& images, const Geometry& g, int64_t n, int64_t p) {
  int64_t b = 0;
  Column<T> column;
  const Image<const T> image = image_of(images, n, b);
  if (!image.data) return column;
  column.image = image.data;
  column.channel = uint32_t(image.channel);
  column.pixel = uint32_t(image.pixel);
  column.mask = images.mask ? images.mask + b * images.mask_image : nullptr;
  const auto row = int32_t(quotient(p, g.columns));
  column.h = row * g.step[0] - g.low[0];
  column.w = int32_t(p - int64_t(row) * g.columns) * g.step[1] - g.low[1];
  return column;
}

FUSECELL_DEVICE bool divides(const Geometry& g) { return g.divide[0] != 1 || g.divide[1] != 1; }

// Whether a tap meets the image, and at which pixel of the plane. kDivides: as divides(g) has it; a loop without the
// divisions is a third as long, with all its loads under way at once.
template <bool kDivides, class T>
FUSECELL_DEVICE bool meets(const Column<T>& column, const Geometry& g, const Tap& tap, uint32_t& p) {
  int32_t h = column.h + tap.h, w = column.w + tap.w;
  if constexpr (kDivides) {
    if (h % g.divide[0] != 0 || w % g.divide[1] != 0) return false;
    h /= g.divide[0];
    w /= g.divide[1];
  }
  p = uint32_t(h) * uint32_t(g.extent[1]) + uint32_t(w);
  // As unsigned numbers: what is negative is beyond the end, too.
  return uint32_t(h) < uint32_t(g.extent[0]) && uint32_t(w) < uint32_t(g.extent[1]);
}

template <bool kDivides, class T>
FUSECELL_DEVICE T gather(const Column<T>& column, const Geometry& g, const Tap& tap) {
  uint32_t p = 0;
  if (!meets<kDivides>(column, g, tap, p)) return T{};
  return column.image[uint64_t(uint32_t(tap.channel)) * column.channel + uint64_t(p) * column.pixel];
}

// What was gathered, times the mask where there is one. Rounded to T again: products take what has the type of what is
// stored, on any machine.
template <class T>
FUSECELL_DEVICE T masked(T value, const Column<T>& column, const Geometry& g, const Tap& tap) {
  uint32_t p = 0;
  if (!column.mask || !meets<false>(column, g, tap, p)) return value;
  return narrow<T>(widen(value) * widen(column.mask[int64_t(tap.channel) * (g.extent[0] * g.extent[1]) + p]));
}

}  // namespace fusecell::cuda
