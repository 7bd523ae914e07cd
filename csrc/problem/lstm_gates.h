#pragma once
// The pointwise tier: (z, c') -> (h, c) for any convolution and any number of spatial dimensions (P = their product).

#include <cstdint>
#include <string>

#include "cell/activation.h"
#include "problem/tensor.h"

namespace fusecell {

struct CellOptions {
  std::string recurrent_activation = "sigmoid";
  std::string activation = "tanh";
  double slope = 0.01;
  double relu_at_zero = 0.0;
  double zoneout_h = 0.0, zoneout_c = 0.0;  // used as the share of the old state where no mask is given
};

struct CellShape {
  Activation gate_kind, state_kind;
  bool bias_per_pixel = false, peephole_per_pixel = false;
};

// Saved for backward: `gates` holds i, f, g, o, each activated where the activation's output gives its derivative,
// and before the activation elsewhere.
struct LstmGatesForward {
  Tensor z, c, h, bias, peephole;         // [B, 4C, ...], [B, C, ...], as c, [4C] | [4C, ...], [3C] | [3C, ...]
  Tensor zoneout_mask_h, zoneout_mask_c;  // [B, C, ...] uint8, 1 keeps the old state
  CellOptions options;
  Tensor h_out, c_out, gates;  // gates may be absent
};

struct LstmGatesBackward : LstmGatesForward {  // z, h_out and c_out of the forward are not read
  Tensor dh, dc;                               // with respect to h_out and c_out; each may be absent
  Tensor dz, dc_before, dh_before;             // dh_before may be absent
  Tensor dbias, dpeephole;                     // each may be absent
};

struct LstmGatesShape {
  DType dtype;
  int64_t batch, channels, pixels;
  Shape spatial;
  CellShape cell;
};

}  // namespace fusecell
