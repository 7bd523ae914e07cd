#pragma once
// Eight registers of 16 rows of 64 bytes, and the product of two of them: AMX's words under names of their own, and
// what they mean in plain C++, which is what a machine without AMX is tested on.

#include <cstdint>

#include "base/macros.h"
#include "base/scalar.h"
#include "cpu/kernels.h"

namespace fusecell::cpu {
namespace {

// A register is a part of the instruction, so its number is known at compile time.
template <int kNumber>
struct TileName {};

// ------------------------------------------------------------------------------------------------------ in plain C++
struct PlainTiles {
  uint8_t bytes[8][16][64];
};

FUSECELL_HD void tile_config(PlainTiles&) {}
FUSECELL_HD void tile_release(PlainTiles&) {}

template <int t>
FUSECELL_HD void tile_zero(PlainTiles& tiles, TileName<t>) {
  __builtin_memset(tiles.bytes[t], 0, sizeof tiles.bytes[t]);
}

template <int t>
FUSECELL_HD void tile_load(PlainTiles& tiles, TileName<t>, const void* from, int64_t row_bytes) {
  for (int row = 0; row < 16; ++row) {
    __builtin_memcpy(tiles.bytes[t][row], static_cast<const uint8_t*>(from) + row * row_bytes, 64);
  }
}

template <int t>
FUSECELL_HD void tile_store(PlainTiles& tiles, TileName<t>, void* to, int64_t row_bytes) {
  for (int row = 0; row < 16; ++row) {
    __builtin_memcpy(static_cast<uint8_t*>(to) + row * row_bytes, tiles.bytes[t][row], 64);
  }
}

// The instruction reads a number too small to be normal as zero and writes it as zero.
FUSECELL_HD float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

// sums[m][n] += over k of a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1], in the instruction's order: two sums, of
// the even and of the odd terms, which meet at the end.
template <int c, int a, int b>
FUSECELL_HD void tile_dot_bf16(PlainTiles& tiles, TileName<c>, TileName<a>, TileName<b>) {
  for (int m = 0; m < 16; ++m) {
    bfloat16 left[32], right[32];
    float even[16] = {}, odd[16] = {}, sums[16];
    __builtin_memcpy(left, tiles.bytes[a][m], sizeof left);
    for (int k = 0; k < 16; ++k) {
      __builtin_memcpy(right, tiles.bytes[b][k], sizeof right);
      const float first = flushed(widen(left[2 * k])), second = flushed(widen(left[2 * k + 1]));
      for (int n = 0; n < 16; ++n) {
        even[n] = flushed(__builtin_fmaf(first, flushed(widen(right[2 * n])), even[n]));
        odd[n] = flushed(__builtin_fmaf(second, flushed(widen(right[2 * n + 1])), odd[n]));
      }
    }
    __builtin_memcpy(sums, tiles.bytes[c][m], sizeof sums);
    for (int n = 0; n < 16; ++n) sums[n] = flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
    __builtin_memcpy(tiles.bytes[c][m], sums, sizeof sums);
  }
}

// --------------------------------------------------------------------------------------------------------------- AMX
#if defined(__x86_64__)
struct AmxTiles {};

// As assembly and not through <immintrin.h>, whose macros take the register's number only as a literal; so the compiler
// needs no flag, either, that it could use elsewhere.
FUSECELL_HD void tile_config(AmxTiles&) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  static_assert(sizeof config == 64);
  asm volatile("ldtilecfg %0" : : "m"(config));
}
FUSECELL_HD void tile_release(AmxTiles&) { asm volatile("tilerelease"); }

template <int t>
FUSECELL_HD void tile_zero(AmxTiles&, TileName<t>) {
  asm volatile("tilezero %%tmm%c0" : : "i"(t));
}

template <int t>
FUSECELL_HD void tile_load(AmxTiles&, TileName<t>, const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(t) : "memory");
}

template <int t>
FUSECELL_HD void tile_store(AmxTiles&, TileName<t>, void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(t) : "memory");
}

template <int c, int a, int b>
FUSECELL_HD void tile_dot_bf16(AmxTiles&, TileName<c>, TileName<a>, TileName<b>) {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
#endif

}  // namespace
}  // namespace fusecell::cpu
