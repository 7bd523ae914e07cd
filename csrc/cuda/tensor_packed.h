#pragma once
// The host's side of convolutions on tensor cores: packed weights and images with channels last in scratch memory.

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/arena.h"
#include "cuda/launch.h"
#include "cuda/packed.h"
#include "cuda/tensor_choice.h"
#include "cuda/tensor_convolution.cuh"
#include "problem/tiling.h"

namespace fusecell::cuda {

template <class F>
auto with_tensor_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float16:
      return f(float16{});
    case DType::bfloat16:
      return f(bfloat16{});
    default:
      return f(float{});
  }
}

// Defined in tensor_convolution.cu.
template <class S>
void run_pack_tensor_weights(const Context& context, const PackTensorArgs<S>& args);
template <class S>
void run_channels_last(const Context& context, const ChannelsLastArgs<S>& args);
template <class S>
void run_tensor_correlate(const Context& context, dim3 grid, int shared_bytes, const TensorConvolutionArgs<S>& args);

// ------------------------------------------------------------------------------------------------------------ images
template <class S>
int64_t pieces_of(int64_t channels) {
  return ceil_div(channels, kPiece<S>);
}

// Whether the copies of a convolution can read frames in place.
template <class S>
bool in_pieces(const Frames<const S>& frames, int64_t channels) {
  const auto whole = [](int64_t elements) { return elements % kPiece<S> == 0; };
  const Strides& by = frames.by;
  return !frames.data || (reinterpret_cast<uintptr_t>(frames.data) % 16 == 0 && (by.channel == 1 || channels == 1) &&
                          whole(channels) && whole(by.time) && whole(by.batch) && whole(by.pixel));
}

// [T, B, C, P] with channels last, padded to whole pieces.
template <class S>
Frames<S> frames_in_pieces(S* data, int64_t batch, int64_t channels, int64_t pixels) {
  const int64_t pixel = pieces_of<S>(channels) * kPiece<S>;
  return {data, {batch * pixels * pixel, pixels * pixel, 1, pixel}};
}

// The same without padding.
template <class S>
Frames<S> frames_channels_last(S* data, int64_t batch, int64_t channels, int64_t pixels) {
  return {data, {batch * pixels * channels, pixels * channels, 1, channels}};
}

// What a convolution reads, in scratch memory where it cannot be read in place.
template <class S>
class ReadableImages {
 public:
  ReadableImages(bool in_place, int64_t steps, int64_t batch, int64_t channels, int64_t pixels, Arena& arena)
      : in_place_(in_place), batch_(batch), channels_(channels), pixels_(pixels) {
    const int64_t padded = pieces_of<S>(channels) * kPiece<S>;
    constexpr int64_t kMostChannels = kMostGridRows * kPieces * kPiece<S>;
    if (channels > kMostChannels) {
      value_error("x", "at most " + std::to_string(kMostChannels) + " channels on tensor cores",
                  std::to_string(channels));
    }
    turned_ = in_place ? nullptr : arena.take<S>(checked_product("scratch", {steps, batch, pixels, padded}));
  }

  // `steps` of the images, all of which take place afterwards.
  Images<S> turn(const Context& context, const Images<S>& images, int64_t steps) const {
    if (in_place_) return images;
    ChannelsLastArgs<S> args{};
    args.images = images;
    args.samples = steps * batch_;
    args.pixels = pixels_;
    args.channels = channels_;
    args.pieces = pieces_of<S>(channels_);
    args.out = turned_;
    run_channels_last(context, args);
    Images<S> turned{};
    turned.frames = to_read(frames_in_pieces(turned_, batch_, channels_, pixels_));
    turned.batch = batch_;
    turned.steps = steps;
    return turned;
  }

 private:
  bool in_place_;
  int64_t batch_, channels_, pixels_;
  S* turned_;
};

// Those of one step, of several.
template <class S>
Images<S> at_step(Images<S> images, int64_t step) {
  images.frames = images.frames.at_time(step);
  images.time += step;
  return images;
}

// ----------------------------------------------------------------------------------------------------------- weights
template <class S>
class TensorWeights {
 public:
  // samples: of the largest product with them.
  TensorWeights(const ConvolutionShape& conv, Layout layout, int64_t samples, Arena& arena)
      : conv_(conv), layout_(layout) {
    const bool transposed = layout == Layout::transposed, interleaved = layout == Layout::interleaved;
    channels_ = transposed ? conv.out_channels : conv.in_channels;
    results_ = transposed ? conv.in_channels : conv.out_channels;
    const int64_t groups = interleaved ? ceil_div(results_ / 4, kGroupChannels) : ceil_div(results_, kGroupRows);
    size_ = tile_size(groups, checked_product("x", {samples, pixels()}));
    tiles_ = ceil_div(groups, int64_t(1) << size_.group_shift);
    stages_ = ceil_div(pieces_of<S>(channels_) * conv.taps(), kPieces);
    const int64_t pieces = checked_product("scratch", {tiles_, stages_, size_.rows(), kPieces});
    packed_ = arena.take<S>(pieces * kPiece<S>);
    tap_ = arena.take<Tap>(stages_ * kPieces);
    expect_extents(conv);
  }

  void pack(const Context& context, const S* weight) const {
    PackTensorArgs<S> args{};
    args.weight = weight;
    args.layout = layout_;
    args.out_channels = conv_.out_channels;
    args.in_channels = conv_.in_channels;
    for (int axis = 0; axis < 2; ++axis) {
      args.kernel[axis] = conv_.kernel[axis];
      args.dilation[axis] = conv_.dilation[axis];
    }
    args.channels = channels_;
    args.pieces = pieces_of<S>(channels_);
    args.tiles = tiles_;
    args.stages = stages_;
    args.size = size_;
    args.packed = packed_;
    args.tap = tap_;
    run_pack_tensor_weights(context, args);
  }

  TensorOperand<S> operand(const Images<S>& images) const {
    return {images, convolution_geometry(conv_, layout_), tap_, packed_, int(stages_), false};
  }

  // Without an operand.
  TensorTileArgs<S> tile(const Context& context, int64_t samples) const {
    TensorTileArgs<S> args{};
    const Architecture gpu = {context.attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), context.on_hopper()};
    args.size = size_;
    args.buffers = tensor_buffers(size_, gpu);
    args.warpgroups = by_warpgroups(size_, sizeof(S), gpu);
    args.samples = samples;
    args.pixels = pixels();
    return args;
  }
  static int shared_bytes(const TensorTileArgs<S>& tile) { return tensor_shared_bytes(tile.size, tile.buffers); }

  dim3 grid(int64_t samples) const {
    const int64_t tiles = ceil_div(checked_product("x", {samples, pixels()}), size_.pixels());
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(tiles_));
  }

  // A convolution with a plain ending; the caller sets bias, mask, carry, out and batch.
  void run(const Context& context, const Images<S>& images, int64_t samples, TensorConvolutionArgs<S> args) const {
    args.tile = tile(context, samples);
    args.tile.operand[0] = operand(images);
    args.channels = results_;
    args.whole = results_ % kTensorPack == 0 && aligned(args.out, Along::channels) &&
                 aligned(args.carry, Along::channels) && all_aligned(0, args.bias);
    run_tensor_correlate(context, grid(samples), shared_bytes(args.tile), args);
  }

  // Of the result.
  int64_t pixels() const { return layout_ == Layout::transposed ? conv_.in_pixels() : conv_.out_pixels(); }
  const Tap* taps() const { return tap_; }
  int64_t pieces() const { return stages_ * kPieces; }

 private:
  ConvolutionShape conv_;
  Layout layout_;
  int64_t channels_, results_, tiles_, stages_;
  TileSize size_;
  S* packed_;
  Tap* tap_;
};

}  // namespace fusecell::cuda
