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
  CorrelateArgs<S> correlate;  // operand 1: the state; without a step before and without h_0, no stages
  CellArgs<S> cell;
  Images<S> h_before;  // [B, C, P]; read again by zoneout
  Images<A> c_before;
  A* c_running;                                    // [B, C, P], in place of c_before where c is not saved; else null
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, P]
  S *y, *h_n, *gates;                              // [B, C, P], [B, C, P], [B, 4C, P]; null: not wanted
  A *c, *c_n;                                      // [B, C, P]; null: not wanted
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

// Beyond a sample's length everything is 0, and the state is what it was.
template <class S>
FUSECELL_DEVICE void clear_step(const ForwardStepArgs<S>& args, int64_t at, int64_t at_gate, const Span& span) {
  const Accumulate<S> zero[kEndPack<S>] = {};
  store_if(shifted(args.y, at), span, zero);
  store_if(shifted(args.c, at), span, zero);
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
  if (args.lengths && args.time >= args.lengths[b]) return clear_step(args, at, at_gate, span);
  int64_t same = 0;
  const A* c_image = args.c_running ? args.c_running + b * C * P : image_of(args.c_before, b, same);
  const A* c_before = shifted(c_image, in_sample);
  A z[4][V];
#pragma unroll
  for (int k = 0; k < 4; ++k) load(tile.at(4 * channel_in_tile + k, in_tile), span, z[k]);
  const S* h_before = args.cell.flags.zoneout_h ? shifted(image_of(args.h_before, b, same), in_sample) : nullptr;
  const CellInputs<S> in = {c_before, h_before, shifted(args.zoneout_mask_h, at), shifted(args.zoneout_mask_c, at)};
  const bool last = is_last(args, b);
  A* c_copy = args.c_running ? args.c_running + at : last ? shifted(args.c_n, at) : nullptr;
  const CellOutputs<S> out = {shifted(args.y, at), last ? shifted(args.h_n, at) : nullptr, shifted(args.c, at), c_copy,
                              shifted(args.gates, at_gate)};
  cell_forward<Act>(args.cell, in, channel, p, span, z, out);
}

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<S>) forward_step(const ForwardStepArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(A, weights, 2 * kDepth * kMostRows);
  FUSECELL_SHARED(A, pixels, 2 * kPixelBuffer<A>);
  const Tile<S> tile = correlate_tile(args.correlate, weights, pixels);
  const int64_t left = args.cell.channels - tile.row / 4;
  const int most = 1 << args.correlate.group_shift, channels = left < most ? int(left) : most;
  for_pieces(args.correlate, tile, channels, args.cell.whole,
             [&](int channel, int in_tile, const Span& span, int64_t b, int64_t p) {
               finish_step<Act>(args, tile, channel, in_tile, span, b, p);
             });
}

}  // namespace fusecell::cuda
