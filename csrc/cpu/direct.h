#pragma once
// The direct algorithm: convolutions as correlations over packed images, with every tap multiplied. Their cutting into
// tasks, the gradient of the input, that of the weights. The tasks depend on the shape alone, never on the number of
// threads.

#include <algorithm>
#include <vector>

#include "base/arena.h"
#include "cpu/convolutions.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/pixels.h"
#include "cpu/thread_pool.h"
#include "cpu/work.h"
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
  int64_t values() const { return batch * weight_rows * image_rows() * columns; }
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

  // Inactive images are not touched.
  void run(const Kernels<S>& kernels, const S* dz, const std::vector<uint8_t>& active,
           const InputGradientTarget<S>& target, int workers, S* z_of_worker, int64_t z_stride) const {
    for (const Phase& phase : phases_) {
      const Blocks all = blocks(phase, static_cast<int64_t>(active.size()));
      const int64_t terms = conv_.out_channels * static_cast<int64_t>(phase.taps.size());
      parallel_for(all.tasks(), workers, work::products(all.values() * terms), [&](int64_t task, int worker) {
        const Block block = block_of_task(all, task);
        if (!active[static_cast<size_t>(block.b)]) return;
        S* z = z_of_worker + worker * z_stride;
        const Source<S> source = {dz + block.b * dz_.image() + phase.first[1], phase.offset, terms};
        kernels.correlate(tile_of_block(block, dz_.pitch, source, {}, phase.weights, z));
        const int64_t row = block.row0 * conv_.stride[0] + phase.residue[0] - conv_.pad_low[0];
        const int64_t column = (phase.first[1] + block.column0) * conv_.stride[1] + phase.residue[1] - conv_.pad_low[1];
        put_rows(block, z, block.pixels(), conv_, row, column, target);
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
  const int64_t tasks = ceil_div(conv.out_channels, rows_per_task) * tap_tasks;
  const int64_t terms = static_cast<int64_t>(active.size()) * pixels;
  parallel_for(tasks, workers, work::products(conv.out_channels * count * terms), [&](int64_t task, int) {
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

// ------------------------------------------------------------------------------------------------------- all of it
template <class S>
class DirectConvolutions final : public Convolutions<S> {
 public:
  using typename Convolutions<S>::Active;
  using typename Convolutions<S>::Consume;
  using typename Convolutions<S>::ImageOf;

  DirectConvolutions(const ConvolutionSet& set, const Wanted& wanted, Arena& arena, int workers)
      : set_(set),
        wanted_(wanted),
        workers_(workers),
        pitch_(common_pitch(set.sources)),
        blocks_{set.batch, set.sources[0].out_channels, 0, set.sources[0].out[0], set.sources[0].out[1], pitch_},
        gradient_(cpu::gradient_packing(set.sources, pitch_)) {
    const bool reads = wanted.outputs || wanted.any_weight_gradient();
    int64_t total = 0;
    for (size_t i = 0; i < set.sources.size(); ++i) {
      const ConvolutionShape& conv = set.sources[i];
      Part& part = parts_.emplace_back(Part{conv, input_packing(conv, pitch_), InputGradient<S>(conv, gradient_)});
      total += part.count();
      if (reads) {
        part.offset = arena.take<int64_t>(part.count());
        part.packed = arena.take<S>(checked_product("scratch", {set.batch, part.packing.image()}));
      }
      if (wanted.input_gradients[i]) {
        part.gradient.take(arena, kernels_.mr);
        z_stride_ = std::max(z_stride_, part.gradient.z_size());
      }
    }
    if (wanted.outputs) {
      weights_ = arena.take<S>(round_up(blocks_.weight_rows, kernels_.mr) * total);
      z_stride_ = std::max(z_stride_, blocks_.z_size());
    }
    if (wanted.gradient) dz_ = arena.take<S>(checked_product("scratch", {set.batch, gradient_.image()}));
    z_ = arena.take<S>(z_stride_ * workers);
  }

  void prepare(const S* const (&weights)[2], S* const (&dweights)[2]) override {
    int64_t first = 0, total = 0;
    for (const Part& part : parts_) total += part.count();
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[i];
      const int64_t count = part.count(), rows = blocks_.weight_rows, groups = set_.interleave;
      part.dweight = dweights[i];
      if (part.dweight) std::fill_n(part.dweight, rows * count, S(0));
      if (part.offset) fill_input_offsets(part.conv, part.packing, part.offset);
      if (wanted_.outputs) {
        pack_weights(
            rows, count, kernels_.mr, first, total, workers_,
            [&](int64_t row) { return weights[i] + (row % groups * (rows / groups) + row / groups) * count; },
            [](int64_t k) { return k; }, weights_);
      }
      if (wanted_.input_gradients[i]) part.gradient.prepare(weights[i], kernels_.mr, workers_);
      first += count;
    }
    if (dz_) std::fill_n(dz_, set_.batch * gradient_.image(), S(0));  // the borders stay so
  }

  void read(int source, const Active& active, const ImageOf& image_of, const S* mask) override {
    const Part& part = parts_[static_cast<size_t>(source)];
    pack<S>(part.packing, active, image_of, mask, workers_, part.packed);
  }

  void outputs(const Active& active, const Consume& consume) override {
    int64_t terms = 0;
    for (const Part& part : parts_) terms += part.count();
    const int64_t work = work::products(blocks_.values() * terms) + work::gates(blocks_.values() / 4);
    parallel_for(blocks_.tasks(), workers_, work, [&](int64_t task, int worker) {
      const Block block = block_of_task(blocks_, task);
      if (!active[static_cast<size_t>(block.b)]) return;
      S* z = z_ + worker * z_stride_;
      Source<S> sources[2];
      for (size_t i = 0; i < parts_.size(); ++i) {
        const Part& part = parts_[i];
        sources[i] = {part.packed + block.b * part.packing.image(), part.offset, part.count()};
      }
      kernels_.correlate(tile_of_block(block, pitch_, sources[0], sources[1], weights_, z));
      consume(block, z, block.pixels());
    });
  }

  const Packing& gradient_packing() const override { return gradient_; }
  S* gradient() const override { return dz_; }

  void add_weight_gradients(const Active& active) override {
    for (const Part& part : parts_) {
      if (!part.dweight) continue;
      add_weight_gradient(kernels_, part.conv, part.packing, part.packed, part.offset, gradient_, dz_, active, workers_,
                          part.dweight);
    }
  }
  void finish_weight_gradients() override {}

  void input_gradients(const Active& active, const InputGradientTarget<S> (&targets)[2]) override {
    for (size_t i = parts_.size(); i-- > 0;) {
      if (targets[i].dx.data) parts_[i].gradient.run(kernels_, dz_, active, targets[i], workers_, z_, z_stride_);
    }
  }

 private:
  struct Part {
    ConvolutionShape conv;
    Packing packing;
    InputGradient<S> gradient;
    int64_t* offset = nullptr;
    S *packed = nullptr, *dweight = nullptr;

    int64_t count() const { return conv.in_channels * conv.taps(); }
  };

  const Kernels<S>& kernels_ = cpu::kernels().get<S>();
  const ConvolutionSet set_;
  const Wanted wanted_;
  const int workers_;
  const int64_t pitch_;
  const Blocks blocks_;
  const Packing gradient_;
  std::vector<Part> parts_;
  S *weights_ = nullptr, *dz_ = nullptr, *z_ = nullptr;
  int64_t z_stride_ = 0;
};

}  // namespace fusecell::cpu
