// The pointwise tier alone: (z, c') -> (h, c) and its adjoint.

#include "cuda/lstm_gates.cuh"

#include "base/arena.h"
#include "cuda/cell_args.h"
#include "cuda/packed.h"

namespace fusecell::cuda {
namespace {

template <class S>
CellArgs<S> cell_of(const LstmGatesForward& args, const LstmGatesShape& shape) {
  return cell_args<S>(args.options, shape.cell, shape.channels, shape.pixels, args.bias, args.peephole,
                      args.zoneout_mask_h, args.zoneout_mask_c);
}

template <class S>
void forward(const LstmGatesForward& args, const LstmGatesShape& shape, const Launch& launch) {
  using A = Accumulate<S>;
  const Context context("lstm_gates_forward", launch);
  GatesForwardArgs<S> k{};
  k.cell = cell_of<S>(args, shape);
  k.planes = shape.batch * shape.channels;
  k.packs = ceil_div(shape.pixels, kPack<S>);
  k.z = args.z.as<const S>();
  k.in = {args.c.as<const A>(), k.cell.flags.zoneout_h ? args.h.as<const S>() : nullptr,
          args.zoneout_mask_h.as<const uint8_t>(), args.zoneout_mask_c.as<const uint8_t>()};
  k.out = {args.h_out.as<S>(), nullptr, args.c_out.as<A>(), nullptr, args.gates.as<S>()};
  k.cell.whole = all_aligned(shape.pixels * int64_t(sizeof(S)), k.z, k.in.c, k.in.h, k.out.h, k.out.c, k.out.gates,
                             k.cell.bias, k.cell.peephole);
  const auto kernel =
      is_default_cell(shape.cell) ? gates_forward<S, SigmoidTanh<A>> : gates_forward<S, AnyActivation<A>>;
  context.run("gates_forward", kernel, grid_for(k.planes * k.packs), k);
}

template <class S>
struct BackwardPlan {
  int64_t packs, blocks;
  double* partial;

  // samples: of the batch, that a thread walks.
  BackwardPlan(const LstmGatesShape& shape, int64_t samples, Arena& arena)
      : packs(ceil_div(shape.pixels, kPack<S>)), blocks(ceil_div(ceil_div(shape.batch, samples) * packs, kThreads)) {
    partial = arena.take<double>(checked_product("scratch", {blocks, kCellSums * shape.channels}));
  }
};

// The sums of the blocks, for the parameters that are per channel.
void reduce(const Context& context, const double* partial, int64_t blocks, int64_t stride, int64_t first,
            const Tensor& out) {
  const ReduceArgs<double> args = {partial + first,     blocks, out.size(), stride, nullptr, true, true, out.data,
                                   stored_as(out.dtype)};
  run_reduce_parts(context, args);
}

template <class S>
void backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch) {
  using A = Accumulate<S>;
  const Context context("lstm_gates_backward", launch);
  const bool bias_pixel = args.dbias.present && shape.cell.bias_per_pixel;
  const bool peephole_pixel = args.dpeephole.present && shape.cell.peephole_per_pixel;
  const bool bias_channel = args.dbias.present && !bias_pixel;
  const bool peephole_channel = args.dpeephole.present && !peephole_pixel;
  for (const Tensor* gradient : {&args.dbias, &args.dpeephole}) {
    if (gradient->present && shape.batch == 0) context.zero(gradient->data, gradient->size() * int64_t(sizeof(S)));
  }
  if (shape.batch == 0) return;

  Arena arena(launch.scratch);
  GatesBackwardArgs<S> k{};
  k.samples = bias_pixel || peephole_pixel ? shape.batch : 1;
  const BackwardPlan<S> plan(shape, k.samples, arena);
  k.cell = cell_of<S>(args, shape);
  k.batch = shape.batch;
  k.packs = plan.packs;
  k.gates = args.gates.as<const S>();
  k.in = {args.c.as<const A>(), nullptr, args.zoneout_mask_h.as<const uint8_t>(),
          args.zoneout_mask_c.as<const uint8_t>()};
  k.dh = args.dh.as<const S>();
  k.dc = args.dc.as<const A>();
  k.dz = args.dz.as<S>();
  k.dh_before = args.dh_before.as<S>();
  k.dc_before = args.dc_before.as<A>();
  k.dbias_pixel = bias_pixel ? args.dbias.as<S>() : nullptr;
  k.dpeephole_pixel = peephole_pixel ? args.dpeephole.as<S>() : nullptr;
  k.partial = bias_channel || peephole_channel ? plan.partial : nullptr;
  k.cell.whole = all_aligned(shape.pixels * int64_t(sizeof(S)), k.gates, k.in.c, k.dh, k.dc, k.dz, k.dh_before,
                             k.dc_before, k.dbias_pixel, k.dpeephole_pixel, k.cell.peephole);
  const auto kernel =
      is_default_cell(shape.cell) ? gates_backward<S, SigmoidTanh<A>> : gates_backward<S, AnyActivation<A>>;
  context.run("gates_backward", kernel, dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(shape.channels)),
              k);
  const int64_t stride = kCellSums * shape.channels;
  if (bias_channel) reduce(context, plan.partial, plan.blocks, stride, 0, args.dbias);
  if (peephole_channel) reduce(context, plan.partial, plan.blocks, stride, 4 * shape.channels, args.dpeephole);
}

}  // namespace
}  // namespace fusecell::cuda

namespace fusecell::backend {

int64_t lstm_gates_forward_scratch(const LstmGatesForward& /*args*/, const LstmGatesShape& /*shape*/, int /*workers*/) {
  return 0;
}

int64_t lstm_gates_backward_scratch(const LstmGatesForward& /*args*/, const LstmGatesShape& shape, int /*workers*/) {
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::BackwardPlan<decltype(s)>(shape, 1, arena);
    return arena.bytes();
  });
}

void lstm_gates_forward(const LstmGatesForward& args, const LstmGatesShape& shape, const Launch& launch) {
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::forward<decltype(s)>(args, shape, launch); });
}

void lstm_gates_backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch) {
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::backward<decltype(s)>(args, shape, launch); });
}

}  // namespace fusecell::backend
