// The ConvLSTM sequence forward: one launch a step.

#include "cuda/tensor_conv_lstm.h"

namespace fusecell::cuda {
namespace {

template <class S>
struct ForwardPlan {
  PackedWeights<S> input, state;

  ForwardPlan(const ConvLstmShape& shape, Arena& arena)
      : input(shape.input, Layout::interleaved, arena), state(shape.recurrent, Layout::interleaved, arena) {}
};

template <class S>
void forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  using A = Accumulate<S>;
  const Context context("conv_lstm_forward", launch);
  Arena arena(launch.scratch);
  const ForwardPlan<S> plan(shape, arena);
  const Sequence<S> sequence(args, shape);
  plan.input.pack(context, args.weight_ih.as<const S>());
  plan.state.pack(context, args.weight_hh.as<const S>());
  if (shape.steps == 0) {
    pass_through(context, shape, args.h_0.frames<const S>(), args.h_n.frames<S>());
    pass_through(context, shape, args.c_0.frames<const A>(), args.c_n.frames<A>());
  }
  for (int64_t s = 0; s < shape.steps; ++s) {
    ForwardStepArgs<S> step = {sequence.convolutions(s, plan.input, plan.state), sequence.forward_step(s)};
    sequence.keep(step.step);
    run_forward_step(context, is_default_cell(shape.cell), plan.input.grid(shape.batch), step);
  }
}

}  // namespace

template <class S>
void run_forward_step(const Context& context, bool default_cell, dim3 grid, const ForwardStepArgs<S>& step) {
  using A = Accumulate<S>;
  context.run("forward_step", default_cell ? forward_step<S, SigmoidTanh<A>> : forward_step<S, AnyActivation<A>>, grid,
              step);
}

#define FUSECELL_INSTANTIATE(S) template void run_forward_step(const Context&, bool, dim3, const ForwardStepArgs<S>&);
FUSECELL_FOR_EACH_STORAGE(FUSECELL_INSTANTIATE)

}  // namespace fusecell::cuda

namespace fusecell::backend {

int64_t conv_lstm_forward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape, int /*workers*/) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_forward_scratch(args, shape);
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::ForwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  if (shape.batch == 0) return;  // nothing to write, however many steps
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_forward(args, shape, launch);
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::forward<decltype(s)>(args, shape, launch); });
}

}  // namespace fusecell::backend
