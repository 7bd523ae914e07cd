#pragma once
// One step of a ConvLSTM forward, and the order of the steps: what the sequence's forward and backward share. A step
// packs x_t and h', then one task per block of pixels convolves both into z and runs the gates on it while it is in the
// cache; z never reaches main memory.

#include <vector>

#include "base/arena.h"
#include "cpu/cell_step.h"
#include "cpu/convolution.h"
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

template <class S>
class StepForward {
 public:
  // runs: whether steps are computed, and not their inputs packed alone.
  StepForward(const ConvLstmShape& shape, Arena& arena, int workers, bool runs = true)
      : shape_(shape),
        kernels_(cpu::kernels().get<S>()),
        pitch_(common_pitch({&shape.input, &shape.recurrent})),
        in_(input_packing(shape.input, pitch_)),
        state_(input_packing(shape.recurrent, pitch_)),
        count_in_(shape.input.in_channels * shape.input.taps()),
        count_state_(shape.channels * shape.recurrent.taps()),
        blocks_{shape.batch, 4 * shape.channels, 0, shape.input.out[0], shape.input.out[1], pitch_},
        workers_(workers),
        runs_(runs) {
    offset_in_ = arena.take<int64_t>(count_in_);
    offset_state_ = arena.take<int64_t>(count_state_);
    if (runs) weights_ = arena.take<S>(round_up(4 * shape.channels, kernels_.mr) * (count_in_ + count_state_));
    x_ = arena.take<S>(checked_product("scratch", {shape.batch, in_.image()}));
    h_ = arena.take<S>(checked_product("scratch", {shape.batch, state_.image()}));
    if (runs) z_ = arena.take<S>(blocks_.z_size() * workers);
  }

  // z's rows are interleaved, row = channel * 4 + gate, so that a block of rows holds whole channels.
  void prepare(const S* weight_ih, const S* weight_hh) {
    fill_input_offsets(shape_.input, in_, offset_in_);
    fill_input_offsets(shape_.recurrent, state_, offset_state_);
    if (!runs_) return;
    const int64_t rows = 4 * shape_.channels, total = count_in_ + count_state_;
    const auto pack = [&](const S* weight, int64_t count, int64_t first) {
      pack_weights(
          rows, count, kernels_.mr, first, total, workers_,
          [&](int64_t row) { return weight + (row % 4 * shape_.channels + row / 4) * count; },
          [](int64_t k) { return k; }, weights_);
    };
    pack(weight_ih, count_in_, 0);
    pack(weight_hh, count_state_, count_in_);
  }

  void pack_inputs(const ForwardStep<S>& step, const S* dropout_mask) {
    pack<S>(in_, step.active, [&](int64_t b) { return step.x.image(b); }, nullptr, workers_, x_);
    pack<S>(
        state_, step.active, [&](int64_t b) { return step.h_before[static_cast<size_t>(b)]; }, dropout_mask, workers_,
        h_);
  }

  void run(const Cell<S>& cell, const ForwardStep<S>& step) {
    parallel_for(blocks_.tasks(), workers_, [&](int64_t task, int worker) {
      const Block block = block_of_task(blocks_, task);
      if (!step.active[static_cast<size_t>(block.b)]) return;
      S* z = z_ + worker * blocks_.z_size();
      const Source<S> x = {x_ + block.b * in_.image(), offset_in_, count_in_};
      const Source<S> h = {h_ + block.b * state_.image(), offset_state_, count_state_};
      kernels_.correlate(tile_of_block(block, pitch_, x, h, weights_, z));
      for (int64_t channel = block.m0 / 4; channel < block.m1 / 4; ++channel) {
        run_gates(cell, step, block, channel, z + (channel * 4 - block.m0) * block.pixels());
      }
    });
  }

  const Packing& packing_of_x() const { return in_; }
  const Packing& packing_of_h() const { return state_; }
  const S* packed_x() const { return x_; }
  const S* packed_h() const { return h_; }
  const int64_t* offset_in() const { return offset_in_; }
  const int64_t* offset_state() const { return offset_state_; }
  int64_t pitch() const { return pitch_; }

 private:
  void run_gates(const Cell<S>& cell, const ForwardStep<S>& step, const Block& block, int64_t channel,
                 const S* z) const {
    const int64_t C = shape_.channels, P = shape_.pixels(), b = block.b;
    const int64_t first = block.row0 * shape_.input.out[1] + block.column0;
    for (int64_t done = 0; done < block.pixels(); done += kCellRun) {
      const int64_t p = first + done, n = std::min(kCellRun, block.pixels() - done);
      const int64_t at = (b * C + channel) * P + p;
      CellForwardRun<S> run{};
      cell.point(run, channel, p, n, step.c_before[static_cast<size_t>(b)].at(channel, p),
                 step.h_before[static_cast<size_t>(b)].at(channel, p), at_or_null(step.zoneout_mask_h, at),
                 at_or_null(step.zoneout_mask_c, at));
      cell.point_bias(run, channel, p);
      for (int64_t k = 0; k < 4; ++k) {
        run.z[k] = z + k * block.pixels() + done;
        run.gates[k] = at_or_null(step.gates, (b * 4 * C + k * C + channel) * P + p);
      }
      run.h_out = step.h_out.image(b).at(channel, p).data;  // pixels that are neighbours
      run.c_out = step.c_out.image(b).at(channel, p).data;
      run.y = step.y.image(b).at(channel, p);
      run.c_saved = at_or_null(step.c_saved, at);
      kernels_.cell_forward(run);
    }
  }

  ConvLstmShape shape_;
  const Kernels<S>& kernels_;
  int64_t pitch_;
  Packing in_, state_;
  int64_t count_in_, count_state_;
  Blocks blocks_;
  int workers_;
  bool runs_;
  int64_t *offset_in_, *offset_state_;
  S *weights_ = nullptr, *x_, *h_, *z_ = nullptr;
};

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
  std::vector<uint8_t> active(int64_t s) const {
    std::vector<uint8_t> list(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) list[static_cast<size_t>(b)] = active(s, b);
    return list;
  }
};

// -------------------------------------------------------------------------------------------------------- copies
// A state, or its gradient, to where it will be worked on, or back; what is absent is zero. Few pixels at a time: with
// channels last, a cache line holds those of many channels.
template <class S>
void copy_state(const ConvLstmShape& shape, const Frames<const S>& from, int workers, const Frames<S>& to) {
  const int64_t blocks = ceil_div(shape.pixels(), kCellRun);
  parallel_for(shape.batch * blocks, workers, [&](int64_t task, int) {
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
