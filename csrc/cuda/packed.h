#pragma once
// The host's side of the convolutions: packed weights in scratch memory, and the gradients that are summed in parts.

#include <algorithm>
#include <cstdint>

#include "base/arena.h"
#include "cuda/convolution.cuh"
#include "cuda/launch.h"
#include "cuda/weight_gradient.cuh"
#include "problem/tiling.h"

namespace fusecell::cuda {

inline int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// Kernels count rows, columns and pixels of an image in 32 bits.
inline void expect_extents(const ConvolutionShape& conv) {
  constexpr int64_t kLargest = int64_t(1) << 29;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t reach = conv.dilation[axis] * conv.kernel[axis];
    const int64_t most = std::max({conv.in[axis], conv.out[axis] * conv.stride[axis], reach});
    if (most > kLargest) value_error("x", "extents up to 2^29 on a GPU", std::to_string(most));
  }
  const int64_t pixels = std::max(conv.in_pixels(), conv.out_pixels());
  if (pixels > INT32_MAX) value_error("x", "images of less than 2^31 pixels on a GPU", std::to_string(pixels));
  const int64_t taps = std::max(conv.in_channels, conv.out_channels) * conv.taps();
  if (taps > kLargest) value_error("weight", "at most 2^29 taps on a GPU", std::to_string(taps));
  if (conv.out_channels > kMostGridRows) {
    value_error("weight", "at most 65535 rows on a GPU", std::to_string(conv.out_channels));
  }
}

// ------------------------------------------------------------------------------------- each kernel's one launch
// Defined in convolution.cu and weight_gradient.cu, so that a kernel is compiled once.
template <class S>
void run_pack_weights(const Context& context, const PackArgs<S>& args);
template <class S>
void run_correlate(const Context& context, dim3 grid, const ConvolutionArgs<S>& args);
template <class S>
void run_weight_gradient(const Context& context, dim3 grid, const WeightGradientArgs<S>& args);
template <class S>
void run_parameter_gradient(const Context& context, dim3 grid, const ParameterGradientArgs<S>& args);
template <class T>
void run_reduce_parts(const Context& context, const ReduceArgs<T>& args);

// Samples that all take place, C-contiguous.
template <class T>
Images<T> plain_images(const T* data, int64_t channels, int64_t pixels, int64_t samples) {
  Images<T> images{};
  images.frames = contiguous_frames(data, samples, channels, pixels);
  images.batch = std::max<int64_t>(samples, 1);
  images.steps = 1;
  return images;
}

// How a convolution, or its transpose, meets its source.
inline Geometry convolution_geometry(const ConvolutionShape& conv, Layout layout) {
  const bool transposed = layout == Layout::transposed;
  Geometry g{};
  for (int axis = 0; axis < 2; ++axis) {
    const auto stride = static_cast<int32_t>(conv.stride[axis]), low = static_cast<int32_t>(conv.pad_low[axis]);
    g.extent[axis] = static_cast<int32_t>(transposed ? conv.out[axis] : conv.in[axis]);
    g.step[axis] = transposed ? 1 : stride;
    g.low[axis] = transposed ? -low : low;
    g.divide[axis] = transposed ? stride : 1;
  }
  g.columns = static_cast<int32_t>(transposed ? conv.in[1] : conv.out[1]);
  return g;
}

template <class S>
class PackedWeights {
 public:
  PackedWeights(const ConvolutionShape& conv, Layout layout, Arena& arena) : conv_(conv), layout_(layout) {
    const bool transposed = layout == Layout::transposed;
    rows_ = transposed ? conv.in_channels : conv.out_channels;
    taps_ = (transposed ? conv.out_channels : conv.in_channels) * conv.taps();
    group_shift_ = tile_group_shift(rows_);
    padded_rows_ = round_up(rows_, kRowsPerThread << group_shift_);
    padded_taps_ = round_up(taps_, kDepth);
    packed_ = arena.take<S>(checked_product("scratch", {padded_taps_, padded_rows_}));
    tap_ = arena.take<Tap>(padded_taps_);
    expect_extents(conv);
  }

  void pack(const Context& context, const S* weight) const {
    PackArgs<S> args{};
    args.weight = weight;
    args.layout = layout_;
    args.out_channels = conv_.out_channels;
    args.in_channels = conv_.in_channels;
    for (int axis = 0; axis < 2; ++axis) {
      args.kernel[axis] = conv_.kernel[axis];
      args.dilation[axis] = conv_.dilation[axis];
    }
    args.taps = taps_;
    args.rows = rows_;
    args.padded_taps = padded_taps_;
    args.padded_rows = padded_rows_;
    args.packed = packed_;
    args.tap = tap_;
    run_pack_weights(context, args);
  }

  Operand<S> operand(const Images<S>& images) const { return {images, geometry(), tap_, packed_, int(padded_taps_)}; }

  Geometry geometry() const { return convolution_geometry(conv_, layout_); }

  CorrelateArgs<S> correlate_args(int64_t samples) const {
    CorrelateArgs<S> args{};
    args.rows = padded_rows_;
    args.group_shift = group_shift_;
    args.samples = samples;
    args.pixels = pixels();
    return args;
  }

  // Of the result.
  int64_t pixels() const { return layout_ == Layout::transposed ? conv_.in_pixels() : conv_.out_pixels(); }

  dim3 grid(int64_t samples) const {
    const int64_t tiles =
        ceil_div(checked_product("x", {samples, pixels()}), int64_t(1) << (kWidthShift<S> - group_shift_));
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(padded_rows_ / (kRowsPerThread << group_shift_)));
  }

  // A convolution with a plain ending; the caller sets bias, mask, carry, out and batch.
  void run(const Context& context, const Images<S>& images, int64_t samples, ConvolutionArgs<S> args) const {
    args.correlate = correlate_args(samples);
    args.correlate.operand[0] = operand(images);
    args.rows = rows_;
    args.whole = all_aligned(pixels() * int64_t(sizeof(S)), args.mask, args.carry) && aligned(args.out);
    run_correlate(context, grid(samples), args);
  }

  const Tap* taps() const { return tap_; }
  int64_t taps_count() const { return taps_; }

 private:
  ConvolutionShape conv_;
  Layout layout_;
  int64_t rows_, taps_, padded_rows_, padded_taps_;
  int group_shift_;
  S* packed_;
  Tap* tap_;
};

// A gradient that is summed in parts, over one chunk of samples or several.
template <class T>
class PartedGradient {
 public:
  PartedGradient(int64_t most_parts, int64_t n, bool several_chunks, Arena& arena) : n_(n) {
    partial_ = arena.take<T>(checked_product("scratch", {most_parts, n}));
    running_ = several_chunks ? arena.take<T>(n) : nullptr;
  }

  T* partial() const { return partial_; }

  // Adds the parts of a chunk; the last chunk writes `out`.
  void add(const Context& context, int64_t parts, bool first, bool last, const Tensor& out) const {
    const ReduceArgs<T> args = {partial_, parts, n_, n_, running_, first, last, out.data, stored_as(out.dtype)};
    run_reduce_parts(context, args);
  }

 private:
  int64_t n_;
  T *partial_, *running_;
};

template <class S>
void weight_gradient_parts(const Context& context, const PackedWeights<S>& weights, const Images<S>& images,
                           const S* dz, int64_t rows, int64_t samples, int64_t pixels, const Parts& parts,
                           Accumulate<S>* partial) {
  const int64_t count = weights.taps_count();
  const WeightGradientArgs<S> args = {images, weights.geometry(), weights.taps(), dz, rows, count, samples,
                                      pixels, parts.size,         partial};
  const dim3 grid(static_cast<unsigned>(ceil_div(count, kGradientTile)),
                  static_cast<unsigned>(ceil_div(rows, kGradientTile)), static_cast<unsigned>(parts.count));
  run_weight_gradient(context, grid, args);
}

template <class S>
void parameter_gradient_parts(const Context& context, ParameterGradientArgs<S> args, const Parts& parts) {
  args.per_part = parts.size;
  const int64_t blocks = args.per_pixel ? ceil_div(args.pixels, kThreads) : parts.count;
  run_parameter_gradient(context, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(args.rows)), args);
}

}  // namespace fusecell::cuda
