// A convolution with its bias, forward and backward: the layers around a ConvLSTM need one, and it is the same engine.

#include <vector>

#include "base/dtype.h"
#include "cpu/convolution.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

template <class S>
struct ForwardPlan {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  Packing in;
  Blocks blocks;
  int64_t count;
  int64_t* offset;
  S *weights, *packed, *z;

  ForwardPlan(const Conv2dShape& shape, Arena& arena, int workers) {
    const ConvolutionShape& conv = shape.conv;
    in = input_packing(conv, common_pitch({&conv}));
    blocks = {shape.batch, conv.out_channels, 0, conv.out[0], conv.out[1], in.pitch};
    count = conv.in_channels * conv.taps();
    offset = arena.take<int64_t>(count);
    weights = arena.take<S>(round_up(conv.out_channels, kernels.mr) * count);
    packed = arena.take<S>(checked_product("scratch", {shape.batch, in.image()}));
    z = arena.take<S>(blocks.z_size() * workers);
  }
};

template <class S>
struct BackwardPlan {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  Packing in, gradient;
  InputGradient<S> input_gradient;
  int64_t* offset;
  S *packed, *dz, *z;

  BackwardPlan(const Conv2dShape& shape, Arena& arena, int workers)
      : in(input_packing(shape.conv, common_pitch({&shape.conv}))),
        gradient(gradient_packing({&shape.conv}, in.pitch)),
        input_gradient(shape.conv, gradient) {
    offset = arena.take<int64_t>(shape.conv.in_channels * shape.conv.taps());
    input_gradient.take(arena, kernels.mr);
    packed = arena.take<S>(checked_product("scratch", {shape.batch, in.image()}));
    dz = arena.take<S>(checked_product("scratch", {shape.batch, gradient.image()}));
    z = arena.take<S>(input_gradient.z_size() * workers);
  }
};

template <class S>
void forward(const Conv2dForward& args, const Conv2dShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  const ForwardPlan<S> plan(shape, arena, workers);
  const ConvolutionShape& conv = shape.conv;
  const S *x = args.x.as<const S>(), *weight = args.weight.as<const S>(), *bias = args.bias.as<const S>();
  fill_input_offsets(conv, plan.in, plan.offset);
  pack_weights(
      conv.out_channels, plan.count, plan.kernels.mr, 0, plan.count, workers,
      [&](int64_t row) { return weight + row * plan.count; }, [](int64_t k) { return k; }, plan.weights);
  const std::vector<uint8_t> active(static_cast<size_t>(shape.batch), 1);
  const auto frames = contiguous_frames(x, shape.batch, conv.in_channels, conv.in_pixels());
  pack<S>(plan.in, active, [&](int64_t b) { return frames.image(b); }, nullptr, workers, plan.packed);
  parallel_for(plan.blocks.tasks(), workers, [&](int64_t task, int worker) {
    const Block block = block_of_task(plan.blocks, task);
    S* z = plan.z + worker * plan.blocks.z_size();
    const Source<S> source = {plan.packed + block.b * plan.in.image(), plan.offset, plan.count};
    plan.kernels.correlate(tile_of_block(block, plan.in.pitch, source, {}, plan.weights, z));
    for (int64_t m = block.m0; m < block.m1; ++m) {
      const S b = bias ? bias[m] : S(0);
      const S* from = z + (m - block.m0) * block.pixels();
      S* to = args.y.as<S>() + (block.b * conv.out_channels + m) * conv.out_pixels() + block.row0 * conv.out[1] +
              block.column0;
      for (int64_t p = 0; p < block.pixels(); ++p) to[p] = from[p] + b;
    }
  });
}

template <class S>
void backward(const Conv2dBackward& args, const Conv2dShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  BackwardPlan<S> plan(shape, arena, workers);
  const ConvolutionShape& conv = shape.conv;
  const auto x = contiguous_frames(args.x.as<const S>(), shape.batch, conv.in_channels, conv.in_pixels());
  const auto dy = contiguous_frames(args.dy.as<const S>(), shape.batch, conv.out_channels, conv.out_pixels());
  const auto dx = contiguous_frames(args.dx.as<S>(), shape.batch, conv.in_channels, conv.in_pixels());
  const std::vector<uint8_t> active(static_cast<size_t>(shape.batch), 1);
  if (args.dx.present || args.dweight.present) {
    pack<S>(plan.gradient, active, [&](int64_t b) { return dy.image(b); }, nullptr, workers, plan.dz);
  }
  if (args.dx.present) {
    plan.input_gradient.prepare(args.weight.as<const S>(), plan.kernels.mr, workers);
    plan.input_gradient.run(plan.kernels, plan.dz, active, nullptr, false, workers, plan.z,
                            plan.input_gradient.z_size(), dx);
  }
  if (args.dweight.present) {
    fill_input_offsets(conv, plan.in, plan.offset);
    pack<S>(plan.in, active, [&](int64_t b) { return x.image(b); }, nullptr, workers, plan.packed);
    S* dweight = args.dweight.as<S>();
    std::fill(dweight, dweight + args.dweight.size(), S(0));
    add_weight_gradient(plan.kernels, conv, plan.in, plan.packed, plan.offset, plan.gradient, plan.dz, active, workers,
                        dweight);
  }
  if (args.dbias.present) {
    parallel_for(conv.out_channels, workers, [&](int64_t channel, int) {
      double sum = 0;
      for (int64_t b = 0; b < shape.batch; ++b) {
        sum += plan.kernels.sum(conv.out_pixels(), dy.image(b).at(channel, 0).data);
      }
      args.dbias.as<S>()[channel] = static_cast<S>(sum);
    });
  }
}

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t conv2d_forward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::ForwardPlan<decltype(s)>(shape, arena, workers);
    return arena.bytes();
  });
}

int64_t conv2d_backward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::BackwardPlan<decltype(s)>(shape, arena, workers);
    return arena.bytes();
  });
}

void conv2d_forward(const Conv2dForward& args, const Conv2dShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { cpu::forward<decltype(s)>(args, shape, launch.scratch, launch.workers); });
}

void conv2d_backward(const Conv2dBackward& args, const Conv2dShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { cpu::backward<decltype(s)>(args, shape, launch.scratch, launch.workers); });
}

}  // namespace fusecell::backend
