// Activations, softmax, norms, clipping and masks over whole arrays: cut into chunks whose size never depends on the
// threads.

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/dtype.h"
#include "cell/philox.h"
#include "cpu/backend.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

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

template <class S>
ActivationParameters<S> as_scalar(const ActivationParameters<double>& p) {
  return {static_cast<S>(p.slope), static_cast<S>(p.alpha), static_cast<S>(p.at_zero)};
}

// One number per chunk of every tensor, folded in their order by the caller.
template <class OfChunk>
std::vector<double> partials(const std::vector<Tensor>& tensors, int workers, OfChunk&& of_chunk) {
  struct Piece {
    const Tensor* tensor;
    int64_t first, count;
  };
  std::vector<Piece> pieces;
  for (const Tensor& tensor : tensors) {
    for (int64_t first = 0; first < tensor.size(); first += kChunk) {
      pieces.push_back({&tensor, first, std::min(kChunk, tensor.size() - first)});
    }
  }
  std::vector<double> values(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), workers, [&](int64_t i, int) {
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

}  // namespace

void activation_forward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                        const Tensor& y, int workers) {
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    for_chunks(x.size(), workers, [&](int64_t first, int64_t n, int64_t) {
      kernels().get<S>().activation_forward(kind, as_scalar<S>(parameters), n, x.as<const S>() + first,
                                            y.as<S>() + first);
    });
  });
}

void activation_backward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                         const Tensor& y, const Tensor& dy, const Tensor& dx, int workers) {
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    for_chunks(x.size(), workers, [&](int64_t first, int64_t n, int64_t) {
      kernels().get<S>().activation_backward(kind, as_scalar<S>(parameters), n, x.as<const S>() + first,
                                             y.as<const S>() + first, dy.as<const S>() + first, dx.as<S>() + first);
    });
  });
}

namespace {

// g(first element) of every line along an axis, many lines a task.
template <class G>
void for_lines(int64_t size, int64_t extent, int64_t stride, int workers, G&& g) {
  const int64_t lines = size / extent, lines_per_task = std::max<int64_t>(1, kChunk / extent);
  parallel_for((lines + lines_per_task - 1) / lines_per_task, workers, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * lines_per_task, lines);
    for (int64_t line = task * lines_per_task; line < end; ++line) g(line / stride * stride * extent + line % stride);
  });
}

}  // namespace

void softmax_forward(const Tensor& x, const Tensor& y, int64_t extent, int64_t stride, int workers) {
  if (x.size() == 0) return;
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    for_lines(x.size(), extent, stride, workers, [&](int64_t at) {
      kernels().get<S>().softmax_forward(extent, stride, x.as<const S>() + at, y.as<S>() + at);
    });
  });
}

void softmax_backward(const Tensor& y, const Tensor& dy, const Tensor& dx, int64_t extent, int64_t stride,
                      int workers) {
  if (y.size() == 0) return;
  with_scalar(y.dtype, [&](auto s) {
    using S = decltype(s);
    for_lines(y.size(), extent, stride, workers, [&](int64_t at) {
      kernels().get<S>().softmax_backward(extent, stride, y.as<const S>() + at, dy.as<const S>() + at, dx.as<S>() + at);
    });
  });
}

double norm(const std::vector<Tensor>& tensors, Norm kind, int workers) {
  switch (kind) {
    case Norm::one:
      return total(partials(tensors, workers, [](const auto& k, int64_t n, const auto* x) { return k.sum_abs(n, x); }));
    case Norm::two:
      return two_norm(tensors, workers);
    case Norm::infinity:
      break;
  }
  return largest(tensors, workers);
}

bool any_above(const Tensor& tensor, double threshold, int workers) {
  return total(partials({tensor}, workers, [threshold](const auto& k, int64_t n, const auto* x) {
           return k.any_above(n, threshold, x) ? 1.0 : 0.0;
         })) > 0;
}

void scale(const Tensor& tensor, double factor, int workers) {
  with_scalar(tensor.dtype, [&](auto s) {
    using S = decltype(s);
    for_chunks(tensor.size(), workers,
               [&](int64_t first, int64_t n, int64_t) { kernels().get<S>().scale(n, factor, tensor.as<S>() + first); });
  });
}

void clamp(const Tensor& tensor, double limit, int workers) {
  with_scalar(tensor.dtype, [&](auto s) {
    using S = decltype(s);
    for_chunks(tensor.size(), workers, [&](int64_t first, int64_t n, int64_t) {
      kernels().get<S>().clamp(n, static_cast<S>(limit), tensor.as<S>() + first);
    });
  });
}

void bernoulli(const Tensor& out, double rate, uint64_t seed, uint64_t offset, uint32_t stream, int workers) {
  const auto threshold =
      static_cast<uint64_t>(rate * 4294967296.0 + 0.5);  // floor: 1 with probability threshold / 2^32
  for_chunks(out.size(), workers, [&](int64_t first, int64_t n, int64_t) {  // first is a multiple of 4
    for (int64_t i = first; i < first + n; i += 4) {
      const Philox4 numbers = philox_group(seed, offset, stream, static_cast<uint64_t>(i) / 4);
      for (int64_t lane = 0; lane < std::min<int64_t>(4, first + n - i); ++lane) {
        out.as<uint8_t>()[i + lane] = numbers.word[lane] < threshold;
      }
    }
  });
}

}  // namespace fusecell::cpu
