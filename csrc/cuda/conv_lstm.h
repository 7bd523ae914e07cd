#pragma once
// What the sequence's forward and backward share on the host: the order of the steps, and where each step finds what.

#include "base/arena.h"
#include "cuda/cell_args.h"
#include "cuda/conv_lstm_forward.cuh"
#include "cuda/packed.h"
#include "problem/conv_lstm.h"

namespace fusecell::cuda {

// The launch of one step; in conv_lstm_forward.cu. default_cell: sigmoid and tanh.
template <class S>
void run_forward_step(const Context& context, bool default_cell, dim3 grid, const ForwardStepArgs<S>& step);

template <class S>
class Sequence {
 public:
  using A = Accumulate<S>;

  Sequence(const ConvLstmForward& args, const ConvLstmShape& shape)
      : args_(args),
        shape_(shape),
        size_(shape.state_size()),
        image_(shape.channels * shape.pixels()),
        x_image_(shape.input.in_channels * shape.input.in_pixels()) {}

  // The s-th step of the direction, as original time.
  int64_t time(int64_t s) const { return args_.options.reverse ? shape_.steps - 1 - s : s; }

  // Whether the state that enters step s gets no gradient.
  bool detaches(int64_t s) const {
    const int64_t every = args_.options.truncation;
    return every > 0 && s > 0 && s % every == 0;
  }

  // x from time t on. With lengths: what does not take place reads as zero.
  Images<S> x(int64_t t) const {
    Images<S> images = plain_images(args_.x.as<const S>() + t * shape_.batch * x_image_, x_image_, shape_.batch);
    return at_time(images, t, 0);
  }
  // h' and c' of the steps from time t on: the step before's, where it took place, else the initial state.
  Images<S> h_before(int64_t t, bool dropped) const {
    Images<S> images = plain_images(args_.y.as<const S>() + (t + shift()) * size_, image_, shape_.batch);
    images.initial = args_.h_0.as<const S>();
    images.mask = dropped ? args_.dropout_mask.as<const S>() : nullptr;
    return at_time(images, t, shift());
  }
  Images<A> c_before(int64_t t) const {
    const A* c = args_.c.present ? args_.c.as<const A>() + (t + shift()) * size_ : nullptr;
    Images<A> images = plain_images(c, image_, shape_.batch);
    images.initial = args_.c_0.as<const A>();
    return at_time(images, t, shift());
  }

  CellArgs<S> cell() const {
    CellArgs<S> cell = cell_args<S>(args_.options.cell, shape_.cell, shape_.channels, shape_.pixels(), args_.bias,
                                    args_.peephole, args_.zoneout_mask_h, args_.zoneout_mask_c);
    cell.whole = all_aligned(shape_.pixels() * int64_t(sizeof(S)), cell.bias, cell.peephole, args_.h_0.as<S>(),
                             args_.c_0.as<A>(), args_.dropout_mask.as<S>(), args_.y.as<S>(), args_.h_n.as<S>(),
                             args_.c_n.as<A>(), args_.gates.as<S>(), args_.c.as<A>());
    return cell;
  }

  // The step at time t with everything but its outputs. input, state: the packed weights, interleaved.
  ForwardStepArgs<S> forward_step(int64_t s, const PackedWeights<S>& input, const PackedWeights<S>& state) const {
    const int64_t t = time(s);
    ForwardStepArgs<S> step{};
    step.correlate = input.correlate_args(shape_.batch);
    step.correlate.operand[0] = input.operand(x(t));
    step.correlate.operand[0].images.lengths = nullptr;  // what it computes in the padding is thrown away
    step.correlate.operand[1] = state.operand(h_before(t, true));
    if (s == 0 && !args_.h_0.present) step.correlate.operand[1].stages = 0;
    step.cell = cell();
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

  const uint8_t* shifted_mask(const Tensor& mask, int64_t t) const {
    return mask.present ? mask.as<const uint8_t>() + t * size_ : nullptr;
  }
  int64_t size() const { return size_; }
  int64_t image() const { return image_; }
  int64_t x_size() const { return shape_.batch * x_image_; }

 private:
  int shift() const { return args_.options.reverse ? 1 : -1; }

  template <class T>
  Images<T> at_time(Images<T> images, int64_t t, int shift) const {
    images.time = t;
    images.steps = shape_.steps;
    images.lengths = args_.lengths.as<const int64_t>();
    images.shift = shift;
    return images;
  }

  const ConvLstmForward& args_;
  const ConvLstmShape& shape_;
  int64_t size_, image_, x_image_;
};

}  // namespace fusecell::cuda
