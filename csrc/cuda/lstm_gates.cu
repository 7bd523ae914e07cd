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
  k.h = k.cell.flags.zoneout_h ? args.h.as<const S>() : nullptr;
  k.c = args.c.as<const A>();
  k.zoneout_mask_h = args.zoneout_mask_h.as<const uint8_t>();
  k.zoneout_mask_c = args.zoneout_mask_c.as<const uint8_t>();
  k.h_out = args.h_out.as<S>();
  k.gates = args.gates.as<S>();
  k.c_out = args.c_out.as<A>();
  k.cell.whole = all_aligned(shape.pixels * int64_t(sizeof(S)), k.z, k.c, k.h, k.h_out, k.c_out, k.gates, k.cell.bias,
                             k.cell.peephole);
  const auto kernel =
      is_default_cell(shape.cell) ? gates_forward<S, SigmoidTanh<A>> : gates_forward<S, AnyActivation<A>>;
  context.run("gates_forward", kernel, grid_for(k.planes * k.packs), k);
}

template <class S>
struct BackwardPlan {
  int64_t packs, blocks;
  double* of_blocks;  // [blocks][7C]
  PartedGradient<double> bias_pixel, peephole_pixel;

  BackwardPlan(const LstmGatesForward& args, const LstmGatesShape& shape, Arena& arena)
      : packs(ceil_div(shape.pixels, kGatesBackwardPack<S>)),
        blocks(ceil_div(shape.batch * packs, kThreads)),
        of_blocks(arena.take<double>(checked_product("scratch", {blocks, kCellSums * shape.channels}))),
        bias_pixel(1, shape.cell.bias_per_pixel ? args.bias.size() : 0, false, arena),
        peephole_pixel(1, shape.cell.peephole_per_pixel ? args.peephole.size() : 0, false, arena) {}
};

template <class S>
class Backward {
 public:
  using A = Accumulate<S>;

  Backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch)
      : args_(args),
        shape_(shape),
        context_("lstm_gates_backward", launch),
        arena_(launch.scratch),
        plan_(args, shape, arena_),
        cell_(cell_of<S>(args, shape)) {}

  void run() {
    if (shape_.channels > kMostGridRows) {
      value_error("c", "at most 65535 channels on a GPU", std::to_string(shape_.channels));
    }
    const bool bias_channel = args_.dbias.present && !shape_.cell.bias_per_pixel;
    const bool peephole_channel = args_.dpeephole.present && !shape_.cell.peephole_per_pixel;
    if (shape_.batch > 0) run_gates(bias_channel || peephole_channel);
    if (bias_channel) add_blocks(0, args_.dbias);
    if (peephole_channel) add_blocks(4 * shape_.channels, args_.dpeephole);
    if (args_.dbias.present && !bias_channel) run_per_pixel(false, plan_.bias_pixel, args_.dbias);
    if (args_.dpeephole.present && !peephole_channel) run_per_pixel(true, plan_.peephole_pixel, args_.dpeephole);
  }

 private:
  void run_gates(bool sums) {
    GatesBackwardArgs<S> k{};
    k.cell = cell_;
    k.batch = shape_.batch;
    k.packs = plan_.packs;
    k.gates = args_.gates.as<const S>();
    k.c = args_.c.as<const A>();
    k.zoneout_mask_h = args_.zoneout_mask_h.as<const uint8_t>();
    k.zoneout_mask_c = args_.zoneout_mask_c.as<const uint8_t>();
    k.dh = args_.dh.as<const S>();
    k.dc = args_.dc.as<const A>();
    k.dz = args_.dz.as<S>();
    k.dh_before = args_.dh_before.as<S>();
    k.dc_before = args_.dc_before.as<A>();
    k.partial = sums ? plan_.of_blocks : nullptr;
    k.cell.whole = all_aligned(shape_.pixels * int64_t(sizeof(S)), k.gates, k.c, k.dh, k.dc, k.dz, k.dh_before,
                               k.dc_before, k.cell.peephole);
    const auto kernel =
        is_default_cell(shape_.cell) ? gates_backward<S, SigmoidTanh<A>> : gates_backward<S, AnyActivation<A>>;
    context_.run("gates_backward", kernel,
                 dim3(static_cast<unsigned>(plan_.blocks), static_cast<unsigned>(shape_.channels)), k);
  }

  // The sums of the blocks: of the parameters that are per channel.
  void add_blocks(int64_t first, const Tensor& out) {
    const ReduceArgs<double> args = {
        plan_.of_blocks + first, plan_.blocks, out.size(), kCellSums * shape_.channels, nullptr, true, true, out.data,
        stored_as(out.dtype)};
    run_reduce_parts(context_, args);
  }

  void run_per_pixel(bool peephole, const PartedGradient<double>& gradient, const Tensor& out) {
    ParameterGradientArgs<S> k{};
    k.dz = args_.dz.as<const S>();
    k.dz_rows = 4 * shape_.channels;
    k.samples = shape_.batch;
    k.pixels = shape_.pixels;
    k.rows = out.shape[0];
    k.peephole = peephole;
    k.per_pixel = true;
    k.gates = args_.gates.as<const S>();
    k.c_before = plain_images(args_.c.as<const A>(), shape_.channels, shape_.pixels, shape_.batch);
    k.gate_kind = cell_.gate_kind;
    k.state_kind = cell_.state_kind;
    k.activation = cell_.activation;
    k.partial = gradient.partial();
    parameter_gradient_parts(context_, k, {1, 0});
    gradient.add(context_, 1, true, true, out);
  }

  const LstmGatesBackward& args_;
  const LstmGatesShape& shape_;
  Context context_;
  Arena arena_;
  BackwardPlan<S> plan_;
  CellArgs<S> cell_;
};

}  // namespace
}  // namespace fusecell::cuda

namespace fusecell::backend {

int64_t lstm_gates_forward_scratch(const LstmGatesForward& /*args*/, const LstmGatesShape& /*shape*/, int /*workers*/) {
  return 0;
}

int64_t lstm_gates_backward_scratch(const LstmGatesForward& args, const LstmGatesShape& shape, int /*workers*/) {
  return cuda::with_storage(shape.dtype, [&](auto s) {
    Arena arena;
    cuda::BackwardPlan<decltype(s)>(args, shape, arena);
    return arena.bytes();
  });
}

void lstm_gates_forward(const LstmGatesForward& args, const LstmGatesShape& shape, const Launch& launch) {
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::forward<decltype(s)>(args, shape, launch); });
}

void lstm_gates_backward(const LstmGatesBackward& args, const LstmGatesShape& shape, const Launch& launch) {
  cuda::with_storage(shape.dtype, [&](auto s) { cuda::Backward<decltype(s)>(args, shape, launch).run(); });
}

}  // namespace fusecell::backend
