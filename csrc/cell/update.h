#pragma once
// One element of an optimiser's step, with the clipping of its gradient.
//
//     sgd     v = momentum v + g;  p -= lr v     (nesterov: p -= lr (g + momentum v); without momentum v is g)
//             as torch.optim.SGD (Sutskever et al. 2013 with the rate outside the velocity)
//     adam    m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g^2;  p -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
//             as torch.optim.Adam (Kingma and Ba 2015); decoupled: AdamW (Loshchilov and Hutter 2019)

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

enum class UpdateRule : int { sgd, adam };

template <class S>
struct UpdateParameters {
  S lr = S(0), weight_decay = S(0), momentum = S(0), beta1 = S(0), beta2 = S(0), eps = S(0);
  int nesterov = 0, decoupled = 0;
  int64_t step = 1;  // counts this one
  S max_norm = S(0);
};

template <class S>
FUSECELL_HD UpdateParameters<S> as_scalar(const UpdateParameters<double>& p) {
  return {S(p.lr),  S(p.weight_decay), S(p.momentum), S(p.beta1), S(p.beta2),
          S(p.eps), p.nesterov,        p.decoupled,   p.step,     S(p.max_norm)};
}

// A smaller norm's inverse would overflow: value and norm are multiplied by a power of two first.
constexpr double kSmallestDivisor = 1e-300, kSmallDivisorScale = 0x1p500;

// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; a NaN goes through.
FUSECELL_HD double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient >= 1.0 ? 1.0 : coefficient;
}

// By squaring: the same steps on the host and on the device.
FUSECELL_HD double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// What every element shares.
template <class S>
struct UpdateFactors {
  S decay, shrink;          // added to the gradient; multiplies the value
  S rate, root_correction;  // lr / (1 - b1^t) or lr; 1 / (1 - b2^t)
  S one_minus_beta1, one_minus_beta2;
  double coefficient;
};

template <class S>
FUSECELL_HD UpdateFactors<S> update_factors(UpdateRule rule, const UpdateParameters<double>& p, double coefficient,
                                            int64_t step) {
  UpdateFactors<S> f;
  f.decay = p.decoupled ? S(0) : S(p.weight_decay);
  f.shrink = p.decoupled ? S(1.0 - p.lr * p.weight_decay) : S(1);
  const bool adam = rule == UpdateRule::adam;
  f.rate = S(adam ? p.lr / (1.0 - power(p.beta1, step)) : p.lr);
  f.root_correction = S(adam ? 1.0 / (1.0 - power(p.beta2, step)) : 1.0);
  f.one_minus_beta1 = S(1.0 - p.beta1);
  f.one_minus_beta2 = S(1.0 - p.beta2);
  f.coefficient = coefficient;
  return f;
}

#if defined(__CUDA_ARCH__)  // NVRTC has no builtins of these names, a host compiler needs a header without them
FUSECELL_HD float square_root(float x) { return sqrtf(x); }
FUSECELL_HD double square_root(double x) { return sqrt(x); }
#else
FUSECELL_HD float square_root(float x) { return __builtin_sqrtf(x); }
FUSECELL_HD double square_root(double x) { return __builtin_sqrt(x); }
#endif

// `first` and `second` are the slots: velocity, or mean and square. Those that a rule has not are left alone.
template <class S>
FUSECELL_HD S update_element(UpdateRule rule, const UpdateParameters<S>& p, const UpdateFactors<S>& f, S value,
                             S gradient, S& first, S& second) {
  S g = f.coefficient == 1.0 ? gradient : S(double(gradient) * f.coefficient);
  g = f.decay != S(0) ? g + f.decay * value : g;
  if (rule == UpdateRule::adam) {
    first += f.one_minus_beta1 * (g - first);
    second = p.beta2 * second + f.one_minus_beta2 * g * g;
    const S root = square_root(second * f.root_correction) + p.eps;
    return value * f.shrink - f.rate * first / root;
  }
  if (p.momentum != S(0)) {
    first = p.momentum * first + g;
    g = p.nesterov ? g + p.momentum * first : first;
  }
  return value - f.rate * g;
}

}  // namespace fusecell
