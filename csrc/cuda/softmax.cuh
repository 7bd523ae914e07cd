#pragma once
// Softmax along an axis, and its adjoint. Along the innermost axis a warp takes a line; else a thread does, and its
// neighbours take the lines beside it. Sums in float64; one NaN in a line makes all of it NaN.

#include <cuda_runtime.h>

#include <cstdint>

#include "base/scalar.h"
#include "cell/math.h"
#include "cuda/device.cuh"
#include "cuda/packs.cuh"

namespace fusecell::cuda {

template <class S>
struct SoftmaxArgs {
  const S* known;  // x; the adjoint's: y
  const S* dy;     // the adjoint's
  S* out;
  int64_t lines, extent, stride;
  bool adjoint, aligned;
};

// What one thread does for the line that begins at element `at`: with 32 lanes V neighbouring elements at a time, alone
// one element.
template <class S, int V, int kLanes>
struct SoftmaxLine {
  using A = Accumulate<S>;
  const SoftmaxArgs<S>& args;
  int64_t at;
  int lane;

  FUSECELL_HD_METHOD int64_t offset(int64_t i) const { return at + (kLanes == 1 ? i * args.stride : i); }

  // f(element of the line, span), V of them
  template <class F>
  __device__ __forceinline__ void for_line(F&& f) const {
    for_packs<V, kLanes>(0, args.extent, lane, kLanes == 1 || args.aligned,
                         [&](int64_t i, const Span& span) { f(offset(i), span); });
  }

  __device__ __forceinline__ A largest() const {
    // -inf, and not the first element: no lane reads what another may write, since `out` may be the same array.
    A result = A(__builtin_bit_cast(float, 0xFF800000u));
    for_line([&](int64_t i, const Span& span) {
      A x[V];
      load(args.known + i, span, x);
#pragma unroll
      for (int j = 0; j < V; ++j) result = j < span.count && x[j] > result ? x[j] : result;
    });
    return fold_lanes<kLanes>(result, [](A a, A b) { return b > a ? b : a; });
  }

  __device__ __forceinline__ void forward() const {
    const A most = largest();
    double total = 0;
    for_line([&](int64_t i, const Span& span) {
      A x[V];
      load(args.known + i, span, x);
#pragma unroll
      for (int j = 0; j < V; ++j) total += j < span.count ? double(exp_of_negative(x[j] - most)) : 0.0;
    });
    const A inverse = A(1.0 / fold_lanes<kLanes>(total, [](double a, double b) { return a + b; }));
    for_line([&](int64_t i, const Span& span) {
      A x[V];
      load(args.known + i, span, x);
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = exp_of_negative(x[j] - most) * inverse;
      store(args.out + i, span, x);
    });
  }

  // dx = y (dy - sum(y dy))
  __device__ __forceinline__ void adjoint() const {
    double dot = 0;
    for_line([&](int64_t i, const Span& span) {
      A y[V], dy[V];
      load(args.known + i, span, y);
      load(args.dy + i, span, dy);
#pragma unroll
      for (int j = 0; j < V; ++j) dot += double(y[j]) * double(dy[j]);  // 0 where there is no element
    });
    dot = fold_lanes<kLanes>(dot, [](double a, double b) { return a + b; });
    for_line([&](int64_t i, const Span& span) {
      A y[V], dy[V];
      load(args.known + i, span, y);
      load(args.dy + i, span, dy);
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] = A(double(y[j]) * (double(dy[j]) - dot));
      store(args.out + i, span, y);
    });
  }

  __device__ __forceinline__ void run() const { args.adjoint ? adjoint() : forward(); }
};

template <class S>
__global__ void __launch_bounds__(kThreads) softmax(const SoftmaxArgs<S> args) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (args.stride == 1) {
    const int64_t line = thread / 32;
    if (line >= args.lines) return;  // all of the warp
    SoftmaxLine<S, kPack<S>, 32>{args, line * args.extent, int(threadIdx.x % 32)}.run();
  } else {
    if (thread >= args.lines) return;
    const int64_t outer = quotient(thread, args.stride), inner = thread - outer * args.stride;
    SoftmaxLine<S, 1, 1>{args, outer * args.stride * args.extent + inner, 0}.run();
  }
}

}  // namespace fusecell::cuda
