// The ConvLSTM sequence forward: the steps of conv_lstm_step.h in order.

#include <algorithm>
#include <vector>

#include "base/dtype.h"
#include "cpu/conv_lstm_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

template <class S>
void forward(const ConvLstmForward& args, const ConvLstmShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  StepForward<S> engine(shape, arena, workers);
  engine.prepare(args.weight_ih.as<const S>(), args.weight_hh.as<const S>());
  const Cell<S> cell = cell_of<S>(args, shape);
  const Timeline timeline(args, shape);
  const int64_t sample = shape.channels * shape.pixels(), size = shape.state_size();
  const int64_t x_size = shape.batch * shape.input.in_channels * shape.input.in_pixels();

  // The outputs h_n and c_n carry the running state; a step reads h' from its packed copy, c' at the pixel it writes.
  S *h = args.h_n.as<S>(), *c = args.c_n.as<S>();
  copy_or_zero(args.h_0, size, h);
  copy_or_zero(args.c_0, size, c);
  for (int64_t s = 0; s < shape.steps; ++s) {
    const int64_t t = timeline.time(s);
    ForwardStep<S> step{};
    step.x = at_or_null<const S>(args.x, t * x_size);
    step.active = timeline.active(s);
    step.zoneout_mask_h = at_or_null<const uint8_t>(args.zoneout_mask_h, t * size);
    step.zoneout_mask_c = at_or_null<const uint8_t>(args.zoneout_mask_c, t * size);
    step.h_out = h;
    step.c_out = c;
    step.y = at_or_null<S>(args.y, t * size);
    step.c_saved = at_or_null<S>(args.c, t * size);
    step.gates = at_or_null<S>(args.gates, t * (4 * size));
    for (int64_t b = 0; b < shape.batch; ++b) {
      step.h_before.push_back(h + b * sample);
      step.c_before.push_back(c + b * sample);
      if (step.active[static_cast<size_t>(b)]) continue;
      std::fill_n(step.y + b * sample, sample, S(0));
      if (step.c_saved) std::copy_n(c + b * sample, sample, step.c_saved + b * sample);
      if (step.gates) std::fill_n(step.gates + 4 * b * sample, 4 * sample, S(0));
    }
    engine.pack_inputs(step, args.dropout_mask.as<const S>());
    engine.run(cell, step);
  }
}

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t conv_lstm_forward_scratch(const ConvLstmForward& /*args*/, const ConvLstmShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::StepForward<decltype(s)>(shape, arena, workers);
    return arena.bytes();
  });
}

void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  if (shape.batch == 0) return;  // nothing to write, however many steps
  with_scalar(shape.dtype, [&](auto s) { cpu::forward<decltype(s)>(args, shape, launch.scratch, launch.workers); });
}

}  // namespace fusecell::backend
