// A convolution with its bias, forward and backward.

#include "cuda/packed.h"
#include "cuda/tensor_conv2d.h"

namespace fusecell::cuda {
namespace {

template <class S>
struct ForwardPlan {
  PackedWeights<S> weights;

  ForwardPlan(const Conv2dShape& shape, Arena& arena) : weights(shape.conv, Layout::rows, arena) {}
};

template <class S>
struct BackwardPlan {
  PackedWeights<S> weights, transposed;
  Parts weight_parts, bias_parts;
  PartedGradient<Accumulate<S>> dweight;
  PartedGradient<double> dbias;

  BackwardPlan(const Conv2dShape& shape, Arena& arena)
      : weights(shape.conv, Layout::rows, arena),
        transposed(shape.conv, Layout::transposed, arena),
        weight_parts(gradient_parts(shape.conv.out_channels, weights.taps_count(), total(shape))),
        bias_parts(channel_parts(total(shape))),
        dweight(weight_parts.count, shape.conv.out_channels * weights.taps_count(), false, arena),
        dbias(bias_parts.count, shape.conv.out_channels, false, arena) {}

  static int64_t total(const Conv2dShape& shape) { return shape.batch * shape.conv.out_pixels(); }
};

template <class S>
void forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch) {
  const Context context("conv2d_forward", launch);
  Arena arena(launch.scratch);
  const ForwardPlan<S> plan(shape, arena);
  plan.weights.pack(context, args.weight.as<const S>());
  ConvolutionArgs<S> ending{};
  ending.bias = args.bias.as<const S>();
  ending.out = contiguous_frames(args.y.as<S>(), shape.batch, shape.conv.out_channels, shape.conv.out_pixels());
  ending.batch = shape.batch;
  const Images<S> x = plain_images(args.x.as<const S>(), shape.conv.in_channels, shape.conv.in_pixels(), shape.batch);
  plan.weights.run(context, x, shape.batch, ending);
}

template <class S>
void backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch) {
  const Context context("conv2d_backward", launch);
  Arena arena(launch.scratch);
  const BackwardPlan<S> plan(shape, arena);
  const int64_t I = shape.conv.in_channels, O = shape.conv.out_channels, pixels = shape.conv.out_pixels();
  const S *weight = args.weight.as<const S>(), *dy = args.dy.as<const S>();
  if (args.dx.present) {
    plan.transposed.pack(context, weight);
    ConvolutionArgs<S> ending{};
    ending.out = contiguous_frames(args.dx.as<S>(), shape.batch, I, shape.conv.in_pixels());
    ending.batch = shape.batch;
    plan.transposed.run(context, plain_images(dy, O, pixels, shape.batch), shape.batch, ending);
  }
  if (args.dweight.present) {
    plan.weights.pack(context, weight);
    const Images<S> x = plain_images(args.x.as<const S>(), I, shape.conv.in_pixels(), shape.batch);
    weight_gradient_parts(context, plan.weights, x, dy, O, shape.batch, pixels, plan.weight_parts,
                          plan.dweight.partial());
    plan.dweight.add(context, plan.weight_parts.count, true, true, args.dweight);
  }
  if (args.dbias.present) {
    ParameterGradientArgs<S> bias{};
    bias.dz = dy;
    bias.dz_rows = bias.rows = O;
    bias.samples = shape.batch;
    bias.pixels = pixels;
    bias.partial = plan.dbias.partial();
    parameter_gradient_parts(context, bias, plan.bias_parts);
    plan.dbias.add(context, plan.bias_parts.count, true, true, args.dbias);
  }
}

}  // namespace
}  // namespace fusecell::cuda

namespace fusecell::backend {

int64_t conv2d_forward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int /*workers*/) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_conv2d_forward_scratch(shape);
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::ForwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

int64_t conv2d_backward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int /*workers*/) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_conv2d_backward_scratch(shape);
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::BackwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

void conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_conv2d_forward(args, shape, launch);
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::forward<decltype(s)>(args, shape, launch); });
}

void conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_conv2d_backward(args, shape, launch);
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::backward<decltype(s)>(args, shape, launch); });
}

}  // namespace fusecell::backend
