#pragma once
// One step of a ConvLSTM in one kernel: the convolutions of x_t and h' in one accumulation, then bias and gates. z
// stays on the chip. The rows are interleaved, so that one thread finds all four gates of what it has.

#include "cuda/cell_pack.cuh"
#include "cuda/correlate.cuh"

namespace fusecell::cuda {

// What a step is besides its convolutions. Masks are [B, C, P].
template <class S>
struct ForwardStep {
  using A = Accumulate<S>;
  CellArgs<S> cell;
  Images<S> h_before;  // [B, C, P]; read again by zoneout
  Images<A> c_before;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;
  Frames<S> y, h_n;        // [B, C, P]; null: not wanted
  Frames<A> c_n;           // the same; carries the running state where c is not saved
  Frames<A> c;             // [B, C, P]; null: not wanted
  Frames<S> gates;         // [B, 4C, P]; null: not wanted
  Frames<S> h_next;        // [B, C, P]: h times the mask, as the next step's convolution reads it; null: it reads y
  const S* dropout_mask;   // for h_next; null: none
  const int64_t* lengths;  // [B] or null
  int64_t time, steps;
  bool reverse;
};

// Whether the step is the sample's last: then its state is the final one.
template <class S>
FUSECELL_DEVICE bool is_last(const ForwardStep<S>& step, int64_t b) {
  if (step.reverse) return step.time == 0;
  return step.time + 1 == step.steps || (step.lengths && step.time + 1 == step.lengths[b]);
}

// A mask [B, C, P] at (b, channel, p), along the pack.
template <Along kAlong, class T, class S>
FUSECELL_DEVICE Pixels<const T> mask_at(const T* mask, const CellArgs<S>& cell, int64_t b, int64_t channel, int64_t p) {
  if (!mask) return {};
  return {mask + (b * cell.channels + channel) * cell.pixels + p, kAlong == Along::pixels ? 1 : cell.pixels};
}

// Beyond a sample's length everything is 0, and the state is what it was: the initial one, if there is no length.
template <Along kAlong, int V, class S>
FUSECELL_DEVICE void clear_step(const ForwardStep<S>& step, const Span& span, int64_t b, int64_t channel, int64_t p) {
  using A = Accumulate<S>;
  const A zero[V] = {};
  store_if(run_at<kAlong>(step.y.image(b), channel, p), span, zero);
  store_if(run_at<kAlong>(step.h_next.image(b), channel, p), span, zero);
  store_if(run_at<kAlong>(step.c.image(b), channel, p), span, zero);
  if (step.time == 0) {
    A state[V];
    load_or_zero(run_at<kAlong>(step.h_before.initial.image(b), channel, p), span, state);
    store_if(run_at<kAlong>(step.h_n.image(b), channel, p), span, state);
    load_or_zero(run_at<kAlong>(step.c_before.initial.image(b), channel, p), span, state);
    store_if(run_at<kAlong>(step.c_n.image(b), channel, p), span, state);
  }
  const GatesAt<S> gates = gates_at<kAlong>(step.gates.image(b), step.cell.channels, channel, p);
#pragma unroll
  for (int k = 0; k < 4; ++k) store_if(gates[k], span, zero);
}

// z: the convolutions' sum at channel and p, and its neighbours.
template <class Act, Along kAlong, class S, int V>
FUSECELL_DEVICE void finish_step(const ForwardStep<S>& step, Accumulate<S> (&z)[4][V], const Span& span, int64_t b,
                                 int64_t channel, int64_t p) {
  using A = Accumulate<S>;
  if (step.lengths && step.time >= step.lengths[b]) return clear_step<kAlong, V>(step, span, b, channel, p);
  int64_t same = 0;
  CellInputs<S> in = {run_at<kAlong>(image_of(step.c_before, b, same), channel, p),
                      {},
                      mask_at<kAlong>(step.zoneout_mask_h, step.cell, b, channel, p),
                      mask_at<kAlong>(step.zoneout_mask_c, step.cell, b, channel, p)};
  if (step.cell.flags.zoneout_h) in.h = run_at<kAlong>(image_of(step.h_before, b, same), channel, p);
  CellOutputs<S> out = {run_at<kAlong>(step.y.image(b), channel, p),
                        {},
                        run_at<kAlong>(step.c.image(b), channel, p),
                        {},
                        gates_at<kAlong>(step.gates.image(b), step.cell.channels, channel, p)};
  const bool last = is_last(step, b);
  if (last) out.h_copy = run_at<kAlong>(step.h_n.image(b), channel, p);
  if (last || !step.c.data) out.c_copy = run_at<kAlong>(step.c_n.image(b), channel, p);
  A h[V];
  cell_forward<Act, kAlong>(step.cell, in, channel, p, span, z, out, h);
  if (!step.h_next.data) return;
  if (step.dropout_mask) {
    A mask[V];
    load_or_zero(mask_at<kAlong>(step.dropout_mask, step.cell, b, channel, p), span, mask);
#pragma unroll
    for (int j = 0; j < V; ++j) h[j] = widen(narrow<S>(h[j])) * mask[j];
  }
  store_if(run_at<kAlong>(step.h_next.image(b), channel, p), span, h);
}

template <class S>
struct ForwardStepArgs {
  CorrelateArgs<S> correlate;  // operand 1: the state; without a step before and without h_0, no taps
  ForwardStep<S> step;
};

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) forward_step(const ForwardStepArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(S, weights, kWeightBuffers);
  FUSECELL_SHARED(A, values, kTileBuffer<S>);
  const Tile<S> tile = correlate_tile(args.correlate, weights, values);
  const int64_t first = tile.row / 4, left = args.step.cell.channels - first;
  const int most = 1 << args.correlate.group_shift, channels = left < most ? int(left) : most;
  for_pieces(args.correlate, tile, channels, args.step.cell.whole,
             [&](int channel, int in_tile, const Span& span, int64_t b, int64_t p) {
               A z[4][kEndPack<S>];
#pragma unroll
               for (int k = 0; k < 4; ++k) load(tile.at(4 * channel + k, in_tile), span, z[k]);
               finish_step<Act, Along::pixels>(args.step, z, span, b, first + channel, p);
             });
}

}  // namespace fusecell::cuda
