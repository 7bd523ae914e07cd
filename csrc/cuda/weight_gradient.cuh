#pragma once
// The gradients of the weights, of the bias and of the peepholes over a chunk of steps. Each sum over pixels is cut
// into a number of parts that depends on the shape alone; a second kernel adds the parts in their order.

#include "cell/gates.h"
#include "cuda/gather.cuh"
#include "cuda/packs.cuh"

namespace fusecell::cuda {

// -------------------------------------------------------------------------------------------------- dW = dz image^T
constexpr int kGradientTile = 64;                  // rows of dz, and taps
constexpr int kGradientDepth = 16;                 // pixels of a stage
constexpr int kGradientPitch = kGradientTile + 4;  // fewer bank conflicts, and still 16-byte aligned
constexpr int kGradientLoads = kGradientTile * kGradientDepth / kThreads;

template <class S>
struct WeightGradientArgs {
  Images<S> images;
  Geometry geometry;
  const Tap* taps;          // as correlate's, in the order of a weight's elements
  const S* dz;              // [samples, rows, P]; zero where a step does not take place
  int64_t rows, count;      // of dz; of the taps
  int64_t samples, pixels;  // P of dz
  int64_t pixels_per_part;  // a multiple of kGradientDepth
  Accumulate<S>* partial;   // [gridDim.z][rows][count]
};

template <class S>
__global__ void __launch_bounds__(kThreads) weight_gradient(const WeightGradientArgs<S> args) {
  using A = Accumulate<S>;
  constexpr int kEach = 4;  // a thread's rows, and its taps
  FUSECELL_SHARED(A, dz_tile, 2 * kGradientDepth * kGradientPitch);
  FUSECELL_SHARED(A, image_tile, 2 * kGradientDepth * kGradientPitch);
  const int64_t row = int64_t(blockIdx.y) * kGradientTile, tap = int64_t(blockIdx.x) * kGradientTile;
  const int64_t total = args.samples * args.pixels, first = int64_t(blockIdx.z) * args.pixels_per_part;
  const int64_t end = first + args.pixels_per_part < total ? first + args.pixels_per_part : total;
  const int64_t stages = (end - first + kGradientDepth - 1) / kGradientDepth;
  // Loads: one pixel, kGradientLoads rows and as many taps. Products: 4 rows by 4 taps.
  const int load_pixel = int(threadIdx.x) % kGradientDepth, load_line = int(threadIdx.x) / kGradientDepth;
  const int my_row = int(threadIdx.x) / 16 * kEach, my_tap = int(threadIdx.x) % 16 * kEach;

  Tap taps[kGradientLoads];
#pragma unroll
  for (int i = 0; i < kGradientLoads; ++i) {
    const int64_t k = tap + load_line + i * (kGradientTile / kGradientLoads);
    taps[i] = args.taps[k < args.count ? k : 0];
    if (k >= args.count) taps[i].h = kNowhere;
  }
  A sum[kEach][kEach] = {};
  A fetched_dz[kGradientLoads], fetched_image[kGradientLoads];
  int buffer = 0;
  for (int64_t next = 0; next <= stages; ++next) {  // loads stage `next` while it multiplies the one before
    if (next > 0) __syncthreads();
    if (next < stages) {
      const int64_t at = first + next * kGradientDepth + load_pixel, n = quotient(at, args.pixels);
      const int64_t p = at - n * args.pixels;
      const bool inside = at < end;
      Column<S> column;
      if (inside) column = column_of(args.images, args.geometry, n, p);
#pragma unroll
      for (int i = 0; i < kGradientLoads; ++i) {
        const int64_t r = row + load_line + i * (kGradientTile / kGradientLoads);
        fetched_image[i] = widen(masked(gather<false>(column, args.geometry, taps[i]), column, args.geometry, taps[i]));
        // Where the image reads as zero because the step does not take place, dz is zero, too.
        fetched_dz[i] = inside && r < args.rows ? widen(args.dz[(n * args.rows + r) * args.pixels + p]) : A(0);
      }
    }
    if (next > 0) {
      const int from = (buffer ^ 1) * kGradientDepth * kGradientPitch;
      const Span whole = {0, true};
#pragma unroll
      for (int q = 0; q < kGradientDepth; ++q) {
        A d[kEach], x[kEach];
        load(dz_tile + from + q * kGradientPitch + my_row, whole, d);
        load(image_tile + from + q * kGradientPitch + my_tap, whole, x);
#pragma unroll
        for (int r = 0; r < kEach; ++r) {
#pragma unroll
          for (int k = 0; k < kEach; ++k) sum[r][k] += d[r] * x[k];
        }
      }
    }
    if (next < stages) {
      const int to = (buffer * kGradientDepth + load_pixel) * kGradientPitch + load_line;
#pragma unroll
      for (int i = 0; i < kGradientLoads; ++i) {
        dz_tile[to + i * (kGradientTile / kGradientLoads)] = fetched_dz[i];
        image_tile[to + i * (kGradientTile / kGradientLoads)] = fetched_image[i];
      }
    }
    buffer ^= 1;
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int64_t at_row = row + my_row + r, at_tap = tap + my_tap + k;
      if (at_row < args.rows && at_tap < args.count) {
        args.partial[(int64_t(blockIdx.z) * args.rows + at_row) * args.count + at_tap] = sum[r][k];
      }
    }
  }
}

// ------------------------------------------------------------------------------------------- bias and peepholes
template <class S>
struct ParameterGradientArgs {
  const S* dz;  // [samples, rows of dz, P]
  int64_t dz_rows, samples, pixels;
  int64_t rows;  // of the parameter: dz_rows for a bias, 3C for peepholes
  bool peephole, per_pixel;
  const S* gates;  // [samples, 4C, P], as saved; peepholes only
  Images<Accumulate<S>> c_before;
  Activation gate_kind, state_kind;
  ActivationParameters<Accumulate<S>> activation;
  int64_t per_part;  // of samples * pixels, per channel only
  double* partial;   // [parts][rows], or [rows, P]
};

// What element (n, p) adds to row `row`: dz, or dz times the state that the peephole looks at.
template <class S>
FUSECELL_DEVICE Accumulate<S> parameter_term(const ParameterGradientArgs<S>& args, int64_t row, int64_t n, int64_t p) {
  using A = Accumulate<S>;
  const int64_t P = args.pixels;
  if (!args.peephole) return widen(args.dz[(n * args.dz_rows + row) * P + p]);
  const int64_t C = args.dz_rows / 4, which = row / C, channel = row - which * C;
  int64_t b = 0;
  const Images<A>& states = args.c_before;
  const int64_t slot = quotient(n, states.batch);
  if (!takes_place(states, n - slot * states.batch, states.time + slot)) return A(0);
  const Pixels<const A> state = image_of(states, n, b).at(channel, p);
  const A c = state.data ? *state.data : A(0);
  const S* gates = args.gates + (n * 4 * C + channel) * P + p;
  const A dz = widen(args.dz[(n * 4 * C + (which == 2 ? 3 : which) * C + channel) * P + p]);
  if (which < 2) return dz * c;
  const AnyActivation<A> act = {args.gate_kind, args.state_kind, args.activation};
  const A i = act.gate_of_saved(widen(gates[0])), f = act.gate_of_saved(widen(gates[C * P]));
  const A g = act.state_of_saved(widen(gates[2 * C * P]));
  return dz * (f * c + i * g);
}

template <class S>
__global__ void __launch_bounds__(kThreads) parameter_gradient(const ParameterGradientArgs<S> args) {
  using A = Accumulate<S>;
  FUSECELL_SHARED(double, warps, kThreads / 32);
  const int64_t row = blockIdx.y;
  if (args.per_pixel) {
    const int64_t p = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (p >= args.pixels) return;
    double sum = 0;
    for (int64_t n = 0; n < args.samples; ++n) sum += double(parameter_term(args, row, n, p));
    args.partial[row * args.pixels + p] = sum;
    return;
  }
  const int64_t total = args.samples * args.pixels, first = int64_t(blockIdx.x) * args.per_part;
  const int64_t end = first + args.per_part < total ? first + args.per_part : total;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
    const int64_t n = quotient(i, args.pixels);
    const A term = parameter_term(args, row, n, i - n * args.pixels);
    sum += double(term);
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += device::shuffle_xor(sum, mask);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) sum += warps[w];
    args.partial[int64_t(blockIdx.x) * args.rows + row] = sum;
  }
}

// ---------------------------------------------------------------------------------------------------- adding the parts
template <class T>
struct ReduceArgs {
  const T* partial;  // [parts][stride], of which the first n are taken
  int64_t parts, n, stride;
  T* running;        // [n]: the chunks before, which this one joins; null: there is one chunk only
  bool first, last;  // of the chunks
  void* out;         // [n], written at the last
  Stored stored;
};

template <class S>
struct StoreSum {
  static __device__ __forceinline__ void run(void* out, int64_t i, double sum) {
    static_cast<S*>(out)[i] = narrow<S>(Accumulate<S>(sum));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) reduce_parts(const ReduceArgs<T> args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.n) return;
  double sum = args.first ? 0.0 : double(args.running[i]);
  for (int64_t part = 0; part < args.parts; ++part) sum += double(args.partial[part * args.stride + i]);
  if (!args.last) {
    args.running[i] = T(sum);
    return;
  }
  with_stored<StoreSum>(args.stored, args.out, i, sum);
}

}  // namespace fusecell::cuda
