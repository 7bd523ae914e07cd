#pragma once
// Which name in Python is which field of an op's arguments.

#include "bindings/arguments.h"
#include "cell/update.h"
#include "problem/conv_lstm.h"
#include "problem/convolution.h"
#include "problem/lstm_gates.h"
#include "problem/rnn.h"

namespace fusecell::bindings {

inline void read(Arguments& options, ConvolutionOptions& to) {
  options.take("stride", to.stride);
  options.take("dilation", to.dilation);
  options.take("padding", to.padding);
  options.take("pad_h", to.pad[0]);
  options.take("pad_w", to.pad[1]);
  options.take("algorithm", to.algorithm);
}

inline void read(Arguments& options, CellOptions& to) {
  options.take("recurrent_activation", to.recurrent_activation);
  options.take("activation", to.activation);
  options.take("slope", to.slope);
  options.take("relu_at_zero", to.relu_at_zero);
  options.take("zoneout_h", to.zoneout_h);
  options.take("zoneout_c", to.zoneout_c);
}

inline void read(Arguments& options, ConvLstmOptions& to) {
  read(options, to.input);
  read(options, to.cell);
  options.take("reverse", to.reverse);
  options.take("truncation", to.truncation);
}

inline void read(Arguments& tensors, Conv2dForward& to) {
  tensors.take("x", to.x);
  tensors.take("weight", to.weight);
  tensors.take("bias", to.bias);
  tensors.take("y", to.y);
}

inline void read(Arguments& tensors, Conv2dBackward& to) {
  read(tensors, static_cast<Conv2dForward&>(to));
  tensors.take("dy", to.dy);
  tensors.take("dx", to.dx);
  tensors.take("dweight", to.dweight);
  tensors.take("dbias", to.dbias);
}

inline void read(Arguments& tensors, LstmGatesForward& to) {
  tensors.take("z", to.z);
  tensors.take("c", to.c);
  tensors.take("h", to.h);
  tensors.take("bias", to.bias);
  tensors.take("peephole", to.peephole);
  tensors.take("zoneout_mask_h", to.zoneout_mask_h);
  tensors.take("zoneout_mask_c", to.zoneout_mask_c);
  tensors.take("h_out", to.h_out);
  tensors.take("c_out", to.c_out);
  tensors.take("gates", to.gates);
}

inline void read(Arguments& tensors, LstmGatesBackward& to) {
  read(tensors, static_cast<LstmGatesForward&>(to));
  tensors.take("dh", to.dh);
  tensors.take("dc", to.dc);
  tensors.take("dz", to.dz);
  tensors.take("dc_before", to.dc_before);
  tensors.take("dh_before", to.dh_before);
  tensors.take("dbias", to.dbias);
  tensors.take("dpeephole", to.dpeephole);
}

inline void read(Arguments& tensors, ConvLstmForward& to) {
  tensors.take("x", to.x);
  tensors.take("weight_ih", to.weight_ih);
  tensors.take("weight_hh", to.weight_hh);
  tensors.take("bias", to.bias);
  tensors.take("peephole", to.peephole);
  tensors.take("h_0", to.h_0);
  tensors.take("c_0", to.c_0);
  tensors.take("lengths", to.lengths);
  tensors.take("dropout_mask", to.dropout_mask);
  tensors.take("zoneout_mask_h", to.zoneout_mask_h);
  tensors.take("zoneout_mask_c", to.zoneout_mask_c);
  tensors.take("y", to.y);
  tensors.take("h_n", to.h_n);
  tensors.take("c_n", to.c_n);
  tensors.take("gates", to.gates);
  tensors.take("c", to.c);
}

inline void read(Arguments& tensors, ConvLstmBackward& to) {
  read(tensors, static_cast<ConvLstmForward&>(to));
  tensors.take("dy", to.dy);
  tensors.take("dh_n", to.dh_n);
  tensors.take("dc_n", to.dc_n);
  tensors.take("dx", to.dx);
  tensors.take("dweight_ih", to.dweight_ih);
  tensors.take("dweight_hh", to.dweight_hh);
  tensors.take("dbias", to.dbias);
  tensors.take("dpeephole", to.dpeephole);
  tensors.take("dh_0", to.dh_0);
  tensors.take("dc_0", to.dc_0);
  tensors.take("statistics", to.statistics);
}

inline void read(Arguments& options, RnnOptions& to) {
  options.take("activation", to.activation);
  options.take("slope", to.slope);
  options.take("alpha", to.alpha);
  options.take("relu_at_zero", to.relu_at_zero);
}

inline void read(Arguments& tensors, RnnForward& to) {
  tensors.take("x", to.x);
  tensors.take("weight_ih", to.weight_ih);
  tensors.take("weight_hh", to.weight_hh);
  tensors.take("bias", to.bias);
  tensors.take("h_0", to.h_0);
  tensors.take("y", to.y);
  tensors.take("h_n", to.h_n);
  tensors.take("a", to.a);
}

inline void read(Arguments& tensors, RnnBackward& to) {
  read(tensors, static_cast<RnnForward&>(to));
  tensors.take("dy", to.dy);
  tensors.take("dh_n", to.dh_n);
  tensors.take("dx", to.dx);
  tensors.take("dweight_ih", to.dweight_ih);
  tensors.take("dweight_hh", to.dweight_hh);
  tensors.take("dbias", to.dbias);
  tensors.take("dh_0", to.dh_0);
  tensors.take("statistics", to.statistics);
}

inline void read_options(const py::dict& values, UpdateParameters<double>& to) {
  Arguments options(values);
  options.take("lr", to.lr);
  options.take("weight_decay", to.weight_decay);
  options.take("momentum", to.momentum);
  options.take("beta1", to.beta1);
  options.take("beta2", to.beta2);
  options.take("eps", to.eps);
  options.take("nesterov", to.nesterov);
  options.take("decoupled", to.decoupled);
  options.take("step", to.step);
  options.take("max_norm", to.max_norm);
  options.expect_all_taken();
}

template <class Args>
Args parse(const py::dict& tensors, const py::dict& options) {
  Args args;
  Arguments given_tensors(tensors), given_options(options);
  read(given_tensors, args);
  read(given_options, args.options);
  given_tensors.expect_all_taken();
  given_options.expect_all_taken();
  return args;
}

}  // namespace fusecell::bindings
