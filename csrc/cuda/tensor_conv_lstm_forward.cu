// The ConvLSTM sequence forward on tensor cores: one launch a step.

#include "cuda/tensor_conv_lstm.h"

namespace fusecell::cuda {
namespace {

template <class S>
struct ForwardPlan {
  TensorWeights<S> input, state;
  ReadableImages<S> x;
  bool state_in_place;
  ReadableImages<S> h_0;
  Frames<S> h[2] = {};  // what the next step reads where that is not y; the steps take turns

  ForwardPlan(const ConvLstmForward& args, const ConvLstmShape& shape, Arena& arena)
      : input(shape.input, Layout::interleaved, shape.batch, arena),
        state(shape.recurrent, Layout::interleaved, shape.batch, arena),
        x(readable_x<S>(args, shape, shape.steps, arena)),
        state_in_place(reads_state_in_place<S>(args, shape.channels)),
        h_0(state_in_place || !args.h_0.present, 1, shape.batch, shape.channels, shape.pixels(), arena) {
    if (state_in_place) return;
    const int64_t pixel = pieces_of<S>(shape.channels) * kPiece<S>;
    for (Frames<S>& frames : h) {
      S* data = arena.take<S>(checked_product("scratch", {shape.batch, shape.pixels(), pixel}));
      frames = frames_in_pieces(data, shape.batch, shape.channels, shape.pixels());
    }
  }
};

template <class S>
class Forward {
 public:
  Forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch)
      : args_(args),
        shape_(shape),
        context_("conv_lstm_forward", launch),
        arena_(launch.scratch),
        plan_(args, shape, arena_),
        sequence_(args, shape) {}

  void run() {
    if (shape_.steps == 0) {
      pass_through(context_, shape_, args_.h_0.frames<const S>(), args_.h_n.frames<S>());
      pass_through(context_, shape_, args_.c_0.frames<const float>(), args_.c_n.frames<float>());
      return;
    }
    plan_.input.pack(context_, args_.weight_ih.as<const S>());
    plan_.state.pack(context_, args_.weight_hh.as<const S>());
    const Images<S> x = plan_.x.turn(context_, every_x(), shape_.steps);
    const Frames<const S> h_0 = turned_h_0();
    clear_padding();
    for (int64_t s = 0; s < shape_.steps; ++s) {
      const ForwardStep<S> step = step_of(s);
      const auto tile = step_convolutions(context_, plan_.input, plan_.state, at_step(x, step.time),
                                          state_before(s, step.time, h_0), sequence_.has_state(s));
      // The first comes after the launches that made what all of them read.
      run_tensor_forward_step(context_, is_default_cell(shape_.cell), s > 0, plan_.input.grid(shape_.batch),
                              TensorForwardArgs<S>{tile, step});
    }
  }

 private:
  Images<S> every_x() const {
    Images<S> x = sequence_.x(0);
    x.lengths = nullptr;
    return x;
  }

  // h_0 as the convolution reads it.
  Frames<const S> turned_h_0() const {
    Images<S> images{};
    images.frames = args_.h_0.frames<const S>();
    if (plan_.state_in_place || !images.frames.data) return images.frames;
    images.batch = shape_.batch;
    images.steps = 1;
    images.mask = args_.dropout_mask.as<const S>();
    images.mask_image = shape_.channels * shape_.pixels();
    return plan_.h_0.turn(context_, images, 1).frames;
  }

  // The steps write the channels alone.
  void clear_padding() const {
    if (plan_.state_in_place || shape_.channels % kPiece<S> == 0) return;
    for (const Frames<S>& frames : plan_.h) {
      context_.zero(frames.data, shape_.batch * frames.by.batch * int64_t(sizeof(S)));
    }
  }

  Images<S> state_before(int64_t s, int64_t t, const Frames<const S>& h_0) const {
    Images<S> images = sequence_.h_before(t, false);
    if (plan_.state_in_place) return images;
    images.frames = to_read(plan_.h[(s + 1) % 2]);
    images.initial = h_0;
    return images;
  }

  ForwardStep<S> step_of(int64_t s) const {
    ForwardStep<S> step = sequence_.forward_step(s, Along::channels);
    sequence_.keep(step);
    if (plan_.state_in_place) return step;
    step.h_next = plan_.h[s % 2];
    step.dropout_mask = args_.dropout_mask.as<const S>();
    return step;
  }

  const ConvLstmForward& args_;
  const ConvLstmShape& shape_;
  Context context_;
  Arena arena_;
  ForwardPlan<S> plan_;
  Sequence<S> sequence_;
};

}  // namespace

template <class S>
void run_tensor_forward_step(const Context& context, bool default_cell, bool overlaps, dim3 grid,
                             const TensorForwardArgs<S>& args) {
  const auto kernel =
      default_cell ? tensor_forward_step<S, SigmoidTanh<float>> : tensor_forward_step<S, AnyActivation<float>>;
  context.run_overlapping(overlaps, "tensor_forward_step", kernel, grid, TensorWeights<S>::shared_bytes(args.tile),
                          args);
}

#define FUSECELL_INSTANTIATE(S) \
  template void run_tensor_forward_step(const Context&, bool, bool, dim3, const TensorForwardArgs<S>&);
FUSECELL_FOR_EACH_TENSOR_STORAGE(FUSECELL_INSTANTIATE)

int64_t tensor_forward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape) {
  return with_tensor_storage(shape.dtype, [&](auto s) {
    Arena arena;
    ForwardPlan<decltype(s)>(args, shape, arena);
    return arena.bytes();
  });
}

void tensor_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch) {
  with_tensor_storage(shape.dtype, [&](auto s) { Forward<decltype(s)>(args, shape, launch).run(); });
}

}  // namespace fusecell::cuda
