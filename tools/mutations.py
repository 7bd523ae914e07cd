"""The errors that `make mutants` puts into the CUDA kernels, one at a time: each must turn a test red.

`find` and `replace` are compared without regard to white space, and `find` occurs once in its file, which
tests/test_mutants.py sees to. A mutation that computes the same says why in `equivalent`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SEQUENCE, ELEMENTWISE, LISTS = "sequence", "elementwise", "lists"
FAMILY = {"activation": ELEMENTWISE, "softmax": ELEMENTWISE, "bernoulli": ELEMENTWISE} | dict.fromkeys(
    ("norm_partials", "norm_finish", "rescale", "update"), LISTS
)
"""The tests that a kernel's mutations are shown; all other kernels are those of the cell and the convolutions."""


@dataclass(frozen=True)
class Mutation:
    """One error: `find` in csrc/`file` becomes `replace`."""

    kernel: str  # as csrc/cuda/kernels.def has it; for what several share, the one that shows it best
    what: str
    file: str
    find: str
    replace: str = ""
    killer: str = "fibres"
    """Who is expected to see it: fibres, late copies (tried first), or a sanitizer, thread or address, after them."""
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what}"

    @property
    def family(self) -> str:
        """Which tests see this kernel."""
        return FAMILY.get(self.kernel, SEQUENCE)

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches `find`, however it is wrapped."""
        return re.compile(r"\s+".join(map(re.escape, self.find.split())))

    @property
    def removes_a_barrier(self) -> bool:
        """Whether it takes out a __syncthreads()."""
        return self.find.count("__syncthreads();") > self.replace.count("__syncthreads();")


def _in(kernel: str, file: str, *rows: tuple[str, ...], killer: str = "fibres") -> list[Mutation]:
    """Mutations of one kernel in one file: (what, find, replace), or (what, find, replace, why it is equivalent)."""
    return [
        Mutation(kernel, what, file, find, replace, killer, *equivalent) for what, find, replace, *equivalent in rows
    ]


# ------------------------------------------------------------------------------------------ convolutions
_CONVOLUTIONS = [
    *_in(
        "correlate", "cuda/correlate.cuh",
        ("no barrier between two stages", "copy_async_wait<0>(); __syncthreads();", "copy_async_wait<0>();"),
        ("no barrier before the sums take the buffers' place",
         "__syncthreads();  // the last products are taken: the buffers are free", ""),
        ("no barrier after the tile is there",
         "products.store(values); __syncthreads();", "products.store(values);"),
        ("the products read the buffer that is being filled", "const int from = buffer ^ 1;",
         "const int from = buffer;"),
        ("the last stage is not multiplied", "next < taps + kDepth; next += kDepth",
         "next < taps; next += kDepth"),
        ("the second part of a stage is left out", "part < kParts; ++part", "part + 1 < kParts; ++part"),
        ("the state's convolution reads the input", "loader.select(next < of_first ? 0 : 1);", "loader.select(0);"),
        ("the weights' last 16 bytes are not copied", "i < pieces; i += kThreads", "i < pieces - 1; i += kThreads"),
        ("the tile's last row is skipped", "i < rows << row_shift; i", "i < (rows - 1) << row_shift; i"),
        ("pieces past the last sample are stored", "if (n < args.samples) f(row,", "if (n <= args.samples) f(row,"),
    ),
    *_in(
        "correlate", "cuda/correlate.cuh",
        ("no wait for the copies", "device::copy_async_wait<0>();", ""),
        ("the wait leaves the newest copies pending", "copy_async_wait<0>()", "copy_async_wait<1>()"),
        ("the copies are not committed", "device::copy_async_commit();", ""),
        killer="late copies",
    ),
    *_in(
        "correlate", "cuda/correlate.cuh",
        ("pixels past the last sample are looked up, too", "if (n < args_.samples) {", "if (true) {"),
        killer="thread",
    ),
    *_in(
        "correlate", "cuda/gather.cuh",
        ("rows: one too many", "uint32_t(h) < uint32_t(g.extent[0])", "uint32_t(h) <= uint32_t(g.extent[0])"),
        ("columns: one too many", "uint32_t(w) < uint32_t(g.extent[1])", "uint32_t(w) <= uint32_t(g.extent[1])"),
        ("the transposed stride's rows between two", "h % g.divide[0] != 0 || w", "w"),
        ("the stride of the columns for the rows", "row * g.step[0] - g.low[0]", "row * g.step[1] - g.low[0]"),
        ("the padding of the columns for the rows", "row * g.step[0] - g.low[0]", "row * g.step[0] - g.low[1]"),
        ("the mask is ignored", "if (!column.mask || !meets<false>", "if (true || !meets<false>"),
        ("each sample has the first one's mask", "images.mask + b * images.mask_image", "images.mask"),
        ("a sample is one step too long", "time < of.lengths[b]", "time <= of.lengths[b]"),
        ("a step before the first is one", "return time >= 0 && time < of.steps", "return time < of.steps"),
        ("the state comes from the step after", "time + of.shift)", "time - of.shift)"),
        ("no initial state", "return of.initial.image(b);", "return {};"),
        ("the initial state lies as the sequence does", "return of.initial.image(b);",
         "return {of.initial.image(b).data, of.frames.by.channel, of.frames.by.pixel};"),
        ("pixels are always neighbours", "uint64_t(p) * column.pixel", "uint64_t(p)"),
    ),
    *_in(
        "correlate", "cuda/correlate.cuh",
        ("the second half of a stage's weights is the first's",
         "weights += part * (kDepth / kParts) * kMostRows + row_;", "weights += row_;"),
    ),
    *_in(
        "correlate", "cuda/convolution.cuh",
        ("rows past the last are stored", "rows = left < most ? int(left) : most;", "rows = most;"),
        ("each tile has the first one's bias", "widen(args.bias[tile.row + row])", "widen(args.bias[row])"),
        ("the dropout mask of dh_0 is ignored", "if (args.mask) value[j] *= mask[j];", ""),
        ("the carry is not added", "if (args.carry) value[j] += carry[j];", ""),
    ),
    *_in(
        "correlate", "cuda/packed.h",
        ("16 bytes at a time whatever the number of pixels",
         "all_aligned(pixels() * int64_t(sizeof(S)), args.mask, args.carry)", "all_aligned(0, args.mask, args.carry)"),
        ("16 bytes at a time whatever the result's place", "&& aligned(args.out);", ";"),
    ),
    *_in(
        "pack_weights", "cuda/convolution.cuh",
        ("the gates in the order of the weights", "row % 4 * (args.out_channels / 4) + row / 4", "row"),
        ("the flipped taps are not flipped", "transposed ? -1 : 1;", "transposed ? 1 : 1;"),
        ("the dilation of the columns for the rows", "kh * args.dilation[0]", "kh * args.dilation[1]"),
        ("weights past the end of the memory", "if (k >= args.padded_taps) return;", ""),
    ),
    *_in(
        "pack_weights", "cuda/convolution.cuh",
        ("padding rows are not zeroed", "if (k < args.taps && row < args.rows) {", "if (k < args.taps) {"),
        ("padding taps are not zeroed", "if (k < args.taps && row < args.rows) {", "if (row < args.rows) {"),
        ("padding taps read the image", "if (k >= args.taps) tap = {0, kNowhere, kNowhere, 0};", ""),
        killer="address",
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ the steps of a sequence
_STEPS = [
    *_in(
        "forward_step", "cuda/conv_lstm_forward.cuh",
        ("channels past the last are computed", "channels = left < most ? int(left) : most;", "channels = most;"),
        ("inactive samples are not cleared", "return clear_step<kAlong, V>(step, span, b, channel, p);", "return;"),
        ("c of inactive samples is not cleared",
         "store_if(run_at<kAlong>(step.c.image(b), channel, p), span, zero);", ""),
        ("a sample is one step too long", "step.time >= step.lengths[b]", "step.time > step.lengths[b]"),
        ("in reverse, the last step is not the first", "if (step.reverse) return step.time == 0;", ""),
        ("a short sample has no last step",
         "|| (step.lengths && step.time + 1 == step.lengths[b])", ""),
        ("zoneout keeps 0 instead of h'",
         "if (step.cell.flags.zoneout_h) in.h = run_at<kAlong>(image_of(step.h_before, b, same), channel, p);", ""),
        ("a sample of length 0 has no h_n", "if (step.time == 0) {", "if (false) {"),
    ),
    *_in(
        "forward_step", "cuda/conv_lstm.h",
        ("an absent h_0 is convolved, too", "if (!has_state(s)) correlate.operand[1].depth = 0;",
         "",
         "what is absent reads as zero, and weights are finite: its taps are dropped to save their time"),
        ("what x holds in the padding reads as zero", "correlate.operand[0].images.lengths = nullptr;", "",
         "the results of those samples are thrown away; without the lengths there is less to look up"),
        ("c that is not saved is not read", "args_.c.frames<const A>().at_time(t + shift()) : c_n_",
         "args_.c.frames<const A>().at_time(t + shift()) : Frames<const A>{}"),
        ("16 bytes at a time whatever y's place", "fit(y_, h_0_,", "fit(h_0_,"),
        ("the first step that detaches is 0", "every > 0 && s > 0 && s % every == 0", "every > 0 && s % every == 0"),
    ),
    *_in(
        "forward_step", "cuda/cell_pack.cuh",
        ("16 bytes at a time whatever the stride", "span.whole && stride == 1, stride", "span.whole, stride"),
    ),
    *_in(
        "forward_step", "cuda/launch.h",
        ("16 bytes at a time whatever the distance of the samples", "&& whole(by.batch)", ""),
    ),
    *_in(
        "forward_step", "cuda/conv_lstm_forward.cu",
        ("an empty sequence has no c_n",
         "pass_through(context, shape, args.c_0.frames<const A>(), args.c_n.frames<A>());", ""),
    ),
    *_in(
        "backward_step", "cuda/conv_lstm_backward.cuh",
        ("the first step reads the carry, too", "if (step.first) {", "if (false) {"),
        ("the gradient of c_n is ignored",
         "load_or_zero(run_at<kAlong>(step.dc_first.image(b), channel, p), span, gradient.dc);",
         "load_or_zero(static_cast<const A*>(nullptr), span, gradient.dc);"),
        ("the carry is not read",
         "load_or_zero(run_at<kAlong>(to_read(step.carry_h).image(b), channel, p), span, gradient.dh);",
         "load_or_zero(static_cast<const A*>(nullptr), span, gradient.dh);"),
        ("the dropout mask is ignored", "step.dropout_mask ? through[j] * mask[j] : through[j]", "through[j]"),
        ("a sample is one step too long", "step.time >= step.lengths[b]", "step.time > step.lengths[b]"),
        ("dz of inactive samples is not zeroed", "gradient.dz[k][j] = A(0);", ";"),
        ("nothing is detached", "if (step.detach) {", "if (false) {"),
        ("channels past the last are computed", "channels = left < most ? int(left) : most;", "channels = most;"),
        ("each row of blocks has the first one's statistics", "(int64_t(blockIdx.y) * gridDim.x + blockIdx.x)",
         "int64_t(blockIdx.x)"),
        ("a step's squares stand in each other's place", "out[kDhSquared + k] = square;",
         "out[kDcSquared - k] = square;"),
    ),
    *_in(
        "backward_step", "cuda/cell_pack.cuh",
        ("what lies past a span counts", "if (sums && j < span.count) sums", "if (sums) sums"),
        ("squares lose what vanishes", "double(dh) * double(dh)", "double(dh * dh)"),
    ),
    *_in(
        "backward_step", "cuda/conv_lstm_backward.cu",
        ("all steps have the first one's statistics", "args_.statistics.as<double>() + t * int64_t(grid.x) * grid.y",
         "args_.statistics.as<double>() + 0 * int64_t(grid.x) * grid.y"),
        ("the convolution reaches through a detached state", "if (!step.first && !sequence_.detaches(s + 1)) {",
         "if (!step.first) {"),
        ("a chunk does not begin with the dz of the one after",
         "s + 1 < chunk.end ? dz_of(chunk, s + 1) : chunk.dz_after", "dz_of(chunk, s + 1)"),
        ("a chunk overwrites the dz that it begins with", "which_ ^= 1;", ""),
        ("in reverse, a chunk stands at the time of its steps",
         "args_.options.reverse ? shape_.steps - end : begin", "begin"),
    ),
    *_in(
        "backward_step", "cuda/conv_lstm.h",
        ("16 bytes at a time whatever the upstream gradients' place",
         "step.cell.whole && fit(step.dy, step.dh_first, step.dc_first);", "step.cell.whole;"),
        ("dc_0 lies as the running gradient does", "step.dc = args.dc_0.frames<A>();",
         "step.dc = contiguous_frames(args.dc_0.as<A>(), shape_.batch, shape_.channels, shape_.pixels());"),
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ on tensor cores
_TENSOR = [
    *_in(
        "pack_tensor_weights", "cuda/tensor_convolution.cuh",
        ("the flipped taps are not flipped", "const int32_t sign = transposed ? -1 : 1;", "const int32_t sign = 1;"),
        ("a piece stands in its own order", "int(i % kPieces) ^ int(row % 8)", "int(i % kPieces)"),
        ("channels past the last are another's", "|| channel >= args.channels ||", "||"),
        ("taps that fill up read the image", "if (at.place >= places) tap = {0, kNowhere, kNowhere, 0};", ""),
    ),
    *_in(
        "channels_last", "cuda/tensor_convolution.cuh",
        ("the mask is ignored", "if (args.images.mask) { const S* mask", "if (false) { const S* mask"),
        ("each sample has the first one's mask", "args.images.mask + b * args.images.mask_image + channel",
         "args.images.mask + channel"),
        ("the piece after the last is the next pixel's", "|| piece >= args.pieces) return;", ") return;"),
    ),
    *_in(
        "channels_last", "cuda/tensor_packed.h",
        ("what lies one element late is read in place", "reinterpret_cast<uintptr_t>(frames.data) % 16 == 0 && (by",
         "(by"),
    ),
    *_in(
        "tensor_correlate", "cuda/tensor_tile.cuh",
        ("no barrier before the places are read", "device::let_next_launch_begin(); __syncthreads();",
         "device::let_next_launch_begin();"),
        ("no barrier between two stages", "__syncthreads(); load_next(); sums.take", "load_next(); sums.take"),
        ("no barrier between two stages of warpgroups", "show_to_products(); __syncthreads();", "show_to_products();"),
        ("no barrier before other slices are read", "__syncthreads(); return {at", "return {at"),
        ("no barrier before the sums take the buffers' place", "__syncthreads(); // all have done with the buffers",
         ""),
        ("one stage too few", "stage < stages; ++stage) { wait", "stage + 1 < stages; ++stage) { wait"),
        ("what lies outside of an image is the weights'", "operand.weights, inside);", "operand.weights, true);"),
        ("the pieces of another row", "place_of_piece(first, piece()) * kPiece<S>",
         "(first * kPieces + piece()) * kPiece<S>"),
        ("each warp has the first one's rows", "group_ = warp & ((1 << size.group_shift) - 1);", "group_ = 0;"),
        ("the second operand's places are the first's", "places_->columns[which], tap", "places_->columns[0], tap"),
        ("every turn of the weights is even", "odd ^= buffer + 1 == buffers;", ""),
        ("warpgroups' weights come to the first buffer", "places_->weights[buffer]); return;",
         "places_->weights[0]); return;"),
        ("pixels past the last are stored", "if (n < args.samples) f(i, n,", "f(i, n,"),
    ),
    *_in(
        "tensor_correlate", "cuda/tensor_tile.cuh",
        ("with 3 buffers one stage too few is waited for", "copy_async_wait<1>();", "copy_async_wait<2>();"),
        ("with 2 buffers one stage too few is waited for", "copy_async_wait<0>();", "copy_async_wait<1>();"),
        ("a stage's copies are not committed",
         "loader.start_next(stage + ahead, next, buffer); device::copy_async_commit();",
         "loader.start_next(stage + ahead, next, buffer);"),
        ("warpgroups do not wait for the weights", "loader.wait_for_weights(buffer, odd);", ""),
        killer="late copies",
    ),
    *_in(
        "tensor_forward_step", "cuda/tensor_tile.cuh",
        ("the gates' runs in another order", "{4 * q + j % 2 * 2 + n % 2, j / 2}",
         "{4 * q + j % 2 * 2 + n % 2, 3 - j / 2}"),
    ),
    *_in(
        "tensor_forward_step", "cuda/tensor_step.cuh",
        ("channels past the last are computed", "if (first >= C) return;", ""),
        ("every group has the first one's channels", "group * kGroupChannels + sums.channel", "sums.channel"),
    ),
    *_in(
        "tensor_forward_step", "cuda/tensor_conv_lstm_forward.cu",
        ("the padding of what the next step reads is not cleared",
         "context_.zero(frames.data, shape_.batch * frames.by.batch * int64_t(sizeof(S)));", "(void)frames;"),
        ("a step reads what it writes", "to_read(plan_.h[(s + 1) % 2])", "to_read(plan_.h[s % 2])"),
    ),
    *_in(
        "tensor_backward_step", "cuda/tensor_conv_lstm_backward.cu",
        ("a chunk overwrites the dz that it begins with", "which_ ^= 1;", ""),
        ("the convolution reaches through a detached state", "!step.first && !sequence_.detaches(s + 1)",
         "!step.first"),
        ("all steps have the first one's statistics", "args_.statistics.as<double>() + t * int64_t(grid.x)",
         "args_.statistics.as<double>() + 0 * int64_t(grid.x)"),
        ("dc_0 alone gets the running gradient", "if (!step.dc.data) step.dc = plan_.carry_c;", ""),
        ("the padding of dz is not cleared",
         "if (plan_.padded() && dz.data) context_.zero(dz.data, plan_.chunk * dz.by.time * int64_t(sizeof(S)));",
         "(void)dz;"),
    ),
    *_in(
        "tensor_gradient", "cuda/tensor_gradient.cuh",
        ("no barrier before the places are read", "find_columns(0); __syncthreads();", "find_columns(0);"),
        ("no barrier between two stages", "wait(); __syncthreads();", "wait();"),
        ("the last part goes on past the end", "return end < total ? end : total;", "return total + 0 * end;"),
        ("warpgroups multiply dz by dz", "(1 << row_shift_) + first_column() / 64", "first_column() / 64"),
        ("warpgroups multiply one stage again and again", "stage_ += by;", "(void)by;"),
        ("of 128 rows of a warpgroup the first 64 twice", "panel(tiles, first_row() / 64 + 1)",
         "panel(tiles, first_row() / 64)"),
        ("warpgroups beside each other have the same columns", "row_shift_ == 0 ? int(threadIdx.x) / 128 * 128 : 0",
         "0"),
    ),
    *_in(
        "tensor_gradient", "cuda/tensor_gradient.cuh",
        ("products of warpgroups are not waited for", "device::wait_for_products<0>();", ""),
        killer="late copies",
    ),
    *_in(
        "tensor_gradient", "cuda/tensor_conv2d.cu",
        ("the bias's gradient alone is not computed", "args_.dweight.present || args_.dbias.present",
         "args_.dweight.present"),
    ),
    *_in(
        "tensor_parameter_gradient", "cuda/tensor_parameter_gradient.cuh",
        ("no barrier before the lanes' sums are added", "+ thread] = sum[k]; __syncthreads();", "+ thread] = sum[k];"),
        ("p_o takes dz_g for dz_o", "widen(dz[3 * C])", "widen(dz[2 * C])"),
        ("the last lane is left out", "for (int l = 0; l < lanes; ++l) all", "for (int l = 0; l + 1 < lanes; ++l) all"),
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ gradients of parameters
_GRADIENTS = [
    *_in(
        "weight_gradient", "cuda/weight_gradient.cuh",
        ("no barrier between two stages", "if (next > 0) __syncthreads(); if (next < stages) {",
         "if (next < stages) {"),
        ("the last pixels are skipped", "(end - first + kGradientDepth - 1) / kGradientDepth",
         "(end - first) / kGradientDepth"),
        ("the last part goes on past the end",
         "first + args.pixels_per_part < total ? first + args.pixels_per_part : total", "first + args.pixels_per_part"),
        ("one pixel past the end", "const bool inside = at < end;", "const bool inside = at <= end;"),
        ("taps past the last are stored", "if (at_row < args.rows && at_tap < args.count) {",
         "if (at_row < args.rows) {"),
        ("taps past the last are fetched", "if (k >= args.count) taps[i].h = kNowhere;", "",
         "the sums of those taps are not stored, and tap 0, which stands in for them, is there to be read"),
    ),
    *_in(
        "weight_gradient", "cuda/conv_lstm_backward.cu",
        ("a shorter chunk is cut into parts of its own",
         "const Parts parts = planned.of(total); weight_gradient_parts(",
         "const Parts parts = gradient_parts(rows, packed.taps_count(), total); weight_gradient_parts("),
    ),
    *_in(
        "weight_gradient", "cuda/weight_gradient.cuh",
        ("rows past the last are read", "inside && r < args.rows ?", "inside ?"),
        killer="address",
    ),
    *_in(
        "parameter_gradient", "cuda/weight_gradient.cuh",
        ("no barrier before the warps' sums are added", "= sum; __syncthreads();", "= sum;"),
        ("the second warp is left out", "for (int w = 1; w < kThreads / 32; ++w) sum",
         "for (int w = 2; w < kThreads / 32; ++w) sum"),
        ("p_o takes dz_g for dz_o", "(which == 2 ? 3 : which)", "which"),
        ("p_o takes c' for ĉ", "return dz * (f * c + i * g);", "return dz * c;"),
        ("the last sample of a pixel is skipped", "for (int64_t n = 0; n < args.samples; ++n)",
         "for (int64_t n = 0; n + 1 < args.samples; ++n)"),
        ("the last part goes on past the end",
         "first + args.per_part < total ? first + args.per_part : total", "first + args.per_part"),
        ("samples that are not active are added",
         "if (!takes_place(states, n - slot * states.batch, states.time + slot)) return A(0);", "",
         "their dz is zero and their saved gates are finite: what is added is zero"),
    ),
    *_in(
        "parameter_gradient", "cuda/conv_lstm_backward.cu",
        ("each chunk is the first", "first = chunk.end == shape_.steps, last", "first = true, last"),
        ("each chunk is the last", "last = chunk.begin == 0;", "last = true;"),
    ),
    *_in(
        "reduce_parts", "cuda/weight_gradient.cuh",
        ("the last part is left out", "part < args.parts; ++part", "part + 1 < args.parts; ++part"),
        ("the chunks before are left out", "args.first ? 0.0 : double(args.running[i])", "0.0"),
        ("one element past the end", "if (i >= args.n) return;", "if (i > args.n) return;"),
        ("parts as far apart as they are long", "args.partial[part * args.stride + i]",
         "args.partial[part * args.n + i]"),
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ the gates
_GATES = [
    *_in(
        "gates_forward", "cuda/lstm_gates.cuh",
        ("one plane past the end", "if (plane >= args.planes) return;", "if (plane > args.planes) return;"),
        ("a plane's last pack has no end",
         "const Span span = {P - p < V ? int(P - p) : V, args.cell.whole}; const int64_t at = plane",
         "const Span span = {V, args.cell.whole}; const int64_t at = plane"),
    ),
    *_in(
        "gates_forward", "cuda/lstm_gates.cu",
        ("16 bytes at a time whatever z's place", "k.z, k.c, k.h, k.h_out,", "k.c, k.h, k.h_out,"),
    ),
    *_in(
        "gates_forward", "cuda/cell_pack.cuh",
        ("p_o is p_f", "2 * C + channel, cell.pixels", "C + channel, cell.pixels"),
        ("a bias per pixel is the first one's", "load(parameter + row * pixels + p, kAlong",
         "load(parameter + row * pixels, kAlong"),
        ("the gates' biases in the order of the rows", "k * cell.channels + channel, cell.pixels",
         "4 * channel + k, cell.pixels"),
    ),
    *_in(
        "gates_forward", "cuda/cell_pack.cuh",
        ("the mask is read past its end", "A(j < span.count && mask.data[j * mask.stride] != 0)",
         "A(mask.data[j * mask.stride] != 0)"),
        killer="address",
    ),
    *_in(
        "gates_backward", "cuda/lstm_gates.cuh",
        ("samples past the last are computed", "if (b < args.batch) {", "if (true) {"),
        ("each block has the first one's place", "(int64_t(blockIdx.x) * kCellSums + threadIdx.x) * C",
         "int64_t(threadIdx.x) * C"),
        ("pixels past the last are added", "j < span.count ? term : A(0)", "term",
         "dh and dc read as zero there, and so do the gates: the terms are zero"),
    ),
    *_in(
        "gates_backward", "cuda/cell_pack.cuh",
        ("p_o takes c' for ĉ", "result.dz.o * result.c_new", "result.dz.o * operands.c[j]"),
        ("no barrier before the warps' sums are added", "__syncthreads(); double total = 0;", "double total = 0;"),
        ("the last warp is left out", "w < kThreads / 32; ++w) total", "w < kThreads / 32 - 1; ++w) total"),
    ),
    *_in(
        "gates_backward", "cuda/lstm_gates.cu",
        ("the peepholes get the bias's sums", "add_blocks(4 * shape_.channels, args_.dpeephole)",
         "add_blocks(0, args_.dpeephole)"),
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ elementwise
_ELEMENTWISE = [
    *_in(
        "activation", "cuda/activation.cuh",
        ("dy is not read", "if (args.adjoint) load(args.dy + first, span, dy);", ""),
        ("a thread at the end goes on", "if (first >= args.size) return;", "if (first > args.size) return;",
         "its span is empty: it reads and writes nothing"),
    ),
    *_in(
        "activation", "cuda/packs.cuh",
        ("the last pack has no end", "end - first < V ? int(end - first) : V", "V"),
        ("16 bytes at a time whatever the place", "{count, aligned && count == V}", "{count, count == V}"),
        killer="address",
    ),
    *_in(
        "activation", "cuda/activation.cu",
        ("the adjoint reads x where it wants y", "output_determines_derivative(kind) ? y : x;", "x;"),
        ("16 bytes at a time whatever dy's place", "all_aligned(0, known.data, dy.data, out.data)",
         "all_aligned(0, known.data, out.data)"),
        killer="address",
    ),
    *_in(
        "softmax", "cuda/softmax.cuh",
        ("one line past the end", "if (line >= args.lines) return;", "if (line > args.lines) return;"),
        ("the largest of a line is at least 0", "j < span.count && x[j] > result ?", "x[j] > result ?"),
        ("the sum goes past the line's end", "j < span.count ? double(exp_of_negative(x[j] - most)) : 0.0",
         "double(exp_of_negative(x[j] - most))"),
        ("the adjoint's sum is one lane's",
         "dot = fold_lanes<kLanes>(dot, [](double a, double b) { return a + b; });", ""),
    ),
    *_in(
        "softmax", "cuda/softmax.cuh",
        ("16 bytes at a time whatever the line's length", "kLanes == 1 || args.aligned,", "true,"),
        killer="address",
    ),
    *_in(
        "softmax", "cuda/packs.cuh",
        ("half of the lanes are folded", "int distance = kLanes / 2;", "int distance = kLanes / 4;"),
    ),
    *_in(
        "bernoulli", "cuda/masks.cuh",
        ("the offset is ignored", "= args.offset + (args.counter", "= (args.counter"),
        ("the counter on the device is ignored", "(args.counter ? *args.counter : 0)", "0"),
        ("a number that equals the threshold counts", "numbers.word[j] < args.threshold",
         "numbers.word[j] <= args.threshold"),
        ("a thread at the end goes on", "if (group * 4 >= args.size) return;", "if (group * 4 > args.size) return;",
         "its span is empty: it writes nothing"),
    ),
    *_in(
        "bernoulli", "cuda/masks.cuh",
        ("four numbers past the end", "if (j < span.count) out[j] = drawn.element[j];", "out[j] = drawn.element[j];"),
        killer="address",
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------ lists of arrays
_LISTS = [
    *_in(
        "norm_partials", "cuda/tensor_list.cuh",
        ("no barrier before the warps' parts are added", "__syncthreads(); if (threadIdx.x != 0) return part;",
         "if (threadIdx.x != 0) return part;"),
        ("the last warp is left out", "for (int warp = 1; warp < kThreads / 32; ++warp)",
         "for (int warp = 1; warp < kThreads / 32 - 1; ++warp)"),
        ("a NaN is not kept", "return a != a || b <= a ? a : b;", "return b <= a ? a : b;"),
        ("large squares overflow", "if (size > kBig) {", "if (false) {"),
        ("small squares are lost", "} else if (size < kSmall) {", "} else if (false) {"),
        ("a chunk goes on to the array's end", "entry.size - begin < kListChunk ? entry.size : begin + kListChunk",
         "entry.size"),
        ("a block belongs to the array before", "first_block <= blockIdx.x", "first_block < blockIdx.x"),
    ),
    *_in(
        "norm_partials", "cuda/tensor_list.cu",
        ("a second launch overwrites the first one's parts", "args.parts += grid.x;", ""),
    ),
    *_in(
        "norm_finish", "cuda/tensor_list.cuh",
        ("the last part is left out", "i < args.count; i += kThreads", "i + 1 < args.count; i += kThreads"),
        ("parts beyond the block's threads are left out", "i < args.count; i += kThreads",
         "i < args.count && i < kThreads; i += kThreads"),
        ("small squares always count", "part.small > 0 && part.medium < 0x1p-100", "part.small > 0"),
        ("the medium squares beside large ones do not count",
         "square_root(part.big + part.medium * kBigScale * kBigScale)", "square_root(part.big)"),
    ),
    *_in(
        "rescale", "cell/update.h",
        ("the norm less the small number", "= max_norm / (norm + 1e-6)", "= max_norm / (norm - 1e-6)"),
        ("gradients below the limit are raised", "return coefficient >= 1.0 ? 1.0 : coefficient;",
         "return coefficient;"),
    ),
    *_in(
        "rescale", "cuda/tensor_list.cuh",
        ("what reaches the threshold exceeds it", "!(*args.largest > args.limit)", "!(*args.largest >= args.limit)"),
        ("a small norm's inverse overflows", "*args.norm < kSmallestDivisor ? kSmallDivisorScale : 1.0", "1.0"),
        ("the factor is rounded to float", "return A(double(x) * by.factor);", "return x * A(by.factor);"),
        ("a factor of 1 is multiplied by",
         "if (args.op != Rescale::clamp && by.before == 1.0 && by.factor == 1.0) return;", "",
         "a product with 1 is the number itself: leaving early saves the pass over memory"),
    ),
    *_in(
        "update", "cuda/tensor_list.cuh",
        ("no barrier before the factors are read", "__syncthreads(); return factors[0];", "return factors[0];"),
        ("the step that the device counts is ignored", "args.step ? *args.step : args.parameters.step",
         "args.parameters.step"),
        ("the norm is ignored", "args.norm ? clip_coefficient(*args.norm, args.parameters.max_norm) : 1.0", "1.0"),
        ("the second slot is not stored", "if (seconds) store(seconds + at, span, second);", ""),
    ),
    *_in("update", "cell/update.h", ("Adam's mean is not corrected", "p.lr / (1.0 - power(p.beta1, step))", "p.lr")),
    *_in(
        "update", "cuda/tensor_list.cu",
        ("a full list is not launched", "if (++list.count == list.kCapacity) flush();", "++list.count;"),
    ),
    *_in(
        "update", "cuda/tensor_list.cu",
        ("16 bytes at a time whatever the gradient's place", "all_aligned(0, value.data, gradient, first, second)",
         "all_aligned(0, value.data, first, second)"),
        killer="address",
    ),
]  # fmt: skip

MUTATIONS = (*_CONVOLUTIONS, *_STEPS, *_TENSOR, *_GRADIENTS, *_GATES, *_ELEMENTWISE, *_LISTS)
