#pragma once
// How a convolution on tensor cores is cut up, and which instructions do it: pure functions of its shape, its elements
// and the GPU.

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/tensor_tile.cuh"

namespace fusecell::cuda {

#if !defined(FUSECELL_FEWEST_TILES)
#define FUSECELL_FEWEST_TILES 132  // an H100's multiprocessors
#endif

// What a choice has to know of a GPU.
struct Architecture {
  int shared_of_multiprocessor;  // bytes
  bool hopper;                   // it has Hopper's own instructions, and they are wanted
};

// Of a product of `groups` groups of packed rows: the tile that reads least, or a small one where there would be fewer
// than `fewest`. No GPU decides here: the weights are packed for it.
inline TileSize tile_size(int64_t groups, int64_t pixels, int64_t fewest = FUSECELL_FEWEST_TILES) {
  const TileSize large = groups > 1 ? kSquareTile : kWideTile;
  const int64_t tiles = ceil_div(groups, int64_t(1) << large.group_shift) * ceil_div(pixels, large.pixels());
  return tiles < fewest ? kSmallTile : large;
}

// Stages in shared memory: as many as two blocks on a multiprocessor have room for, else one. At least so many that the
// sums can be parked in them.
inline int tensor_buffers(const TileSize& size, const Architecture& gpu) {
  constexpr int kOther = 11 << 10;  // of a block: what is static, and what the machine keeps
  const int least = size.sliced() ? 4 : 2;
  for (int blocks = 2; blocks > 0; --blocks) {
    const int buffers = (gpu.shared_of_multiprocessor / blocks - kOther) / size.stage_bytes();
    if (buffers >= least) return std::min(buffers, kMostBuffers);
  }
  return least;
}

// A warpgroup has no slice of a sum; and TF32's rounding to nearest takes registers, which it does not read.
inline bool by_warpgroups(const TileSize& size, int element_bytes, const Architecture& gpu) {
  return gpu.hopper && element_bytes == 2 && !size.sliced();
}

inline int tensor_shared_bytes(const TileSize& size, int buffers) {
  return buffers * size.stage_bytes() + kRowsAlignment;
}

}  // namespace fusecell::cuda
