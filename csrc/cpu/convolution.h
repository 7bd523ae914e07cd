#pragma once
// Convolutions as correlations over packed images (kernels.h): the packing, the tables of offsets, the order of the
// weights, and the cutting into tasks. The tasks depend on the shape alone, never on the number of threads.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/arena.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "problem/convolution.h"

namespace fusecell::cpu {

// Zeros behind each plane: a tile's last vector may reach over the end, by less than its lanes, of which there are 16
// at most.
constexpr int64_t kPlaneSlack = 16;
constexpr int64_t kTilePixels = 512;  // pixels of an output block: with 64 rows of z, 128 KB in the second-level cache
constexpr int64_t kTileRows = 64;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ------------------------------------------------------------------------------------------------------- packed images
// Rows and columns are split by stride into phases, so that neighbouring outputs read neighbouring inputs.
struct Packing {
  int64_t channels, extent[2], phases[2], pad_low[2];
  int64_t rows, pitch;  // of one phase's plane

  int64_t plane() const { return rows * pitch + kPlaneSlack; }
  int64_t image() const { return channels * phases[0] * phases[1] * plane(); }
};

// mask, if there is one, is multiplied in. One channel of one image.
template <class S>
void pack_channel(const Packing& packing, const S* from, const S* mask, S* to) {
  std::memset(to, 0, static_cast<size_t>(packing.phases[0] * packing.phases[1] * packing.plane()) * sizeof(S));
  for (int64_t row = 0; row < packing.extent[0]; ++row) {
    const int64_t u = row + packing.pad_low[0];
    for (int64_t phase = 0; phase < packing.phases[1]; ++phase) {
      S* line = to + (u % packing.phases[0] * packing.phases[1] + phase) * packing.plane() +
                u / packing.phases[0] * packing.pitch;
      const int64_t step = packing.phases[1];
      // The first column v >= pad_low of this phase.
      int64_t v = packing.pad_low[1] + ((phase - packing.pad_low[1]) % step + step) % step;
      for (; v < packing.pad_low[1] + packing.extent[1]; v += step) {
        const int64_t i = row * packing.extent[1] + v - packing.pad_low[1];
        line[v / step] = mask ? from[i] * mask[i] : from[i];
      }
    }
  }
}

// Packs image b from `image_of(b)` for every active b; `mask` covers the whole batch.
template <class S, class ImageOf>
void pack(const Packing& packing, const std::vector<uint8_t>& active, ImageOf&& image_of, const S* mask, int workers,
          S* to) {
  const int64_t pixels = packing.extent[0] * packing.extent[1];
  const int64_t packed = packing.image() / packing.channels;
  parallel_for(static_cast<int64_t>(active.size()) * packing.channels, workers, [&](int64_t task, int) {
    const int64_t b = task / packing.channels, channel = task % packing.channels;
    if (!active[static_cast<size_t>(b)]) return;
    pack_channel(packing, image_of(b) + channel * pixels, mask ? mask + task * pixels : nullptr, to + task * packed);
  });
}

// ------------------------------------------------------------------------------------------------------ tap geometry
// Along one axis, tap k of output o reads phase (k * dilation) % stride at o + (k * dilation) / stride.
inline int64_t tap_phase(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] % conv.stride[axis];
}
inline int64_t tap_shift(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] / conv.stride[axis];
}
inline int64_t largest_shift(const ConvolutionShape& conv, int axis) {
  return tap_shift(conv, axis, conv.kernel[axis] - 1);
}
// Rows (or columns) of the padded input, in units of the stride, that hold any of the input.
inline int64_t strided_extent(const ConvolutionShape& conv, int axis) {
  return (conv.pad_low[axis] + conv.in[axis] - 1) / conv.stride[axis] + 1;
}

// The plane must hold what outputs read and all of the input: the gradient of the input walks it, too.
inline int64_t input_rows(const ConvolutionShape& conv, int axis) {
  return std::max(conv.out[axis] + largest_shift(conv, axis), strided_extent(conv, axis));
}

inline Packing input_packing(const ConvolutionShape& conv, int64_t pitch) {
  return {conv.in_channels,
          {conv.in[0], conv.in[1]},
          {conv.stride[0], conv.stride[1]},
          {conv.pad_low[0], conv.pad_low[1]},
          input_rows(conv, 0),
          pitch};
}

// The output's gradient, packed so that every convolution of `convs` can walk it backwards.
inline Packing gradient_packing(const std::vector<const ConvolutionShape*>& convs, int64_t pitch) {
  const ConvolutionShape& first = *convs.front();
  Packing packing{first.out_channels, {first.out[0], first.out[1]}, {1, 1}, {0, 0}, 0, pitch};
  int64_t rows = first.out[0];
  for (const ConvolutionShape* conv : convs) {
    for (int axis = 0; axis < 2; ++axis) {
      packing.pad_low[axis] = std::max(packing.pad_low[axis], largest_shift(*conv, axis));
    }
    rows = std::max(rows, strided_extent(*conv, 0));
  }
  packing.rows = packing.pad_low[0] + rows;
  return packing;
}

// One pitch for everything that is read at the same q.
inline int64_t common_pitch(const std::vector<const ConvolutionShape*>& convs) {
  int64_t pitch = 0, left = 0, columns = 0;
  for (const ConvolutionShape* conv : convs) {
    pitch = std::max(pitch, input_rows(*conv, 1));
    left = std::max(left, largest_shift(*conv, 1));
    columns = std::max({columns, conv->out[1], strided_extent(*conv, 1)});
  }
  return std::max(pitch, left + columns);
}

// ----------------------------------------------------------------------------------------------------- forward table
inline void fill_input_offsets(const ConvolutionShape& conv, const Packing& packing, int64_t* offset) {
  for (int64_t i = 0; i < conv.in_channels; ++i) {
    for (int64_t kh = 0; kh < conv.kernel[0]; ++kh) {
      for (int64_t kw = 0; kw < conv.kernel[1]; ++kw) {
        const int64_t phase =
            (i * packing.phases[0] + tap_phase(conv, 0, kh)) * packing.phases[1] + tap_phase(conv, 1, kw);
        *offset++ = phase * packing.plane() + tap_shift(conv, 0, kh) * packing.pitch + tap_shift(conv, 1, kw);
      }
    }
  }
}

// Weights in the order in which the register tile reads them: [panel of mr rows][k][row]; rows past the end are zero.
// `at(row, k)` gives the weight.
template <class S, class At>
void pack_weights(int64_t rows, int64_t count, int64_t mr, int64_t k_first, int64_t k_total, At&& at, S* to) {
  for (int64_t panel = 0; panel < ceil_div(rows, mr); ++panel) {
    for (int64_t k = 0; k < count; ++k) {
      S* line = to + (panel * k_total + k_first + k) * mr;
      for (int64_t m = 0; m < mr; ++m) line[m] = panel * mr + m < rows ? at(panel * mr + m, k) : S(0);
    }
  }
}

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

// ------------------------------------------------------------------------------------- gradient of a convolution's
// input One correlation over the packed gradient for each phase of the stride (stride 1: the flipped kernel).
template <class S>
class InputGradient {
 public:
  InputGradient(const ConvolutionShape& conv, const Packing& dz) : conv_(conv), dz_(dz) {
    for (int64_t pu = 0; pu < conv.stride[0]; ++pu) {
      for (int64_t pv = 0; pv < conv.stride[1]; ++pv) {
        Phase phase;
        const int64_t in_phase[2] = {pu, pv};
        for (int axis = 0; axis < 2; ++axis) {  // the rows r with an input pixel at r * stride + phase - pad
          const int64_t gap = conv.pad_low[axis] - in_phase[axis];
          phase.residue[axis] = in_phase[axis];
          phase.first[axis] = gap > 0 ? ceil_div(gap, conv.stride[axis]) : 0;
          const int64_t last = gap + conv.in[axis] - 1;
          phase.last[axis] = last < 0 ? -1 : last / conv.stride[axis];
        }
        for (int64_t kh = 0; kh < conv.kernel[0]; ++kh) {
          for (int64_t kw = 0; kw < conv.kernel[1]; ++kw) {
            if (tap_phase(conv, 0, kh) == pu && tap_phase(conv, 1, kw) == pv) {
              phase.taps.push_back(kh * conv.kernel[1] + kw);
            }
          }
        }
        if (phase.first[0] <= phase.last[0] && phase.first[1] <= phase.last[1]) phases_.push_back(phase);
      }
    }
  }

  void take(Arena& arena, int64_t mr) {
    for (Phase& phase : phases_) {
      const int64_t count = conv_.out_channels * static_cast<int64_t>(phase.taps.size());
      phase.offset = arena.take<int64_t>(count);
      phase.weights = arena.take<S>(round_up(conv_.in_channels, mr) * count);
    }
  }

  void prepare(const S* weight, int64_t mr) {  // weight: [out, in, kh, kw]
    for (Phase& phase : phases_) {
      const int64_t taps = static_cast<int64_t>(phase.taps.size()), count = conv_.out_channels * taps;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t tap = phase.taps[static_cast<size_t>(k % taps)];
        const int64_t up = dz_.pad_low[0] - tap_shift(conv_, 0, tap / conv_.kernel[1]);
        const int64_t left = dz_.pad_low[1] - tap_shift(conv_, 1, tap % conv_.kernel[1]);
        phase.offset[k] = k / taps * dz_.plane() + up * dz_.pitch + left;
      }
      pack_weights(
          conv_.in_channels, count, mr, 0, count,
          [&](int64_t i, int64_t k) {
            return weight[(k / taps * conv_.in_channels + i) * conv_.taps() +
                          phase.taps[static_cast<size_t>(k % taps)]];
          },
          phase.weights);
    }
  }

  int64_t z_size() const {
    int64_t size = 0;
    for (const Phase& phase : phases_) size = std::max(size, blocks(phase, 1).z_size());
    return size;
  }

  // dx of every active image; `accumulate`: dx += mask * (...), otherwise dx = (...). Inactive images are not touched.
  void run(const Kernels<S>& kernels, const S* dz, const std::vector<uint8_t>& active, const S* mask, bool accumulate,
           int workers, S* z_of_worker, int64_t z_stride, S* dx) const {
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
  struct Phase {
    int64_t residue[2], first[2], last[2];
    std::vector<int64_t> taps;
    int64_t* offset = nullptr;
    S* weights = nullptr;
  };

  Blocks blocks(const Phase& phase, int64_t batch) const {
    return {batch, conv_.in_channels, phase.first[0], phase.last[0] + 1, phase.last[1] - phase.first[1] + 1, dz_.pitch};
  }

  void put(const Phase& phase, const Block& block, const S* z, const S* mask, bool accumulate, S* dx) const {
    for (int64_t i = block.m0; i < block.m1; ++i) {
      for (int64_t r = block.row0; r < block.row1; ++r) {
        const int64_t row = r * conv_.stride[0] + phase.residue[0] - conv_.pad_low[0];
        const int64_t column = (phase.first[1] + block.column0) * conv_.stride[1] + phase.residue[1] - conv_.pad_low[1];
        const int64_t at = ((block.b * conv_.in_channels + i) * conv_.in[0] + row) * conv_.in[1] + column;
        const S* from = z + (i - block.m0) * block.pixels() + (r - block.row0) * block.columns();
        for (int64_t c = 0; c < block.columns(); ++c) {
          const int64_t to = at + c * conv_.stride[1];
          if (!accumulate) {
            dx[to] = from[c];
          } else {
            dx[to] += mask ? mask[to] * from[c] : from[c];
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
