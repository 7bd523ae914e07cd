#pragma once
// The pointwise tier over a run of at most kCellRun pixels of one channel. Operands that an option turns off, or that
// are one number for the channel, are laid out as arrays first, so that one loop without branches serves every option.

#include "cell/gates.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

template <class S>
struct OperandStorage {
  S p[3][kCellRun], c[kCellRun], h[kCellRun], m_h[kCellRun], m_c[kCellRun];
};

template <class S>
struct OperandArrays {
  const S *p_i, *p_f, *p_o, *c, *h, *m_h, *m_c;

  FUSECELL_HD_METHOD CellOperands<S> at(int64_t i) const { return {p_i[i], p_f[i], p_o[i], c[i], m_h[i], m_c[i]}; }
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
FUSECELL_HD OperandArrays<S> gather(const CellRun<S>& run, OperandStorage<S>& storage) {
  const S* p[3];
  for (int k = 0; k < 3; ++k) {
    p[k] = pixel_or_channel(run.peephole_pixel[k], run.peephole_channel[k], storage.p[k], run.n);
  }
  return {p[0],
          p[1],
          p[2],
          neighbours(run.c, storage.c, run.n),
          neighbours(run.h, storage.h, run.n),
          mask_or_rate(run.zoneout_mask_h, run.zoneout_h, storage.m_h, run.n),
          mask_or_rate(run.zoneout_mask_c, run.zoneout_c, storage.m_c, run.n)};
}

template <class S>
FUSECELL_HD bool is_default_cell(const CellRun<S>& run) {
  return run.gate_kind == Activation::sigmoid && run.state_kind == Activation::tanh;
}

// --------------------------------------------------------------------------------------------------------- forward
template <class S, class Act>
void cell_forward_with(const Act& act, const CellForwardRun<S>& run) {
  OperandStorage<S> storage;
  const OperandArrays<S> in = gather(run, storage);
  const CellFlags flags = run.flags;
  const int64_t n = run.n;
  S z[4][kCellRun], unused[8][kCellRun];
  S* h_out = run.h_out ? run.h_out : unused[4];
  S* c_out = run.c_out ? run.c_out : unused[5];
  S* y = run.y.data && run.y.stride == 1 ? run.y.data : unused[6];
  S* c_saved = run.c_saved ? run.c_saved : unused[7];
  S* gates[4];
  for (int k = 0; k < 4; ++k) {
    gates[k] = run.gates[k] ? run.gates[k] : unused[k];
    const S *from = run.z[k], *bias = run.bias_pixel[k];
    const S per_channel = run.bias_channel[k];
    for (int64_t i = 0; i < n; ++i) z[k][i] = from[i] + per_channel;
    for (int64_t i = 0; bias && i < n; ++i) z[k][i] += bias[i];
  }
  S *gate_i = gates[0], *gate_f = gates[1], *gate_g = gates[2], *gate_o = gates[3];
  // Each output is written at the index that was read: h_out and c_out may be h and c.
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const CellOutput<S> out = lstm_cell(act, flags, Gates<S>{z[0][i], z[1][i], z[2][i], z[3][i]}, in.at(i), in.h[i]);
    h_out[i] = out.h;
    c_out[i] = out.c;
    y[i] = out.h;
    c_saved[i] = out.c;
    gate_i[i] = out.saved.i;
    gate_f[i] = out.saved.f;
    gate_g[i] = out.saved.g;
    gate_o[i] = out.saved.o;
  }
  for (int64_t i = 0; run.y.data && run.y.stride != 1 && i < n; ++i) run.y.data[i * run.y.stride] = y[i];
}

template <class S>
void cell_forward(const CellForwardRun<S>& run) {
  if (is_default_cell(run)) {
    cell_forward_with(SigmoidTanh<S>{}, run);
  } else {
    cell_forward_with(AnyActivation<S>{run.gate_kind, run.state_kind, run.activation}, run);
  }
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

template <class S, class Act>
void cell_backward_with(const Act& act, const CellBackwardRun<S>& run) {
  OperandStorage<S> storage;
  const OperandArrays<S> in = gather(run, storage);
  const CellFlags flags = run.flags;
  const int64_t n = run.n;
  S product[3][kCellRun];  // dz_i c', dz_f c', dz_o ĉ: the peepholes' gradients
  const S *gate_i = run.gates[0], *gate_f = run.gates[1], *gate_g = run.gates[2], *gate_o = run.gates[3];
  S *dz_i = run.dz[0], *dz_f = run.dz[1], *dz_g = run.dz[2], *dz_o = run.dz[3], *dh = run.dh, *dc = run.dc;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const Gates<S> saved = {gate_i[i], gate_f[i], gate_g[i], gate_o[i]};
    const CellAdjoint<S> out = lstm_cell_adjoint(act, flags, saved, in.at(i), dh[i], dc[i]);
    dh[i] = out.dh;
    dc[i] = out.dc;
    dz_i[i] = out.dz.i;
    dz_f[i] = out.dz.f;
    dz_g[i] = out.dz.g;
    dz_o[i] = out.dz.o;
    product[0][i] = out.dz.i * in.c[i];
    product[1][i] = out.dz.f * in.c[i];
    product[2][i] = out.dz.o * out.c_new;
  }
  for (int k = 0; k < 4; ++k) {
    accumulate(run.dz[k], run.n, run.dbias_pixel[k], run.dbias_channel ? run.dbias_channel + k : nullptr);
  }
  for (int k = 0; k < 3; ++k) {
    accumulate(product[k], run.n, run.dpeephole_pixel[k], run.dpeephole_channel ? run.dpeephole_channel + k : nullptr);
  }
}

template <class S>
void cell_backward(const CellBackwardRun<S>& run) {
  if (is_default_cell(run)) {
    cell_backward_with(SigmoidTanh<S>{}, run);
  } else {
    cell_backward_with(AnyActivation<S>{run.gate_kind, run.state_kind, run.activation}, run);
  }
}

}  // namespace
}  // namespace fusecell::cpu
