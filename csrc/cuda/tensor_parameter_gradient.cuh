#pragma once
// Gradients that are sums of dz alone or of dz times the cell's state, of tensors with channels last: of a bias per
// pixel, and of peepholes.

#include "cell/gates.h"
#include "cuda/gather.cuh"

namespace fusecell::cuda {

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
