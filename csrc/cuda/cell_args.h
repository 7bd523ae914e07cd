#pragma once
// The options of a cell as kernels take them.

#include "cuda/cell_pack.cuh"
#include "problem/lstm_gates.h"

namespace fusecell::cuda {

inline bool is_default_cell(const CellShape& cell) {
  return cell.gate_kind == Activation::sigmoid && cell.state_kind == Activation::tanh;
}

// `whole` is left to the caller, who knows the tensors.
template <class S>
CellArgs<S> cell_args(const CellOptions& options, const CellShape& cell, int64_t channels, int64_t pixels,
                      const Tensor& bias, const Tensor& peephole, const Tensor& mask_h, const Tensor& mask_c) {
  using A = Accumulate<S>;
  CellArgs<S> args{};
  args.flags = {peephole.present, mask_h.present || options.zoneout_h > 0, mask_c.present || options.zoneout_c > 0};
  args.gate_kind = cell.gate_kind;
  args.state_kind = cell.state_kind;
  args.activation = {A(options.slope), A(1), A(options.relu_at_zero)};
  args.zoneout_h = A(options.zoneout_h);
  args.zoneout_c = A(options.zoneout_c);
  args.bias = bias.as<const S>();
  args.peephole = peephole.as<const S>();
  args.bias_per_pixel = cell.bias_per_pixel;
  args.peephole_per_pixel = cell.peephole_per_pixel;
  args.channels = channels;
  args.pixels = pixels;
  return args;
}

}  // namespace fusecell::cuda
