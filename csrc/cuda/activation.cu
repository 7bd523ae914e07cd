// Activations over whole arrays.

#include "cuda/activation.cuh"

#include "cuda/launch.h"
#include "problem/backend.h"

namespace fusecell::backend {
namespace {

template <class S>
void run(const cuda::Context& context, Activation kind, const ActivationParameters<double>& parameters,
         const Tensor& known, const Tensor& dy, const Tensor& out) {
  const cuda::ActivationArgs<S> args = {.known = known.as<const S>(),
                                        .dy = dy.as<const S>(),
                                        .out = out.as<S>(),
                                        .size = out.size(),
                                        .parameters = as_scalar<Accumulate<S>>(parameters),
                                        .kind = kind,
                                        .adjoint = dy.present,
                                        .aligned = cuda::all_aligned(0, known.data, dy.data, out.data)};
  const int64_t packs = cuda::ceil_div(args.size, cuda::kPack<S>);
  context.run("activation", cuda::activation<S>, cuda::grid_for(packs), args);
}

}  // namespace

void activation_forward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                        const Tensor& y, const Launch& launch) {
  const cuda::Context context("activation_forward", launch);
  cuda::with_storage(x.dtype, [&](auto s) { run<decltype(s)>(context, kind, parameters, x, Tensor{}, y); });
}

void activation_backward(Activation kind, const ActivationParameters<double>& parameters, const Tensor& x,
                         const Tensor& y, const Tensor& dy, const Tensor& dx, const Launch& launch) {
  const cuda::Context context("activation_backward", launch);
  const Tensor& known =
      output_determines_derivative(kind) ? y : x;  // the adjoint reads no more: a quarter less to load
  cuda::with_storage(x.dtype, [&](auto s) { run<decltype(s)>(context, kind, parameters, known, dy, dx); });
}

}  // namespace fusecell::backend
