#pragma once
// The convolution as a matrix product: rows of packed weights times pixels gathered from the images, a block of threads
// per tile of the result. The tile ends in shared memory, where whatever follows the convolution picks it up: the
// gates, their adjoint, or a plain store.
//
// Method: kDepth taps at a time, two buffers, one barrier per kDepth taps. Weights come by asynchronous copies; pixels
// are fetched into registers before the products of the stage before are taken and put into shared memory after them,
// so that their loads overlap the arithmetic whatever they need (bounds, a mask, a conversion).

#include "cuda/gather.cuh"

namespace fusecell::cuda {

constexpr int kDepth = 8;          // taps of a stage
constexpr int kRowsPerThread = 4;  // one channel's gates
constexpr int kMostRows = 64;      // of a tile
template <class A>
constexpr int kPixelsPerThread = sizeof(A) == 4 ? 8 : 4;
template <class A>
constexpr int kPixelsShift = sizeof(A) == 4 ? 3 : 2;
// A tile has 4 * groups rows and 256 / groups * kPixelsPerThread pixels, groups being 4, 8 or 16: always as many
// values.
template <class A>
constexpr int kTileValues = kThreads * kRowsPerThread * kPixelsPerThread<A>;
// Pixels times kDepth, at most: with 4 groups.
template <class A>
constexpr int kPixelBuffer = kThreads / 4 * kPixelsPerThread<A> * kDepth;
static_assert((1 << kPixelsShift<float>) == kPixelsPerThread<float> &&
              (1 << kPixelsShift<double>) == kPixelsPerThread<double>);
static_assert(2 * kPixelBuffer<float> == kTileValues<float> && 2 * kPixelBuffer<double> == kTileValues<double>,
              "the finished tile takes the place of the two pixel buffers");

// Of a multiprocessor: two blocks hide each other's waits, where the registers of float64 leave room for one.
template <class S>
constexpr int kBlocksAtOnce = sizeof(Accumulate<S>) == 4 ? 2 : 1;

template <class S>
struct Operand {
  Images<S> images;
  Geometry geometry;
  const Tap* taps;               // [stages * kDepth]; those past the last read nothing
  const Accumulate<S>* weights;  // [stages * kDepth][rows], zero past the last
  int64_t stages;                // 0: this operand is zero
};

// Two operands make one sum: the input's convolution and the state's.
template <class S>
struct CorrelateArgs {
  Operand<S> operand[2];
  int64_t rows;     // of the packed weights: a multiple of the tile's
  int group_shift;  // the tile's groups of rows are 4, 8 or 16, as a power of two: no division in the inner loops
  int64_t samples, pixels;
};

template <class S>
struct Tile {
  using A = Accumulate<S>;
  A* values;           // [4 * groups][width]
  int width_shift;     // its pixels, as a power of two
  int64_t row, first;  // of its first row, of its first pixel among samples * pixels

  FUSECELL_DEVICE_METHOD int width() const { return 1 << width_shift; }
  FUSECELL_DEVICE_METHOD const A* at(int of_row, int pixel) const { return values + (of_row << width_shift) + pixel; }
};

// The loads of one stage, and where they go.
template <class S>
class StageLoader {
 public:
  using A = Accumulate<S>;
  static constexpr int kMostLoads = kPixelBuffer<A> / kThreads;

  FUSECELL_DEVICE_METHOD StageLoader(const CorrelateArgs<S>& args, const Tile<S>& tile, A* weights, A* pixels)
      : args_(args), tile_(tile), weights_(weights), pixels_(pixels) {}

  // Points at an operand; its pixels' places in the image are found once.
  FUSECELL_DEVICE_METHOD void select(int which) {
    operand_ = &args_.operand[which];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = tile_.first + column_in_tile(half), n = quotient(at, args_.pixels);
      column_[half] = {};  // beyond the last pixel: reads as zero
      if (n < args_.samples) {
        column_[half] = column_of(operand_->images, operand_->geometry, n, at - n * args_.pixels);
      }
    }
  }

  FUSECELL_DEVICE_METHOD void start_weights(int64_t stage, int buffer) const {
    constexpr int kEach = 16 / int(sizeof(A));
    const int row_shift = args_.group_shift + 2, pieces = (kDepth << row_shift) / kEach;
    for (int i = int(threadIdx.x); i < pieces; i += kThreads) {
      const int k = (i * kEach) >> row_shift, r = (i * kEach) & ((1 << row_shift) - 1);
      device::copy_async_16(weights_ + (buffer * kDepth + k) * kMostRows + r,
                            operand_->weights + (stage * kDepth + k) * args_.rows + tile_.row + r);
    }
    device::copy_async_commit();
  }

  FUSECELL_DEVICE_METHOD void fetch_pixels(int64_t stage) {
    const int loads = tile_.width() * kDepth / kThreads;
#pragma unroll
    for (int i = 0; i < kMostLoads; ++i) {
      if (i < loads) {
        const Tap tap = operand_->taps[stage * kDepth + depth_of(i)];
        fetched_[i] = gather(column_[i & 1], operand_->geometry, tap);
      }
    }
  }

  FUSECELL_DEVICE_METHOD void store_pixels(int buffer) const {
    const int loads = tile_.width() * kDepth / kThreads;
#pragma unroll
    for (int i = 0; i < kMostLoads; ++i) {
      if (i < loads)
        pixels_[buffer * kPixelBuffer<A> + (depth_of(i) << tile_.width_shift) + column_in_tile(i & 1)] = fetched_[i];
    }
  }

 private:
  // The i-th load of this thread. Its pixel is one of two, since the width divides 2 * kThreads.
  FUSECELL_DEVICE_METHOD int column_in_tile(int i) const {
    return (i * kThreads + int(threadIdx.x)) & (tile_.width() - 1);
  }
  FUSECELL_DEVICE_METHOD int depth_of(int i) const { return (i * kThreads + int(threadIdx.x)) >> tile_.width_shift; }

  const CorrelateArgs<S>& args_;
  const Tile<S>& tile_;
  A *weights_, *pixels_;
  const Operand<S>* operand_ = nullptr;
  Column<S> column_[2];
  A fetched_[kMostLoads];
};

// The products of one stage. A thread holds 4 rows times two runs of kPixelsPerThread / 2 pixels, 16 bytes each.
template <class A, int PX>
FUSECELL_DEVICE void multiply_stage(const A* weights, const A* pixels, int width, A (&sum)[kRowsPerThread][PX]) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    A w[kRowsPerThread], x[PX];
    const Span whole = {0, true};
    load(weights + k * kMostRows, whole, w);
    A low[PX / 2], high[PX / 2];
    load(pixels + k * width, whole, low);
    load(pixels + k * width + width / 2, whole, high);
#pragma unroll
    for (int j = 0; j < PX / 2; ++j) {
      x[j] = low[j];
      x[PX / 2 + j] = high[j];
    }
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
#pragma unroll
      for (int j = 0; j < PX; ++j) sum[r][j] += w[r] * x[j];
    }
  }
}

// Computes the block's tile. `weights`: 2 * kDepth * kMostRows, `pixels`: 2 * kPixelBuffer shared values; the tile
// takes the place of the latter. Ends with a barrier.
template <class S>
FUSECELL_DEVICE Tile<S> correlate_tile(const CorrelateArgs<S>& args, Accumulate<S>* weights, Accumulate<S>* pixels) {
  using A = Accumulate<S>;
  constexpr int PX = kPixelsPerThread<A>;
  const int pixel_shift = 8 - args.group_shift, width_shift = pixel_shift + kPixelsShift<A>, width = 1 << width_shift;
  const Tile<S> tile = {pixels, width_shift, int64_t(blockIdx.y) << (args.group_shift + 2),
                        int64_t(blockIdx.x) << width_shift};
  const int row_group = int(threadIdx.x) >> pixel_shift, pixel_group = int(threadIdx.x) & ((1 << pixel_shift) - 1);
  const int my_row = row_group * kRowsPerThread, my_pixel = pixel_group * (PX / 2);

  A sum[kRowsPerThread][PX] = {};
  StageLoader<S> loader(args, tile, weights, pixels);
  const int64_t first_stages = args.operand[0].stages, stages = first_stages + args.operand[1].stages;
  int buffer = 0;
  for (int64_t next = 0; next <= stages; ++next) {  // loads stage `next` while it multiplies the one before
    const bool loads = next < stages;
    if (next > 0) {
      device::copy_async_wait<0>();
      __syncthreads();
    }
    if (loads) {
      const int which = next < first_stages ? 0 : 1;
      const int64_t stage = which == 0 ? next : next - first_stages;
      if (stage == 0) loader.select(which);
      loader.start_weights(stage, buffer);
      loader.fetch_pixels(stage);
    }
    if (next > 0) {
      const int from = buffer ^ 1;
      multiply_stage(weights + from * kDepth * kMostRows + my_row, pixels + from * kPixelBuffer<A> + my_pixel, width,
                     sum);
    }
    if (loads) loader.store_pixels(buffer);
    buffer ^= 1;
  }
  __syncthreads();  // the last products are taken: the buffers are free
#pragma unroll
  for (int r = 0; r < kRowsPerThread; ++r) {
    Chunk<A, PX / 2> low, high;
#pragma unroll
    for (int j = 0; j < PX / 2; ++j) {
      low.element[j] = sum[r][j];
      high.element[j] = sum[r][PX / 2 + j];
    }
    A* to = pixels + (my_row + r) * width + my_pixel;
    *reinterpret_cast<Chunk<A, PX / 2>*>(to) = low;
    *reinterpret_cast<Chunk<A, PX / 2>*>(to + width / 2) = high;
  }
  __syncthreads();
  return tile;
}

// The endings handle this many pixels at once: 16 bytes of sums.
template <class S>
constexpr int kEndPack = 16 / int(sizeof(Accumulate<S>));

// Runs f(row of the tile, pixel of the tile, span, sample, pixel of the sample) for every piece of the tile that lies
// within the result: kEndPack pixels at once where `whole`, else one. rows: how many the tile has for f.
template <class S, class F>
FUSECELL_DEVICE void for_pieces(const CorrelateArgs<S>& args, const Tile<S>& tile, int rows, bool whole, F&& f) {
  const int step_shift = whole ? kPixelsShift<Accumulate<S>> - 1 : 0, row_shift = tile.width_shift - step_shift;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows << row_shift; i += kThreads) {
    const int row = i >> row_shift, in_tile = (i & ((1 << row_shift) - 1)) << step_shift;
    const int64_t at = tile.first + in_tile, n = quotient(at, args.pixels);
    if (n < args.samples) f(row, in_tile, Span{1 << step_shift, whole}, n, at - n * args.pixels);
  }
}

}  // namespace fusecell::cuda
