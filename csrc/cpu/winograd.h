#pragma once
// Winograd's algorithm (winograd_kernels.h) for stride 1 and 3 x 3 or 5 x 5 taps. The tiles of all images follow each
// other, 48 to a block; for each of the 36 places of a patch a matrix product over channels gives a block's outputs.
// The weights' gradient is summed at the places over all steps and transformed once. Tasks depend on the shape alone.

#include <algorithm>
#include <array>
#include <vector>

#include "base/arena.h"
#include "cpu/convolutions.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/pixels.h"
#include "cpu/thread_pool.h"

namespace fusecell::cpu {

// -------------------------------------------------------------------------------------------------------------- tiles
struct WinogradTiles {
  int64_t size, batch, image[2];  // a tile's outputs on each axis; images of so many outputs

  int64_t rows() const { return ceil_div(image[0], size); }
  int64_t columns() const { return ceil_div(image[1], size); }
  int64_t of_image() const { return rows() * columns(); }
  int64_t total() const { return batch * of_image(); }
  int64_t blocks() const { return ceil_div(total(), kWinogradTiles); }
  int64_t in_block(int64_t block) const { return std::min(kWinogradTiles, total() - block * kWinogradTiles); }
};

// Neighbouring tiles of one row of one image that are in one block, there from the q-th on.
struct TileRun {
  int64_t b, row, column, count, block, q;
};

// Of the tiles first to last - 1 in the order of blocks.
template <class F>
void each_run(const WinogradTiles& tiles, int64_t first, int64_t last, F&& f) {
  for (int64_t tile = first; tile < last;) {
    const int64_t b = tile / tiles.of_image(), in_image = tile % tiles.of_image();
    const int64_t row = in_image / tiles.columns(), column = in_image % tiles.columns(), q = tile % kWinogradTiles;
    const int64_t count = std::min({tiles.columns() - column, kWinogradTiles - q, last - tile});
    f(TileRun{b, row, column, count, tile / kWinogradTiles, q});
    tile += count;
  }
}

// Values at the 36 places of a block's tiles: [blocks][36][channels][48]. A cache line more between places, since a
// power of two would put all 36 into the same set of the cache (measured: a transform took ten times as long).
template <class S>
struct Places {
  S* data = nullptr;
  int64_t channels = 0;

  int64_t frequency() const { return channels * kWinogradTiles + 16; }
  int64_t of_block() const { return kWinogradPlaces * frequency(); }
  S* at(int64_t block, int64_t channel, int64_t q) const {
    return data + block * of_block() + channel * kWinogradTiles + q;
  }
  int64_t size(const WinogradTiles& tiles) const { return checked_product("scratch", {tiles.blocks(), of_block()}); }
};

// Lanes without a tile, or whose sample is inactive, are zero: the weights' gradient sums over all of them.
template <class S>
void clear_tiles(const Places<S>& places, int64_t block, int64_t channel, int64_t channels, int64_t q, int64_t count) {
  for (int64_t place = 0; place < kWinogradPlaces; ++place) {
    for (int64_t i = channel; i < channel + channels; ++i) {
      std::fill_n(places.at(block, i, q) + place * places.frequency(), count, S(0));
    }
  }
}

// Channels of one packed image, from the first pixel of its first tile on.
template <class S>
struct Planes {
  const S* data;
  int64_t plane, pitch, channels;
};

// Image b, or zeros without planes, to its places, those of its first channel at `channel`.
template <class S>
void transform_image(void (*transform)(const WinogradRun<S>&), const WinogradTiles& tiles, int64_t b,
                     const Planes<S>& image, const Places<S>& places, int64_t channel) {
  constexpr int64_t kTogether = 4;  // channels whose places stay in the first-level cache until their lines are full
  const int64_t end = (b + 1) * tiles.of_image();
  for (int64_t first = 0; first < image.channels; first += kTogether) {
    const int64_t channels = std::min(kTogether, image.channels - first);
    each_run(tiles, end - tiles.of_image(), end, [&](const TileRun& run) {
      if (!image.data) return clear_tiles(places, run.block, channel + first, channels, run.q, run.count);
      const S* from = image.data + first * image.plane + tiles.size * (run.row * image.pitch + run.column);
      const int64_t in_image = run.row * tiles.columns() + run.column;
      transform({from, image.plane, image.pitch, channels, run.count, places.at(run.block, channel + first, run.q),
                 places.frequency(), std::min(kWinogradTiles - run.q, tiles.of_image() - in_image)});
    });
  }
  const int64_t last = tiles.blocks() - 1, tail = tiles.in_block(last);
  if (b == tiles.batch - 1) clear_tiles(places, last, channel, image.channels, tail, kWinogradTiles - tail);
}

// ------------------------------------------------------------------------------------------------------- the products
// rows x count weights at their places, and the correlation with them.
template <class S>
class WinogradProducts {
 public:
  static constexpr int64_t kRows = 32;  // of a task: with 80 channels, 220 KB in the second-level cache

  WinogradProducts(const WinogradTiles& tiles, int64_t rows, int64_t count)
      : tiles_(tiles), rows_(rows), count_(count) {}

  void take(Arena& arena) { weights_ = arena.take<S>(kWinogradPlaces * frequency()); }

  // taps_at(row, k) points at the taps of a weight.
  template <class TapsAt>
  void prepare(bool flipped, int64_t k_first, int64_t k_last, int workers, TapsAt&& taps_at) {
    const int64_t mr = kernels_.mr, taps = (7 - tiles_.size) * (7 - tiles_.size);
    parallel_for(ceil_div(rows_, mr), workers, [&](int64_t panel, int) {
      S of_panel[25 * 8];
      for (int64_t k = k_first; k < k_last; ++k) {
        for (int64_t m = 0; m < mr; ++m) {
          const int64_t row = panel * mr + m;
          const S* from = row < rows_ ? taps_at(row, k) : nullptr;
          for (int64_t tap = 0; tap < taps; ++tap) {
            of_panel[tap * mr + m] = from ? from[flipped ? taps - 1 - tap : tap] : S(0);
          }
        }
        kernels().weights(of_panel, frequency(), weights_ + (panel * count_ + k) * mr);
      }
    });
  }

  // Memory of a worker: the products of kRows rows, and `together` rows of pixels of one run.
  int64_t scratch_size(int64_t together) const {
    return round_up(products_size() + together * tiles_.size * tiles_.size * kWinogradTiles + tiles_.size * kSlack, 16);
  }

  // `consume` is handed `together` rows at a time, a divisor of the rows.
  void run(const Places<S>& places, const std::vector<uint8_t>& active, int64_t together, int workers, S* scratch,
           int64_t scratch_stride, const typename Convolutions<S>::Consume& consume) const {
    const int64_t groups = ceil_div(rows_, kRows);
    parallel_for(tiles_.blocks() * groups, workers, [&](int64_t task, int worker) {
      const int64_t block = task / groups, m0 = task % groups * kRows, m1 = std::min(m0 + kRows, rows_);
      const int64_t first = block * kWinogradTiles, last = first + tiles_.in_block(block);
      const auto is_active = [&](int64_t tile) { return active[static_cast<size_t>(tile / tiles_.of_image())] != 0; };
      bool any = false;
      for (int64_t b = first / tiles_.of_image(); b <= (last - 1) / tiles_.of_image(); ++b) {
        any = any || active[static_cast<size_t>(b)];
      }
      if (!any) return;
      S* products = scratch + worker * scratch_stride;
      S* image = products + products_size();
      kernels_.winograd_product({weights_ + m0 * count_, frequency(), places.at(block, 0, 0), places.frequency(),
                                 m1 - m0, count_, last - first, products, products_frequency()});
      each_run(tiles_, first, last, [&](const TileRun& run) {
        if (!is_active(first + run.q)) return;
        for (int64_t m = m0; m < m1; m += together) {
          put_run(run, m, m + together, products + (m - m0) * kWinogradTiles + run.q, image, consume);
        }
      });
    });
  }

 private:
  static constexpr int64_t kSlack = 64;  // a vector of tiles, which outputs may reach beyond the last one

  const WinogradKernels<S>& kernels() const { return kernels_.winograd[tiles_.size == 4 ? 0 : 1]; }
  int64_t frequency() const { return round_up(rows_, kernels_.mr) * count_ + 16; }
  int64_t products_size() const { return kWinogradPlaces * products_frequency() + kSlack; }
  int64_t products_frequency() const { return kRows * kWinogradTiles + 16; }

  // Rows of pixels lie as they do in the image; where tiles are a piece of an image's row, each row goes by itself.
  void put_run(const TileRun& run, int64_t m0, int64_t m1, const S* products, S* image,
               const typename Convolutions<S>::Consume& consume) const {
    const int64_t M = tiles_.size, row0 = M * run.row, column0 = M * run.column;
    const int64_t row1 = std::min(row0 + M, tiles_.image[0]);
    const int64_t column1 = std::min(column0 + M * run.count, tiles_.image[1]), width = column1 - column0;
    const int64_t pitch = M * width;
    for (int64_t m = m0; m < m1; ++m) {
      kernels().outputs(
          {products + (m - m0) * kWinogradTiles, products_frequency(), run.count, image + (m - m0) * pitch, width});
    }
    if (width == tiles_.image[1]) {
      consume({run.b, m0, m1, row0, row1, column0, column1}, image, pitch);
    } else {
      for (int64_t row = row0; row < row1; ++row) {
        consume({run.b, m0, m1, row, row + 1, column0, column1}, image + (row - row0) * width, pitch);
      }
    }
  }

  const Kernels<S>& kernels_ = cpu::kernels().get<S>();
  const WinogradTiles tiles_;
  const int64_t rows_, count_;
  S* weights_ = nullptr;
};

// --------------------------------------------------------------------------------------------------------- all of it
template <class S>
class WinogradConvolutions final : public Convolutions<S> {
 public:
  using typename Convolutions<S>::Active;
  using typename Convolutions<S>::Consume;
  using typename Convolutions<S>::ImageOf;

  WinogradConvolutions(const ConvolutionSet& set, const Wanted& wanted, Arena& arena, int workers)
      : set_(set),
        wanted_(wanted),
        workers_(workers),
        rows_(set.sources[0].out_channels),
        tiles_{7 - set.sources[0].kernel[0], set.batch, {set.sources[0].out[0], set.sources[0].out[1]}},
        outputs_(tiles_, rows_, channels_of(set)) {
    take_forward(arena);
    if (wanted.gradient) take_backward(arena);
    if (wanted.input_gradients[0] || wanted.input_gradients[1]) scratch_ = outputs_.scratch_size(1);
    if (wanted.outputs) scratch_ = std::max(scratch_, outputs_.scratch_size(set.interleave));
    of_workers_ = arena.take<S>(scratch_ * workers);
  }

  void prepare(const S* const (&weights)[2], S* const (&dweights)[2]) override {
    const int64_t groups = set_.interleave, taps = set_.sources[0].taps();
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[i];
      const int64_t in = part.conv.in_channels;
      part.dweight = dweights[i];
      if (wanted_.outputs) {
        outputs_.prepare(false, part.first, part.first + in, workers_, [&](int64_t row, int64_t k) {
          return weights[i] + ((row % groups * (rows_ / groups) + row / groups) * in + k - part.first) * taps;
        });
      }
      if (wanted_.input_gradients[i]) {
        part.gradient.prepare(true, 0, rows_, workers_,
                              [&](int64_t row, int64_t k) { return weights[i] + (k * in + row) * taps; });
      }
    }
    if (dz_) std::fill_n(dz_, set_.batch * gradient_.image(), S(0));  // the borders stay so
    if (sums_) std::fill_n(sums_, kWinogradPlaces * sums_frequency(), S(0));
  }

  // Packed plane by plane into a worker's memory and transformed from there.
  void read(int source, const Active& active, const ImageOf& image_of, const S* mask) override {
    const Part& part = parts_[static_cast<size_t>(source)];
    const int64_t C = part.conv.in_channels, tasks = ceil_div(C, kAtOnce);
    const Packing& packing = part.packing;
    parallel_for(set_.batch * tasks, workers_, [&](int64_t task, int worker) {
      const int64_t b = task / tasks, first = task % tasks * kAtOnce, last = std::min(first + kAtOnce, C);
      S* planes = packed_ + worker * packed_stride_;
      const bool is_active = active[static_cast<size_t>(b)];
      if (is_active) {
        const Image<const S> image = image_of(b);
        pack_channels<S>(packing, 0, last - first, {image.at(first, 0).data, image.channel, image.pixel},
                         mask ? mask + (b * C + first) * part.conv.in_pixels() : nullptr, planes);
      }
      transform_image<S>(kernels().patches, tiles_, b,
                         {is_active ? planes : nullptr, packing.plane(), packing.pitch, last - first}, patches_,
                         part.first + first);
    });
  }

  void outputs(const Active& active, const Consume& consume) override {
    outputs_.run(patches_, active, set_.interleave, workers_, of_workers_, scratch_, consume);
  }

  const Packing& gradient_packing() const override { return gradient_; }
  S* gradient() const override { return dz_; }

  void add_weight_gradients(const Active& active) override {
    if (!sums_) return;
    const Places<S> gradients{of_gradient_, rows_};
    transform_gradient(kernels().gradients, tiles_, {gradient_.pad_low[0], gradient_.pad_low[1]}, active, gradients);
    constexpr int64_t kRowsOfTask = 64;
    const int64_t groups = ceil_div(rows_, kRowsOfTask);
    parallel_for(kWinogradPlaces * groups, workers_, [&](int64_t task, int) {
      const int64_t place = task / groups, m = task % groups * kRowsOfTask;
      for (const Part& part : parts_) {
        if (!part.dweight) continue;
        kernels_.winograd_gradient({gradients.at(0, m, 0) + place * gradients.frequency(),
                                    patches_.at(0, part.first, 0) + place * patches_.frequency(), gradients.of_block(),
                                    patches_.of_block(), tiles_.blocks(), std::min(kRowsOfTask, rows_ - m),
                                    part.conv.in_channels, sums_ + place * sums_frequency() + part.first * rows_ + m,
                                    rows_});
      }
    });
  }

  void input_gradients(const Active& active, const InputGradientTarget<S> (&targets)[2]) override {
    const Places<S> places{of_gradient_, rows_};
    const Part* transformed = nullptr;
    for (size_t i = parts_.size(); i-- > 0;) {
      if (!targets[i].dx.data) continue;
      const Part& part = parts_[i];
      if (!transformed || !transformed->reads_gradient_as(part)) {
        transform_gradient(kernels().patches, part.tiles, part.gradient_origin(gradient_), active, places);
        transformed = &part;
      }
      part.gradient.run(places, active, 1, workers_, of_workers_, scratch_,
                        [&](const Block& block, const S* z, int64_t pitch) {
                          put_rows(block, z, pitch, part.conv, block.row0, block.column0, targets[i]);
                        });
    }
  }

  void finish_weight_gradients() override {
    if (!sums_) return;
    parallel_for(channels_of(set_), workers_, [&](int64_t k, int) {
      for (const Part& part : parts_) {
        const int64_t in = part.conv.in_channels, channel = k - part.first;
        if (!part.dweight || channel < 0 || channel >= in) continue;
        kernels().weight_gradients(sums_ + k * rows_, sums_frequency(), rows_, in * part.conv.taps(),
                                   part.dweight + channel * part.conv.taps());
      }
    });
  }

 private:
  static constexpr int64_t kAtOnce = 16;  // channels of a task: with channels last, a cache line's

  struct Part {
    ConvolutionShape conv;
    int64_t first;        // its channels among all
    Packing packing;      // of the source
    WinogradTiles tiles;  // of its gradient
    WinogradProducts<S> gradient;
    S* dweight = nullptr;

    bool reads_gradient_as(const Part& other) const {
      return tiles.image[0] == other.tiles.image[0] && tiles.image[1] == other.tiles.image[1] &&
             conv.pad_low[0] == other.conv.pad_low[0] && conv.pad_low[1] == other.conv.pad_low[1];
    }
    // Where, in the packed gradient, the first patch begins: so far before its first pixel as the flipped kernel
    // reaches.
    std::array<int64_t, 2> gradient_origin(const Packing& packing_of_gradient) const {
      return {packing_of_gradient.pad_low[0] - (conv.kernel[0] - 1 - conv.pad_low[0]),
              packing_of_gradient.pad_low[1] - (conv.kernel[1] - 1 - conv.pad_low[1])};
    }
  };

  static int64_t channels_of(const ConvolutionSet& set) {
    int64_t channels = 0;
    for (const ConvolutionShape& conv : set.sources) channels += conv.in_channels;
    return channels;
  }

  const WinogradKernels<S>& kernels() const { return kernels_.winograd[tiles_.size == 4 ? 0 : 1]; }
  int64_t sums_frequency() const { return channels_of(set_) * rows_ + 16; }

  // Pixels that the patches of so many tiles span.
  static int64_t span(int64_t tiles, int64_t size) { return tiles * size + 6 - size; }

  void take_forward(Arena& arena) {
    int64_t first = 0, plane = 0;
    for (const ConvolutionShape& conv : set_.sources) {
      const Packing packing{conv.in_channels,
                            {conv.in[0], conv.in[1]},
                            {1, 1},
                            {conv.pad_low[0], conv.pad_low[1]},
                            {{0}, {0}},
                            std::max(span(tiles_.rows(), tiles_.size), conv.pad_low[0] + conv.in[0]),
                            std::max(span(tiles_.columns(), tiles_.size), conv.pad_low[1] + conv.in[1])};
      const WinogradTiles of_gradient{tiles_.size, set_.batch, {conv.in[0], conv.in[1]}};
      parts_.push_back({conv, first, packing, of_gradient, {of_gradient, conv.in_channels, rows_}});
      first += conv.in_channels;
      plane = std::max(plane, std::min(conv.in_channels, kAtOnce) * packing.plane());
    }
    if (wanted_.outputs) outputs_.take(arena);
    if (!wanted_.outputs && !wanted_.any_weight_gradient()) return;
    packed_stride_ = plane;
    packed_ = arena.take<S>(checked_product("scratch", {plane, workers_}));
    patches_.channels = first;
    patches_.data = arena.take<S>(patches_.size(tiles_));
  }

  Packing packing_of_gradient() const {
    const ConvolutionShape& first = set_.sources[0];
    Packing packing{rows_, {first.out[0], first.out[1]}, {1, 1}, {0, 0}, {{0}, {0}}, 0, 0};
    int64_t extent[2];
    for (int axis = 0; axis < 2; ++axis) {
      for (const ConvolutionShape& conv : set_.sources) {
        packing.pad_low[axis] = std::max(packing.pad_low[axis], conv.kernel[axis] - 1 - conv.pad_low[axis]);
      }
      extent[axis] = packing.pad_low[axis] + round_up(first.out[axis], tiles_.size);
      for (const ConvolutionShape& conv : set_.sources) {
        const int64_t origin = packing.pad_low[axis] - (conv.kernel[axis] - 1 - conv.pad_low[axis]);
        extent[axis] = std::max(extent[axis], origin + span(ceil_div(conv.in[axis], tiles_.size), tiles_.size));
      }
    }
    packing.rows = extent[0];
    packing.pitch = extent[1];
    return packing;
  }

  void take_backward(Arena& arena) {
    gradient_ = packing_of_gradient();
    dz_ = arena.take<S>(checked_product("scratch", {set_.batch, gradient_.image()}));
    const Places<S> places{nullptr, rows_};
    int64_t size = wanted_.any_weight_gradient() ? places.size(tiles_) : 0;
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (!wanted_.input_gradients[i]) continue;
      parts_[i].gradient.take(arena);
      size = std::max(size, places.size(parts_[i].tiles));
    }
    of_gradient_ = arena.take<S>(size);
    if (wanted_.any_weight_gradient()) sums_ = arena.take<S>(kWinogradPlaces * sums_frequency());
  }

  void transform_gradient(void (*transform)(const WinogradRun<S>&), const WinogradTiles& tiles,
                          const std::array<int64_t, 2>& origin, const Active& active, const Places<S>& places) {
    const int64_t tasks = ceil_div(rows_, kAtOnce);
    parallel_for(set_.batch * tasks, workers_, [&](int64_t task, int) {
      const int64_t b = task / tasks, first = task % tasks * kAtOnce;
      const S* planes =
          dz_ + b * gradient_.image() + first * gradient_.plane() + origin[0] * gradient_.pitch + origin[1];
      transform_image<S>(transform, tiles, b,
                         {active[static_cast<size_t>(b)] ? planes : nullptr, gradient_.plane(), gradient_.pitch,
                          std::min(kAtOnce, rows_ - first)},
                         places, first);
    });
  }

  const Kernels<S>& kernels_ = cpu::kernels().get<S>();
  const ConvolutionSet set_;
  const Wanted wanted_;
  const int workers_;
  const int64_t rows_;
  const WinogradTiles tiles_;
  WinogradProducts<S> outputs_;
  std::vector<Part> parts_;
  Packing gradient_{};
  Places<S> patches_;
  S *packed_ = nullptr, *dz_ = nullptr, *of_gradient_ = nullptr, *sums_ = nullptr, *of_workers_ = nullptr;
  int64_t packed_stride_ = 0, scratch_ = 0;
};

}  // namespace fusecell::cpu
