#pragma once
// One time step of the pointwise tier over a batch: cuts [B, C, P] into runs and points each at its operands. The gates
// op and the ConvLSTM sequence both go through here.

#include <algorithm>
#include <vector>

#include "base/arena.h"
#include "cell/statistics.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"
#include "cpu/pixels.h"
#include "cpu/thread_pool.h"
#include "cpu/work.h"
#include "problem/lstm_gates.h"

namespace fusecell::cpu {

template <class S>
S* at_or_null(const Tensor& tensor, int64_t at) {
  return tensor.present ? tensor.as<S>() + at : nullptr;
}

template <class S>
S* at_or_null(S* base, int64_t at) {
  return base ? base + at : nullptr;
}

// A parameter of `blocks` x C channels, per channel or per pixel; null data if there is none.
template <class S>
struct ChannelParameter {
  const S* data = nullptr;
  bool per_pixel = false;

  const S* pixel(int64_t row, int64_t pixels, int64_t p) const {
    return data && per_pixel ? data + row * pixels + p : nullptr;
  }
  S channel(int64_t row) const { return data && !per_pixel ? data[row] : S(0); }
};

template <class S>
struct Cell {
  int64_t channels, pixels;
  CellShape shape;
  CellFlags flags;
  ActivationParameters<S> activation;
  S zoneout_h, zoneout_c;
  ChannelParameter<S> bias, peephole;

  Cell(const CellOptions& options, const CellShape& cell, int64_t C, int64_t P, const Tensor& bias_tensor,
       const Tensor& peephole_tensor, const Tensor& mask_h, const Tensor& mask_c)
      : channels(C), pixels(P), shape(cell), zoneout_h(S(options.zoneout_h)), zoneout_c(S(options.zoneout_c)) {
    flags = {peephole_tensor.present, mask_h.present || options.zoneout_h > 0, mask_c.present || options.zoneout_c > 0};
    activation = {S(options.slope), S(1), S(options.relu_at_zero)};
    bias = {bias_tensor.as<const S>(), cell.bias_per_pixel};
    peephole = {peephole_tensor.as<const S>(), cell.peephole_per_pixel};
  }

  // `masks` point at this sample and channel's pixel p, or are null.
  void point(CellRun<S>& run, int64_t channel, int64_t p, int64_t n, const Pixels<const S>& c, const Pixels<const S>& h,
             const uint8_t* mask_h, const uint8_t* mask_c) const {
    run.n = n;
    run.flags = flags;
    run.gate_kind = shape.gate_kind;
    run.state_kind = shape.state_kind;
    run.activation = activation;
    for (int64_t k = 0; k < 3; ++k) {
      run.peephole_pixel[k] = peephole.pixel(k * channels + channel, pixels, p);
      run.peephole_channel[k] = peephole.channel(k * channels + channel);
    }
    run.c = c;
    run.h = h;
    run.zoneout_mask_h = mask_h;
    run.zoneout_mask_c = mask_c;
    run.zoneout_h = zoneout_h;
    run.zoneout_c = zoneout_c;
  }

  void point_bias(CellForwardRun<S>& run, int64_t channel, int64_t p) const {
    for (int64_t k = 0; k < 4; ++k) {
      run.bias_pixel[k] = bias.pixel(k * channels + channel, pixels, p);
      run.bias_channel[k] = bias.channel(k * channels + channel);
    }
  }
};

// --------------------------------------------------------------------------------------------------------- backward
template <class S>
struct BackwardStep {
  const S* gates;                                  // [B, 4C, P]
  std::vector<Image<const S>> c_before;            // [B] of [C, P]
  const uint8_t *zoneout_mask_h, *zoneout_mask_c;  // [B, C, P] or null
  Frames<const S> dy;                              // [B, C, P], joins dh; null if none
  Frames<S> dh, dc;                                // [B, C, P]: of the step's outputs, then of its inputs
  bool apart = false;                              // of the outputs they are dh_from, dc_from; dh may be null: unwanted
  Frames<const S> dh_from, dc_from;                // [B, C, P]; null: zero
  S* dz;                                           // [B, 4C, P], or packed
  const Packing* packing = nullptr;                // of dz, if it is packed; its borders are zero already
  std::vector<uint8_t> active;                     // [B]; what is inactive is not touched
  bool detach = false;                             // the states before the step get no gradient
  double* statistics = nullptr;                    // [tasks][kStepStatistics]; null: not wanted
};

// How a step's elements are cut into tasks, each of which has a channel, a block of pixels and samples that it walks in
// order: that of its sums never depends on the threads.
struct CellTasks {
  static constexpr int64_t kBlock = 8 * kCellRun;  // pixels of a task

  int64_t samples, channels, blocks, together;  // together: samples of a task

  // samples: those of a step, at most.
  CellTasks(const CellShape& cell, int64_t samples_, int64_t channels_, int64_t pixels)
      : samples(std::max<int64_t>(samples_, 1)), channels(channels_), blocks(ceil_div(pixels, kBlock)) {
    const bool per_pixel = cell.bias_per_pixel || cell.peephole_per_pixel;  // such a gradient sums over all samples
    together = per_pixel ? samples : std::clamp<int64_t>(kBlock / pixels, 1, samples);
  }

  int64_t groups() const { return ceil_div(samples, together); }
  int64_t of_group() const { return channels * blocks; }
  int64_t count() const { return groups() * of_group(); }
};

// The gradients of bias and peepholes over all the steps. A task owns its sample, channel and pixels, or walks the
// batch in order; sums over pixels are kept per task and added up at the end, so the order never depends on the
// threads.
template <class S>
class CellGradients {
 public:
  // samples: those of a step, at most.
  CellGradients(const Cell<S>& cell, int64_t samples, const Tensor& dbias, const Tensor& dpeephole, Arena& arena)
      : cell_(cell), tasks_(cell.shape, samples, cell.channels, cell.pixels), dbias_(dbias), dpeephole_(dpeephole) {
    partial_ = arena.take<double>(partials());
  }

  void clear() {
    std::fill_n(partial_, partials(), 0.0);
    if (dbias_.present) std::fill(dbias_.as<S>(), dbias_.as<S>() + dbias_.size(), S(0));
    if (dpeephole_.present) std::fill(dpeephole_.as<S>(), dpeephole_.as<S>() + dpeephole_.size(), S(0));
  }

  void step(const Kernels<S>& kernels, const BackwardStep<S>& step, int workers) {
    const int64_t batch = static_cast<int64_t>(step.active.size()), of_group = tasks_.of_group();
    const int64_t together = tasks_.together, blocks = tasks_.blocks, block = CellTasks::kBlock;
    const int64_t work = work::gates(batch * cell_.channels * cell_.pixels);
    parallel_for(ceil_div(batch, together) * of_group, workers, work, [&](int64_t task, int) {
      const int64_t b0 = task / of_group * together, b1 = std::min(b0 + together, batch);
      const int64_t channel = task % of_group / blocks, first = task % blocks * block;
      const int64_t end = std::min(first + block, cell_.pixels);
      double* statistics = at_or_null(step.statistics, task * kStepStatistics);
      if (statistics) std::fill_n(statistics, kStepStatistics, 0.0);
      for (int64_t b = b0; b < b1; ++b) {
        if (!step.active[static_cast<size_t>(b)]) continue;
        for (int64_t p = first; p < end; p += kCellRun) {
          run(kernels, step, b, channel, p, std::min(kCellRun, end - p), partial_ + task * 7, statistics);
        }
      }
    });
  }

  void finish() {
    if (!dbias_.present && !dpeephole_.present) return;
    for (int64_t channel = 0; channel < cell_.channels; ++channel) {
      for (int64_t k = 0; k < 7; ++k) {
        double total = 0;
        for (int64_t group = 0; group < tasks_.groups(); ++group) {
          const double* of_group = partial_ + (group * cell_.channels + channel) * tasks_.blocks * 7;
          for (int64_t block = 0; block < tasks_.blocks; ++block) total += of_group[block * 7 + k];
        }
        const bool is_bias = k < 4;
        const Tensor& target = is_bias ? dbias_ : dpeephole_;
        const bool per_pixel = is_bias ? cell_.bias.per_pixel : cell_.peephole.per_pixel;
        if (!target.present || per_pixel) continue;
        target.as<S>()[(is_bias ? k : k - 4) * cell_.channels + channel] = static_cast<S>(total);
      }
    }
  }

 private:
  int64_t partials() const { return tasks_.count() * 7; }

  void run(const Kernels<S>& kernels, const BackwardStep<S>& step, int64_t b, int64_t channel, int64_t p, int64_t n,
           double* partial, double* statistics) const {
    const int64_t C = cell_.channels, P = cell_.pixels;
    const int64_t at = (b * C + channel) * P + p;
    alignas(64) S dz[4][kCellRun], dh_unwanted[kCellRun];
    CellBackwardRun<S> run{};
    cell_.point(run, channel, p, n, step.c_before[static_cast<size_t>(b)].at(channel, p), {},
                at_or_null(step.zoneout_mask_h, at), at_or_null(step.zoneout_mask_c, at));
    run.dh = step.dh.data ? step.dh.image(b).at(channel, p).data : dh_unwanted;  // pixels that are neighbours
    run.dc = step.dc.image(b).at(channel, p).data;
    if (step.apart) {
      copy_pixels(step.dh_from.image(b).at(channel, p), n, Pixels<S>{run.dh});
      copy_pixels(step.dc_from.image(b).at(channel, p), n, Pixels<S>{run.dc});
    }
    if (step.dy.data) add_pixels(step.dy.image(b).at(channel, p), n, Pixels<S>{run.dh});
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t row = k * C + channel, at_gate = (b * 4 * C + row) * P + p;
      run.gates[k] = step.gates + at_gate;
      run.dz[k] = step.packing ? dz[k] : step.dz + at_gate;
      if (dbias_.present && cell_.bias.per_pixel) run.dbias_pixel[k] = dbias_.as<S>() + row * P + p;
    }
    for (int64_t k = 0; k < 3; ++k) {
      if (dpeephole_.present && cell_.peephole.per_pixel) {
        run.dpeephole_pixel[k] = dpeephole_.as<S>() + (k * C + channel) * P + p;
      }
    }
    if (dbias_.present && !cell_.bias.per_pixel) run.dbias_channel = partial;
    if (dpeephole_.present && !cell_.peephole.per_pixel) run.dpeephole_channel = partial + 4;
    run.statistics = statistics;
    kernels.cell_backward(run);
    for (int64_t k = 0; step.packing && k < 4; ++k) {
      put_pixels(*step.packing, dz[k], p, n, step.dz + (b * 4 * C + k * C + channel) * step.packing->plane());
    }
    if (step.detach) {
      std::fill(run.dh, run.dh + n, S(0));
      std::fill(run.dc, run.dc + n, S(0));
    }
  }

  const Cell<S> cell_;
  const CellTasks tasks_;
  const Tensor &dbias_, &dpeephole_;
  double* partial_;  // [tasks][4 of the bias, 3 of the peepholes]
};

}  // namespace fusecell::cpu
