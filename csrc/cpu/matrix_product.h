#pragma once
// A matrix product for matrices of any size, the smallest too: a tile of rows and vectors of columns at a time, each
// element a sum over the terms in their order.

#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

constexpr int kProductVectors = 3;
#if defined(__AVX512F__)
constexpr int kProductRows = 8;  // x 3 vectors, and the right-hand side's: they fit 32 registers
#else
constexpr int kProductRows = 4;
#endif

template <class S, int kRows, int kVectors>
void product_tile(const MatrixProduct<S>& args, int64_t m, int64_t n) {
  const S* left = args.left.data + m * args.left.row;
  const S* right = args.right.data + n;
  Vector<S> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < args.terms; ++k, left += args.left.column, right += args.right.pitch) {
    Vector<S> r[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) r[v] = load(right + v * kLanes<S>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[i][v] += left[i * args.left.row] * r[v];
    }
  }
  const int64_t space = args.columns - n, columns = space < kVectors * kLanes<S> ? space : kVectors * kLanes<S>;
  for (int i = 0; i < kRows; ++i) {
    S row[kVectors * kLanes<S>];
    for (int v = 0; v < kVectors; ++v) store(row + v * kLanes<S>, sum[i][v]);
    const S* start = args.start.data ? args.start.data + (m + i) * args.start.pitch + n : nullptr;
    S* out = args.out.data + (m + i) * args.out.pitch + n;
    for (int64_t j = 0; j < columns; ++j) out[j] = start ? start[j] + row[j] : row[j];
  }
}

template <class S, int kRows>
void product_rows(const MatrixProduct<S>& args, int64_t m) {
  constexpr int64_t kStep = kProductVectors * kLanes<S>;
  int64_t n = 0;
  for (; n + kStep <= args.columns; n += kStep) product_tile<S, kRows, kProductVectors>(args, m, n);
  const int64_t left = args.columns - n;
  if (left > 2 * kLanes<S>) {
    product_tile<S, kRows, 3>(args, m, n);
  } else if (left > kLanes<S>) {
    product_tile<S, kRows, 2>(args, m, n);
  } else if (left > 0) {
    product_tile<S, kRows, 1>(args, m, n);
  }
}

template <class S>
void matrix_product(const MatrixProduct<S>& args) {
  int64_t m = 0;
  for (; m + kProductRows <= args.rows; m += kProductRows) product_rows<S, kProductRows>(args, m);
  for (; m < args.rows; ++m) product_rows<S, 1>(args, m);
}

}  // namespace
}  // namespace fusecell::cpu
