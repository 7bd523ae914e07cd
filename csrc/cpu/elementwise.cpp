// Activations, softmax, norms, clipping and masks over whole arrays: cut into chunks whose size never depends on the
// threads.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "base/dtype.h"
#include "cell/philox.h"
#include "cell/update.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "cpu/work.h"
#include "problem/backend.h"

namespace fusecell::cpu {
namespace {

constexpr int64_t kChunk = 65536;  // elements; below it one thread is faster than waking another

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// f(first, count, worker-independent chunk number)
template <class F>
void for_chunks(int64_t n, int workers, F&& f) {
  parallel_for(chunks_of(n), workers,
               [&](int64_t chunk, int) { f(chunk * kChunk, std::min(kChunk, n - chunk * kChunk), chunk); });
}

// One number per chunk of every tensor, folded in their order by the caller.
template <class OfChunk>
std::vector<double> partials(const std::vector<Tensor>& tensors, int workers, OfChunk&& of_chunk) {
  struct Piece {
    const Tensor* tensor;
    int64_t first, count;
  };
  std::vector<Piece> pieces;
  int64_t elements = 0;
  for (const Tensor& tensor : tensors) {
    elements += tensor.size();
    for (int64_t first = 0; first < tensor.size(); first += kChunk) {
      pieces.push_back({&tensor, first, std::min(kChunk, tensor.size() - first)});
    }
  }
  std::vector<double> values(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), workers, work::copies(elements), [&](int64_t i, int) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    values[static_cast<size_t>(i)] = with_scalar(piece.tensor->dtype, [&](auto s) {
      using S = decltype(s);
      return of_chunk(kernels().get<S>(), piece.count, piece.tensor->template as<const S>() + piece.first);
    });
  });
  return values;
}

double largest(const std::vector<Tensor>& tensors, int workers) {
  double result = 0;
  for (double value :
       partials(tensors, workers, [](const auto& k, int64_t n, const auto* x) { return k.max_abs(n, x); })) {
    if (std::isnan(value)) return value;
    result = std::max(result, value);
  }
  return result;
}

double total(const std::vector<double>& values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum;
}

double total_of_squares(const std::vector<Tensor>& tensors, double scale, int workers) {
  return total(partials(tensors, workers,
                        [scale](const auto& k, int64_t n, const auto* x) { return k.sum_squares(n, x, scale); }));
}

double two_norm(const std::vector<Tensor>& tensors, int workers) {
  const double squares = total_of_squares(tensors, 1.0, workers);
  constexpr double kTiny = 1e-290;  // below it the squares may have lost bits to underflow
  if (std::isnan(squares) || (squares >= kTiny && !std::isinf(squares))) return std::sqrt(squares);
  const double most = largest(tensors, workers);
  if (most == 0 || !std::isfinite(most)) return most;
  const int exponent = std::ilogb(most);
  // Scaled by a power of two: exact. 2^-exponent alone may overflow for a subnormal maximum.
  const double scale = std::ldexp(1.0, std::min(-exponent, 1000));
  return std::sqrt(total_of_squares(tensors, scale, workers)) / scale;
}

// g(first element) of every line along an axis, many lines a task.
template <class G>
void for_lines(int64_t size, int64_t extent, int64_t stride, int workers, G&& g) {
  const int64_t lines = size / extent, lines_per_task = std::max<int64_t>(1, kChunk / extent);
  parallel_for((lines + lines_per_task - 1) / lines_per_task, workers, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * lines_per_task, lines);
    for (int64_t line = task * lines_per_task; line < end; ++line) g(line / stride * stride * extent + line % stride);
  });
}

double norm(const std::vector<Tensor>& tensors, backend::Norm kind, int workers) {
  switch (kind) {
    case backend::Norm::one:
      return total(partials(tensors, workers, [](const auto& k, int64_t n, const auto* x) { return k.sum_abs(n, x); }));
    case backend::Norm::two:
      return two_norm(tensors, workers);
    case backend::Norm::infinity:
      return largest(tensors, workers);
    case backend::Norm::largest_number:
      break;
  }
  double most = 0;
  for (double value :
       partials(tensors, workers, [](const auto& k, int64_t n, const auto* x) { return k.largest_number(n, x); })) {
    most = std::max(most, value);
  }
  return most;
}

// f(kernels, pointer to the chunk, its length) for every chunk of every tensor.
template <class F>
void for_each_chunk(const std::vector<Tensor>& tensors, int workers, F&& f) {
  for (const Tensor& tensor : tensors) {
    with_scalar(tensor.dtype, [&](auto s) {
      using S = decltype(s);
      for_chunks(tensor.size(), workers,
                 [&](int64_t first, int64_t n, int64_t) { f(kernels().get<S>(), n, tensor.as<S>() + first); });
    });
  }
}

void scale(const std::vector<Tensor>& tensors, double factor, int workers) {
  for_each_chunk(tensors, workers, [factor](const auto& k, int64_t n, auto* x) { k.scale(n, factor, x); });
}

template <class S>
S* at_or_null(const std::vector<Tensor>& tensors, size_t i, int64_t first) {
  return tensors.empty() ? nullptr : tensors[i].as<S>() + first;
}

}  // namespace
}  // namespace fusecell::cpu

namespace fusecell::backend {

using cpu::kernels;

Traits traits() { return {true, false, true, false}; }

void activation_forward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                        const Tensor& y, const Launch& launch) {
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    cpu::for_chunks(x.size(), launch.workers, [&](int64_t first, int64_t n, int64_t) {
      kernels().get<S>().activation_forward(kind, as_scalar<S>(parameters), n, x.as<const S>() + first,
                                            y.as<S>() + first);
    });
  });
}

void activation_backward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                         const Tensor& y, const Tensor& dy, const Tensor& dx, const Launch& launch) {
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    cpu::for_chunks(x.size(), launch.workers, [&](int64_t first, int64_t n, int64_t) {
      kernels().get<S>().activation_backward(kind, as_scalar<S>(parameters), n, x.as<const S>() + first,
                                             y.as<const S>() + first, dy.as<const S>() + first, dx.as<S>() + first);
    });
  });
}

void softmax_forward(const Tensor& x, const Tensor& y, int64_t extent, int64_t stride, const Launch& launch) {
  if (x.size() == 0) return;
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    cpu::for_lines(x.size(), extent, stride, launch.workers, [&](int64_t at) {
      kernels().get<S>().softmax_forward(extent, stride, x.as<const S>() + at, y.as<S>() + at);
    });
  });
}

void softmax_backward(const Tensor& y, const Tensor& dy, const Tensor& dx, int64_t extent, int64_t stride,
                      const Launch& launch) {
  if (y.size() == 0) return;
  with_scalar(y.dtype, [&](auto s) {
    using S = decltype(s);
    cpu::for_lines(y.size(), extent, stride, launch.workers, [&](int64_t at) {
      kernels().get<S>().softmax_backward(extent, stride, y.as<const S>() + at, dy.as<const S>() + at, dx.as<S>() + at);
    });
  });
}

void norm(const std::vector<Tensor>& tensors, Norm kind, const Tensor& out, const Launch& launch) {
  *out.as<double>() = cpu::norm(tensors, kind, launch.workers);
}

int64_t norm_scratch(const std::vector<Tensor>& /*tensors*/) { return 0; }

void clip_to_norm(const std::vector<Tensor>& tensors, const Tensor& norm, double max_norm, const Launch& launch) {
  const double coefficient = clip_coefficient(*norm.as<const double>(), max_norm);
  if (coefficient != 1.0) cpu::scale(tensors, coefficient, launch.workers);
}

void clamp(const std::vector<Tensor>& tensors, double limit, const Launch& launch) {
  cpu::for_each_chunk(tensors, launch.workers, [limit](const auto& k, int64_t n, auto* x) {
    k.clamp(n, static_cast<std::remove_pointer_t<decltype(x)>>(limit), x);
  });
}

void divide_if_above(const std::vector<Tensor>& tensors, const Tensor& norm, const Tensor& largest, double threshold,
                     const Launch& launch) {
  if (!(*largest.as<const double>() > threshold)) return;
  double divisor = *norm.as<const double>();
  if (divisor < kSmallestDivisor) {
    cpu::scale(tensors, kSmallDivisorScale, launch.workers);
    divisor *= kSmallDivisorScale;
  }
  cpu::scale(tensors, 1.0 / divisor, launch.workers);
}

void update(const Update& args, const Launch& launch) {
  UpdateParameters<double> parameters = args.parameters;
  if (args.step.present) parameters.step = *args.step.as<const int64_t>();
  const double coefficient =
      args.norm.present ? clip_coefficient(*args.norm.as<const double>(), parameters.max_norm) : 1.0;
  for (size_t i = 0; i < args.values.size(); ++i) {
    with_scalar(args.values[i].dtype, [&](auto s) {
      using S = decltype(s);
      cpu::for_chunks(args.values[i].size(), launch.workers, [&](int64_t first, int64_t n, int64_t) {
        kernels().get<S>().update(args.rule, parameters, coefficient, n, args.values[i].as<S>() + first,
                                  args.gradients[i].as<const S>() + first, cpu::at_or_null<S>(args.first, i, first),
                                  cpu::at_or_null<S>(args.second, i, first));
      });
    });
  }
}

void bernoulli(const Tensor& out, double rate, uint64_t seed, uint64_t offset, uint32_t stream, const Tensor& counter,
               const Launch& launch) {
  if (counter.present) offset += *counter.as<const uint64_t>();
  const uint64_t threshold = bernoulli_threshold(rate);
  cpu::for_chunks(out.size(), launch.workers, [&](int64_t first, int64_t n, int64_t) {  // first is a multiple of 4
    for (int64_t i = first; i < first + n; i += 4) {
      const Philox4 numbers = philox_group(seed, offset, stream, static_cast<uint64_t>(i) / 4);
      for (int64_t lane = 0; lane < std::min<int64_t>(4, first + n - i); ++lane) {
        out.as<uint8_t>()[i + lane] = numbers.word[lane] < threshold;
      }
    }
  });
}

}  // namespace fusecell::backend
