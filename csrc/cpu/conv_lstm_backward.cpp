// The ConvLSTM sequence backward. Per step, and per group of samples whose dz fits the second-level cache (one sample
// where it is larger): the gate adjoint, then the weights' gradients and the two convolutions backwards. Of the scratch
// memory only the running gradients of the state grow with the batch.

#include <algorithm>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "cpu/algorithms.h"
#include "cpu/conv_lstm_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

// Of dz. Directly: a part of the second-level cache, where every tap reads it again; of what Winograd reads once or
// twice, more, so that there are tasks for all threads.
constexpr int64_t kGroupBytes = 1 << 20, kWinogradGroupBytes = 5 << 19;

template <class S>
ConvLstmShape group_of(const ConvLstmShape& shape) {
  ConvLstmShape group = shape;
  group.batch = samples_at_once<S>(shape.input, shape.batch, 4 * shape.channels,
                                   shape.algorithm == Algorithm::winograd ? kWinogradGroupBytes : kGroupBytes);
  return group;
}

inline CellTasks tasks_of(const ConvLstmShape& group) {
  return {group.cell, group.batch, group.channels, group.pixels()};
}

// Scratch memory is asked for before it is known which gradients are wanted.
inline Wanted all_gradients(const ConvLstmForward& args) {
  return {.outputs = !args.gates.present,
          .gradient = true,
          .weight_gradients = {true, true},
          .input_gradients = {true, true}};
}

inline Wanted wanted_of(const ConvLstmBackward& args, const ConvLstmShape& shape) {
  return {.outputs = !args.gates.present,
          .gradient = true,
          .weight_gradients = {args.dweight_ih.present, args.dweight_hh.present},
          .input_gradients = {args.dx.present, shape.steps > 1 || args.dh_0.present}};
}

template <class S>
struct BackwardPlan {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const ConvLstmShape group;
  const Wanted wanted;
  std::unique_ptr<Convolutions<S>> convolutions;
  CellGradients<S> cell_gradients;
  S* gates = nullptr;            // of one step, where they were not saved
  S *zeros, *carry_h, *carry_c;  // carry: for the gradients of the state

  BackwardPlan(const ConvLstmBackward& args, const ConvLstmShape& shape, const Wanted& asked, Arena& arena, int workers)
      : group(group_of<S>(shape)),
        wanted(asked),
        convolutions(make_convolutions<S>(convolutions_of(group), wanted, arena, workers)),
        cell_gradients(cell_of<S>(args, shape), group.batch, args.dbias, args.dpeephole, arena) {
    if (wanted.outputs) gates = arena.take<S>(4 * group.state_size());
    zeros = arena.take<S>(shape.channels * shape.pixels());
    carry_h = arena.take<S>(shape.state_size());
    carry_c = arena.take<S>(shape.state_size());
  }
};

template <class S>
class Backward {
 public:
  Backward(const ConvLstmBackward& args, const ConvLstmShape& shape, void* scratch, int workers)
      : args_(args),
        shape_(shape),
        arena_(scratch),
        plan_(args, shape, wanted_of(args, shape), arena_, workers),
        cell_(cell_of<S>(args, shape)),
        timeline_(args, shape),
        workers_(workers) {}

  void run() {
    plan_.convolutions->prepare({args_.weight_ih.as<const S>(), args_.weight_hh.as<const S>()},
                                {args_.dweight_ih.as<S>(), args_.dweight_hh.as<S>()});
    std::fill_n(plan_.zeros, sample_, S(0));
    plan_.cell_gradients.clear();
    copy_state(shape_, args_.dh_n.frames<const S>(), workers_, carry_h_);
    copy_state(shape_, args_.dc_n.frames<const S>(), workers_, carry_c_);
    for (int64_t s = shape_.steps - 1; s >= 0; --s) {
      for (int64_t b = 0; b < shape_.batch; b += group_) run_group(s, b);
    }
    plan_.convolutions->finish_weight_gradients();
    plan_.cell_gradients.finish();
    finish(shape_, carry_h_, workers_, args_.dh_0.frames<S>());
    finish(shape_, carry_c_, workers_, args_.dc_0.frames<S>());
  }

 private:
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
    step.active = timeline_.active(s, first, group_);
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
    if (plan_.wanted.outputs || plan_.wanted.any_weight_gradient()) {
      read_sources(*plan_.convolutions, forward, dropout_mask);
    }
    if (plan_.wanted.outputs) {
      forward.gates = plan_.gates;
      run_step(*plan_.convolutions, cell_, shape_.input.out[1], forward);
    }
    gates_adjoint(s, first, forward);
    plan_.convolutions->add_weight_gradients(forward.active);
    plan_.convolutions->input_gradients(forward.active, {of_x(s, first, forward.active), of_h(s, first, dropout_mask)});
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
    step.dz = plan_.convolutions->gradient();
    step.packing = &plan_.convolutions->gradient_packing();
    step.active = forward.active;
    step.detach = detaches(s);
    step.statistics = at_or_null<double>(args_.statistics, statistics_at(t, first));
    plan_.cell_gradients.step(plan_.kernels, step, workers_);
  }

  // Where the sums of this group's tasks begin, in [T, groups, tasks, kStepStatistics].
  int64_t statistics_at(int64_t t, int64_t first) const {
    const int64_t group = t * ceil_div(shape_.batch, group_) + first / group_;
    return group * tasks_of(plan_.group).count() * kStepStatistics;
  }

  // Nothing where no step before, and nobody else, asks for it.
  InputGradientTarget<S> of_h(int64_t s, int64_t first, const S* dropout_mask) const {
    const bool wanted = s > 0 ? !detaches(s) : args_.dh_0.present;
    return {wanted ? carry_h_.from_sample(first) : Frames<S>{}, dropout_mask, true};
  }

  InputGradientTarget<S> of_x(int64_t s, int64_t first, const std::vector<uint8_t>& active) const {
    const ConvolutionShape& image = shape_.input;
    const Frames<S> dx = args_.dx.frames<S>().at_time(timeline_.time(s)).from_sample(first);
    for (int64_t b = 0; dx.data && b < group_ && first + b < shape_.batch; ++b) {
      if (!active[static_cast<size_t>(b)]) copy_image<S>(image.in_channels, image.in_pixels(), {}, dx.image(b));
    }
    return {dx};
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
    cpu::BackwardPlan<decltype(s)>(known, shape, cpu::all_gradients(args), arena, workers);
    return arena.bytes();
  });
}

int64_t conv_lstm_statistics_parts(const ConvLstmShape& shape) {
  if (shape.batch == 0) return 0;
  return with_scalar(shape.dtype, [&](auto s) {
    const ConvLstmShape group = cpu::group_of<decltype(s)>(shape);
    return cpu::ceil_div(shape.batch, group.batch) * cpu::tasks_of(group).count();
  });
}

void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch) {
  with_scalar(shape.dtype,
              [&](auto s) { cpu::Backward<decltype(s)>(args, shape, launch.scratch, launch.workers).run(); });
}

}  // namespace fusecell::backend
