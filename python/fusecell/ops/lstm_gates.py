"""The pointwise tier of an LSTM step, alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import (
    as_array,
    as_flag,
    as_mask,
    as_optional_array,
    as_randomness,
    cell_options,
    wanted_names,
)
from fusecell.ops.masks import draw_zoneout


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
    offset: int | Array = 0,
) -> tuple[Array, Array, SavedGates]:
    """The pointwise half of an LSTM step, for any convolution and any number of spatial dimensions.

    z [B, 4C, ...]: what the convolutions of input and state add up to, in the order i, f, g, o; c [B, C, ...]: the cell
    state before the step; h: the hidden state before it, read by zoneout_h alone; bias [4C] or [4C, ...], peephole [3C]
    or [3C, ...]; zoneout masks [B, C, ...]. The options are in the module's table.

    Returns the new h and c [B, C, ...] and what backward needs. Raises TypeError, ValueError.
    """
    given_z = as_array("z", z)
    arrays: dict[str, Array | None] = {
        "z": given_z,
        "c": as_array("c", c),
        "h": as_optional_array("h", h),
        "bias": as_optional_array("bias", bias),
        "peephole": as_optional_array("peephole", peephole),
        "zoneout_mask_h": as_mask("zoneout_mask_h", zoneout_mask_h),
        "zoneout_mask_c": as_mask("zoneout_mask_c", zoneout_mask_c),
    }
    options = cell_options(recurrent_activation, activation, slope, relu_at_zero, zoneout_h, zoneout_c)
    numbers = as_randomness(seed, offset)
    place, inputs = _dispatch.place_of(arrays), _dispatch.describe_all(arrays)
    plan = _dispatch.plan("lstm_gates", place, inputs, options)
    if as_flag("training", training):
        drawn = draw_zoneout(arrays, options, c.shape, numbers, place)
        arrays |= drawn
        inputs |= _dispatch.describe_all(drawn)

    dtype, cell_dtype = given_z.dtype, plan["cell_dtype"]
    h_out, gates = _dispatch.empty(c.shape, dtype, place), _dispatch.empty(z.shape, dtype, place)
    c_out = _dispatch.empty(c.shape, cell_dtype, place)
    outputs = {"h_out": h_out, "c_out": c_out, "gates": gates}
    tensors = {**inputs, **_dispatch.describe_all(outputs)}
    _dispatch.run("lstm_gates_forward", place, tensors, options, plan)
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
    wanted = wanted_names(needs, possible)
    z, c = given["z"], given["c"]
    assert z is not None
    assert c is not None
    sent = {"dh": as_optional_array("dh", dh), "dc": as_optional_array("dc", dc)}
    place, inputs = _dispatch.place_of(given | sent), _dispatch.describe_all(given)
    plan = _dispatch.plan("lstm_gates", place, inputs, saved.options, backward=True)
    outputs = {"dz": _dispatch.empty(z.shape, z.dtype, place), "dc_before": _dispatch.empty(c.shape, c.dtype, place)}
    names = {"z": "dz", "c": "dc_before", "h": "dh_before", "bias": "dbias", "peephole": "dpeephole"}
    for name in wanted - {"z", "c"}:
        like = given[name] if name != "h" else c
        assert like is not None
        outputs[names[name]] = _dispatch.empty(like.shape, z.dtype, place)
    tensors = {**inputs, **_dispatch.describe_all(sent | outputs)}
    _dispatch.run("lstm_gates_backward", place, tensors, saved.options, plan)
    return {name: outputs[names[name]] for name in possible if name in wanted}
