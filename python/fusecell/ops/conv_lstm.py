"""The ConvLSTM: a whole sequence, and a single step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Algorithm, Array, Padding, Pair
from fusecell.ops._arguments import (
    as_array,
    as_flag,
    as_integer,
    as_lengths,
    as_mask,
    as_optional_array,
    as_randomness,
    as_rate,
    cell_options,
    convolution_options,
    wanted_names,
)
from fusecell.ops.masks import draw_dropout, draw_zoneout

STEP_STATISTICS = (
    "count", "dh_squared", "dc_squared", "not_finite", "forget",
    "saturated_i", "saturated_f", "saturated_g", "saturated_o",
)  # fmt: skip
"""The columns of `conv_lstm_backward`'s statistics."""


@dataclass(frozen=True)
class SavedConvLSTM:
    """What `conv_lstm_backward` reads: the inputs, the masks that were drawn, y, c and (unless recomputed) the gates.

    Arrays are shared, not copied: whoever changes an input between forward and backward gets other gradients.
    """

    arrays: dict[str, Array | None]
    options: dict[str, Any]


def conv_lstm_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    h_0: Array | None = None,
    c_0: Array | None = None,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    slope: float = 0.01,
    relu_at_zero: float = 0.0,
    lengths: Array | Sequence[int] | None = None,
    reverse: bool = False,
    truncation: int = 0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    zoneout_mask_h: Array | None = None,
    zoneout_mask_c: Array | None = None,
    recurrent_dropout: float = 0.0,
    dropout_mask: Array | None = None,
    training: bool = False,
    seed: int = 0,
    offset: int | Array = 0,
    save: Literal["gates", "recompute"] | None = "gates",
    algorithm: Algorithm = "auto",
) -> tuple[Array, Array, Array, SavedConvLSTM | None]:
    """Run a ConvLSTM over a sequence (Shi et al. 2015).

    x [T, B, Cin, Hin, Win]; weight_ih [4C, Cin, kh, kw] and weight_hh [4C, C, kh', kw'] with the gates in the order
    i, f, g, o; bias [4C] or [4C, H, W]; peephole [3C] or [3C, H, W] in the order i, f, o; h_0, c_0 [B, C, H, W], zero
    if absent. H, W: the size after the input convolution. The options are in the module's table.

    save: "gates" keeps the activated gates and c for backward; "recompute" keeps c alone (a fifth of the memory) and
    makes the gates again in backward, with the same bits; None keeps nothing.

    algorithm, of both convolutions, forward and backward: "auto" is Winograd's for float32 and 3x3 or 5x5 kernels (the
    same for both) at stride 1 and dilation 1, on the CPU and where it pays; tensor cores for 16 bits, on GPUs from
    compute capability 8.0 on; else the direct one. Winograd's errs by at most 2e-5 of a convolution's largest output,
    gradients by 1e-4 after 20 steps, and a pixel that is infinite or NaN spoils the outputs of the 6x6 tiles it lies
    in. "direct" errs by rounding alone; "winograd" is taken wherever it is possible, in float64 too. "bfloat16", not
    yet run on real AMX, rounds what the convolutions read to bfloat16 and sums in float32: for float32, stride 1 and
    dilation 1, and processors with AMX. "tensor_cores" (16 bits) and "tf32" (float32, of which the convolutions read 10
    bits of mantissa) sum in float32, on such GPUs. See docs/cell.md.

    Returns y [T, B, C, H, W] (0 at steps beyond a sample's length), h_n and c_n [B, C, H, W], and what backward needs.
    Raises TypeError, ValueError.
    """
    if save not in ("gates", "recompute", None):
        raise ValueError(f'save: expected "gates", "recompute" or None, got {save!r}')
    given_x = as_array("x", x)
    arrays: dict[str, Array | None] = {
        "x": given_x,
        "weight_ih": as_array("weight_ih", weight_ih),
        "weight_hh": as_array("weight_hh", weight_hh),
        "bias": as_optional_array("bias", bias),
        "peephole": as_optional_array("peephole", peephole),
        "h_0": as_optional_array("h_0", h_0),
        "c_0": as_optional_array("c_0", c_0),
        "lengths": as_lengths(lengths, given_x),
        "dropout_mask": as_optional_array("dropout_mask", dropout_mask),
        "zoneout_mask_h": as_mask("zoneout_mask_h", zoneout_mask_h),
        "zoneout_mask_c": as_mask("zoneout_mask_c", zoneout_mask_c),
    }
    options = {
        **convolution_options(stride, dilation, padding, algorithm),
        **cell_options(recurrent_activation, activation, slope, relu_at_zero, zoneout_h, zoneout_c),
        "reverse": as_flag("reverse", reverse),
        "truncation": as_integer("truncation", truncation),
    }
    rate = as_rate("recurrent_dropout", recurrent_dropout, below=1.0)
    numbers = as_randomness(seed, offset)
    place, inputs = _dispatch.place_of(arrays), _dispatch.describe_all(arrays)
    plan = _dispatch.plan("conv_lstm", place, inputs, options)
    dtype, cell_dtype, sequence, state = given_x.dtype, plan["cell_dtype"], tuple(plan["y"]), tuple(plan["state"])
    if as_flag("training", training):
        drawn = draw_zoneout(arrays, options, sequence, numbers, place)
        if rate > 0 and arrays["dropout_mask"] is None:
            drawn["dropout_mask"] = draw_dropout(state, rate, dtype, numbers, place)
        arrays |= drawn
        inputs |= _dispatch.describe_all(drawn)

    y, h_n = (_dispatch.empty(shape, dtype, place) for shape in (sequence, state))
    c_n = _dispatch.empty(state, cell_dtype, place)
    empty_saved = _dispatch.empty_channels_last if plan["channels_last"] else _dispatch.empty
    c = empty_saved(sequence, cell_dtype, place) if save else None
    gates = empty_saved(tuple(plan["gates"]), dtype, place) if save == "gates" else None
    outputs = {"y": y, "h_n": h_n, "c_n": c_n, "c": c, "gates": gates}
    tensors = {**inputs, **_dispatch.describe_all(outputs)}
    _dispatch.run("conv_lstm_forward", place, tensors, options, plan)
    if save is None:
        return y, h_n, c_n, None
    return y, h_n, c_n, SavedConvLSTM({**arrays, "y": y, "c": c, "gates": gates}, options)


def conv_lstm_backward(
    saved: SavedConvLSTM,
    dy: Array | None = None,
    dh_n: Array | None = None,
    dc_n: Array | None = None,
    *,
    needs: Collection[str] | None = None,
    statistics: bool = False,
) -> dict[str, Array]:
    """The gradients of `conv_lstm_forward`, given those of its outputs (None: zero).

    dy [T, B, C, H, W] (ignored beyond a sample's length), dh_n and dc_n [B, C, H, W].

    needs: the names wanted among x, weight_ih, weight_hh, bias, peephole, h_0, c_0; only those are computed. By default
    all of them, bias and peephole if they were given. May be called again with the same `saved`.

    statistics: adds the key "statistics", float64 [T, 9], with what each step of this pass was like. A row (in original
    time order) has sums over the step's active samples, all channels and pixels, columns as in `STEP_STATISTICS`:

    - count: the number of these elements
    - dh_squared: the square of the loss's gradient by the step's h, through dy, later steps and dh_n
    - dc_squared: the same by ĉ, the new cell state before zoneout (through h, later steps and the peephole of o)
    - not_finite: how many of these gradients are infinite or NaN
    - forget: f
    - saturated_i, _f, _g, _o: how many are where their slope is nearly nothing: a gate below 0.01 or above 0.99, a g
      beyond ±0.98 with tanh, hard_tanh and softsign, none with the other activations

    Returns a dict from forward's argument names to arrays of their shapes. Raises TypeError, ValueError.
    """
    if not isinstance(saved, SavedConvLSTM):
        raise TypeError(f"saved: expected what conv_lstm_forward returned last, got {type(saved).__name__}")
    given = saved.arrays
    possible = ["x", "weight_ih", "weight_hh", *(n for n in ("bias", "peephole") if given[n] is not None), "h_0", "c_0"]
    wanted, watched = wanted_names(needs, possible), as_flag("statistics", statistics)
    x, y, c = given["x"], given["y"], given["c"]
    assert x is not None
    assert y is not None
    assert c is not None
    sent = {name: as_optional_array(name, value) for name, value in (("dy", dy), ("dh_n", dh_n), ("dc_n", dc_n))}
    place, inputs = _dispatch.place_of(given | sent), _dispatch.describe_all(given)
    plan, state = _dispatch.plan("conv_lstm", place, inputs, saved.options, backward=True), y.shape[1:]
    made_like = {name: (a.shape, a.dtype) for name, a in given.items() if a is not None}
    made_like |= {"h_0": (state, x.dtype), "c_0": (state, c.dtype)}  # which may have been absent
    outputs = {f"d{name}": _dispatch.empty(*made_like[name], place) for name in wanted}
    if watched:
        parts = (x.shape[0], plan["statistics_parts"], len(STEP_STATISTICS))
        outputs["statistics"] = _dispatch.empty(parts, np.float64, place)
    tensors = {**inputs, **_dispatch.describe_all(sent | outputs)}
    _dispatch.run("conv_lstm_backward", place, tensors, saved.options, plan)
    found = {name: outputs[f"d{name}"] for name in possible if name in wanted}
    return {**found, "statistics": outputs["statistics"].sum(axis=1)} if watched else found


@contextmanager
def _step_names() -> Iterator[None]:
    """A step is a sequence of one: what the sequence says of its arguments, said of the step's."""
    of_step = {"h_0": "h", "c_0": "c", "dh_n": "dh", "dc_n": "dc"}
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if name not in of_step:
            raise
        raise type(error)(of_step[name] + colon + rest) from None


def conv_lstm_step_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    h: Array | None = None,
    c: Array | None = None,
    *,
    zoneout_mask_h: Array | None = None,
    zoneout_mask_c: Array | None = None,
    **options: Any,
) -> tuple[Array, Array, SavedConvLSTM | None]:
    """One step: `conv_lstm_forward` without the time axis, for loops that feed predictions back or stream frames.

    x [B, Cin, Hin, Win], h and c [B, C, H, W] (None: zero), zoneout masks [B, C, H, W]. Other options as for the
    sequence, but lengths, reverse and truncation, which a single step has not.

    Returns the new h and c [B, C, H, W] and what backward needs. Raises TypeError, ValueError.
    """
    for name in ("lengths", "reverse", "truncation", "h_0", "c_0"):
        if name in options:
            raise TypeError(f"{name}: expected only for whole sequences, got it for a single step")
    x = as_array("x", x)
    if x.ndim != 4:
        raise ValueError(f"x: expected shape [B, Cin, Hin, Win], got {x.shape}")
    for name, mask in (("zoneout_mask_h", zoneout_mask_h), ("zoneout_mask_c", zoneout_mask_c)):
        options[name] = None if mask is None else as_array(name, mask)[None]
    with _step_names():
        _, h_n, c_n, saved = conv_lstm_forward(x[None], weight_ih, weight_hh, bias, peephole, h, c, **options)
    return h_n, c_n, saved


def conv_lstm_step_backward(
    saved: SavedConvLSTM, dh: Array | None = None, dc: Array | None = None, *, needs: Collection[str] | None = None
) -> dict[str, Array]:
    """The gradients of `conv_lstm_step_forward`, named as its arguments: x, weight_ih, ..., h, c.

    dh, dc: [B, C, H, W], None: zero. Raises TypeError, ValueError.
    """
    if not isinstance(saved, SavedConvLSTM):
        raise TypeError(f"saved: expected what conv_lstm_step_forward returned last, got {type(saved).__name__}")
    optional = (name for name in ("bias", "peephole") if saved.arrays[name] is not None)
    of_sequence = {name: name for name in ("x", "weight_ih", "weight_hh", *optional)} | {"h": "h_0", "c": "c_0"}
    wanted = wanted_names(needs, list(of_sequence))
    with _step_names():
        gradients = conv_lstm_backward(saved, None, dh, dc, needs={of_sequence[name] for name in wanted})
    found = {name: gradients[of] for name, of in of_sequence.items() if name in wanted}
    return {name: gradient[0] if name == "x" else gradient for name, gradient in found.items()}
