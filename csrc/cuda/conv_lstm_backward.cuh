#pragma once
// One step of the backward sweep in one kernel: the convolution of the following step's dz with flipped weights gives
// what reaches h through it; added to dy_t and to what the state carries, it goes through the gates' adjoint at once.

#include "cuda/conv_lstm_forward.cuh"

namespace fusecell::cuda {

// What a step of the sweep is besides its convolution. Masks are [B, C, P].
template <class S>
struct BackwardStep {
  using A = Accumulate<S>;
  CellArgs<S> cell;
  Frames<const S> gates;  // [B, 4C, P] of this step
  Images<A> c_before;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;
  Frames<const S> dy;        // [B, C, P]; null: zero
  const S* dropout_mask;     // null: none
  Frames<const S> dh_first;  // gradients of the final state, read at the first step; null: zero
  Frames<const A> dc_first;
  bool first, detach;       // detach: the state that entered this step gets no gradient
  Frames<A> carry_h;        // [B, C, P]: gradient of the running state, but for the convolution's part
  Frames<const A> carry_c;  // the same of c
  Frames<A> dc;             // of the state before: carry_c, or the result
  Frames<S> dz;             // [B, 4C, P]
  const int64_t* lengths;
  int64_t time;
  double* statistics;  // [gridDim.y][gridDim.x][kStepStatistics]: each block's sums; null: not wanted
};

// through: what the convolution of the step after's dz gives at channel and p, and its neighbours.
template <class Act, Along kAlong, class S, int V>
FUSECELL_DEVICE void finish_backward_step(const BackwardStep<S>& step, const Accumulate<S> (&through)[V],
                                          const Span& span, int64_t b, int64_t channel, int64_t p,
                                          StatisticSums<Accumulate<S>>* sums) {
  using A = Accumulate<S>;
  CellGradient<S, V> gradient;
  A mask[V], dy[V];
  if (step.first) {
    load_or_zero(run_at<kAlong>(step.dh_first.image(b), channel, p), span, gradient.dh);
    load_or_zero(run_at<kAlong>(step.dc_first.image(b), channel, p), span, gradient.dc);
  } else {
    load_or_zero(run_at<kAlong>(to_read(step.carry_h).image(b), channel, p), span, gradient.dh);
    load_or_zero(run_at<kAlong>(step.carry_c.image(b), channel, p), span, gradient.dc);
  }
  if (step.dropout_mask) load_or_zero(mask_at<kAlong>(step.dropout_mask, step.cell, b, channel, p), span, mask);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    gradient.dh[j] += step.dropout_mask ? through[j] * mask[j] : through[j];
  }
  if (step.lengths && step.time >= step.lengths[b]) {  // the state went through unchanged
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) gradient.dz[k][j] = A(0);
    }
  } else {
    load_or_zero(run_at<kAlong>(step.dy.image(b), channel, p), span, dy);
#pragma unroll
    for (int j = 0; j < V; ++j) gradient.dh[j] += dy[j];
    int64_t same = 0;
    const CellInputs<S> in = {run_at<kAlong>(image_of(step.c_before, b, same), channel, p),
                              {},
                              mask_at<kAlong>(step.zoneout_mask_h, step.cell, b, channel, p),
                              mask_at<kAlong>(step.zoneout_mask_c, step.cell, b, channel, p)};
    const auto gates = gates_at<kAlong>(step.gates.image(b), step.cell.channels, channel, p);
    cell_backward<Act, kAlong>(step.cell, in, gates, channel, p, span, gradient, sums);
    if (step.detach) {
#pragma unroll
      for (int j = 0; j < V; ++j) gradient.dh[j] = gradient.dc[j] = A(0);
    }
  }
  const auto dz = gates_at<kAlong>(step.dz.image(b), step.cell.channels, channel, p);
#pragma unroll
  for (int k = 0; k < 4; ++k) store_if(dz[k], span, gradient.dz[k]);
  store_if(run_at<kAlong>(step.carry_h.image(b), channel, p), span, gradient.dh);
  store_if(run_at<kAlong>(step.dc.image(b), channel, p), span, gradient.dc);
}

// The block's sums of each thread's.
template <class A>
FUSECELL_DEVICE void store_statistics(double* statistics, StatisticSums<A>& sums, double* warp_squares,
                                      A* warp_others) {
  using Sums = StatisticSums<A>;
  const double square = block_sum(sums.squares, warp_squares), other = block_sum(sums.others, warp_others);
  double* out = statistics + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * kStepStatistics;
  const int k = int(threadIdx.x);
  if (k < Sums::kSquares) out[kDhSquared + k] = square;
  if (k < Sums::kOthers) out[k < kDhSquared ? k : k + Sums::kSquares] = other;
}

template <class S>
struct BackwardStepArgs {
  CorrelateArgs<S> correlate;  // operand 0: dz of the step after; no taps at the first, or where it is detached
  BackwardStep<S> step;
};

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) backward_step(const BackwardStepArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(S, weights, kWeightBuffers);
  FUSECELL_SHARED(A, values, kTileBuffer<S>);
  using Sums = StatisticSums<A>;
  FUSECELL_SHARED(double, warp_squares, kThreads / 32 * Sums::kSquares);
  FUSECELL_SHARED(A, warp_others, kThreads / 32 * Sums::kOthers);
  const Tile<S> tile = correlate_tile(args.correlate, weights, values);
  const int64_t left = args.step.cell.channels - tile.row;
  const int most = 4 << args.correlate.group_shift, channels = left < most ? int(left) : most;
  // A pointer that may be null keeps them in local memory, which costs little: in registers they would make all the
  // kernel spill (up to 64 bytes).
  Sums sums, *wanted = args.step.statistics ? &sums : nullptr;
  for_pieces(args.correlate, tile, channels, args.step.cell.whole,
             [&](int channel, int in_tile, const Span& span, int64_t b, int64_t p) {
               A through[kEndPack<S>];
               load(tile.at(channel, in_tile), span, through);
               finish_backward_step<Act, Along::pixels>(args.step, through, span, b, tile.row + channel, p, wanted);
             });
  if (args.step.statistics) store_statistics(args.step.statistics, sums, warp_squares, warp_others);
}

}  // namespace fusecell::cuda
