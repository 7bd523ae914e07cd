// Softmax over whole arrays.

#include "cuda/softmax.cuh"

#include "cuda/launch.h"
#include "problem/backend.h"

namespace fusecell::backend {
namespace {

template <class S>
void run(const cuda::Context& context, const Tensor& known, const Tensor& dy, const Tensor& out, int64_t extent,
         int64_t stride) {
  const int64_t row_bytes = extent * static_cast<int64_t>(sizeof(S));
  const cuda::SoftmaxArgs<S> args = {.known = known.as<const S>(),
                                     .dy = dy.as<const S>(),
                                     .out = out.as<S>(),
                                     .lines = out.size() / extent,
                                     .extent = extent,
                                     .stride = stride,
                                     .adjoint = dy.present,
                                     .aligned = cuda::all_aligned(row_bytes, known.data, dy.data, out.data)};
  const int64_t threads = stride == 1 ? args.lines * 32 : args.lines;
  context.run("softmax", cuda::softmax<S>, cuda::grid_for(threads), args);
}

}  // namespace

void softmax_forward(const Tensor& x, const Tensor& y, int64_t extent, int64_t stride, const Launch& launch) {
  if (x.size() == 0) return;
  const cuda::Context context("softmax_forward", launch);
  cuda::with_storage(x.dtype, [&](auto s) { run<decltype(s)>(context, x, Tensor{}, y, extent, stride); });
}

void softmax_backward(const Tensor& y, const Tensor& dy, const Tensor& dx, int64_t extent, int64_t stride,
                      const Launch& launch) {
  if (y.size() == 0) return;
  const cuda::Context context("softmax_backward", launch);
  cuda::with_storage(y.dtype, [&](auto s) { run<decltype(s)>(context, y, dy, dx, extent, stride); });
}

}  // namespace fusecell::backend
