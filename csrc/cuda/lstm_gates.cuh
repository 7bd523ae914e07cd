#pragma once
// The pointwise tier alone: (z, c') -> (h, c) and its adjoint, one read and one write of every tensor.

#include "cuda/cell_pack.cuh"

namespace fusecell::cuda {

// Blocks of a multiprocessor, at least: what waits for memory wants many loads under way. With any activation, 8 pixels
// of 16 bits do not fit into half of the registers.
template <class S, class Act>
constexpr int kGatesAtOnce = 1;
template <class S>
constexpr int kGatesAtOnce<S, SigmoidTanh<float>> = 2;

// ---------------------------------------------------------------------------------------------------------- forward
template <class S>
struct GatesForwardArgs {
  CellArgs<S> cell;
  int64_t planes, packs;  // B * C, and packs of pixels in a plane
  const S *z, *h;         // [B, 4C, P], [B, C, P]; h: null where nothing reads it
  const Accumulate<S>* c;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // null: none
  S *h_out, *gates;                                // gates as z; null: not wanted
  Accumulate<S>* c_out;
};

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kGatesAtOnce<S, Act>) gates_forward(const GatesForwardArgs<S> args) {
  constexpr int V = kPack<S>;
  const int64_t C = args.cell.channels, P = args.cell.pixels;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, plane = quotient(i, args.packs);
  if (plane >= args.planes) return;
  const int64_t p = (i - plane * args.packs) * V, b = quotient(plane, C), channel = plane - b * C;
  const Span span = {P - p < V ? int(P - p) : V, args.cell.whole};
  const int64_t at = plane * P + p, at_gate = (b * 4 * C + channel) * P + p;

  Accumulate<S> z[4][V], h[V];
#pragma unroll
  for (int k = 0; k < 4; ++k) load(args.z + at_gate + k * C * P, span, z[k]);
  const CellInputs<S> in = {
      {args.c + at}, {shifted(args.h, at)}, {shifted(args.zoneout_mask_h, at)}, {shifted(args.zoneout_mask_c, at)}};
  const CellOutputs<S> out = {{args.h_out + at}, {}, {args.c_out + at}, {}, {{shifted(args.gates, at_gate)}, C * P}};
  cell_forward<Act, Along::pixels>(args.cell, in, channel, p, span, z, out, h);
}

// --------------------------------------------------------------------------------------------------------- backward
// A block stays within one channel, so that it can sum that channel's gradients. Gradients per pixel are sums over the
// batch: parameter_gradient's work.
template <class S>
struct GatesBackwardArgs {
  CellArgs<S> cell;
  int64_t batch, packs;
  const S* gates;  // [B, 4C, P]
  const Accumulate<S>* c;
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // null: none
  const S* dh;                                     // null: zero
  const Accumulate<S>* dc;                         // null: zero
  S *dz, *dh_before;                               // dh_before: null where not wanted
  Accumulate<S>* dc_before;
  double*
      partial;  // [gridDim.x][7C]: per block, rows i, f, g, o of the bias, i, f, o of the peepholes; null: not wanted
};

// Pixels of a thread: 16 bytes of the float32 state. With 8 pixels of 16 bits a thread would take 225 registers, and a
// multiprocessor had room for one block.
template <class S>
constexpr int kGatesBackwardPack = 16 / int(sizeof(Accumulate<S>));

constexpr int kCellSums = 7;

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kGatesAtOnce<S, Act>) gates_backward(const GatesBackwardArgs<S> args) {
  using A = Accumulate<S>;
  constexpr int V = kGatesBackwardPack<S>;
  FUSECELL_SHARED(A, shared, kThreads / 32 * kCellSums);
  const int64_t C = args.cell.channels, P = args.cell.pixels, channel = blockIdx.y;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = quotient(i, args.packs);
  A sum[kCellSums] = {};
  if (b < args.batch) {
    const int64_t p = (i - b * args.packs) * V;
    const Span span = {P - p < V ? int(P - p) : V, args.cell.whole};
    const int64_t at = (b * C + channel) * P + p, at_gate = (b * 4 * C + channel) * P + p;
    CellGradient<S, V> gradient;
    load_or_zero(shifted(args.dh, at), span, gradient.dh);
    load_or_zero(shifted(args.dc, at), span, gradient.dc);
    const CellInputs<S> in = {
        {args.c + at}, {}, {shifted(args.zoneout_mask_h, at)}, {shifted(args.zoneout_mask_c, at)}};
    cell_backward<Act, Along::pixels>(args.cell, in, GatesAt<const S>{{args.gates + at_gate}, C * P}, channel, p, span,
                                      gradient);
#pragma unroll
    for (int k = 0; k < 4; ++k) store(args.dz + at_gate + k * C * P, span, gradient.dz[k]);
    store(args.dc_before + at, span, gradient.dc);
    store_if(shifted(args.dh_before, at), span, gradient.dh);
#pragma unroll
    for (int k = 0; k < kCellSums; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const A term = k < 4 ? gradient.dz[k & 3][j] : gradient.peephole[k < 4 ? 0 : k - 4][j];
        sum[k] += j < span.count ? term : A(0);
      }
    }
  }
  if (!args.partial) return;
  const double total = block_sum(sum, shared);
  if (threadIdx.x < kCellSums) {
    args.partial[(int64_t(blockIdx.x) * kCellSums + threadIdx.x) * C + channel] = total;
  }
}

}  // namespace fusecell::cuda
