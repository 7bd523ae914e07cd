#pragma once
// The products of a convolution's stage, rows of weights times pixels, and where they find both in shared memory: by
// plain arithmetic, or by tensor cores. Either way a block makes a tile of 16, 32 or 64 rows times so many pixels that
// it always has as many values, and sums each of them in the order of the taps.

#include "cuda/device.cuh"

namespace fusecell::cuda {

constexpr int kRowsPerThread = 4;  // one channel's gates
constexpr int kMostRows = 64;      // of a tile
constexpr int kRowsShift = 6;      // the same as a power of two
constexpr int kParts = 2;          // of a stage, in each of which a thread fetches, multiplies and stores
template <class A>
constexpr int kPixelsPerThread = sizeof(A) == 4 ? 8 : 4;
// A tile has 4 * groups rows, groups being 4, 8 or 16: its pixels times its groups, as a power of two.
template <class S>
constexpr int kWidthShift = sizeof(Accumulate<S>) == 4 ? 11 : 10;
// Where tensor cores may multiply, no tile has fewer than 8 groups: 16 rows more cost less than as many registers for
// what is fetched as twice the pixels need.
template <class S>
constexpr int kLeastGroupShift = sizeof(S) == 2 ? 3 : 2;
static_assert((1 << kWidthShift<float>) == kThreads * kPixelsPerThread<float> &&
              (1 << kWidthShift<double>) == kThreads * kPixelsPerThread<double>);

// By plain arithmetic. A thread sums 4 rows times two runs of kPixelsPerThread / 2 pixels, 16 bytes each.
template <class S>
class PlainProducts {
 public:
  using A = Accumulate<S>;
  using Pixel = A;
  static constexpr int kDepth = 8;  // taps of a stage
  static constexpr int kWeights = kDepth * kMostRows,
                       kPixels = kDepth << (kWidthShift<S> - kLeastGroupShift<S>);  // of one buffer

  static constexpr FUSECELL_HD_METHOD int depth(int /*group_shift*/) { return kDepth; }
  static FUSECELL_DEVICE_METHOD int loads(int width) { return width * kDepth / kThreads; }  // of pixels, by a thread
  static FUSECELL_DEVICE_METHOD int pitch(int width_shift) { return 1 << width_shift; }
  static FUSECELL_DEVICE_METHOD int place(int at, int /*shift*/) { return at; }
  static FUSECELL_DEVICE_METHOD A as_pixel(S value) { return widen(value); }

  FUSECELL_DEVICE_METHOD PlainProducts(int group_shift, int width_shift) : width_(1 << width_shift) {
    const int pixel_shift = 8 - group_shift;
    row_ = (int(threadIdx.x) >> pixel_shift) * kRowsPerThread;
    pixel_ = (int(threadIdx.x) & ((1 << pixel_shift) - 1)) * kRun;
  }

  FUSECELL_DEVICE_METHOD void take(const S* weights, const A* pixels, int part) {
    weights += part * (kDepth / kParts) * kMostRows + row_;
    pixels += part * (kDepth / kParts) * width_ + pixel_;
#pragma unroll
    for (int k = 0; k < kDepth / kParts; ++k) {
      A w[kRowsPerThread], low[kRun], high[kRun];
      const Span whole = {0, true};
      load(weights + k * kMostRows, whole, w);
      load(pixels + k * width_, whole, low);
      load(pixels + k * width_ + width_ / 2, whole, high);
#pragma unroll
      for (int r = 0; r < kRowsPerThread; ++r) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          low_[r].element[j] += w[r] * low[j];
          high_[r].element[j] += w[r] * high[j];
        }
      }
    }
  }

  FUSECELL_DEVICE_METHOD void store(A* tile) const {
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      A* to = tile + (row_ + r) * width_ + pixel_;
      *reinterpret_cast<Chunk<A, kRun>*>(to) = low_[r];
      *reinterpret_cast<Chunk<A, kRun>*>(to + width_ / 2) = high_[r];
    }
  }

 private:
  static constexpr int kRun = kPixelsPerThread<A> / 2;

  int width_, row_, pixel_;
  Chunk<A, kRun> low_[kRowsPerThread] = {}, high_[kRowsPerThread] = {};
};

// By tensor cores, 16 taps at a time: a warp sums 16 rows times 64 pixels, so that 8 warps fill any of the tiles.
//
// Shared memory has a row of weights and one of pixels for each tap, as plain products have; that is the transpose of
// what a product wants on both sides, and load_matrices_transposed turns both. It reads 16 bytes of each of 8 taps at
// once, which a row's length apart would lie in the same banks: the tap's number turns bits of the place.
template <class S, int kWarpPixels = 64>
class TensorProducts {
 public:
  using A = float;
  using Pixel = S;
  static constexpr int kTaps = 16, kWarpRows = 16;
  static constexpr int kWeights = 2 * kTaps * kMostRows,
                       kPixels = kTaps << (kWidthShift<S> - kLeastGroupShift<S>);  // of one buffer

  // The wider the tile, the fewer taps: always as many pixels.
  static constexpr FUSECELL_HD_METHOD int depth(int group_shift) { return group_shift == 3 ? kTaps : kParts * kTaps; }
  static FUSECELL_DEVICE_METHOD int loads(int /*width*/) { return kPixels / kThreads; }
  // 8 rows of sums are stored at once, two by two: 8 banks apart they do not meet.
  static FUSECELL_DEVICE_METHOD int pitch(int width_shift) { return (1 << width_shift) + 8; }
  // Of what stands at `at` in [taps][1 << shift].
  static FUSECELL_DEVICE_METHOD int place(int at, int shift) { return at ^ ((at >> (shift - 3)) & 56); }
  static FUSECELL_DEVICE_METHOD S as_pixel(S value) { return value; }

  FUSECELL_DEVICE_METHOD TensorProducts(int group_shift, int width_shift)
      : depth_(depth(group_shift)), width_shift_(width_shift) {
    const int warp = int(threadIdx.x) / 32, rows_shift = group_shift - 2;  // warps above each other
    row_ = (warp & ((1 << rows_shift) - 1)) * kWarpRows;
    pixel_ = (warp >> rows_shift) * kWarpPixels;
  }

  FUSECELL_DEVICE_METHOD void take(const S* weights, const S* pixels, int part) {
    const int k = part * kTaps;
    if (k >= depth_) return;
    // A lane gives the place of row `line` of one of four matrices; two lie side by side, two above each other.
    const int lane = int(threadIdx.x) % 32, line = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    uint32_t w[4], x[4];
    device::load_matrices_transposed(weights + place((k + high + line) * kMostRows + row_ + low, kRowsShift), w);
#pragma unroll
    for (int j = 0; j < kWarpPixels / 16; ++j) {
      const int at = ((k + low + line) << width_shift_) + pixel_ + 16 * j + high;
      device::load_matrices_transposed(pixels + place(at, width_shift_), x);
      const uint32_t left[2] = {x[0], x[1]}, right[2] = {x[2], x[3]};
      device::multiply_add(w, left, sum_[2 * j], static_cast<const S*>(nullptr));
      device::multiply_add(w, right, sum_[2 * j + 1], static_cast<const S*>(nullptr));
    }
  }

  FUSECELL_DEVICE_METHOD void store(A* tile) const {
    const int apart = pitch(width_shift_);
    for_pairs([&](int row, int pixel, const Chunk<A, 2>& sums) {
      *reinterpret_cast<Chunk<A, 2>*>(tile + row * apart + pixel) = sums;
    });
  }

  // f(row, pixel, its sum and its neighbour's) for this lane's.
  template <class F>
  FUSECELL_DEVICE_METHOD void for_pairs(F&& f) const {
    const int lane = int(threadIdx.x) % 32, row = row_ + lane / 4, pixel = pixel_ + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kWarpPixels / 8; ++j) {
      f(row, pixel + 8 * j, Chunk<A, 2>{{sum_[j][0], sum_[j][1]}});
      f(row + 8, pixel + 8 * j, Chunk<A, 2>{{sum_[j][2], sum_[j][3]}});
    }
  }

 private:
  int depth_, width_shift_, row_, pixel_;
  float sum_[kWarpPixels / 8][4] = {};
};

// What a kernel needs of shared memory, whatever the machine: two buffers of weights, and the tile, which takes the
// place of two buffers of pixels.
template <class S>
constexpr int kWeightBuffers = 2 * (sizeof(S) == 2 ? TensorProducts<S>::kWeights : PlainProducts<S>::kWeights);
template <class S>
constexpr int kTileBuffer = (kMostRows << (kWidthShift<S> - 4)) + (sizeof(S) == 2 ? 8 * kMostRows : 0);
static_assert(2 * PlainProducts<float>::kPixels <= kTileBuffer<float> &&
              2 * PlainProducts<double>::kPixels <= kTileBuffer<double> &&
              2 * PlainProducts<bfloat16>::kPixels <= kTileBuffer<bfloat16> &&
              2 * int(sizeof(bfloat16)) * TensorProducts<bfloat16>::kPixels <=
                  int(sizeof(float)) * kTileBuffer<bfloat16>);

// Taps are padded to a multiple of this, with zeros.
template <class S>
constexpr int depth_of_stage(int group_shift) {
  return sizeof(S) == 2 ? TensorProducts<S>::depth(group_shift) : PlainProducts<S>::kDepth;
}

}  // namespace fusecell::cuda
