// The launches of the packing of weights, and of the convolution that ends in a plain store.

#include "cuda/convolution.cuh"

#include "cuda/packed.h"

namespace fusecell::cuda {

template <class S>
void run_pack_weights(const Context& context, const PackArgs<S>& args) {
  context.run("pack_weights", pack_weights<S>, grid_for(args.padded_taps * args.padded_rows), args);
}

template <class S>
void run_correlate(const Context& context, dim3 grid, const ConvolutionArgs<S>& args) {
  context.run("correlate", correlate<S>, grid, args);
}

#define FUSECELL_INSTANTIATE(S)                                       \
  template void run_pack_weights(const Context&, const PackArgs<S>&); \
  template void run_correlate(const Context&, dim3, const ConvolutionArgs<S>&);
FUSECELL_FOR_EACH_STORAGE(FUSECELL_INSTANTIATE)

}  // namespace fusecell::cuda
