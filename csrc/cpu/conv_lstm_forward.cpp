// The ConvLSTM sequence forward: the steps of conv_lstm_step.h in order.

#include <algorithm>
#include <vector>

#include "base/dtype.h"
#include "cpu/conv_lstm_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

template <class S>
struct ForwardPlan {
  StepForward<S> engine;
  S *h, *c;  // for the running state, [B, C, H, W] each

  ForwardPlan(const ConvLstmShape& shape, Arena& arena, int workers)
      : engine(shape, arena, workers), h(arena.take<S>(shape.state_size())), c(arena.take<S>(shape.state_size())) {}
};

template <class S>
void forward(const ConvLstmForward& args, const ConvLstmShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  ForwardPlan<S> plan(shape, arena, workers);
  plan.engine.prepare(args.weight_ih.as<const S>(), args.weight_hh.as<const S>());
  const Cell<S> cell = cell_of<S>(args, shape);
  const Timeline timeline(args, shape);
  const int64_t sample = shape.channels * shape.pixels(), size = shape.state_size();
  const Frames<const S> x = args.x.frames<const S>();
  const Frames<S> y = args.y.frames<S>(), c_saved = args.c.frames<S>();

  // In place: a step reads h' from its packed copy, c' at the pixel it writes.
  const Frames<S> h_n = args.h_n.frames<S>(), h = running(shape, h_n, plan.h);
  const Frames<S> c_n = args.c_n.frames<S>(), c = running(shape, c_n, plan.c);
  copy_state(shape, args.h_0.frames<const S>(), workers, h);
  copy_state(shape, args.c_0.frames<const S>(), workers, c);
  for (int64_t s = 0; s < shape.steps; ++s) {
    const int64_t t = timeline.time(s);
    ForwardStep<S> step{};
    step.x = x.at_time(t);
    step.y = y.at_time(t);
    step.active = timeline.active(s);
    step.zoneout_mask_h = at_or_null<const uint8_t>(args.zoneout_mask_h, t * size);
    step.zoneout_mask_c = at_or_null<const uint8_t>(args.zoneout_mask_c, t * size);
    step.h_out = h;
    step.c_out = c;
    step.c_saved = at_or_null<S>(args.c, t * size);
    step.gates = at_or_null<S>(args.gates, t * (4 * size));
    for (int64_t b = 0; b < shape.batch; ++b) {
      step.h_before.push_back(to_read(h).image(b));
      step.c_before.push_back(to_read(c).image(b));
      if (step.active[static_cast<size_t>(b)]) continue;
      copy_image<S>(shape.channels, shape.pixels(), {}, step.y.image(b));
      if (step.c_saved) copy_image(shape.channels, shape.pixels(), to_read(c).image(b), c_saved.at_time(t).image(b));
      if (step.gates) std::fill_n(step.gates + 4 * b * sample, 4 * sample, S(0));
    }
    plan.engine.pack_inputs(step, args.dropout_mask.as<const S>());
    plan.engine.run(cell, step);
  }
  finish(shape, h, workers, h_n);
  finish(shape, c, workers, c_n);
}

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t conv_lstm_forward_scratch(const ConvLstmForward& /*args*/, const ConvLstmShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::ForwardPlan<decltype(s)>(shape, arena, workers);
    return arena.bytes();
  });
}

void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  if (shape.batch == 0) return;  // nothing to write, however many steps
  with_scalar(shape.dtype, [&](auto s) { cpu::forward<decltype(s)>(args, shape, launch.scratch, launch.workers); });
}

}  // namespace fusecell::backend
