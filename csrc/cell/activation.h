#pragma once
// The activations, each with its adjoint directly below it. An adjoint takes (x, y, dy) and returns dx; it reads y
// alone only where y determines the derivative. Corner derivatives are torch's, relu's at 0 is an argument. NaN in, NaN
// out.

#include "base/macros.h"
#include "cell/math.h"

namespace fusecell {

enum class Activation : int {
  identity,
  sigmoid,
  tanh,
  relu,
  leaky_relu,
  elu,
  softplus,
  hard_sigmoid,         // relu6(x + 3) / 6: torch, Keras 3
  hard_sigmoid_keras2,  // clip(0.2 x + 0.5, 0, 1): Keras 2, tf.keras
  hard_tanh,
  softsign,
};

template <class S>
struct ActivationParameters {
  S slope = S(0.01);  // leaky_relu
  S alpha = S(1);     // elu
  S at_zero = S(0);   // relu's derivative at exactly 0
};

template <class S>
FUSECELL_HD ActivationParameters<S> as_scalar(const ActivationParameters<double>& p) {
  return {S(p.slope), S(p.alpha), S(p.at_zero)};
}

// ------------------------------------------------------------------------------------------------------- smooth
template <class S>
FUSECELL_HD S identity(S x) {
  return x;
}
template <class S>
FUSECELL_HD S identity_adjoint(S y, S dy) {
  return y == y ? dy : y;
}

template <class S>
FUSECELL_HD S sigmoid(S x) {  // 1 / (1 + exp(-x)), both sides of the line times kBack: no overflow, right in both tails
  using E = ExpConstants<S>;
  x = x + E::kTiny;
  x = x < E::kLowest ? E::kLowest : x;
  x = x > S(40) ? S(40) : x;  // 1 to the last bit
  const Exponential<S> e = exponential<-E::kAway>(-x, -x);
  return quotient_of(E::kBack, (e.scale * e.expm1_r + E::kBack) + e.scale);  // the smaller two first
}
template <class S>
FUSECELL_HD S sigmoid_adjoint(S y, S dy) {
  return dy * y * (S(1) - y);
}

// |t / (t + 2)| with t = expm1(u), where u = -2|x| for small x, else 2|x|: each is where the rounding of t and of t + 2
// counts less. 2^k is 1 up to |u| = 0.52, and above there is no cancellation in t.
template <class S>
FUSECELL_HD S tanh_(S x) {
  const S a = abs_(x), apart = a + ExpConstants<S>::kTiny;
  const S two_a = S(2) * (apart > S(20) ? S(20) : apart);  // 20: 1 to the last bit
  const S t = expm1_of_moderate(times_sign_of(two_a, two_a - S(0.4)), two_a - S(0.173));
  const S y = abs_(quotient_of(t, t + S(2)));
  return with_sign_of(y > a ? a : y, x);  // |tanh(x)| <= |x|: takes kTiny off again
}
template <class S>
FUSECELL_HD S tanh_adjoint(S y, S dy) {
  return dy * ((S(1) - y) * (S(1) + y));  // 1 - y y would lose the tail's bits
}

template <class S>
FUSECELL_HD S softplus(S x) {
  const S positive = x < S(0) ? S(0) : x;
  return positive + log1p_of_unit(exp_of_negative(-abs_(x)));
}
template <class S>
FUSECELL_HD S softplus_adjoint(S x, S dy) {
  return dy * sigmoid(x);
}

template <class S>
FUSECELL_HD S elu(S x, S alpha) {
  const S lowest = x < S(-40) ? S(-40) : x;  // -1 to the last bit
  const S negative = x > S(0) ? S(0) : lowest;
  return x > S(0) ? x : alpha * expm1_of_moderate(negative, negative);
}
template <class S>
FUSECELL_HD S elu_adjoint(S x, S alpha, S dy) {
  return x > S(0) ? dy : dy * alpha * exp_of_negative(x > S(0) ? S(0) : x);
}

template <class S>
FUSECELL_HD S softsign(S x) {
  const S a = abs_(x);
  return a > S(1e30) ? with_sign_of(S(1), x) : quotient_of(x, S(1) + a);  // inf / inf would be NaN
}
template <class S>
FUSECELL_HD S softsign_adjoint(S x, S dy) {
  const S d = S(1) / (S(1) + abs_(x));
  return dy * d * d;
}

// ---------------------------------------------------------------------------------------------------- piecewise
template <class S>
FUSECELL_HD S relu(S x) {
  return x <= S(0) ? S(0) : x;
}
template <class S>
FUSECELL_HD S relu_adjoint(S x, S at_zero, S dy) {
  const S flat = x == S(0) ? at_zero : x < S(0) ? S(0) : x;  // the last is NaN, or unused
  return x > S(0) ? dy : dy * flat;
}

template <class S>
FUSECELL_HD S leaky_relu(S x, S slope) {
  return x > S(0) ? x : x * slope;
}
template <class S>
FUSECELL_HD S leaky_relu_adjoint(S x, S slope, S dy) {
  return x > S(0) ? dy : x <= S(0) ? dy * slope : x * dy;
}

// Clamp that lets NaN through.
template <class S>
FUSECELL_HD S clamp(S x, S low, S high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// The derivative `slope` inside, 0 outside, NaN for NaN.
template <class S>
FUSECELL_HD S piecewise_adjoint(bool inside, S x, S slope, S dy) {
  const S outside = x == x ? S(0) : x;
  return dy * (inside ? slope : outside);
}

template <class S>
FUSECELL_HD S hard_sigmoid(S x) {
  return clamp(x + S(3), S(0), S(6)) / S(6);
}
template <class S>
FUSECELL_HD S hard_sigmoid_adjoint(S x, S dy) {
  return piecewise_adjoint(x > S(-3) && x < S(3), x, S(1) / S(6), dy);
}

template <class S>
FUSECELL_HD S hard_sigmoid_keras2(S x) {
  return clamp(S(0.2) * x + S(0.5), S(0), S(1));
}
template <class S>
FUSECELL_HD S hard_sigmoid_keras2_adjoint(S x, S dy) {  // torch.clamp passes the gradient at the bounds
  return piecewise_adjoint(x >= S(-2.5) && x <= S(2.5), x, S(0.2), dy);
}

template <class S>
FUSECELL_HD S hard_tanh(S x) {
  return clamp(x, S(-1), S(1));
}
template <class S>
FUSECELL_HD S hard_tanh_adjoint(S x, S dy) {
  return piecewise_adjoint(x > S(-1) && x < S(1), x, S(1), dy);
}

// ------------------------------------------------------------------------------------------------------ by name
template <class S>
FUSECELL_HD S activate(Activation kind, const ActivationParameters<S>& p, S x) {
  switch (kind) {
    case Activation::identity:
      return identity(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::tanh:
      return tanh_(x);
    case Activation::relu:
      return relu(x);
    case Activation::leaky_relu:
      return leaky_relu(x, p.slope);
    case Activation::elu:
      return elu(x, p.alpha);
    case Activation::softplus:
      return softplus(x);
    case Activation::hard_sigmoid:
      return hard_sigmoid(x);
    case Activation::hard_sigmoid_keras2:
      return hard_sigmoid_keras2(x);
    case Activation::hard_tanh:
      return hard_tanh(x);
    case Activation::softsign:
      return softsign(x);
  }
  return x;
}
template <class S>
FUSECELL_HD S activate_adjoint(Activation kind, const ActivationParameters<S>& p, S x, S y, S dy) {
  switch (kind) {
    case Activation::identity:
      return identity_adjoint(y, dy);
    case Activation::sigmoid:
      return sigmoid_adjoint(y, dy);
    case Activation::tanh:
      return tanh_adjoint(y, dy);
    case Activation::relu:
      return relu_adjoint(x, p.at_zero, dy);
    case Activation::leaky_relu:
      return leaky_relu_adjoint(x, p.slope, dy);
    case Activation::elu:
      return elu_adjoint(x, p.alpha, dy);
    case Activation::softplus:
      return softplus_adjoint(x, dy);
    case Activation::hard_sigmoid:
      return hard_sigmoid_adjoint(x, dy);
    case Activation::hard_sigmoid_keras2:
      return hard_sigmoid_keras2_adjoint(x, dy);
    case Activation::hard_tanh:
      return hard_tanh_adjoint(x, dy);
    case Activation::softsign:
      return softsign_adjoint(x, dy);
  }
  return dy;
}

// True where y gives the derivative without loss: the fused cell then saves y, otherwise the pre-activation.
FUSECELL_HD bool output_determines_derivative(Activation kind) {
  return kind == Activation::sigmoid || kind == Activation::tanh || kind == Activation::identity;
}

}  // namespace fusecell
