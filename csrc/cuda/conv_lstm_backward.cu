// The ConvLSTM sequence backward: a sweep over the steps in reverse that leaves dz of a chunk of steps, then the
// gradients of weights, parameters and inputs from the whole chunk; and so on to the first step.

#include "cuda/conv_lstm_backward.cuh"

#include <algorithm>

#include "cuda/tensor_conv_lstm.h"

namespace fusecell::cuda {
namespace {

// The parts of a parameter's gradient: sums per channel, or one per pixel.
Parts parameter_parts(bool per_pixel, int64_t total) { return per_pixel ? Parts{1, total} : channel_parts(total); }

template <class S>
struct BackwardPlan {
  using A = Accumulate<S>;
  int64_t chunk;
  PackedWeights<S> input, state, input_transposed, state_transposed;
  Parts parts_ih, parts_hh, parts_bias, parts_peephole;
  PartedGradient<A> dweight_ih, dweight_hh;
  PartedGradient<double> dbias, dpeephole;
  A *carry_h, *carry_c;   // the running gradients of the state
  S *dz[2] = {}, *gates;  // dz of a chunk; the chunk before lies in the other, if there are several

  BackwardPlan(const ConvLstmForward& args, const ConvLstmShape& shape, Arena& arena)
      : chunk(steps_per_chunk(shape)),
        input(shape.input, Layout::interleaved, arena),
        state(shape.recurrent, Layout::interleaved, arena),
        input_transposed(shape.input, Layout::transposed, arena),
        state_transposed(shape.recurrent, Layout::transposed, arena),
        parts_ih(gradient_parts(rows(shape), input.taps_count(), total(shape, chunk))),
        parts_hh(gradient_parts(rows(shape), state.taps_count(), total(shape, chunk))),
        parts_bias(parameter_parts(shape.cell.bias_per_pixel, total(shape, chunk))),
        parts_peephole(parameter_parts(shape.cell.peephole_per_pixel, total(shape, chunk))),
        dweight_ih(parts_ih.count, rows(shape) * input.taps_count(), shape.steps > chunk, arena),
        dweight_hh(parts_hh.count, rows(shape) * state.taps_count(), shape.steps > chunk, arena),
        dbias(parts_bias.count, args.bias.present ? args.bias.size() : 0, shape.steps > chunk, arena),
        dpeephole(parts_peephole.count, args.peephole.present ? args.peephole.size() : 0, shape.steps > chunk, arena) {
    carry_h = arena.take<A>(shape.state_size());
    carry_c = arena.take<A>(shape.state_size());
    for (int i = 0; i < (shape.steps > chunk ? 2 : 1); ++i) {
      dz[i] = arena.take<S>(checked_product("scratch", {chunk, 4, shape.state_size()}));
    }
    gates = args.gates.present ? nullptr : arena.take<S>(checked_product("scratch", {chunk, 4, shape.state_size()}));
  }

  static int64_t rows(const ConvLstmShape& shape) { return 4 * shape.channels; }
  static int64_t total(const ConvLstmShape& shape, int64_t chunk) {
    return checked_product("scratch", {chunk, shape.batch, shape.pixels()});
  }
};

template <class S>
class Backward {
 public:
  using A = Accumulate<S>;

  Backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch)
      : args_(args),
        shape_(shape),
        context_("conv_lstm_backward", launch),
        arena_(launch.scratch),
        plan_(args, shape, arena_),
        sequence_(args, shape),
        size_(sequence_.size()) {}

  void run() {
    plan_.input.pack(context_, args_.weight_ih.as<const S>());
    plan_.state.pack(context_, args_.weight_hh.as<const S>());
    if (shape_.steps > 1 || args_.dh_0.present) plan_.state_transposed.pack(context_, args_.weight_hh.as<const S>());
    if (args_.dx.present) plan_.input_transposed.pack(context_, args_.weight_ih.as<const S>());
    for (int64_t end = shape_.steps; end > 0; end -= plan_.chunk)
      run_chunk(std::max<int64_t>(end - plan_.chunk, 0), end);
    finish();
  }

 private:
  // Steps begin to end - 1 of the direction. Their dz lie in the order of time.
  struct ChunkOfSteps {
    int64_t begin, end, time;  // time: the earliest
    S* dz;                     // theirs
    const S* dz_after;         // that of step `end`; null at the last

    int64_t steps() const { return end - begin; }
  };

  void run_chunk(int64_t begin, int64_t end) {
    const ChunkOfSteps chunk = {begin, end, args_.options.reverse ? shape_.steps - end : begin, plan_.dz[which_],
                                dz_after_};
    if (!args_.gates.present) recompute(chunk);
    for (int64_t s = end - 1; s >= begin; --s) sweep(chunk, s);
    weight_gradients(chunk);
    if (args_.dx.present) input_gradient(chunk);
    dz_after_ = dz_of(chunk, begin);
    which_ ^= 1;
  }

  Images<S> dz_images(const S* dz, int64_t samples) const {
    return plain_images(dz, 4 * shape_.channels, shape_.pixels(), samples);
  }
  S* dz_of(const ChunkOfSteps& chunk, int64_t s) const {
    return chunk.dz + (sequence_.time(s) - chunk.time) * 4 * size_;
  }
  // The gates of the chunk's steps, from its earliest time on.
  const S* gates_of(const ChunkOfSteps& chunk) const {
    return args_.gates.present ? args_.gates.as<const S>() + chunk.time * 4 * size_ : plan_.gates;
  }

  void recompute(const ChunkOfSteps& chunk) const {
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      ForwardStepArgs<S> step = {sequence_.convolutions(s, plan_.input, plan_.state), sequence_.forward_step(s)};
      step.step.gates = gate_frames(plan_.gates).at_time(step.step.time - chunk.time);
      run_forward_step(context_, is_default_cell(shape_.cell), plan_.input.grid(shape_.batch), step);
    }
  }

  template <class T>
  Frames<T> gate_frames(T* gates) const {
    return contiguous_frames(gates, shape_.batch, 4 * shape_.channels, shape_.pixels());
  }

  void sweep(const ChunkOfSteps& chunk, int64_t s) const {
    const int64_t t = sequence_.time(s);
    BackwardStepArgs<S> args{plan_.state_transposed.correlate_args(shape_.batch), sequence_.backward_step(s, args_)};
    BackwardStep<S>& step = args.step;
    if (!step.first && !sequence_.detaches(s + 1)) {
      const S* dz = s + 1 < chunk.end ? dz_of(chunk, s + 1) : chunk.dz_after;
      args.correlate.operand[0] = plan_.state_transposed.operand(dz_images(dz, shape_.batch));
    }
    step.gates = gate_frames(gates_of(chunk)).at_time(t - chunk.time);
    step.carry_h = contiguous_frames(plan_.carry_h, shape_.batch, shape_.channels, shape_.pixels());
    const Frames<A> carry_c = contiguous_frames(plan_.carry_c, shape_.batch, shape_.channels, shape_.pixels());
    step.carry_c = to_read(carry_c);
    if (!step.dc.data) step.dc = carry_c;
    step.dz = gate_frames(dz_of(chunk, s));
    const dim3 grid = plan_.state_transposed.grid(shape_.batch);
    if (args_.statistics.present) {
      step.statistics = args_.statistics.as<double>() + t * int64_t(grid.x) * grid.y * kStepStatistics;
    }
    const auto kernel =
        is_default_cell(shape_.cell) ? backward_step<S, SigmoidTanh<A>> : backward_step<S, AnyActivation<A>>;
    context_.run("backward_step", kernel, grid, args);
  }

  void weight_gradients(const ChunkOfSteps& chunk) const {
    const bool first = chunk.end == shape_.steps, last = chunk.begin == 0;
    const int64_t samples = chunk.steps() * shape_.batch, P = shape_.pixels(), rows = 4 * shape_.channels;
    const int64_t total = samples * P;
    const auto weights = [&](const PackedWeights<S>& packed, const Images<S>& images, const Tensor& out,
                             const Parts& planned, const PartedGradient<A>& gradient) {
      if (!out.present) return;
      const Parts parts = planned.of(total);
      weight_gradient_parts(context_, packed, images, chunk.dz, rows, samples, P, parts, gradient.partial());
      gradient.add(context_, parts.count, first, last, out);
    };
    weights(plan_.input, sequence_.x(chunk.time), args_.dweight_ih, plan_.parts_ih, plan_.dweight_ih);
    weights(plan_.state, sequence_.h_before(chunk.time, true), args_.dweight_hh, plan_.parts_hh, plan_.dweight_hh);

    ParameterGradientArgs<S> parameter{};
    parameter.dz = chunk.dz;
    parameter.dz_rows = rows;
    parameter.samples = samples;
    parameter.pixels = P;
    parameter.gates = gates_of(chunk);
    parameter.c_before = sequence_.c_before(chunk.time);
    const CellArgs<S> cell = sequence_.cell(Along::pixels);
    parameter.gate_kind = cell.gate_kind;
    parameter.state_kind = cell.state_kind;
    parameter.activation = cell.activation;
    const auto parameters = [&](bool peephole, bool per_pixel, const Tensor& out, const Parts& planned,
                                const PartedGradient<double>& gradient) {
      if (!out.present) return;
      const Parts parts = planned.of(total);
      parameter.peephole = peephole;
      parameter.per_pixel = per_pixel;
      parameter.rows = out.shape[0];
      parameter.partial = gradient.partial();
      parameter_gradient_parts(context_, parameter, parts);
      gradient.add(context_, parts.count, first, last, out);
    };
    parameters(false, shape_.cell.bias_per_pixel, args_.dbias, plan_.parts_bias, plan_.dbias);
    parameters(true, shape_.cell.peephole_per_pixel, args_.dpeephole, plan_.parts_peephole, plan_.dpeephole);
  }

  void input_gradient(const ChunkOfSteps& chunk) const {
    const int64_t samples = chunk.steps() * shape_.batch;
    ConvolutionArgs<S> ending{};
    ending.out = args_.dx.frames<S>().at_time(chunk.time);
    ending.batch = shape_.batch;
    plan_.input_transposed.run(context_, dz_images(chunk.dz, samples), samples, ending);
  }

  // dh_0: what the first step's convolution and the running state leave. Without a step, that of the final state.
  void finish() const {
    if (shape_.steps == 0) {
      pass_through(context_, shape_, args_.dh_n.frames<const S>(), args_.dh_0.frames<S>());
      pass_through(context_, shape_, args_.dc_n.frames<const A>(), args_.dc_0.frames<A>());
      clear_gradients(context_, args_);
      return;
    }
    if (!args_.dh_0.present) return;
    ConvolutionArgs<S> ending{};
    ending.mask = args_.dropout_mask.as<const S>();
    ending.carry = plan_.carry_h;
    ending.out = args_.dh_0.frames<S>();
    ending.batch = shape_.batch;
    plan_.state_transposed.run(context_, dz_images(dz_after_, shape_.batch), shape_.batch, ending);
  }

  const ConvLstmBackward& args_;
  const ConvLstmShape& shape_;
  Context context_;
  Arena arena_;
  BackwardPlan<S> plan_;
  Sequence<S> sequence_;
  int64_t size_;
  int which_ = 0;                // of the two buffers of dz
  const S* dz_after_ = nullptr;  // of the step after those that are next
};

}  // namespace
}  // namespace fusecell::cuda

namespace fusecell::backend {

int64_t conv_lstm_backward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape, int /*workers*/) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_backward_scratch(args, shape);
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::BackwardPlan<decltype(s)>(args, shape, arena);
    return arena.bytes();
  });
}

int64_t conv_lstm_statistics_parts(const ConvLstmShape& shape) {
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_statistics_parts(shape);
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    const cuda::PackedWeights<decltype(s)> weights(shape.recurrent, cuda::Layout::transposed, arena);
    const dim3 grid = weights.grid(shape.batch);
    return int64_t(grid.x) * grid.y;
  });
}

void conv_lstm_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch) {
  if (shape.batch == 0) return cuda::clear_gradients(cuda::Context("conv_lstm_backward", launch), args);
  if (on_tensor_cores(shape.algorithm)) return cuda::tensor_backward(args, shape, launch);
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::Backward<decltype(s)>(args, shape, launch).run(); });
}

}  // namespace fusecell::backend
