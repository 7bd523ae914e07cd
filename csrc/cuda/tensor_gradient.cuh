#pragma once
// The weights' gradient on tensor cores, of tensors with channels last: dW = dz^T image, a product of [rows, pixels] by
// [pixels, columns], where a column is one channel at one place of the kernel. And the gradients that are sums of dz
// alone or of dz times the cell's state: of peepholes, and of a bias per pixel.
//
// Method: 8 warps of 64 rows by 32 columns each. Both operands lie in global memory as [pixel][channel], which is the
// transpose of what a product wants; they are copied as they lie, 16 bytes at a time, several stages ahead, and turned
// on the way from shared memory into registers. A thread copies one piece of 16 bytes of every so many pixels, so that
// its tap stays in registers; where its pixels stand in the images is found once for all that copy them.

#include "cell/gates.h"
#include "cuda/gather.cuh"

namespace fusecell::cuda {

// -------------------------------------------------------------------------------------------------- dW = dz^T image
constexpr int kPieceBytes = 16;
template <class S>
constexpr int kPiece = kPieceBytes / int(sizeof(S));  // channels
constexpr int kPanelPieces = 8;                       // of a panel's row: 128 bytes, all banks once
template <class S>
constexpr int kPanelRow = kPanelPieces * kPiece<S>;

// A tile of the gradient has 64, 128 or 256 rows, and always as many values.
constexpr int kWarpRows = 64, kWarpColumns = 32;
constexpr int kTileValues = kThreads / 32 * kWarpRows * kWarpColumns;
template <class S>
constexpr int kStagePixels = 64 / int(sizeof(S));
constexpr int kColumnWindow = 128;  // pixels whose places are found at once: several stages

template <class S>
struct TensorGradientArgs {
  // Channel stride 1; every pixel of every image begins at a multiple of 16 bytes and has all of its pieces in memory,
  // zero beyond the last channel. No mask.
  Images<S> images;
  Geometry geometry;         // of the forward convolution; divide is 1
  const Tap* taps;           // [pieces]: kPiece channels from `channel` on at one place; those that fill up: kNowhere
  int pieces;                // a multiple of kPanelPieces
  const S* dz;               // [samples, pixels, dz_pitch]; zero from `rows` on, and where a step does not take place
  int64_t rows, dz_pitch;    // of dz: its channels; in memory, a multiple of kPiece
  int64_t channels, kernel;  // of the gradient [rows, channels, kernel]
  int64_t samples, pixels;
  int64_t pixels_per_part;  // a multiple of kStagePixels
  float* partial;           // [gridDim.z][rows][channels * kernel]
  float* bias_partial;      // [gridDim.z][rows]: sums of dz; null: not wanted
  int row_shift;            // the tile has kWarpRows << row_shift rows, row_shift being 0, 1 or 2
  int buffers;              // stages in shared memory: 2, 3 or 4
};

FUSECELL_HD int tensor_tile_columns(int row_shift) { return kTileValues / (kWarpRows << row_shift); }
// Of both operands, in elements.
template <class S>
FUSECELL_HD int tensor_stage(int row_shift) {
  return kStagePixels<S> * ((kWarpRows << row_shift) + tensor_tile_columns(row_shift));
}
// Dynamic shared memory: stages, then two windows of places.
template <class S>
FUSECELL_HD int tensor_gradient_shared(int row_shift, int buffers) {
  return buffers * tensor_stage<S>(row_shift) * int(sizeof(S)) + 2 * kColumnWindow * int(sizeof(Column<S>));
}

// Where a piece of a pixel lies in [panels][kStagePixels][kPanelRow]. The pixel's number turns the pieces of its row,
// so that neither 8 pieces of a pixel nor one piece of 8 pixels share banks: a step of 1, 2 or 4 pieces in a panel, or
// of as many pixels, turns a bit of a place.
template <class S>
FUSECELL_DEVICE int place_of_piece(int piece, int pixel) {
  const int panel = piece >> 3, turned = (piece ^ pixel) & (kPanelPieces - 1);
  return (panel * kStagePixels<S> + pixel) * kPanelRow<S> + turned * kPiece<S>;
}

// What a lane takes from a stage for one step of the product, as multiply_add wants it, and which rows and columns of
// the tile its sums are. A warp has kWarpRows rows, as 4 times 16, and kWarpColumns columns, as 4 times 8.
template <class S>
class Fragments {
 public:
  static constexpr int kDepth = 16;  // pixels of a step

  // A lane gives the place of a row of one of four matrices; two lie side by side, two above each other.
  FUSECELL_DEVICE_METHOD Fragments(int row, int column) : row_(row), column_(column), lane_(int(threadIdx.x) & 31) {
    const int line = lane_ & 7, low = lane_ >> 3 & 1, high = lane_ >> 4;
    left_ = place_of_piece<S>(row / kPiece<S> + low, 8 * high + line);
    right_ = place_of_piece<S>(column / kPiece<S> + high, 8 * low + line);
  }

  // 2 of the 4 times 16 rows.
  FUSECELL_DEVICE_METHOD void left(const S* dz, int step, int which, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int turn = 2 * (2 * which + i) * kPiece<S>;
      device::load_matrices_transposed(dz + (left_ ^ turn) + step * kDepth * kPanelRow<S>, a[i]);
    }
  }
  FUSECELL_DEVICE_METHOD void right(const S* image, int step, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t both[4];
      device::load_matrices_transposed(image + (right_ ^ (j * kPiece<S>)) + step * kDepth * kPanelRow<S>, both);
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
  }

  // Of value e of the sums of the i-th rows and j-th columns.
  FUSECELL_DEVICE_METHOD int row(int i, int e) const { return row_ + 16 * i + (lane_ >> 2) + e / 2 * 8; }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const { return column_ + 8 * j + (lane_ & 3) * 2 + e % 2; }

 private:
  int row_, column_, lane_, left_, right_;
};

// Of float, which no instruction turns: a lane reads whole pieces, 4 rows of one pixel, and which of the product's rows
// they are is free to choose. Lane 4 g + t has pixel t's piece_of(g), so that no two of 8 lanes that are served at once
// share banks.
template <>
class Fragments<float> {
 public:
  static constexpr int kDepth = 8;

  FUSECELL_DEVICE_METHOD Fragments(int row, int column) : row_(row), column_(column), lane_(int(threadIdx.x) & 31) {
    left_ = place_of_piece<float>(row / kPiece<float> + piece_of(lane_ >> 2), lane_ & 3);
    right_ = place_of_piece<float>(column / kPiece<float> + piece_of(lane_ >> 2), lane_ & 3);
  }

  FUSECELL_DEVICE_METHOD void left(const float* dz, int step, int which, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<4> words = piece(dz + which * kStagePixels<float> * kPanelRow<float>, left_, step, half);
#pragma unroll
      for (int w = 0; w < 4; ++w) a[w / 2][2 * half + w % 2] = words.word[w];
    }
  }
  FUSECELL_DEVICE_METHOD void right(const float* image, int step, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<4> words = piece(image, right_, step, half);
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j][half] = words.word[j];
    }
  }

  FUSECELL_DEVICE_METHOD int row(int i, int e) const {
    return row_ + i / 2 * kPanelRow<float> + kPiece<float> * piece_of(lane_ >> 2) + i % 2 * 2 + e / 2;
  }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const {
    return column_ + kPiece<float> * piece_of(2 * (lane_ & 3) + e % 2) + j;
  }

 private:
  static FUSECELL_DEVICE_METHOD int piece_of(int group) { return (group >> 1) + (group & 1) * 4; }
  // half: pixels 4 to 7 of the step.
  static FUSECELL_DEVICE_METHOD Words<4> piece(const float* tile, int place, int step, int half) {
    const int at = (place ^ (half * 4 * kPiece<float>)) + (step * kDepth + half * 4) * kPanelRow<float>;
    return __builtin_bit_cast(Words<4>, *reinterpret_cast<const Chunk<float, 4>*>(tile + at));
  }

  int row_, column_, lane_, left_, right_;
};

// A fragment of ones: what is multiplied by it is summed.
FUSECELL_DEVICE uint32_t word_of_ones(const bfloat16*) { return 0x3F803F80u; }
FUSECELL_DEVICE uint32_t word_of_ones(const float16*) { return 0x3C003C00u; }
FUSECELL_DEVICE uint32_t word_of_ones(const float*) { return 0x3F800000u; }

// What rounding takes from floats: the sum of both has all that float has. Of 16 bits it takes nothing.
FUSECELL_DEVICE void take_rest(const uint32_t (&whole)[4], const uint32_t (&rounded)[4], uint32_t (&rest)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float difference = __builtin_bit_cast(float, whole[i]) - __builtin_bit_cast(float, rounded[i]);
    rest[i] = __builtin_bit_cast(uint32_t, difference);
  }
}

template <class S>
class TensorGradientBlock {
 public:
  FUSECELL_DEVICE_METHOD TensorGradientBlock(const TensorGradientArgs<S>& args, unsigned char* shared)
      : args_(args),
        tiles_(reinterpret_cast<S*>(shared)),
        columns_(reinterpret_cast<Column<S>*>(tiles_ + args.buffers * tensor_stage<S>(args.row_shift))),
        rows_(kWarpRows << args.row_shift),
        row_(int(blockIdx.y) * rows_),
        first_piece_(int(blockIdx.x) * (tensor_tile_columns(args.row_shift) / kPiece<S>)),
        first_(int64_t(blockIdx.z) * args.pixels_per_part),
        fragments_(warp_down() * kWarpRows, warp_across() * kWarpColumns) {
    const int64_t total = args.samples * args.pixels;
    end_ = first_ + args.pixels_per_part < total ? first_ + args.pixels_per_part : total;
    const int piece = first_piece_ + image_lines().piece;
    tap_ = piece < args.pieces ? args.taps[piece] : Tap{0, kNowhere, kNowhere};
    // Blocks of the first columns sum dz, too; of the warps that share rows, each a share of them.
    const int warps_across = kThreads / 32 >> args.row_shift;
    for (int i = 0; i < 4; ++i) {
      const bool mine = args.bias_partial && blockIdx.x == 0 && (i & (warps_across - 1)) == warp_across();
      if (mine) of_bias_ |= 1 << i;
    }
  }

  FUSECELL_DEVICE_METHOD void run() {
    const int stages = int((end_ - first_ + kPixels - 1) / kPixels), ahead = args_.buffers - 1;
    find_columns(0);
    __syncthreads();
    int to = 0;
#pragma unroll 1
    for (int next = 0; next < stages + ahead; ++next) {  // starts stage `next`, multiplies the one `ahead` before it
      const int from = to < ahead ? to + 1 : 0;
      if (next >= ahead) {
        wait();
        __syncthreads();  // that stage is there for all, and nobody reads the one before: its buffer is free
      }
      if (next < stages) fetch(next, buffer(to));
      device::copy_async_commit();  // past the last stage nothing, since wait() counts groups
      if (next >= ahead) multiply(buffer(from));
      to = from;
    }
    store();
  }

 private:
  static constexpr int kPixels = kStagePixels<S>, kStagesOfWindow = kColumnWindow / kPixels;
  static constexpr const S* kType = nullptr;

  FUSECELL_DEVICE_METHOD int warp_down() const { return int(threadIdx.x) >> 5 & ((1 << args_.row_shift) - 1); }
  FUSECELL_DEVICE_METHOD int warp_across() const { return int(threadIdx.x) >> 5 >> args_.row_shift; }

  // Which copies of a stage are this thread's: one piece of pixels `pixel`, `pixel + apart` and so on.
  struct Lines {
    int piece, pixel, apart;
  };
  // Of a tile of 1 << shift pieces.
  static FUSECELL_DEVICE_METHOD Lines lines(int shift) {
    return {int(threadIdx.x) & ((1 << shift) - 1), int(threadIdx.x) >> shift, kThreads >> shift};
  }
  static constexpr int kWarpRowsShift = sizeof(S) == 2 ? 3 : 4;  // pieces of kWarpRows, as a power of two
  static_assert(kWarpRows / kPiece<S> == 1 << kWarpRowsShift && kTileValues == 4 * kWarpRows * kWarpRows);
  FUSECELL_DEVICE_METHOD Lines dz_lines() const { return lines(kWarpRowsShift + args_.row_shift); }
  FUSECELL_DEVICE_METHOD Lines image_lines() const { return lines(kWarpRowsShift + 2 - args_.row_shift); }

  FUSECELL_DEVICE_METHOD S* buffer(int which) const { return tiles_ + which * tensor_stage<S>(args_.row_shift); }

  // For the stage that is multiplied next: of the groups, one a stage, all but the newest buffers - 2.
  FUSECELL_DEVICE_METHOD void wait() const {
    if (args_.buffers == 2) device::copy_async_wait<0>();
    if (args_.buffers == 3) device::copy_async_wait<1>();
    if (args_.buffers == 4) device::copy_async_wait<2>();
  }

  FUSECELL_DEVICE_METHOD void find_columns(int window) const {
    const int thread = int(threadIdx.x);
    if (thread >= kColumnWindow) return;
    const int64_t at = first_ + int64_t(window) * kColumnWindow + thread;
    Column<S> column;  // beyond the end: reads as zero
    if (at < end_) {
      const int64_t n = quotient(at, args_.pixels);
      column = column_of(args_.images, args_.geometry, n, at - n * args_.pixels);
    }
    columns_[(window & 1) * kColumnWindow + thread] = column;
  }

  // Starts the copies of a stage. The other window was last read before the barrier that came last.
  FUSECELL_DEVICE_METHOD void fetch(int stage, S* to) const {
    if (stage % kStagesOfWindow == 0) find_columns(stage / kStagesOfWindow + 1);
    fetch_dz(stage, to);
    fetch_image(stage, to + rows_ * kPixels);
  }

  FUSECELL_DEVICE_METHOD void fetch_dz(int stage, S* to) const {
    const auto [piece, pixel, apart] = dz_lines();
    const int64_t at = first_ + int64_t(stage) * kPixels, left = end_ - at;
    const int row = row_ + piece * kPiece<S>, inside = row >= args_.dz_pitch ? 0 : left < kPixels ? int(left) : kPixels;
    const S* from = args_.dz + (at + pixel) * args_.dz_pitch + row;
    for_lines(piece, pixel, apart, [&](int p, int place) {
      if (p < inside) {
        device::copy_async_16(to + place, from);
      } else {
        *reinterpret_cast<Words<4>*>(to + place) = {};
      }
      from += apart * args_.dz_pitch;
    });
  }

  FUSECELL_DEVICE_METHOD void fetch_image(int stage, S* to) const {
    const auto [piece, pixel, apart] = image_lines();
    const Column<S>* columns = columns_ + (stage & (2 * kStagesOfWindow - 1)) * kPixels;
    for_lines(piece, pixel, apart, [&](int p, int place) {
      const Column<S> column = columns[p];
      uint32_t in_image = 0;
      const bool inside = meets<false>(column, args_.geometry, tap_, in_image);
      // As a number, since outside of the image it is nobody's address.
      const uintptr_t from = reinterpret_cast<uintptr_t>(column.image) +
                             sizeof(S) * (uint64_t(in_image) * column.pixel + uint32_t(tap_.channel));
      device::copy_async_16_or_zero(to + place, reinterpret_cast<const void*>(from), inside);
    });
  }

  // f(pixel of the stage, place of its piece)
  template <class F>
  FUSECELL_DEVICE_METHOD static void for_lines(int piece, int pixel, int apart, F&& f) {
    int place = place_of_piece<S>(piece, pixel);
#pragma unroll 1
    for (int p = pixel; p < kPixels; p += apart) {
      f(p, place);
      place = (place ^ ((apart & (kPanelPieces - 1)) * kPiece<S>)) + apart * kPanelRow<S>;
    }
  }

  FUSECELL_DEVICE_METHOD void multiply(const S* dz) {
    const S* image = dz + rows_ * kPixels;
#pragma unroll
    for (int step = 0; step < kPixels / Fragments<S>::kDepth; ++step) {
      uint32_t a[2][4], b[4][2];
      fragments_.right(image, step, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) device::round_elements(b[j], kType);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i % 2 == 0) fragments_.left(dz, step, i / 2, a);
        if (of_bias_ >> i & 1) add_bias(a[i % 2], bias_[i / 2]);
        device::round_elements(a[i % 2], kType);
#pragma unroll
        for (int j = 0; j < 4; ++j) device::multiply_add(a[i % 2], b[j], sum_[i][j], kType);
      }
    }
  }

  FUSECELL_DEVICE_METHOD static void add_bias(const uint32_t (&a)[4], float (&sum)[4]) {
    const uint32_t ones[2] = {word_of_ones(kType), word_of_ones(kType)};
    uint32_t rounded[4] = {a[0], a[1], a[2], a[3]};
    device::round_elements(rounded, kType);
    device::multiply_add(rounded, ones, sum, kType);
    if constexpr (sizeof(S) == 4) {
      uint32_t rest[4];
      take_rest(a, rounded, rest);
      device::round_elements(rest, kType);
      device::multiply_add(rest, ones, sum, kType);
    }
  }

  FUSECELL_DEVICE_METHOD void store() const {
    const int64_t count = args_.channels * args_.kernel;
    float* partial = args_.partial + int64_t(blockIdx.z) * args_.rows * count;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = fragments_.column(j, e), piece = first_piece_ + column / kPiece<S>;
        if (piece >= args_.pieces) continue;
        const Tap tap = args_.taps[piece];
        const int64_t channel = tap.channel + column % kPiece<S>;
        if (tap.h == kNowhere || channel >= args_.channels) continue;
        float* to = partial + channel * args_.kernel + tap.in_kernel;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int64_t row = row_ + fragments_.row(i, 2 * half);
            if (row < args_.rows) to[row * count] = sum_[i][j][2 * half + e];
          }
        }
      }
    }
    if (threadIdx.x % 4 != 0) return;  // all columns of the bias's sums are the same
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(of_bias_ >> i & 1)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = row_ + fragments_.row(i, 2 * half);
        if (row < args_.rows) args_.bias_partial[blockIdx.z * args_.rows + row] = bias_[i / 2][2 * half];
      }
    }
  }

  const TensorGradientArgs<S>& args_;
  S* tiles_;                      // [buffers]: dz's panels, then the images'
  Column<S>* columns_;            // [2][kColumnWindow]
  int rows_, row_, first_piece_;  // of the tile
  int64_t first_, end_;           // pixels of the part
  Fragments<S> fragments_;
  Tap tap_;          // of the piece that this thread copies
  int of_bias_ = 0;  // bit i: this warp sums the i-th of its rows
  float sum_[4][4][4] = {}, bias_[2][4] = {};
};

template <class S>
__global__ void __launch_bounds__(kThreads, 2) tensor_gradient(const TensorGradientArgs<S> args) {
  FUSECELL_DYNAMIC_SHARED(shared);
  if (device::has_tensor_cores()) TensorGradientBlock<S>(args, shared).run();
}

// ------------------------------------------------------------------------------------------- bias and peepholes
template <class S>
struct TensorParameterGradientArgs {
  const S* dz;                // [samples, P, dz_pitch], as above
  int64_t dz_rows, dz_pitch;  // 4C
  int64_t samples, pixels;
  bool peephole, per_pixel;  // not a peephole's: the bias's
  const S* gates;            // [samples, P, 4C], as saved; peepholes only
  Images<Accumulate<S>> c_before;
  Activation gate_kind, state_kind;
  ActivationParameters<Accumulate<S>> activation;
  int64_t per_part;   // of samples * pixels, per channel only
  int channel_shift;  // a block has neighbouring channels, as a power of two, and kThreads over it pixels at once
  double* partial;    // [gridDim.x][rows], or [rows, P]; rows: 3C of a peephole, dz_rows of a bias
};

// What element (n, p) adds for one channel: of a peephole to rows channel, C + channel and 2C + channel, which look at
// the state before, before and after the step; of a bias to row `channel`.
template <class S>
FUSECELL_DEVICE void add_parameter_terms(const TensorParameterGradientArgs<S>& args, int64_t channel, int64_t n,
                                         int64_t p, double (&sum)[3]) {
  using A = Accumulate<S>;
  const int64_t C = args.dz_rows / 4;
  const S* dz = args.dz + (n * args.pixels + p) * args.dz_pitch + channel;
  if (!args.peephole) {
    sum[0] += double(widen(dz[0]));
    return;
  }
  int64_t b = 0;
  const Images<A>& states = args.c_before;
  const int64_t slot = quotient(n, states.batch);
  if (!takes_place(states, n - slot * states.batch, states.time + slot)) return;
  const Pixels<const A> state = image_of(states, n, b).at(channel, p);
  const A c = state.data ? *state.data : A(0);
  const S* gates = args.gates + (n * args.pixels + p) * 4 * C + channel;
  const AnyActivation<A> act = {args.gate_kind, args.state_kind, args.activation};
  const A i = act.gate_of_saved(widen(gates[0])), f = act.gate_of_saved(widen(gates[C]));
  const A g = act.state_of_saved(widen(gates[2 * C]));
  sum[0] += double(widen(dz[0]) * c);
  sum[1] += double(widen(dz[C]) * c);
  sum[2] += double(widen(dz[3 * C]) * (f * c + i * g));
}

template <class S>
__global__ void __launch_bounds__(kThreads) tensor_parameter_gradient(const TensorParameterGradientArgs<S> args) {
  FUSECELL_SHARED(double, sums, 3 * kThreads);
  const int thread = int(threadIdx.x), lanes = kThreads >> args.channel_shift;
  const int lane = thread >> args.channel_shift, in_block = thread & ((1 << args.channel_shift) - 1);
  const int64_t channel = (int64_t(blockIdx.y) << args.channel_shift) + in_block;
  const int64_t channels = args.peephole ? args.dz_rows / 4 : args.dz_rows;
  const int terms = args.peephole ? 3 : 1;
  double sum[3] = {};
  if (args.per_pixel) {
    const int64_t p = int64_t(blockIdx.x) * lanes + lane;
    if (p >= args.pixels || channel >= channels) return;
    for (int64_t n = 0; n < args.samples; ++n) add_parameter_terms(args, channel, n, p, sum);
    for (int k = 0; k < terms; ++k) args.partial[(k * channels + channel) * args.pixels + p] = sum[k];
    return;
  }
  const int64_t total = args.samples * args.pixels, first = int64_t(blockIdx.x) * args.per_part;
  const int64_t end = first + args.per_part < total ? first + args.per_part : total;
  for (int64_t at = first + lane; at < end && channel < channels; at += lanes) {
    const int64_t n = quotient(at, args.pixels);
    add_parameter_terms(args, channel, n, at - n * args.pixels, sum);
  }
  for (int k = 0; k < terms; ++k) sums[k * kThreads + thread] = sum[k];
  __syncthreads();
  if (lane != 0 || channel >= channels) return;
  for (int k = 0; k < terms; ++k) {
    double all = 0;
    for (int l = 0; l < lanes; ++l) all += sums[k * kThreads + (l << args.channel_shift) + in_block];
    args.partial[(int64_t(blockIdx.x) * terms + k) * channels + channel] = all;
  }
}

}  // namespace fusecell::cuda
