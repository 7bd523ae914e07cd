#pragma once
// exp, expm1 and log1p, each over the range that the activations need, without branches or library calls, so that a
// compiler vectorises the loops around them and so that host and device agree. Method: x = k ln2 + r with |r| <= ln2/2
// (k by adding 1.5 * 2^m, which rounds to nearest), the Taylor series of expm1(r) (its remainder is below 0.3 ulp), and
// 2^k in two factors so that the result may be subnormal. Errors measured by tests/test_activations.py against extended
// precision.

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

template <class S>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr uint32_t kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLowest = -104.0f;     // exp is 0 below
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693145751953125f;  // 9 trailing zero bits: k * high is exact
  static constexpr float kLn2Low = 1.42860682030941723e-6f;
  static constexpr int kTerms = 7;
};

template <>
struct ExpConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr uint64_t kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -746.0;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2High = 0.693147180369123816490;  // 32 trailing zero bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kTerms = 13;
};

template <class S>
struct Reduced {
  S expm1_r;                              // expm1 of the remainder
  typename ExpConstants<S>::Bits k_bits;  // k in two's complement, in the low bits
};

template <class S>
FUSECELL_HD Reduced<S> reduce_exp(S x) {
  using E = ExpConstants<S>;
  x = x < E::kLowest ? E::kLowest : x;  // false for NaN, which goes through
  const S shifted = x * E::kLog2e + E::kRound;
  const S k = shifted - E::kRound;
  const S r = (x - k * E::kLn2High) - k * E::kLn2Low;
  S factor = S(1);  // r (1 + r/2 (1 + r/3 (...)))
  for (int n = E::kTerms; n >= 2; --n) factor = S(1) + r * factor * (S(1) / S(n));
  return {r * factor, __builtin_bit_cast(typename E::Bits, shifted) - __builtin_bit_cast(typename E::Bits, E::kRound)};
}

template <class S>
FUSECELL_HD S power_of_two(typename ExpConstants<S>::Bits k) {
  using E = ExpConstants<S>;
  return __builtin_bit_cast(S, (k + E::kBias) << E::kMantissaBits);
}

template <class S>
FUSECELL_HD S exp_of_negative(S x) {
  using E = ExpConstants<S>;
  const Reduced<S> reduced = reduce_exp(x);
  // Halves of k, shifted as a signed number: add an even bias, halve, take half of the bias off.
  const typename E::Bits half = ((reduced.k_bits + 4096) >> 1) - 2048;
  return (S(1) + reduced.expm1_r) * power_of_two<S>(half) * power_of_two<S>(reduced.k_bits - half);
}

// expm1 for x <= 0, where 2^k needs no second factor until the result is -1 to the last bit.
template <class S>
FUSECELL_HD S expm1_of_negative(S x) {
  constexpr S kMinusOne = sizeof(S) == 4 ? S(-40) : S(-80);
  const Reduced<S> reduced = reduce_exp(x < kMinusOne ? kMinusOne : x);
  const S scale = power_of_two<S>(reduced.k_bits);
  return scale * reduced.expm1_r + (scale - S(1));
}

// a / b for b from 1 to 2^126. A GPU's exact division takes ten instructions and a branch; its approximate reciprocal
// and one step of correction take four, and stay within an ulp.
FUSECELL_HD double quotient_of(double a, double b) { return a / b; }
FUSECELL_HD float quotient_of(float a, float b) {
#if defined(__CUDA_ARCH__)
  const float inverse = __fdividef(1.0f, b), near = a * inverse;
  return __fmaf_rn(__fmaf_rn(-b, near, a), inverse, near);
#else
  return a / b;
#endif
}

// log(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e)): the argument is at most 1/3, so its series ends soon.
template <class S>
FUSECELL_HD S log1p_of_unit(S e) {
  constexpr int kTerms = sizeof(S) == 4 ? 8 : 17;
  const S s = quotient_of(e, S(2) + e), square = s * s;
  S series = S(1) / S(2 * kTerms - 1);
  for (int n = kTerms - 2; n >= 0; --n) series = series * square + S(1) / S(2 * n + 1);
  return S(2) * s * series;
}

template <class S>
FUSECELL_HD S abs_(S x) {
  using Bits = typename ExpConstants<S>::Bits;
  return __builtin_bit_cast(S, __builtin_bit_cast(Bits, x) & (~Bits(0) >> 1));
}

template <class S>
FUSECELL_HD S with_sign_of(S magnitude, S sign) {
  using Bits = typename ExpConstants<S>::Bits;
  constexpr Bits kMagnitude = ~Bits(0) >> 1;
  return __builtin_bit_cast(
      S, (__builtin_bit_cast(Bits, magnitude) & kMagnitude) | (__builtin_bit_cast(Bits, sign) & ~kMagnitude));
}

}  // namespace fusecell
