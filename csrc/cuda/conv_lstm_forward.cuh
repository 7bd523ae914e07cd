#pragma once
// One step of a ConvLSTM in one kernel: the convolutions of x_t and h' in one accumulation, then bias and gates. z
// stays in shared memory. The rows are interleaved, row = 4 * channel + gate, so that one thread finds all four gates
// of its pixels.

#include "cuda/cell_pack.cuh"
#include "cuda/correlate.cuh"

namespace fusecell::cuda {

template <class S>
struct ForwardStepArgs {
  using A = Accumulate<S>;
  CorrelateArgs<S> correlate;  // operand 1: the state; without a step before and without h_0, no taps
  CellArgs<S> cell;
  Images<S> h_before;  // [B, C, P]; read again by zoneout
  Images<A> c_before;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, P]
  Frames<S> y, h_n;                                // [B, C, P]; null: not wanted
  Frames<A> c_n;                                   // the same; carries the running state where c is not saved
  A* c;                                            // [B, C, P]; null: not wanted
  S* gates;                                        // [B, 4C, P]; null: not wanted
  const int64_t* lengths;                          // [B] or null
  int64_t time, steps;
  bool reverse;
};

// Whether the step is the sample's last: then its state is the final one.
template <class S>
FUSECELL_DEVICE bool is_last(const ForwardStepArgs<S>& args, int64_t b) {
  if (args.reverse) return args.time == 0;
  return args.time + 1 == args.steps || (args.lengths && args.time + 1 == args.lengths[b]);
}

// Beyond a sample's length everything is 0, and the state is what it was: the initial one, if there is no length.
template <class S>
FUSECELL_DEVICE void clear_step(const ForwardStepArgs<S>& args, const Span& span, int64_t b, int64_t channel, int64_t p,
                                int64_t at, int64_t at_gate) {
  using A = Accumulate<S>;
  const A zero[kEndPack<S>] = {};
  store_if(args.y.image(b).at(channel, p), span, zero);
  store_if(shifted(args.c, at), span, zero);
  if (args.time == 0) {
    A state[kEndPack<S>];
    load_or_zero(args.h_before.initial.image(b).at(channel, p), span, state);
    store_if(args.h_n.image(b).at(channel, p), span, state);
    load_or_zero(args.c_before.initial.image(b).at(channel, p), span, state);
    store_if(args.c_n.image(b).at(channel, p), span, state);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    store_if(shifted(args.gates, at_gate + k * args.cell.channels * args.cell.pixels), span, zero);
  }
}

template <class Act, class S>
FUSECELL_DEVICE void finish_step(const ForwardStepArgs<S>& args, const Tile<S>& tile, int channel_in_tile, int in_tile,
                                 const Span& span, int64_t b, int64_t p) {
  using A = Accumulate<S>;
  constexpr int V = kEndPack<S>;
  const int64_t C = args.cell.channels, P = args.cell.pixels, channel = tile.row / 4 + channel_in_tile;
  const int64_t in_sample = channel * P + p, at = b * C * P + in_sample, at_gate = b * 4 * C * P + in_sample;
  if (args.lengths && args.time >= args.lengths[b]) return clear_step(args, span, b, channel, p, at, at_gate);
  int64_t same = 0;
  A z[4][V];
#pragma unroll
  for (int k = 0; k < 4; ++k) load(tile.at(4 * channel_in_tile + k, in_tile), span, z[k]);
  CellInputs<S> in = {image_of(args.c_before, b, same).at(channel, p),
                      {},
                      shifted(args.zoneout_mask_h, at),
                      shifted(args.zoneout_mask_c, at)};
  if (args.cell.flags.zoneout_h) in.h = image_of(args.h_before, b, same).at(channel, p);
  CellOutputs<S> out = {args.y.image(b).at(channel, p), {}, shifted(args.c, at), {}, shifted(args.gates, at_gate)};
  const bool last = is_last(args, b);
  if (last) out.h_copy = args.h_n.image(b).at(channel, p);
  if (last || !args.c) out.c_copy = args.c_n.image(b).at(channel, p);
  cell_forward<Act>(args.cell, in, channel, p, span, z, out);
}

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) forward_step(const ForwardStepArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(S, weights, kWeightBuffers<S>);
  FUSECELL_SHARED(A, values, kTileBuffer<S>);
  const Tile<S> tile = correlate_tile(args.correlate, weights, values);
  const int64_t left = args.cell.channels - tile.row / 4;
  const int most = 1 << args.correlate.group_shift, channels = left < most ? int(left) : most;
  for_pieces(args.correlate, tile, channels, args.cell.whole,
             [&](int channel, int in_tile, const Span& span, int64_t b, int64_t p) {
               finish_step<Act>(args, tile, channel, in_tile, span, b, p);
             });
}

}  // namespace fusecell::cuda
