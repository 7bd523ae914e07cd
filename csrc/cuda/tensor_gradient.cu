// The launches of the gradients that are sums over pixels, of tensors with channels last.

#include "cuda/tensor_gradient.cuh"

#include "cuda/tensor_gradient.h"

namespace fusecell::cuda {

template <class S>
void run_tensor_gradient(const Context& context, dim3 grid, int shared_bytes, const TensorGradientArgs<S>& args) {
  context.run_with_shared("tensor_gradient", tensor_gradient<S>, grid, shared_bytes, args);
}

template <class S>
void run_tensor_parameter_gradient(const Context& context, dim3 grid, const TensorParameterGradientArgs<S>& args) {
  context.run("tensor_parameter_gradient", tensor_parameter_gradient<S>, grid, args);
}

#define FUSECELL_INSTANTIATE(S)                                                               \
  template void run_tensor_gradient(const Context&, dim3, int, const TensorGradientArgs<S>&); \
  template void run_tensor_parameter_gradient(const Context&, dim3, const TensorParameterGradientArgs<S>&);
FUSECELL_FOR_EACH_TENSOR_STORAGE(FUSECELL_INSTANTIATE)
#undef FUSECELL_INSTANTIATE

}  // namespace fusecell::cuda
