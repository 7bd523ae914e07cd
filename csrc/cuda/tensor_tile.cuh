#pragma once
// The convolution as a matrix product on tensor cores, of images with channels last: pixels times packed weights, K
// being the taps and their channels. Runs from sm_80 on.
//
// Method: K goes by stages of 128 bytes (64 channels of 16 bits, 32 of float), 8 pieces of 16 bytes each of which is
// neighbouring channels at one place of the kernel. A stage's pixels and weights come by asynchronous copies, several
// stages ahead, one barrier a stage; what lies outside of an image is copied as zeros. In shared memory piece p of row
// r stands at place p ^ (r % 8), so that neither copies nor matrix loads meet in a bank. The sums stay in registers,
// and so the order of the packed rows is made for the ending: a lane finds 4 neighbouring channels, all of their gates.

#include "cuda/gather.cuh"

namespace fusecell::cuda {

constexpr int kPieces = 8;      // of a stage
constexpr int kGroupRows = 64;  // packed rows of a warp: 16 channels' gates, or 64 channels
constexpr int kGroupChannels = 16;
constexpr int kWarpPixels = 32;
constexpr int kTensorPack = 4;  // channels of a lane
constexpr int kMostTilePixels = 256;

// The tile of a block: 64 << group_shift packed rows times 64 << pixel_shift pixels. Warps have kWarpPixels times
// kGroupRows of it each; where that takes fewer than all 8, every one has a slice of the sum instead.
struct TileSize {
  int group_shift, pixel_shift;

  constexpr FUSECELL_HD_METHOD int rows() const { return kGroupRows << group_shift; }
  constexpr FUSECELL_HD_METHOD int pixels() const { return 64 << pixel_shift; }
  constexpr FUSECELL_HD_METHOD int stage_bytes() const { return (rows() + pixels()) * kPieces * 16; }
  constexpr FUSECELL_HD_METHOD bool sliced() const { return group_shift + pixel_shift == 0; }
};
constexpr TileSize kWideTile = {0, 2}, kSquareTile = {1, 1}, kSmallTile = {0, 0};
constexpr int kSlices = 4;            // of a small tile
constexpr int kRowsAlignment = 1024;  // of a stage's rows: 8 of them

// One convolution's part of the sum.
template <class S>
struct TensorOperand {
  Images<S> images;  // channels last: a pixel's pieces are neighbours, aligned, and zero past the last channel
  Geometry geometry;
  const Tap* taps;   // [stages][kPieces]; those past the last read nothing
  const S* weights;  // [tiles of rows][stages][rows of a tile][kPieces] pieces, as they stand in shared memory
  int stages;        // 0: this operand is zero
  bool follows;      // the launch before makes the images, and this one may have begun before that has ended
};

template <class S>
struct TensorTileArgs {
  TensorOperand<S> operand[2];
  TileSize size;
  int buffers;      // stages in shared memory: 2 to 4
  bool warpgroups;  // multiply by warpgroups, where the code can
  int64_t samples, pixels;
};

// Which channel and which of 4 (a gate, or a run of 16 channels) packed row n of a group is, so that lane % 4 = q has
// channels 4 q to 4 q + 3 of each: its columns of the product's eight 16 x 8 matrices are 8 j + 2 q and the next.
struct PackedRow {
  int channel, run;
};
constexpr FUSECELL_HD_METHOD PackedRow packed_row(int n) {
  const int j = n / 8, q = n % 8 / 2;
  return {4 * q + j % 2 * 2 + n % 2, j / 2};
}

// Where a piece stands in its row.
constexpr FUSECELL_HD_METHOD int place_of_piece(int row, int piece) { return row * kPieces + (piece ^ (row % 8)); }

// Where a pixel of the tile reads.
template <class S>
struct alignas(16) TensorColumn {
  const S* image;
  int32_t h, w;
};

// What a block keeps of where its pixels and its next stages read.
template <class S>
struct TensorPlaces {
  TensorColumn<S> columns[2][kMostTilePixels];
  Tap taps[kMostBuffers][kPieces];         // of the stage that is started while this buffer's is multiplied
  device::Arrivals weights[kMostBuffers];  // of warpgroups
};

// Whether the block multiplies by warpgroups. What follows from it is compiled for 16 bits only.
template <class S>
FUSECELL_DEVICE bool by_warpgroups(const TensorTileArgs<S>& args) {
  return sizeof(S) == 2 && device::has_warpgroup_products() && args.warpgroups;
}

// The copies of one stage.
template <class S>
class TensorLoader {
 public:
  // places, dynamic: shared. A barrier has to follow.
  FUSECELL_DEVICE_METHOD TensorLoader(const TensorTileArgs<S>& args, TensorPlaces<S>* places, unsigned char* dynamic)
      : args_(args),
        places_(places),
        dynamic_(dynamic),
        offset_(-device::shared_address(dynamic) & (kRowsAlignment - 1)) {
    const int64_t first = int64_t(blockIdx.x) * args.size.pixels();
    const int pixel = int(threadIdx.x);
    if (by_warpgroups(args) && pixel < args.buffers) device::begin_arrivals(&places->weights[pixel]);
    if (pixel >= args.size.pixels()) return;
    const int64_t n = quotient(first + pixel, args.pixels), p = first + pixel - n * args.pixels;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const TensorOperand<S>& operand = args.operand[which];
      Column<S> column;  // beyond the last pixel: reads as zero
      if (operand.stages > 0 && n < args.samples) column = column_of(operand.images, operand.geometry, n, p);
      places->columns[which][pixel] = {column.image, column.h, column.w};
    }
  }

  FUSECELL_DEVICE_METHOD int stages() const { return args_.operand[0].stages + args_.operand[1].stages; }
  FUSECELL_DEVICE_METHOD S* pixels(int buffer) const {
    return reinterpret_cast<S*>(dynamic_ + (offset_ + buffer * args_.size.stage_bytes()));
  }
  FUSECELL_DEVICE_METHOD S* weights(int buffer) const {
    return pixels(buffer) + args_.size.pixels() * kPieces * kPiece<S>;
  }

  // A stage of the first ones; and one that is started while `multiplied` is. Where the others read comes with the
  // copies of a stage before: from memory it would come too late.
  FUSECELL_DEVICE_METHOD void start_first(int stage) const { start(stage, stage, *taps(stage, piece())); }
  FUSECELL_DEVICE_METHOD void start_next(int stage, int buffer, int multiplied) const {
    start(stage, buffer, places_->taps[multiplied][piece()]);
  }
  // For warpgroups, of a buffer's first stage, its second (odd) and so on.
  FUSECELL_DEVICE_METHOD void wait_for_weights(int buffer, bool odd) const {
    device::wait_for_bulk(&places_->weights[buffer], odd);
  }

 private:
  FUSECELL_DEVICE_METHOD void start(int stage, int buffer, const Tap& tap) const {
    const int of_first = args_.operand[0].stages, which = stage < of_first ? 0 : 1;
    const TensorOperand<S>& operand = args_.operand[which];
    const int local = which == 0 ? stage : stage - of_first, later = stage + args_.buffers - 1;
    copy_weights(operand, local, buffer);
    if (later < stages() && int(threadIdx.x) < kPieces) {
      device::copy_async_16(&places_->taps[buffer][piece()], taps(later, piece()));
    }
    if (operand.follows && local == 0) device::wait_for_launch_before();
    copy_pixels(operand, places_->columns[which], tap, pixels(buffer));
  }

  FUSECELL_DEVICE_METHOD const Tap* taps(int stage, int piece) const {
    const int of_first = args_.operand[0].stages;
    if (stage < of_first) return args_.operand[0].taps + stage * kPieces + piece;
    return args_.operand[1].taps + (stage - of_first) * kPieces + piece;
  }

  static FUSECELL_DEVICE_METHOD int piece() { return int(threadIdx.x) % kPieces; }

  // They stand in memory as they will here: for warpgroups, which read what another unit wrote, one copy has them all.
  FUSECELL_DEVICE_METHOD void copy_weights(const TensorOperand<S>& operand, int stage, int buffer) const {
    const int pieces = args_.size.rows() * kPieces;
    const S* from = operand.weights + (int64_t(blockIdx.y) * operand.stages + stage) * pieces * kPiece<S>;
    S* to = weights(buffer);
    if (by_warpgroups(args_)) {
      device::copy_bulk(threadIdx.x == 0, to, from, pieces * 16, &places_->weights[buffer]);
      return;
    }
    for (int i = int(threadIdx.x); i < pieces; i += kThreads) {
      device::copy_async_16(to + i * kPiece<S>, from + i * kPiece<S>);
    }
  }

  // A thread copies the same piece of every 32nd pixel.
  FUSECELL_DEVICE_METHOD void copy_pixels(const TensorOperand<S>& operand, const TensorColumn<S>* columns,
                                          const Tap& tap, S* to) const {
    const Geometry& g = operand.geometry;
    const int64_t stride = operand.images.frames.by.pixel;
    const int first = int(threadIdx.x) / kPieces;
    to += place_of_piece(first, piece()) * kPiece<S>;
#pragma unroll 1
    for (int r = first; r < args_.size.pixels(); r += kThreads / kPieces) {
      const TensorColumn<S> column = columns[r];
      uint32_t p = 0;
      const bool inside = divides(g) ? meets_place<true>(column, g, tap, p) : meets_place<false>(column, g, tap, p);
      device::copy_async_16_or_zero(to, inside ? column.image + int64_t(p) * stride + tap.channel : operand.weights,
                                    inside);
      to += kThreads * kPiece<S>;
    }
  }

  template <bool kDivides>
  static FUSECELL_DEVICE_METHOD bool meets_place(const TensorColumn<S>& column, const Geometry& g, const Tap& tap,
                                                 uint32_t& p) {
    Column<S> at;
    at.h = column.h;
    at.w = column.w;
    return meets<kDivides>(at, g, tap, p);
  }

  const TensorTileArgs<S>& args_;
  TensorPlaces<S>* places_;
  unsigned char* dynamic_;
  int offset_;  // of the first buffer: the base is known when this is compiled
};

// What a thread finds of the tile: 4 times 4 runs of 4 channels, see packed_row, each at one pixel and of one group; of
// a small tile one of the 4. They lie in shared memory: in registers, those of all pixels would leave none for the
// ending of one.
struct ParkedSums {
  const Chunk<float, 4>* at;
  int first_pixel, pixels_apart, first_group, groups_apart;  // of the tile; the first two, and from them to the others
  int channel;                                               // of a run, the first
  int slice = -1;                                            // this thread's of a small tile, else -1

  FUSECELL_DEVICE_METHOD int first() const { return slice < 0 ? 0 : slice; }
  FUSECELL_DEVICE_METHOD int step() const { return slice < 0 ? 1 : kSlices; }
  FUSECELL_DEVICE_METHOD int pixel(int i) const { return first_pixel + i % 2 * 8 + i / 2 * pixels_apart; }
  FUSECELL_DEVICE_METHOD int group(int i) const { return first_group + i / 2 * groups_apart; }
  FUSECELL_DEVICE_METHOD void load(int i, int run, float (&to)[kTensorPack]) const {
    const Chunk<float, 4>* sums = at + (4 * i + run) * kThreads;
#pragma unroll
    for (int v = 0; v < kTensorPack; ++v) to[v] = sums->element[v];
    if (slice < 0) return;
    for (int other = 1; other < kSlices; ++other) {
      sums += kThreads / kSlices;
#pragma unroll
      for (int v = 0; v < kTensorPack; ++v) to[v] += sums->element[v];
    }
  }
};
constexpr int kParked = 4;  // of a thread
constexpr int kParkedBytes = kParked * 4 * kThreads * 16;
static_assert(kParkedBytes <= 2 * kWideTile.stage_bytes() && kParkedBytes <= 2 * kSquareTile.stage_bytes() &&
              kParkedBytes <= 4 * kSmallTile.stage_bytes());

// Sums [2][8][4], as a product leaves them: of either half the i-th and the next pixel's.
FUSECELL_DEVICE void park(const float (&sum)[2][8][4], Chunk<float, 4>* parked) {
#pragma unroll
  for (int i = 0; i < kParked; ++i) {
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const float (&left)[4] = sum[i / 2][2 * run], (&right)[4] = sum[i / 2][2 * run + 1];
      const int row = i % 2 * 2;
      parked[(4 * i + run) * kThreads] = {{left[row], left[row + 1], right[row], right[row + 1]}};
    }
  }
}

// By warps: 32 pixels times 64 packed rows each. kSliced: a slice of every stage each.
template <class S, bool kSliced>
class WarpSums {
 public:
  FUSECELL_DEVICE_METHOD explicit WarpSums(const TileSize& size) {
    constexpr int kWarps = kThreads / 32 / (kSliced ? kSlices : 1);
    const int warp = int(threadIdx.x) / 32 % kWarps;
    slice_ = int(threadIdx.x) / 32 / kWarps;
    group_ = warp & ((1 << size.group_shift) - 1);
    pixel_ = (warp >> size.group_shift) * kWarpPixels;
  }

  FUSECELL_DEVICE_METHOD void take(const S* pixels, const S* weights) {
    // Of the four matrices of a load two are rows above each other, two pieces side by side.
    const int lane = int(threadIdx.x) % 32, line = lane % 8, low = lane / 8 % 2, high = lane / 16;
    const S* const type = nullptr;
#pragma unroll
    for (int i = 0; i < kPieces / 2 / (kSliced ? kSlices : 1); ++i) {
      const int k = 2 * (kSliced ? slice_ : i);
      uint32_t x[kWarpPixels / 16][4];
#pragma unroll
      for (int m = 0; m < kWarpPixels / 16; ++m) {
        const int row = pixel_ + 16 * m + 8 * low + line;
        device::load_matrices(pixels + (row * kPieces + ((k + high) ^ line)) * kPiece<S>, x[m]);  // line: row % 8
        device::round_elements(x[m], type);
      }
#pragma unroll
      for (int j = 0; j < kGroupRows / 16; ++j) {
        uint32_t w[4];
        const int row = group_ * kGroupRows + 16 * j + 8 * high + line;
        device::load_matrices(weights + (row * kPieces + ((k + low) ^ line)) * kPiece<S>, w);
        device::round_elements(w, type);
        const uint32_t left[2] = {w[0], w[1]}, right[2] = {w[2], w[3]};
#pragma unroll
        for (int m = 0; m < kWarpPixels / 16; ++m) {
          device::multiply_add(x[m], left, sum_[m][2 * j], type);
          device::multiply_add(x[m], right, sum_[m][2 * j + 1], type);
        }
      }
    }
  }

  FUSECELL_DEVICE_METHOD ParkedSums parked(Chunk<float, 4>* at) const {
    park(sum_, at + threadIdx.x);
    const int lane = int(threadIdx.x) % 32, pixel = pixel_ + lane / 4, channel = lane % 4 * kTensorPack;
    if (!kSliced) return {at + threadIdx.x, pixel, 16, group_, 0, channel};
    __syncthreads();
    return {at + threadIdx.x % (kThreads / kSlices), pixel, 16, group_, 0, channel, slice_};
  }

 private:
  int group_, pixel_, slice_;  // the warp's rows and pixels of the tile, and its part of a stage
  float sum_[kWarpPixels / 16][kGroupRows / 8][4] = {};
};

// By warpgroups: 64 pixels times 128 packed rows each, or kWide 128 times 64, as two halves of 64 times 64. One shape
// in a loop: of products in two branches with the same sums, nvcc 13.0 would wait for each before the next.
template <class S, bool kWide>
class WarpgroupSums {
 public:
  FUSECELL_DEVICE_METHOD explicit WarpgroupSums(const TileSize& size)
      : pixel_(int(threadIdx.x) / 128 * (size.pixels() / 2)) {}

  // Has not ended when it returns.
  FUSECELL_DEVICE_METHOD void begin(const S* pixels, const S* weights) {
    constexpr int kRow = kPieces * kPiece<S>;
    const auto x = device::matrix_rows(pixels + pixel_ * kRow), w = device::matrix_rows(weights);
    const auto more = device::matrix_rows(pixels + (pixel_ + 64) * kRow);
    const S* const type = nullptr;
    device::products_own(sum_);
    device::begin_products();
#pragma unroll
    for (int k = 0; k < kPieces; k += 2) {
      if constexpr (kWide) {
        device::warpgroup_multiply_add(x.from_piece(k), w.from_piece(k), sum_[0], type);
        device::warpgroup_multiply_add(more.from_piece(k), w.from_piece(k), sum_[1], type);
      } else {
        device::warpgroup_multiply_add(x.from_piece(k), w.from_piece(k), sum_, type);
      }
    }
    device::commit_products();
  }

  FUSECELL_DEVICE_METHOD void end() {
    device::wait_for_products<0>();
    device::products_own(sum_);
  }

  FUSECELL_DEVICE_METHOD ParkedSums parked(Chunk<float, 4>* at) const {
    park(sum_, at + threadIdx.x);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32 % 4;
    return {at + threadIdx.x, pixel_ + 16 * warp + lane / 4, kWide ? 64 : 0, 0, kWide ? 0 : 1, lane % 4 * kTensorPack};
  }

 private:
  int pixel_;
  float sum_[2][8][4] = {};
};

// Until the oldest of the stages under way is there.
FUSECELL_DEVICE void wait_for_oldest(int buffers) {
  if (buffers == 2) {
    device::copy_async_wait<0>();
  } else if (buffers == 3) {
    device::copy_async_wait<1>();
  } else {
    device::copy_async_wait<2>();
  }
}

// multiply(buffer, odd, load_next) for every stage, with one barrier, after which it calls load_next: all have done
// with the stage before then, whose buffer is the next one's. odd: that of the buffer's stages it is the second, fourth
// ...
template <class S, class Multiply>
FUSECELL_DEVICE void for_stages(const TensorLoader<S>& loader, int buffers, Multiply&& multiply) {
  const int stages = loader.stages(), ahead = buffers - 1;
  for (int stage = 0; stage < ahead; ++stage) {
    if (stage < stages) loader.start_first(stage);
    device::copy_async_commit();
  }
  int buffer = 0, next = ahead;  // of the stage that is multiplied, of the one that is loaded
  bool odd = false;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_oldest(buffers);
    multiply(buffer, odd, [&] {
      if (stage + ahead < stages) loader.start_next(stage + ahead, next, buffer);
      device::copy_async_commit();
    });
    odd ^= buffer + 1 == buffers;
    buffer = buffer + 1 < buffers ? buffer + 1 : 0;
    next = next + 1 < buffers ? next + 1 : 0;
  }
  device::wait_for_launch_before();  // here at the latest, should what follows have had no stage
  __syncthreads();                   // all have done with the buffers
}

template <bool kSliced, class S>
FUSECELL_DEVICE ParkedSums sums_by_warps(const TensorTileArgs<S>& args, const TensorLoader<S>& loader,
                                         Chunk<float, 4>* parked) {
  WarpSums<S, kSliced> sums(args.size);
  for_stages(loader, args.buffers, [&](int buffer, bool, auto&& load_next) {
    __syncthreads();
    load_next();
    sums.take(loader.pixels(buffer), loader.weights(buffer));
  });
  return sums.parked(parked);
}

template <bool kWide, class S>
FUSECELL_DEVICE ParkedSums sums_by_warpgroups(const TensorTileArgs<S>& args, const TensorLoader<S>& loader,
                                              Chunk<float, 4>* parked) {
  WarpgroupSums<S, kWide> sums(args.size);
  for_stages(loader, args.buffers, [&](int buffer, bool odd, auto&& load_next) {
    loader.wait_for_weights(buffer, odd);
    device::show_to_products();
    __syncthreads();
    sums.begin(loader.pixels(buffer), loader.weights(buffer));
    load_next();
    sums.end();
  });
  return sums.parked(parked);
}

// places: shared; dynamic: shared_bytes of the tile. What comes after this may read whatever the launch before wrote,
// even where this one may begin before that has ended.
template <class S>
FUSECELL_DEVICE ParkedSums tensor_tile(const TensorTileArgs<S>& args, TensorPlaces<S>* places, unsigned char* dynamic) {
  const TensorLoader<S> loader(args, places, dynamic);
  const auto parked = reinterpret_cast<Chunk<float, 4>*>(dynamic);
  device::let_next_launch_begin();
  __syncthreads();
  if constexpr (sizeof(S) == 2) {
    if (by_warpgroups(args)) {
      if (args.size.group_shift == 0) return sums_by_warpgroups<true>(args, loader, parked);
      return sums_by_warpgroups<false>(args, loader, parked);
    }
  }
  if (args.size.sliced()) return sums_by_warps<true>(args, loader, parked);
  return sums_by_warps<false>(args, loader, parked);
}

// f(which of this thread's, sample, pixel, group of packed rows) for each that there is.
template <class S, class F>
FUSECELL_DEVICE void for_tensor_pixels(const TensorTileArgs<S>& args, const ParkedSums& sums, F&& f) {
  const int64_t first = int64_t(blockIdx.x) * args.size.pixels();
  const int64_t group = int64_t(blockIdx.y) << args.size.group_shift;
#pragma unroll 1
  for (int i = sums.first(); i < kParked; i += sums.step()) {
    const int64_t at = first + sums.pixel(i), n = quotient(at, args.pixels);
    if (n < args.samples) f(i, n, at - n * args.pixels, group + sums.group(i));
  }
}

// Of `channels`, those of a pack from `first` on.
FUSECELL_DEVICE Span channel_span(int64_t first, int64_t channels, bool whole) {
  const int64_t left = channels - first;
  return {left < kTensorPack ? int(left) : kTensorPack, whole};
}

// f(sample, pixel, channel, span, values) where a group is 64 channels, of `channels` in all.
template <class S, class F>
FUSECELL_DEVICE void for_tensor_channels(const TensorTileArgs<S>& args, const ParkedSums& sums, int64_t channels,
                                         bool whole, F&& f) {
  for_tensor_pixels(args, sums, [&](int i, int64_t n, int64_t p, int64_t group) {
#pragma unroll 1
    for (int run = 0; run < 4; ++run) {
      const int64_t first = group * kGroupRows + run * kGroupChannels + sums.channel;
      if (first >= channels) return;
      float value[kTensorPack];
      sums.load(i, run, value);
      f(n, p, first, channel_span(first, channels, whole), value);
    }
  });
}

}  // namespace fusecell::cuda
