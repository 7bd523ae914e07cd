#pragma once
// The convolution as a matrix product that never builds its matrix: the rows of the right-hand side are pieces of the
// packed image, found through a table of offsets. Plain register tiles; what Winograd's algorithm is held against.

#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

// mr x (vectors * lanes) accumulators and one row of the image must fit the registers: 32 of them with AVX-512,
// else 16.
template <class S>
struct Tile {
#if defined(__AVX512F__)
  static constexpr int kRows = 8, kVectors = 3, kGradientRows = 5, kGradientTaps = 5;
#else
  static constexpr int kRows = 4, kVectors = 3, kGradientRows = 3, kGradientTaps = 3;
#endif
  static constexpr int64_t kPixels = kVectors * kLanes<S>;
};

// ------------------------------------------------------------------------------------------------------- correlate
template <class S, int kVectors>
void correlate_pixels(const Source<S> (&sources)[2], const S* weights, int64_t q, S* out) {
  constexpr int kRows = Tile<S>::kRows;
  Vector<S> sum[kRows][kVectors] = {};
  for (const Source<S>& source : sources) {
    for (int64_t k = 0; k < source.count; ++k, weights += kRows) {
      const S* pixel = source.base + source.offset[k] + q;
      Vector<S> x[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) x[v] = load(pixel + v * kLanes<S>);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[m][v] += weights[m] * x[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(out + m * Tile<S>::kPixels + v * kLanes<S>, sum[m][v]);
  }
}

// Copies a register tile that covers the padded pixels [q, q_end) to its place among the image's own pixels.
template <class S>
void scatter_rows(const CorrelateTile<S>& args, const S* tile, int64_t q0, int64_t q_end, S* z, int64_t z_pitch) {
  for (int64_t q = q0; q < q_end;) {
    const int64_t row = q / args.pitch, column = q % args.pitch;
    if (column >= args.columns) {
      q = (row + 1) * args.pitch;
      continue;
    }
    const int64_t left_in_row = args.columns - column, left = q_end - q;
    const int64_t run = left_in_row < left ? left_in_row : left;
    S* to = z + (row - args.row0) * args.columns + column;
    for (int m = 0; m < Tile<S>::kRows; ++m) {
      const S* from = tile + m * Tile<S>::kPixels + (q - q0);
      for (int64_t i = 0; i < run; ++i) to[m * z_pitch + i] = from[i];
    }
    q += run;
  }
}

template <class S>
void correlate(const CorrelateTile<S>& args) {
  constexpr int64_t kRows = Tile<S>::kRows, kPixels = Tile<S>::kPixels;
  const int64_t z_pitch = (args.row1 - args.row0) * args.columns;
  const int64_t begin = args.row0 * args.pitch, end = (args.row1 - 1) * args.pitch + args.columns;
  const int64_t panel = (args.sources[0].count + args.sources[1].count) * kRows;
  S tile[kRows * kPixels];
  for (int64_t m = args.m0; m < args.m1; m += kRows) {
    const S* weights = args.weights + m / kRows * panel;
    for (int64_t q = begin; q < end; q += kPixels) {
      const int64_t left = end - q;
      if (left > 2 * kLanes<S>) {
        correlate_pixels<S, 3>(args.sources, weights, q, tile);
      } else if (left > kLanes<S>) {
        correlate_pixels<S, 2>(args.sources, weights, q, tile);
      } else {
        correlate_pixels<S, 1>(args.sources, weights, q, tile);
      }
      scatter_rows(args, tile, q, left < kPixels ? end : q + kPixels, args.z + (m - args.m0) * z_pitch, z_pitch);
    }
  }
}

// ------------------------------------------------------------------------------------------------- weight gradient
// The sum again, over the image's own pixels alone. Beside them the source may hold a NaN or an infinity that no output
// read; dz is zero there, but zero times those is NaN.
template <class S>
S weight_gradient_inside(const WeightGradientTile<S>& args, int64_t m, int64_t k) {
  S sum = 0;
  for (int64_t b = 0; b < args.batch; ++b) {
    if (!args.active[b]) continue;
    const S* dz = args.dz + b * args.dz_stride + m * args.dz_pitch;
    const S* x = args.source + b * args.source_stride + args.offset[k];
    for (int64_t q = 0; q < args.pixels; ++q) {
      if ((args.q0 + q) % args.pitch < args.columns) sum += dz[q] * x[q];
    }
  }
  return sum;
}

// Sums over pixels stay in registers across the whole batch; rows and taps past the edge repeat the last one.
template <class S>
void weight_gradient(const WeightGradientTile<S>& args) {
  constexpr int kRows = Tile<S>::kGradientRows, kTaps = Tile<S>::kGradientTaps;
  for (int64_t m = args.m0; m < args.m1; m += kRows) {
    for (int64_t k = args.k0; k < args.k1; k += kTaps) {
      Vector<S> sum[kRows][kTaps] = {};
      for (int64_t b = 0; b < args.batch; ++b) {
        if (!args.active[b]) continue;
        const S *dz[kRows], *x[kTaps];
        for (int i = 0; i < kRows; ++i) {
          const int64_t row = m + i < args.m1 ? m + i : args.m1 - 1;
          dz[i] = args.dz + b * args.dz_stride + row * args.dz_pitch;
        }
        for (int j = 0; j < kTaps; ++j) {
          x[j] = args.source + b * args.source_stride + args.offset[k + j < args.k1 ? k + j : args.k1 - 1];
        }
        for (int64_t q = 0; q < args.pixels; q += kLanes<S>) {
          Vector<S> d[kRows];
#pragma GCC unroll 8
          for (int i = 0; i < kRows; ++i) d[i] = load(dz[i] + q);
#pragma GCC unroll 8
          for (int j = 0; j < kTaps; ++j) {
            const Vector<S> pixel = load(x[j] + q);
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) sum[i][j] += d[i] * pixel;
          }
        }
      }
      for (int i = 0; i < kRows && m + i < args.m1; ++i) {
        for (int j = 0; j < kTaps && k + j < args.k1; ++j) {
          const S total = sum_of_lanes<S>(sum[i][j]);
          const bool finite = total - total == S(0);
          args.dweight[(m + i) * args.dweight_pitch + k + j] +=
              finite ? total : weight_gradient_inside(args, m + i, k + j);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fusecell::cpu
