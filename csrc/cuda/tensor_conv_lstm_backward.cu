// The ConvLSTM sequence backward on tensor cores: as conv_lstm_backward.cu, with everything in between channels last.

#include <algorithm>

#include "cuda/tensor_conv_lstm.h"
#include "cuda/tensor_gradient.h"

namespace fusecell::cuda {
namespace {

template <class S>
struct BackwardPlan {
  int64_t chunk, rows, total;
  TensorWeights<S> input, state, input_transposed, state_transposed;
  ReadableImages<S> x, h;
  Parts parts_ih, parts_hh, parts_peephole;
  PartedGradient<float> dweight_ih, dweight_hh, dbias;
  PartedGradient<double> dbias_per_pixel, dpeephole;
  Frames<float> carry_h, carry_c;  // the running gradients of the state
  Frames<S> dz[2], gates;          // of a chunk; the chunk before's dz lies in the other

  BackwardPlan(const ConvLstmForward& args, const ConvLstmShape& shape, Arena& arena)
      : chunk(steps_per_chunk(shape)),
        rows(4 * shape.channels),
        total(checked_product("scratch", {chunk, shape.batch, shape.pixels()})),
        input(shape.input, Layout::interleaved, shape.batch, arena),
        state(shape.recurrent, Layout::interleaved, shape.batch, arena),
        input_transposed(shape.input, Layout::transposed, chunk * shape.batch, arena),
        state_transposed(shape.recurrent, Layout::transposed, shape.batch, arena),
        x(readable_x<S>(args, shape, chunk, arena)),
        h(reads_state_in_place<S>(args, shape.channels), chunk, shape.batch, shape.channels, shape.pixels(), arena),
        parts_ih(weight_parts(input)),
        parts_hh(weight_parts(state)),
        parts_peephole(shape.cell.peephole_per_pixel ? Parts{1, total}
                                                     : tensor_parameter_parts_of(shape.channels, total)),
        dweight_ih(parts_ih.count, weight_values(shape.input), several(shape), arena),
        dweight_hh(parts_hh.count, weight_values(shape.recurrent), several(shape), arena),
        dbias(parts_ih.count, shape.cell.bias_per_pixel ? 0 : rows, several(shape), arena),
        dbias_per_pixel(1, shape.cell.bias_per_pixel ? args.bias.size() : 0, several(shape), arena),
        dpeephole(parts_peephole.count, args.peephole.present ? args.peephole.size() : 0, several(shape), arena) {
    const int64_t C = shape.channels, P = shape.pixels(), B = shape.batch;
    for (Frames<float>* carry : {&carry_h, &carry_c}) {
      *carry = frames_channels_last(arena.take<float>(shape.state_size()), B, C, P);
    }
    for (Frames<S>& buffer : dz) buffer = frames_in_pieces<S>(nullptr, B, rows, P);
    for (int i = 0; i < (several(shape) ? 2 : 1); ++i) {
      dz[i].data = arena.take<S>(checked_product("scratch", {chunk, dz[i].by.time}));
    }
    if (args.gates.present) return;
    gates = frames_channels_last(arena.take<S>(checked_product("scratch", {chunk, 4, shape.state_size()})), B, rows, P);
  }

  Parts weight_parts(const TensorWeights<S>& weights) const {
    return tensor_gradient_parts_of<S>(rows, weights.pieces(), total);
  }
  int64_t weight_values(const ConvolutionShape& conv) const { return rows * conv.in_channels * conv.taps(); }
  bool several(const ConvLstmShape& shape) const { return shape.steps > chunk; }
  bool padded() const { return rows % kPiece<S> != 0; }
};

template <class S>
class Backward {
 public:
  Backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch)
      : args_(args),
        shape_(shape),
        context_("conv_lstm_backward", launch),
        arena_(launch.scratch),
        plan_(args, shape, arena_),
        sequence_(args, shape) {}

  void run() {
    plan_.input.pack(context_, args_.weight_ih.as<const S>());
    plan_.state.pack(context_, args_.weight_hh.as<const S>());
    if (shape_.steps > 1 || args_.dh_0.present) plan_.state_transposed.pack(context_, args_.weight_hh.as<const S>());
    if (args_.dx.present) plan_.input_transposed.pack(context_, args_.weight_ih.as<const S>());
    for (const Frames<S>& dz : plan_.dz) {  // the sweep writes the channels alone
      if (plan_.padded() && dz.data) context_.zero(dz.data, plan_.chunk * dz.by.time * int64_t(sizeof(S)));
    }
    for (int64_t end = shape_.steps; end > 0; end -= plan_.chunk) {
      run_chunk(std::max<int64_t>(end - plan_.chunk, 0), end);
    }
    finish();
  }

 private:
  // Steps begin to end - 1 of the direction. What is kept of them lies in the order of time.
  struct ChunkOfSteps {
    int64_t begin, end, time;  // time: the earliest
    Images<S> x, h;            // as the convolutions read them, from that time on
    Frames<S> dz;              // theirs
    Frames<S> dz_after;        // that of step `end`; null at the last
    Frames<const S> gates;     // theirs

    int64_t steps() const { return end - begin; }
  };

  void run_chunk(int64_t begin, int64_t end) {
    const int64_t time = args_.options.reverse ? shape_.steps - end : begin;
    ChunkOfSteps chunk{};
    chunk.begin = begin;
    chunk.end = end;
    chunk.time = time;
    const bool again = !args_.gates.present;
    if (again || wants_input_sums()) chunk.x = plan_.x.turn(context_, sequence_.x(time), chunk.steps());
    if (again || args_.dweight_hh.present) {
      chunk.h = plan_.h.turn(context_, sequence_.h_before(time, true), chunk.steps());
    }
    chunk.dz = plan_.dz[which_];
    chunk.dz_after = dz_after_;
    chunk.gates = args_.gates.present ? args_.gates.frames<const S>().at_time(time) : to_read(plan_.gates);
    if (again) recompute(chunk);
    for (int64_t s = end - 1; s >= begin; --s) sweep(chunk, s);
    weight_gradients(chunk);
    parameter_gradients(chunk);
    if (args_.dx.present) input_gradient(chunk);
    dz_after_ = dz_of(chunk, begin);
    which_ ^= 1;
  }

  Frames<S> dz_of(const ChunkOfSteps& chunk, int64_t s) const {
    return chunk.dz.at_time(sequence_.time(s) - chunk.time);
  }
  Images<S> dz_images(const Frames<S>& dz, int64_t steps) const {
    Images<S> images{};
    images.frames = to_read(dz);
    images.batch = shape_.batch;
    images.steps = steps;
    return images;
  }

  void recompute(const ChunkOfSteps& chunk) const {
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      TensorForwardArgs<S> step{};
      step.step = sequence_.forward_step(s, Along::channels);
      const int64_t at = step.step.time - chunk.time;
      step.step.gates = plan_.gates.at_time(at);
      step.tile = step_convolutions(context_, plan_.input, plan_.state, at_step(chunk.x, at), at_step(chunk.h, at),
                                    sequence_.has_state(s));
      run_tensor_forward_step(context_, is_default_cell(shape_.cell), false, plan_.input.grid(shape_.batch), step);
    }
  }

  void sweep(const ChunkOfSteps& chunk, int64_t s) const {
    const int64_t t = sequence_.time(s);
    TensorBackwardArgs<S> args{plan_.state_transposed.tile(context_, shape_.batch),
                               sequence_.backward_step(s, args_, Along::channels)};
    BackwardStep<S>& step = args.step;
    if (!step.first && !sequence_.detaches(s + 1)) {
      const Frames<S> dz = s + 1 < chunk.end ? dz_of(chunk, s + 1) : chunk.dz_after;
      args.tile.operand[0] = plan_.state_transposed.operand(dz_images(dz, 1));
      args.tile.operand[0].follows = true;
    }
    step.gates = chunk.gates.at_time(t - chunk.time);
    step.carry_h = plan_.carry_h;
    step.carry_c = to_read(plan_.carry_c);
    if (!step.dc.data) step.dc = plan_.carry_c;
    step.dz = dz_of(chunk, s);
    const dim3 grid = plan_.state_transposed.grid(shape_.batch);
    if (args_.statistics.present) {
      step.statistics = args_.statistics.as<double>() + t * int64_t(grid.x) * grid.y * kStepStatistics;
    }
    const auto kernel = is_default_cell(shape_.cell) ? tensor_backward_step<S, SigmoidTanh<float>>
                                                     : tensor_backward_step<S, AnyActivation<float>>;
    context_.run_overlapping(args.tile.operand[0].follows, "tensor_backward_step", kernel, grid,
                             TensorWeights<S>::shared_bytes(args.tile), args);
  }

  // The bias's comes with the input's, whether or not that is wanted.
  bool sums_bias() const { return args_.dbias.present && !shape_.cell.bias_per_pixel; }
  bool wants_input_sums() const { return args_.dweight_ih.present || sums_bias(); }

  void weight_gradients(const ChunkOfSteps& chunk) const {
    const bool of_bias = sums_bias(), first = chunk.end == shape_.steps, last = chunk.begin == 0;
    if (wants_input_sums()) {
      const Parts parts = plan_.parts_ih.of(pixels_of(chunk));
      sum_weights(chunk, plan_.input, shape_.input, chunk.x, parts, plan_.dweight_ih,
                  of_bias ? plan_.dbias.partial() : nullptr);
      if (args_.dweight_ih.present) plan_.dweight_ih.add(context_, parts.count, first, last, args_.dweight_ih);
      if (of_bias) plan_.dbias.add(context_, parts.count, first, last, args_.dbias);
    }
    if (args_.dweight_hh.present) {
      const Parts parts = plan_.parts_hh.of(pixels_of(chunk));
      sum_weights(chunk, plan_.state, shape_.recurrent, chunk.h, parts, plan_.dweight_hh, nullptr);
      plan_.dweight_hh.add(context_, parts.count, first, last, args_.dweight_hh);
    }
  }

  int64_t pixels_of(const ChunkOfSteps& chunk) const { return chunk.steps() * shape_.batch * shape_.pixels(); }

  void sum_weights(const ChunkOfSteps& chunk, const TensorWeights<S>& weights, const ConvolutionShape& conv,
                   const Images<S>& images, const Parts& parts, const PartedGradient<float>& gradient,
                   float* bias) const {
    TensorGradientArgs<S> args{};
    args.images = images;
    args.geometry = convolution_geometry(conv, Layout::rows);
    args.taps = weights.taps();
    args.pieces = int(weights.pieces());
    args.dz = chunk.dz.data;
    args.rows = plan_.rows;
    args.dz_pitch = chunk.dz.by.pixel;
    args.channels = conv.in_channels;
    args.kernel = conv.taps();
    args.samples = chunk.steps() * shape_.batch;
    args.pixels = shape_.pixels();
    args.partial = gradient.partial();
    args.bias_partial = bias;
    tensor_gradient_parts(context_, args, parts);
  }

  void parameter_gradients(const ChunkOfSteps& chunk) const {
    TensorParameterGradientArgs<S> parameter{};
    parameter.dz = chunk.dz.data;
    parameter.dz_rows = plan_.rows;
    parameter.dz_pitch = chunk.dz.by.pixel;
    parameter.samples = chunk.steps() * shape_.batch;
    parameter.pixels = shape_.pixels();
    parameter.gates = chunk.gates.data;
    parameter.c_before = sequence_.c_before(chunk.time);
    const CellArgs<S> cell = sequence_.cell(Along::channels);
    parameter.gate_kind = cell.gate_kind;
    parameter.state_kind = cell.state_kind;
    parameter.activation = cell.activation;
    const auto add = [&](bool peephole, bool per_pixel, const Tensor& out, const PartedGradient<double>& gradient) {
      const Parts parts = per_pixel ? Parts{1, plan_.total} : plan_.parts_peephole.of(pixels_of(chunk));
      parameter.peephole = peephole;
      parameter.per_pixel = per_pixel;
      parameter.partial = gradient.partial();
      tensor_parameter_gradient_parts(context_, parameter, parts);
      gradient.add(context_, parts.count, chunk.end == shape_.steps, chunk.begin == 0, out);
    };
    if (args_.dbias.present && shape_.cell.bias_per_pixel) {
      add(false, true, args_.dbias, plan_.dbias_per_pixel);
    }
    if (args_.dpeephole.present) {
      add(true, shape_.cell.peephole_per_pixel, args_.dpeephole, plan_.dpeephole);
    }
  }

  void input_gradient(const ChunkOfSteps& chunk) const {
    TensorConvolutionArgs<S> ending{};
    ending.out = args_.dx.frames<S>().at_time(chunk.time);
    ending.batch = shape_.batch;
    plan_.input_transposed.run(context_, dz_images(chunk.dz, chunk.steps()), chunk.steps() * shape_.batch, ending);
  }

  // dh_0: what the first step's convolution and the running state leave. Without a step, that of the final state.
  void finish() const {
    if (shape_.steps == 0) {
      pass_through(context_, shape_, args_.dh_n.frames<const S>(), args_.dh_0.frames<S>());
      pass_through(context_, shape_, args_.dc_n.frames<const float>(), args_.dc_0.frames<float>());
      clear_gradients(context_, args_);
      return;
    }
    if (!args_.dh_0.present) return;
    TensorConvolutionArgs<S> ending{};
    ending.mask = args_.dropout_mask.as<const S>();
    ending.carry = to_read(plan_.carry_h);
    ending.out = args_.dh_0.frames<S>();
    ending.batch = shape_.batch;
    plan_.state_transposed.run(context_, dz_images(dz_after_, 1), shape_.batch, ending);
  }

  const ConvLstmBackward& args_;
  const ConvLstmShape& shape_;
  Context context_;
  Arena arena_;
  BackwardPlan<S> plan_;
  Sequence<S> sequence_;
  int which_ = 0;       // of the two buffers of dz
  Frames<S> dz_after_;  // of the step after those that are next
};

}  // namespace

int64_t tensor_backward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape) {
  return with_tensor_storage(shape.dtype, [&](auto s) {
    Arena arena;
    BackwardPlan<decltype(s)>(args, shape, arena);
    return arena.bytes();
  });
}

int64_t tensor_statistics_parts(const ConvLstmShape& shape) {
  return with_tensor_storage(shape.dtype, [&](auto s) {
    Arena arena;
    const TensorWeights<decltype(s)> weights(shape.recurrent, Layout::transposed, shape.batch, arena);
    const dim3 grid = weights.grid(shape.batch);
    return int64_t(grid.x) * grid.y;
  });
}

void tensor_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch) {
  with_tensor_storage(shape.dtype, [&](auto s) { Backward<decltype(s)>(args, shape, launch).run(); });
}

}  // namespace fusecell::cuda
