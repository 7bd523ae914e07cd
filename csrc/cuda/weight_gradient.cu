// The launches of the gradients that are sums over pixels.

#include "cuda/weight_gradient.cuh"

#include "cuda/packed.h"

namespace fusecell::cuda {

template <class S>
void run_weight_gradient(const Context& context, dim3 grid, const WeightGradientArgs<S>& args) {
  context.run("weight_gradient", weight_gradient<S>, grid, args);
}

template <class S>
void run_parameter_gradient(const Context& context, dim3 grid, const ParameterGradientArgs<S>& args) {
  context.run("parameter_gradient", parameter_gradient<S>, grid, args);
}

template <class T>
void run_reduce_parts(const Context& context, const ReduceArgs<T>& args) {
  context.run("reduce_parts", reduce_parts<T>, grid_for(args.n), args);
}

#define FUSECELL_INSTANTIATE(S)                                                          \
  template void run_weight_gradient(const Context&, dim3, const WeightGradientArgs<S>&); \
  template void run_parameter_gradient(const Context&, dim3, const ParameterGradientArgs<S>&);
FUSECELL_FOR_EACH_STORAGE(FUSECELL_INSTANTIATE)
template void run_reduce_parts(const Context&, const ReduceArgs<float>&);
template void run_reduce_parts(const Context&, const ReduceArgs<double>&);

}  // namespace fusecell::cuda
