#pragma once
// One step of a ConvLSTM forward, and the order of the steps: what the sequence's forward and backward share. A step
// takes in x_t and h', then one task per block of pixels convolves both into z and runs the gates on it while it is in
// the cache; z never reaches main memory.

#include <vector>

#include "cpu/cell_step.h"
#include "cpu/convolutions.h"
#include "cpu/work.h"
#include "problem/conv_lstm.h"

namespace fusecell::cpu {

// ----------------------------------------------------------------------------------------------- one step, forward
template <class S>
struct ForwardStep {
  Frames<const S> x;                               // [B, Cin, Hin, Win]
  std::vector<Image<const S>> h_before, c_before;  // [B] of [C, H, W]
  std::vector<uint8_t> active;                     // [B]; what is inactive is not touched
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, H, W] or null
  Frames<S> h_out, c_out, y;                       // [B, C, H, W]; each may be null
  S *c_saved, *gates;                              // [B, C or 4C, H, W]; each may be null
};

// The convolutions of a ConvLSTM: source 0 is the input, source 1 the state.
inline ConvolutionSet convolutions_of(const ConvLstmShape& shape) {
  return {{shape.input, shape.recurrent}, shape.batch, 4, shape.algorithm};
}

template <class S>
void read_sources(Convolutions<S>& convolutions, const ForwardStep<S>& step, const S* dropout_mask) {
  convolutions.read(0, step.active, [&](int64_t b) { return step.x.image(b); }, nullptr);
  convolutions.read(1, step.active, [&](int64_t b) { return step.h_before[static_cast<size_t>(b)]; }, dropout_mask);
}

// The gates of one channel at a block, z's four rows of it `pitch` apart.
template <class S>
void run_gates(const Kernels<S>& kernels, const Cell<S>& cell, const ForwardStep<S>& step, const Block& block,
               int64_t columns, int64_t channel, const S* z, int64_t pitch) {
  const int64_t C = cell.channels, P = cell.pixels, b = block.b, first = block.row0 * columns + block.column0;
  for (int64_t done = 0; done < block.pixels(); done += kCellRun) {
    const int64_t p = first + done, n = std::min(kCellRun, block.pixels() - done);
    const int64_t at = (b * C + channel) * P + p;
    CellForwardRun<S> run{};
    cell.point(run, channel, p, n, step.c_before[static_cast<size_t>(b)].at(channel, p),
               step.h_before[static_cast<size_t>(b)].at(channel, p), at_or_null(step.zoneout_mask_h, at),
               at_or_null(step.zoneout_mask_c, at));
    cell.point_bias(run, channel, p);
    for (int64_t k = 0; k < 4; ++k) {
      run.z[k] = z + k * pitch + done;
      run.gates[k] = at_or_null(step.gates, (b * 4 * C + k * C + channel) * P + p);
    }
    run.h_out = step.h_out.image(b).at(channel, p).data;  // pixels that are neighbours
    run.c_out = step.c_out.image(b).at(channel, p).data;
    run.y = step.y.image(b).at(channel, p);
    run.c_saved = at_or_null(step.c_saved, at);
    kernels.cell_forward(run);
  }
}

// From what was read to the step's outputs.
template <class S>
void run_step(Convolutions<S>& convolutions, const Cell<S>& cell, int64_t columns, const ForwardStep<S>& step) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  convolutions.outputs(step.active, [&](const Block& block, const S* z, int64_t pitch) {
    for (int64_t m = block.m0; m < block.m1; m += 4) {
      run_gates(kernels, cell, step, block, columns, m / 4, z + (m - block.m0) * pitch, pitch);
    }
  });
}

// ------------------------------------------------------------------------------------------------ time and lengths
// The s-th step of the direction is original time t; a step beyond a sample's length leaves its state alone.
struct Timeline {
  int64_t steps, batch;
  bool reverse;
  const int64_t* lengths;

  Timeline(const ConvLstmForward& args, const ConvLstmShape& shape)
      : steps(shape.steps),
        batch(shape.batch),
        reverse(args.options.reverse),
        lengths(args.lengths.as<const int64_t>()) {}

  int64_t time(int64_t s) const { return reverse ? steps - 1 - s : s; }
  bool active(int64_t s, int64_t b) const { return !lengths || time(s) < lengths[b]; }
  // Of a group of samples from the first on. The last group may reach beyond the batch: nothing is active there.
  std::vector<uint8_t> active(int64_t s, int64_t first, int64_t group) const {
    std::vector<uint8_t> list(static_cast<size_t>(group));
    for (int64_t j = 0; j < group && first + j < batch; ++j) list[static_cast<size_t>(j)] = active(s, first + j);
    return list;
  }
};

// -------------------------------------------------------------------------------------------------------- copies
// A state, or its gradient, to where it will be worked on, or back; what is absent is zero. Few pixels at a time: with
// channels last, a cache line holds those of many channels.
template <class S>
void copy_state(const ConvLstmShape& shape, const Frames<const S>& from, int workers, const Frames<S>& to) {
  const int64_t blocks = ceil_div(shape.pixels(), kCellRun);
  parallel_for(shape.batch * blocks, workers, work::copies(shape.state_size()), [&](int64_t task, int) {
    const int64_t b = task / blocks, p = task % blocks * kCellRun, n = std::min(kCellRun, shape.pixels() - p);
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      copy_pixels(from.image(b).at(channel, p), n, to.image(b).at(channel, p));
    }
  });
}

// Where a running state, or its gradient, is kept: in the array that gets it at the end, if that is there and its
// pixels are neighbours.
template <class S>
Frames<S> running(const ConvLstmShape& shape, const Frames<S>& result, S* scratch) {
  const bool in_place = result.data && result.by.pixel == 1;
  return in_place ? result : contiguous_frames(scratch, shape.batch, shape.channels, shape.pixels());
}

template <class S>
void finish(const ConvLstmShape& shape, const Frames<S>& running, int workers, const Frames<S>& result) {
  if (result.data && result.data != running.data) copy_state(shape, to_read(running), workers, result);
}

template <class S>
void copy_image(int64_t channels, int64_t pixels, const Image<const S>& from, const Image<S>& to) {
  for (int64_t channel = 0; channel < channels; ++channel) copy_pixels(from.at(channel, 0), pixels, to.at(channel, 0));
}

template <class S>
Cell<S> cell_of(const ConvLstmForward& args, const ConvLstmShape& shape) {
  return Cell<S>(args.options.cell, shape.cell, shape.channels, shape.pixels(), args.bias, args.peephole,
                 args.zoneout_mask_h, args.zoneout_mask_c);
}

}  // namespace fusecell::cpu
