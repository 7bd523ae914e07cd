#pragma once
// bfloat16 and float16 as storage: 16 bits that are read into float, and rounded to (to nearest, ties to even). The
// arithmetic is done in Accumulate<S>. Of our own, because not every host compiler that CUDA takes has such types.

#include <cstdint>

#include "base/macros.h"

namespace fusecell {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

FUSECELL_HD float widen(float x) { return x; }
FUSECELL_HD double widen(double x) { return x; }
FUSECELL_HD float widen(bfloat16 x) {
#if defined(__CUDA_ARCH__)
  float y;  // as a shift, the step's kernels take 175 registers instead of 113: nvcc 13.0 moves it about
  asm("mov.b32 %0, {0, %1};" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return __builtin_bit_cast(float, uint32_t(x.bits) << 16);
#endif
}
FUSECELL_HD float widen(float16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) return __builtin_bit_cast(float, sign | 0x7F800000u | (magnitude << 13));  // inf, NaN
  // Exact for subnormal numbers, too: the exponent is moved by a multiplication.
  const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, scaled));
#endif
}

FUSECELL_HD float narrow_to(float x, const float*) { return x; }
FUSECELL_HD double narrow_to(double x, const double*) { return x; }
FUSECELL_HD bfloat16 narrow_to(float x, const bfloat16*) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return {uint16_t((x != x ? bits | 0x400000u : rounded) >> 16)};  // rounding must not carry a NaN into infinity
#endif
}
FUSECELL_HD float16 narrow_to(float x, const float16*) {
#if defined(__CUDA_ARCH__)
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {uint16_t(sign | 0x7E00u)};       // NaN
  if (magnitude >= 0x477FF000u) return {uint16_t(sign | 0x7C00u)};      // rounds to 65520 or more
  if (magnitude < 0x38800000u) {                                        // below 2^-14: subnormal
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;  // ulp(0.5) = 2^-24: rounds for us
    return {uint16_t(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000u))};
  }
  const uint32_t rebiased = magnitude - 0x38000000u;
  return {uint16_t(sign | ((rebiased + 0xFFFu + ((rebiased >> 13) & 1u)) >> 13))};
#endif
}

template <class S>
FUSECELL_HD S narrow(Accumulate<S> x) {
  return narrow_to(x, static_cast<const S*>(nullptr));
}

// Two at once, the first in the low half: one conversion instead of two, and at a higher rate.
FUSECELL_HD uint32_t narrow_two(float low, float high, const bfloat16*) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return narrow<bfloat16>(low).bits | uint32_t(narrow<bfloat16>(high).bits) << 16;
#endif
}
FUSECELL_HD uint32_t narrow_two(float low, float high, const float16*) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return narrow<float16>(low).bits | uint32_t(narrow<float16>(high).bits) << 16;
#endif
}

}  // namespace fusecell
