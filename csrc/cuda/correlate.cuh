#pragma once
// The convolution as a matrix product: rows of packed weights times pixels gathered from the images, a block of threads
// per tile of the result. The tile ends in shared memory, where whatever follows the convolution picks it up: the
// gates, their adjoint, or a plain store.
//
// Method: some taps at a time, two buffers, one barrier per stage. Weights come by asynchronous copies; pixels are
// fetched into registers before the products of the stage before are taken and put into shared memory after them, so
// that their loads overlap the arithmetic whatever they need (bounds, a mask); half of a stage at a time, which takes
// half of the registers. What multiplies is in products.cuh.

#include "cuda/gather.cuh"
#include "cuda/products.cuh"

namespace fusecell::cuda {

// Of a multiprocessor: two blocks hide each other's waits, where the registers of float64 leave room for one.
template <class S>
constexpr int kBlocksAtOnce = sizeof(Accumulate<S>) == 4 ? 2 : 1;

template <class S>
struct Operand {
  Images<S> images;
  Geometry geometry;
  const Tap* taps;   // [depth]; those past the last read nothing
  const S* weights;  // [depth][rows], zero past the last
  int depth;         // a multiple of depth_of_stage<S>; 0: this operand is zero
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
  A* values;           // [4 * groups][pitch]
  int width_shift;     // its pixels, as a power of two
  int pitch;           // of its rows
  int64_t row, first;  // of its first row, of its first pixel among samples * pixels

  FUSECELL_DEVICE_METHOD int width() const { return 1 << width_shift; }
  FUSECELL_DEVICE_METHOD const A* at(int of_row, int pixel) const { return values + of_row * pitch + pixel; }
};

// The loads of one stage, and where they go.
template <class S, class Products>
class StageLoader {
 public:
  using Pixel = typename Products::Pixel;
  static constexpr int kMostLoads = Products::kPixels / kThreads / kParts;
  static constexpr int kColumns = kWidthShift<S> - kLeastGroupShift<S> > 8 ? 2 : 1;  // pixels of a thread

  FUSECELL_DEVICE_METHOD StageLoader(const CorrelateArgs<S>& args, const Tile<S>& tile, S* weights, Pixel* pixels)
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
    const int row_shift = args_.group_shift + 2, pieces = (depth() << row_shift) / kEach;
    for (int i = int(threadIdx.x); i < pieces; i += kThreads) {
      const int k = (i * kEach) >> row_shift, r = (i * kEach) & ((1 << row_shift) - 1);
      device::copy_async_16(weights_ + buffer * Products::kWeights + Products::place(k * kMostRows + r, kRowsShift),
                            packed_ + int64_t(first_tap + k) * args_.rows + tile_.row + r);
    }
    device::copy_async_commit();
  }

  // All loads of a part at once, then the mask's: nothing branches between two of them.
  FUSECELL_DEVICE_METHOD void fetch_pixels(int first_tap, int part) {
    if (divides(geometry_)) return;
    const int loads = Products::loads(tile_.width()) / kParts, first = part * loads;
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
    const int loads = Products::loads(tile_.width()) / kParts, first = part * loads;
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
  FUSECELL_DEVICE_METHOD int depth() const { return Products::depth(args_.group_shift); }
  // The i-th load of this thread. Its pixel is one of kColumns, since the width divides kColumns * kThreads.
  FUSECELL_DEVICE_METHOD int column_in_tile(int i) const {
    return (i * kThreads + int(threadIdx.x)) & (tile_.width() - 1);
  }
  FUSECELL_DEVICE_METHOD Tap tap(int first_tap, int i) const { return taps_[first_tap + depth_of(i)]; }
  FUSECELL_DEVICE_METHOD void put(int buffer, int i, S value) const {
    const int at = i * kThreads + int(threadIdx.x);  // column_in_tile(i) of depth_of(i)
    pixels_[buffer * Products::kPixels + Products::place(at, tile_.width_shift)] = Products::as_pixel(value);
  }
  FUSECELL_DEVICE_METHOD int depth_of(int i) const {
    const int shift = tile_.width_shift, thread = int(threadIdx.x);
    if (kColumns > 1) return (i * kThreads + thread) >> shift;
    return i * (kThreads >> shift) + (thread >> shift);  // the same, in fewer instructions
  }

  const CorrelateArgs<S>& args_;
  const Tile<S>& tile_;
  S* weights_;
  Pixel* pixels_;
  const S* packed_ = nullptr;
  const Tap* taps_ = nullptr;
  Geometry geometry_ = {};
  bool masks_ = false;
  Column<S> column_[kColumns];
  S fetched_[kMostLoads];
};

// Computes the block's tile. The tile takes the place of the pixels. Ends with a barrier.
template <class Products, class S>
FUSECELL_DEVICE Tile<S> make_tile(const CorrelateArgs<S>& args, S* weights, Accumulate<S>* values) {
  using Pixel = typename Products::Pixel;
  const int width_shift = kWidthShift<S> - args.group_shift;
  const Tile<S> tile = {values, width_shift, Products::pitch(width_shift),
                        int64_t(blockIdx.y) << (args.group_shift + 2), int64_t(blockIdx.x) << width_shift};
  Pixel* pixels = reinterpret_cast<Pixel*>(values);
  Products products(args.group_shift, width_shift);
  StageLoader<S, Products> loader(args, tile, weights, pixels);
  const int depth = Products::depth(args.group_shift);
  const int of_first = args.operand[0].depth, taps = of_first + args.operand[1].depth;
  int buffer = 0;
  for (int next = 0; next < taps + depth; next += depth) {  // loads from tap `next` on, multiplies those before
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
      if (next > 0) products.take(weights + from * Products::kWeights, pixels + from * Products::kPixels, part);
      if (loads) loader.store_pixels(tap, part, buffer);
    }
    buffer ^= 1;
  }
  __syncthreads();  // the last products are taken: the buffers are free
  products.store(values);
  __syncthreads();
  return tile;
}

// By tensor cores where the elements have 16 bits and the machine has them. weights: kWeightBuffers<S>, values:
// kTileBuffer<S> shared elements.
template <class S>
FUSECELL_DEVICE Tile<S> correlate_tile(const CorrelateArgs<S>& args, S* weights, Accumulate<S>* values) {
  if constexpr (sizeof(S) == 2) {
    if (device::has_tensor_cores()) return make_tile<TensorProducts<S>>(args, weights, values);
  }
  return make_tile<PlainProducts<S>>(args, weights, values);
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
