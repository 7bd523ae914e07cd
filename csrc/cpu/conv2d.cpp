// A convolution with its bias, forward and backward: the layers around a ConvLSTM need one, and it is the same engine.

#include <algorithm>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "cpu/algorithms.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

constexpr int64_t kGroupBytes = 8 << 20;  // of the input or the output, whichever has more channels

template <class S>
struct Plan {
  int64_t group;  // samples that are computed together
  std::unique_ptr<Convolutions<S>> convolution;

  Plan(const Conv2dShape& shape, const Wanted& wanted, Arena& arena, int workers)
      : group(samples_at_once<S>(shape.conv, shape.batch, std::max(shape.conv.in_channels, shape.conv.out_channels),
                                 kGroupBytes)),
        convolution(make_convolutions<S>({{shape.conv}, group, 1, shape.algorithm}, wanted, arena, workers)) {}

  std::vector<uint8_t> active(int64_t first, int64_t batch) const {
    std::vector<uint8_t> list(static_cast<size_t>(group));
    std::fill_n(list.begin(), std::min(group, batch - first), uint8_t(1));
    return list;
  }
};

// Scratch memory is asked for before it is known which gradients are wanted.
constexpr Wanted kAllGradients = {
    .gradient = true, .weight_gradients = {true, false}, .input_gradients = {true, false}};

inline Wanted wanted_of(const Conv2dBackward& args) {
  return {
      .gradient = true, .weight_gradients = {args.dweight.present, false}, .input_gradients = {args.dx.present, false}};
}

template <class S>
void forward(const Conv2dForward& args, const Conv2dShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  const Plan<S> plan(shape, {.outputs = true}, arena, workers);
  const ConvolutionShape& conv = shape.conv;
  const S* bias = args.bias.as<const S>();
  const auto x = contiguous_frames(args.x.as<const S>(), shape.batch, conv.in_channels, conv.in_pixels());
  const auto y = contiguous_frames(args.y.as<S>(), shape.batch, conv.out_channels, conv.out_pixels());
  plan.convolution->prepare({args.weight.as<const S>(), nullptr}, {nullptr, nullptr});
  for (int64_t first = 0; first < shape.batch; first += plan.group) {
    const std::vector<uint8_t> active = plan.active(first, shape.batch);
    plan.convolution->read(0, active, [&](int64_t b) { return x.image(first + b); }, nullptr);
    plan.convolution->outputs(active, [&](const Block& block, const S* z, int64_t pitch) {
      for (int64_t m = block.m0; m < block.m1; ++m) {
        const S b = bias ? bias[m] : S(0);
        const S* from = z + (m - block.m0) * pitch;
        S* to = y.image(first + block.b).at(m, block.row0 * conv.out[1] + block.column0).data;
        for (int64_t p = 0; p < block.pixels(); ++p) to[p] = from[p] + b;
      }
    });
  }
}

template <class S>
void add_up_bias(const Conv2dBackward& args, const Conv2dShape& shape, const Frames<const S>& dy, int workers) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  parallel_for(shape.conv.out_channels, workers, [&](int64_t channel, int) {
    double sum = 0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      sum += kernels.sum(shape.conv.out_pixels(), dy.image(b).at(channel, 0).data);
    }
    args.dbias.as<S>()[channel] = static_cast<S>(sum);
  });
}

template <class S>
void backward(const Conv2dBackward& args, const Conv2dShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  const Wanted wanted = wanted_of(args);
  const Plan<S> plan(shape, wanted, arena, workers);
  Convolutions<S>& convolution = *plan.convolution;
  const ConvolutionShape& conv = shape.conv;
  const auto x = contiguous_frames(args.x.as<const S>(), shape.batch, conv.in_channels, conv.in_pixels());
  const auto dy = contiguous_frames(args.dy.as<const S>(), shape.batch, conv.out_channels, conv.out_pixels());
  const auto dx = contiguous_frames(args.dx.as<S>(), shape.batch, conv.in_channels, conv.in_pixels());
  convolution.prepare({args.weight.as<const S>(), nullptr}, {args.dweight.as<S>(), nullptr});
  for (int64_t first = 0; first < shape.batch && (args.dx.present || args.dweight.present); first += plan.group) {
    const std::vector<uint8_t> active = plan.active(first, shape.batch);
    pack<S>(
        convolution.gradient_packing(), active, [&](int64_t b) { return dy.image(first + b); }, nullptr, workers,
        convolution.gradient());
    if (args.dweight.present) {
      convolution.read(0, active, [&](int64_t b) { return x.image(first + b); }, nullptr);
      convolution.add_weight_gradients(active);
    }
    convolution.input_gradients(active, {{dx.from_sample(first)}, {}});
  }
  convolution.finish_weight_gradients();
  if (args.dbias.present) add_up_bias(args, shape, dy, workers);
}

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t conv2d_forward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::Plan<decltype(s)>(shape, {.outputs = true}, arena, workers);
    return arena.bytes();
  });
}

int64_t conv2d_backward_scratch(const Conv2dForward& /*args*/, const Conv2dShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::Plan<decltype(s)>(shape, cpu::kAllGradients, arena, workers);
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
