#pragma once
// The steps of a ConvLSTM, forward and backward, as endings of convolutions on tensor cores: what conv_lstm_forward.cuh
// and conv_lstm_backward.cuh do, with channels last.

#include "cuda/conv_lstm_backward.cuh"
#include "cuda/tensor_tile.cuh"

namespace fusecell::cuda {

template <class S>
struct TensorForwardArgs {
  TensorTileArgs<S> tile;  // rows interleaved; operand 1: the state
  ForwardStep<S> step;
};

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, 2) tensor_forward_step(const TensorForwardArgs<S> args) {
  if (!device::has_tensor_cores()) return;
  FUSECELL_SHARED(TensorPlaces<S>, places, 1);
  FUSECELL_DYNAMIC_SHARED(stages);
  const int64_t C = args.step.cell.channels;
  const ParkedSums sums = tensor_tile(args.tile, places, stages);
  for_tensor_pixels(args.tile, sums, [&](int i, int64_t b, int64_t p, int64_t group) {
    const int64_t first = group * kGroupChannels + sums.channel;
    if (first >= C) return;
    float z[4][kTensorPack];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) sums.load(i, gate, z[gate]);
    finish_step<Act, Along::channels>(args.step, z, channel_span(first, C, args.step.cell.whole), b, first, p);
  });
}

template <class S>
struct TensorBackwardArgs {
  TensorTileArgs<S> tile;  // operand 0: dz of the step after; no stages at the first, or where it is detached
  BackwardStep<S> step;
};

// Blocks of a multiprocessor: with any activation and half of the registers nvcc 13.0 spills some of them on sm_90a.
template <class Act>
constexpr int kBackwardBlocks = 1;
template <>
constexpr int kBackwardBlocks<SigmoidTanh<float>> = 2;

template <class S, class Act>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<Act>)
    tensor_backward_step(const TensorBackwardArgs<S> args) {
  if (!device::has_tensor_cores()) return;
  using Sums = StatisticSums<float>;
  FUSECELL_SHARED(TensorPlaces<S>, places, 1);
  FUSECELL_SHARED(double, warp_squares, kThreads / 32 * Sums::kSquares);
  FUSECELL_SHARED(float, warp_others, kThreads / 32 * Sums::kOthers);
  FUSECELL_DYNAMIC_SHARED(stages);
  Sums sums, *wanted = args.step.statistics ? &sums : nullptr;
  const ParkedSums through = tensor_tile(args.tile, places, stages);
  for_tensor_channels(args.tile, through, args.step.cell.channels, args.step.cell.whole,
                      [&](int64_t b, int64_t p, int64_t channel, const Span& span, const float (&value)[kTensorPack]) {
                        finish_backward_step<Act, Along::channels>(args.step, value, span, b, channel, p, wanted);
                      });
  if (args.step.statistics) store_statistics(args.step.statistics, sums, warp_squares, warp_others);
}

}  // namespace fusecell::cuda
