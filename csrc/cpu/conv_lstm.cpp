// The ConvLSTM sequence on the CPU. Forward: per step, pack x_t and h', then one task per block of pixels convolves
// both into z and runs the gates on it while it is in the cache; z never reaches main memory. Backward: per step, the
// gate adjoint, then the weights' gradients and the two convolutions backwards while dz is in the cache: the chunk of
// steps whose dz is kept is a single one.

#include <algorithm>
#include <vector>

#include "base/dtype.h"
#include "cpu/backend.h"
#include "cpu/cell_step.h"
#include "cpu/convolution.h"

namespace fusecell::cpu {
namespace {

// ----------------------------------------------------------------------------------------------- one step, forward
template <class S>
struct ForwardStep {
  const S* x;                                      // [B, Cin, Hin, Win]
  std::vector<const S*> h_before, c_before;        // [B] of [C, H, W]
  std::vector<uint8_t> active;                     // [B]; what is inactive is not touched
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, H, W] or null
  S *h_out, *c_out, *y, *c_saved, *gates;          // [B, C or 4C, H, W]; each may be null
};

template <class S>
class StepForward {
 public:
  StepForward(const ConvLstmShape& shape, Arena& arena, int workers)
      : shape_(shape),
        kernels_(cpu::kernels().get<S>()),
        pitch_(common_pitch({&shape.input, &shape.recurrent})),
        in_(input_packing(shape.input, pitch_)),
        state_(input_packing(shape.recurrent, pitch_)),
        count_in_(shape.input.in_channels * shape.input.taps()),
        count_state_(shape.channels * shape.recurrent.taps()),
        blocks_{shape.batch, 4 * shape.channels, 0, shape.input.out[0], shape.input.out[1], pitch_},
        workers_(workers) {
    offset_in_ = arena.take<int64_t>(count_in_);
    offset_state_ = arena.take<int64_t>(count_state_);
    weights_ = arena.take<S>(round_up(4 * shape.channels, kernels_.mr) * (count_in_ + count_state_));
    x_ = arena.take<S>(shape.batch * in_.image());
    h_ = arena.take<S>(shape.batch * state_.image());
    z_ = arena.take<S>(blocks_.z_size() * workers);
  }

  // z's rows are interleaved, row = channel * 4 + gate, so that a block of rows holds whole channels.
  void prepare(const S* weight_ih, const S* weight_hh) {
    fill_input_offsets(shape_.input, in_, offset_in_);
    fill_input_offsets(shape_.recurrent, state_, offset_state_);
    const auto interleaved = [this](const S* weight, int64_t count) {
      return [this, weight, count](int64_t row, int64_t k) {
        return weight[(row % 4 * shape_.channels + row / 4) * count + k];
      };
    };
    const int64_t rows = 4 * shape_.channels, total = count_in_ + count_state_;
    pack_weights(rows, count_in_, kernels_.mr, 0, total, interleaved(weight_ih, count_in_), weights_);
    pack_weights(rows, count_state_, kernels_.mr, count_in_, total, interleaved(weight_hh, count_state_), weights_);
  }

  void pack_inputs(const ForwardStep<S>& step, const S* dropout_mask) {
    const int64_t image = shape_.input.in_channels * shape_.input.in_pixels();
    pack<S>(in_, step.active, [&](int64_t b) { return step.x + b * image; }, nullptr, workers_, x_);
    pack<S>(
        state_, step.active, [&](int64_t b) { return step.h_before[static_cast<size_t>(b)]; }, dropout_mask, workers_,
        h_);
  }

  void run(const Cell<S>& cell, const ForwardStep<S>& step) {
    parallel_for(blocks_.tasks(), workers_, [&](int64_t task, int worker) {
      const Block block = block_of_task(blocks_, task);
      if (!step.active[static_cast<size_t>(block.b)]) return;
      S* z = z_ + worker * blocks_.z_size();
      const Source<S> x = {x_ + block.b * in_.image(), offset_in_, count_in_};
      const Source<S> h = {h_ + block.b * state_.image(), offset_state_, count_state_};
      kernels_.correlate(tile_of_block(block, pitch_, x, h, weights_, z));
      for (int64_t channel = block.m0 / 4; channel < block.m1 / 4; ++channel) {
        run_gates(cell, step, block, channel, z + (channel * 4 - block.m0) * block.pixels());
      }
    });
  }

  const Packing& packing_of_x() const { return in_; }
  const Packing& packing_of_h() const { return state_; }
  const S* packed_x() const { return x_; }
  const S* packed_h() const { return h_; }
  const int64_t* offset_in() const { return offset_in_; }
  const int64_t* offset_state() const { return offset_state_; }
  int64_t pitch() const { return pitch_; }

 private:
  void run_gates(const Cell<S>& cell, const ForwardStep<S>& step, const Block& block, int64_t channel,
                 const S* z) const {
    const int64_t C = shape_.channels, P = shape_.pixels(), b = block.b;
    const int64_t first = block.row0 * shape_.input.out[1] + block.column0;
    const auto at_or_null = [](auto* base, int64_t at) { return base ? base + at : nullptr; };
    for (int64_t done = 0; done < block.pixels(); done += kCellRun) {
      const int64_t p = first + done, n = std::min(kCellRun, block.pixels() - done);
      const int64_t in_sample = channel * P + p, at = b * C * P + in_sample;
      CellForwardRun<S> run{};
      cell.point(run, channel, p, n, step.c_before[static_cast<size_t>(b)] + in_sample,
                 step.h_before[static_cast<size_t>(b)] + in_sample, at_or_null(step.zoneout_mask_h, at),
                 at_or_null(step.zoneout_mask_c, at));
      cell.point_bias(run, channel, p);
      for (int64_t k = 0; k < 4; ++k) {
        run.z[k] = z + k * block.pixels() + done;
        run.gates[k] = at_or_null(step.gates, (b * 4 * C + k * C + channel) * P + p);
      }
      run.h_out = at_or_null(step.h_out, at);
      run.c_out = at_or_null(step.c_out, at);
      run.y = at_or_null(step.y, at);
      run.c_saved = at_or_null(step.c_saved, at);
      kernels_.cell_forward(run);
    }
  }

  ConvLstmShape shape_;
  const Kernels<S>& kernels_;
  int64_t pitch_;
  Packing in_, state_;
  int64_t count_in_, count_state_;
  Blocks blocks_;
  int workers_;
  int64_t *offset_in_, *offset_state_;
  S *weights_, *x_, *h_, *z_;
};

// ------------------------------------------------------------------------------------------------ time and lengths
// The s-th step of the direction is original time t; a step beyond a sample's length leaves its state alone.
struct Timeline {
  int64_t steps, batch;
  bool reverse;
  const int64_t* lengths;

  Timeline(const ConvLstmForward& args, const ConvLstmShape& shape)
      : steps(shape.steps),
        batch(shape.batch),
        reverse(args.options.reverse),
        lengths(args.lengths.as<const int64_t>()) {}

  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }
  bool active(int64_t s, int64_t b) const { return !lengths || time(s) < lengths[b]; }
  std::vector<uint8_t> active(int64_t s) const {
    std::vector<uint8_t> list(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) list[static_cast<size_t>(b)] = active(s, b);
    return list;
  }
};

template <class S>
Cell<S> cell_of(const ConvLstmForward& args, const ConvLstmShape& shape) {
  return Cell<S>(args.options.cell, shape.cell, shape.channels, shape.pixels(), args.bias, args.peephole,
                 args.zoneout_mask_h, args.zoneout_mask_c);
}

template <class S>
void copy_or_zero(const Tensor& from, int64_t n, S* to) {
  if (from.present) {
    std::copy(from.as<const S>(), from.as<const S>() + n, to);
  } else {
    std::fill(to, to + n, S(0));
  }
}

template <class S>
S* at_time(const Tensor& tensor, int64_t t, int64_t size) {
  return tensor.present ? tensor.as<S>() + t * size : nullptr;
}

// --------------------------------------------------------------------------------------------------------- forward
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
    step.x = at_time<const S>(args.x, t, x_size);
    step.active = timeline.active(s);
    step.zoneout_mask_h = at_time<const uint8_t>(args.zoneout_mask_h, t, size);
    step.zoneout_mask_c = at_time<const uint8_t>(args.zoneout_mask_c, t, size);
    step.h_out = h;
    step.c_out = c;
    step.y = at_time<S>(args.y, t, size);
    step.c_saved = at_time<S>(args.c, t, size);
    step.gates = at_time<S>(args.gates, t, 4 * size);
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

// -------------------------------------------------------------------------------------------------------- backward
template <class S>
struct BackwardPlan {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  StepForward<S> step_forward;  // to pack x_t and h', and to make the gates again where they were not saved
  Packing gradient;
  InputGradient<S> of_x, of_h;
  CellGradients<S> cell_gradients;
  S *gates, *dz, *packed_dz, *zeros, *z;
  int64_t z_stride;

  BackwardPlan(const ConvLstmBackward& args, const ConvLstmShape& shape, Arena& arena, int workers)
      : step_forward(shape, arena, workers),
        gradient(gradient_packing({&shape.input, &shape.recurrent}, step_forward.pitch())),
        of_x(shape.input, gradient),
        of_h(shape.recurrent, gradient),
        cell_gradients(cell_of<S>(args, shape), args.dbias, args.dpeephole, arena) {
    of_x.take(arena, kernels.mr);
    of_h.take(arena, kernels.mr);
    gates = arena.take<S>(4 * shape.state_size());
    dz = arena.take<S>(4 * shape.state_size());
    packed_dz = arena.take<S>(shape.batch * gradient.image());
    zeros = arena.take<S>(shape.channels * shape.pixels());
    z_stride = std::max(of_x.z_size(), of_h.z_size());
    z = arena.take<S>(z_stride * workers);
  }
};

template <class S>
class Backward {
 public:
  Backward(const ConvLstmBackward& args, const ConvLstmShape& shape, void* scratch, int workers)
      : args_(args),
        shape_(shape),
        arena_(scratch),
        plan_(args, shape, arena_, workers),
        cell_(cell_of<S>(args, shape)),
        timeline_(args, shape),
        workers_(workers) {}

  void run() {
    plan_.step_forward.prepare(args_.weight_ih.as<const S>(), args_.weight_hh.as<const S>());
    plan_.of_h.prepare(args_.weight_hh.as<const S>(), plan_.kernels.mr);
    if (args_.dx.present) plan_.of_x.prepare(args_.weight_ih.as<const S>(), plan_.kernels.mr);
    std::fill_n(plan_.zeros, sample_, S(0));
    for (const Tensor* dweight : {&args_.dweight_ih, &args_.dweight_hh}) {
      if (dweight->present) std::fill_n(dweight->template as<S>(), dweight->size(), S(0));
    }
    plan_.cell_gradients.clear();
    copy_or_zero(args_.dh_n, size_, args_.dh_0.as<S>());
    copy_or_zero(args_.dc_n, size_, args_.dc_0.as<S>());
    for (int64_t s = shape_.steps - 1; s >= 0; --s) run_step(s);
    plan_.cell_gradients.finish();
  }

 private:
  // The state that a sample's step s started from. An inactive predecessor left the initial state alone.
  const S* before(const Tensor& sequence, const Tensor& initial, int64_t s, int64_t b) const {
    if (s > 0 && timeline_.active(s - 1, b)) {
      return sequence.as<const S>() + timeline_.time(s - 1) * size_ + b * sample_;
    }
    return initial.present ? initial.as<const S>() + b * sample_ : plan_.zeros;
  }

  ForwardStep<S> forward_step(int64_t s) const {
    const int64_t t = timeline_.time(s);
    ForwardStep<S> step{};
    step.x = at_time<const S>(args_.x, t, x_size_);
    step.active = timeline_.active(s);
    step.zoneout_mask_h = at_time<const uint8_t>(args_.zoneout_mask_h, t, size_);
    step.zoneout_mask_c = at_time<const uint8_t>(args_.zoneout_mask_c, t, size_);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      step.h_before.push_back(before(args_.y, args_.h_0, s, b));
      step.c_before.push_back(before(args_.c, args_.c_0, s, b));
    }
    return step;
  }

  void run_step(int64_t s) {
    ForwardStep<S> forward = forward_step(s);
    const bool recompute = !args_.gates.present;
    if (recompute || args_.dweight_ih.present || args_.dweight_hh.present) {
      plan_.step_forward.pack_inputs(forward, args_.dropout_mask.as<const S>());
    }
    if (recompute) {
      forward.gates = plan_.gates;
      plan_.step_forward.run(cell_, forward);
    }
    gates_adjoint(s, forward);
    const int64_t image = 4 * sample_;
    pack<S>(
        plan_.gradient, forward.active, [&](int64_t b) { return plan_.dz + b * image; }, nullptr, workers_,
        plan_.packed_dz);
    weight_gradients(forward.active);
    if (!detaches(s)) {
      plan_.of_h.run(plan_.kernels, plan_.packed_dz, forward.active, args_.dropout_mask.as<const S>(), true, workers_,
                     plan_.z, plan_.z_stride, args_.dh_0.as<S>());
    }
    if (args_.dx.present) input_gradient(s, forward.active);
  }

  bool detaches(int64_t s) const {
    const int64_t every = args_.options.truncation;
    return every > 0 && s > 0 && s % every == 0;
  }

  void gates_adjoint(int64_t s, const ForwardStep<S>& forward) {
    const int64_t t = timeline_.time(s);
    BackwardStep<S> step{};
    step.gates = args_.gates.present ? at_time<const S>(args_.gates, t, 4 * size_) : plan_.gates;
    step.c_before = forward.c_before;
    step.zoneout_mask_h = forward.zoneout_mask_h;
    step.zoneout_mask_c = forward.zoneout_mask_c;
    step.dy = at_time<const S>(args_.dy, t, size_);
    step.dh = args_.dh_0.as<S>();
    step.dc = args_.dc_0.as<S>();
    step.dz = plan_.dz;
    step.active = forward.active;
    step.detach = detaches(s);
    plan_.cell_gradients.step(plan_.kernels, step, workers_);
  }

  void weight_gradients(const std::vector<uint8_t>& active) {
    const StepForward<S>& packed = plan_.step_forward;
    if (args_.dweight_ih.present) {
      add_weight_gradient(plan_.kernels, shape_.input, packed.packing_of_x(), packed.packed_x(), packed.offset_in(),
                          plan_.gradient, plan_.packed_dz, active, workers_, args_.dweight_ih.as<S>());
    }
    if (args_.dweight_hh.present) {
      add_weight_gradient(plan_.kernels, shape_.recurrent, packed.packing_of_h(), packed.packed_h(),
                          packed.offset_state(), plan_.gradient, plan_.packed_dz, active, workers_,
                          args_.dweight_hh.as<S>());
    }
  }

  void input_gradient(int64_t s, const std::vector<uint8_t>& active) {
    S* dx = at_time<S>(args_.dx, timeline_.time(s), x_size_);
    const int64_t image = x_size_ / std::max<int64_t>(shape_.batch, 1);
    for (int64_t b = 0; b < shape_.batch; ++b) {
      if (!active[static_cast<size_t>(b)]) std::fill_n(dx + b * image, image, S(0));
    }
    plan_.of_x.run(plan_.kernels, plan_.packed_dz, active, nullptr, false, workers_, plan_.z, plan_.z_stride, dx);
  }

  const ConvLstmBackward& args_;
  const ConvLstmShape& shape_;
  Arena arena_;
  BackwardPlan<S> plan_;
  Cell<S> cell_;
  Timeline timeline_;
  int workers_;
  const int64_t sample_ = shape_.channels * shape_.pixels(), size_ = shape_.state_size();
  const int64_t x_size_ = shape_.batch * shape_.input.in_channels * shape_.input.in_pixels();
};

}  // namespace

int64_t conv_lstm_forward_scratch(const ConvLstmShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    StepForward<decltype(s)>(shape, arena, workers);
    return arena.bytes();
  });
}

int64_t conv_lstm_backward_scratch(const ConvLstmShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    BackwardPlan<decltype(s)>(ConvLstmBackward{}, shape, arena, workers);
    return arena.bytes();
  });
}

void conv_lstm_forward(const ConvLstmForward& args, const ConvLstmShape& shape, void* scratch, int workers) {
  with_scalar(shape.dtype, [&](auto s) { forward<decltype(s)>(args, shape, scratch, workers); });
}

void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, void* scratch, int workers) {
  with_scalar(shape.dtype, [&](auto s) { Backward<decltype(s)>(args, shape, scratch, workers).run(); });
}

}  // namespace fusecell::cpu
