"""The functional API: every op of fusecell, forward and backward, on NumPy arrays.

Arrays that are computed on share one dtype, float32 or float64. Any strides are accepted: an input that is not
C-contiguous, aligned and in native byte order is copied first (in-place ops copy the result back). Outputs are new
arrays. A bad argument raises TypeError or ValueError that names it, says what was expected and what came, and nothing
is changed. `fusecell.reference` holds the definition of each op in plain NumPy; the formulas are those of
Shi et al. 2015 (ConvLSTM), Gers and Schmidhuber 2000 (peepholes), Krueger et al. 2016 (zoneout).

Options of the cell, the same for every op that has one (keyword only):

| option | meaning |
|---|---|
| `stride`, `dilation` | of the input convolution: int or (h, w) |
| `padding` | of the input convolution: "same", "valid" (as Keras), int, (h, w) or ((low, high), (low, high)) |
| `recurrent_activation` | σ: "sigmoid", "hard_sigmoid" (torch, Keras 3), "hard_sigmoid_keras2" (Keras 2) |
| `activation` | φ: "tanh", "relu", "leaky_relu", "hard_tanh", "softsign", "identity" |
| `slope` | of leaky_relu |
| `relu_at_zero` | the derivative of relu at exactly 0: 0, 0.5 or 1 |
| `lengths` | [B] integers: step t of sample b takes place iff t < lengths[b]; padding affects nothing |
| `reverse` | run t = T-1 .. 0; y stays in original time order |
| `truncation` | k > 0: the state that enters step k, 2k, ... of the direction is detached in backward |
| `zoneout_h`, `zoneout_c` | rates at which the old state is kept; in training by random masks, else by expectation |
| `zoneout_mask_h`, `zoneout_mask_c` | [T, B, C, H, W] uint8 or bool, 1 keeps the old state; in place of random ones |
| `recurrent_dropout` | rate; in training one inverted mask on h' in the recurrent convolution, for all t |
| `dropout_mask` | [B, C, H, W], dtype of x; in place of a random one |
| `training`, `seed`, `offset` | whether random masks are drawn, and the Philox stream they come from |
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Array, Padding, Pair

__all__ = [
    "activation_backward",
    "activation_forward",
    "bernoulli",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
    "clip_if_any_exceeds_",
    "conv2d_backward",
    "conv2d_forward",
    "conv_lstm_backward",
    "conv_lstm_forward",
    "conv_lstm_step_backward",
    "conv_lstm_step_forward",
    "global_norm",
    "lstm_gates_backward",
    "lstm_gates_forward",
    "softmax_backward",
    "softmax_forward",
]

_DROPOUT, _ZONEOUT_H, _ZONEOUT_C = 0, 1, 2  # streams of bernoulli


# ------------------------------------------------------------------------------------------------- arguments
def _array(name: str, value: Any) -> Array:
    """The array itself, or a copy of it that is C-contiguous, aligned and native."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__module__}.{type(value).__qualname__}")
    if value.dtype.hasobject or value.dtype.fields is not None:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
    if value.flags.c_contiguous and value.flags.aligned and value.dtype.isnative:
        return value
    return np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True)


def _optional(name: str, value: Any) -> Array | None:
    return None if value is None else _array(name, value)


def _integer(name: str, value: Any, low: int = -(2**62), high: int = 2**62) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def _rate(name: str, value: Any, below: float = math.inf) -> float:
    rate = _number(name, value)
    if not (0.0 <= rate <= 1.0 and rate < below):
        raise ValueError(f"{name}: expected a rate from 0 to {'below ' if below == 1.0 else ''}1, got {rate}")
    return rate


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a name, got {type(value).__name__}")
    if not value.isascii():
        raise ValueError(f"{name}: expected a name of an activation, got {value!r}")
    return value


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one number or two, got {len(value)}")
        return _integer(name, value[0]), _integer(name, value[1])
    return (_integer(name, value),) * 2


def _padding(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(f'padding: expected "same", "valid" or numbers, got {value!r}')
        return {"padding": value}
    if isinstance(value, (tuple, list)) and len(value) == 2:
        ends = [v if isinstance(v, (tuple, list)) else (v, v) for v in value]
    else:
        ends = [(value, value)] * 2
    return {"padding": "explicit", "pad_h": _pair("padding", ends[0]), "pad_w": _pair("padding", ends[1])}


def _convolution(stride: Any, dilation: Any, padding: Any) -> dict[str, Any]:
    return {"stride": _pair("stride", stride), "dilation": _pair("dilation", dilation), **_padding(padding)}


def _lengths(value: Any) -> Array | None:
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("lengths: expected one integer for each sample, got lists of different lengths") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers of 64 bits, got {array.dtype}")
    if array.size and int(array.max()) > 2**62:
        raise ValueError(f"lengths: expected at most the number of steps, got {array.max()}")
    return np.asarray(array, np.int64, order="C")


def _mask(name: str, value: Any) -> Array | None:
    if value is None:
        return None
    array = _array(name, value)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype == np.uint8 and array.size and array.max() > 1:
        raise ValueError(f"{name}: expected only 0 and 1, got {array.max()}")
    return array


def _wanted(needs: Collection[str] | None, possible: Sequence[str]) -> set[str]:
    if needs is None:
        return set(possible)
    if not isinstance(needs, Collection) or isinstance(needs, str) or not all(isinstance(n, str) for n in needs):
        raise TypeError(f"needs: expected a collection of names, got {needs!r}")
    unknown = sorted(set(needs) - set(possible))
    if unknown:
        raise ValueError(f"needs: expected names among {', '.join(possible)}, got {', '.join(unknown)}")
    return set(needs)


# --------------------------------------------------------------------------------------------------- conv_lstm
@dataclass(frozen=True)
class SavedConvLSTM:
    """What `conv_lstm_backward` reads: the inputs, the masks that were drawn, y, c and (unless recomputed) the gates.

    Arrays are shared, not copied: whoever changes an input between forward and backward gets other gradients.
    """

    arrays: dict[str, Array | None]
    options: dict[str, Any]


def _cell_options(
    recurrent_activation: Any, activation: Any, slope: Any, relu_at_zero: Any, zoneout_h: Any, zoneout_c: Any
) -> dict[str, Any]:
    return {
        "recurrent_activation": _text("recurrent_activation", recurrent_activation),
        "activation": _text("activation", activation),
        "slope": _number("slope", slope),
        "relu_at_zero": _number("relu_at_zero", relu_at_zero),
        "zoneout_h": _rate("zoneout_h", zoneout_h),
        "zoneout_c": _rate("zoneout_c", zoneout_c),
    }


def _draw_zoneout(
    arrays: dict[str, Array | None], options: dict[str, Any], shape: tuple[int, ...], seed: int, offset: int
) -> None:
    for state, stream in (("h", _ZONEOUT_H), ("c", _ZONEOUT_C)):
        rate = options[f"zoneout_{state}"]
        if rate > 0 and arrays[f"zoneout_mask_{state}"] is None:
            arrays[f"zoneout_mask_{state}"] = bernoulli(shape, rate, seed=seed, offset=offset, stream=stream)


def _draw_dropout(shape: tuple[int, ...], rate: float, dtype: Any, seed: int, offset: int) -> Array:
    dropped = bernoulli(shape, rate, seed=seed, offset=offset, stream=_DROPOUT)
    mask: Array = np.where(dropped, 0.0, 1.0 / (1.0 - rate)).astype(dtype)
    return mask


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
    offset: int = 0,
    save: Literal["gates", "recompute"] | None = "gates",
) -> tuple[Array, Array, Array, SavedConvLSTM | None]:
    """Run a ConvLSTM over a sequence (Shi et al. 2015).

    x [T, B, Cin, Hin, Win]; weight_ih [4C, Cin, kh, kw] and weight_hh [4C, C, kh', kw'] with the gates in the order
    i, f, g, o; bias [4C] or [4C, H, W]; peephole [3C] or [3C, H, W] in the order i, f, o; h_0, c_0 [B, C, H, W], zero
    if absent. H, W: the size after the input convolution. The options are in the module's table.

    save: "gates" keeps the activated gates and c for backward; "recompute" keeps c alone (a fifth of the memory) and
    makes the gates again in backward, with the same bits; None keeps nothing.

    Returns y [T, B, C, H, W] (0 at steps beyond a sample's length), h_n and c_n [B, C, H, W], and what backward needs.
    Raises TypeError, ValueError.
    """
    if save not in ("gates", "recompute", None):
        raise ValueError(f'save: expected "gates", "recompute" or None, got {save!r}')
    arrays: dict[str, Array | None] = {
        "x": _array("x", x),
        "weight_ih": _array("weight_ih", weight_ih),
        "weight_hh": _array("weight_hh", weight_hh),
        "bias": _optional("bias", bias),
        "peephole": _optional("peephole", peephole),
        "h_0": _optional("h_0", h_0),
        "c_0": _optional("c_0", c_0),
        "lengths": _lengths(lengths),
        "dropout_mask": _optional("dropout_mask", dropout_mask),
        "zoneout_mask_h": _mask("zoneout_mask_h", zoneout_mask_h),
        "zoneout_mask_c": _mask("zoneout_mask_c", zoneout_mask_c),
    }
    options = {
        **_convolution(stride, dilation, padding),
        **_cell_options(recurrent_activation, activation, slope, relu_at_zero, zoneout_h, zoneout_c),
        "reverse": _flag("reverse", reverse),
        "truncation": _integer("truncation", truncation),
    }
    rate = _rate("recurrent_dropout", recurrent_dropout, below=1.0)
    seed, offset = _integer("seed", seed, 0, 2**64 - 1), _integer("offset", offset, 0, 2**64 - 1)
    plan = _dispatch.plan("conv_lstm", arrays, options)
    dtype, sequence, state = x.dtype.newbyteorder("="), tuple(plan["y"]), tuple(plan["state"])
    if _flag("training", training):
        _draw_zoneout(arrays, options, sequence, seed, offset)
        if rate > 0 and arrays["dropout_mask"] is None:
            arrays["dropout_mask"] = _draw_dropout(state, rate, dtype, seed, offset)

    y, h_n, c_n = (_dispatch.empty(shape, dtype) for shape in (sequence, state, state))
    c = _dispatch.empty(sequence, dtype) if save else None
    gates = _dispatch.empty(tuple(plan["gates"]), dtype) if save == "gates" else None
    outputs = {"y": y, "h_n": h_n, "c_n": c_n, "c": c, "gates": gates}
    _dispatch.run("conv_lstm", {**arrays, **outputs}, options)
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
) -> dict[str, Array]:
    """The gradients of `conv_lstm_forward`, given those of its outputs (None: zero).

    dy [T, B, C, H, W] (ignored beyond a sample's length), dh_n and dc_n [B, C, H, W].

    needs: the names wanted among x, weight_ih, weight_hh, bias, peephole, h_0, c_0; only those are computed. By default
    all of them, bias and peephole if they were given. May be called again with the same `saved`.

    Returns a dict from forward's argument names to arrays of their shapes. Raises TypeError, ValueError.
    """
    if not isinstance(saved, SavedConvLSTM):
        raise TypeError(f"saved: expected what conv_lstm_forward returned last, got {type(saved).__name__}")
    given = saved.arrays
    possible = ["x", "weight_ih", "weight_hh", *(n for n in ("bias", "peephole") if given[n] is not None), "h_0", "c_0"]
    wanted = _wanted(needs, possible)
    x, y = given["x"], given["y"]
    assert x is not None
    assert y is not None
    state = y.shape[1:]
    outputs = {"dh_0": _dispatch.empty(state, x.dtype), "dc_0": _dispatch.empty(state, x.dtype)}
    for name in wanted - {"h_0", "c_0"}:
        like = given[name]
        assert like is not None
        outputs[f"d{name}"] = _dispatch.empty(like.shape, like.dtype)
    sent = {name: _optional(name, value) for name, value in (("dy", dy), ("dh_n", dh_n), ("dc_n", dc_n))}
    _dispatch.run("conv_lstm", given, saved.options, {**sent, **outputs})
    return {name: outputs[f"d{name}"] for name in possible if name in wanted}


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
    x = _array("x", x)
    if x.ndim != 4:
        raise ValueError(f"x: expected shape [B, Cin, Hin, Win], got {x.shape}")
    for name, mask in (("zoneout_mask_h", zoneout_mask_h), ("zoneout_mask_c", zoneout_mask_c)):
        options[name] = None if mask is None else _array(name, mask)[None]
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
    wanted = _wanted(needs, list(of_sequence))
    with _step_names():
        gradients = conv_lstm_backward(saved, None, dh, dc, needs={of_sequence[name] for name in wanted})
    found = {name: gradients[of] for name, of in of_sequence.items() if name in wanted}
    return {name: gradient[0] if name == "x" else gradient for name, gradient in found.items()}


# -------------------------------------------------------------------------------------------------- lstm_gates
@dataclass(frozen=True)
class SavedGates:
    """What `lstm_gates_backward` reads. Arrays are shared, not copied."""

    arrays: dict[str, Array | None]
    options: dict[str, Any]


def lstm_gates_forward(
    z: Array,
    c: Array,
    h: Array | None = None,
    bias: Array | None = None,
    peephole: Array | None = None,
    *,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    slope: float = 0.01,
    relu_at_zero: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    zoneout_mask_h: Array | None = None,
    zoneout_mask_c: Array | None = None,
    training: bool = False,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Array, Array, SavedGates]:
    """The pointwise half of an LSTM step, for any convolution and any number of spatial dimensions.

    z [B, 4C, ...]: what the convolutions of input and state add up to, in the order i, f, g, o; c [B, C, ...]: the cell
    state before the step; h: the hidden state before it, read by zoneout_h alone; bias [4C] or [4C, ...], peephole [3C]
    or [3C, ...]; zoneout masks [B, C, ...]. The options are in the module's table.

    Returns the new h and c [B, C, ...] and what backward needs. Raises TypeError, ValueError.
    """
    arrays: dict[str, Array | None] = {
        "z": _array("z", z),
        "c": _array("c", c),
        "h": _optional("h", h),
        "bias": _optional("bias", bias),
        "peephole": _optional("peephole", peephole),
        "zoneout_mask_h": _mask("zoneout_mask_h", zoneout_mask_h),
        "zoneout_mask_c": _mask("zoneout_mask_c", zoneout_mask_c),
    }
    options = _cell_options(recurrent_activation, activation, slope, relu_at_zero, zoneout_h, zoneout_c)
    seed, offset = _integer("seed", seed, 0, 2**64 - 1), _integer("offset", offset, 0, 2**64 - 1)
    _dispatch.plan("lstm_gates", arrays, options)
    if _flag("training", training):
        _draw_zoneout(arrays, options, c.shape, seed, offset)

    dtype = c.dtype.newbyteorder("=")
    h_out, c_out, gates = (_dispatch.empty(shape, dtype) for shape in (c.shape, c.shape, z.shape))
    outputs = {"h_out": h_out, "c_out": c_out, "gates": gates}
    _dispatch.run("lstm_gates", {**arrays, **outputs}, options)
    return h_out, c_out, SavedGates({**arrays, "gates": gates}, options)


def lstm_gates_backward(
    saved: SavedGates, dh: Array | None = None, dc: Array | None = None, *, needs: Collection[str] | None = None
) -> dict[str, Array]:
    """The gradients of `lstm_gates_forward`, given those of the new h and c (None: zero).

    needs: the names wanted among z, c, h (if zoneout reads it), bias, peephole (if they were given); by default all.
    Returns a dict from forward's argument names to arrays of their shapes. Raises TypeError, ValueError.
    """
    if not isinstance(saved, SavedGates):
        raise TypeError(f"saved: expected what lstm_gates_forward returned last, got {type(saved).__name__}")
    given = saved.arrays
    zones_h = given["zoneout_mask_h"] is not None or saved.options["zoneout_h"] > 0
    possible = ["z", "c", *(["h"] if zones_h else []), *(n for n in ("bias", "peephole") if given[n] is not None)]
    wanted = _wanted(needs, possible)
    z, c = given["z"], given["c"]
    assert z is not None
    assert c is not None
    outputs = {"dz": _dispatch.empty(z.shape, z.dtype), "dc_before": _dispatch.empty(c.shape, c.dtype)}
    names = {"z": "dz", "c": "dc_before", "h": "dh_before", "bias": "dbias", "peephole": "dpeephole"}
    for name in wanted - {"z", "c"}:
        like = c if name == "h" else given[name]
        assert like is not None
        outputs[names[name]] = _dispatch.empty(like.shape, like.dtype)
    sent = {"dh": _optional("dh", dh), "dc": _optional("dc", dc)}
    _dispatch.run("lstm_gates", given, saved.options, {**sent, **outputs})
    return {name: outputs[names[name]] for name in possible if name in wanted}


# ------------------------------------------------------------------------------------------------------ conv2d
def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
) -> Array:
    """A 2-D cross-correlation: x [B, I, H, W], weight [O, I, kh, kw], bias [O] -> y [B, O, H', W'].

    Raises TypeError, ValueError.
    """
    arrays = {"x": _array("x", x), "weight": _array("weight", weight), "bias": _optional("bias", bias)}
    options = _convolution(stride, dilation, padding)
    y = _dispatch.empty(tuple(_dispatch.plan("conv2d", arrays, options)["y"]), x.dtype.newbyteorder("="))
    _dispatch.run("conv2d", {**arrays, "y": y}, options)
    return y


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
    needs: Collection[str] | None = None,
) -> dict[str, Array]:
    """The gradients of `conv2d_forward`: dy [B, O, H', W'] -> a dict with x, weight and bias, or those in `needs`.

    Raises TypeError, ValueError.
    """
    wanted = _wanted(needs, ("x", "weight", "bias"))
    arrays = {"x": _array("x", x), "weight": _array("weight", weight)}
    options = _convolution(stride, dilation, padding)
    _dispatch.plan("conv2d", arrays, options)
    shapes = {"x": arrays["x"].shape, "weight": arrays["weight"].shape, "bias": (weight.shape[0],)}
    dtype = arrays["x"].dtype
    outputs = {f"d{name}": _dispatch.empty(shape, dtype) for name, shape in shapes.items() if name in wanted}
    _dispatch.run("conv2d", arrays, options, {"dy": _array("dy", dy), **outputs})
    return {name: outputs[f"d{name}"] for name in shapes if name in wanted}


# ------------------------------------------------------------------------------------------------- activations
def activation_forward(name: str, x: Array, *, slope: float = 0.01, alpha: float = 1.0) -> Array:
    """Apply an activation elementwise to an array of any shape.

    name: identity, sigmoid, tanh, relu, leaky_relu (slope), elu (alpha), softplus, hard_sigmoid (relu6(x + 3) / 6),
    hard_sigmoid_keras2 (clip(0.2 x + 0.5, 0, 1)), hard_tanh or softsign. NaN in gives NaN out.
    Raises TypeError, ValueError.
    """
    x = _array("x", x)
    y = _dispatch.empty(x.shape, x.dtype)
    _dispatch.call("activation_forward", _text("name", name), x, y, _number("slope", slope), _number("alpha", alpha))
    return y


def activation_backward(
    name: str, x: Array, y: Array, dy: Array, *, slope: float = 0.01, alpha: float = 1.0, at_zero: float = 0.0
) -> Array:
    """dx of y = activation(x), given x, y and dy of one shape.

    At the corners the derivative is torch's; relu's at exactly 0 is `at_zero` (0, 0.5 or 1).
    Raises TypeError, ValueError.
    """
    x, y, dy = _array("x", x), _array("y", y), _array("dy", dy)
    dx = _dispatch.empty(x.shape, x.dtype)
    parameters = _number("slope", slope), _number("alpha", alpha), _number("at_zero", at_zero)
    _dispatch.call("activation_backward", _text("name", name), x, y, dy, dx, *parameters)
    return dx


def softmax_forward(x: Array, axis: int = -1) -> Array:
    """Softmax along an axis, shifted by the largest value so that it cannot overflow. Raises TypeError, ValueError."""
    x = _array("x", x)
    y = _dispatch.empty(x.shape, x.dtype)
    _dispatch.call("softmax_forward", x, y, _integer("axis", axis))
    return y


def softmax_backward(y: Array, dy: Array, axis: int = -1) -> Array:
    """dx = y (dy - Σ y dy) of y = softmax(x) along the axis. Raises TypeError, ValueError."""
    y, dy = _array("y", y), _array("dy", dy)
    dx = _dispatch.empty(y.shape, y.dtype)
    _dispatch.call("softmax_backward", y, dy, dx, _integer("axis", axis))
    return dx


# ---------------------------------------------------------------------------------------------------- clipping
def _gradients(value: Any, *, in_place: bool) -> tuple[list[Array], list[Array]]:
    """The caller's arrays, and contiguous ones to work on: the same where that is possible."""
    given = [value] if isinstance(value, np.ndarray) else value
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"gradients: expected an array or a list of arrays, got {type(value).__name__}")
    work = [_array(f"gradients[{i}]", g) for i, g in enumerate(given)]
    for i, g in enumerate(given):
        if g.dtype.kind != "f" or g.dtype.itemsize not in (4, 8):
            raise TypeError(f"gradients[{i}]: expected dtype float32 or float64, got {g.dtype}")
        if in_place and not g.flags.writeable:
            raise ValueError(f"gradients[{i}]: expected a writable array, got a read-only one")
    if in_place:
        _refuse_overlap(given)
    return list(given), work


def _refuse_overlap(arrays: Sequence[Array]) -> None:
    """An element that stands in the list twice would be scaled twice."""

    def reach(item: tuple[int, Array]) -> tuple[int, int]:
        a = item[1]
        steps = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
        low = a.ctypes.data + sum(min(step, 0) for step in steps)
        return low, low + sum(abs(step) for step in steps) + a.itemsize

    open_until: list[tuple[int, int, Array]] = []  # (end, index, array) of those that reach as far as the next begins
    for item in sorted(((i, a) for i, a in enumerate(arrays) if a.size), key=reach):
        low, high = reach(item)
        open_until = [entry for entry in open_until if entry[0] > low]
        for _, index, other in open_until:
            if np.shares_memory(item[1], other):
                raise ValueError(f"gradients[{item[0]}]: expected memory of its own, got some of gradients[{index}]")
        open_until.append((high, item[0], item[1]))


def _copy_back(given: list[Array], work: list[Array]) -> None:
    for target, result in zip(given, work, strict=True):
        if target is not result:
            np.copyto(target, result)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not number >= 0:
        raise ValueError(f"{name}: expected a number that is not negative, got {number}")
    return number


def _norm_type(value: Any) -> float:
    return float("inf") if value == "inf" else _number("norm_type", value)


def global_norm(gradients: Array | Sequence[Array], norm_type: float = 2.0) -> float:
    """The norm (1, 2 or inf) of all the elements of all the arrays together, summed in float64 in a fixed order.

    Right for any magnitude: squares that would leave float64's range are scaled first. Raises TypeError, ValueError.
    """
    _, work = _gradients(gradients, in_place=False)
    return float(_dispatch.call_list("global_norm", work, _norm_type(norm_type)))


def clip_by_global_norm_(
    gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> float:
    """Scale all the arrays in place by min(1, max_norm / (norm + 1e-6)), norm being that of all of them together.

    As torch.nn.utils.clip_grad_norm_; a norm that is not finite makes the gradients 0 or NaN, as there, unless
    error_if_nonfinite: then FloatingPointError is raised and nothing is changed. Returns the norm before clipping.
    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    limit = _positive("max_norm", max_norm)
    norm = float(_dispatch.call_list("global_norm", work, _norm_type(norm_type)))
    if _flag("error_if_nonfinite", error_if_nonfinite) and not math.isfinite(norm):
        raise FloatingPointError(f"the gradients' norm is {norm}: expected a finite one; nothing was changed")
    _scale_to(given, work, limit, norm)
    return norm


def _scale_to(given: list[Array], work: list[Array], limit: float, norm: float) -> None:
    coefficient = limit / (norm + 1e-6)
    if coefficient >= 1.0:  # not so for NaN, which must reach the gradients
        return
    for array in work:
        _dispatch.call("scale", array, coefficient)
    _copy_back(given, work)


def clip_by_norm_(gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0) -> list[float]:
    """Scale each array in place by min(1, max_norm / (norm + 1e-6)), norm being its own. Returns the norms.

    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    limit, kind = _positive("max_norm", max_norm), _norm_type(norm_type)
    norms = [float(_dispatch.call_list("global_norm", [array], kind)) for array in work]
    for target, array, norm in zip(given, work, norms, strict=True):
        _scale_to([target], [array], limit, norm)
    return norms


def clip_by_value_(gradients: Array | Sequence[Array], limit: float) -> None:
    """Clamp every element in place to [-limit, limit]; NaN stays NaN. Raises TypeError, ValueError."""
    given, work = _gradients(gradients, in_place=True)
    bound = _positive("limit", limit)
    for array in work:
        _dispatch.call("clamp", array, bound)
    _copy_back(given, work)


def clip_if_any_exceeds_(gradients: Array | Sequence[Array], threshold: float) -> list[bool]:
    """The rule of hand-written scripts, for each array: if any |g| > threshold then g <- g / ‖g‖₂, in place.

    Mind that the result has norm 1 whatever the threshold. Returns which arrays were scaled.
    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    bound = _positive("threshold", threshold)
    exceeds = [bool(_dispatch.call("any_above", array, bound)) for array in work]
    for target, array, above in zip(given, work, exceeds, strict=True):
        if above:
            norm = float(_dispatch.call_list("global_norm", [array], 2.0))
            if norm < 1e-300:  # its inverse would overflow
                _dispatch.call("scale", array, 2.0**500)
                norm *= 2.0**500
            _dispatch.call("scale", array, 1.0 / norm)
            _copy_back([target], [array])
    return exceeds


# ------------------------------------------------------------------------------------------------------- masks
def bernoulli(shape: int | Sequence[int], rate: float, *, seed: int, offset: int = 0, stream: int = 0) -> Array:
    """A uint8 array that is 1 with probability `rate`, else 0: Philox4x32-10 (Salmon et al. 2011).

    Element e is 1 iff word e % 4 of the block at counter offset + e // 4, in the given stream of the given seed, is
    below floor(rate * 2^32 + 0.5): the same on every backend. Raises TypeError, ValueError.
    """
    extents = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    out = _dispatch.empty(tuple(_integer("shape", n, 0) for n in extents), np.uint8)
    numbers = _integer("seed", seed, 0, 2**64 - 1), _integer("offset", offset, 0, 2**64 - 1)
    _dispatch.call("bernoulli", out, _rate("rate", rate), *numbers, _integer("stream", stream, 0, 2**32 - 1))
    return out
