#pragma once
// How a GPU's work is cut: pure functions of the shape, so that results never depend on the card.

#include <algorithm>
#include <cstdint>

#include "problem/conv_lstm.h"

#if !defined(FUSECELL_DZ_CHUNK_BYTES)
// A chunk's sums of the weights' gradients, in parts, are 60 MB to write and read at 64 channels and 3 x 3: few chunks.
#define FUSECELL_DZ_CHUNK_BYTES (int64_t(512) << 20)
#endif

namespace fusecell {

inline int64_t size_of(DType dtype) {
  return dtype == DType::float64 || dtype == DType::int64 ? 8
         : dtype == DType::uint8                          ? 1
         : is_half_precision(dtype)                       ? 2
                                                          : 4;
}

// Groups of 4 rows in a convolution's tile: 4, 8 or 16, as a power of two. The fewer rows it has, the more pixels.
inline int tile_group_shift(int64_t rows) { return rows <= 16 ? 2 : rows <= 32 ? 3 : 4; }

// Steps whose dz is kept before the gradients of weights and inputs are taken from them: as many as fit into half of
// FUSECELL_DZ_CHUNK_BYTES, since the next chunk reads this one's last, and at least one.
inline int64_t steps_per_chunk(const ConvLstmShape& shape) {
  const int64_t bytes = 4 * shape.state_size() * size_of(shape.dtype);
  return std::clamp<int64_t>(FUSECELL_DZ_CHUNK_BYTES / std::max<int64_t>(2 * bytes, 1), 1,
                             std::max<int64_t>(shape.steps, 1));
}

// Parts into which the sum over `total` pixels of a rows x count gradient is cut, and the pixels of each.
struct Parts {
  int64_t count, size;

  // Those of a sum over fewer pixels: never more than were planned.
  Parts of(int64_t total) const { return {size > 0 ? (total + size - 1) / size : 0, size}; }
};
inline Parts gradient_parts(int64_t rows, int64_t count, int64_t total) {
  constexpr int64_t kTile = 64, kBlocks = 528, kLeast = 128, kMostValues = int64_t(1) << 24;  // 4 blocks on each of 132
  const int64_t tiles = ((rows + kTile - 1) / kTile) * ((count + kTile - 1) / kTile);
  const int64_t most = std::min((total + kLeast - 1) / kLeast, std::max<int64_t>(kMostValues / (rows * count), 1));
  const int64_t wanted = std::clamp<int64_t>((kBlocks + tiles - 1) / tiles, 1, std::max<int64_t>(most, 1));
  const int64_t size = ((total + wanted - 1) / wanted + 15) / 16 * 16;
  return {size > 0 ? (total + size - 1) / size : 0, size};
}

// The same for the sum of a channel over pixels, as a bias has it.
inline Parts channel_parts(int64_t total) {
  constexpr int64_t kSize = 8192;
  return {(total + kSize - 1) / kSize, kSize};
}

}  // namespace fusecell
