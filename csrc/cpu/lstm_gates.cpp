// The pointwise tier alone: (z, c') -> (h, c) and its adjoint.

#include "base/dtype.h"
#include "cpu/cell_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

template <class S>
Cell<S> cell_of(const LstmGatesForward& args, const LstmGatesShape& shape) {
  return Cell<S>(args.options, shape.cell, shape.channels, shape.pixels, args.bias, args.peephole, args.zoneout_mask_h,
                 args.zoneout_mask_c);
}

template <class S>
void forward(const LstmGatesForward& args, const LstmGatesShape& shape, int workers) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const Cell<S> cell = cell_of<S>(args, shape);
  constexpr int64_t kBlock = CellTasks::kBlock;
  const int64_t C = shape.channels, P = shape.pixels, blocks = (P + kBlock - 1) / kBlock;
  parallel_for(shape.batch * C * blocks, workers, work::gates(shape.batch * C * P), [&](int64_t task, int) {
    const int64_t plane = task / blocks, b = plane / C, channel = plane % C, first = task % blocks * kBlock;
    const int64_t end = std::min(first + kBlock, P);
    for (int64_t p = first; p < end; p += kCellRun) {
      const int64_t at = plane * P + p;
      CellForwardRun<S> run{};
      cell.point(run, channel, p, std::min(kCellRun, end - p), {args.c.as<const S>() + at},
                 {at_or_null<const S>(args.h, at)}, at_or_null<const uint8_t>(args.zoneout_mask_h, at),
                 at_or_null<const uint8_t>(args.zoneout_mask_c, at));
      cell.point_bias(run, channel, p);
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t at_gate = (b * 4 * C + k * C + channel) * P + p;
        run.z[k] = args.z.as<const S>() + at_gate;
        run.gates[k] = at_or_null<S>(args.gates, at_gate);
      }
      run.h_out = args.h_out.as<S>() + at;
      run.c_out = args.c_out.as<S>() + at;
      kernels.cell_forward(run);
    }
  });
}

template <class S>
CellGradients<S> gradients_of(const LstmGatesBackward& args, const LstmGatesShape& shape, Arena& arena) {
  return CellGradients<S>(cell_of<S>(args, shape), shape.batch, args.dbias, args.dpeephole, arena);
}

template <class S>
void backward(const LstmGatesBackward& args, const LstmGatesShape& shape, void* scratch, int workers) {
  Arena arena(scratch);
  CellGradients<S> gradients = gradients_of<S>(args, shape, arena);
  const int64_t sample = shape.channels * shape.pixels;
  const auto frames = [&](auto* data) { return contiguous_frames(data, shape.batch, shape.channels, shape.pixels); };
  BackwardStep<S> step{};
  step.gates = args.gates.as<const S>();
  step.zoneout_mask_h = args.zoneout_mask_h.as<const uint8_t>();
  step.zoneout_mask_c = args.zoneout_mask_c.as<const uint8_t>();
  step.apart = true;
  step.dh_from = frames(args.dh.as<const S>());
  step.dc_from = frames(args.dc.as<const S>());
  step.dh = frames(args.dh_before.as<S>());
  step.dc = frames(args.dc_before.as<S>());
  step.dz = args.dz.as<S>();
  step.active.assign(static_cast<size_t>(shape.batch), 1);
  for (int64_t b = 0; b < shape.batch; ++b) step.c_before.push_back({args.c.as<const S>() + b * sample, shape.pixels});
  gradients.clear();
  gradients.step(cpu::kernels().get<S>(), step, workers);
  gradients.finish();
}

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t lstm_gates_forward_scratch(const LstmGatesForward& /*args*/, const LstmGatesShape& /*shape*/, int /*workers*/) {
  return 0;
}

int64_t lstm_gates_backward_scratch(const LstmGatesForward& /*args*/, const LstmGatesShape& shape, int /*workers*/) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::gradients_of<decltype(s)>(LstmGatesBackward{}, shape, arena);
    return arena.bytes();
  });
}

void lstm_gates_forward(const LstmGatesForward& args, const LstmGatesShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { cpu::forward<decltype(s)>(args, shape, launch.workers); });
}

void lstm_gates_backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { cpu::backward<decltype(s)>(args, shape, launch.scratch, launch.workers); });
}

}  // namespace fusecell::backend
