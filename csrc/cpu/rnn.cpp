// h_t = φ(W_ih x_t + W_hh h' + b). What does not wait for the step before is one product over all steps: the inputs'
// part forward, the gradients of inputs and weights backward. The recurrence goes through time a few samples at a time.

#include "cpu/rnn.h"

#include <algorithm>

#include "base/arena.h"
#include "base/dtype.h"
#include "base/size.h"
#include "cell/statistics.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "cpu/work.h"

namespace fusecell::cpu {
namespace {

constexpr int64_t kGroup = 8;    // samples that go through time together: the rows of the widest register tile
constexpr int64_t kRows = 64;    // of a product over all steps, in a task
constexpr int64_t kTerms = 256;  // of a weight's gradient, summed at a time: short sums err less, and stay in the cache

int64_t blocks_of(int64_t size, int64_t count) { return (count + size - 1) / size; }

// The right-hand side of a product: rows of whole vectors. Zero behind the last column: what stands there is computed
// on, though never stored, and subnormal numbers are slow.
template <class S>
class Padded {
 public:
  Padded(int64_t rows, int64_t columns, Arena& arena)
      : rows_(rows),
        columns_(columns),
        pitch_(blocks_of(lanes(), columns) * lanes()),
        room_(arena.take<S>(checked_product("scratch", {rows, pitch_}))) {}

  void fill(const S* from) { fill(from, columns_, 1); }
  void fill_transposed(const S* from) { fill(from, 1, rows_); }

  RowsOf<const S> rows() const { return {room_, pitch_}; }

 private:
  static int64_t lanes() { return kernels().get<S>().lanes; }

  void fill(const S* from, int64_t row, int64_t column) {
    for (int64_t k = 0; k < rows_; ++k) {
      S* to = room_ + k * pitch_;
      for (int64_t n = 0; n < columns_; ++n) to[n] = from[k * row + n * column];
      std::fill(to + columns_, to + pitch_, S(0));
    }
  }

  int64_t rows_, columns_, pitch_;
  S* room_;
};

// All rows of a product, a task for each block of them.
template <class S>
void product_by_rows(const MatrixProduct<S>& whole, int workers) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const int64_t amount = work::products(whole.rows * whole.columns * whole.terms);
  parallel_for(blocks_of(kRows, whole.rows), workers, amount, [&](int64_t block, int) {
    MatrixProduct<S> part = whole;
    const int64_t m = block * kRows;
    part.left.data += m * whole.left.row;
    if (whole.start.data) part.start.data += m * whole.start.pitch;
    part.out.data += m * whole.out.pitch;
    part.rows = std::min(kRows, whole.rows - m);
    kernels.matrix_product(part);
  });
}

// A product of many terms, some at a time; of none it writes the start.
template <class S>
void product_by_terms(const MatrixProduct<S>& whole) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  MatrixProduct<S> part = whole;
  int64_t k = 0;
  do {
    part.terms = std::min(kTerms, whole.terms - k);
    kernels.matrix_product(part);
    k += part.terms;
    part.left.data = whole.left.data + k * whole.left.column;
    part.right.data = whole.right.data + k * whole.right.pitch;
    part.start = {whole.out.data, whole.out.pitch};
  } while (k < whole.terms);
}

template <class S>
S* at_or_null(const Tensor& tensor, int64_t at) {
  return tensor.present ? tensor.as<S>() + at : nullptr;
}

template <class S>
void copy_or_clear(const S* from, int64_t n, S* to) {
  if (from) {
    std::copy_n(from, n, to);
  } else {
    std::fill_n(to, n, S(0));
  }
}

// About how long the recurrence takes, forward or backward.
int64_t work_of_recurrence(const RnnShape& shape) {
  const int64_t cells = shape.steps * shape.batch * shape.channels;
  return work::products(cells * shape.channels) + work::gates(cells);
}

// --------------------------------------------------------------------------------------------------------- forward
template <class S>
struct ForwardMemory {
  Padded<S> weight_ih, weight_hh;  // transposed

  ForwardMemory(const RnnShape& shape, Arena& arena)
      : weight_ih(shape.inputs, shape.channels, arena), weight_hh(shape.channels, shape.channels, arena) {}
};

// Through time with samples b to b + n; a holds the inputs' part.
template <class S>
void forward_group(const RnnForward& args, const RnnShape& shape, const Padded<S>& weight_hh, S* a, int64_t b,
                   int64_t n) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const auto parameters = as_scalar<S>(shape.parameters);
  const int64_t C = shape.channels;
  const S* h = at_or_null<const S>(args.h_0, b * C);
  for (int64_t t = 0; t < shape.steps; ++t) {
    const int64_t at = (t * shape.batch + b) * C;
    if (h) kernels.matrix_product({{h, C, 1}, weight_hh.rows(), {a + at, C}, {a + at, C}, n, C, C});
    S* y = args.y.as<S>() + at;
    kernels.activation_forward(shape.kind, parameters, n * C, a + at, y);
    h = y;
  }
  copy_or_clear(h, n * C, args.h_n.as<S>() + b * C);
}

template <class S>
void forward(const RnnForward& args, const RnnShape& shape, const Launch& launch) {
  Arena arena(launch.scratch);
  ForwardMemory<S> memory(shape, arena);
  const int64_t C = shape.channels, I = shape.inputs, B = shape.batch;
  S* a = (shape.keeps_a() ? args.a : args.y).as<S>();
  memory.weight_ih.fill_transposed(args.weight_ih.as<const S>());
  memory.weight_hh.fill_transposed(args.weight_hh.as<const S>());
  const S* bias = args.bias.as<const S>();
  product_by_rows<S>({{args.x.as<const S>(), I, 1}, memory.weight_ih.rows(), {bias, 0}, {a, C}, shape.steps * B, C, I},
                     launch.workers);
  parallel_for(blocks_of(kGroup, B), launch.workers, work_of_recurrence(shape), [&](int64_t group, int) {
    const int64_t b = group * kGroup;
    forward_group(args, shape, memory.weight_hh, a, b, std::min(kGroup, B - b));
  });
}

// -------------------------------------------------------------------------------------------------------- backward
struct StepSums {
  double dh_squared, not_finite, saturated;
};

template <class S>
struct BackwardMemory {
  Padded<S> weight_ih, weight_hh, x, y, h_0;
  S *da, *dh;      // [T, B, C]; of each worker [kGroup, C]
  StepSums* sums;  // [groups][T]

  BackwardMemory(const RnnShape& shape, int workers, Arena& arena)
      : weight_ih(shape.channels, shape.inputs, arena),
        weight_hh(shape.channels, shape.channels, arena),
        x(shape.steps * shape.batch, shape.inputs, arena),
        y(shape.steps * shape.batch, shape.channels, arena),
        h_0(shape.batch, shape.channels, arena),
        da(arena.take<S>(shape.steps * shape.batch * shape.channels)),
        dh(arena.take<S>(workers * kGroup * shape.channels)),
        sums(arena.take<StepSums>(blocks_of(kGroup, shape.batch) * shape.steps)) {}
};

template <class S>
StepSums sums_of(const Kernels<S>& kernels, Activation kind, int64_t n, const S* dh, const S* y) {
  StepSums sums = {kernels.sum_squares(n, dh, 1.0), 0, 0};
  for (int64_t i = 0; i < n; ++i) {
    sums.not_finite += !is_finite(dh[i]);
    sums.saturated += saturates(kind, y[i]);
  }
  return sums;
}

// Back through time with samples b to b + n: writes da and dh_0; dh is what each step's total gradient is put into.
template <class S>
void backward_group(const RnnBackward& args, const RnnShape& shape, const BackwardMemory<S>& memory, int64_t b,
                    int64_t n, S* dh, StepSums* sums) {
  const Kernels<S>& kernels = cpu::kernels().get<S>();
  const auto parameters = as_scalar<S>(shape.parameters);
  const int64_t C = shape.channels, size = n * C;
  const auto through_weights = [&](const S* da, const S* start, S* out) {
    kernels.matrix_product({{da, C, 1}, memory.weight_hh.rows(), {start, C}, {out, C}, n, C, C});
  };
  copy_or_clear(at_or_null<const S>(args.dh_n, b * C), size, dh);
  for (int64_t t = shape.steps - 1; t >= 0; --t) {
    const int64_t at = (t * shape.batch + b) * C;
    const S *dy = at_or_null<const S>(args.dy, at), *y = args.y.as<const S>() + at;
    if (t < shape.steps - 1) {
      through_weights(memory.da + at + shape.batch * C, dy, dh);
    } else if (dy) {
      for (int64_t i = 0; i < size; ++i) dh[i] += dy[i];
    }
    if (sums) sums[t] = sums_of(kernels, shape.kind, size, dh, y);
    const S* a = shape.keeps_a() ? args.a.as<const S>() + at : y;
    kernels.activation_backward(shape.kind, parameters, size, a, y, dh, memory.da + at);
  }
  if (!args.dh_0.present) return;
  S* dh_0 = args.dh_0.as<S>() + b * C;
  if (shape.steps > 0) {
    through_weights(memory.da + b * C, nullptr, dh_0);
  } else {
    std::copy_n(dh, size, dh_0);
  }
}

void write_statistics(const RnnBackward& args, const RnnShape& shape, const StepSums* sums) {
  double* row = args.statistics.as<double>();
  for (int64_t t = 0; t < shape.steps; ++t, row += kRnnStatistics) {
    std::fill_n(row, kRnnStatistics, 0.0);
    row[0] = static_cast<double>(shape.batch * shape.channels);
    for (int64_t group = 0; group < blocks_of(kGroup, shape.batch); ++group) {
      const StepSums& part = sums[group * shape.steps + t];
      row[1] += part.dh_squared;
      row[2] += part.not_finite;
      row[3] += part.saturated;
    }
  }
}

// The gradients of rows c to c + n of both weights, and of the bias there.
template <class S>
void add_up_channels(const RnnBackward& args, const RnnShape& shape, const BackwardMemory<S>& memory, int64_t c,
                     int64_t n) {
  const int64_t C = shape.channels, I = shape.inputs, B = shape.batch, rows = shape.steps * B;
  const S* da = memory.da + c;
  if (args.dweight_ih.present) {
    S* out = args.dweight_ih.as<S>() + c * I;
    product_by_terms<S>({{da, 1, C}, memory.x.rows(), {}, {out, I}, n, I, rows});
  }
  if (args.dweight_hh.present) {
    S* out = args.dweight_hh.as<S>() + c * C;
    const int64_t first = args.h_0.present ? std::min(rows, B) : 0, rest = std::max<int64_t>(rows - B, 0);
    product_by_terms<S>({{da, 1, C}, memory.h_0.rows(), {}, {out, C}, n, C, first});
    product_by_terms<S>({{da + B * C, 1, C}, memory.y.rows(), {out, C}, {out, C}, n, C, rest});
  }
  if (args.dbias.present) {
    double sums[kGroup] = {};
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t i = 0; i < n; ++i) sums[i] += double(da[k * C + i]);
    }
    for (int64_t i = 0; i < n; ++i) args.dbias.as<S>()[c + i] = static_cast<S>(sums[i]);
  }
}

template <class S>
void backward(const RnnBackward& args, const RnnShape& shape, const Launch& launch) {
  Arena arena(launch.scratch);
  BackwardMemory<S> memory(shape, launch.workers, arena);
  const int64_t C = shape.channels, I = shape.inputs, B = shape.batch, rows = shape.steps * B;
  memory.weight_hh.fill(args.weight_hh.as<const S>());
  parallel_for(blocks_of(kGroup, B), launch.workers, work_of_recurrence(shape), [&](int64_t group, int worker) {
    const int64_t b = group * kGroup;
    StepSums* sums = args.statistics.present ? memory.sums + group * shape.steps : nullptr;
    backward_group(args, shape, memory, b, std::min(kGroup, B - b), memory.dh + worker * kGroup * C, sums);
  });
  if (args.statistics.present) write_statistics(args, shape, memory.sums);
  if (args.dx.present) {
    memory.weight_ih.fill(args.weight_ih.as<const S>());
    product_by_rows<S>({{memory.da, C, 1}, memory.weight_ih.rows(), {}, {args.dx.as<S>(), I}, rows, I, C},
                       launch.workers);
  }
  if (args.dweight_ih.present) memory.x.fill(args.x.as<const S>());
  if (args.dweight_hh.present) memory.y.fill(args.y.as<const S>());
  if (args.dweight_hh.present && args.h_0.present) memory.h_0.fill(args.h_0.as<const S>());
  parallel_for(blocks_of(kGroup, C), launch.workers, work::products(rows * C * (I + C)), [&](int64_t block, int) {
    const int64_t c = block * kGroup;
    add_up_channels(args, shape, memory, c, std::min(kGroup, C - c));
  });
}

}  // namespace

int64_t rnn_forward_scratch(const RnnForward& /*args*/, const RnnShape& shape, int /*workers*/) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    ForwardMemory<decltype(s)>(shape, arena);
    return arena.bytes();
  });
}

int64_t rnn_backward_scratch(const RnnForward& /*args*/, const RnnShape& shape, int workers) {
  return with_scalar(shape.dtype, [&](auto s) {
    Arena arena;
    BackwardMemory<decltype(s)>(shape, workers, arena);
    return arena.bytes();
  });
}

void rnn_forward(const RnnForward& args, const RnnShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { forward<decltype(s)>(args, shape, launch); });
}

void rnn_backward(const RnnBackward& args, const RnnShape& shape, const Launch& launch) {
  with_scalar(shape.dtype, [&](auto s) { backward<decltype(s)>(args, shape, launch); });
}

}  // namespace fusecell::cpu
