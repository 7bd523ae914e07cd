#pragma once
// What convolutions on tensor cores begin and end with: packed weights, images with channels last, a plain store.

#include "cuda/convolution.cuh"
#include "cuda/tensor_tile.cuh"

namespace fusecell::cuda {

// --------------------------------------------------------------------------------------------------- weights and taps
template <class S>
struct PackTensorArgs {
  const S* weight;  // [O, I, kh, kw]
  Layout layout;
  int64_t out_channels, in_channels, kernel[2], dilation[2];
  int64_t channels, pieces;  // that one place of the kernel reads, and in how many pieces
  int64_t tiles, stages;
  TileSize size;
  S* packed;  // [tiles][stages][rows of a tile][kPieces] pieces
  Tap* tap;   // [stages][kPieces]
};

// Piece k of the sum: which place of the kernel, and which piece of its channels. Where channels fill several stages
// the places of one stage's channels follow each other, so that they find its pixels in the first-level cache.
struct PlaceAndPiece {
  int64_t place, piece;
};
FUSECELL_DEVICE PlaceAndPiece place_and_piece(int64_t k, int64_t places, int64_t pieces) {
  const int64_t whole = pieces / kPieces * kPieces, rest = pieces - whole;
  if (k < whole * places) {
    const int64_t stage = k / kPieces;
    return {stage % places, stage / places * kPieces + k % kPieces};
  }
  const int64_t after = k - whole * places;
  return rest > 0 ? PlaceAndPiece{after / rest, whole + after % rest} : PlaceAndPiece{places, 0};
}

// A thread packs a piece.
template <class S>
__global__ void __launch_bounds__(kThreads) pack_tensor_weights(const PackTensorArgs<S> args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, rows = args.size.rows();
  const int64_t row = i / kPieces % rows, stage_of_tile = i / kPieces / rows, tile = stage_of_tile / args.stages;
  const int64_t stage = stage_of_tile - tile * args.stages, places = args.kernel[0] * args.kernel[1];
  if (tile >= args.tiles) return;
  const auto in_stage = int(i % kPieces) ^ int(row % 8);
  const PlaceAndPiece at = place_and_piece(stage * kPieces + in_stage, places, args.pieces);
  const PackedRow packed = packed_row(int(row % kGroupRows));
  const int64_t group = (tile << args.size.group_shift) + row / kGroupRows;
  const bool transposed = args.layout == Layout::transposed, interleaved = args.layout == Layout::interleaved;
  const int64_t width = interleaved ? args.out_channels / 4 : transposed ? args.in_channels : args.out_channels;
  const int64_t in_width = interleaved ? group * kGroupChannels + packed.channel
                                       : group * kGroupRows + packed.run * kGroupChannels + packed.channel;
  const int64_t result = interleaved ? packed.run * width + in_width : in_width;  // channel of the result

  Chunk<S, kPiece<S>> piece = {};
#pragma unroll
  for (int j = 0; j < kPiece<S>; ++j) {
    const int64_t channel = at.piece * kPiece<S> + j;
    if (at.place >= places || channel >= args.channels || in_width >= width) continue;
    const int64_t o = transposed ? channel : result, in = transposed ? result : channel;
    piece.element[j] = args.weight[(o * args.in_channels + in) * places + at.place];
  }
  *reinterpret_cast<Chunk<S, kPiece<S>>*>(args.packed + i * kPiece<S>) = piece;
  if (row != 0 || tile != 0) return;
  const int32_t sign = transposed ? -1 : 1;
  const int64_t h = at.place / args.kernel[1], w = at.place - h * args.kernel[1];
  Tap tap = {int32_t(at.piece * kPiece<S>), sign * int32_t(h * args.dilation[0]), sign * int32_t(w * args.dilation[1]),
             int32_t(at.place)};
  if (at.place >= places) tap = {0, kNowhere, kNowhere, 0};
  args.tap[stage * kPieces + in_stage] = tap;
}

// ------------------------------------------------------------------------------------------------------ channels last
template <class S>
struct ChannelsLastArgs {
  Images<S> images;
  int64_t samples, pixels, channels, pieces;
  S* out;  // [samples, pixels, pieces * kPiece]: times the mask where there is one, zero past the last channel
};

constexpr int kTurnedPixels = 32;  // of a block, 8 pieces each

template <class S>
__global__ void __launch_bounds__(kThreads) channels_last(const ChannelsLastArgs<S> args) {
  const int64_t at = int64_t(blockIdx.x) * kTurnedPixels + threadIdx.x % kTurnedPixels, n = quotient(at, args.pixels);
  const int64_t piece = int64_t(blockIdx.y) * kPieces + threadIdx.x / kTurnedPixels, p = at - n * args.pixels;
  if (n >= args.samples || piece >= args.pieces) return;
  int64_t b = 0;
  const Image<const S> image = image_of(args.images, n, b);
  const int64_t channel = piece * kPiece<S>, left = args.channels - channel;
  Chunk<S, kPiece<S>> value = {};
  if (image.data) {
#pragma unroll
    for (int j = 0; j < kPiece<S>; ++j) {
      if (j < left) value.element[j] = *image.at(channel + j, p).data;
    }
    if (args.images.mask) {
      const S* mask = args.images.mask + b * args.images.mask_image + channel * args.pixels + p;
#pragma unroll
      for (int j = 0; j < kPiece<S>; ++j) {
        if (j < left) value.element[j] = narrow<S>(widen(value.element[j]) * widen(mask[j * args.pixels]));
      }
    }
  }
  *reinterpret_cast<Chunk<S, kPiece<S>>*>(args.out + (at * args.pieces + piece) * kPiece<S>) = value;
}

// ---------------------------------------------------------------------------------------------------- a plain ending
template <class S>
struct TensorConvolutionArgs {
  TensorTileArgs<S> tile;
  int64_t channels;           // of the result
  bool whole;                 // accesses of whole packs are possible
  const S *bias, *mask;       // [channels], [samples, channels, P]; null: none
  Frames<const float> carry;  // [samples, channels, P]; null: none
  Frames<S> out;              // sample n is batch element n % batch at time n / batch
  int64_t batch;
};

// out = (convolution + bias) mask + carry
template <class S>
__global__ void __launch_bounds__(kThreads, 2) tensor_correlate(const TensorConvolutionArgs<S> args) {
  if (!device::has_tensor_cores()) return;
  FUSECELL_SHARED(TensorPlaces<S>, places, 1);
  FUSECELL_DYNAMIC_SHARED(stages);
  const ParkedSums sums = tensor_tile(args.tile, places, stages);
  for_tensor_channels(args.tile, sums, args.channels, args.whole,
                      [&](int64_t n, int64_t p, int64_t channel, const Span& span, const float (&sum)[kTensorPack]) {
                        float value[kTensorPack], bias[kTensorPack], mask[kTensorPack], carry[kTensorPack];
                        const int64_t pixels = args.tile.pixels;
                        load_or_zero(shifted(args.bias, channel), span, bias);
                        if (args.mask)
                          load(args.mask + (n * args.channels + channel) * pixels + p, {span.count, false, pixels},
                               mask);
                        load_or_zero(run_at<Along::channels>(args.carry.image(n), channel, p), span, carry);
#pragma unroll
                        for (int j = 0; j < kTensorPack; ++j) {
                          value[j] = sum[j] + bias[j];
                          if (args.mask) value[j] *= mask[j];
                          if (args.carry.data) value[j] += carry[j];
                        }
                        const int64_t slot = quotient(n, args.batch);
                        const Image<S> image = args.out.at_time(slot).image(n - slot * args.batch);
                        store_if(run_at<Along::channels>(image, channel, p), span, value);
                      });
}

}  // namespace fusecell::cuda
