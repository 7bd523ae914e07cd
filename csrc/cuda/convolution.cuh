#pragma once
// A convolution that ends in a plain store: the layers' convolution, and the gradients of x and h_0. And the packing of
// weights that every convolution begins with.

#include "cuda/cell_pack.cuh"
#include "cuda/correlate.cuh"

namespace fusecell::cuda {

// --------------------------------------------------------------------------------------------------- weights and taps
enum class Layout : int {
  rows,         // row o of the result is output channel o
  interleaved,  // row 4 * c + k is output channel k * C + c: a channel's gates side by side
  transposed,   // row i of the result is input channel i; taps walk the output channels, flipped
};

template <class S>
struct PackArgs {
  const S* weight;  // [O, I, kh, kw]
  Layout layout;
  int64_t out_channels, in_channels, kernel[2], dilation[2];
  int64_t taps, rows, padded_taps, padded_rows;
  S* packed;  // [padded_taps][padded_rows]
  Tap* tap;   // [padded_taps]
};

template <class S>
__global__ void __launch_bounds__(kThreads) pack_weights(const PackArgs<S> args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, k = quotient(i, args.padded_rows);
  const int64_t row = i - k * args.padded_rows, kernel = args.kernel[0] * args.kernel[1];
  if (k >= args.padded_taps) return;
  const int64_t channel = quotient(k, kernel), in_kernel = k - channel * kernel;
  const int64_t kh = quotient(in_kernel, args.kernel[1]), kw = in_kernel - kh * args.kernel[1];
  const bool transposed = args.layout == Layout::transposed;

  S value = {};
  if (k < args.taps && row < args.rows) {
    int64_t o = transposed ? channel : row;
    if (args.layout == Layout::interleaved) o = row % 4 * (args.out_channels / 4) + row / 4;
    const int64_t in = transposed ? row : channel;
    value = args.weight[(o * args.in_channels + in) * kernel + in_kernel];
  }
  args.packed[i] = value;
  if (row == 0) {
    const int32_t sign = transposed ? -1 : 1;
    Tap tap = {int32_t(channel), sign * int32_t(kh * args.dilation[0]), sign * int32_t(kw * args.dilation[1]),
               int32_t(in_kernel)};
    if (k >= args.taps) tap = {0, kNowhere, kNowhere, 0};
    args.tap[k] = tap;
  }
}

// ---------------------------------------------------------------------------------------------------------- correlate
template <class S>
struct ConvolutionArgs {
  CorrelateArgs<S> correlate;
  int64_t rows;                // channels of the result
  bool whole;                  // 16-byte accesses are possible
  const S *bias, *mask;        // [rows], [samples, rows, P]; null: none
  const Accumulate<S>* carry;  // [samples, rows, P]; null: none
  Frames<S> out;               // [samples, rows, P]: sample n is batch element n % batch at time n / batch
  int64_t batch;
};

// out = (convolution + bias) mask + carry
template <class S>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) correlate(const ConvolutionArgs<S> args) {
  using A = Accumulate<S>;
  constexpr int V = kEndPack<S>;
  FUSECELL_SHARED(S, weights, kWeightBuffers);
  FUSECELL_SHARED(A, values, kTileBuffer<S>);
  const Tile<S> tile = correlate_tile(args.correlate, weights, values);
  const int64_t left = args.rows - tile.row;
  const int most = 4 << args.correlate.group_shift, rows = left < most ? int(left) : most;
  for_pieces(args.correlate, tile, rows, args.whole, [&](int row, int in_tile, const Span& span, int64_t n, int64_t p) {
    const int64_t at = (n * args.rows + tile.row + row) * args.correlate.pixels + p;
    const A bias = args.bias ? widen(args.bias[tile.row + row]) : A(0);
    A value[V], mask[V], carry[V];
    load(tile.at(row, in_tile), span, value);
    if (args.mask) load(args.mask + at, span, mask);
    if (args.carry) load(args.carry + at, span, carry);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] += bias;
      if (args.mask) value[j] *= mask[j];
      if (args.carry) value[j] += carry[j];
    }
    const int64_t slot = quotient(n, args.batch);
    store_if(args.out.at_time(slot).image(n - slot * args.batch).at(tile.row + row, p), span, value);
  });
}

}  // namespace fusecell::cuda
