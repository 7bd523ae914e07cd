#pragma once
// A plain (Elman) recurrent network over a sequence. Backward's arguments contain forward's. On the CPU alone.

#include <cstdint>
#include <string>

#include "cell/activation.h"
#include "problem/tensor.h"

namespace fusecell {

struct RnnOptions {
  std::string activation = "tanh";
  double slope = 0.01, alpha = 1.0, relu_at_zero = 0.0;
};

struct RnnForward {
  Tensor x, weight_ih, weight_hh;  // [T, B, I], [C, I], [C, C]
  Tensor bias, h_0;                // [C], [B, C]; each may be absent: zero
  RnnOptions options;
  Tensor y, h_n;  // [T, B, C], [B, C]
  Tensor a;       // saved: y before the activation; absent where y determines the derivative
};

struct RnnBackward : RnnForward {            // reads y, and a where y does not determine the derivative
  Tensor dy, dh_n;                           // each may be absent: zero
  Tensor dx, dweight_ih, dweight_hh, dbias;  // each may be absent: not computed
  Tensor dh_0, statistics;                   // the same; statistics [T, 4] float64, see kRnnStatistics
};

// Of step t, over samples and channels: how many there are, the sum of (dL/dh_t)^2, how many dL/dh_t are not finite,
// and how many activations are saturated (cell/activation.h).
constexpr int64_t kRnnStatistics = 4;

struct RnnShape {
  DType dtype;
  int64_t steps, batch, inputs, channels;
  Activation kind;
  ActivationParameters<double> parameters;

  bool keeps_a() const { return !output_determines_derivative(kind); }
};

}  // namespace fusecell
