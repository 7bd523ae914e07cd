#pragma once
// One step of the backward sweep in one kernel: the convolution of the following step's dz with flipped weights gives
// what reaches h through it; added to dy_t and to what the state carries, it goes through the gates' adjoint at once.

#include "cuda/cell_pack.cuh"
#include "cuda/correlate.cuh"

namespace fusecell::cuda {

template <class S>
struct BackwardStepArgs {
  using A = Accumulate<S>;
  CorrelateArgs<S> correlate;  // operand 0: dz of the step after; no taps at the first, or where it is detached
  CellArgs<S> cell;
  const S* gates;  // [B, 4C, P] of this step
  Images<A> c_before;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, P]
  Frames<const S> dy;                              // [B, C, P]; null: zero
  const S* dropout_mask;                           // [B, C, P]; null: none
  Frames<const S> dh_first;                        // gradients of the final state, read at the first step; null: zero
  Frames<const A> dc_first;
  bool first, detach;  // detach: the state that entered this step gets no gradient
  A* carry_h;          // [B, C, P]: gradient of the running state, but for the convolution's part
  const A* carry_c;    // the same of c
  Frames<A> dc;        // of the state before: carry_c, or the result
  S* dz;               // [B, 4C, P]
  const int64_t* lengths;
  int64_t time;
  double* statistics;  // [gridDim.y][gridDim.x][kStepStatistics]: each block's sums; null: not wanted
};

template <class Act, class S>
FUSECELL_DEVICE void finish_backward_step(const BackwardStepArgs<S>& args, const Tile<S>& tile, int channel_in_tile,
                                          int in_tile, const Span& span, int64_t b, int64_t p,
                                          StatisticSums<Accumulate<S>>* sums) {
  using A = Accumulate<S>;
  constexpr int V = kEndPack<S>;
  const int64_t C = args.cell.channels, P = args.cell.pixels, channel = tile.row + channel_in_tile;
  const int64_t in_sample = channel * P + p, at = b * C * P + in_sample, at_gate = b * 4 * C * P + in_sample;

  CellGradient<S, V> gradient;
  A mask[V], dy[V], through[V];
  load(tile.at(channel_in_tile, in_tile), span, through);
  if (args.first) {
    load_or_zero(args.dh_first.image(b).at(channel, p), span, gradient.dh);
    load_or_zero(args.dc_first.image(b).at(channel, p), span, gradient.dc);
  } else {
    load(args.carry_h + at, span, gradient.dh);
    load(args.carry_c + at, span, gradient.dc);
  }
  if (args.dropout_mask) load(args.dropout_mask + at, span, mask);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    gradient.dh[j] += args.dropout_mask ? through[j] * mask[j] : through[j];
  }
  if (args.lengths && args.time >= args.lengths[b]) {  // the state went through unchanged
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) gradient.dz[k][j] = A(0);
    }
  } else {
    load_or_zero(args.dy.image(b).at(channel, p), span, dy);
#pragma unroll
    for (int j = 0; j < V; ++j) gradient.dh[j] += dy[j];
    int64_t same = 0;
    const CellInputs<S> in = {image_of(args.c_before, b, same).at(channel, p),
                              {},
                              shifted(args.zoneout_mask_h, at),
                              shifted(args.zoneout_mask_c, at)};
    cell_backward<Act>(args.cell, in, args.gates + at_gate, channel, p, span, gradient, sums);
    if (args.detach) {
#pragma unroll
      for (int j = 0; j < V; ++j) gradient.dh[j] = gradient.dc[j] = A(0);
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) store(args.dz + at_gate + k * C * P, span, gradient.dz[k]);
  store(args.carry_h + at, span, gradient.dh);
  store_if(args.dc.image(b).at(channel, p), span, gradient.dc);
}

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) backward_step(const BackwardStepArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(S, weights, kWeightBuffers<S>);
  FUSECELL_SHARED(A, values, kTileBuffer<S>);
  using Sums = StatisticSums<A>;
  FUSECELL_SHARED(double, warp_squares, kThreads / 32 * Sums::kSquares);
  FUSECELL_SHARED(A, warp_others, kThreads / 32 * Sums::kOthers);
  const Tile<S> tile = correlate_tile(args.correlate, weights, values);
  const int64_t left = args.cell.channels - tile.row;
  const int most = 4 << args.correlate.group_shift, channels = left < most ? int(left) : most;
  // A pointer that may be null keeps them in local memory, which costs little: in registers they would make all the
  // kernel spill (up to 64 bytes).
  Sums sums, *wanted = args.statistics ? &sums : nullptr;
  for_pieces(args.correlate, tile, channels, args.cell.whole,
             [&](int channel, int in_tile, const Span& span, int64_t b, int64_t p) {
               finish_backward_step<Act>(args, tile, channel, in_tile, span, b, p, wanted);
             });
  if (!args.statistics) return;
  const double square = block_sum(sums.squares, warp_squares), other = block_sum(sums.others, warp_others);
  double* out = args.statistics + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * kStepStatistics;
  const int k = int(threadIdx.x);
  if (k < Sums::kSquares) out[kDhSquared + k] = square;
  if (k < Sums::kOthers) out[k < kDhSquared ? k : k + Sums::kSquares] = other;
}

}  // namespace fusecell::cuda
