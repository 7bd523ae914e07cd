#pragma once
// Activations, softmax, norms and clipping over plain arrays.

#include "cell/activation.h"
#include "cell/update.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

// ----------------------------------------------------------------------------------------------------- activations
template <Activation kKind>
struct Kind {
  static constexpr Activation value = kKind;
};

// One loop per activation, so that each vectorises.
template <class F>
FUSECELL_HD void with_kind(Activation kind, F&& f) {
  switch (kind) {
    case Activation::identity:
      return f(Kind<Activation::identity>{});
    case Activation::sigmoid:
      return f(Kind<Activation::sigmoid>{});
    case Activation::tanh:
      return f(Kind<Activation::tanh>{});
    case Activation::relu:
      return f(Kind<Activation::relu>{});
    case Activation::leaky_relu:
      return f(Kind<Activation::leaky_relu>{});
    case Activation::elu:
      return f(Kind<Activation::elu>{});
    case Activation::softplus:
      return f(Kind<Activation::softplus>{});
    case Activation::hard_sigmoid:
      return f(Kind<Activation::hard_sigmoid>{});
    case Activation::hard_sigmoid_keras2:
      return f(Kind<Activation::hard_sigmoid_keras2>{});
    case Activation::hard_tanh:
      return f(Kind<Activation::hard_tanh>{});
    case Activation::softsign:
      return f(Kind<Activation::softsign>{});
  }
}

template <class S>
void activation_forward(Activation kind, const ActivationParameters<S>& p, int64_t n, const S* x, S* y) {
  with_kind(kind, [&](auto k) {
    const ActivationParameters<S> parameters = p;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) y[i] = activate(decltype(k)::value, parameters, x[i]);
  });
}

template <class S>
void activation_backward(Activation kind, const ActivationParameters<S>& p, int64_t n, const S* x, const S* y,
                         const S* dy, S* dx) {
  with_kind(kind, [&](auto k) {
    const ActivationParameters<S> parameters = p;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) dx[i] = activate_adjoint(decltype(k)::value, parameters, x[i], y[i], dy[i]);
  });
}

// --------------------------------------------------------------------------------------------------------- softmax
template <class S>
void softmax_forward(int64_t extent, int64_t stride, const S* x, S* y) {
  S largest = x[0];
  for (int64_t i = 1; i < extent; ++i) largest = x[i * stride] > largest ? x[i * stride] : largest;
  double total = 0;  // one NaN makes the total NaN, and so every output
  for (int64_t i = 0; i < extent; ++i) {
    const S e = exp_of_negative(x[i * stride] - largest);
    y[i * stride] = e;
    total += double(e);
  }
  const S inverse = S(1.0 / total);
  for (int64_t i = 0; i < extent; ++i) y[i * stride] *= inverse;
}

// dx = y (dy - sum(y dy))
template <class S>
void softmax_backward(int64_t extent, int64_t stride, const S* y, const S* dy, S* dx) {
  double dot = 0;
  for (int64_t i = 0; i < extent; ++i) dot += double(y[i * stride]) * double(dy[i * stride]);
  for (int64_t i = 0; i < extent; ++i) dx[i * stride] = S(double(y[i * stride]) * (double(dy[i * stride]) - dot));
}

// ----------------------------------------------------------------------------------------------- norms and clipping
constexpr int kSums = 16;  // independent sums: enough to hide an addition's latency, and they vectorise

template <class S, class F>
FUSECELL_HD double reduce_sum(int64_t n, const S* x, F&& term) {
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) sums[j] += term(x[i + j]);
  }
  for (int j = 0; i < n; ++i, ++j) sums[j] += term(x[i]);
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

template <class S>
double sum_plain(int64_t n, const S* x) {
  return reduce_sum(n, x, [](S v) { return double(v); });
}

template <class S>
double sum_abs(int64_t n, const S* x) {
  return reduce_sum(n, x, [](S v) { return double(abs_(v)); });
}

template <class S>
double sum_squares(int64_t n, const S* x, double scale) {
  return reduce_sum(n, x, [scale](S v) {
    const double scaled = double(v) * scale;
    return scaled * scaled;
  });
}

template <class S>
struct SignedBits {
  using type = int64_t;
};
template <>
struct SignedBits<float> {
  using type = int32_t;
};

// The largest of term(|x|'s bits). As integers, magnitudes stand in their order, with NaN above infinity.
template <class S, class F>
FUSECELL_HD double largest_magnitude(int64_t n, const S* x, F&& term) {
  using Bits = typename SignedBits<S>::type;
  Bits most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Bits bits = term(__builtin_bit_cast(Bits, abs_(x[i])));
    most = bits > most ? bits : most;
  }
  return double(__builtin_bit_cast(S, most));
}

template <class S>
double max_abs(int64_t n, const S* x) {
  return largest_magnitude(n, x, [](auto bits) { return bits; });
}

template <class S>
double largest_number(int64_t n, const S* x) {
  return largest_magnitude(n, x, [](auto bits) {
    const auto infinity = __builtin_bit_cast(decltype(bits), S(__builtin_inf()));
    return bits > infinity ? decltype(bits)(0) : bits;
  });
}

template <class S>
void scale(int64_t n, double factor, S* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = S(double(x[i]) * factor);  // a factor below float's range still works
}

template <class S>
void clamp_all(int64_t n, S limit, S* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = clamp(x[i], -limit, limit);
}

// A loop for each rule and its slots, so that each vectorises.
template <UpdateRule kRule, int kSlots, class S>
FUSECELL_HD void update_with(const UpdateParameters<S>& parameters, const UpdateFactors<S>& factors, int64_t n,
                             S* value, const S* gradient, S* first, S* second) {
  const UpdateParameters<S> p = parameters;
  const UpdateFactors<S> f = factors;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    S a = kSlots > 0 ? first[i] : S(0), b = kSlots > 1 ? second[i] : S(0);
    value[i] = update_element(kRule, p, f, value[i], gradient[i], a, b);
    if constexpr (kSlots > 0) first[i] = a;
    if constexpr (kSlots > 1) second[i] = b;
  }
}

template <class S>
void update(UpdateRule rule, const UpdateParameters<double>& p, double coefficient, int64_t n, S* value,
            const S* gradient, S* first, S* second) {
  const UpdateParameters<S> parameters = as_scalar<S>(p);
  const UpdateFactors<S> factors = update_factors<S>(rule, p, coefficient, p.step);
  if (rule == UpdateRule::adam) {
    update_with<UpdateRule::adam, 2>(parameters, factors, n, value, gradient, first, second);
  } else if (first) {
    update_with<UpdateRule::sgd, 1>(parameters, factors, n, value, gradient, first, second);
  } else {
    update_with<UpdateRule::sgd, 0>(parameters, factors, n, value, gradient, first, second);
  }
}

}  // namespace
}  // namespace fusecell::cpu
