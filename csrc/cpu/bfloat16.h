#pragma once
// Convolutions as products of bfloat16 (bfloat16_kernels.h): the sources, the weights and z's gradient are rounded as
// they are laid out for the tiles, all else is float32. For stride 1 and dilation 1. Tasks depend on the shape alone.

#include <algorithm>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/scalar.h"
#include "cpu/convolutions.h"
#include "cpu/direct.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/thread_pool.h"

namespace fusecell::cpu {

// ------------------------------------------------------------------------------------------------------------- images
// [channels / together][plane of pixels][together], zero around the image and in the channels that fill up a tile:
// `together` is 2 where sums go over channels, 1 where they go over pixels.
struct TileImage {
  int64_t together, channels, extent[2], low[2], rows, pitch;
  bfloat16* data = nullptr;

  // A tile may reach beyond the last pixel; planes that lie an odd number of cache lines apart, or twice that, do not
  // meet in the same sets of the first-level cache.
  int64_t plane() const { return round_up(checked_product("scratch", {rows, pitch}) + kDepth, 64) + 32; }
  int64_t image() const { return checked_product("scratch", {round_up(channels, 2 * kSide), plane()}); }
  bfloat16* at(int64_t b) const { return data + b * image(); }

  void take(Arena& arena, int64_t batch) { data = arena.take<bfloat16>(checked_product("scratch", {batch, image()})); }
  void clear(int64_t batch) {
    if (data) std::fill_n(data, batch * image(), bfloat16{0});
  }
};

// Channels k to k + together of one row.
inline void round_row(const TileImage& to, const Image<const float>& image, const float* mask, int64_t k, int64_t row,
                      bfloat16* line) {
  const int64_t columns = to.extent[1], pixels = to.extent[0] * columns;
  float values[kCellRun];
  for (int64_t channel = k; channel < std::min(k + to.together, to.channels); ++channel) {
    for (int64_t column = 0; column < columns; column += kCellRun) {
      const int64_t n = std::min(kCellRun, columns - column), p = row * columns + column;
      pack_row(image.at(channel, p), mask ? mask + channel * pixels + p : nullptr, 1, n, values);
      bfloat16* first = line + column * to.together + channel - k;
      for (int64_t i = 0; i < n; ++i) first[i * to.together] = narrow<bfloat16>(values[i]);
    }
  }
}

// The active images; `mask` covers the whole batch and is multiplied in.
template <class ImageOf>
void round_images(const TileImage& to, const std::vector<uint8_t>& active, ImageOf&& image_of, const float* mask,
                  int workers) {
  const int64_t tasks = ceil_div(to.channels, to.together);
  parallel_for(static_cast<int64_t>(active.size()) * tasks, workers, [&](int64_t task, int) {
    const int64_t b = task / tasks, k = task % tasks * to.together;
    if (!active[static_cast<size_t>(b)]) return;
    const float* of_image = mask ? mask + b * to.channels * to.extent[0] * to.extent[1] : nullptr;
    bfloat16* plane = to.at(b) + k * to.plane();
    for (int64_t row = 0; row < to.extent[0]; ++row) {
      const int64_t at = (to.low[0] + row) * to.pitch + to.low[1];
      round_row(to, image_of(b), of_image, k, row, plane + at * to.together);
    }
  });
}

// ----------------------------------------------------------------------------------------------------------- products
// Where a source of a product begins, and in which order its taps are read.
struct TileSource {
  TileImage image;
  int64_t kernel[2], origin[2];
  bool flipped;

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t count() const { return taps() * ceil_div(image.channels, kDepth); }
};

// Rows of results, each the sum of correlations of its sources with its weights.
class TileProducts {
 public:
  TileProducts() = default;
  TileProducts(int64_t rows, std::vector<TileSource> sources, Arena& arena)
      : rows_(rows), sources_(std::move(sources)) {
    for (const TileSource& source : sources_) count_ += source.count();
    offset_ = arena.take<int64_t>(count_);
    weights_ = arena.take<bfloat16>(checked_product("scratch", {round_up(rows_, 2 * kSide), count_, kDepth}));
  }

  // weight_of(source, row, channel) points at the taps of a weight.
  template <class WeightOf>
  void prepare(int workers, WeightOf&& weight_of) {
    int64_t first = 0;
    for (size_t i = 0; i < sources_.size(); ++i) {
      fill_offsets(sources_[i], offset_ + first);
      fill_weights(sources_[i], first, workers, [&](int64_t row, int64_t k) { return weight_of(i, row, k); });
      first += sources_[i].count();
    }
  }

  void run(const Bfloat16Kernels& kernels, const Block& block, float* z) const {
    Bfloat16Product product{{}, weights_, block.m0, block.m1, block.row0, block.row1, block.column0, block.column1, z};
    const int64_t* offset = offset_;
    for (size_t i = 0; i < sources_.size(); ++i) {
      const TileImage& image = sources_[i].image;
      product.sources[i] = {image.at(block.b), offset, sources_[i].count(), image.plane(), image.pitch};
      offset += sources_[i].count();
    }
    kernels.product(product);
  }

 private:
  // Of the channels of a tile all taps, so that their lines stay in the cache.
  static void fill_offsets(const TileSource& source, int64_t* offset) {
    for (int64_t k = 0; k < source.image.channels; k += kDepth) {
      for (int64_t tap = 0; tap < source.taps(); ++tap) {
        const int64_t row = source.origin[0] + tap / source.kernel[1],
                      column = source.origin[1] + tap % source.kernel[1];
        *offset++ = k * source.image.plane() + 2 * (row * source.image.pitch + column);
      }
    }
  }

  template <class WeightOf>
  void fill_weights(const TileSource& source, int64_t first, int workers, WeightOf&& weight_of) {
    const int64_t taps = source.taps(), channels = source.image.channels;
    parallel_for(round_up(rows_, 2 * kSide), workers, [&](int64_t row, int) {
      bfloat16* to = weights_ + ((row / (2 * kSide) * count_ + first) * 2 * kSide + row % (2 * kSide)) * kDepth;
      for (int64_t k = 0; k < channels; k += kDepth) {
        for (int64_t tap = 0; tap < taps; ++tap, to += 2 * kSide * kDepth) {
          const int64_t at = source.flipped ? taps - 1 - tap : tap;
          for (int64_t i = 0; i < kDepth; ++i) {
            to[i] = narrow<bfloat16>(row < rows_ && k + i < channels ? weight_of(row, k + i)[at] : 0.0f);
          }
        }
      }
    });
  }

  int64_t rows_ = 0, count_ = 0;
  std::vector<TileSource> sources_;
  int64_t* offset_ = nullptr;
  bfloat16* weights_ = nullptr;
};

// --------------------------------------------------------------------------------------------------- weight gradients
// z's gradient as the sums over pixels read it: [batch][rows / kSide][pixels / 2][kSide rows][2], the pixels those of a
// padded image, zero beside the gradient's own.
struct PixelPairs {
  int64_t rows, extent[2], pitch;
  bfloat16* data = nullptr;

  int64_t pixels() const { return round_up((extent[0] - 1) * pitch + extent[1], kDepth); }
  int64_t groups() const { return round_up(rows, 2 * kSide) / kSide; }
  int64_t image() const { return checked_product("scratch", {groups() * kSide, pixels()}); }

  void take(Arena& arena, int64_t batch) { data = arena.take<bfloat16>(checked_product("scratch", {batch, image()})); }
  void clear(int64_t batch) {
    if (data) std::fill_n(data, batch * image(), bfloat16{0});
  }

  void fill(const float* dz, const Packing& packing, const std::vector<uint8_t>& active, int workers) const {
    parallel_for(static_cast<int64_t>(active.size()) * groups(), workers, [&](int64_t task, int) {
      const int64_t b = task / groups(), row0 = task % groups() * kSide;
      if (!active[static_cast<size_t>(b)]) return;
      bfloat16* to = data + b * image() + row0 * pixels();
      for (int64_t i = 0; i < std::min(kSide, rows - row0); ++i) {
        const float* from = dz + b * packing.image() + (row0 + i) * packing.plane();
        for (int64_t row = 0; row < extent[0]; ++row) {
          for (int64_t column = 0; column < extent[1]; ++column) {
            const int64_t q = row * pitch + column;
            to[(q / 2 * kSide + i) * 2 + q % 2] = narrow<bfloat16>(*from++);
          }
        }
      }
    });
  }
};

// Sums of one task, over all steps: a tap, 2 kSide channels and 2 kSide rows of z, as 2 x 2 tiles.
constexpr int64_t kSumsOfTask = 4 * kSide * kSide;

struct TileWeightGradient {
  TileImage source;
  int64_t rows, kernel[2];
  float* sums = nullptr;

  int64_t row_groups() const { return ceil_div(rows, 2 * kSide); }
  int64_t tasks() const { return kernel[0] * kernel[1] * ceil_div(source.channels, 2 * kSide) * row_groups(); }

  void take(Arena& arena, int64_t batch) {
    source.take(arena, batch);
    sums = arena.take<float>(checked_product("scratch", {tasks(), kSumsOfTask}));
  }
  void clear(int64_t batch) {
    source.clear(batch);
    std::fill_n(sums, tasks() * kSumsOfTask, 0.0f);
  }

  void add(const Bfloat16Kernels& kernels, const PixelPairs& gradient, const std::vector<uint8_t>& active,
           int workers) const {
    const int64_t taps = kernel[0] * kernel[1];
    parallel_for(tasks(), workers, [&](int64_t task, int) {
      const int64_t tap = task % taps, row_group = task / taps % row_groups(), channels = task / taps / row_groups();
      const int64_t shift = tap / kernel[1] * source.pitch + tap % kernel[1];
      kernels.gradient({source.data + channels * 2 * kSide * source.plane() + shift,
                        gradient.data + row_group * 2 * kSide * gradient.pixels(), source.image(), gradient.image(),
                        source.plane(), active.data(), static_cast<int64_t>(active.size()), gradient.pixels(),
                        sums + task * kSumsOfTask});
    });
  }

  void finish(int workers, float* dweight) const {  // [rows, channels, taps]
    const int64_t taps = kernel[0] * kernel[1];
    parallel_for(rows, workers, [&](int64_t row, int) {
      for (int64_t k = 0; k < source.channels; ++k) {
        const int64_t group = k / (2 * kSide) * row_groups() + row / (2 * kSide);
        const int64_t tile = k / kSide % 2 * 2 + row / kSide % 2;
        const int64_t at = (tile * kSide + k % kSide) * kSide + row % kSide;
        for (int64_t tap = 0; tap < taps; ++tap) {
          dweight[(row * source.channels + k) * taps + tap] = sums[(group * taps + tap) * kSumsOfTask + at];
        }
      }
    });
  }
};

// --------------------------------------------------------------------------------------------------------- all of it
class Bfloat16Convolutions final : public Convolutions<float> {
 public:
  Bfloat16Convolutions(const ConvolutionSet& set, const Wanted& wanted, Arena& arena, int workers)
      : set_(set), wanted_(wanted), workers_(workers), gradient_(packing_of_gradient()) {
    const bool any_input_gradient = wanted.input_gradients[0] || wanted.input_gradients[1];
    if (wanted.gradient) dz_ = arena.take<float>(checked_product("scratch", {set.batch, gradient_.image()}));
    if (any_input_gradient) dz_image_.take(arena, set.batch);
    if (wanted.any_weight_gradient()) dz_pairs_.take(arena, set.batch);
    std::vector<TileSource> sources;
    for (size_t i = 0; i < set.sources.size(); ++i) {
      const ConvolutionShape& conv = set.sources[i];
      Part& part = parts_.emplace_back(Part{conv, image_of_source(conv, 2), weight_gradient_of(conv), {}});
      if (wanted.outputs) part.image.take(arena, set.batch);
      if (wanted.weight_gradients[i]) part.weight_gradient.take(arena, set.batch);
      if (wanted.input_gradients[i]) part.gradient = products_of_gradient(conv, arena);
      sources.push_back({part.image, {conv.kernel[0], conv.kernel[1]}, {0, 0}, false});
    }
    if (wanted.outputs) outputs_ = TileProducts(rows_, sources, arena);
    if (wanted.outputs) z_size_ = blocks_of(rows_, set.sources[0].out, 1).z_size();
    for (const Part& part : parts_) {
      if (any_input_gradient) z_size_ = std::max(z_size_, blocks_of(part.conv.in_channels, part.conv.in, 1).z_size());
    }
    z_ = arena.take<float>(z_size_ * workers);
  }

  void prepare(const float* const (&weights)[2], float* const (&dweights)[2]) override {
    const int64_t groups = set_.interleave;
    outputs_.prepare(workers_, [&](size_t i, int64_t row, int64_t k) {
      const ConvolutionShape& conv = parts_[i].conv;
      return weights[i] + ((row % groups * (rows_ / groups) + row / groups) * conv.in_channels + k) * conv.taps();
    });
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[i];
      part.dweight = dweights[i];
      part.gradient.prepare(workers_, [&](size_t, int64_t row, int64_t k) {
        return weights[i] + (k * part.conv.in_channels + row) * part.conv.taps();
      });
      part.image.clear(set_.batch);  // what is beside the images stays so
      if (wanted_.weight_gradients[i]) part.weight_gradient.clear(set_.batch);
    }
    dz_image_.clear(set_.batch);
    dz_pairs_.clear(set_.batch);
  }

  void read(int source, const Active& active, const ImageOf& image_of, const float* mask) override {
    const Part& part = parts_[static_cast<size_t>(source)];
    for (const TileImage& image : {part.image, part.weight_gradient.source}) {
      if (image.data) round_images(image, active, image_of, mask, workers_);
    }
  }

  void outputs(const Active& active, const Consume& consume) override {
    run(outputs_, blocks_of(rows_, set_.sources[0].out, set_.batch), active,
        [&](const Block& block, const float* z) { consume(block, z, block.pixels()); });
  }

  const Packing& gradient_packing() const override { return gradient_; }
  float* gradient() const override { return dz_; }

  void add_weight_gradients(const Active& active) override {
    if (!wanted_.any_weight_gradient()) return;
    dz_pairs_.fill(dz_, gradient_, active, workers_);
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (wanted_.weight_gradients[i]) parts_[i].weight_gradient.add(kernels_, dz_pairs_, active, workers_);
    }
  }

  void finish_weight_gradients() override {
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (wanted_.weight_gradients[i]) parts_[i].weight_gradient.finish(workers_, parts_[i].dweight);
    }
  }

  void input_gradients(const Active& active, const InputGradientTarget<float> (&targets)[2]) override {
    if (!targets[0].dx.data && !targets[1].dx.data) return;
    const auto image_of = [&](int64_t b) {
      return Image<const float>{dz_ + b * gradient_.image(), gradient_.plane(), 1};
    };
    round_images(dz_image_, active, image_of, nullptr, workers_);
    for (size_t i = 0; i < parts_.size(); ++i) {
      const ConvolutionShape& conv = parts_[i].conv;
      if (!targets[i].dx.data) continue;
      run(parts_[i].gradient, blocks_of(conv.in_channels, conv.in, set_.batch), active,
          [&](const Block& block, const float* z) {
            put_rows(block, z, block.pixels(), conv, block.row0, block.column0, targets[i]);
          });
    }
  }

 private:
  struct Part {
    ConvolutionShape conv;
    TileImage image;
    TileWeightGradient weight_gradient;
    TileProducts gradient;
    float* dweight = nullptr;
  };

  static Blocks blocks_of(int64_t rows, const int64_t (&extent)[2], int64_t batch) {
    return {batch, rows, 0, extent[0], extent[1], extent[1]};
  }

  template <class Put>
  void run(const TileProducts& products, const Blocks& blocks, const Active& active, Put&& put) const {
    parallel_for(blocks.tasks(), workers_, [&](int64_t task, int worker) {
      const Block block = block_of_task(blocks, task);
      if (!active[static_cast<size_t>(block.b)]) return;
      float* z = z_ + worker * z_size_;
      products.run(kernels_, block, z);
      put(block, z);
    });
  }

  // One pitch for the sources, which meet the same pixels of z's gradient.
  int64_t pitch() const {
    int64_t pitch = 0;
    for (const ConvolutionShape& conv : set_.sources) pitch = std::max(pitch, conv.out[1] + conv.kernel[1] - 1);
    return pitch;
  }

  TileImage image_of_source(const ConvolutionShape& conv, int64_t together) const {
    return {together,
            conv.in_channels,
            {conv.in[0], conv.in[1]},
            {conv.pad_low[0], conv.pad_low[1]},
            conv.out[0] + conv.kernel[0] - 1,
            pitch()};
  }
  TileWeightGradient weight_gradient_of(const ConvolutionShape& conv) const {
    return {image_of_source(conv, 1), rows_, {conv.kernel[0], conv.kernel[1]}};
  }

  Packing packing_of_gradient() const {
    const int64_t H = set_.sources[0].out[0], W = set_.sources[0].out[1];
    return {rows_, {H, W}, {1, 1}, {0, 0}, {{0}, {0}}, H, W};
  }

  // Pixels of zero before z's gradient that the flipped kernel reaches. Padding wider than the kernel needs none.
  static int64_t before(const ConvolutionShape& conv, int axis) { return conv.kernel[axis] - 1 - conv.pad_low[axis]; }

  TileImage image_of_gradient() const {
    TileImage image{2, rows_, {gradient_.extent[0], gradient_.extent[1]}, {0, 0}, 0, 0};
    int64_t end[2];
    for (int axis = 0; axis < 2; ++axis) {
      int64_t& low = image.low[axis];
      for (const ConvolutionShape& conv : set_.sources) low = std::max(low, before(conv, axis));
      end[axis] = low + image.extent[axis];
      for (const ConvolutionShape& conv : set_.sources) {
        end[axis] = std::max(end[axis], low + conv.pad_low[axis] + conv.in[axis]);
      }
    }
    image.rows = end[0];
    image.pitch = end[1];
    return image;
  }

  TileProducts products_of_gradient(const ConvolutionShape& conv, Arena& arena) const {
    const int64_t row = dz_image_.low[0] - before(conv, 0), column = dz_image_.low[1] - before(conv, 1);
    return TileProducts(conv.in_channels, {{dz_image_, {conv.kernel[0], conv.kernel[1]}, {row, column}, true}}, arena);
  }

  const Bfloat16Kernels& kernels_ = *cpu::bfloat16_kernels();
  const ConvolutionSet set_;
  const Wanted wanted_;
  const int workers_;
  const int64_t rows_ = set_.sources[0].out_channels;
  const Packing gradient_;
  TileImage dz_image_ = image_of_gradient();
  PixelPairs dz_pairs_ = {rows_, {gradient_.extent[0], gradient_.extent[1]}, pitch()};
  TileProducts outputs_;
  std::vector<Part> parts_;
  float *dz_ = nullptr, *z_ = nullptr;
  int64_t z_size_ = 0;
};

}  // namespace fusecell::cpu
