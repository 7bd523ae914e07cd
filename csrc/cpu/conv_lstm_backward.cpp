// The ConvLSTM sequence backward. Per step, and per group of samples whose dz fits the second-level cache (one sample
// where it is larger): the gate adjoint, then the weights' gradients and the two convolutions backwards. Of the scratch
// memory only the running gradients of the state grow with the batch.

#include <algorithm>
#include <vector>

#include "base/dtype.h"
#include "cpu/conv_lstm_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

constexpr int64_t kGroupBytes = 1 << 20;  // of dz

// The problem of one group: the same for any number of threads.
template <class S>
ConvLstmShape group_of(const ConvLstmShape& shape) {
  const int64_t bytes = 4 * shape.channels * shape.pixels() * static_cast<int64_t>(sizeof(S));
  ConvLstmShape group = shape;
  group.batch = std::min(shape.batch, std::max<int64_t>(kGroupBytes / bytes, 1));
  return group;
}

template <class S>
struct BackwardPlan {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const ConvLstmShape group;
  StepForward<S> step_forward;  // to pack x_t and h', and to make the gates again where they were not saved
  Packing gradient;
  InputGradient<S> of_x, of_h;
  CellGradients<S> cell_gradients;
  S* gates = nullptr;                     // of one step, where they were not saved
  S *dz, *zeros, *carry_h, *carry_c, *z;  // dz: packed; carry: for the gradients of the state
  int64_t z_stride;

  BackwardPlan(const ConvLstmBackward& args, const ConvLstmShape& shape, Arena& arena, int workers)
      : group(group_of<S>(shape)),
        step_forward(group, arena, workers, !args.gates.present),
        gradient(gradient_packing({&shape.input, &shape.recurrent}, step_forward.pitch())),
        of_x(shape.input, gradient),
        of_h(shape.recurrent, gradient),
        cell_gradients(cell_of<S>(args, shape), args.dbias, args.dpeephole, arena) {
    of_x.take(arena, kernels.mr);
    of_h.take(arena, kernels.mr);
    if (!args.gates.present) gates = arena.take<S>(4 * group.state_size());
    dz = arena.take<S>(checked_product("scratch", {group.batch, gradient.image()}));
    zeros = arena.take<S>(shape.channels * shape.pixels());
    carry_h = arena.take<S>(shape.state_size());
    carry_c = arena.take<S>(shape.state_size());
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
    if (shape_.steps > 1 || args_.dh_0.present) {
      plan_.of_h.prepare(args_.weight_hh.as<const S>(), plan_.kernels.mr, workers_);
    }
    if (args_.dx.present) plan_.of_x.prepare(args_.weight_ih.as<const S>(), plan_.kernels.mr, workers_);
    std::fill_n(plan_.zeros, sample_, S(0));
    std::fill_n(plan_.dz, group_ * plan_.gradient.image(), S(0));  // the borders stay so
    for (const Tensor* dweight : {&args_.dweight_ih, &args_.dweight_hh}) {
      if (dweight->present) std::fill_n(dweight->template as<S>(), dweight->size(), S(0));
    }
    plan_.cell_gradients.clear();
    copy_state(shape_, args_.dh_n.frames<const S>(), workers_, carry_h_);
    copy_state(shape_, args_.dc_n.frames<const S>(), workers_, carry_c_);
    for (int64_t s = shape_.steps - 1; s >= 0; --s) {
      for (int64_t b = 0; b < shape_.batch; b += group_) run_group(s, b);
    }
    plan_.cell_gradients.finish();
    finish(shape_, carry_h_, workers_, args_.dh_0.frames<S>());
    finish(shape_, carry_c_, workers_, args_.dc_0.frames<S>());
  }

 private:
  // The last group may have fewer samples than the others: those that are missing are not active.
  std::vector<uint8_t> active(int64_t s, int64_t first) const {
    std::vector<uint8_t> list(static_cast<size_t>(group_));
    for (int64_t j = 0; j < group_ && first + j < shape_.batch; ++j) {
      list[static_cast<size_t>(j)] = timeline_.active(s, first + j);
    }
    return list;
  }

  // The state that a sample's step s started from. An inactive predecessor left the initial state alone.
  Image<const S> before(const Tensor& sequence, const Tensor& initial, int64_t s, int64_t b) const {
    if (b >= shape_.batch) return {};
    if (s > 0 && timeline_.active(s - 1, b)) {
      return sequence.frames<const S>().at_time(timeline_.time(s - 1)).image(b);
    }
    return initial.present ? initial.frames<const S>().image(b) : Image<const S>{plan_.zeros, shape_.pixels(), 1};
  }

  ForwardStep<S> forward_step(int64_t s, int64_t first) const {
    const int64_t t = timeline_.time(s), at = t * size_ + first * sample_;
    ForwardStep<S> step{};
    step.x = args_.x.frames<const S>().at_time(t).from_sample(first);
    step.active = active(s, first);
    step.zoneout_mask_h = at_or_null<const uint8_t>(args_.zoneout_mask_h, at);
    step.zoneout_mask_c = at_or_null<const uint8_t>(args_.zoneout_mask_c, at);
    for (int64_t b = first; b < first + group_; ++b) {
      step.h_before.push_back(before(args_.y, args_.h_0, s, b));
      step.c_before.push_back(before(args_.c, args_.c_0, s, b));
    }
    return step;
  }

  void run_group(int64_t s, int64_t first) {
    ForwardStep<S> forward = forward_step(s, first);
    const S* dropout_mask = at_or_null<const S>(args_.dropout_mask, first * sample_);
    const bool recompute = !args_.gates.present;
    if (recompute || args_.dweight_ih.present || args_.dweight_hh.present) {
      plan_.step_forward.pack_inputs(forward, dropout_mask);
    }
    if (recompute) {
      forward.gates = plan_.gates;
      plan_.step_forward.run(cell_, forward);
    }
    gates_adjoint(s, first, forward);
    weight_gradients(forward.active);
    const bool state_has_gradient = s > 0 ? !detaches(s) : args_.dh_0.present;
    if (state_has_gradient) {
      plan_.of_h.run(plan_.kernels, plan_.dz, forward.active, dropout_mask, true, workers_, plan_.z, plan_.z_stride,
                     carry_h_.from_sample(first));
    }
    if (args_.dx.present) input_gradient(s, first, forward.active);
  }

  bool detaches(int64_t s) const {
    const int64_t every = args_.options.truncation;
    return every > 0 && s > 0 && s % every == 0;
  }

  void gates_adjoint(int64_t s, int64_t first, const ForwardStep<S>& forward) {
    const int64_t t = timeline_.time(s);
    BackwardStep<S> step{};
    const int64_t at = 4 * (t * size_ + first * sample_);
    step.gates = args_.gates.present ? at_or_null<const S>(args_.gates, at) : plan_.gates;
    step.c_before = forward.c_before;
    step.zoneout_mask_h = forward.zoneout_mask_h;
    step.zoneout_mask_c = forward.zoneout_mask_c;
    step.dy = args_.dy.frames<const S>().at_time(t).from_sample(first);
    step.dh = carry_h_.from_sample(first);
    step.dc = carry_c_.from_sample(first);
    step.dz = plan_.dz;
    step.packing = &plan_.gradient;
    step.active = forward.active;
    step.detach = detaches(s);
    plan_.cell_gradients.step(plan_.kernels, step, workers_);
  }

  void weight_gradients(const std::vector<uint8_t>& active) {
    const StepForward<S>& packed = plan_.step_forward;
    if (args_.dweight_ih.present) {
      add_weight_gradient(plan_.kernels, shape_.input, packed.packing_of_x(), packed.packed_x(), packed.offset_in(),
                          plan_.gradient, plan_.dz, active, workers_, args_.dweight_ih.as<S>());
    }
    if (args_.dweight_hh.present) {
      add_weight_gradient(plan_.kernels, shape_.recurrent, packed.packing_of_h(), packed.packed_h(),
                          packed.offset_state(), plan_.gradient, plan_.dz, active, workers_, args_.dweight_hh.as<S>());
    }
  }

  void input_gradient(int64_t s, int64_t first, const std::vector<uint8_t>& active) {
    const ConvolutionShape& image = shape_.input;
    const Frames<S> dx = args_.dx.frames<S>().at_time(timeline_.time(s)).from_sample(first);
    for (int64_t b = 0; b < group_ && first + b < shape_.batch; ++b) {
      if (!active[static_cast<size_t>(b)]) copy_image<S>(image.in_channels, image.in_pixels(), {}, dx.image(b));
    }
    plan_.of_x.run(plan_.kernels, plan_.dz, active, nullptr, false, workers_, plan_.z, plan_.z_stride, dx);
  }

  const ConvLstmBackward& args_;
  const ConvLstmShape& shape_;
  Arena arena_;
  BackwardPlan<S> plan_;
  Cell<S> cell_;
  Timeline timeline_;
  int workers_;
  const int64_t group_ = plan_.group.batch;  // its samples
  const int64_t sample_ = shape_.channels * shape_.pixels(), size_ = shape_.state_size();
  const Frames<S> carry_h_ = running(shape_, args_.dh_0.frames<S>(), plan_.carry_h);
  const Frames<S> carry_c_ = running(shape_, args_.dc_0.frames<S>(), plan_.carry_c);
};

}  // namespace

}  // namespace fusecell::cpu

namespace fusecell::backend {

int64_t conv_lstm_backward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape, int workers) {
  ConvLstmBackward known;
  static_cast<ConvLstmForward&>(known) = args;
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    cpu::BackwardPlan<decltype(s)>(known, shape, arena, workers);
    return arena.bytes();
  });
}

void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch) {
  with_scalar(shape.dtype,
              [&](auto s) { cpu::Backward<decltype(s)>(args, shape, launch.scratch, launch.workers).run(); });
}

}  // namespace fusecell::backend
