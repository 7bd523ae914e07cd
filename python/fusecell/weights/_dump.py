"""The exporter: from fusecell's arrays to a framework's, whatever the convention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.weights import _layout
from fusecell.weights._common import ORDER, check_kernels, check_options, find, forget_bias, gates_of
from fusecell.weights.canonical import OPTIONS, ConvLSTMWeights
from fusecell.weights.convention import Convention, Tensor


def dump(
    weights: ConvLSTMWeights | Sequence[ConvLSTMWeights],
    convention: str | Convention = "fusecell",
    *,
    prefix: str | None = None,
    dims: int = 2,
    bidirectional: bool = False,
) -> dict[str, Any]:
    """The arrays that `load` would read, named and nested as the framework has them, in its order.

    weights: one cell, or a list, whose keys get the convention's name of each layer. prefix: what stands before the
        keys instead; "{l}" in it is the layer's number.
    dims: the image axes that kernels (and images) have, where the convention allows several: 2, 1 (kh must be 1) or 0.
    bidirectional: the list holds each layer's forward and reverse cell in turn, for a convention that names both.

    The whole bias goes into the first of two; the second holds what subtracting a forget bias rounded off. A bias of
    None is left out, unless a forget bias must be taken out of it. The framework's cell must be built with the
    options in `weights.options`.

    Raises ValueError for what the convention cannot hold: a peephole, a bias per pixel, an option it has fixed, an
    even kernel, kernels of two sizes in one array.
    """
    target = find(convention)
    if dims not in (0, 1, 2):
        raise ValueError(f"dims: expected 0, 1 or 2, got {dims!r}")
    if isinstance(weights, ConvLSTMWeights):
        if bidirectional:
            raise ValueError("bidirectional: expected a list of cells, got one")
        places, weights = [(prefix or "", "")], [weights]
    else:
        places = list(_places(len(weights), target, prefix, bidirectional))
    found: dict[str, Array] = {}
    for (before, layer), cell in zip(places, weights, strict=True):
        of_cell = _cell(cell, target, dims)
        found.update({before + key.replace("{layer}", layer): array for key, array in of_cell.items()})
    return _nest(found, target.nested)


def _places(count: int, target: Convention, prefix: str | None, bidirectional: bool) -> Iterator[tuple[str, str]]:
    """What stands before the keys of each cell, and what stands for {layer} in them."""
    in_names = any("{layer}" in tensor.key for tensor in target.tensors)
    if bidirectional and (not in_names or count % 2):
        raise ValueError(
            "bidirectional: expected an even number of cells and a convention that names the reverse direction, "
            f"got {count} and {target.name}"
        )
    before = prefix if prefix is not None else "" if in_names else target.layers
    if count > 1 and not in_names and "{l}" not in before:
        raise ValueError(f"prefix: expected {{l}} in it, to tell {count} layers apart, got {prefix!r}")
    for index in range(count):
        l, reverse = divmod(index, 2) if bidirectional else (index, 0)
        yield before.replace("{l}", str(l)), f"_l{l}" + "_reverse" * reverse


def _cell(weights: ConvLSTMWeights, target: Convention, dims: int) -> dict[str, Array]:
    check_options(target, {**OPTIONS, **weights.options})
    check_kernels(weights, target)
    values = _values(weights, target)
    result: dict[str, Array] = {}
    for tensor in target.tensors:
        if values[tensor.holds]:
            result.update(_write(tensor, values[tensor.holds].pop(0), target, dims))
    for name in ("bias", "peephole"):
        if values[name]:
            raise ValueError(f"{name}: expected None, since {target.name} has none, got {values[name][0].shape}")
    return result


def _values(weights: ConvLSTMWeights, target: Convention) -> dict[str, list[Array]]:
    """What each tensor of the target is to hold, in fusecell's form."""
    held = [tensor.holds for tensor in target.tensors]
    return {
        "weight": [_concatenated(weights, target)] if "weight" in held else [],
        "weight_ih": [weights.weight_ih],
        "weight_hh": [weights.weight_hh],
        "bias": _biases(weights, target, max(held.count("bias"), 1)),
        "peephole": [] if weights.peephole is None else [weights.peephole],
    }


def _concatenated(weights: ConvLSTMWeights, target: Convention) -> Array:
    x, h = weights.weight_ih, weights.weight_hh
    if x.shape[2:] != h.shape[2:]:
        raise ValueError(
            f"weight_hh: expected the kernel size {x.shape[2:]} of weight_ih, since {target.name} keeps both in one "
            f"array, got {h.shape[2:]}"
        )
    return np.concatenate([x, h], axis=1)


def _biases(weights: ConvLSTMWeights, target: Convention, count: int) -> list[Array]:
    """`count` arrays whose sum, with the forget bias that the target adds, is the bias. None at all for None.

    The second holds what rounding took from the first, so that `load` gives the same bits (while 1 is no less than a
    unit in the last place). With only one, f's bias comes back within a unit of the larger of it and 1.
    """
    if weights.bias is None and not target.forget_bias:
        return []
    bias = np.zeros_like(weights.weight_ih[:, 0, 0, 0]) if weights.bias is None else weights.bias
    parts = _difference(bias, forget_bias(target, bias)) if target.forget_bias else (bias,)
    return [*parts, *[np.zeros_like(bias)] * (count - len(parts))][:count]


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b, and what rounding it lost, exactly (Knuth, TAOCP 2, 4.2.2). Nothing is lost of an infinity or NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = a - b
        of_b = difference - a
        lost = (a - (difference - of_b)) - (b + of_b)
    return difference, np.where(np.isfinite(lost), lost, np.zeros_like(lost))


def _write(tensor: Tensor, value: Array, target: Convention, dims: int) -> dict[str, Array]:
    """The arrays, by key, that hold `value`: a weight, bias or peephole in fusecell's form."""
    letters, gates = gates_of(tensor, target)
    value, image = _drop_axes(tensor, value, target, dims)
    own = [gate for gate in ORDER if gate in gates]
    blocks = value.reshape(len(gates), -1, *value.shape[1:])[[own.index(gate) for gate in gates]]
    layout = _layout.words(tensor.axes, image)
    if "{gate}" not in tensor.key:
        return {tensor.key: np.ascontiguousarray(_layout.from_blocks(blocks, layout))}
    each = zip(letters, blocks, strict=True)
    return {tensor.key.replace("{gate}", a): np.ascontiguousarray(_layout.from_blocks(b, layout)) for a, b in each}


def _drop_axes(tensor: Tensor, value: Array, target: Convention, dims: int) -> tuple[Array, int]:
    """The value with as many image axes as the target has, and how many; those that are dropped have length 1."""
    start = 2 if tensor.is_kernel else 1
    image, counts = value.shape[start:], _layout.spatial_counts(tensor.axes)
    keep = min(dims, max(counts), len(image))
    dropped, kept = image[: len(image) - keep], image[len(image) - keep :]
    if keep not in counts or any(n != 1 for n in dropped):
        name = tensor.holds if tensor.holds != "weight" else "weight_ih"
        axes = ("", ", W", ", H, W")[max(keep, min(counts))]
        expected = f"({', '.join(str(n) for n in value.shape[:start])}{axes})"
        raise ValueError(f"{name}: expected {expected}, as {target.name} holds it (dims={dims}), got {value.shape}")
    return value.reshape(*value.shape[:start], *kept), keep


def _nest(flat: dict[str, Array], how: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, array in flat.items():
        *path, last = key.split("/") if how == "all" else key.rsplit("/", 1) if how == "last" else [key]
        inner = result
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = array
    return result
