#pragma once
// Activations and their adjoints: a pack a thread.

#include <cuda_runtime.h>

#include <cstdint>

#include "base/scalar.h"
#include "cell/activation.h"
#include "cuda/device.cuh"
#include "cuda/packs.cuh"

namespace fusecell::cuda {

template <class S>
struct ActivationArgs {
  const S* known;  // x; for the adjoint of an activation whose output determines its derivative, y
  const S* dy;     // the adjoint's
  S* out;
  int64_t size;
  ActivationParameters<Accumulate<S>> parameters;
  Activation kind;
  bool adjoint, aligned;
};

// The branch over the activations stands around a whole pack: every element's own would be the longer part of relu.
template <class S, int V, int kFirst = 0, class A>
FUSECELL_DEVICE void activate_pack(const ActivationArgs<S>& args, const A (&known)[V], const A (&dy)[V], A (&out)[V]) {
  constexpr auto kKind = Activation(kFirst);
  if (args.kind != kKind) {
    if constexpr (kKind != Activation::softsign) activate_pack<S, V, kFirst + 1>(args, known, dy, out);
  } else if (args.adjoint) {
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = activate_adjoint(kKind, args.parameters, known[j], known[j], dy[j]);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = activate(kKind, args.parameters, known[j]);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) activation(const ActivationArgs<S> args) {
  using A = Accumulate<S>;
  constexpr int V = kPack<S>;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (first >= args.size) return;
  const Span span = span_at<V>(first, args.size, args.aligned);
  A known[V], dy[V] = {}, out[V] = {};
  load(args.known + first, span, known);
  if (args.adjoint) load(args.dy + first, span, dy);
  activate_pack(args, known, dy, out);
  store(args.out + first, span, out);
}

}  // namespace fusecell::cuda
