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

template <Activation kKind>
struct Kind {
  static constexpr Activation value = kKind;
};

// f(Kind<kind>{}). One branch for a whole pack: every element's own would be the longer part of relu.
template <int kFirst = 0, class F>
FUSECELL_DEVICE void with_kind(Activation kind, F&& f) {
  if constexpr (kFirst <= int(Activation::softsign)) {
    if (int(kind) == kFirst) {
      f(Kind<Activation(kFirst)>{});
    } else {
      with_kind<kFirst + 1>(kind, f);
    }
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
  with_kind(args.kind, [&](auto kind) {
    constexpr Activation kKind = decltype(kind)::value;
    if (args.adjoint) {
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = activate_adjoint(kKind, args.parameters, known[j], known[j], dy[j]);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) out[j] = activate(kKind, args.parameters, known[j]);
    }
  });
  store(args.out + first, span, out);
}

}  // namespace fusecell::cuda
