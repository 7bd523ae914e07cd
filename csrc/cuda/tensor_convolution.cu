// The launches that convolutions on tensor cores share.

#include "cuda/tensor_packed.h"

namespace fusecell::cuda {

template <class S>
void run_pack_tensor_weights(const Context& context, const PackTensorArgs<S>& args) {
  const int64_t pieces = args.tiles * args.stages * args.size.rows() * kPieces;
  context.run("pack_tensor_weights", pack_tensor_weights<S>, grid_for(pieces), args);
}

template <class S>
void run_channels_last(const Context& context, const ChannelsLastArgs<S>& args) {
  const int64_t blocks = ceil_div(checked_product("x", {args.samples, args.pixels}), kTurnedPixels);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(ceil_div(args.pieces, kPieces)));
  context.run("channels_last", channels_last<S>, grid, args);
}

template <class S>
void run_tensor_correlate(const Context& context, dim3 grid, int shared_bytes, const TensorConvolutionArgs<S>& args) {
  context.run_with_shared("tensor_correlate", tensor_correlate<S>, grid, shared_bytes, args);
}

#define FUSECELL_INSTANTIATE(S)                                                    \
  template void run_pack_tensor_weights(const Context&, const PackTensorArgs<S>&); \
  template void run_channels_last(const Context&, const ChannelsLastArgs<S>&);     \
  template void run_tensor_correlate(const Context&, dim3, int, const TensorConvolutionArgs<S>&);
FUSECELL_FOR_EACH_TENSOR_STORAGE(FUSECELL_INSTANTIATE)

}  // namespace fusecell::cuda
