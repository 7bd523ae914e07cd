#pragma once
// The inner loops of the CPU backend, as a table of functions: kernels.cpp is compiled once per instruction set,
// isa.cpp picks a table at run time. Nothing here allocates, throws or knows of threads.

#include <cstddef>
#include <cstdint>

#include "base/scalar.h"
#include "cell/activation.h"
#include "cell/gates.h"
#include "cell/update.h"
#include "problem/frames.h"

namespace fusecell::cpu {

// A source image as the correlation reads it: packed with its zero padding, so that output pixel q (= row * pitch +
// column) and the k-th weight meet at base[offset[k] + q]. Two sources make one sum: the input's and the state's
// convolution.
template <class S>
struct Source {
  const S* base = nullptr;
  const int64_t* offset = nullptr;
  int64_t count = 0;  // channels x taps
};

// z[m][pixel] for the packed rows m0 <= m < m1 of the weights and the image rows row0 <= r < row1.
template <class S>
struct CorrelateTile {
  Source<S> sources[2];
  const S* weights;  // [panels][count of both sources][mr]
  int64_t m0, m1;    // m0 a multiple of mr
  int64_t row0, row1, columns, pitch;
  S* z;  // [m1 - m0 rounded up to mr][(row1 - row0) * columns]
};

// dweight[m][k] += sum over images b and pixels q of dz[b][m][q] * source[b][offset[k] + q].
template <class S>
struct WeightGradientTile {
  const S* source;
  const int64_t* offset;
  int64_t source_stride;        // between images
  const S* dz;                  // zero outside the image's columns
  int64_t dz_stride, dz_pitch;  // between images, between channels
  const uint8_t* active;        // [batch]; images that take part
  int64_t batch, pixels;        // pixels: of the flattened, padded image, from its q0-th on
  int64_t q0, pitch, columns;   // those with q % pitch >= columns are outside the image
  int64_t m0, m1, k0, k1;
  S* dweight;
  int64_t dweight_pitch;
};

// Winograd's algorithm works on blocks of this many tiles (a multiple of every register tile's pixels), each of which
// has 36 places, "frequencies".
constexpr int64_t kWinogradTiles = 48, kWinogradPlaces = 36;

// Rows of neighbouring tiles of one image and some channels, to their places: [36][channels][kWinogradTiles], or of a
// gradient, [36][kWinogradTiles][lanes]. More than one row only where they are whole and follow each other.
template <class S>
struct WinogradRun {
  const S* image;  // the first tile's first pixel
  int64_t image_channel, image_row, channels, rows, tiles;
  S* patches;               // at place 0, the first channel and the first tile
  int64_t frequency, room;  // between places; tiles from the first one to the block's end (a gradient's: unused)
};

// The other way for one row of the product: M rows of pixels for each row of tiles. Reads and writes up to a vector of
// tiles behind the last one.
template <class S>
struct WinogradOutput {
  const S* products;
  int64_t frequency, rows, tiles;
  S* image;
  int64_t image_row;
};

// At every place, out[m][q] = sum over k of weights[m][k] * patches[k][q], on top of what is there if `accumulate`.
template <class S>
struct WinogradProduct {
  const S* weights;  // at each place panels of mr rows: [count][mr]
  int64_t weights_frequency, weights_panel;
  const S* patches;  // at each place [count][kWinogradTiles]
  int64_t patches_frequency, rows, count, tiles;
  S* out;  // at each place [rows][kWinogradTiles]
  int64_t out_frequency;
  bool accumulate;
};

// At one place, out[k][m] += sum over tiles q of patches[k][q] * gradients[q][m], for one or two vectors of m.
template <class S>
struct WinogradGradient {
  const S* patches;    // [blocks][count][kWinogradTiles], blocks `patches_block` apart
  const S* gradients;  // [groups][blocks][kWinogradTiles][lanes]
  int64_t patches_block, gradients_block, gradients_group, tiles, count, groups;
  S* out;
  int64_t out_pitch;
};

// For tiles of M x M outputs and (7 - M) x (7 - M) taps.
template <class S>
struct WinogradKernels {
  void (*patches)(const WinogradRun<S>&);  // of a correlation's input, overlapping
  // Of its output's gradient: of as many channels as lanes, [36][kWinogradTiles][lanes].
  void (*gradients)(const WinogradRun<S>&);
  void (*outputs)(const WinogradOutput<S>&);
  void (*weights)(const S* taps, int64_t frequency, S* out);  // [taps][mr] to [36][mr], `frequency` apart
  void (*weight_gradients)(const S* places, int64_t frequency, int64_t n, int64_t pitch, S* dweight);
};

// Products of bfloat16 come in tiles: kSide rows of kDepth terms on the left, pairs of terms for kSide columns on the
// right, sums of kSide x kSide in float32.
constexpr int64_t kSide = 16, kDepth = 32;

// An image as [channels / 2][plane of pixels][2], zero-padded, of channels in whole tiles: output pixel q (= row *
// pitch
// + column) and the k-th tile of weights meet at image[offset[k] + 2 * q].
struct Bfloat16Source {
  const bfloat16* image = nullptr;
  const int64_t* offset = nullptr;
  int64_t count = 0, plane = 0, pitch = 0;  // tiles: taps x channels / kDepth
};

// z[m][pixel] for the rows m0 <= m < m1 of the weights and the pixels of a block; m0 is a multiple of 2 kSide. Reads up
// to kSide pixels behind the last one of a plane.
struct Bfloat16Product {
  Bfloat16Source sources[2];
  const bfloat16* weights;  // [rows / (2 kSide)][tiles of both sources][2 kSide][kDepth]
  int64_t m0, m1, row0, row1, column0, column1;
  float* z;  // [m1 - m0][(row1 - row0) * (column1 - column0)]
};

// sums[i][j][channel][row] += over the active images and their pixels of source[channel][q] * gradient[row][q], for the
// 2 x 2 tiles i, j.
struct Bfloat16Gradient {
  const bfloat16* source;    // [2 kSide channels][plane], at a tap
  const bfloat16* gradient;  // [2][pixels / 2][kSide rows][2], zero outside the image's columns
  int64_t source_image, gradient_image, plane;
  const uint8_t* active;  // [batch]
  int64_t batch, pixels;  // pixels: a multiple of kDepth
  float* sums;
};

struct Bfloat16Kernels {
  void (*product)(const Bfloat16Product&);
  void (*gradient)(const Bfloat16Gradient&);
};

// A matrix as its first element and what lies between rows; one of any layout also has what lies between columns.
template <class S>
struct RowsOf {
  S* data;
  int64_t pitch;
};
template <class S>
struct Strided {
  S* data;
  int64_t row, column;
};

// out[m][n] = start[m][n] + sum over k of left[m][k] * right[k][n]. Rows of `right` are readable up to a whole vector
// behind the last column's. start: null for zero; may be `out`.
template <class S>
struct MatrixProduct {
  Strided<const S> left;
  RowsOf<const S> right, start;
  RowsOf<S> out;
  int64_t rows, columns, terms;  // of m, n and k
};

// A run of n pixels of one channel: the unit of the pointwise tier. Pointers that an option does not use are null.
template <class S>
struct CellRun {
  int64_t n;
  CellFlags flags;
  Activation gate_kind, state_kind;
  ActivationParameters<S> activation;
  const S* peephole_pixel[3];
  S peephole_channel[3];
  Pixels<const S> c, h;                            // c' and h'; null: zero
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // null: the rates
  S zoneout_h, zoneout_c;
};

template <class S>
struct CellForwardRun : CellRun<S> {
  const S *z[4], *bias_pixel[4];
  S bias_channel[4];
  S *h_out, *c_out;  // may alias h and c
  Pixels<S> y;       // as h_out
  S* c_saved;        // as c_out
  S* gates[4];       // any output may be null
};

template <class S>
struct CellBackwardRun : CellRun<S> {
  const S* gates[4];
  S *dh, *dc;  // in: with respect to the step's outputs; out: to its inputs (dh without the convolution's part)
  S* dz[4];
  S *dbias_pixel[4], *dpeephole_pixel[3];     // += ; may be null
  double *dbias_channel, *dpeephole_channel;  // [4], [3], += ; may be null
  double* statistics;                         // [kStepStatistics], += ; may be null
};

template <class S>
struct Kernels {
  int64_t lanes;   // of a vector
  int64_t mr;      // weight rows of the correlation's register tile
  int64_t dm, dk;  // rows and taps of the weight gradient's

  void (*correlate)(const CorrelateTile<S>&);
  void (*weight_gradient)(const WeightGradientTile<S>&);
  WinogradKernels<S> winograd[2];  // of 3 x 3 and of 5 x 5 taps
  void (*winograd_product)(const WinogradProduct<S>&);
  void (*winograd_gradient)(const WinogradGradient<S>&);
  void (*matrix_product)(const MatrixProduct<S>&);
  void (*cell_forward)(const CellForwardRun<S>&);
  void (*cell_backward)(const CellBackwardRun<S>&);
  void (*activation_forward)(Activation, const ActivationParameters<S>&, int64_t n, const S* x, S* y);
  void (*activation_backward)(Activation, const ActivationParameters<S>&, int64_t n, const S* x, const S* y,
                              const S* dy, S* dx);
  // One softmax over `extent` values that lie `stride` apart.
  void (*softmax_forward)(int64_t extent, int64_t stride, const S* x, S* y);
  void (*softmax_backward)(int64_t extent, int64_t stride, const S* y, const S* dy, S* dx);
  // Norms are summed in double; `scale` multiplies first (1 unless squares would leave the range of double).
  double (*sum)(int64_t n, const S* x);
  double (*sum_abs)(int64_t n, const S* x);
  double (*sum_squares)(int64_t n, const S* x, double scale);
  double (*max_abs)(int64_t n, const S* x);         // NaN if any is
  double (*largest_number)(int64_t n, const S* x);  // as max_abs, but NaN counts as 0
  void (*scale)(int64_t n, double factor, S* x);
  void (*clamp)(int64_t n, S limit, S* x);
  void (*update)(UpdateRule, const UpdateParameters<double>&, double coefficient, int64_t n, S* value,
                 const S* gradient, S* first, S* second);
};

struct KernelTable {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Bfloat16Kernels plain_tiles, amx_tiles;  // amx_tiles: null where there is no such processor

  template <class S>
  const Kernels<S>& get() const {
    if constexpr (sizeof(S) == sizeof(float)) {
      return f32;
    } else {
      return f64;
    }
  }
};

// Runs of the pointwise tier are cut into pieces of this many pixels, whose operands stay in the first-level cache.
constexpr int64_t kCellRun = 512;

}  // namespace fusecell::cpu
