#pragma once
// The convolution as a matrix product: rows of packed weights times pixels gathered from the images, a block of threads
// per tile of the result. The tile ends in shared memory, where whatever follows the convolution picks it up: the
// gates, their adjoint, or a plain store. tensor_tile.cuh is the same on tensor cores.
//
// Method: kDepth taps at a time, two buffers, one barrier per stage. Weights come by asynchronous copies; pixels are
// fetched into registers before the products of the stage before are taken and put into shared memory after them, so
// that their loads overlap the arithmetic whatever they need (bounds, a mask, a conversion); half of a stage at a time,
// which takes half of the registers.

#include "cuda/gather.cuh"

namespace fusecell::cuda {

constexpr int kDepth = 8;          // taps of a stage
constexpr int kParts = 2;          // of a stage, in each of which a thread fetches, multiplies and stores
constexpr int kRowsPerThread = 4;  // one channel's gates
constexpr int kMostRows = 64;      // of a tile
template <class A>
constexpr int kPixelsPerThread = sizeof(A) == 4 ? 8 : 4;
// A tile has 4 * groups rows, groups being 4, 8 or 16: its pixels times its groups, as a power of two.
template <class S>
constexpr int kWidthShift = sizeof(Accumulate<S>) == 4 ? 11 : 10;
static_assert((1 << kWidthShift<float>) == kThreads * kPixelsPerThread<float> &&
              (1 << kWidthShift<double>) == kThreads * kPixelsPerThread<double>);

// What a kernel needs of shared memory: two buffers of weights, and the tile, which takes the place of two buffers of
// pixels; those are largest with 4 groups.
constexpr int kWeightBuffer = kDepth * kMostRows;
constexpr int kWeightBuffers = 2 * kWeightBuffer;
template <class S>
constexpr int kPixelBuffer = kDepth << (kWidthShift<S> - 2);
template <class S>
constexpr int kTileBuffer = 2 * kPixelBuffer<S>;
static_assert(kRowsPerThread * kThreads * kPixelsPerThread<float> == kTileBuffer<float> &&
              kRowsPerThread * kThreads * kPixelsPerThread<double> == kTileBuffer<double>);

// Of a multiprocessor: two blocks hide each other's waits, where the registers of float64 leave room for one.
template <class S>
constexpr int kBlocksAtOnce = sizeof(Accumulate<S>) == 4 ? 2 : 1;

template <class S>
struct Operand {
  Images<S> images;
  Geometry geometry;
  const Tap* taps;   // [depth]; those past the last read nothing
  const S* weights;  // [depth][rows], zero past the last
  int depth;         // a multiple of kDepth; 0: this operand is zero
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
  static constexpr int kMostLoads = kPixelBuffer<S> / kThreads / kParts;
  static constexpr int kColumns = kWidthShift<S> - 2 > 8 ? 2 : 1;  // pixels of a thread

  FUSECELL_DEVICE_METHOD StageLoader(const CorrelateArgs<S>& args, const Tile<S>& tile, S* weights, A* pixels)
      : args_(args), tile_(tile), weights_(weights), pixels_(pixels) {}

  // Points at an operand; its pixels' places in the image are found once.
  FUSECELL_DEVICE_METHOD void select(int which) {
    const Operand<S>& operand = args_.operand[which];
    packed_ = operand.weights;
    taps_ = operand.taps;
    geometry_ = operand.geometry;
    masks_ = operand.images.mask != nullptr;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t at = tile_.first + column_in_tile(c), n = quotient(at, args_.pixels);
      column_[c] = Column<S>();  // beyond the last pixel: reads as zero
      if (n < args_.samples) {
        column_[c] = column_of(operand.images, geometry_, n, at - n * args_.pixels);
      }
    }
  }

  FUSECELL_DEVICE_METHOD void start_weights(int first_tap, int buffer) const {
    constexpr int kEach = 16 / int(sizeof(S));
    const int row_shift = args_.group_shift + 2, pieces = (kDepth << row_shift) / kEach;
    for (int i = int(threadIdx.x); i < pieces; i += kThreads) {
      const int k = (i * kEach) >> row_shift, r = (i * kEach) & ((1 << row_shift) - 1);
      device::copy_async_16(weights_ + buffer * kWeightBuffer + k * kMostRows + r,
                            packed_ + int64_t(first_tap + k) * args_.rows + tile_.row + r);
    }
    device::copy_async_commit();
  }

  // All loads of a part at once, then the mask's: nothing branches between two of them.
  FUSECELL_DEVICE_METHOD void fetch_pixels(int first_tap, int part) {
    if (divides(geometry_)) return;
    const int loads = loads_of_part(), first = part * loads;
#pragma unroll
    for (int i = 0; i < kMostLoads; ++i) {
      if (i % 4 == 0) device::keep_loads_apart();
      if (i < loads) fetched_[i] = gather<false>(column_[i % kColumns], geometry_, tap(first_tap, first + i));
    }
    if (!masks_) return;
#pragma unroll
    for (int i = 0; i < kMostLoads; ++i) {
      if (i % 4 == 0) device::keep_loads_apart();
      if (i < loads) fetched_[i] = masked(fetched_[i], column_[i % kColumns], geometry_, tap(first_tap, first + i));
    }
  }

  // What divides is gathered only now, one by one: the gradient of a strided convolution's input, which has no mask.
  FUSECELL_DEVICE_METHOD void store_pixels(int first_tap, int part, int buffer) const {
    const int loads = loads_of_part(), first = part * loads;
    if (divides(geometry_)) {
#pragma unroll 1
      for (int i = first; i < first + loads; ++i) {
        const Column<S> column = i % kColumns == 0 ? column_[0] : column_[kColumns - 1];
        put(buffer, i, gather<true>(column, geometry_, tap(first_tap, i)));
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kMostLoads; ++i) {
      if (i < loads) put(buffer, first + i, fetched_[i]);
    }
  }

 private:
  FUSECELL_DEVICE_METHOD int loads_of_part() const { return tile_.width() * kDepth / kThreads / kParts; }
  // The i-th load of this thread. Its pixel is one of kColumns, since the width divides kColumns * kThreads.
  FUSECELL_DEVICE_METHOD int column_in_tile(int i) const {
    return (i * kThreads + int(threadIdx.x)) & (tile_.width() - 1);
  }
  FUSECELL_DEVICE_METHOD Tap tap(int first_tap, int i) const { return taps_[first_tap + depth_of(i)]; }
  FUSECELL_DEVICE_METHOD void put(int buffer, int i, S value) const {
    const int at = i * kThreads + int(threadIdx.x);  // column_in_tile(i) of depth_of(i)
    pixels_[buffer * kPixelBuffer<S> + at] = widen(value);
  }
  FUSECELL_DEVICE_METHOD int depth_of(int i) const {
    const int shift = tile_.width_shift, thread = int(threadIdx.x);
    if (kColumns > 1) return (i * kThreads + thread) >> shift;
    return i * (kThreads >> shift) + (thread >> shift);  // the same, in fewer instructions
  }

  const CorrelateArgs<S>& args_;
  const Tile<S>& tile_;
  S* weights_;
  A* pixels_;
  const S* packed_ = nullptr;
  const Tap* taps_ = nullptr;
  Geometry geometry_ = {};
  bool masks_ = false;
  Column<S> column_[kColumns];
  S fetched_[kMostLoads];
};

// A thread sums 4 rows times two runs of kPixelsPerThread / 2 pixels, 16 bytes each.
template <class S>
class Products {
 public:
  using A = Accumulate<S>;

  FUSECELL_DEVICE_METHOD Products(int group_shift, int width_shift) : width_(1 << width_shift) {
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

// Computes the block's tile. weights: kWeightBuffers, values: kTileBuffer<S> shared elements; the tile takes the place
// of the pixels. Ends with a barrier.
template <class S>
FUSECELL_DEVICE Tile<S> correlate_tile(const CorrelateArgs<S>& args, S* weights, Accumulate<S>* values) {
  const int width_shift = kWidthShift<S> - args.group_shift;
  const Tile<S> tile = {values, width_shift, int64_t(blockIdx.y) << (args.group_shift + 2),
                        int64_t(blockIdx.x) << width_shift};
  Accumulate<S>* pixels = values;
  Products<S> products(args.group_shift, width_shift);
  StageLoader<S> loader(args, tile, weights, pixels);
  const int of_first = args.operand[0].depth, taps = of_first + args.operand[1].depth;
  int buffer = 0;
  for (int next = 0; next < taps + kDepth; next += kDepth) {  // loads from tap `next` on, multiplies those before
    const bool loads = next < taps;
    const int tap = next < of_first ? next : next - of_first;
    if (next > 0) {
      device::copy_async_wait<0>();
      __syncthreads();
    }
    if (loads) {
      if (tap == 0) loader.select(next < of_first ? 0 : 1);
      loader.start_weights(tap, buffer);
    }
    const int from = buffer ^ 1;
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
      if (loads) loader.fetch_pixels(tap, part);
      if (next > 0) products.take(weights + from * kWeightBuffer, pixels + from * kPixelBuffer<S>, part);
      if (loads) loader.store_pixels(tap, part, buffer);
    }
    buffer ^= 1;
  }
  __syncthreads();  // the last products are taken: the buffers are free
  products.store(values);
  __syncthreads();
  return tile;
}

// The endings handle this many pixels at once: 16 bytes of sums.
template <class S>
constexpr int kEndPack = 16 / int(sizeof(Accumulate<S>));
template <class S>
constexpr int kEndShift = kEndPack<S> == 4 ? 2 : 1;

// Runs f(row of the tile, pixel of the tile, span, sample, pixel of the sample) for every piece of the tile that lies
// within the result: kEndPack pixels at once where `whole`, else one. rows: how many the tile has for f.
template <class S, class F>
FUSECELL_DEVICE void for_pieces(const CorrelateArgs<S>& args, const Tile<S>& tile, int rows, bool whole, F&& f) {
  const int step_shift = whole ? kEndShift<S> : 0, row_shift = tile.width_shift - step_shift;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows << row_shift; i += kThreads) {
    const int row = i >> row_shift, in_tile = (i & ((1 << row_shift) - 1)) << step_shift;
    const int64_t at = tile.first + in_tile, n = quotient(at, args.pixels);
    if (n < args.samples) f(row, in_tile, Span{1 << step_shift, whole}, n, at - n * args.pixels);
  }
}

}  // namespace fusecell::cuda
