"""The importer: from a framework's arrays to fusecell's, whatever the convention."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.weights import _keys, _layout
from fusecell.weights._common import ORDER, check_kernels, check_options, find, forget_bias, gates_of
from fusecell.weights.canonical import ConvLSTMWeights
from fusecell.weights.convention import Convention, Tensor


def load(
    tensors: Any, convention: str | Convention = "fusecell", *, prefix: str = "", **options: Any
) -> list[ConvLSTMWeights]:
    """Every ConvLSTM cell in `tensors`, in the order of its layers; a reverse direction follows its forward one.

    tensors: dict, dict of dicts, or list of arrays (anything np.asarray takes, of floats), as the framework hands
        them out. convention: a name in `CONVENTIONS`, or a description of your own. prefix: only keys that begin so.
    options: what the arrays do not say and your cell does not leave at the framework's default: stride, dilation,
        padding, activation, recurrent_activation, slope, as `fusecell.ops.conv_lstm_forward` takes them.

    The arrays that come back are new and of the source's dtype. Two biases are added; a forget bias that the source
    adds in its forward becomes part of the bias. Keys that the source itself never reads are warned of and listed
    in `unused`.

    Raises ValueError for keys that are missing, unknown or cannot be represented, for a wrong shape, and for an
    option that the source does not have; TypeError for an unknown option and for what is no array of floats.
    """
    source = find(convention)
    check_options(source, options)
    values = _keys.flatten(tensors, prefix)
    cells = _keys.layers(values, source, prefix)
    if unused := [key for cell in cells for key in cell.unused]:
        warnings.warn(f"{', '.join(unused)}: not used, as {source.name} itself never reads them", stacklevel=2)
    return [_cell(cell, values, source, {**source.options, **options}) for cell in cells]


def _cell(
    cell: _keys.Layer, values: Mapping[str, Any], source: Convention, options: Mapping[str, Any]
) -> ConvLSTMWeights:
    arrays = {key: _keys.as_array(key, values[key]) for key in cell.tensors.values()}
    _check_dtypes(arrays)
    given = {tensor: found for tensor in source.tensors if (found := _gather(tensor, cell, arrays, source))}
    channels = _channels(given, source)
    parts: dict[str, list[Array]] = {}
    for tensor, found in given.items():
        parts.setdefault(tensor.holds, []).append(_read(tensor, found, channels, source))
    if "weight" in parts:
        [whole] = parts["weight"]
        parts["weight_ih"], parts["weight_hh"] = ([part] for part in np.split(whole, [channels["weight_ih"]], axis=1))
    [weight_ih], [weight_hh] = parts["weight_ih"], parts["weight_hh"]
    weights = ConvLSTMWeights(
        np.ascontiguousarray(weight_ih),
        np.ascontiguousarray(weight_hh),
        _bias(parts.get("bias", []), weight_ih, source),
        parts["peephole"][0] if "peephole" in parts else None,
        options,
        cell.name,
        tuple(cell.unused),
    )
    check_kernels(weights, source)
    return weights


def _check_dtypes(arrays: Mapping[str, Array]) -> None:
    first, like = next(iter(arrays.items()))
    for key, array in arrays.items():
        if array.dtype != like.dtype:
            raise TypeError(f"{key}: expected {like.dtype}, as {first}, got {array.dtype}")


def _gather(
    tensor: Tensor, cell: _keys.Layer, arrays: Mapping[str, Array], source: Convention
) -> dict[str, Array] | None:
    """The arrays of this tensor by key, in the order of the gates; None for a bias or peephole that is not there."""
    letters = gates_of(tensor, source)[0] if "{gate}" in tensor.key else [""]
    keys = {letter: cell.tensors.get((tensor, letter)) for letter in letters}
    found = {key: arrays[key] for key in keys.values() if key is not None}
    if len(found) == len(keys):
        return found
    if found or tensor.is_kernel:
        missing = ", ".join(tensor.key.format(gate=letter, layer="") for letter, key in keys.items() if key is None)
        raise ValueError(f"tensors: expected {missing} beside {', '.join(cell.tensors.values())}, got none")
    return None


def _channels(given: Mapping[Tensor, dict[str, Array]], source: Convention) -> dict[str, int]:
    """The input channels of every weight, and C under "O", from the shape of the weight that sees x."""
    of = {tensor.holds: (tensor, *next(iter(found.items()))) for tensor, found in given.items()}
    tensor, key, array = of["weight"] if "weight" in of else of["weight_ih"]
    word, rows = _axis("O", tensor, key, array)
    inputs = _axis("I", tensor, key, array)[1]
    if "G" in word and rows % 4:
        raise ValueError(f"{key}: expected 4C rows, C for each of {source.order}, got {rows} in {array.shape}")
    c = rows // 4 if "G" in word else rows
    if tensor.holds == "weight_ih":
        return {"weight_ih": inputs, "weight_hh": c, "O": c}
    if inputs <= c:
        raise ValueError(f"{key}: expected more than {c} input channels, those of x and {c} of h, got {array.shape}")
    return {"weight": inputs, "weight_ih": inputs - c, "O": c}


def _axis(letter: str, tensor: Tensor, key: str, array: Array) -> tuple[str, int]:
    """The word of the layout that holds I or O, and the length of its axis."""
    words = zip(_words(tensor, key, array), array.shape, strict=True)
    return next((word, n) for word, n in words if letter in word)


def _words(tensor: Tensor, key: str, array: Array) -> list[str]:
    """The layout, with as many image axes as the array has."""
    fixed = sum(word not in "*+" for word in tensor.axes.split())
    if array.ndim - fixed not in _layout.spatial_counts(tensor.axes):
        raise ValueError(f"{key}: expected the axes [{', '.join(tensor.axes.split())}], got {array.shape}")
    return _layout.words(tensor.axes, array.ndim - fixed)


def _read(tensor: Tensor, found: dict[str, Array], channels: Mapping[str, int], source: Convention) -> Array:
    """A new array: [4C, Cin, kh, kw], or [4C] or [4C, H, W] (peepholes 3C), the gates in fusecell's order."""
    gates = gates_of(tensor, source)[1]
    each = [_blocks(tensor, key, array, channels, len(gates)) for key, array in found.items()]
    if len({block.shape for block in each}) > 1:
        raise ValueError(f"{', '.join(found)}: expected one shape, got {[array.shape for array in found.values()]}")
    blocks = np.stack(each) if "{gate}" in tensor.key else each[0]
    blocks = blocks[[gates.index(gate) for gate in ORDER if gate in gates]]
    rows, inner = blocks.shape[0] * blocks.shape[1], blocks.shape[2:]
    inputs, image = (inner[:1], inner[1:]) if tensor.is_kernel else ((), inner)
    ones = [1] * (2 - len(image)) if image or tensor.is_kernel else []
    return blocks.reshape(rows, *inputs, *ones, *image)


def _blocks(tensor: Tensor, key: str, array: Array, channels: Mapping[str, int], gates: int) -> Array:
    """One array as blocks, its shape checked."""
    layout = _words(tensor, key, array)
    sizes = {"G": gates, "O": channels["O"], "I": channels.get(tensor.holds, 0)}
    sizes.update({word: n for word, n in zip(layout, array.shape, strict=True) if word in "HW"})
    if array.shape != (expected := _layout.shape_of(layout, sizes)):
        raise ValueError(f"{key}: expected {expected}, got {array.shape}")
    return _layout.to_blocks(array, layout, sizes)


def _bias(terms: list[Array], weight: Array, source: Convention) -> Array | None:
    """One bias: what was found, and the forget bias. None where there is neither."""
    if source.forget_bias:
        forward = forget_bias(source, terms[0] if terms else weight[:, 0, 0, 0])
        # Before the second bias, in which `dump` keeps the bits that taking it out rounded off: so they come back
        terms = [*terms[:1], forward, *terms[1:]]
    return sum(terms[1:], start=terms[0]) if terms else None
