#pragma once
// Convolutions as products of bfloat16 summed in float32, on tiles: four sums of 16 x 16 at a time, of two tiles on
// either side, so that each tile that is loaded is used twice.

#include "cpu/kernels.h"
#include "cpu/tiles.h"

namespace fusecell::cpu {
namespace {

constexpr TileName<0> kSum00;
constexpr TileName<1> kSum01;
constexpr TileName<2> kSum10;
constexpr TileName<3> kSum11;
constexpr TileName<4> kLeft0;
constexpr TileName<5> kLeft1;
constexpr TileName<6> kRight0;
constexpr TileName<7> kRight1;

constexpr int64_t kBytes = 2;  // of a bfloat16

template <class Tiles>
FUSECELL_HD void multiply(Tiles& tiles) {
  tile_dot_bf16(tiles, kSum00, kLeft0, kRight0);
  tile_dot_bf16(tiles, kSum01, kLeft0, kRight1);
  tile_dot_bf16(tiles, kSum10, kLeft1, kRight0);
  tile_dot_bf16(tiles, kSum11, kLeft1, kRight1);
}

// ---------------------------------------------------------------------------------------------------------- product
// Sixteen neighbouring pixels of one row, the last ones of which may lie beyond the block.
struct Run {
  int64_t row, column, pixels;
};

FUSECELL_HD Run run_of(const Bfloat16Product& args, int64_t index) {
  const int64_t columns = args.column1 - args.column0, in_row = (columns + kSide - 1) / kSide;
  const int64_t column = index % in_row * kSide, left = columns - column;
  return {args.row0 + index / in_row, args.column0 + column, left < kSide ? left : kSide};
}

template <class Tiles>
FUSECELL_HD void sum_taps(Tiles& tiles, const Bfloat16Product& args, const bfloat16* weights, const Run& run0,
                          const Run& run1) {
  tile_zero(tiles, kSum00);
  tile_zero(tiles, kSum01);
  tile_zero(tiles, kSum10);
  tile_zero(tiles, kSum11);
  for (const Bfloat16Source& source : args.sources) {
    const bfloat16* pixels0 = source.image + 2 * (run0.row * source.pitch + run0.column);
    const bfloat16* pixels1 = source.image + 2 * (run1.row * source.pitch + run1.column);
    for (int64_t k = 0; k < source.count; ++k, weights += 2 * kSide * kDepth) {
      tile_load(tiles, kLeft0, weights, kDepth * kBytes);
      tile_load(tiles, kLeft1, weights + kSide * kDepth, kDepth * kBytes);
      tile_load(tiles, kRight0, pixels0 + source.offset[k], 2 * source.plane * kBytes);
      tile_load(tiles, kRight1, pixels1 + source.offset[k], 2 * source.plane * kBytes);
      multiply(tiles);
    }
  }
}

// A tile of z to its place: rows m to m + 15, as far as there are so many.
template <class Tiles, int t>
FUSECELL_HD void put_tile(Tiles& tiles, TileName<t> tile, const Bfloat16Product& args, int64_t m, const Run& run) {
  const int64_t columns = args.column1 - args.column0, pitch = (args.row1 - args.row0) * columns, rows = args.m1 - m;
  float* z = args.z + (m - args.m0) * pitch + (run.row - args.row0) * columns + run.column - args.column0;
  if (rows >= kSide && run.pixels == kSide) {
    tile_store(tiles, tile, z, pitch * int64_t(sizeof(float)));
    return;
  }
  float whole[kSide][kSide];
  tile_store(tiles, tile, whole, sizeof whole[0]);
  for (int64_t i = 0; i < kSide && i < rows; ++i) {
    for (int64_t p = 0; p < run.pixels; ++p) z[i * pitch + p] = whole[i][p];
  }
}

template <class Tiles>
void bfloat16_product(const Bfloat16Product& args) {
  Tiles tiles;
  tile_config(tiles);
  const int64_t in_row = (args.column1 - args.column0 + kSide - 1) / kSide, runs = (args.row1 - args.row0) * in_row;
  const int64_t panel = (args.sources[0].count + args.sources[1].count) * 2 * kSide * kDepth;
  for (int64_t m = args.m0; m < args.m1; m += 2 * kSide) {
    for (int64_t index = 0; index < runs; index += 2) {
      const bool both = index + 1 < runs;
      const Run run0 = run_of(args, index), run1 = both ? run_of(args, index + 1) : run0;
      sum_taps(tiles, args, args.weights + m / (2 * kSide) * panel, run0, run1);
      put_tile(tiles, kSum00, args, m, run0);
      put_tile(tiles, kSum10, args, m + kSide, run0);
      if (!both) continue;
      put_tile(tiles, kSum01, args, m, run1);
      put_tile(tiles, kSum11, args, m + kSide, run1);
    }
  }
  tile_release(tiles);
}

// -------------------------------------------------------------------------------------------------- weight gradient
template <class Tiles>
void bfloat16_gradient(const Bfloat16Gradient& args) {
  Tiles tiles;
  tile_config(tiles);
  constexpr int64_t kTile = kSide * kSide, kRowBytes = kSide * int64_t(sizeof(float));
  tile_load(tiles, kSum00, args.sums, kRowBytes);
  tile_load(tiles, kSum01, args.sums + kTile, kRowBytes);
  tile_load(tiles, kSum10, args.sums + 2 * kTile, kRowBytes);
  tile_load(tiles, kSum11, args.sums + 3 * kTile, kRowBytes);
  for (int64_t b = 0; b < args.batch; ++b) {
    if (!args.active[b]) continue;
    const bfloat16* source = args.source + b * args.source_image;
    const bfloat16* gradient = args.gradient + b * args.gradient_image;
    for (int64_t q = 0; q < args.pixels; q += kDepth) {
      tile_load(tiles, kLeft0, source + q, args.plane * kBytes);
      tile_load(tiles, kLeft1, source + kSide * args.plane + q, args.plane * kBytes);
      tile_load(tiles, kRight0, gradient + q * kSide, kDepth * kBytes);
      tile_load(tiles, kRight1, gradient + (args.pixels + q) * kSide, kDepth * kBytes);
      multiply(tiles);
    }
  }
  tile_store(tiles, kSum00, args.sums, kRowBytes);
  tile_store(tiles, kSum01, args.sums + kTile, kRowBytes);
  tile_store(tiles, kSum10, args.sums + 2 * kTile, kRowBytes);
  tile_store(tiles, kSum11, args.sums + 3 * kTile, kRowBytes);
  tile_release(tiles);
}

template <class Tiles>
constexpr Bfloat16Kernels kernels_on() {
  return {bfloat16_product<Tiles>, bfloat16_gradient<Tiles>};
}

}  // namespace
}  // namespace fusecell::cpu
