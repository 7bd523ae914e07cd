// The ConvLSTM sequence forward: one launch a step.

#include "cuda/conv_lstm.h"

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
  const Frames<S> h_n = args.h_n.frames<S>();
  const Frames<A> c_n = args.c_n.frames<A>();
  const Context context("conv_lstm_forward", launch);
  Arena arena(launch.scratch);
  const ForwardPlan<S> plan(shape, arena);
  const Sequence<S> sequence(args, shape);
  const int64_t size = sequence.size();
  plan.input.pack(context, args.weight_ih.as<const S>());
  plan.state.pack(context, args.weight_hh.as<const S>());
  if (shape.steps == 0) {
    pass_through(context, shape, args.h_0.frames<const S>(), h_n);
    pass_through(context, shape, args.c_0.frames<const A>(), c_n);
  }
  for (int64_t s = 0; s < shape.steps; ++s) {
    ForwardStepArgs<S> step = sequence.forward_step(s, plan.input, plan.state);
    step.y = args.y.frames<S>().at_time(step.time);
    step.h_n = h_n;
    step.c_n = c_n;
    if (args.c.present) step.c = args.c.as<A>() + step.time * size;
    if (args.gates.present) step.gates = args.gates.as<S>() + step.time * 4 * size;
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

int64_t conv_lstm_forward_scratch(const ConvLstmForward& /*args*/, const ConvLstmShape& shape, int /*workers*/) {
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::ForwardPlan<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  if (shape.batch == 0) return;  // nothing to write, however many steps
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::forward<decltype(s)>(args, shape, launch); });
}

}  // namespace fusecell::backend
