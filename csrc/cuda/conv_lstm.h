#pragma once
// What the sequence's forward and backward share on the host: the order of the steps, and where each step finds what.

#include "base/arena.h"
#include "cuda/cell_args.h"
#include "cuda/conv_lstm_backward.cuh"
#include "cuda/packed.h"
#include "problem/conv_lstm.h"

namespace fusecell::cuda {

// The launch of one step; in conv_lstm_forward.cu. default_cell: sigmoid and tanh.
template <class S>
void run_forward_step(const Context& context, bool default_cell, dim3 grid, const ForwardStepArgs<S>& step);

// Without a step the final state is the initial one, and so is its gradient. In any layout; an empty sequence need not
// be fast.
template <class T>
void pass_through(const Context& context, const ConvLstmShape& shape, const Frames<const T>& from,
                  const Frames<T>& to) {
  const int64_t P = shape.pixels(), run = from.by.pixel == 1 && to.by.pixel == 1 ? P : 1;
  for (int64_t i = 0; to.data && i < shape.state_size(); i += run) {
    const int64_t b = i / P / shape.channels, channel = i / P % shape.channels, p = i % P;
    const T* pixels = from.image(b).at(channel, p).data;
    T* place = to.image(b).at(channel, p).data;
    const int64_t bytes = run * int64_t(sizeof(T));
    pixels ? context.copy(place, pixels, bytes) : context.zero(place, bytes);
  }
}

// Without a step, or a sample, there is nothing to sum.
inline void clear_gradients(const Context& context, const ConvLstmBackward& args) {
  for (const Tensor* gradient : {&args.dweight_ih, &args.dweight_hh, &args.dbias, &args.dpeephole}) {
    if (gradient->present) context.zero(gradient->data, gradient->size() * size_of(gradient->dtype));
  }
}

// A convolution finds its pixels with strides in 32 bits.
template <class T>
void expect_small_strides(const char* name, const Frames<T>& frames) {
  const int64_t largest = std::max(frames.by.channel, frames.by.pixel);
  if (largest > INT32_MAX) {
    value_error(name, "strides of channels and pixels below 2^31 on a GPU", std::to_string(largest));
  }
}

template <class S>
class Sequence {
 public:
  using A = Accumulate<S>;

  Sequence(const ConvLstmForward& args, const ConvLstmShape& shape)
      : args_(args),
        shape_(shape),
        size_(shape.state_size()),
        x_(args.x.frames<const S>()),
        y_(args.y.frames<const S>()),
        h_0_(args.h_0.frames<const S>()),
        c_0_(args.c_0.frames<const A>()),
        h_n_(args.h_n.frames<const S>()),
        c_n_(args.c_n.frames<const A>()) {
    expect_small_strides("x", x_);
    expect_small_strides("y", y_);
    expect_small_strides("h_0", h_0_);
  }

  // The s-th step of the direction, as original time.
  int64_t time(int64_t s) const { return args_.options.reverse ? shape_.steps - 1 - s : s; }

  // Whether the state that enters step s gets no gradient.
  bool detaches(int64_t s) const {
    const int64_t every = args_.options.truncation;
    return every > 0 && s > 0 && s % every == 0;
  }

  // x from time t on. With lengths: what does not take place reads as zero.
  Images<S> x(int64_t t) const {
    Images<S> images{};
    images.frames = x_.at_time(t);
    return at_time(images, t, 0);
  }
  // h' and c' of the steps from time t on: the step before's, where it took place, else the initial state.
  Images<S> h_before(int64_t t, bool dropped) const {
    Images<S> images{};
    images.frames = y_.at_time(t + shift());
    images.initial = h_0_;
    images.mask = dropped ? args_.dropout_mask.as<const S>() : nullptr;
    images.mask_image = shape_.channels * shape_.pixels();
    return at_time(images, t, shift());
  }
  Images<A> c_before(int64_t t) const {
    Images<A> images{};
    images.frames = args_.c.present ? args_.c.frames<const A>().at_time(t + shift()) : c_n_;
    images.initial = c_0_;
    return at_time(images, t, shift());
  }

  // Whole packs: of pixels, or, along channels, of kTensorPack channels.
  CellArgs<S> cell(Along along) const {
    CellArgs<S> cell = cell_args<S>(args_.options.cell, shape_.cell, shape_.channels, shape_.pixels(), args_.bias,
                                    args_.peephole, args_.zoneout_mask_h, args_.zoneout_mask_c);
    const auto fit = [along](const auto&... frames) { return (aligned(frames, along) && ...); };
    const int64_t extent = along == Along::pixels ? shape_.pixels() * int64_t(sizeof(S)) : shape_.channels * 4;
    cell.whole = all_aligned(extent, cell.bias, cell.peephole, args_.dropout_mask.as<S>()) &&
                 fit(y_, h_0_, c_0_, h_n_, c_n_, args_.gates.frames<const S>(), args_.c.frames<const A>());
    return cell;
  }

  // The step at time t with everything but its outputs.
  ForwardStep<S> forward_step(int64_t s, Along along = Along::pixels) const {
    const int64_t t = time(s);
    ForwardStep<S> step{};
    step.cell = cell(along);
    step.h_before = h_before(t, false);
    step.c_before = c_before(t);
    step.zoneout_mask_h = shifted_mask(args_.zoneout_mask_h, t);
    step.zoneout_mask_c = shifted_mask(args_.zoneout_mask_c, t);
    step.lengths = args_.lengths.as<const int64_t>();
    step.time = t;
    step.steps = shape_.steps;
    step.reverse = args_.options.reverse;
    return step;
  }

  // What forward writes of the step.
  void keep(ForwardStep<S>& step) const {
    step.y = args_.y.frames<S>().at_time(step.time);
    step.h_n = args_.h_n.frames<S>();
    step.c_n = args_.c_n.frames<A>();
    step.c = args_.c.frames<A>().at_time(step.time);
    step.gates = args_.gates.frames<S>().at_time(step.time);
  }

  // The step's convolutions. Without a step before and without h_0 the state's is zero.
  bool has_state(int64_t s) const { return s > 0 || args_.h_0.present; }
  CorrelateArgs<S> convolutions(int64_t s, const PackedWeights<S>& input, const PackedWeights<S>& state) const {
    const int64_t t = time(s);
    CorrelateArgs<S> correlate = input.correlate_args(shape_.batch);
    correlate.operand[0] = input.operand(x(t));
    correlate.operand[0].images.lengths = nullptr;  // what it computes in the padding is thrown away
    correlate.operand[1] = state.operand(h_before(t, true));
    if (!has_state(s)) correlate.operand[1].depth = 0;
    return correlate;
  }

  // The step of the sweep at time t with everything but dz, the gates, and where the running gradients lie.
  BackwardStep<S> backward_step(int64_t s, const ConvLstmBackward& args, Along along = Along::pixels) const {
    const int64_t t = time(s);
    BackwardStep<S> step{};
    step.cell = cell(along);
    step.c_before = c_before(t);
    step.zoneout_mask_h = shifted_mask(args_.zoneout_mask_h, t);
    step.zoneout_mask_c = shifted_mask(args_.zoneout_mask_c, t);
    step.dy = args.dy.frames<const S>().at_time(t);
    step.dropout_mask = args_.dropout_mask.as<const S>();
    step.dh_first = args.dh_n.frames<const S>();
    step.dc_first = args.dc_n.frames<const A>();
    step.first = s == shape_.steps - 1;
    step.detach = detaches(s);
    step.lengths = args_.lengths.as<const int64_t>();
    step.time = t;
    const auto fit = [along](const auto&... frames) { return (aligned(frames, along) && ...); };
    step.cell.whole = step.cell.whole && fit(step.dy, step.dh_first, step.dc_first);
    if (s == 0 && args.dc_0.present) {
      step.dc = args.dc_0.frames<A>();
      step.cell.whole = step.cell.whole && fit(step.dc);
    }
    return step;
  }

  int64_t size() const { return size_; }

 private:
  const uint8_t* shifted_mask(const Tensor& mask, int64_t t) const {
    return mask.present ? mask.as<const uint8_t>() + t * size_ : nullptr;
  }
  int shift() const { return args_.options.reverse ? 1 : -1; }

  template <class T>
  Images<T> at_time(Images<T> images, int64_t t, int shift) const {
    images.batch = shape_.batch;
    images.time = t;
    images.steps = shape_.steps;
    images.lengths = args_.lengths.as<const int64_t>();
    images.shift = shift;
    return images;
  }

  const ConvLstmForward& args_;
  const ConvLstmShape& shape_;
  int64_t size_;
  Frames<const S> x_, y_, h_0_;
  Frames<const A> c_0_;
  Frames<const S> h_n_;
  Frames<const A> c_n_;
};

}  // namespace fusecell::cuda
