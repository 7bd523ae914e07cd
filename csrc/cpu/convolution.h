#pragma once
// Convolutions as correlations over packed images (kernels.h): the packing, the tables of offsets, the order of the
// weights, and the cutting into tasks. The tasks depend on the shape alone, never on the number of threads.

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/size.h"
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

// Rows (or columns) of the padded input are split by the stride into residues, so that neighbouring outputs read
// neighbouring inputs. Along one axis, tap k of output o reads residue (k * dilation) % stride at o + (k * dilation) /
// stride.
inline int64_t tap_residue(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] % conv.stride[axis];
}
inline int64_t tap_shift(const ConvolutionShape& conv, int axis, int64_t k) {
  return k * conv.dilation[axis] / conv.stride[axis];
}
inline int64_t largest_shift(const ConvolutionShape& conv, int axis) {
  return tap_shift(conv, axis, conv.kernel[axis] - 1);
}
// In units of the stride, the extent of the padded input that holds any of the input.
inline int64_t strided_extent(const ConvolutionShape& conv, int axis) {
  return (conv.pad_low[axis] + conv.in[axis] - 1) / conv.stride[axis] + 1;
}

inline std::vector<int64_t> sorted_set(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}
// The residues that some tap reads, at most one per tap however large the stride.
inline std::vector<int64_t> residues_of_taps(const ConvolutionShape& conv, int axis) {
  std::vector<int64_t> residues;
  for (int64_t k = 0; k < conv.kernel[axis]; ++k) residues.push_back(tap_residue(conv, axis, k));
  return sorted_set(residues);
}
// The residues that some input pixel has.
inline std::vector<int64_t> residues_of_input(const ConvolutionShape& conv, int axis) {
  std::vector<int64_t> residues;
  for (int64_t i = 0; i < std::min(conv.in[axis], conv.stride[axis]); ++i) {
    residues.push_back((conv.pad_low[axis] + i) % conv.stride[axis]);
  }
  return sorted_set(residues);
}

// ------------------------------------------------------------------------------------------------------- packed images
struct Packing {
  int64_t channels, extent[2], stride[2], pad_low[2];
  std::vector<int64_t> residues[2];
  int64_t rows, pitch;  // of the plane of one residue of the rows and one of the columns

  int64_t planes() const { return static_cast<int64_t>(residues[0].size() * residues[1].size()); }
  int64_t plane() const { return checked_product("scratch", {rows, pitch}) + kPlaneSlack; }
  int64_t image() const { return checked_product("scratch", {channels, planes(), plane()}); }
  int64_t plane_of(int64_t row_residue, int64_t column_residue) const {
    const auto index = [](const std::vector<int64_t>& set, int64_t residue) {
      return std::lower_bound(set.begin(), set.end(), residue) - set.begin();
    };
    return index(residues[0], row_residue) * static_cast<int64_t>(residues[1].size()) +
           index(residues[1], column_residue);
  }
};

// The first v >= low with v % stride == residue.
inline int64_t first_of_residue(int64_t low, int64_t stride, int64_t residue) {
  return low + ((residue - low) % stride + stride) % stride;
}

// One channel of one image; mask, if there is one, is multiplied in.
template <class S>
void pack_channel(const Packing& packing, const S* from, const S* mask, S* to) {
  const int64_t plane = packing.plane();
  std::memset(to, 0, static_cast<size_t>(packing.planes() * plane) * sizeof(S));
  const int64_t low_u = packing.pad_low[0], end_u = low_u + packing.extent[0], step_u = packing.stride[0];
  const int64_t low_v = packing.pad_low[1], end_v = low_v + packing.extent[1], step_v = packing.stride[1];
  for (int64_t row_residue : packing.residues[0]) {
    for (int64_t column_residue : packing.residues[1]) {
      S* origin = to + packing.plane_of(row_residue, column_residue) * plane;
      const int64_t first_v = first_of_residue(low_v, step_v, column_residue);
      for (int64_t u = first_of_residue(low_u, step_u, row_residue); u < end_u; u += step_u) {
        S* line = origin + u / step_u * packing.pitch + first_v / step_v;
        const int64_t at = (u - low_u) * packing.extent[1] - low_v;
        for (int64_t v = first_v; v < end_v; v += step_v) *line++ = mask ? from[at + v] * mask[at + v] : from[at + v];
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

// The plane must hold what outputs read and all of the input, whose gradient walks it, too.
inline int64_t input_extent(const ConvolutionShape& conv, int axis) {
  return std::max(conv.out[axis] + largest_shift(conv, axis), strided_extent(conv, axis));
}

inline Packing input_packing(const ConvolutionShape& conv, int64_t pitch) {
  return {conv.in_channels,
          {conv.in[0], conv.in[1]},
          {conv.stride[0], conv.stride[1]},
          {conv.pad_low[0], conv.pad_low[1]},
          {residues_of_taps(conv, 0), residues_of_taps(conv, 1)},
          input_extent(conv, 0),
          pitch};
}

// The output's gradient, packed so that every convolution of `convs` can walk it backwards.
inline Packing gradient_packing(const std::vector<const ConvolutionShape*>& convs, int64_t pitch) {
  const ConvolutionShape& first = *convs.front();
  Packing packing{first.out_channels, {first.out[0], first.out[1]}, {1, 1}, {0, 0}, {{0}, {0}}, 0, pitch};
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
    pitch = std::max(pitch, input_extent(*conv, 1));
    left = std::max(left, largest_shift(*conv, 1));
    columns = std::max({columns, conv->out[1], strided_extent(*conv, 1)});
  }
  return std::max(pitch, left + columns);
}

// ------------------------------------------------------------------------------------------- offsets and weights
inline void fill_input_offsets(const ConvolutionShape& conv, const Packing& packing, int64_t* offset) {
  const int64_t plane = packing.plane();
  for (int64_t i = 0; i < conv.in_channels; ++i) {
    for (int64_t kh = 0; kh < conv.kernel[0]; ++kh) {
      for (int64_t kw = 0; kw < conv.kernel[1]; ++kw) {
        const int64_t in_channel = packing.plane_of(tap_residue(conv, 0, kh), tap_residue(conv, 1, kw));
        *offset++ = (i * packing.planes() + in_channel) * plane + tap_shift(conv, 0, kh) * packing.pitch +
                    tap_shift(conv, 1, kw);
      }
    }
  }
}

// Weights in the order in which the register tile reads them: [panel of mr rows][k][row]; rows past the end are zero.
// Row m begins at `row_of(m)`, its k-th weight lies `at_k(k)` behind. Of the panel's k_total weights these start at
// k_first.
template <class S, class RowOf, class AtK>
void pack_weights(int64_t rows, int64_t count, int64_t mr, int64_t k_first, int64_t k_total, int workers,
                  RowOf&& row_of, AtK&& at_k, S* to) {
  parallel_for(ceil_div(rows, mr), workers, [&](int64_t panel, int) {
    for (int64_t m = 0; m < mr; ++m) {
      S* line = to + (panel * k_total + k_first) * mr + m;
      const bool inside = panel * mr + m < rows;
      const S* row = inside ? row_of(panel * mr + m) : nullptr;
      for (int64_t k = 0; k < count; ++k) line[k * mr] = inside ? row[at_k(k)] : S(0);
    }
  });
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
