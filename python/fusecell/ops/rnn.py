"""A plain (Elman) recurrent network over a sequence. On the CPU alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_array, as_flag, as_name, as_number, as_optional_array, wanted_names

RNN_STEP_STATISTICS = ("count", "dh_squared", "not_finite", "saturated")
"""The columns of `rnn_backward`'s statistics, each a sum over samples and channels of time step t.

count: how many there are; dh_squared: (dL/dh_t)^2, the total gradient of the step's h, from dy, later steps and dh_n;
not_finite: how many of the dL/dh_t are not finite; saturated: how many h_t lie where the activation's slope is nearly
nothing: below 0.01 or above 0.99 for sigmoid, hard_sigmoid and hard_sigmoid_keras2, beyond -0.98 or 0.98 for tanh,
hard_tanh and softsign, never for the others.
"""


@dataclass(frozen=True)
class SavedRNN:
    """What `rnn_backward` reads. Arrays are shared, not copied."""

    arrays: dict[str, Array | None]
    options: dict[str, Any]


def rnn_forward(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    h_0: Array | None = None,
    *,
    activation: str = "tanh",
    slope: float = 0.01,
    alpha: float = 1.0,
    relu_at_zero: float = 0.0,
) -> tuple[Array, Array, SavedRNN]:
    """h_t = φ(W_ih x_t + W_hh h_{t-1} + b) over a sequence (Elman 1990).

    x [T, B, I], weight_ih [C, I], weight_hh [C, C], bias [C], h_0 [B, C], zero if absent; float32 or float64, NumPy
    arrays only: no GPU computes this op. activation: φ, any that `activation_forward` knows, with slope (leaky_relu),
    alpha (elu) and relu_at_zero, the derivative of relu at exactly 0 (0, 0.5 or 1).

    Returns y [T, B, C], h_n [B, C] and what backward needs. Raises TypeError, ValueError.
    """
    given_x = as_array("x", x)
    arrays: dict[str, Array | None] = {
        "x": given_x,
        "weight_ih": as_array("weight_ih", weight_ih),
        "weight_hh": as_array("weight_hh", weight_hh),
        "bias": as_optional_array("bias", bias),
        "h_0": as_optional_array("h_0", h_0),
    }
    options = {
        "activation": as_name("activation", activation),
        "slope": as_number("slope", slope),
        "alpha": as_number("alpha", alpha),
        "relu_at_zero": as_number("relu_at_zero", relu_at_zero),
    }
    place, inputs = _cpu_place(arrays), _dispatch.describe_all(arrays)
    plan = _dispatch.plan("rnn", place, inputs, options)
    dtype = given_x.dtype
    y, h_n = (_dispatch.empty(tuple(plan[name]), dtype, place) for name in ("y", "h_n"))
    a = _dispatch.empty(y.shape, dtype, place) if plan["keeps_a"] else None
    tensors = {**inputs, **_dispatch.describe_all({"y": y, "h_n": h_n, "a": a})}
    _dispatch.run("rnn_forward", place, tensors, options, plan)
    return y, h_n, SavedRNN({**arrays, "y": y, "a": a}, options)


def rnn_backward(
    saved: SavedRNN,
    dy: Array | None = None,
    dh_n: Array | None = None,
    *,
    needs: Collection[str] | None = None,
    statistics: bool = False,
) -> dict[str, Array]:
    """The gradients of `rnn_forward`, given those of its outputs (None: zero).

    dy [T, B, C], dh_n [B, C]. needs: the names wanted among x, weight_ih, weight_hh, bias, h_0; by default all, bias if
    it was given. May be called again with the same `saved`. statistics=True adds the key "statistics", float64 [T, 4],
    with the columns RNN_STEP_STATISTICS.

    Returns a dict from forward's argument names to arrays of their shapes. Raises TypeError, ValueError.
    """
    if not isinstance(saved, SavedRNN):
        raise TypeError(f"saved: expected what rnn_forward returned last, got {type(saved).__name__}")
    given = saved.arrays
    possible = ["x", "weight_ih", "weight_hh", *(["bias"] if given["bias"] is not None else []), "h_0"]
    wanted = wanted_names(needs, possible)
    x, y = given["x"], given["y"]
    assert x is not None
    assert y is not None
    sent = {"dy": as_optional_array("dy", dy), "dh_n": as_optional_array("dh_n", dh_n)}
    place, inputs = _cpu_place({**given, **sent}), _dispatch.describe_all(given)
    plan = _dispatch.plan("rnn", place, inputs, saved.options, backward=True)
    shapes = {name: a.shape for name, a in given.items() if a is not None} | {"h_0": y.shape[1:]}
    outputs = {f"d{name}": _dispatch.empty(shapes[name], x.dtype, place) for name in wanted}
    if as_flag("statistics", statistics):
        outputs["statistics"] = _dispatch.empty((x.shape[0], len(RNN_STEP_STATISTICS)), "float64", place)
    tensors = {**inputs, **_dispatch.describe_all({**sent, **outputs})}
    _dispatch.run("rnn_backward", place, tensors, saved.options, plan)
    found = {name: outputs[f"d{name}"] for name in possible if name in wanted}
    return found | {"statistics": outputs["statistics"]} if statistics else found


def _cpu_place(arrays: dict[str, Array | None]) -> _dispatch.Place:
    """The CPU, if it is what computes on the arrays."""
    place = _dispatch.place_of(arrays)
    if place.backend != "cpu":
        got = f"one on {place}" if place.on_gpu else f"one for the backend {place.backend}"
        raise ValueError(f"x: expected a NumPy array for the CPU, which alone computes this op, got {got}")
    return place
