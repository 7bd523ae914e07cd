// The ConvLSTM sequence forward: the steps of conv_lstm_step.h in order.

#include <algorithm>
#include <memory>

#include "base/dtype.h"
#include "cpu/algorithms.h"
#include "cpu/conv_lstm_step.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

constexpr int64_t kGroupBytes = 8 << 20;  // of the sources as Winograd keeps them: a part of the third-level cache

// The problem of the samples that are computed together.
template <class S>
ConvLstmShape group_of(const ConvLstmShape& shape) {
  ConvLstmShape group = shape;
  if (shape.algorithm == Algorithm::winograd) {
    group.batch = samples_at_once<S>(shape.input, shape.algorithm, shape.batch,
                                     shape.input.in_channels + shape.channels, kGroupBytes);
  }
  return group;
}

template <class S>
struct ForwardPlan {
  const ConvLstmShape group;
  std::unique_ptr<Convolutions<S>> convolutions;
  S *h, *c;  // for the running state, [B, C, H, W] each

  ForwardPlan(const ConvLstmShape& shape, Arena& arena, int workers)
      : group(group_of<S>(shape)),
        convolutions(make_convolutions<S>(convolutions_of(group), {.outputs = true}, arena, workers)),
        h(arena.take<S>(shape.state_size())),
        c(arena.take<S>(shape.state_size())) {}
};

template <class S>
class Forward {
 public:
  Forward(const ConvLstmForward& args, const ConvLstmShape& shape, void* scratch, int workers)
      : args_(args),
        shape_(shape),
        arena_(scratch),
        plan_(shape, arena_, workers),
        cell_(cell_of<S>(args, shape)),
        timeline_(args, shape),
        workers_(workers) {}

  void run() {
    plan_.convolutions->prepare({args_.weight_ih.as<const S>(), args_.weight_hh.as<const S>()}, {nullptr, nullptr});
    copy_state(shape_, args_.h_0.frames<const S>(), workers_, h_);
    copy_state(shape_, args_.c_0.frames<const S>(), workers_, c_);
    for (int64_t s = 0; s < shape_.steps; ++s) {
      for (int64_t b = 0; b < shape_.batch; b += plan_.group.batch) run_group(s, b);
    }
    finish(shape_, h_, workers_, args_.h_n.frames<S>());
    finish(shape_, c_, workers_, args_.c_n.frames<S>());
  }

 private:
  // In place: a step reads h' from its packed copy, c' at the pixel it writes.
  void run_group(int64_t s, int64_t first) {
    const int64_t t = timeline_.time(s), at = t * size_ + first * sample_;
    ForwardStep<S> step{};
    step.x = args_.x.frames<const S>().at_time(t).from_sample(first);
    step.y = args_.y.frames<S>().at_time(t).from_sample(first);
    step.active = timeline_.active(s, first, plan_.group.batch);
    step.zoneout_mask_h = at_or_null<const uint8_t>(args_.zoneout_mask_h, at);
    step.zoneout_mask_c = at_or_null<const uint8_t>(args_.zoneout_mask_c, at);
    step.h_out = h_.from_sample(first);
    step.c_out = c_.from_sample(first);
    step.c_saved = at_or_null<S>(args_.c, at);
    step.gates = at_or_null<S>(args_.gates, 4 * at);
    for (int64_t j = 0; j < plan_.group.batch; ++j) {
      step.h_before.push_back(to_read(step.h_out).image(j));
      step.c_before.push_back(to_read(step.c_out).image(j));
      if (!step.active[static_cast<size_t>(j)] && first + j < shape_.batch) pass_by(step, j);
    }
    read_sources(*plan_.convolutions, step, at_or_null<const S>(args_.dropout_mask, first * sample_));
    run_step(*plan_.convolutions, cell_, shape_.input.out[1], step);
  }

  // A sample that is not active: its state stays, its output is zero.
  void pass_by(const ForwardStep<S>& step, int64_t j) const {
    copy_image<S>(shape_.channels, shape_.pixels(), {}, step.y.image(j));
    if (step.c_saved) {
      const auto saved = contiguous_frames(step.c_saved, shape_.batch, shape_.channels, shape_.pixels());
      copy_image(shape_.channels, shape_.pixels(), to_read(step.c_out).image(j), saved.image(j));
    }
    if (step.gates) std::fill_n(step.gates + 4 * j * sample_, 4 * sample_, S(0));
  }

  const ConvLstmForward& args_;
  const ConvLstmShape& shape_;
  Arena arena_;
  ForwardPlan<S> plan_;
  Cell<S> cell_;
  Timeline timeline_;
  int workers_;
  const int64_t sample_ = shape_.channels * shape_.pixels(), size_ = shape_.state_size();
  const Frames<S> h_ = running(shape_, args_.h_n.frames<S>(), plan_.h);
  const Frames<S> c_ = running(shape_, args_.c_n.frames<S>(), plan_.c);
};

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
  with_scalar(shape.dtype,
              [&](auto s) { cpu::Forward<decltype(s)>(args, shape, launch.scratch, launch.workers).run(); });
}

}  // namespace fusecell::backend
