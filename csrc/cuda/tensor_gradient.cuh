#pragma once
// The weights' gradient on tensor cores, of tensors with channels last: dW = dz^T image, a product of [rows, pixels] by
// [pixels, columns], where a column is one channel at one place of the kernel. The bias's, a sum of dz, from the same
// tiles.
//
// Method: 8 warps of 64 rows by 32 columns each. Both operands lie in global memory as [pixel][channel], which is the
// transpose of what a product wants; they are copied as they lie, 16 bytes at a time, several stages ahead, and turned
// on the way from shared memory into registers, or, by warpgroups, by the products themselves. A thread copies one
// piece of 16 bytes of every so many pixels, so that its tap stays in registers; where its pixels stand in the images
// is found once for all that copy them.

#include "cuda/gather.cuh"

namespace fusecell::cuda {

constexpr int kPanelPieces = 8;  // of a panel's row: 128 bytes, all banks once
template <class S>
constexpr int kPanelRow = kPanelPieces * kPiece<S>;

// A tile of the gradient has 64, 128 or 256 rows, and always as many values.
constexpr int kWarpRows = 64, kWarpColumns = 32;
constexpr int kTileValues = kThreads / 32 * kWarpRows * kWarpColumns;
template <class S>
constexpr int kStagePixels = 64 / int(sizeof(S));
constexpr int kColumnWindow = 128;      // pixels whose places are found at once: several stages
constexpr int kPanelsAlignment = 1024;  // of what warpgroups multiply: 8 rows of a panel

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
  int buffers;              // 2 to kMostBuffers
  bool warpgroups;          // multiply by warpgroups, where the code and the elements allow it
};

FUSECELL_HD int tensor_tile_columns(int row_shift) { return kTileValues / (kWarpRows << row_shift); }
// Of both operands, in elements.
template <class S>
FUSECELL_HD int tensor_stage(int row_shift) {
  return kStagePixels<S> * ((kWarpRows << row_shift) + tensor_tile_columns(row_shift));
}
// Dynamic shared memory: stages, two windows of places, and the taps of the tile's pieces; without what aligns panels.
template <class S>
FUSECELL_HD int tensor_gradient_shared(int row_shift, int buffers) {
  return buffers * tensor_stage<S>(row_shift) * int(sizeof(S)) + 2 * kColumnWindow * int(sizeof(Column<S>)) +
         tensor_tile_columns(row_shift) / kPiece<S> * int(sizeof(Tap));
}

// Where a piece of a pixel lies in [panels][kStagePixels][kPanelRow]. The pixel's number turns the pieces of its row,
// so that neither 8 pieces of a pixel nor one piece of 8 pixels share banks: a step of 1, 2 or 4 pieces in a panel, or
// of as many pixels, turns a bit of a place.
template <class S>
FUSECELL_DEVICE int place_in_panels(int piece, int pixel) {
  const int panel = piece >> 3, turned = (piece ^ pixel) & (kPanelPieces - 1);
  return (panel * kStagePixels<S> + pixel) * kPanelRow<S> + turned * kPiece<S>;
}

template <class S>
constexpr uint32_t kTwoOnes = 0x3F803F80u;  // a word of them
template <>
constexpr uint32_t kTwoOnes<float16> = 0x3C003C00u;

// What a lane takes from a stage for one step of the product, as multiply_add wants it, and which rows and columns of
// the tile its sums are. A warp has kWarpRows rows, as 4 times 16, and kWarpColumns columns, as 4 times 8.
template <class S>
class Fragments {
 public:
  static constexpr int kDepth = 16;  // pixels of a step

  // A lane gives the place of a row of one of four matrices; two lie side by side, two above each other.
  FUSECELL_DEVICE_METHOD Fragments(int down, int across, int dz_size)
      : down_(down), across_(across), lane_(int(threadIdx.x) & 31) {
    const int line = lane_ & 7, low = lane_ >> 3 & 1, high = lane_ >> 4;
    left_ = place_in_panels<S>(down * (kWarpRows / kPiece<S>)+low, 8 * high + line);
    right_ = dz_size + place_in_panels<S>(across * (kWarpColumns / kPiece<S>)+high, 8 * low + line);
  }

  // 2 of the 4 times 16 rows.
  FUSECELL_DEVICE_METHOD void left(const S* tiles, int step, int which, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int turn = 2 * (2 * which + i) * kPiece<S>;
      device::load_matrices_transposed(tiles + (left_ ^ turn) + step * kDepth * kPanelRow<S>, a[i]);
    }
  }
  FUSECELL_DEVICE_METHOD void right(const S* tiles, int step, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t both[4];
      device::load_matrices_transposed(tiles + (right_ ^ (j * kPiece<S>)) + step * kDepth * kPanelRow<S>, both);
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
  }

  // Adds a fragment's pixels to its rows' sums, which are values 0 and 2 as of a product: of one with ones.
  static FUSECELL_DEVICE_METHOD void add_up(const uint32_t (&a)[4], float (&sum)[4]) {
    const uint32_t ones[2] = {kTwoOnes<S>, kTwoOnes<S>};
    device::multiply_add(a, ones, sum, static_cast<const S*>(nullptr));
  }
  static FUSECELL_DEVICE_METHOD float total(float sum) { return sum; }

  // Where the stage is that is taken from, and to another.
  FUSECELL_DEVICE_METHOD int place() const { return left_; }
  FUSECELL_DEVICE_METHOD void advance(int by) {
    left_ += by;
    right_ += by;
  }

  // Of value e of the sums of the i-th rows and j-th columns.
  FUSECELL_DEVICE_METHOD int row(int i, int e) const { return down_ * kWarpRows + 16 * i + (lane_ >> 2) + e / 2 * 8; }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const {
    return across_ * kWarpColumns + 8 * j + (lane_ & 3) * 2 + e % 2;
  }

 private:
  int down_, across_, lane_, left_, right_;
};

// Of float, which no instruction turns: a lane reads whole pieces, 4 rows of one pixel, and which of the product's rows
// they are is free to choose. Lane 4 g + t has pixel t's piece_of(g), so that no two of 8 lanes that are served at once
// share banks.
template <>
class Fragments<float> {
 public:
  static constexpr int kDepth = 8;

  FUSECELL_DEVICE_METHOD Fragments(int down, int across, int dz_size)
      : down_(down), across_(across), lane_(int(threadIdx.x) & 31) {
    const int piece = piece_of(lane_ >> 2), pixel = lane_ & 3;
    left_ = place_in_panels<float>(down * (kWarpRows / kPiece<float>)+piece, pixel);
    right_ = dz_size + place_in_panels<float>(across * (kWarpColumns / kPiece<float>)+piece, pixel);
  }

  FUSECELL_DEVICE_METHOD void left(const float* tiles, int step, int which, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<4> words = piece(tiles + which * kStagePixels<float> * kPanelRow<float>, left_, step, half);
#pragma unroll
      for (int w = 0; w < 4; ++w) a[w / 2][2 * half + w % 2] = words.word[w];
    }
  }
  FUSECELL_DEVICE_METHOD void right(const float* tiles, int step, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words<4> words = piece(tiles, right_, step, half);
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j][half] = words.word[j];
    }
  }

  // This lane's pixels, by plain sums, which keep all that float has; total() has those of four lanes.
  static FUSECELL_DEVICE_METHOD void add_up(const uint32_t (&a)[4], float (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i % 2 * 2] += __builtin_bit_cast(float, a[i]);
  }
  static FUSECELL_DEVICE_METHOD float total(float sum) {
    sum += device::shuffle_xor(sum, 1);
    return sum + device::shuffle_xor(sum, 2);
  }

  FUSECELL_DEVICE_METHOD int place() const { return left_; }
  FUSECELL_DEVICE_METHOD void advance(int by) {
    left_ += by;
    right_ += by;
  }

  FUSECELL_DEVICE_METHOD int row(int i, int e) const {
    return down_ * kWarpRows + i / 2 * kPanelRow<float> + kPiece<float> * piece_of(lane_ >> 2) + i % 2 * 2 + e / 2;
  }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const {
    return across_ * kWarpColumns + kPiece<float> * piece_of(2 * (lane_ & 3) + e % 2) + j;
  }

 private:
  static FUSECELL_DEVICE_METHOD int piece_of(int group) { return (group >> 1) + (group & 1) * 4; }
  // half: pixels 4 to 7 of the step.
  static FUSECELL_DEVICE_METHOD Words<4> piece(const float* tiles, int place, int step, int half) {
    const int at = (place ^ (half * 4 * kPiece<float>)) + (step * kDepth + half * 4) * kPanelRow<float>;
    return __builtin_bit_cast(Words<4>, *reinterpret_cast<const Chunk<float, 4>*>(tiles + at));
  }

  int down_, across_, lane_, left_, right_;
};

// The sums of a tile by warps: those of Fragments.
template <class S>
class GradientByWarps {
 public:
  static constexpr bool kWarpgroups = false;
  static constexpr int kDown = 4, kAcross = 4;  // runs of rows and columns of a thread's sums, 4 where two meet

  FUSECELL_DEVICE_METHOD GradientByWarps(const Fragments<S>& fragments, int) : fragments_(fragments) {}

  FUSECELL_DEVICE_METHOD const Fragments<S>& fragments() const { return fragments_; }

  FUSECELL_DEVICE_METHOD void begin(const S*) {}
  FUSECELL_DEVICE_METHOD void end(const S* tiles) {
    const S* const type = nullptr;
#pragma unroll
    for (int step = 0; step < kStagePixels<S> / Fragments<S>::kDepth; ++step) {
      uint32_t a[2][4], b[4][2];
      fragments_.right(tiles, step, b);
#pragma unroll
      for (int j = 0; j < 4; ++j) device::round_elements(b[j], type);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i % 2 == 0) fragments_.left(tiles, step, i / 2, a);
        device::round_elements(a[i % 2], type);
#pragma unroll
        for (int j = 0; j < 4; ++j) device::multiply_add(a[i % 2], b[j], sum_[i][j], type);
      }
    }
  }
  FUSECELL_DEVICE_METHOD void advance(int by) { fragments_.advance(by); }

  FUSECELL_DEVICE_METHOD int row(int i, int, int e) const { return fragments_.row(i, e); }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const { return fragments_.column(j, e); }
  FUSECELL_DEVICE_METHOD float at(int i, int j, int e) const { return sum_[i][j][e]; }

 private:
  Fragments<S> fragments_;
  float sum_[kDown][kAcross][4] = {};
};

// The same by warpgroups: 64 rows by 128 columns each, or kHigh 128 by 64, as two halves of 64 by 64. The stage's
// panels are their operands as they are: 16 pixels a product. Why one shape in a loop, tensor_tile.cuh's WarpgroupSums
// says.
template <class S, bool kHigh>
class GradientByWarpgroups {
 public:
  static constexpr bool kWarpgroups = true;
  static constexpr int kDown = 1, kAcross = 16;

  // fragments: for the bias's sums.
  FUSECELL_DEVICE_METHOD GradientByWarpgroups(const Fragments<S>& fragments, int row_shift)
      : fragments_(fragments), row_shift_(row_shift) {}

  FUSECELL_DEVICE_METHOD const Fragments<S>& fragments() const { return fragments_; }

  // Has not ended when it returns.
  FUSECELL_DEVICE_METHOD void begin(const S* tiles) {
    const auto dz = panel(tiles, first_row() / 64), image = panel(tiles, (1 << row_shift_) + first_column() / 64);
    const auto more = panel(tiles, first_row() / 64 + 1);
    const S* const type = nullptr;
    device::products_own(sum_);
    device::begin_products();
#pragma unroll
    for (int k = 0; k < kStagePixels<S>; k += 16) {
      if constexpr (kHigh) {
        device::warpgroup_multiply_add(dz.from_row(k), image.from_row(k), sum_[0], type);
        device::warpgroup_multiply_add(more.from_row(k), image.from_row(k), sum_[1], type);
      } else {
        device::warpgroup_multiply_add(dz.from_row(k), image.from_row(k), sum_, type);
      }
    }
    device::commit_products();
  }
  FUSECELL_DEVICE_METHOD void end(const S*) {
    device::wait_for_products<0>();
    device::products_own(sum_);
  }
  FUSECELL_DEVICE_METHOD void advance(int by) {
    stage_ += by;
    fragments_.advance(by);
  }

  FUSECELL_DEVICE_METHOD int row(int, int j, int e) const {
    const int thread = int(threadIdx.x);
    return first_row() + (kHigh ? j / 8 * 64 : 0) + thread / 32 % 4 * 16 + thread % 32 / 4 + e / 2 * 8;
  }
  FUSECELL_DEVICE_METHOD int column(int j, int e) const {
    return first_column() + (kHigh ? j % 8 : j) * 8 + int(threadIdx.x) % 4 * 2 + e % 2;
  }
  FUSECELL_DEVICE_METHOD float at(int, int j, int e) const { return sum_[j / 8][j % 8][e]; }

 private:
  static constexpr int kPanel = kStagePixels<S> * kPanelRow<S>;  // 64 rows or columns

  // Of the warpgroup: below the other's, or, of a tile of 64 rows, beside them.
  FUSECELL_DEVICE_METHOD int first_row() const { return int(threadIdx.x) / 128 * 64 * row_shift_; }
  FUSECELL_DEVICE_METHOD int first_column() const { return row_shift_ == 0 ? int(threadIdx.x) / 128 * 128 : 0; }
  FUSECELL_DEVICE_METHOD device::MatrixColumns panel(const S* tiles, int which) const {
    return device::matrix_columns(tiles + stage_ + which * kPanel, kPanel * int(sizeof(S)));
  }

  Fragments<S> fragments_;
  int row_shift_, stage_ = 0;
  float sum_[2][8][4] = {};
};

template <class S, class Sums>
class TensorGradientBlock {
 public:
  FUSECELL_DEVICE_METHOD TensorGradientBlock(const TensorGradientArgs<S>& args, unsigned char* shared)
      : args_(args),
        tiles_(reinterpret_cast<S*>(shared + (Sums::kWarpgroups ? to_aligned(shared) : 0))),
        columns_(reinterpret_cast<Column<S>*>(tiles_ + args.buffers * stage_size())),
        taps_(reinterpret_cast<Tap*>(columns_ + 2 * kColumnWindow)),
        sums_({warp_down(), warp_across(), dz_size()}, args.row_shift) {
    const Lines dz = dz_lines(), image = image_lines();
    const int64_t row = first_row() + dz.piece * kPiece<S>;
    // Past the last any: nobody stores what becomes of it.
    dz_from_ = args.dz + (first_pixel() + dz.pixel) * args.dz_pitch + (row < args.dz_pitch ? row : 0);
    left_ = int(end_pixel() - first_pixel());
    dz_to_ = place_in_panels<S>(dz.piece, dz.pixel);
    image_from_ = image.pixel;
    image_to_ = dz_size() + place_in_panels<S>(image.piece, image.pixel);
  }

  FUSECELL_DEVICE_METHOD void run() {
    const int ahead = args_.buffers - 1;
    int next = 0;
    find_taps();
    find_columns(0);
    __syncthreads();
    if constexpr (Sums::kWarpgroups) {  // else products began on a condition, and nvcc 13.0 would wait for each at once
#pragma unroll 1
      for (; next < ahead; ++next) start(next);
    }
#pragma unroll 1
    for (; left_ > -ahead * kPixels; ++next) {  // starts stage `next`, multiplies the one `ahead` before it
      const bool multiplies = Sums::kWarpgroups || next >= ahead;
      if (multiplies) {
        wait();
        __syncthreads();  // that stage is there for all, and nobody reads the one before: its buffer is free
        sums_.begin(tiles_);
      }
      start(next);
      if (multiplies) end_stage();
    }
    store();
  }

 private:
  static constexpr int kPixels = kStagePixels<S>, kStagesOfWindow = kColumnWindow / kPixels;
  static_assert(kStagesOfWindow >= kMostBuffers);  // a barrier comes before the second window is read

  // ----------------------------------------------------------------------------------------- what this block sums
  FUSECELL_DEVICE_METHOD int64_t first_pixel() const { return int64_t(blockIdx.z) * args_.pixels_per_part; }
  FUSECELL_DEVICE_METHOD int64_t end_pixel() const {
    const int64_t end = first_pixel() + args_.pixels_per_part, total = args_.samples * args_.pixels;
    return end < total ? end : total;
  }
  FUSECELL_DEVICE_METHOD int first_row() const { return int(blockIdx.y) * (kWarpRows << args_.row_shift); }
  FUSECELL_DEVICE_METHOD int pieces() const { return tensor_tile_columns(args_.row_shift) / kPiece<S>; }  // of the tile
  FUSECELL_DEVICE_METHOD int warp_down() const { return int(threadIdx.x) >> 5 & ((1 << args_.row_shift) - 1); }
  FUSECELL_DEVICE_METHOD int warp_across() const { return int(threadIdx.x) >> 5 >> args_.row_shift; }
  static FUSECELL_DEVICE_METHOD int to_aligned(const unsigned char* shared) {
    return -device::shared_address(shared) & (kPanelsAlignment - 1);
  }
  FUSECELL_DEVICE_METHOD int stage_size() const { return tensor_stage<S>(args_.row_shift); }
  FUSECELL_DEVICE_METHOD int dz_size() const { return kPixels * (kWarpRows << args_.row_shift); }  // of a stage

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

  // ---------------------------------------------------------------------------------------------------------- copies
  // For the stage that is multiplied next: of the groups, one a stage, all but the newest buffers - 2.
  FUSECELL_DEVICE_METHOD void wait() const {
    if (args_.buffers == 2) device::copy_async_wait<0>();
    if (args_.buffers == 3) device::copy_async_wait<1>();
    if (args_.buffers == 4) device::copy_async_wait<2>();
    if constexpr (Sums::kWarpgroups) device::show_to_products();
  }

  FUSECELL_DEVICE_METHOD void find_taps() const {
    const int first = int(blockIdx.x) * pieces(), k = int(threadIdx.x);
    if (k < pieces()) taps_[k] = first + k < args_.pieces ? args_.taps[first + k] : Tap{0, kNowhere, kNowhere, 0};
  }

  FUSECELL_DEVICE_METHOD void find_columns(int window) const {
    const int thread = int(threadIdx.x);
    if (thread >= kColumnWindow) return;
    const int64_t at = first_pixel() + int64_t(window) * kColumnWindow + thread;
    Column<S> column;  // beyond the end: reads as zero
    if (at < end_pixel()) {
      const int64_t n = quotient(at, args_.pixels);
      column = column_of(args_.images, args_.geometry, n, at - n * args_.pixels);
    }
    columns_[(window & 1) * kColumnWindow + thread] = column;
  }

  FUSECELL_DEVICE_METHOD void fetch_dz() const {
    const S* from = dz_from_;
    const Lines lines = dz_lines();
    for_lines(lines.apart, dz_to_, [&](int p, int to, int apart) {
      if (lines.pixel + p < left_) {
        device::copy_async_16(tiles_ + to, from);
      } else {
        *reinterpret_cast<Words<4>*>(tiles_ + to) = {};
      }
      from += apart * int(args_.dz_pitch);
    });
  }

  FUSECELL_DEVICE_METHOD void fetch_image() const {
    const Lines lines = image_lines();
    const Tap tap = taps_[lines.piece];
    for_lines(lines.apart, image_to_, [&](int p, int to, int) {
      const Column<S> column = columns_[image_from_ + p];
      uint32_t in_image = 0;
      const bool inside = meets<false>(column, args_.geometry, tap, in_image);
      // As a number, since outside of the image it is nobody's address.
      const uintptr_t from = reinterpret_cast<uintptr_t>(column.image) +
                             sizeof(S) * (uint64_t(in_image) * column.pixel + uint32_t(tap.channel));
      device::copy_async_16_or_zero(tiles_ + to, reinterpret_cast<const void*>(from), inside);
    });
  }

  // f(pixels after the thread's first, place of the piece, apart)
  template <class F>
  FUSECELL_DEVICE_METHOD static void for_lines(int apart, int place, F&& f) {
#pragma unroll 1
    for (int p = 0; p < kPixels; p += apart) {
      f(p, place, apart);
      place = (place ^ ((apart & (kPanelPieces - 1)) * kPiece<S>)) + apart * kPanelRow<S>;
    }
  }

  FUSECELL_DEVICE_METHOD void start(int stage) {
    // The other window of places was last read before the latest barrier.
    if (stage % kStagesOfWindow == 0) find_columns(stage / kStagesOfWindow + 1);
    if (left_ > 0) {
      fetch_dz();
      fetch_image();
    }
    device::copy_async_commit();  // past the last stage nothing, since wait() counts groups
    advance();
  }

  // From a place to the same in the next buffer.
  FUSECELL_DEVICE_METHOD int to_next(int place) const {
    const int size = stage_size(), last = (args_.buffers - 1) * size;
    return place < last ? size : -last;
  }
  // To the next stage. Kept, not computed from its number: that, and what follows from the thread's, nvcc does anew.
  FUSECELL_DEVICE_METHOD void advance() {
    const int by = to_next(dz_to_);
    dz_to_ += by;
    image_to_ += by;
    dz_from_ += kPixels * args_.dz_pitch;
    left_ -= kPixels;
    image_from_ = (image_from_ + kPixels) & (2 * kColumnWindow - 1);
  }

  // -------------------------------------------------------------------------------------------------------- products
  FUSECELL_DEVICE_METHOD void end_stage() {
    sums_.end(tiles_);
    if (args_.bias_partial && blockIdx.x == 0) sum_bias();
    sums_.advance(to_next(sums_.fragments().place()));
  }

  // Blocks of the first columns sum dz, too; of the warps that share 64 rows, each a share of them.
  FUSECELL_DEVICE_METHOD bool sums_bias(int i) const {
    return (i & ((kThreads / 32 >> args_.row_shift) - 1)) == warp_across();
  }
  FUSECELL_DEVICE_METHOD void sum_bias() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!sums_bias(i)) continue;
      float sum[4] = {};
#pragma unroll 1
      for (int step = 0; step < kPixels / Fragments<S>::kDepth; ++step) {
        uint32_t a[2][4];
        sums_.fragments().left(tiles_, step, i / 2, a);
        Fragments<S>::add_up(a[i % 2], sum);
      }
      bias_[i / 2][0] += sum[0];
      bias_[i / 2][1] += sum[2];
    }
  }

  // --------------------------------------------------------------------------------------------------------- results
  FUSECELL_DEVICE_METHOD void store() const {
    const int64_t count = args_.channels * args_.kernel;
    float* partial = args_.partial + int64_t(blockIdx.z) * args_.rows * count;
#pragma unroll
    for (int j = 0; j < Sums::kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = sums_.column(j, e);
        const Tap tap = taps_[column / kPiece<S>];
        const int64_t channel = tap.channel + column % kPiece<S>;
        if (tap.h == kNowhere || channel >= args_.channels) continue;
        float* to = partial + channel * args_.kernel + tap.in_kernel;
#pragma unroll
        for (int i = 0; i < Sums::kDown; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int64_t row = first_row() + sums_.row(i, j, 2 * half);
            if (row < args_.rows) to[row * count] = sums_.at(i, j, 2 * half + e);
          }
        }
      }
    }
    if (args_.bias_partial && blockIdx.x == 0) store_bias();
  }
  FUSECELL_DEVICE_METHOD void store_bias() const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!sums_bias(i)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = Fragments<S>::total(bias_[i / 2][half]);
        const int64_t row = first_row() + sums_.fragments().row(i, 2 * half);
        if (threadIdx.x % 4 == 0 && row < args_.rows) args_.bias_partial[blockIdx.z * args_.rows + row] = sum;
      }
    }
  }

  const TensorGradientArgs<S>& args_;
  S* tiles_;            // [buffers]: dz's panels, then the image's
  Column<S>* columns_;  // [2][kColumnWindow]
  Tap* taps_;           // of the tile's pieces
  Sums sums_;
  int left_;  // pixels from the stage to be started to the part's end
  // This thread's copies of that stage.
  const S* dz_from_;
  int image_from_;  // its first pixel among columns_
  int dz_to_, image_to_;
  float bias_[2][2] = {};
};

template <class S>
__global__ void __launch_bounds__(kThreads, 2) tensor_gradient(const TensorGradientArgs<S> args) {
  FUSECELL_DYNAMIC_SHARED(shared);
  if (!device::has_tensor_cores()) return;
  if constexpr (sizeof(S) == 2) {
    if (device::has_warpgroup_products() && args.warpgroups) {
      if (args.row_shift == 2) return TensorGradientBlock<S, GradientByWarpgroups<S, true>>(args, shared).run();
      return TensorGradientBlock<S, GradientByWarpgroups<S, false>>(args, shared).run();
    }
  }
  TensorGradientBlock<S, GradientByWarps<S>>(args, shared).run();
}

}  // namespace fusecell::cuda
