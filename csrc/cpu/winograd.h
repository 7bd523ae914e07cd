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
#include "cpu/work.h"

namespace fusecell::cpu {

// -------------------------------------------------------------------------------------------------------------- tiles
struct WinogradTiles {
  int64_t size, batch, image[2];  // a tile's outputs on each axis; images of so many outputs

  int64_t rows() const { return ceil_div(image[0], size); }
  int64_t columns() const { return ceil_div(image[1], size); }
  int64_t of_image() const { return rows() * columns(); }
  int64_t total() const { return batch * of_image(); }
};

// Neighbouring tiles of one image, the first one at place q of its block: whole rows of tiles, or a piece of one.
struct TileRun {
  int64_t b, row, column, rows, count, q;
};

// Of tiles first to last - 1, which are of one block that begins with the first.
template <class F>
void each_run(const WinogradTiles& tiles, int64_t first, int64_t last, F&& f) {
  const int64_t columns = tiles.columns();
  for (int64_t tile = first; tile < last;) {
    const int64_t b = tile / tiles.of_image(), in_image = tile % tiles.of_image();
    const int64_t row = in_image / columns, column = in_image % columns, left = last - tile;
    const bool whole = column == 0 && left >= columns;
    const int64_t rows = whole ? std::min(left / columns, tiles.rows() - row) : 1;
    const int64_t count = whole ? columns : std::min(columns - column, left);
    f(TileRun{b, row, column, rows, count, tile - first});
    tile += rows * count;
  }
}

// Channels of packed images, from the first pixel of their first tile on.
template <class S>
struct Planes {
  const S* data;
  int64_t image, plane, pitch, channels;
};

template <class S>
Planes<S> planes_of(const Packing& packing, const S* data, const int64_t (&origin)[2]) {
  return {data + origin[0] * packing.pitch + origin[1], packing.image(), packing.plane(), packing.pitch,
          packing.channels};
}

// Values at the 36 places of a block's tiles: [blocks][36][channels][48]. Places are so many cache lines apart that 36
// of them, of some channels, do not meet in the same sets of the first-level cache (measured: at a multiple of 4 KB a
// transform takes ten times as long).
template <class S>
struct Places {
  S* data = nullptr;
  int64_t channels = 0;

  int64_t frequency() const {
    const int64_t lines = channels * kWinogradTiles / 16;
    return (lines + (13 - lines % 16 + 16) % 16) * 16;
  }
  int64_t block() const { return kWinogradPlaces * frequency(); }
  S* at(int64_t of_block, int64_t channel, int64_t q) const {
    return data + of_block * block() + channel * kWinogradTiles + q;
  }
};

// Channels first to last - 1 of a run's tiles to their places. room: tiles from the run's first on that may be
// overwritten.
template <class S>
void transform_run(void (*transform)(const WinogradRun<S>&), int64_t size, const TileRun& run, const Planes<S>& planes,
                   int64_t first, int64_t last, int64_t room, S* to, int64_t frequency) {
  const S* from =
      planes.data + run.b * planes.image + first * planes.plane + size * (run.row * planes.pitch + run.column);
  transform({from, planes.plane, planes.pitch, last - first, run.rows, run.count, to, frequency, room});
}

// Of products at all places, and of the transforms of what is multiplied.
inline int64_t work_of(int64_t tiles, int64_t rows, int64_t count) {
  return work::products(kWinogradPlaces * tiles * rows * count) +
         work::copies(kWinogradPlaces * tiles * (rows + count));
}

constexpr int64_t kTogether = 4;  // channels whose places stay in the first-level cache until their lines are full

// ------------------------------------------------------------------------------------------------------- the products
// rows x count weights at their places, and the correlation with them.
template <class S>
class WinogradProducts {
 public:
  WinogradProducts(const WinogradTiles& tiles, int64_t rows, int64_t count)
      : tiles_(tiles), rows_(rows), count_(count) {
    const int64_t of_tile = kWinogradPlaces * static_cast<int64_t>(sizeof(S));
    const bool whole = of_tile * count * kWinogradTiles <= kMostPatches;
    block_ = whole ? kWinogradTiles : narrow();
    chunk_ = of_tile * count * block_ <= kMostPatches ? count : 64;
    rows_at_once_ = chunk_ == count ? 32 : 96;
  }

  void take(Arena& arena) { weights_ = arena.take<S>(kWinogradPlaces * frequency()); }

  // taps_at(row, k) points at the taps of a weight.
  template <class TapsAt>
  void prepare(bool flipped, int64_t k_first, int64_t k_last, int workers, TapsAt&& taps_at) {
    const int64_t mr = kernels_->mr, taps = (7 - tiles_.size) * (7 - tiles_.size);
    const int64_t work = work::gathers(rows_ * (k_last - k_first) * taps);
    parallel_for(ceil_div(rows_, mr), workers, work, [&](int64_t panel, int) {
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

  // Memory of a worker: patches, their products with some rows, and `together` rows of pixels of one run.
  int64_t scratch_size(int64_t together) const {
    return patches().block() + products_size() +
           round_up(together * tiles_.size * tiles_.size * kWinogradTiles + tiles_.size * kSlack, 16);
  }

  // Of rows [row0, row1), the first one at a panel's beginning. `consume` is handed `together` of them at a time, a
  // divisor of their number.
  void run(int64_t row0, int64_t row1, const std::vector<Planes<S>>& sources, const std::vector<uint8_t>& active,
           int64_t together, int workers, S* scratch, int64_t scratch_stride,
           const typename Convolutions<S>::Consume& consume) const {
    const int64_t size = block_for(workers), blocks = ceil_div(tiles_.total(), size);
    const int64_t groups = ceil_div(row1 - row0, rows_at_once_), parts = blocks < 2 * workers ? groups : 1;
    const int64_t work = work_of(tiles_.total(), row1 - row0, count_);
    parallel_for(blocks * parts, workers, work, [&](int64_t task, int worker) {
      const int64_t first = task / parts * size, last = std::min(first + size, tiles_.total()), part = task % parts;
      if (!any_active(active, first, last)) return;
      Places<S> patches = this->patches();
      patches.data = scratch + worker * scratch_stride;
      S* products = patches.data + patches.block();
      S* image = products + products_size();
      if (chunk_ == count_) transform(sources, first, last, 0, count_, patches);
      for (int64_t group = part; group < groups; group += parts) {
        const int64_t m0 = row0 + group * rows_at_once_, m1 = std::min(m0 + rows_at_once_, row1);
        for (int64_t k = 0; k < count_; k += chunk_) {
          const int64_t k1 = std::min(k + chunk_, count_);
          if (chunk_ < count_) transform(sources, first, last, k, k1, patches);
          kernels_->winograd_product({weights_ + m0 * count_ + k * kernels_->mr, frequency(), count_ * kernels_->mr,
                                      patches.data, patches.frequency(), m1 - m0, k1 - k, last - first, products,
                                      products_frequency(), k > 0});
        }
        each_run(tiles_, first, last, [&](const TileRun& run) {
          if (!active[static_cast<size_t>(run.b)]) return;
          for (int64_t m = m0; m < m1; m += together) {
            put_run(run, m, m + together, products + (m - m0) * kWinogradTiles + run.q, image, consume);
          }
        });
      }
    });
  }

 private:
  static constexpr int64_t kSlack = 64;               // a vector of tiles, which outputs may reach beyond the last one
  static constexpr int64_t kMostPatches = 640 << 10;  // bytes of patches that are kept in the second-level cache

  const WinogradKernels<S>& kernels() const { return kernels_->winograd[tiles_.size == 4 ? 0 : 1]; }
  // Tiles of a block where 48 are too many: whole register tiles, and two vectors of 16 lanes.
  int64_t narrow() const { return kernels_->lanes == 16 ? 32 : 24; }
  int64_t frequency() const { return round_up(rows_, kernels_->mr) * count_ + 16; }
  int64_t products_frequency() const { return rows_at_once_ * kWinogradTiles + 16; }
  int64_t products_size() const { return kWinogradPlaces * products_frequency() + kSlack; }
  Places<S> patches() const { return {nullptr, chunk_}; }

  // Smaller blocks where they are shared out more evenly. Any cut gives the same numbers.
  int64_t block_for(int workers) const {
    const auto rounds = [&](int64_t size) { return ceil_div(ceil_div(tiles_.total(), size), workers) * size; };
    return rounds(narrow()) < rounds(block_) ? narrow() : block_;
  }

  bool any_active(const std::vector<uint8_t>& active, int64_t first, int64_t last) const {
    for (int64_t b = first / tiles_.of_image(); b <= (last - 1) / tiles_.of_image(); ++b) {
      if (active[static_cast<size_t>(b)]) return true;
    }
    return false;
  }

  // Channels k0 to k1 - 1 of all sources one behind the other. What an inactive sample left in its tiles is harmless:
  // no product crosses tiles.
  void transform(const std::vector<Planes<S>>& sources, int64_t first, int64_t last, int64_t k0, int64_t k1,
                 Places<S> patches) const {
    int64_t at = 0;
    for (const Planes<S>& planes : sources) {
      const int64_t end = std::min(k1, at + planes.channels);
      for (int64_t k = std::max(k0, at); k < end; k += kTogether) {
        each_run(tiles_, first, last, [&](const TileRun& run) {
          transform_run(kernels().patches, tiles_.size, run, planes, k - at, std::min(k + kTogether, end) - at,
                        kWinogradTiles - run.q, patches.at(0, k - k0, run.q), patches.frequency());
        });
      }
      at += planes.channels;
    }
  }

  // Rows of pixels lie as they do in the image; where tiles are a piece of an image's row, each row goes by itself.
  void put_run(const TileRun& run, int64_t m0, int64_t m1, const S* products, S* image,
               const typename Convolutions<S>::Consume& consume) const {
    const int64_t M = tiles_.size, row0 = M * run.row, column0 = M * run.column;
    const int64_t row1 = std::min(row0 + M * run.rows, tiles_.image[0]);
    const int64_t column1 = std::min(column0 + M * run.count, tiles_.image[1]), width = column1 - column0;
    const int64_t pitch = M * run.rows * width;
    for (int64_t m = m0; m < m1; ++m) {
      kernels().outputs({products + (m - m0) * kWinogradTiles, products_frequency(), run.rows, run.count,
                         image + (m - m0) * pitch, width});
    }
    if (width == tiles_.image[1]) {
      consume({run.b, m0, m1, row0, row1, column0, column1}, image, pitch);
    } else {
      for (int64_t row = row0; row < row1; ++row) {
        consume({run.b, m0, m1, row, row + 1, column0, column1}, image + (row - row0) * width, pitch);
      }
    }
  }

  const Kernels<S>* kernels_ = &cpu::kernels().get<S>();
  WinogradTiles tiles_;
  int64_t rows_, count_;
  // Tiles of a block, channels that are transformed at once, and rows whose products are kept at once.
  int64_t block_, chunk_, rows_at_once_;
  S* weights_ = nullptr;
};

// ------------------------------------------------------------------------------------------- gradients of the weights
// All tiles are cut into two parts with sums of their own, if those are not too large for the third-level cache
// together (measured: at 128 x 256 weights two take 13 % longer). A part goes by in chunks: a chunk's patches,
// [blocks][36][channels][48], and the gradient of some channels, [groups][blocks][36][48][lanes], which is transformed
// by the one who multiplies it. The sum over a chunk's tiles stays in registers. So two threads read nothing that the
// other wrote: where cores share no cache that made a backward pass take twice as long.
template <class S>
class WinogradWeightGradients {
 public:
  WinogradWeightGradients(const WinogradTiles& tiles, int64_t rows, int64_t count)
      : tiles_(tiles), rows_(rows), count_(count), patches_{nullptr, count} {
    constexpr int64_t kMostBytes = 700 << 10, kMostOfSums = 4 << 20;
    const int64_t of_block = kGroups * group() * static_cast<int64_t>(sizeof(S));
    const int64_t of_sums = kWinogradPlaces * frequency() * static_cast<int64_t>(sizeof(S));
    parts_ = tiles.total() >= 2 * kWinogradTiles && of_sums <= kMostOfSums ? 2 : 1;
    const int64_t blocks = ceil_div(ceil_div(tiles.total(), parts_), kWinogradTiles);
    chunk_ = std::clamp<int64_t>(kMostBytes / of_block, 1, std::max<int64_t>(blocks, 1));
  }

  void take(Arena& arena) {
    sums_ = arena.take<S>(checked_product("scratch", {parts_, kWinogradPlaces, frequency()}));
    patches_.data = arena.take<S>(checked_product("scratch", {parts_, chunk_, patches_.block()}));
  }
  // Memory of a worker.
  int64_t scratch_size() const { return kGroups * chunk_ * group(); }

  void clear() { std::fill_n(sums_, parts_ * kWinogradPlaces * frequency(), S(0)); }

  void add(const std::vector<Planes<S>>& sources, const Planes<S>& dz, const std::vector<uint8_t>& active, int workers,
           S* scratch, int64_t scratch_stride) const {
    for (int64_t chunk = 0; chunk * chunk_ * kWinogradTiles < ceil_div(tiles_.total(), parts_); ++chunk) {
      transform_patches(sources, active, chunk, workers);
      add_products(dz, active, chunk, workers, scratch, scratch_stride);
    }
  }

  // The parts' sums, one after the other.
  void join(int workers) const {
    if (parts_ == 1) return;
    parallel_for(kWinogradPlaces, workers, work::copies(kWinogradPlaces * frequency()), [&](int64_t place, int) {
      S* to = sums_ + place * frequency();
      const S* from = to + kWinogradPlaces * frequency();
      for (int64_t i = 0; i < frequency(); ++i) to[i] += from[i];
    });
  }

  // To dweight [rows, channels, taps], which are those from `first` on.
  void finish(int64_t first, int64_t channels, int workers, S* dweight) const {
    const int64_t taps = (7 - tiles_.size) * (7 - tiles_.size);
    parallel_for(channels, workers, work::gathers(rows_ * channels * taps), [&](int64_t channel, int) {
      kernels().weight_gradients(sums_ + (first + channel) * pitch(), frequency(), rows_, channels * taps,
                                 dweight + channel * taps);
    });
  }

 private:
  static constexpr int64_t kGroups = 2;  // of a task; a group's channels fill a vector

  struct Range {
    int64_t first, last;
  };

  const WinogradKernels<S>& kernels() const { return kernels_.winograd[tiles_.size == 4 ? 0 : 1]; }
  int64_t groups() const { return ceil_div(rows_, kernels_.lanes); }
  int64_t group() const { return kWinogradPlaces * kWinogradTiles * kernels_.lanes; }
  int64_t pitch() const { return groups() * kernels_.lanes; }
  int64_t frequency() const { return count_ * pitch() + 16; }  // they are transformed back a vector at a time

  // The tiles of a part's chunk; the last one may have none.
  Range tiles_of(int64_t part, int64_t chunk) const {
    const int64_t end = (part + 1) * tiles_.total() / parts_;
    const int64_t first = std::min(part * tiles_.total() / parts_ + chunk * chunk_ * kWinogradTiles, end);
    return {first, std::min(first + chunk_ * kWinogradTiles, end)};
  }
  // One of its blocks.
  template <class F>
  void each_run_of_block(const Range& range, int64_t block, F&& f) const {
    const int64_t begin = range.first + block * kWinogradTiles;
    each_run(tiles_, begin, std::min(begin + kWinogradTiles, range.last), f);
  }

  // Tasks are some channels of a source each, part by part, block by block. The sum goes over all tiles, so those of an
  // inactive sample are zero.
  void transform_patches(const std::vector<Planes<S>>& sources, const std::vector<uint8_t>& active, int64_t chunk,
                         int workers) const {
    int64_t of_block = 0;
    for (const Planes<S>& planes : sources) of_block += ceil_div(planes.channels, kTogether);
    const int64_t tasks = parts_ * chunk_ * of_block, tiles = parts_ * chunk_ * kWinogradTiles;
    parallel_for(tasks, workers, work::copies(kWinogradPlaces * tiles * count_), [&](int64_t task, int) {
      const int64_t of_parts = task / of_block, block = of_parts % chunk_;
      int64_t at = 0, slice = task % of_block;
      size_t source = 0;
      for (; slice >= ceil_div(sources[source].channels, kTogether); ++source) {
        slice -= ceil_div(sources[source].channels, kTogether);
        at += sources[source].channels;
      }
      const int64_t k = slice * kTogether, end = std::min(k + kTogether, sources[source].channels);
      each_run_of_block(tiles_of(of_parts / chunk_, chunk), block, [&](const TileRun& run) {
        S* to = patches_.at(of_parts, at + k, run.q);
        if (active[static_cast<size_t>(run.b)]) {
          transform_run(kernels().patches, tiles_.size, run, sources[source], k, end, kWinogradTiles - run.q, to,
                        patches_.frequency());
          return;
        }
        for (int64_t place = 0; place < kWinogradPlaces; ++place) {
          for (int64_t i = 0; i < end - k; ++i) {
            std::fill_n(to + place * patches_.frequency() + i * kWinogradTiles, run.rows * run.count, S(0));
          }
        }
      });
    });
  }

  void transform_gradient(const Planes<S>& dz, const std::vector<uint8_t>& active, const Range& range,
                          int64_t of_groups, S* gradients) const {
    const int64_t lanes = kernels_.lanes, m = of_groups * lanes;
    for (int64_t block = 0; block < chunk_; ++block, gradients += group()) {
      each_run_of_block(range, block, [&](const TileRun& run) {
        S* to = gradients + run.q * lanes;
        if (active[static_cast<size_t>(run.b)]) {
          transform_run(kernels().gradients, tiles_.size, run, dz, m, std::min(m + lanes, rows_), 0, to,
                        kWinogradTiles * lanes);
          return;
        }
        for (int64_t place = 0; place < kWinogradPlaces; ++place) {
          std::fill_n(to + place * kWinogradTiles * lanes, run.rows * run.count * lanes, S(0));
        }
      });
    }
  }

  // Tasks are two groups of channels each, part by part; for many workers, some of their places.
  void add_products(const Planes<S>& dz, const std::vector<uint8_t>& active, int64_t chunk, int workers, S* scratch,
                    int64_t scratch_stride) const {
    const int64_t pairs = ceil_div(groups(), kGroups), pieces = std::clamp<int64_t>(workers / (parts_ * pairs), 1, 4);
    const int64_t work = work_of(parts_ * chunk_ * kWinogradTiles, rows_, count_);
    parallel_for(parts_ * pairs * pieces, workers, work, [&](int64_t task, int worker) {
      const int64_t part = task / (pairs * pieces), pair = task / pieces % pairs, piece = task % pieces;
      const int64_t g0 = pair * kGroups, g1 = std::min(g0 + kGroups, groups());
      const Range range = tiles_of(part, chunk);
      if (range.first == range.last) return;
      S* gradients = scratch + worker * scratch_stride;
      for (int64_t g = g0; g < g1; ++g) {
        transform_gradient(dz, active, range, g, gradients + (g - g0) * chunk_ * group());
      }
      for (int64_t place = piece * kWinogradPlaces / pieces; place < (piece + 1) * kWinogradPlaces / pieces; ++place) {
        kernels_.winograd_gradient({patches_.at(part * chunk_, 0, 0) + place * patches_.frequency(),
                                    gradients + place * kWinogradTiles * kernels_.lanes, patches_.block(), group(),
                                    chunk_ * group(), range.last - range.first, count_, g1 - g0,
                                    sums_ + (part * kWinogradPlaces + place) * frequency() + g0 * kernels_.lanes,
                                    pitch()});
      }
    });
  }

  const Kernels<S>& kernels_ = cpu::kernels().get<S>();
  const WinogradTiles tiles_;
  const int64_t rows_, count_;
  Places<S> patches_;
  int64_t parts_, chunk_;  // of the tiles; in blocks
  S* sums_ = nullptr;
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
        outputs_(tiles_, rows_, channels_of(set)),
        weight_gradients_(tiles_, rows_, channels_of(set)),
        gradient_(packing_of_gradient()) {
    const bool reads = wanted.outputs || wanted.any_weight_gradient();
    int64_t first = 0;
    for (size_t i = 0; i < set.sources.size(); ++i) {
      const ConvolutionShape& conv = set.sources[i];
      Part& part = parts_.emplace_back(Part{conv, first, packing_of_source(conv)});
      if (reads) part.packed = arena.take<S>(checked_product("scratch", {set.batch, part.packing.image()}));
      first += conv.in_channels;
    }
    join_gradients();
    for (Joint& joint : joints_) {
      joint.products.take(arena);
      scratch_ = std::max(scratch_, joint.products.scratch_size(1));
    }
    if (wanted.outputs) {
      outputs_.take(arena);
      scratch_ = std::max(scratch_, outputs_.scratch_size(set.interleave));
    }
    if (wanted.any_weight_gradient()) {
      weight_gradients_.take(arena);
      scratch_ = std::max(scratch_, weight_gradients_.scratch_size());
    }
    if (wanted.gradient) dz_ = arena.take<S>(checked_product("scratch", {set.batch, gradient_.image()}));
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
    }
    for (Joint& joint : joints_) {
      joint.products.prepare(true, 0, rows_, workers_, [&](int64_t row, int64_t k) -> const S* {
        for (size_t i : joint.parts) {
          const int64_t in = parts_[i].conv.in_channels, channel = row - parts_[i].gradient_row;
          if (0 <= channel && channel < in) return weights[i] + (k * in + channel) * taps;
        }
        return nullptr;
      });
    }
    if (dz_) std::fill_n(dz_, set_.batch * gradient_.image(), S(0));  // the borders stay so
    if (wanted_.any_weight_gradient()) weight_gradients_.clear();
  }

  void read(int source, const Active& active, const ImageOf& image_of, const S* mask) override {
    const Part& part = parts_[static_cast<size_t>(source)];
    pack<S>(part.packing, active, image_of, mask, workers_, part.packed);
  }

  void outputs(const Active& active, const Consume& consume) override {
    outputs_.run(0, rows_, sources(), active, set_.interleave, workers_, of_workers_, scratch_, consume);
  }

  const Packing& gradient_packing() const override { return gradient_; }
  S* gradient() const override { return dz_; }

  void add_weight_gradients(const Active& active) override {
    if (!wanted_.any_weight_gradient()) return;
    weight_gradients_.add(sources(), planes_of<S>(gradient_, dz_, gradient_.pad_low), active, workers_, of_workers_,
                          scratch_);
  }

  void input_gradients(const Active& active, const InputGradientTarget<S> (&targets)[2]) override {
    for (const Joint& joint : joints_) {
      int64_t row0 = joint.rows, row1 = 0;
      for (size_t i : joint.parts) {
        if (!targets[i].dx.data) continue;
        row0 = std::min(row0, parts_[i].gradient_row);
        row1 = std::max(row1, parts_[i].gradient_row + parts_[i].conv.in_channels);
      }
      if (row0 >= row1) continue;
      const ConvolutionShape& conv = parts_[joint.parts[0]].conv;
      const int64_t origin[2] = {reach(conv, 0), reach(conv, 1)};
      joint.products.run(row0, row1, {planes_of<S>(gradient_, dz_, origin)}, active, 1, workers_, of_workers_, scratch_,
                         [&](const Block& block, const S* z, int64_t pitch) {
                           for (size_t i : joint.parts) put_part(parts_[i], block, z, pitch, targets[i]);
                         });
    }
  }

  void finish_weight_gradients() override {
    if (!wanted_.any_weight_gradient()) return;
    weight_gradients_.join(workers_);
    for (const Part& part : parts_) {
      if (part.dweight) weight_gradients_.finish(part.first, part.conv.in_channels, workers_, part.dweight);
    }
  }

 private:
  struct Part {
    ConvolutionShape conv;
    int64_t first;  // its channels among all
    Packing packing;
    S *packed = nullptr, *dweight = nullptr;
    int64_t gradient_row = 0;  // its channels among the rows of its joint
  };
  // The gradients of sources that read the same patches of z's gradient: they are transformed once for both.
  struct Joint {
    std::vector<size_t> parts;
    int64_t rows;
    WinogradProducts<S> products;
  };

  static int64_t channels_of(const ConvolutionSet& set) {
    int64_t channels = 0;
    for (const ConvolutionShape& conv : set.sources) channels += conv.in_channels;
    return channels;
  }

  // Pixels that the patches of `outputs` pixels span.
  int64_t span(int64_t outputs) const { return round_up(outputs, tiles_.size) + 6 - tiles_.size; }

  Packing packing_of_source(const ConvolutionShape& conv) const {
    return {conv.in_channels, {conv.in[0], conv.in[1]}, {1, 1},           {conv.pad_low[0], conv.pad_low[1]},
            {{0}, {0}},       span(conv.out[0]),        span(conv.out[1])};
  }

  // Pixels of zero before z's gradient that the flipped kernel reaches. Padding wider than the kernel needs none.
  static int64_t before(const ConvolutionShape& conv, int axis) { return conv.kernel[axis] - 1 - conv.pad_low[axis]; }

  // Where in the packed gradient the first patch of a source's gradient begins.
  int64_t reach(const ConvolutionShape& conv, int axis) const { return gradient_.pad_low[axis] - before(conv, axis); }

  Packing packing_of_gradient() const {
    const ConvolutionShape& first = set_.sources[0];
    Packing packing{rows_, {first.out[0], first.out[1]}, {1, 1}, {0, 0}, {{0}, {0}}, 0, 0};
    int64_t extent[2];
    for (int axis = 0; axis < 2; ++axis) {
      int64_t& low = packing.pad_low[axis];
      for (const ConvolutionShape& conv : set_.sources) low = std::max(low, before(conv, axis));
      extent[axis] = low + round_up(first.out[axis], tiles_.size);
      for (const ConvolutionShape& conv : set_.sources) {
        extent[axis] = std::max(extent[axis], low - before(conv, axis) + span(conv.in[axis]));
      }
    }
    packing.rows = extent[0];
    packing.pitch = extent[1];
    return packing;
  }

  // The last source first: the state's gradient is wanted at every step.
  void join_gradients() {
    const int64_t mr = cpu::kernels().get<S>().mr;
    for (size_t i = parts_.size(); i-- > 0;) {
      if (!wanted_.input_gradients[i]) continue;
      Part& part = parts_[i];
      if (!joints_.empty() && is_alike(parts_[joints_.back().parts[0]].conv, part.conv)) {
        part.gradient_row = round_up(joints_.back().rows, mr);
        joints_.back().parts.push_back(i);
      } else {
        joints_.push_back({{i}, 0, {tiles_, 0, 0}});
      }
      Joint& joint = joints_.back();
      joint.rows = part.gradient_row + part.conv.in_channels;
      joint.products = {{tiles_.size, set_.batch, {part.conv.in[0], part.conv.in[1]}}, joint.rows, rows_};
    }
  }
  static bool is_alike(const ConvolutionShape& a, const ConvolutionShape& b) {
    return std::equal(a.in, a.in + 2, b.in) && std::equal(a.pad_low, a.pad_low + 2, b.pad_low);
  }

  static void put_part(const Part& part, const Block& block, const S* z, int64_t pitch,
                       const InputGradientTarget<S>& target) {
    const int64_t channel = block.m0 - part.gradient_row;
    if (!target.dx.data || channel < 0 || channel >= part.conv.in_channels) return;
    Block own = block;
    own.m0 = channel;
    own.m1 = channel + 1;
    put_rows(own, z, pitch, part.conv, block.row0, block.column0, target);
  }

  std::vector<Planes<S>> sources() const {
    std::vector<Planes<S>> list;
    for (const Part& part : parts_) list.push_back(planes_of<S>(part.packing, part.packed, {0, 0}));
    return list;
  }

  const ConvolutionSet set_;
  const Wanted wanted_;
  const int workers_;
  const int64_t rows_;
  const WinogradTiles tiles_;
  WinogradProducts<S> outputs_;
  WinogradWeightGradients<S> weight_gradients_;
  const Packing gradient_;
  std::vector<Part> parts_;
  std::vector<Joint> joints_;
  S *dz_ = nullptr, *of_workers_ = nullptr;
  int64_t scratch_ = 0;
};

}  // namespace fusecell::cpu
