#pragma once
// The host's side of the weights' gradient with channels last: which tile, how many parts, how many stages.

#include <algorithm>
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/tensor_gradient.cuh"
#include "cuda/tensor_parameter_gradient.cuh"
#include "problem/tiling.h"

namespace fusecell::cuda {

// ------------------------------------------------------------------------------------- each kernel's one launch
// Defined in tensor_gradient.cu, so that a kernel is compiled once.
template <class S>
void run_tensor_gradient(const Context& context, dim3 grid, int shared_bytes, const TensorGradientArgs<S>& args);
template <class S>
void run_tensor_parameter_gradient(const Context& context, dim3 grid, const TensorParameterGradientArgs<S>& args);

// ------------------------------------------------------------------------------------------ pure functions of the
// shape
struct TensorTiles {
  int row_shift;  // of one tile
  int64_t count;
};

// Tiles of a rows x columns gradient: those that read least for a pixel, since the second-level cache binds this kernel
// (docs/cuda.md). Square ones, then, unless others are fewer by more than a fifth.
inline TensorTiles tensor_gradient_tiles(int64_t rows, int64_t columns) {
  TensorTiles best{};
  int64_t least = 0;
  for (const int row_shift : {1, 0, 2}) {
    const int64_t height = kWarpRows << row_shift, width = tensor_tile_columns(row_shift);
    const int64_t count = ceil_div(rows, height) * ceil_div(columns, width), reads = count * (height + width);
    if (best.count == 0 || reads < least) {
      best = {row_shift, count};
      least = reads;
    }
  }
  return best;
}

// Parts of the sum over `total` pixels: two blocks for each of 132 multiprocessors, all at work at once, but no part of
// few pixels. So few blocks leave few values to add up. A block counts its pixels in 32 bits.
template <class S>
Parts tensor_gradient_parts_of(int64_t rows, int64_t pieces, int64_t total) {
  constexpr int64_t kBlocks = 264, kLeast = 256, kMost = int64_t(1) << 30;
  const int64_t tiles = tensor_gradient_tiles(rows, pieces * kPiece<S>).count;
  const int64_t wanted = std::clamp<int64_t>(ceil_div(total, kLeast), 1, std::max<int64_t>(kBlocks / tiles, 1));
  const int64_t size = ceil_div(std::min(ceil_div(total, wanted), kMost), kStagePixels<S>) * kStagePixels<S>;
  return {size > 0 ? ceil_div(total, size) : 0, size};
}

// As many stages as two blocks on a multiprocessor leave room for; what a block has besides its own is 1 KiB.
template <class S>
int tensor_gradient_buffers(int row_shift, int shared_of_multiprocessor) {
  const int room = shared_of_multiprocessor / 2 - 1024;
  int buffers = kMostBuffers;
  while (buffers > 2 && tensor_gradient_shared<S>(row_shift, buffers) > room) --buffers;
  return buffers;
}

// Neighbouring channels of a block, as a power of two: no more than there are, but 8, so that a warp reads whole
// sectors.
inline int tensor_channel_shift(int64_t channels) {
  int shift = 3;
  while (shift < 8 && (int64_t(1) << shift) < channels) ++shift;
  return shift;
}
// Parts of a channel's sum over pixels: enough blocks to have the memory busy.
inline Parts tensor_parameter_parts_of(int64_t channels, int64_t total) {
  constexpr int64_t kBlocks = 1056, kLeast = 128;
  const int64_t across = ceil_div(channels, int64_t(1) << tensor_channel_shift(channels));
  const int64_t wanted = std::max<int64_t>(kBlocks / std::max<int64_t>(across, 1), 1);
  const int64_t size = std::max(ceil_div(total, wanted), kLeast);
  return {ceil_div(total, size), size};
}

// ---------------------------------------------------------------------------------------------------- launches
// args: without pixels_per_part, row_shift, buffers and warpgroups, which are set here.
template <class S>
void launch_tensor_gradient(const Context& context, TensorGradientArgs<S> args, const Parts& parts, int row_shift,
                            int buffers) {
  args.pixels_per_part = parts.size;
  args.row_shift = row_shift;
  args.buffers = buffers;
  args.warpgroups = sizeof(S) == 2 && context.on_hopper();
  const int64_t columns = int64_t(args.pieces) * kPiece<S>;
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, tensor_tile_columns(row_shift))),
                  static_cast<unsigned>(ceil_div(args.rows, kWarpRows << row_shift)),
                  static_cast<unsigned>(parts.count));
  const int shared = tensor_gradient_shared<S>(row_shift, buffers) + (args.warpgroups ? kPanelsAlignment : 0);
  run_tensor_gradient(context, grid, shared, args);
}

template <class S>
void tensor_gradient_parts(const Context& context, const TensorGradientArgs<S>& args, const Parts& parts) {
  const int row_shift = tensor_gradient_tiles(args.rows, int64_t(args.pieces) * kPiece<S>).row_shift;
  const int shared = context.attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  launch_tensor_gradient(context, args, parts, row_shift, tensor_gradient_buffers<S>(row_shift, shared));
}

// args: without per_part and channel_shift.
template <class S>
void tensor_parameter_gradient_parts(const Context& context, TensorParameterGradientArgs<S> args, const Parts& parts) {
  const int64_t channels = args.peephole ? args.dz_rows / 4 : args.dz_rows;
  args.per_part = parts.size;
  args.channel_shift = tensor_channel_shift(channels);
  const int64_t blocks = args.per_pixel ? ceil_div(args.pixels, kThreads >> args.channel_shift) : parts.count;
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(ceil_div(channels, int64_t(1) << args.channel_shift)));
  run_tensor_parameter_gradient(context, grid, args);
}

}  // namespace fusecell::cuda
