#pragma once
// The pointwise tier over a run of at most kCellRun pixels of one channel. Operands that an option turns off, or that are one
// number for the channel, are laid out as arrays first, so that one loop without branches serves every option.

#include "cell/gates.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

template <class S>
struct CellOperandArrays {
  S storage[6][kCellRun];
  const S *p[3], *h, *m_h, *m_c;
};

template <class S>
FUSECELL_HD const S* pixel_or_channel(const S* per_pixel, S per_channel, S* storage, int64_t n) {
  if (per_pixel) return per_pixel;
  for (int64_t i = 0; i < n; ++i) storage[i] = per_channel;
  return storage;
}

template <class S>
FUSECELL_HD const S* mask_or_rate(const uint8_t* mask, S rate, S* storage, int64_t n) {
  for (int64_t i = 0; i < n; ++i) storage[i] = mask ? S(mask[i]) : rate;
  return storage;
}

template <class S>
FUSECELL_HD void gather(const CellRun<S>& run, CellOperandArrays<S>& arrays) {
  for (int k = 0; k < 3; ++k) {
    arrays.p[k] = pixel_or_channel(run.peephole_pixel[k], run.peephole_channel[k], arrays.storage[k], run.n);
  }
  arrays.h = pixel_or_channel(run.h, S(0), arrays.storage[3], run.n);
  arrays.m_h = mask_or_rate(run.zoneout_mask_h, run.zoneout_h, arrays.storage[4], run.n);
  arrays.m_c = mask_or_rate(run.zoneout_mask_c, run.zoneout_c, arrays.storage[5], run.n);
}

template <class S>
FUSECELL_HD CellOperands<S> operands_at(const CellRun<S>& run, const CellOperandArrays<S>& arrays, int64_t i) {
  return {arrays.p[0][i], arrays.p[1][i], arrays.p[2][i], run.c[i], arrays.m_h[i], arrays.m_c[i]};
}

template <class S>
FUSECELL_HD bool is_default_cell(const CellRun<S>& run) {
  return run.gate_kind == Activation::sigmoid && run.state_kind == Activation::tanh;
}

// --------------------------------------------------------------------------------------------------------- forward
template <class S, class Act>
void cell_forward_with(const Act& act, const CellForwardRun<S>& run) {
  CellOperandArrays<S> arrays;
  gather(run, arrays);
  S z[4][kCellRun], unused[8][kCellRun];
  S* h_out = run.h_out ? run.h_out : unused[4];
  S* c_out = run.c_out ? run.c_out : unused[5];
  S* y = run.y ? run.y : unused[6];
  S* c_saved = run.c_saved ? run.c_saved : unused[7];
  S* gates[4];
  for (int k = 0; k < 4; ++k) {
    gates[k] = run.gates[k] ? run.gates[k] : unused[k];
    for (int64_t i = 0; i < run.n; ++i) {
      z[k][i] = run.z[k][i] + (run.bias_pixel[k] ? run.bias_pixel[k][i] : run.bias_channel[k]);
    }
  }
  // Each output is written at the index that was read: h_out and c_out may be h and c.
#pragma GCC ivdep
  for (int64_t i = 0; i < run.n; ++i) {
    const CellOutput<S> out =
        lstm_cell(act, run.flags, Gates<S>{z[0][i], z[1][i], z[2][i], z[3][i]}, operands_at(run, arrays, i), arrays.h[i]);
    h_out[i] = out.h;
    c_out[i] = out.c;
    y[i] = out.h;
    c_saved[i] = out.c;
    gates[0][i] = out.saved.i;
    gates[1][i] = out.saved.f;
    gates[2][i] = out.saved.g;
    gates[3][i] = out.saved.o;
  }
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
  CellOperandArrays<S> arrays;
  gather(run, arrays);
  S product[3][kCellRun];  // dz_i c', dz_f c', dz_o ĉ: the peepholes' gradients
#pragma GCC ivdep
  for (int64_t i = 0; i < run.n; ++i) {
    const Gates<S> saved = {run.gates[0][i], run.gates[1][i], run.gates[2][i], run.gates[3][i]};
    const CellOperands<S> in = operands_at(run, arrays, i);
    const CellAdjoint<S> out = lstm_cell_adjoint(act, run.flags, saved, in, run.dh[i], run.dc[i]);
    run.dh[i] = out.dh;
    run.dc[i] = out.dc;
    run.dz[0][i] = out.dz.i;
    run.dz[1][i] = out.dz.f;
    run.dz[2][i] = out.dz.g;
    run.dz[3][i] = out.dz.o;
    product[0][i] = out.dz.i * in.c;
    product[1][i] = out.dz.f * in.c;
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
