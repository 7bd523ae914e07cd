// A convolution with its bias on tensor cores, forward and backward: what is read is turned to channels last, results
// are written as the caller's arrays lie.

#include "cuda/tensor_conv2d.h"

#include "cuda/tensor_gradient.h"
#include "cuda/tensor_packed.h"

namespace fusecell::cuda {
namespace {

// The batch is one step.
template <class S>
ReadableImages<S> readable(int64_t batch, int64_t channels, int64_t pixels, Arena& arena) {
  return ReadableImages<S>(false, 1, batch, channels, pixels, arena);
}

template <class S>
struct ForwardPlan {
  TensorWeights<S> weights;
  ReadableImages<S> x;

  ForwardPlan(const Conv2dShape& shape, Arena& arena)
      : weights(shape.conv, Layout::rows, shape.batch, arena),
        x(readable<S>(shape.batch, shape.conv.in_channels, shape.conv.in_pixels(), arena)) {}
};

template <class S>
struct BackwardPlan {
  TensorWeights<S> weights, transposed;
  ReadableImages<S> x, dy;
  Parts parts;
  PartedGradient<float> dweight, dbias;

  BackwardPlan(const Conv2dShape& shape, Arena& arena)
      : weights(shape.conv, Layout::rows, shape.batch, arena),
        transposed(shape.conv, Layout::transposed, shape.batch, arena),
        x(readable<S>(shape.batch, shape.conv.in_channels, shape.conv.in_pixels(), arena)),
        dy(readable<S>(shape.batch, shape.conv.out_channels, shape.conv.out_pixels(), arena)),
        parts(tensor_gradient_parts_of<S>(shape.conv.out_channels, weights.pieces(),
                                          shape.batch * shape.conv.out_pixels())),
        dweight(parts.count, values(shape.conv), false, arena),
        dbias(parts.count, shape.conv.out_channels, false, arena) {}

  static int64_t values(const ConvolutionShape& conv) { return conv.out_channels * conv.in_channels * conv.taps(); }
};

template <class S>
void forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch) {
  const Context context("conv2d_forward", launch);
  Arena arena(launch.scratch);
  const ForwardPlan<S> plan(shape, arena);
  const ConvolutionShape& conv = shape.conv;
  plan.weights.pack(context, args.weight.as<const S>());
  TensorConvolutionArgs<S> ending{};
  ending.bias = args.bias.as<const S>();
  ending.out = contiguous_frames(args.y.as<S>(), shape.batch, conv.out_channels, conv.out_pixels());
  ending.batch = shape.batch;
  const Images<S> x = plain_images(args.x.as<const S>(), conv.in_channels, conv.in_pixels(), shape.batch);
  plan.weights.run(context, plan.x.turn(context, x, 1), shape.batch, ending);
}

template <class S>
class Backward {
 public:
  Backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch)
      : args_(args), shape_(shape), context_("conv2d_backward", launch), arena_(launch.scratch), plan_(shape, arena_) {}

  void run() const {
    const S* from = args_.dy.as<const S>();
    const Images<S> dy = plain_images(from, conv().out_channels, conv().out_pixels(), shape_.batch);
    const Images<S> turned = plan_.dy.turn(context_, dy, 1);
    if (args_.dx.present) input_gradient(turned);
    if (args_.dweight.present || args_.dbias.present) parameter_gradients(turned);
  }

 private:
  const ConvolutionShape& conv() const { return shape_.conv; }

  void input_gradient(const Images<S>& dy) const {
    plan_.transposed.pack(context_, args_.weight.as<const S>());
    TensorConvolutionArgs<S> ending{};
    ending.out = contiguous_frames(args_.dx.as<S>(), shape_.batch, conv().in_channels, conv().in_pixels());
    ending.batch = shape_.batch;
    plan_.transposed.run(context_, dy, shape_.batch, ending);
  }

  // The bias's comes with the weights', whether or not that is wanted.
  void parameter_gradients(const Images<S>& dy) const {
    plan_.weights.pack(context_, args_.weight.as<const S>());  // for its taps
    const S* from = args_.x.as<const S>();
    const Images<S> x = plain_images(from, conv().in_channels, conv().in_pixels(), shape_.batch);
    TensorGradientArgs<S> sums{};
    sums.images = plan_.x.turn(context_, x, 1);
    sums.geometry = convolution_geometry(conv(), Layout::rows);
    sums.taps = plan_.weights.taps();
    sums.pieces = int(plan_.weights.pieces());
    sums.dz = dy.frames.data;
    sums.rows = conv().out_channels;
    sums.dz_pitch = dy.frames.by.pixel;
    sums.channels = conv().in_channels;
    sums.kernel = conv().taps();
    sums.samples = shape_.batch;
    sums.pixels = conv().out_pixels();
    sums.partial = plan_.dweight.partial();
    sums.bias_partial = args_.dbias.present ? plan_.dbias.partial() : nullptr;
    tensor_gradient_parts(context_, sums, plan_.parts);
    if (args_.dweight.present) plan_.dweight.add(context_, plan_.parts.count, true, true, args_.dweight);
    if (args_.dbias.present) plan_.dbias.add(context_, plan_.parts.count, true, true, args_.dbias);
  }

  const Conv2dBackward& args_;
  const Conv2dShape& shape_;
  Context context_;
  Arena arena_;
  BackwardPlan<S> plan_;
};

}  // namespace

int64_t tensor_conv2d_forward_scratch(const Conv2dShape& shape) {
  return with_tensor_storage(shape.dtype, [&](auto s) {
    Arena arena;
    ForwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

int64_t tensor_conv2d_backward_scratch(const Conv2dShape& shape) {
  return with_tensor_storage(shape.dtype, [&](auto s) {
    Arena arena;
    BackwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

void tensor_conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch) {
  with_tensor_storage(shape.dtype, [&](auto s) { forward<decltype(s)>(args, shape, launch); });
}

void tensor_conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch) {
  with_tensor_storage(shape.dtype, [&](auto s) { Backward<decltype(s)>(args, shape, launch).run(); });
}

}  // namespace fusecell::cuda
