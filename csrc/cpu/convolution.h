#pragma once
// Convolutions as correlations over packed images: their cutting into tasks, the gradient of the input, that of the
// weights. The tasks depend on the shape alone, never on the number of threads.

#include <algorithm>
#include <vector>

#include "base/arena.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/pixels.h"
#include "cpu/thread_pool.h"
#include "problem/convolution.h"

namespace fusecell::cpu {

constexpr int64_t kTilePixels = 512;  // pixels of an output block: with 64 rows of z, 128 KB in the second-level cache
constexpr int64_t kTileRows = 64;

// -------------------------------------------------------------------------------------------------------------- tasks
// Output blocks: (image, group of rows of z, block of pixels). A block of pixels is whole image rows, or a piece of one
// row where rows are long; either way its pixels are neighbours in memory.
struct Blocks {
  int64_t batch, weight_rows, image_row0, image_row1, columns, pitch;

  int64_t image_rows() const { return image_row1 - image_row0; }
  int64_t rows_per_block() const { return std::clamp<int64_t>(kTilePixels / pitch, 1, image_rows()); }
  int64_t columns_per_block() const { return pitch <= kTilePixels ? columns : std::min(columns, kTilePixels); }
  int64_t row_blocks() const { return ceil_div(image_rows(), rows_per_block()); }
  int64_t column_blocks() const { return ceil_div(columns, columns_per_block()); }
  int64_t groups() const { return ceil_div(weight_rows, kTileRows); }
  int64_t tasks() const { return batch * groups() * row_blocks() * column_blocks(); }
  int64_t z_size() const { return kTileRows * rows_per_block() * columns_per_block(); }
};

struct Block {
  int64_t b, m0, m1, row0, row1, column0, column1;

  int64_t columns() const { return column1 - column0; }
  int64_t pixels() const { return (row1 - row0) * columns(); }
};

inline Block block_of_task(const Blocks& blocks, int64_t task) {
  const int64_t column_block = task % blocks.column_blocks(), with_rows = task / blocks.column_blocks();
  const int64_t row_block = with_rows % blocks.row_blocks(), with_groups = with_rows / blocks.row_blocks();
  const int64_t group = with_groups % blocks.groups();
  const int64_t row0 = blocks.image_row0 + row_block * blocks.rows_per_block();
  const int64_t column0 = column_block * blocks.columns_per_block();
  return {with_groups / blocks.groups(),
          group * kTileRows,
          std::min((group + 1) * kTileRows, blocks.weight_rows),
          row0,
          std::min(row0 + blocks.rows_per_block(), blocks.image_row1),
          column0,
          std::min(column0 + blocks.columns_per_block(), blocks.columns)};
}

// The tile that computes a block; the sources' bases point at their image.
template <class S>
CorrelateTile<S> tile_of_block(const Block& block, int64_t pitch, Source<S> first, Source<S> second, const S* weights,
                               S* z) {
  first.base += block.column0;
  if (second.count > 0) second.base += block.column0;
  return {{first, second}, weights, block.m0, block.m1, block.row0, block.row1, block.columns(), pitch, z};
}

// ------------------------------------------------------------------------------------------- gradient of the input
// One correlation over the packed gradient for each residue of the stride (stride 1: the flipped kernel).
template <class S>
class InputGradient {
 public:
  InputGradient(const ConvolutionShape& conv, const Packing& dz) : conv_(conv), dz_(dz) {
    for (int64_t row_residue : residues_of_input(conv, 0)) {
      for (int64_t column_residue : residues_of_input(conv, 1)) add_phase({row_residue, column_residue});
    }
  }

  void take(Arena& arena, int64_t mr) {
    for (Phase& phase : phases_) {
      const int64_t count = conv_.out_channels * static_cast<int64_t>(phase.taps.size());
      phase.offset = arena.take<int64_t>(count);
      phase.weights = arena.take<S>(round_up(conv_.in_channels, mr) * count);
    }
  }

  void prepare(const S* weight, int64_t mr, int workers) {  // weight: [out, in, kh, kw]
    for (Phase& phase : phases_) {
      const int64_t taps = static_cast<int64_t>(phase.taps.size()), count = conv_.out_channels * taps;
      std::vector<int64_t> at;  // of the k-th weight behind its input channel's first
      for (int64_t o = 0; o < conv_.out_channels; ++o) {
        for (int64_t tap : phase.taps) {
          const int64_t up = dz_.pad_low[0] - tap_shift(conv_, 0, tap / conv_.kernel[1]);
          const int64_t left = dz_.pad_low[1] - tap_shift(conv_, 1, tap % conv_.kernel[1]);
          phase.offset[at.size()] = o * dz_.plane() + up * dz_.pitch + left;
          at.push_back(o * conv_.in_channels * conv_.taps() + tap);
        }
      }
      pack_weights(
          conv_.in_channels, count, mr, 0, count, workers, [&](int64_t i) { return weight + i * conv_.taps(); },
          [&](int64_t k) { return at[static_cast<size_t>(k)]; }, phase.weights);
    }
  }

  int64_t z_size() const {
    int64_t size = 0;
    for (const Phase& phase : phases_) size = std::max(size, blocks(phase, 1).z_size());
    return size;
  }

  // dx of every active image; `accumulate`: dx += mask * (...), otherwise dx = (...). Inactive images are not touched.
  void run(const Kernels<S>& kernels, const S* dz, const std::vector<uint8_t>& active, const S* mask, bool accumulate,
           int workers, S* z_of_worker, int64_t z_stride, const Frames<S>& dx) const {
    for (const Phase& phase : phases_) {
      const Blocks all = blocks(phase, static_cast<int64_t>(active.size()));
      parallel_for(all.tasks(), workers, [&](int64_t task, int worker) {
        const Block block = block_of_task(all, task);
        if (!active[static_cast<size_t>(block.b)]) return;
        S* z = z_of_worker + worker * z_stride;
        const Source<S> source = {dz + block.b * dz_.image() + phase.first[1], phase.offset,
                                  conv_.out_channels * static_cast<int64_t>(phase.taps.size())};
        kernels.correlate(tile_of_block(block, dz_.pitch, source, {}, phase.weights, z));
        put(phase, block, z, mask, accumulate, dx);
      });
    }
  }

 private:
  struct Phase {  // the input pixels of one residue: rows first[0] to last[0] in units of the stride, columns likewise
    int64_t residue[2], first[2], last[2];
    std::vector<int64_t> taps;
    int64_t* offset = nullptr;
    S* weights = nullptr;
  };

  void add_phase(const int64_t (&residue)[2]) {
    Phase phase{};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t low = conv_.pad_low[axis], last = low + conv_.in[axis] - 1, stride = conv_.stride[axis];
      phase.residue[axis] = residue[axis];
      phase.first[axis] = first_of_residue(low, stride, residue[axis]) / stride;
      phase.last[axis] = (last - residue[axis]) / stride;
    }
    for (int64_t tap = 0; tap < conv_.taps(); ++tap) {
      const int64_t kh = tap / conv_.kernel[1], kw = tap % conv_.kernel[1];
      if (tap_residue(conv_, 0, kh) == residue[0] && tap_residue(conv_, 1, kw) == residue[1]) phase.taps.push_back(tap);
    }
    phases_.push_back(phase);
  }

  Blocks blocks(const Phase& phase, int64_t batch) const {
    return {batch, conv_.in_channels, phase.first[0], phase.last[0] + 1, phase.last[1] - phase.first[1] + 1, dz_.pitch};
  }

  void put(const Phase& phase, const Block& block, const S* z, const S* mask, bool accumulate,
           const Frames<S>& dx) const {
    for (int64_t i = block.m0; i < block.m1; ++i) {
      for (int64_t r = block.row0; r < block.row1; ++r) {
        const int64_t row = r * conv_.stride[0] + phase.residue[0] - conv_.pad_low[0];
        const int64_t column = (phase.first[1] + block.column0) * conv_.stride[1] + phase.residue[1] - conv_.pad_low[1];
        const int64_t p = row * conv_.in[1] + column;
        const Pixels<S> first = dx.image(block.b).at(i, p), to = {first.data, conv_.stride[1] * first.stride};
        const S* scale = mask ? mask + (block.b * conv_.in_channels + i) * conv_.in_pixels() + p : nullptr;
        const S* from = z + (i - block.m0) * block.pixels() + (r - block.row0) * block.columns();
        if (!accumulate) {
          copy_pixels({from}, block.columns(), to);
        } else if (!scale) {
          add_pixels({from}, block.columns(), to);
        } else {
          for (int64_t c = 0; c < block.columns(); ++c) {
            to.data[c * to.stride] += scale[c * conv_.stride[1]] * from[c];
          }
        }
      }
    }
  }

  ConvolutionShape conv_;
  Packing dz_;
  std::vector<Phase> phases_;
};

// --------------------------------------------------------------------------------------------------- weight gradient
// dweight += over the active images, in their order, by one task per block of weights: no sum crosses tasks.
template <class S>
void add_weight_gradient(const Kernels<S>& kernels, const ConvolutionShape& conv, const Packing& in, const S* x,
                         const int64_t* offset, const Packing& gradient, const S* dz,
                         const std::vector<uint8_t>& active, int workers, S* dweight) {
  constexpr int64_t kPixelBlock = 16384;  // keeps a few rows of dz in the second-level cache for large images
  const int64_t count = conv.in_channels * conv.taps();
  const int64_t rows_per_task = kernels.dm * 4, taps_per_task = kernels.dk * 8;
  const int64_t tap_tasks = ceil_div(count, taps_per_task);
  const int64_t pixels = (conv.out[0] - 1) * in.pitch + conv.out[1];
  const S* dz_origin = dz + gradient.pad_low[0] * gradient.pitch + gradient.pad_low[1];
  parallel_for(ceil_div(conv.out_channels, rows_per_task) * tap_tasks, workers, [&](int64_t task, int) {
    const int64_t m0 = task / tap_tasks * rows_per_task, k0 = task % tap_tasks * taps_per_task;
    for (int64_t q = 0; q < pixels; q += kPixelBlock) {
      WeightGradientTile<S> tile{};
      tile.source = x + q;
      tile.q0 = q;
      tile.pitch = in.pitch;
      tile.columns = conv.out[1];
      tile.offset = offset;
      tile.source_stride = in.image();
      tile.dz = dz_origin + q;
      tile.dz_stride = gradient.image();
      tile.dz_pitch = gradient.plane();
      tile.active = active.data();
      tile.batch = static_cast<int64_t>(active.size());
      tile.pixels = std::min(kPixelBlock, pixels - q);
      tile.m0 = m0;
      tile.m1 = std::min(m0 + rows_per_task, conv.out_channels);
      tile.k0 = k0;
      tile.k1 = std::min(k0 + taps_per_task, count);
      tile.dweight = dweight;
      tile.dweight_pitch = count;
      kernels.weight_gradient(tile);
    }
  });
}

}  // namespace fusecell::cpu
