#pragma once
// Winograd's minimal filtering (Lavin and Gray 2016, arXiv:1509.09308) on patches of 6 x 6 pixels: a tile of M x M
// outputs of a correlation with R x R taps, M + R = 7, is
//
//     Y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A
//
// where the products over the 36 places of a patch ("frequencies") become matrix products over channels. The points of
// interpolation are 0, 1, -1, 2, -2 and infinity for M = 4, R = 3 and for M = 2, R = 5 alike, so B is the same for
// both. Lanes are neighbouring tiles of an image row; a row of pixels is transformed down its columns first, while
// pixels are still neighbours, and split into tiles for the second half alone.

#include <type_traits>

#include "cpu/direct_kernels.h"
#include "cpu/kernels.h"
#include "cpu/vector.h"

namespace fusecell::cpu {
namespace {

// ---------------------------------------------------------------------------------------------------- permutations
template <class S>
struct MaskOf;
template <>
struct MaskOf<float> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct MaskOf<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};
template <class S>
using Mask = typename MaskOf<S>::type;

// Lane l is lane from[l] of a and b one behind the other.
template <class S>
FUSECELL_HD Vector<S> pick(Vector<S> a, Vector<S> b, Mask<S> from) {
#if defined(__clang__)
  constexpr int L = static_cast<int>(kLanes<S>);
  Vector<S> result = {};
  for (int l = 0; l < L; ++l) result[l] = from[l] < L ? a[from[l]] : b[from[l] - L];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// The same with lanes that are known to the compiler.
template <class S, class From>
FUSECELL_HD Vector<S> permute(Vector<S> a, Vector<S> b, const From& from) {
  constexpr int L = static_cast<int>(kLanes<S>);
  Mask<S> mask = {};
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) mask[l] = from(l);
  return pick<S>(a, b, mask);
}

template <class S>
FUSECELL_HD Vector<S> evens(Vector<S> a, Vector<S> b) {
  return permute<S>(a, b, [](int l) { return 2 * l; });
}
template <class S>
FUSECELL_HD Vector<S> odds(Vector<S> a, Vector<S> b) {
  return permute<S>(a, b, [](int l) { return 2 * l + 1; });
}
// a0 b0 a1 b1 ..., the first and the second half.
template <class S>
FUSECELL_HD Vector<S> zip_low(Vector<S> a, Vector<S> b) {
  return permute<S>(a, b, [](int l) { return l / 2 + l % 2 * static_cast<int>(kLanes<S>); });
}
template <class S>
FUSECELL_HD Vector<S> zip_high(Vector<S> a, Vector<S> b) {
  return permute<S>(a, b, [](int l) {
    constexpr int L = static_cast<int>(kLanes<S>);
    return L / 2 + l / 2 + l % 2 * L;
  });
}

// Pixel j of each of a vector's tiles, which lie M apart.
template <class S, int M>
FUSECELL_HD void split_tiles(const S* row, Vector<S> (&pixel)[M]) {
  constexpr int64_t L = kLanes<S>;
  if constexpr (M == 4) {
    const Vector<S> a = load(row), b = load(row + L), c = load(row + 2 * L), d = load(row + 3 * L);
    const Vector<S> even_low = evens<S>(a, b), even_high = evens<S>(c, d);
    const Vector<S> odd_low = odds<S>(a, b), odd_high = odds<S>(c, d);
    pixel[0] = evens<S>(even_low, even_high);
    pixel[1] = evens<S>(odd_low, odd_high);
    pixel[2] = odds<S>(even_low, even_high);
    pixel[3] = odds<S>(odd_low, odd_high);
  } else {
    const Vector<S> a = load(row), b = load(row + L);
    pixel[0] = evens<S>(a, b);
    pixel[1] = odds<S>(a, b);
  }
}

// The other way.
template <class S, int M>
FUSECELL_HD void join_tiles(const Vector<S> (&pixel)[M], S* row) {
  constexpr int64_t L = kLanes<S>;
  if constexpr (M == 4) {
    const Vector<S> even_low = zip_low<S>(pixel[0], pixel[2]), even_high = zip_high<S>(pixel[0], pixel[2]);
    const Vector<S> odd_low = zip_low<S>(pixel[1], pixel[3]), odd_high = zip_high<S>(pixel[1], pixel[3]);
    store(row, zip_low<S>(even_low, odd_low));
    store(row + L, zip_high<S>(even_low, odd_low));
    store(row + 2 * L, zip_low<S>(even_high, odd_high));
    store(row + 3 * L, zip_high<S>(even_high, odd_high));
  } else {
    store(row, zip_low<S>(pixel[0], pixel[1]));
    store(row + L, zip_high<S>(pixel[0], pixel[1]));
  }
}

// ------------------------------------------------------------------------------------------------ the three matrices
// Bᵀ d
template <class V>
FUSECELL_HD void transform_patch(const V (&d)[6], V (&u)[6]) {
  const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
  const V even_far = d[4] - d[2], odd_far = 2 * (d[3] - d[1]);
  u[0] = 4 * (d[0] - d[2]) + even_far;
  u[1] = even + odd;
  u[2] = even - odd;
  u[3] = even_far + odd_far;
  u[4] = even_far - odd_far;
  u[5] = 4 * (d[1] - d[3]) + (d[5] - d[3]);
}

// Aᵀ m
template <class V>
FUSECELL_HD void transform_product(const V (&m)[6], V (&y)[4]) {
  const V sum = m[1] + m[2], difference = m[1] - m[2], far_sum = m[3] + m[4], far_difference = m[3] - m[4];
  y[0] = m[0] + sum + far_sum;
  y[1] = difference + 2 * far_difference;
  y[2] = sum + 4 * far_sum;
  y[3] = difference + 8 * far_difference + m[5];
}
template <class V>
FUSECELL_HD void transform_product(const V (&m)[6], V (&y)[2]) {
  y[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
  y[1] = (m[1] - m[2]) + 2 * (m[3] - m[4]) + m[5];
}

// A y, the adjoint of the one above.
template <class V>
FUSECELL_HD void transform_gradient(const V (&y)[4], V (&m)[6]) {
  const V even = y[0] + y[2], odd = y[1] + y[3], even_far = y[0] + 4 * y[2], odd_far = 2 * y[1] + 8 * y[3];
  m[0] = y[0];
  m[1] = even + odd;
  m[2] = even - odd;
  m[3] = even_far + odd_far;
  m[4] = even_far - odd_far;
  m[5] = y[3];
}
template <class V>
FUSECELL_HD void transform_gradient(const V (&y)[2], V (&m)[6]) {
  const V twice = 2 * y[1];
  m[0] = y[0];
  m[1] = y[0] + y[1];
  m[2] = y[0] - y[1];
  m[3] = y[0] + twice;
  m[4] = y[0] - twice;
  m[5] = y[1];
}

// G w: a row for each point, its powers divided by the product of its distances from the other finite points.
template <class V>
FUSECELL_HD void transform_weights(const V (&w)[3], V (&u)[6]) {
  using S = std::remove_cvref_t<decltype(w[0][0])>;
  const V near = (w[0] + w[2]) * S(1.0 / 6), far = w[0] * S(1.0 / 24) + w[2] * S(1.0 / 6);
  const V near_odd = w[1] * S(1.0 / 6), far_odd = w[1] * S(1.0 / 12);
  u[0] = w[0] * S(0.25);
  u[1] = -near - near_odd;
  u[2] = near_odd - near;
  u[3] = far + far_odd;
  u[4] = far - far_odd;
  u[5] = w[2];
}
template <class V>
FUSECELL_HD void transform_weights(const V (&w)[5], V (&u)[6]) {
  using S = std::remove_cvref_t<decltype(w[0][0])>;
  const V near = (w[0] + w[2] + w[4]) * S(1.0 / 6), near_odd = (w[1] + w[3]) * S(1.0 / 6);
  const V far = w[0] * S(1.0 / 24) + w[2] * S(1.0 / 6) + w[4] * S(2.0 / 3);
  const V far_odd = w[1] * S(1.0 / 12) + w[3] * S(1.0 / 3);
  u[0] = w[0] * S(0.25);
  u[1] = -near - near_odd;
  u[2] = near_odd - near;
  u[3] = far + far_odd;
  u[4] = far - far_odd;
  u[5] = w[4];
}

// Gᵀ u, the adjoint of the one above.
template <class V>
FUSECELL_HD void transform_weight_gradient(const V (&u)[6], V (&w)[3]) {
  using S = std::remove_cvref_t<decltype(u[0][0])>;
  const V near = (u[1] + u[2]) * S(1.0 / 6), far = u[3] + u[4];
  w[0] = u[0] * S(0.25) - near + far * S(1.0 / 24);
  w[1] = (u[2] - u[1]) * S(1.0 / 6) + (u[3] - u[4]) * S(1.0 / 12);
  w[2] = far * S(1.0 / 6) - near + u[5];
}
template <class V>
FUSECELL_HD void transform_weight_gradient(const V (&u)[6], V (&w)[5]) {
  using S = std::remove_cvref_t<decltype(u[0][0])>;
  const V near = (u[1] + u[2]) * S(1.0 / 6), far = u[3] + u[4];
  const V near_odd = (u[2] - u[1]) * S(1.0 / 6), far_odd = u[3] - u[4];
  w[0] = u[0] * S(0.25) - near + far * S(1.0 / 24);
  w[1] = near_odd + far_odd * S(1.0 / 12);
  w[2] = far * S(1.0 / 6) - near;
  w[3] = near_odd + far_odd * S(1.0 / 3);
  w[4] = far * S(2.0 / 3) - near + u[5];
}

// ------------------------------------------------------------------------------------------------- patches and tiles
// Where the last columns of a vector's tiles lie that are the next tile's, among those split off (lanes 0 to L - 1) and
// those behind each row of tiles (from L on, K - M of them one behind the other).
template <class S, int M, int K>
struct Overlap {
  Mask<S> from[K > M ? K - M : 1];

  FUSECELL_HD_METHOD void set(int64_t tiles) {
    for (int j = M; j < K; ++j) {
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const int64_t column = l % tiles + j / M, behind = l / tiles * (K - M) + (column - tiles) * M + j % M;
        const int64_t lane = column < tiles ? l + j / M : kLanes<S> + behind % kLanes<S>;
        from[j - M][l] = static_cast<std::remove_cvref_t<decltype(from[0][0])>>(lane);
      }
    }
  }
};

// A vector of tiles of one channel, `rows` of `tiles` each: the transform of K rows of pixels down their columns, then
// of K columns along the rows, stored `frequency` apart.
template <class S, int M, int K, class Transform>
FUSECELL_HD void transform_vector(const S* image, int64_t image_row, int64_t rows, int64_t tiles,
                                  const Overlap<S, M, K>& overlap, const Transform& transform, S* to,
                                  int64_t frequency) {
  constexpr int64_t L = kLanes<S>;
  S pixels[6][(M + 2) * L], behind[6][L * (K > M ? K - M : 1)];
  const int64_t columns = M * tiles;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t x = 0; x < columns + K - M; x += L) {
      Vector<S> d[K], u[6];
#pragma GCC unroll 6
      for (int i = 0; i < K; ++i) d[i] = load(image + (r * M + i) * image_row + x);
      transform(d, u);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) store(pixels[i] + r * columns + x, u[i]);
    }
    for (int i = 0; i < 6; ++i) {  // the next row of tiles is written over them
      for (int j = 0; j < K - M; ++j) behind[i][r * (K - M) + j] = pixels[i][(r + 1) * columns + j];
    }
  }
  for (int i = 0; i < 6; ++i) {
    Vector<S> d[K], u[6], own[M];
    split_tiles<S, M>(pixels[i], own);
#pragma GCC unroll 6
    for (int j = 0; j < M; ++j) d[j] = own[j];
    if constexpr (K - M > L) {  // more than one vector behind: two lanes alone
      for (int j = M; j < K; ++j) {
        Vector<S> lanes = {};
        for (int l = 0; l < L; ++l) {
          lanes[l] = l % tiles + j / M < tiles ? pixels[i][M * l + j]
                                               : behind[i][l / tiles * (K - M) + (l % tiles - tiles) * M + j];
        }
        d[j] = lanes;
      }
    } else if constexpr (K > M) {
      const Vector<S> next = load(behind[i]);
#pragma GCC unroll 6
      for (int j = M; j < K; ++j) d[j] = pick<S>(own[j % M], next, overlap.from[j - M]);
    }
    transform(d, u);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j, to += frequency) store(to, u[j]);
  }
}

// Tiles of one vector: a piece of one row, or whole rows where they are short.
struct VectorOfTiles {
  int64_t rows, tiles;
};
template <class S, int M, int K>
FUSECELL_HD VectorOfTiles tiles_at(const WinogradRun<S>& run, int64_t row, int64_t column) {
  constexpr int64_t L = kLanes<S>, kMostRows = K > M && L / (K - M) > 0 ? L / (K - M) : L;
  if (run.tiles >= L) return {1, run.tiles - column < L ? run.tiles - column : L};
  const int64_t fit = L / run.tiles, most = fit < kMostRows ? fit : kMostRows, left = run.rows - row;
  return {left < most ? left : most, run.tiles};
}

// Calls f(row, column, vector) for all tiles of a run.
template <class S, int M, int K, class F>
FUSECELL_HD void each_vector(const WinogradRun<S>& run, const F& f) {
  for (int64_t row = 0, column = 0; row < run.rows;) {
    const VectorOfTiles vector = tiles_at<S, M, K>(run, row, column);
    f(row, column, vector);
    column += vector.tiles;
    if (column >= run.tiles) {
      column = 0;
      row += vector.rows;
    }
  }
}

// The lanes of one vector that reach into the next one's tiles are written again by that one; what would reach further
// than there is room is taken from a copy.
template <class S, int M, int K, class Transform>
FUSECELL_HD void transform_tiles(const WinogradRun<S>& given, const Transform& transform) {
  constexpr int64_t L = kLanes<S>;
  const WinogradRun<S> run = given;  // its own copy: for all the compiler knows, a store could change the other
  Overlap<S, M, K> whole, last;      // of all vectors of a row but its last, and of that one
  whole.set(run.tiles < L ? run.tiles : L);
  last.set(run.tiles < L ? run.tiles : (run.tiles - 1) % L + 1);
  for (int64_t channel = 0; channel < run.channels; ++channel) {
    each_vector<S, M, K>(run, [&](int64_t row, int64_t column, const VectorOfTiles& vector) {
      const int64_t q = row * run.tiles + column, room = run.room - q;
      const S* from = run.image + channel * run.image_channel + M * (row * run.image_row + column);
      const Overlap<S, M, K>& overlap = column + vector.tiles < run.tiles ? whole : last;
      S* to = run.patches + channel * kWinogradTiles + q;
      if (room >= L) {
        transform_vector<S, M, K>(from, run.image_row, vector.rows, vector.tiles, overlap, transform, to,
                                  run.frequency);
      } else {
        S copy[kWinogradPlaces * L];
        transform_vector<S, M, K>(from, run.image_row, vector.rows, vector.tiles, overlap, transform, copy, L);
        for (int64_t place = 0; place < kWinogradPlaces; ++place) {
          for (int64_t l = 0; l < room; ++l) to[place * run.frequency + l] = copy[place * L + l];
        }
      }
    });
  }
}

template <class S, int M>
void winograd_patches(const WinogradRun<S>& run) {
  transform_tiles<S, M, 6>(run, [](const auto& d, auto& u) { transform_patch(d, u); });
}

// Lanes become rows and rows lanes, by zipping the halves as often as they can be halved.
template <class S>
FUSECELL_HD void transpose(Vector<S> (&v)[kLanes<S>]) {
  constexpr int L = static_cast<int>(kLanes<S>);
#pragma GCC unroll 4
  for (int stage = 1; stage < L; stage *= 2) {
    Vector<S> from[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) from[i] = v[i];
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      v[2 * i] = zip_low<S>(from[i], from[i + L / 2]);
      v[2 * i + 1] = zip_high<S>(from[i], from[i + L / 2]);
    }
  }
}

// As many channels as lanes, which become the lanes of the result: [tiles][lanes] at each place. Channels that are not
// there are zero.
template <class S, int M>
void winograd_gradients(const WinogradRun<S>& given) {
  constexpr int64_t L = kLanes<S>;
  const WinogradRun<S> run = given;
  const auto transform = [](const auto& d, auto& u) { transform_gradient(d, u); };
  S places[kWinogradPlaces * L * L];
  each_vector<S, M, M>(run, [&](int64_t row, int64_t column, const VectorOfTiles& vector) {
    for (int64_t channel = 0; channel < L; ++channel) {
      S* to = places + channel * L;
      if (channel < run.channels) {
        const S* from = run.image + channel * run.image_channel + M * (row * run.image_row + column);
        transform_vector<S, M, M>(from, run.image_row, vector.rows, vector.tiles, {}, transform, to, L * L);
      } else {
        for (int64_t place = 0; place < kWinogradPlaces; ++place) store(to + place * L * L, Vector<S>{});
      }
    }
    const int64_t tiles = vector.rows * vector.tiles;
    for (int64_t place = 0; place < kWinogradPlaces; ++place) {
      Vector<S> v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) v[i] = load(places + (place * L + i) * L);
      transpose<S>(v);
      S* to = run.patches + place * run.frequency + (row * run.tiles + column) * L;
      if (tiles == L) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(to + i * L, v[i]);
      } else {
        for (int64_t i = 0; i < tiles; ++i) store(to + i * L, v[i]);
      }
    }
  });
}

// A vector of tiles to M rows of their pixels, which follow each other `image_row` apart.
template <class S, int M>
FUSECELL_HD void put_tiles(const S* products, int64_t frequency, S* image, int64_t image_row) {
  Vector<S> half[M][6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Vector<S> m[6], y[M];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(products + (i * 6 + j) * frequency);
    transform_product(m, y);
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) half[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i) {
    Vector<S> y[M];
    transform_product(half[i], y);
    join_tiles<S, M>(y, image + i * image_row);
  }
}

// What a vector's tiles write beyond a row of pixels is the next row's, written again later: short rows of tiles go
// from the first to the last, a vector's worth at a time; of a longer one, its last vector goes first.
template <class S, int M>
void winograd_outputs(const WinogradOutput<S>& given) {
  constexpr int64_t L = kLanes<S>;
  const WinogradOutput<S> run = given;
  if (run.tiles >= L || run.rows == 1) {
    for (int64_t row = 0; row < run.rows; ++row) {
      const S* products = run.products + row * run.tiles;
      S* image = run.image + row * M * run.image_row;
      for (int64_t c = (run.tiles - 1) / L * L; c >= 0; c -= L) {
        put_tiles<S, M>(products + c, run.frequency, image + M * c, run.image_row);
      }
    }
    return;
  }
  const int64_t at_once = L / run.tiles, columns = M * run.tiles;
  for (int64_t row = 0; row < run.rows; row += at_once) {
    S pixels[M][(M + 1) * L];
    put_tiles<S, M>(run.products + row * run.tiles, run.frequency, pixels[0], (M + 1) * L);
    for (int64_t r = 0; r < at_once && row + r < run.rows; ++r) {
      for (int i = 0; i < M; ++i) {
        S* to = run.image + ((row + r) * M + i) * run.image_row;
        for (int64_t x = 0; x < columns; x += L) store(to + x, load(pixels[i] + r * columns + x));
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------- the products
template <class S, int kRows, int kVectors>
FUSECELL_HD void product_tile(const S* weights, const S* patches, int64_t count, bool accumulate, S* out) {
  constexpr int64_t L = kLanes<S>;
  Vector<S> sum[kRows][kVectors] = {};
  if (accumulate) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[m][v] = load(out + m * kWinogradTiles + v * L);
    }
  }
  for (int64_t k = 0; k < count; ++k, weights += Tile<S>::kRows, patches += kWinogradTiles) {
    Vector<S> x[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[v] = load(patches + v * L);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[m][v] += weights[m] * x[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(out + m * kWinogradTiles + v * L, sum[m][v]);
  }
}

// One panel of rows over all tiles of a block, at one place.
template <class S, int kRows>
void product_panel(const WinogradProduct<S>& run, const S* weights, const S* patches, S* out) {
  constexpr int64_t L = kLanes<S>, kPixels = Tile<S>::kPixels;
  for (int64_t q = 0; q < run.tiles; q += kPixels) {
    const int64_t left = run.tiles - q;
    if (left > 2 * L) {
      product_tile<S, kRows, 3>(weights, patches + q, run.count, run.accumulate, out + q);
    } else if (left > L) {
      product_tile<S, kRows, 2>(weights, patches + q, run.count, run.accumulate, out + q);
    } else {
      product_tile<S, kRows, 1>(weights, patches + q, run.count, run.accumulate, out + q);
    }
  }
}

// Half a register tile's rows, or one row, where no more are left: the gradient of a few input channels.
template <class S>
void winograd_product(const WinogradProduct<S>& run) {
  constexpr int kRows = Tile<S>::kRows;
  for (int64_t place = 0; place < kWinogradPlaces; ++place) {
    const S* patches = run.patches + place * run.patches_frequency;
    for (int64_t m = 0; m < run.rows; m += kRows) {
      const S* weights = run.weights + place * run.weights_frequency + m / kRows * run.weights_panel;
      S* out = run.out + place * run.out_frequency + m * kWinogradTiles;
      const int64_t left = run.rows - m;
      if (left > kRows / 2) {
        product_panel<S, kRows>(run, weights, patches, out);
      } else if (left > 1) {
        product_panel<S, kRows / 2>(run, weights, patches, out);
      } else {
        product_panel<S, 1>(run, weights, patches, out);
      }
    }
  }
}

// ----------------------------------------------------------------------------------------- gradients of the weights
// Sums over tiles, a row for each channel of the patches and a lane for each of the gradient, stay in registers.
template <class S, int kRows, int kVectors>
void gradient_tile(const WinogradGradient<S>& given, const S* patches, const S* gradients, S* out) {
  constexpr int64_t L = kLanes<S>;
  const WinogradGradient<S> run = given;
  Vector<S> sum[kRows][kVectors] = {};
  for (int64_t left = run.tiles; left > 0; left -= kWinogradTiles) {
    const int64_t tiles = left < kWinogradTiles ? left : kWinogradTiles;
    for (int64_t q = 0; q < tiles; ++q) {
      Vector<S> d[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) d[v] = load(gradients + v * run.gradients_group + q * L);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] += patches[i * kWinogradTiles + q] * d[v];
      }
    }
    patches += run.patches_block;
    gradients += run.gradients_block;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      S* to = out + i * run.out_pitch + v * L;
      store(to, load(to) + sum[i][v]);
    }
  }
}

template <class S, int kRows>
void gradient_rows(const WinogradGradient<S>& run, int64_t k) {
  const S *patches = run.patches + k * kWinogradTiles, *gradients = run.gradients;
  S* out = run.out + k * run.out_pitch;
  if (run.groups == 1) return gradient_tile<S, kRows, 1>(run, patches, gradients, out);
  gradient_tile<S, kRows, 2>(run, patches, gradients, out);
}

template <class S>
void winograd_gradient(const WinogradGradient<S>& run) {
  constexpr int kRows = Tile<S>::kRows;
  int64_t k = 0;
  for (; k + kRows <= run.count; k += kRows) gradient_rows<S, kRows>(run, k);
  for (; k + kRows / 2 <= run.count; k += kRows / 2) gradient_rows<S, kRows / 2>(run, k);
  for (; k < run.count; ++k) gradient_rows<S, 1>(run, k);
}

// --------------------------------------------------------------------------------------------------------- weights
// Places p * 6 + q of the weights of a panel's rows and one k.
template <class S, int R>
void winograd_weights(const S* taps, int64_t frequency, S* out) {
  constexpr int kRows = Tile<S>::kRows;
  using V = typename Narrow<S, kRows* static_cast<int>(sizeof(S))>::type;
  V half[6][R];
#pragma GCC unroll 5
  for (int j = 0; j < R; ++j) {
    V w[R], u[6];
#pragma GCC unroll 5
    for (int i = 0; i < R; ++i) __builtin_memcpy(&w[i], taps + (i * R + j) * kRows, sizeof(V));
    transform_weights(w, u);
#pragma GCC unroll 6
    for (int p = 0; p < 6; ++p) half[p][j] = u[p];
  }
#pragma GCC unroll 6
  for (int p = 0; p < 6; ++p) {
    V u[6];
    transform_weights(half[p], u);
#pragma GCC unroll 6
    for (int q = 0; q < 6; ++q) __builtin_memcpy(out + (p * 6 + q) * frequency, &u[q], sizeof(V));
  }
}

// From sums at the places, `frequency` apart, to the gradients of n weights, R x R taps that begin `pitch` apart. The
// last vector is read beyond the n-th.
template <class S, int R>
void winograd_weight_gradients(const S* places, int64_t frequency, int64_t n, int64_t pitch, S* dweight) {
  constexpr int64_t L = kLanes<S>;
  for (int64_t k = 0; k < n; k += L) {
    Vector<S> half[R][6];
    S taps[R * R][L];
#pragma GCC unroll 6
    for (int q = 0; q < 6; ++q) {
      Vector<S> u[6], w[R];
#pragma GCC unroll 6
      for (int p = 0; p < 6; ++p) u[p] = load(places + (p * 6 + q) * frequency + k);
      transform_weight_gradient(u, w);
#pragma GCC unroll 5
      for (int i = 0; i < R; ++i) half[i][q] = w[i];
    }
    for (int i = 0; i < R; ++i) {
      Vector<S> w[R];
      transform_weight_gradient(half[i], w);
      for (int j = 0; j < R; ++j) store(taps[i * R + j], w[j]);
    }
    const int64_t count = n - k < L ? n - k : L;
    for (int64_t l = 0; l < count; ++l) {
      for (int tap = 0; tap < R * R; ++tap) dweight[(k + l) * pitch + tap] = taps[tap][l];
    }
  }
}

template <class S, int M>
constexpr WinogradKernels<S> winograd_kernels() {
  return {.patches = winograd_patches<S, M>,
          .gradients = winograd_gradients<S, M>,
          .outputs = winograd_outputs<S, M>,
          .weights = winograd_weights<S, 7 - M>,
          .weight_gradients = winograd_weight_gradients<S, 7 - M>};
}

}  // namespace
}  // namespace fusecell::cpu
