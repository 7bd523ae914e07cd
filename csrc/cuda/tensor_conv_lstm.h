#pragma once
// What the sequence's forward and backward on tensor cores share on the host.

#include "cuda/conv_lstm.h"
#include "cuda/tensor_packed.h"
#include "cuda/tensor_step.cuh"

namespace fusecell::cuda {

// On tensor cores; in tensor_conv_lstm_forward.cu and tensor_conv_lstm_backward.cu.
int64_t tensor_forward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape);
int64_t tensor_backward_scratch(const ConvLstmForward& args, const ConvLstmShape& shape);
void tensor_forward(const ConvLstmForward& args, const ConvLstmShape& shape, const Launch& launch);
void tensor_backward(const ConvLstmBackward& args, const ConvLstmShape& shape, const Launch& launch);
int64_t tensor_statistics_parts(const ConvLstmShape& shape);

// The launch of one step. overlaps: it may begin before the launch before it has ended, as a step with a state may.
template <class S>
void run_tensor_forward_step(const Context& context, bool default_cell, bool overlaps, dim3 grid,
                             const TensorForwardArgs<S>& args);

// Whether the state's convolution can read y and h_0 themselves, with one stride of pixels for both. Where y is not
// known yet, it cannot.
template <class S>
bool reads_state_in_place(const ConvLstmForward& args, int64_t channels) {
  if (!args.y.present || args.dropout_mask.present) return false;
  const Frames<const S> y = args.y.frames<const S>(), h_0 = args.h_0.frames<const S>();
  return in_pieces(y, channels) && in_pieces(h_0, channels) && (!h_0.data || h_0.by.pixel == y.by.pixel);
}

template <class S>
ReadableImages<S> readable_x(const ConvLstmForward& args, const ConvLstmShape& shape, int64_t steps, Arena& arena) {
  const int64_t channels = shape.input.in_channels;
  return ReadableImages<S>(in_pieces(args.x.frames<const S>(), channels), steps, shape.batch, channels,
                           shape.input.in_pixels(), arena);
}

// x: of the step, as is h.
template <class S>
TensorTileArgs<S> step_convolutions(const Context& context, const TensorWeights<S>& input,
                                    const TensorWeights<S>& state, Images<S> x, const Images<S>& h, bool has_state) {
  TensorTileArgs<S> tile = input.tile(context, x.batch);
  x.lengths = nullptr;  // what it computes in the padding is thrown away
  tile.operand[0] = input.operand(x);
  tile.operand[1] = state.operand(h);
  tile.operand[1].follows = true;
  if (!has_state) tile.operand[1].stages = 0;
  return tile;
}

}  // namespace fusecell::cuda
