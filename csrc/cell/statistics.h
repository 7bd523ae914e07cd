#pragma once
// What a step's backward tells of itself: sums over its active elements of what the gates' adjoint has at hand.

#include "base/macros.h"
#include "cell/activation.h"

namespace fusecell {

// The columns, as fusecell.ops.STEP_STATISTICS names them.
enum StepStatistic : int {
  kCount,      // of active elements
  kDhSquared,  // of the gradient of h
  kDcSquared,  // of the gradient of ĉ
  kNotFinite,  // how many of these gradients are not
  kForget,     // f
  kSaturated,  // how many of i are saturated; f, g and o follow
  kStepStatistics = kSaturated + 4,
};

// An output at which the slope is nearly nothing (of sigmoid and tanh 4 % of the steepest, of the others less): a gate
// below 0.01 or above 0.99, g below -0.98 or above 0.98. Each as one comparison, which takes two thirds of the time.
template <class S>
FUSECELL_HD bool gate_saturates(S y) {
  return y - y * y < S(0.01 * 0.99);
}
template <class S>
FUSECELL_HD bool state_saturates(S y) {
  return y * y > S(0.98 * 0.98);
}
// The others never saturate.
FUSECELL_HD bool has_two_bounds(Activation kind) {
  return kind == Activation::tanh || kind == Activation::hard_tanh || kind == Activation::softsign;
}

FUSECELL_HD bool is_gate(Activation kind) {
  return kind == Activation::sigmoid || kind == Activation::hard_sigmoid || kind == Activation::hard_sigmoid_keras2;
}
template <class S>
FUSECELL_HD bool saturates(Activation kind, S y) {
  return is_gate(kind) ? gate_saturates(y) : has_two_bounds(kind) && state_saturates(y);
}

template <class S>
FUSECELL_HD bool is_finite(S x) {
  return x - x == S(0);
}

}  // namespace fusecell
