#pragma once
// The pointwise tier on some neighbouring pixels of one channel, or neighbouring channels of one pixel: 16 bytes of
// the widest tensor. The gates op and the endings of the fused steps all go through here.

#include "cell/gates.h"
#include "cell/statistics.h"
#include "cuda/device.cuh"
#include "problem/frames.h"

namespace fusecell::cuda {

// What neighbours in a pack are.
enum class Along { pixels, channels };

// From (channel, p) on.
template <Along kAlong, class T>
FUSECELL_DEVICE Pixels<T> run_at(const Image<T>& image, int64_t channel, int64_t p) {
  return {image.at(channel, p).data, kAlong == Along::pixels ? image.pixel : image.channel};
}

// The cell's options, uniform over a launch. Parameters are [4C], [3C] or, per pixel, [4C, P], [3C, P]; null: none.
template <class S>
struct CellArgs {
  using A = Accumulate<S>;
  CellFlags flags;
  Activation gate_kind, state_kind;
  ActivationParameters<A> activation;
  A zoneout_h, zoneout_c;  // used where there is no mask
  const S *bias, *peephole;
  bool bias_per_pixel, peephole_per_pixel;
  bool whole;  // accesses of whole packs are possible: pixels or channels are a multiple of it, the tensors aligned
  int64_t channels, pixels;
};

template <class S>
FUSECELL_DEVICE SigmoidTanh<Accumulate<S>> policy(const CellArgs<S>&, const SigmoidTanh<Accumulate<S>>*) {
  return {};
}
template <class S>
FUSECELL_DEVICE AnyActivation<Accumulate<S>> policy(const CellArgs<S>& cell, const AnyActivation<Accumulate<S>>*) {
  return {cell.gate_kind, cell.state_kind, cell.activation};
}

// Rows from `row` on of a parameter, or that row at pixels p and on.
template <Along kAlong, class S, int V, class A>
FUSECELL_DEVICE void load_parameter(const S* parameter, bool per_pixel, int64_t row, int64_t pixels, int64_t p,
                                    const Span& span, A (&to)[V]) {
  if (!parameter) {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = A(0);
  } else if (per_pixel) {
    load(parameter + row * pixels + p, kAlong == Along::pixels ? span : Span{span.count, false, pixels}, to);
  } else if (kAlong == Along::channels) {
    load(parameter + row, span, to);
  } else {
    const A value = widen(parameter[row]);
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = value;
  }
}

// The share of the old state that is kept: a mask's 0 or 1, or the rate.
template <int V, class A>
FUSECELL_DEVICE void load_share(const Pixels<const uint8_t>& mask, A rate, const Span& span, A (&to)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = mask.data ? A(j < span.count && mask.data[j * mask.stride] != 0) : rate;
}

template <class T, int V, class A>
FUSECELL_DEVICE void load_or_zero(const T* from, const Span& span, A (&to)[V]) {
  if (from) {
    load(from, span, to);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = A(0);
  }
}

template <class T, int V, class A>
FUSECELL_DEVICE void store_if(T* to, const Span& span, const A (&from)[V]) {
  if (to) store(to, span, from);
}

// The same where pixels need not be neighbours.
FUSECELL_DEVICE Span with_stride(const Span& span, int64_t stride) {
  return {span.count, span.whole && stride == 1, stride};
}

template <class T, int V, class A>
FUSECELL_DEVICE void load_or_zero(const Pixels<const T>& from, const Span& span, A (&to)[V]) {
  load_or_zero(from.data, with_stride(span, from.stride), to);
}

template <class T, int V, class A>
FUSECELL_DEVICE void store_if(const Pixels<T>& to, const Span& span, const A (&from)[V]) {
  store_if(to.data, with_stride(span, to.stride), from);
}

template <class T>
FUSECELL_DEVICE T* shifted(T* base, int64_t by) {
  return base ? base + by : nullptr;
}

// What forward and backward both read at (channel, p), already pointing at it; null: zero, or not needed.
template <class S>
struct CellInputs {
  Pixels<const Accumulate<S>> c;
  Pixels<const S> h;  // only zoneout reads it
  Pixels<const uint8_t> zoneout_mask_h, zoneout_mask_c;
};

// All gates at (channel, p): those of gate k `gate` elements further on each.
template <class T>
struct GatesAt {
  Pixels<T> first;
  int64_t gate;

  FUSECELL_DEVICE_METHOD Pixels<T> operator[](int k) const {
    return {first.data ? first.data + k * gate : nullptr, first.stride};
  }
};
template <Along kAlong, class T>
FUSECELL_DEVICE GatesAt<T> gates_at(const Image<T>& gates, int64_t channels, int64_t channel, int64_t p) {
  return {run_at<kAlong>(gates, channel, p), channels * gates.channel};
}

template <class S, int V>
struct OperandPack {
  using A = Accumulate<S>;
  A p_i[V], p_f[V], p_o[V], c[V], m_h[V], m_c[V];

  FUSECELL_HD_METHOD CellOperands<A> at(int j) const { return {p_i[j], p_f[j], p_o[j], c[j], m_h[j], m_c[j]}; }
};

template <Along kAlong, class S, int V>
FUSECELL_DEVICE void load_operands(const CellArgs<S>& cell, const CellInputs<S>& in, int64_t channel, int64_t p,
                                   const Span& span, OperandPack<S, V>& to) {
  const int64_t C = cell.channels;
  load_parameter<kAlong>(cell.peephole, cell.peephole_per_pixel, channel, cell.pixels, p, span, to.p_i);
  load_parameter<kAlong>(cell.peephole, cell.peephole_per_pixel, C + channel, cell.pixels, p, span, to.p_f);
  load_parameter<kAlong>(cell.peephole, cell.peephole_per_pixel, 2 * C + channel, cell.pixels, p, span, to.p_o);
  load_or_zero(in.c, span, to.c);
  load_share(in.zoneout_mask_h, cell.zoneout_h, span, to.m_h);
  load_share(in.zoneout_mask_c, cell.zoneout_c, span, to.m_c);
}

// ---------------------------------------------------------------------------------------------------------- forward
// Where the results go, pointing at (channel, p). Null: not wanted.
template <class S>
struct CellOutputs {
  Pixels<S> h, h_copy;
  Pixels<Accumulate<S>> c, c_copy;
  GatesAt<S> gates;
};

// z: what the convolutions add up to, without bias. h: also what out.h gets.
template <class Act, Along kAlong, class S, int V>
FUSECELL_DEVICE void cell_forward(const CellArgs<S>& cell, const CellInputs<S>& in, int64_t channel, int64_t p,
                                  const Span& span, Accumulate<S> (&z)[4][V], const CellOutputs<S>& out,
                                  Accumulate<S> (&h)[V]) {
  using A = Accumulate<S>;
  const Act act = policy(cell, static_cast<const Act*>(nullptr));
  OperandPack<S, V> operands;
  load_operands<kAlong>(cell, in, channel, p, span, operands);
  A h_before[V], c[V], bias[V];
  load_or_zero(in.h, span, h_before);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    load_parameter<kAlong>(cell.bias, cell.bias_per_pixel, k * cell.channels + channel, cell.pixels, p, span, bias);
#pragma unroll
    for (int j = 0; j < V; ++j) z[k][j] += bias[j];
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const Gates<A> gates = {z[0][j], z[1][j], z[2][j], z[3][j]};
    const CellOutput<A> result = lstm_cell(act, cell.flags, gates, operands.at(j), h_before[j]);
    h[j] = result.h;
    c[j] = result.c;
    z[0][j] = result.saved.i;
    z[1][j] = result.saved.f;
    z[2][j] = result.saved.g;
    z[3][j] = result.saved.o;
  }
  store_if(out.h, span, h);
  store_if(out.h_copy, span, h);
  store_if(out.c, span, c);
  store_if(out.c_copy, span, c);
#pragma unroll
  for (int k = 0; k < 4; ++k) store_if(out.gates[k], span, z[k]);
}

// --------------------------------------------------------------------------------------------------------- backward
template <class S, int V>
struct CellGradient {
  using A = Accumulate<S>;
  A dz[4][V], dc[V], dh[V];  // dc, dh: in, of the step's outputs; out, of its inputs, dh without the convolution's part
  A peephole[3][V];          // dz_i c', dz_f c', dz_o ĉ
};

// A thread's part of a step's statistics. A thread has few elements: only the squares ask for more than A.
template <class A>
struct StatisticSums {
  static constexpr int kSquares = 2, kOthers = kStepStatistics - kSquares;
  double squares[kSquares] = {};  // of dh and dc
  A others[kOthers] = {};         // the other columns, in their order

  FUSECELL_DEVICE_METHOD void add(Activation state_kind, A dh, const CellAdjoint<A>& cell) {
    squares[0] += double(dh) * double(dh);
    squares[1] += double(cell.dc_new) * double(cell.dc_new);
    const A term[kOthers] = {A(1),
                             A(!is_finite(dh)) + A(!is_finite(cell.dc_new)),
                             cell.y.f,
                             A(gate_saturates(cell.y.i)),
                             A(gate_saturates(cell.y.f)),
                             A(has_two_bounds(state_kind) && state_saturates(cell.y.g)),
                             A(gate_saturates(cell.y.o))};
#pragma unroll
    for (int k = 0; k < kOthers; ++k) others[k] += term[k];
  }
};

// The block's sums of each thread's N values, for thread 0 to N - 1; shared: [kThreads / 32][N].
template <int N, class A>
FUSECELL_DEVICE double block_sum(A (&value)[N], A* shared) {
  const int warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    for (int mask = 16; mask > 0; mask /= 2) value[k] += device::shuffle_xor(value[k], mask);
    if (threadIdx.x % 32 == 0) shared[warp * N + k] = value[k];
  }
  __syncthreads();
  double total = 0;
  if (threadIdx.x < N) {
    for (int w = 0; w < kThreads / 32; ++w) total += double(shared[w * N + int(threadIdx.x)]);
  }
  return total;
}

// gates: the saved ones. sums: null where nobody watches.
template <class Act, Along kAlong, class S, int V>
FUSECELL_DEVICE void cell_backward(const CellArgs<S>& cell, const CellInputs<S>& in, const GatesAt<const S>& gates,
                                   int64_t channel, int64_t p, const Span& span, CellGradient<S, V>& gradient,
                                   StatisticSums<Accumulate<S>>* sums = nullptr) {
  using A = Accumulate<S>;
  const Act act = policy(cell, static_cast<const Act*>(nullptr));
  OperandPack<S, V> operands;
  load_operands<kAlong>(cell, in, channel, p, span, operands);
  A saved[4][V];
#pragma unroll
  for (int k = 0; k < 4; ++k) load_or_zero(gates[k], span, saved[k]);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const Gates<A> at = {saved[0][j], saved[1][j], saved[2][j], saved[3][j]};
    const CellAdjoint<A> result =
        lstm_cell_adjoint(act, cell.flags, at, operands.at(j), gradient.dh[j], gradient.dc[j]);
    if (sums && j < span.count) sums->add(cell.state_kind, gradient.dh[j], result);
    gradient.dz[0][j] = result.dz.i;
    gradient.dz[1][j] = result.dz.f;
    gradient.dz[2][j] = result.dz.g;
    gradient.dz[3][j] = result.dz.o;
    gradient.dc[j] = result.dc;
    gradient.dh[j] = result.dh;
    gradient.peephole[0][j] = result.dz.i * operands.c[j];
    gradient.peephole[1][j] = result.dz.f * operands.c[j];
    gradient.peephole[2][j] = result.dz.o * result.c_new;
  }
}

}  // namespace fusecell::cuda
