#pragma once
// The pointwise tier over a run of at most kCellRun pixels of one channel. Each activation has a loop of its own, over
// arrays that stay in the first-level cache: one loop over the whole cell waits for the latency of five of them in a
// row (on Zen 5 it takes 2.5 times as long), and could not choose an activation at run time and still be vectorised.

#include "cell/gates.h"
#include "cell/statistics.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

// Of each pixel. What an option turns off points at anything that can be read.
template <class S>
struct Operands {
  const S *p[3], *c, *h, *m_h, *m_c;
};

template <class S>
struct OperandStorage {
  alignas(64) S p[3][kCellRun], c[kCellRun], h[kCellRun], m_h[kCellRun], m_c[kCellRun];
};

template <class S>
FUSECELL_HD const S* pixel_or_channel(const S* per_pixel, S per_channel, S* storage, int64_t n) {
  if (per_pixel) return per_pixel;
  for (int64_t i = 0; i < n; ++i) storage[i] = per_channel;
  return storage;
}

template <class S>
FUSECELL_HD const S* mask_or_rate(const uint8_t* mask, S rate, S* storage, int64_t n) {
  if (!mask) return pixel_or_channel<S>(nullptr, rate, storage, n);
  for (int64_t i = 0; i < n; ++i) storage[i] = S(mask[i]);
  return storage;
}

template <class S>
FUSECELL_HD const S* neighbours(const Pixels<const S>& pixels, S* storage, int64_t n) {
  if (!pixels.data) return pixel_or_channel<S>(nullptr, S(0), storage, n);
  if (pixels.stride == 1) return pixels.data;
  for (int64_t i = 0; i < n; ++i) storage[i] = pixels.data[i * pixels.stride];
  return storage;
}

template <class S>
FUSECELL_HD Operands<S> gather(const CellRun<S>& run, OperandStorage<S>& storage) {
  const S* c = neighbours(run.c, storage.c, run.n);
  Operands<S> in = {{c, c, c}, c, c, c, c};
  for (int k = 0; run.flags.peephole && k < 3; ++k) {
    in.p[k] = pixel_or_channel(run.peephole_pixel[k], run.peephole_channel[k], storage.p[k], run.n);
  }
  if (run.flags.zoneout_h) {
    in.h = neighbours(run.h, storage.h, run.n);
    in.m_h = mask_or_rate(run.zoneout_mask_h, run.zoneout_h, storage.m_h, run.n);
  }
  if (run.flags.zoneout_c) in.m_c = mask_or_rate(run.zoneout_mask_c, run.zoneout_c, storage.m_c, run.n);
  return in;
}

// Asks for the run after this one, which lies behind it in most arrays, while this one is computed: the loops below
// read an array for so short a time that the processor does not foresee it (gates of 90 MB, forward: 2.7 -> 2.2 ns a
// cell). A little per loop, as more than some 30 lines at once would be waited for. Past the end of an array it asks in
// vain.
template <class S>
FUSECELL_HD void prefetch_next(const S* data, int64_t n) {
  constexpr uintptr_t kLine = 64;
  const uintptr_t next = reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(n) * sizeof(S);
  for (uintptr_t i = 0; i < static_cast<uintptr_t>(n) * sizeof(S); i += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(next + i));
  }
}

template <class S>
FUSECELL_HD Activation kind_of(const CellRun<S>& run, int k) {
  return k == 2 ? run.state_kind : run.gate_kind;
}

// --------------------------------------------------------------------------------------------------------- forward
// a = z + bias; peepholes come later.
template <class S>
FUSECELL_HD void add_bias(const CellForwardRun<S>& run, int k, S* a) {
  const S *z = run.z[k], *bias = run.bias_pixel[k], per_channel = run.bias_channel[k];
  for (int64_t i = 0; i < run.n; ++i) a[i] = z[i] + per_channel;
  for (int64_t i = 0; bias && i < run.n; ++i) a[i] += bias[i];
}

template <class S>
FUSECELL_HD void add_peephole(const CellRun<S>& run, const S* p, const S* c, S* a) {
  const CellFlags flags = run.flags;
  if (!flags.peephole) return;
#pragma GCC ivdep
  for (int64_t i = 0; i < run.n; ++i) a[i] = with_peephole(flags, a[i], p[i], c[i]);
}

template <class S>
FUSECELL_HD void copy_run(const S* from, int64_t n, S* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class S>
void cell_forward(const CellForwardRun<S>& run) {
  OperandStorage<S> storage;
  const Operands<S> in = gather(run, storage);
  const CellFlags flags = run.flags;
  const int64_t n = run.n;
  alignas(64) S before[4][kCellRun], after[4][kCellRun], c_new[kCellRun], phi[kCellRun], h_unused[kCellRun],
      c_unused[kCellRun];
  S *a[4], *y[4];  // before and after the activation; one of them is what is saved
  for (int k = 0; k < 4; ++k) {
    const bool save_y = output_determines_derivative(kind_of(run, k));
    a[k] = run.gates[k] && !save_y ? run.gates[k] : before[k];
    y[k] = run.gates[k] && save_y ? run.gates[k] : after[k];
    add_bias(run, k, a[k]);
  }
  add_peephole(run, in.p[0], in.c, a[0]);
  add_peephole(run, in.p[1], in.c, a[1]);
  for (int k = 0; k < 3; ++k) {
    prefetch_next(run.z[k], n);
    activation_forward(kind_of(run, k), run.activation, n, a[k], y[k]);
  }
  const S *gate_i = y[0], *gate_f = y[1], *gate_g = y[2], *gate_o = y[3], *c = in.c, *h = in.h;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) c_new[i] = next_state(gate_i[i], gate_f[i], gate_g[i], c[i]);
  add_peephole(run, in.p[2], c_new, a[3]);
  prefetch_next(run.z[3], n);
  activation_forward(run.gate_kind, run.activation, n, a[3], y[3]);
  prefetch_next(c, n);
  activation_forward(run.state_kind, run.activation, n, c_new, phi);
  S *h_out = run.h_out ? run.h_out : h_unused, *c_out = run.c_out ? run.c_out : c_unused;
  // Each output is written at the index that was read: h_out and c_out may be h and c.
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    h_out[i] = zoned_out(flags.zoneout_h, in.m_h[i], h[i], gate_o[i] * phi[i]);
    c_out[i] = zoned_out(flags.zoneout_c, in.m_c[i], c[i], c_new[i]);
  }
  if (run.c_saved) copy_run(c_out, n, run.c_saved);
  if (run.y.data && run.y.stride == 1) copy_run(h_out, n, run.y.data);
  for (int64_t i = 0; run.y.data && run.y.stride != 1 && i < n; ++i) run.y.data[i * run.y.stride] = h_out[i];
}

// -------------------------------------------------------------------------------------------------------- backward
template <class S>
FUSECELL_HD double sum(const S* x, int64_t n) {
  Vector<S> lanes = {};
  int64_t i = 0;
  for (; i + kLanes<S> <= n; i += kLanes<S>) lanes += load(x + i);
  S rest = 0;
  for (; i < n; ++i) rest += x[i];
  return double(sum_of_lanes<S>(lanes)) + double(rest);
}

template <class S>
FUSECELL_HD void accumulate(const S* values, int64_t n, S* per_pixel, double* per_channel) {
  if (per_channel) *per_channel += sum(values, n);
  for (int64_t i = 0; per_pixel && i < n; ++i) per_pixel[i] += values[i];
}

// The peephole's gradient: dz times the state it saw.
template <class S>
FUSECELL_HD void accumulate_product(const S* dz, const S* c, int64_t n, S* per_pixel, double* per_channel) {
  if (!per_pixel && !per_channel) return;
  alignas(64) S product[kCellRun];
  for (int64_t i = 0; i < n; ++i) product[i] = dz[i] * c[i];
  accumulate(product, n, per_pixel, per_channel);
}

// Counts are as wide as S, so that their loops vectorise.
template <class S>
FUSECELL_HD double count_not_finite(const S* x, int64_t n) {
  typename SignedBits<S>::type count = 0;
  for (int64_t i = 0; i < n; ++i) count += is_finite(x[i]) ? 0 : 1;
  return double(count);
}

// In one loop, which takes two thirds of four loops' time.
template <class S>
FUSECELL_HD void count_saturated(const S* const (&y)[4], bool two_bounds, int64_t n, double* to) {
  typename SignedBits<S>::type count[4] = {};
  const S *gate_i = y[0], *gate_f = y[1], *gate_g = y[2], *gate_o = y[3];
  for (int64_t i = 0; i < n; ++i) {
    count[0] += gate_saturates(gate_i[i]) ? 1 : 0;
    count[1] += gate_saturates(gate_f[i]) ? 1 : 0;
    count[2] += state_saturates(gate_g[i]) ? 1 : 0;
    count[3] += gate_saturates(gate_o[i]) ? 1 : 0;
  }
  for (int k = 0; k < 4; ++k) to[k] += k == 2 && !two_bounds ? 0.0 : double(count[k]);
}

// Squares in double: those of a gradient that vanishes leave the range of float. dh: of the step's output.
template <class S>
FUSECELL_HD void add_statistics(const CellBackwardRun<S>& run, const S* const (&y)[4], const S* dh, const S* dc_new) {
  const int64_t n = run.n;
  double* sums = run.statistics;
  sums[kCount] += double(n);
  const auto add_gradient = [&](StepStatistic column, const S* gradient) {
    const double squares = sum_squares(n, gradient, 1.0);
    sums[column] += squares;
    if (!is_finite(squares)) sums[kNotFinite] += count_not_finite(gradient, n);
  };
  add_gradient(kDhSquared, dh);
  add_gradient(kDcSquared, dc_new);
  sums[kForget] += sum(y[1], n);
  count_saturated(y, has_two_bounds(run.state_kind), n, sums + kSaturated);
}

template <class S>
void cell_backward(const CellBackwardRun<S>& run) {
  if (run.n <= 0) return;  // g++ 12 would warn of what the loops leave unset
  OperandStorage<S> storage;
  const Operands<S> in = gather(run, storage);
  const CellFlags flags = run.flags;
  const int64_t n = run.n;
  alignas(64) S values[4][kCellRun], c_new[kCellRun], phi[kCellRun], dc_new[kCellRun], through_phi[kCellRun];
  const S* y[4];
  for (int k = 0; k < 4; ++k) {
    y[k] = run.gates[k];
    if (output_determines_derivative(kind_of(run, k))) continue;
    activation_forward(kind_of(run, k), run.activation, n, run.gates[k], values[k]);
    y[k] = values[k];
  }
  const S *gate_i = y[0], *gate_f = y[1], *gate_g = y[2], *gate_o = y[3], *c = in.c;
  S *dz_i = run.dz[0], *dz_f = run.dz[1], *dz_g = run.dz[2], *dz_o = run.dz[3], *dh = run.dh, *dc = run.dc;
  const auto through_activation = [&](int k, S* d) {  // in place
    activation_backward(kind_of(run, k), run.activation, n, run.gates[k], y[k], d, d);
  };
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) c_new[i] = next_state(gate_i[i], gate_f[i], gate_g[i], c[i]);
  prefetch_next(run.gates[0], n);
  activation_forward(run.state_kind, run.activation, n, c_new, phi);
  prefetch_next(run.gates[1], n);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S dh_new = zoned_out_adjoint(flags.zoneout_h, in.m_h[i], dh[i]);
    dz_o[i] = dh_new * phi[i];
    through_phi[i] = dh_new * gate_o[i];
  }
  through_activation(3, dz_o);
  prefetch_next(run.gates[2], n);
  activation_backward(run.state_kind, run.activation, n, c_new, phi, through_phi, through_phi);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S d = zoned_out_adjoint(flags.zoneout_c, in.m_c[i], dc[i]) + through_phi[i];
    dc_new[i] = with_peephole(flags, d, in.p[2][i], dz_o[i]);
    dz_i[i] = dc_new[i] * gate_g[i];
    dz_f[i] = dc_new[i] * c[i];
    dz_g[i] = dc_new[i] * gate_i[i];
  }
  prefetch_next(run.gates[3], n);
  through_activation(0, dz_i);
  through_activation(1, dz_f);
  prefetch_next(c, n);
  through_activation(2, dz_g);
  if (run.statistics) add_statistics(run, y, dh, dc_new);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S through_i = with_peephole(flags, dc_new[i] * gate_f[i], in.p[0][i], dz_i[i]);
    const S d = with_peephole(flags, through_i, in.p[1][i], dz_f[i]);
    dc[i] = flags.zoneout_c ? d + in.m_c[i] * dc[i] : d;
    dh[i] = flags.zoneout_h ? in.m_h[i] * dh[i] : S(0);
  }
  for (int k = 0; k < 4; ++k) {
    accumulate(run.dz[k], n, run.dbias_pixel[k], run.dbias_channel ? run.dbias_channel + k : nullptr);
  }
  for (int k = 0; k < 3; ++k) {
    accumulate_product(run.dz[k < 2 ? k : 3], k < 2 ? c : c_new, n, run.dpeephole_pixel[k],
                       run.dpeephole_channel ? run.dpeephole_channel + k : nullptr);
  }
}

}  // namespace
}  // namespace fusecell::cpu
