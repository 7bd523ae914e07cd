#pragma once
// A whole ConvLSTM sequence. Backward's arguments contain forward's.

#include <cstdint>

#include "problem/convolution.h"
#include "problem/lstm_gates.h"
#include "problem/tensor.h"

namespace fusecell {

struct ConvLstmOptions {
  ConvolutionOptions input;
  CellOptions cell;
  bool reverse = false;
  int64_t truncation = 0;  // 0: none
};

struct ConvLstmForward {
  Tensor x, weight_ih, weight_hh;         // [T, B, Cin, Hin, Win], [4C, Cin, kh, kw], [4C, C, kh', kw']
  Tensor bias, peephole;                  // [4C] | [4C, H, W], [3C] | [3C, H, W]; each may be absent
  Tensor h_0, c_0;                        // [B, C, H, W]; absent: zero
  Tensor lengths;                         // [B] int64; absent: T
  Tensor dropout_mask;                    // [B, C, H, W]
  Tensor zoneout_mask_h, zoneout_mask_c;  // [T, B, C, H, W] uint8
  ConvLstmOptions options;
  Tensor y, h_n, c_n;  // [T, B, C, H, W], [B, C, H, W] twice
  Tensor gates, c;     // saved: [T, B, 4C, H, W] and [T, B, C, H, W]; each may be absent
};

struct ConvLstmBackward : ConvLstmForward {             // reads y and c; makes the gates again where they are absent
  Tensor dy, dh_n, dc_n;                                // each may be absent: zero
  Tensor dx, dweight_ih, dweight_hh, dbias, dpeephole;  // each may be absent: not computed
  Tensor dh_0, dc_0;                                    // the same
  Tensor statistics;  // [T, conv_lstm_statistics_parts, kStepStatistics] float64, to be added up; the same
};

struct ConvLstmShape {
  DType dtype;
  int64_t steps, batch, channels;
  ConvolutionShape input, recurrent;  // both with out_channels = 4C and out = (H, W)
  CellShape cell;
  Algorithm algorithm = Algorithm::direct;  // that the options came to, of both convolutions

  int64_t pixels() const { return input.out_pixels(); }
  int64_t state_size() const { return batch * channels * pixels(); }
};

}  // namespace fusecell
