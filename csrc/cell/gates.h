#pragma once
// The ConvLSTM cell at one pixel of one channel (Shi et al. 2015; zoneout: Krueger et al. 2016), and its adjoint.
//
//     i = σ(z_i + p_i c')   f = σ(z_f + p_f c')   g = φ(z_g)
//     ĉ = f c' + i g        o = σ(z_o + p_o ĉ)    ĥ = o φ(ĉ)
//     c = m_c c' + (1 - m_c) ĉ                    h = m_h h' + (1 - m_h) ĥ
//
// σ and φ come as a policy: SigmoidTanh (the default cell, no branches) or AnyActivation (chosen at run time).

#include "base/macros.h"
#include "cell/activation.h"

namespace fusecell {

template <class S>
struct SigmoidTanh {
  FUSECELL_HD_METHOD S gate(S a) const { return sigmoid(a); }
  FUSECELL_HD_METHOD S gate_adjoint(S, S y, S dy) const { return sigmoid_adjoint(y, dy); }
  FUSECELL_HD_METHOD S state(S a) const { return tanh_(a); }
  FUSECELL_HD_METHOD S state_adjoint(S, S y, S dy) const { return tanh_adjoint(y, dy); }
  // What is kept for backward, and the value it stands for.
  FUSECELL_HD_METHOD S gate_to_save(S, S y) const { return y; }
  FUSECELL_HD_METHOD S state_to_save(S, S y) const { return y; }
  FUSECELL_HD_METHOD S gate_of_saved(S saved) const { return saved; }
  FUSECELL_HD_METHOD S state_of_saved(S saved) const { return saved; }
};

template <class S>
struct AnyActivation {
  Activation gate_kind, state_kind;
  ActivationParameters<S> parameters;

  FUSECELL_HD_METHOD S gate(S a) const { return activate(gate_kind, parameters, a); }
  FUSECELL_HD_METHOD S gate_adjoint(S a, S y, S dy) const { return activate_adjoint(gate_kind, parameters, a, y, dy); }
  FUSECELL_HD_METHOD S state(S a) const { return activate(state_kind, parameters, a); }
  FUSECELL_HD_METHOD S state_adjoint(S a, S y, S dy) const {
    return activate_adjoint(state_kind, parameters, a, y, dy);
  }
  FUSECELL_HD_METHOD S gate_to_save(S a, S y) const { return output_determines_derivative(gate_kind) ? y : a; }
  FUSECELL_HD_METHOD S state_to_save(S a, S y) const { return output_determines_derivative(state_kind) ? y : a; }
  FUSECELL_HD_METHOD S gate_of_saved(S s) const { return output_determines_derivative(gate_kind) ? s : gate(s); }
  FUSECELL_HD_METHOD S state_of_saved(S s) const { return output_determines_derivative(state_kind) ? s : state(s); }
};

// Uniform over a whole call; an operand whose flag is off is never used, so an infinite state stays harmless there.
// 0 or 1, as int: with bool, g++ 12 does not vectorise a loop that selects by them.
struct CellFlags {
  int peephole, zoneout_h, zoneout_c;
};

template <class S>
struct Gates {
  S i, f, g, o;
};

template <class S>
struct CellOperands {  // what forward and backward both read
  S p_i, p_f, p_o;     // peepholes
  S c;                 // the cell state before the step
  S m_h, m_c;          // zoneout: the share of the old state that is kept
};

template <class S>
struct CellOutput {
  S h, c;
  Gates<S> saved;
};

// The cell between its activations. The CPU takes a run of pixels through these one at a time, so that each activation
// has a loop of its own.
template <class S>
FUSECELL_HD S with_peephole(const CellFlags& flags, S a, S p, S c) {
  return flags.peephole ? a + p * c : a;
}
template <class S>
FUSECELL_HD S next_state(S i, S f, S g, S c) {
  return f * c + i * g;
}
template <class S>
FUSECELL_HD S zoned_out(int zoneout, S m, S before, S now) {
  return zoneout ? m * before + (S(1) - m) * now : now;
}
template <class S>
FUSECELL_HD S zoned_out_adjoint(int zoneout, S m, S d) {  // with respect to `now`
  return zoneout ? (S(1) - m) * d : d;
}

template <class S, class Act>
FUSECELL_HD CellOutput<S> lstm_cell(const Act& act, const CellFlags& flags, const Gates<S>& z,
                                    const CellOperands<S>& in, S h_before) {
  const S a_i = with_peephole(flags, z.i, in.p_i, in.c);
  const S a_f = with_peephole(flags, z.f, in.p_f, in.c);
  const S i = act.gate(a_i);
  const S f = act.gate(a_f);
  const S g = act.state(z.g);
  const S c_new = next_state(i, f, g, in.c);
  const S a_o = with_peephole(flags, z.o, in.p_o, c_new);
  const S o = act.gate(a_o);
  const S h_new = o * act.state(c_new);
  CellOutput<S> out;
  out.h = zoned_out(flags.zoneout_h, in.m_h, h_before, h_new);
  out.c = zoned_out(flags.zoneout_c, in.m_c, in.c, c_new);
  out.saved = {act.gate_to_save(a_i, i), act.gate_to_save(a_f, f), act.state_to_save(z.g, g), act.gate_to_save(a_o, o)};
  return out;
}

template <class S>
struct CellAdjoint {
  Gates<S> dz;
  S dc, dh;  // with respect to the states before the step; dh without the convolution's part
  S c_new;   // ĉ, for the gradient of p_o
  // For what watches the step; unused, they cost nothing.
  S dc_new;
  Gates<S> y;
};

template <class S, class Act>
FUSECELL_HD CellAdjoint<S> lstm_cell_adjoint(const Act& act, const CellFlags& flags, const Gates<S>& saved,
                                             const CellOperands<S>& in, S dh, S dc) {
  const S i = act.gate_of_saved(saved.i);
  const S f = act.gate_of_saved(saved.f);
  const S g = act.state_of_saved(saved.g);
  const S o = act.gate_of_saved(saved.o);
  const S c_new = next_state(i, f, g, in.c);
  const S phi = act.state(c_new);
  const S dh_new = zoned_out_adjoint(flags.zoneout_h, in.m_h, dh);

  CellAdjoint<S> out;
  out.y = {i, f, g, o};
  out.c_new = c_new;
  out.dz.o = act.gate_adjoint(saved.o, o, dh_new * phi);
  S dc_new = zoned_out_adjoint(flags.zoneout_c, in.m_c, dc) + act.state_adjoint(c_new, phi, dh_new * o);
  dc_new = with_peephole(flags, dc_new, in.p_o, out.dz.o);
  out.dc_new = dc_new;
  out.dz.i = act.gate_adjoint(saved.i, i, dc_new * g);
  out.dz.f = act.gate_adjoint(saved.f, f, dc_new * in.c);
  out.dz.g = act.state_adjoint(saved.g, g, dc_new * i);
  const S through_i = with_peephole(flags, dc_new * f, in.p_i, out.dz.i);
  const S dc_before = with_peephole(flags, through_i, in.p_f, out.dz.f);
  out.dc = flags.zoneout_c ? dc_before + in.m_c * dc : dc_before;
  out.dh = flags.zoneout_h ? in.m_h * dh : S(0);
  return out;
}

}  // namespace fusecell
