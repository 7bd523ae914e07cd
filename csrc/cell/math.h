#pragma once
// exp, expm1 and log1p, each over the range that the activations need, without branches or library calls, so that a
// compiler vectorises the loops around them and so that host and device agree. Method: x = k ln2 + r with |r| <= ln2/2
// (k by adding 1.5 * 2^m, which rounds to nearest), a polynomial for expm1(r), and 2^k made of k's bits. Where 2^k may
// be no normal number, it is kept away from there by a fixed power of two, which is taken off at the end. Errors are
// measured by tests/test_activations.py against extended precision.

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

// kTiny is added to what may be subnormal before it is reduced: of such numbers the arithmetic here would be up to five
// times as slow (Zen 5; a microcode assist elsewhere). What it changes is so small that the results are the same bits,
// or, in tanh, are mended. Setting the processor to flush them would be no option: results below 1e-38 count.
template <class S>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr int kAway = 64;  // an exponent that leads away from the subnormal numbers
  static constexpr float kBack = 0x1p-64f;
  static constexpr float kTiny = 1e-16f;
  static constexpr float kRound = 0x1.8p23f;
  static constexpr float kLowest = -104.0f;  // exp is 0 below
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693145751953125f;  // 9 trailing zero bits: k * high is exact
  static constexpr float kLn2Low = 1.42860682030941723e-6f;
};

template <>
struct ExpConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr int kAway = 512;
  static constexpr double kBack = 0x1p-512;
  static constexpr double kTiny = 1e-140;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLowest = -746.0;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2High = 0.693147180369123816490;  // 32 trailing zero bits
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
};

// (expm1(r) - r) / r^2: the polynomials with the least largest relative error of expm1, 2^-27.7 and 2^-60.3, for |r| <=
// 0.76 ln2, found by Remez' algorithm. Two terms at a time: as many operations as one at a time, two thirds of the
// latency, which is what bounds the loops.
template <class S, int N>
FUSECELL_HD S in_pairs(const S (&terms)[N], S r) {
  const S square = r * r;
  S sum = terms[N - 2] + terms[N - 1] * r;
  for (int n = N - 4; n >= 0; n -= 2) sum = sum * square + (terms[n] + terms[n + 1] * r);
  return sum;
}
FUSECELL_HD float expm1_terms(float r) {
  const float terms[] = {0.5000000524f, 0.16666663f, 0.04166505844f, 0.00833363674f, 0.001400790843f, 0.0001985054329f};
  return in_pairs(terms, r);
}
FUSECELL_HD double expm1_terms(double r) {
  const double terms[] = {0.49999999999999998549,   0.16666666666666669547,   0.041666666666668230748,
                          0.0083333333333319724748, 0.0013888888888424493434, 1.9841269843341379039e-4,
                          2.4801587885313051377e-5, 2.7557317911336831818e-6, 2.7556964639975630033e-7,
                          2.5052426372304667487e-8, 2.0979775028272733009e-9, 1.6060374131725483801e-10};
  return in_pairs(terms, r);
}

// e^x = 2^-kShift scale (1 + expm1_r)
template <class S>
struct Exponential {
  S expm1_r, scale;
};

// For x from ln2 (1 - kBias - kShift) to ln2 (kBias - kShift); NaN goes through expm1_r. k is near_x / ln2, rounded:
// x itself, or what leads to another k where |r| <= 0.76 ln2 still.
template <int kShift, class S>
FUSECELL_HD Exponential<S> exponential(S x, S near_x) {
  using E = ExpConstants<S>;
  constexpr S kRound = E::kRound + S(E::kBias + kShift);  // so that the sum's low bits are the exponent of `scale`
  const S shifted = near_x * E::kLog2e + kRound;
  const S k = shifted - kRound;
  const S r = (x - k * E::kLn2High) - k * E::kLn2Low;
  const auto bits = __builtin_bit_cast(typename E::Bits, shifted) << E::kMantissaBits;
#if defined(__CUDA_ARCH__)  // Taylor's series: with the other's constants ptxas spills 44 bytes in backward_step
  S factor = S(1);
  for (int n = sizeof(S) == 4 ? 8 : 15; n >= 2; --n) factor = S(1) + r * factor * (S(1) / S(n));
  const S expm1_r = r * factor;
#else
  const S expm1_r = r + r * r * expm1_terms(r);
#endif
  return {expm1_r, __builtin_bit_cast(S, bits)};
}

template <class S>
FUSECELL_HD S exp_of_negative(S x) {
  using E = ExpConstants<S>;
  x = x - E::kTiny;
  x = x < E::kLowest ? E::kLowest : x;  // false for NaN, which goes through
  const Exponential<S> e = exponential<E::kAway>(x, x);
  return (S(1) + e.expm1_r) * e.scale * E::kBack;
}

// expm1 for |x| <= 80.
template <class S>
FUSECELL_HD S expm1_of_moderate(S x, S near_x) {
  const Exponential<S> e = exponential<0>(x, near_x);
  return e.scale * e.expm1_r + (e.scale - S(1));
}

// a / b for b from 2^-126 to 2^126. A GPU's exact division takes ten instructions and a branch; its approximate
// reciprocal and one step of correction take four, and stay within an ulp.
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
  for (int n = kTerms - 2; n >= 1; --n) series = series * square + S(1) / S(2 * n + 1);
  const S first = S(2) * s;
  return first + first * square * series;
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

// x if `sign` is positive, -x if it is negative.
template <class S>
FUSECELL_HD S times_sign_of(S x, S sign) {
  using Bits = typename ExpConstants<S>::Bits;
  constexpr Bits kSign = ~(~Bits(0) >> 1);
  return __builtin_bit_cast(S, __builtin_bit_cast(Bits, x) ^ (__builtin_bit_cast(Bits, sign) & kSign));
}

}  // namespace fusecell
