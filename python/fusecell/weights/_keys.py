"""Which of a source's keys is which tensor of which layer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.weights.convention import Convention, Tensor

LAYER = r"(?:_l\d+)?(?:_reverse)?"


@dataclass
class Layer:
    """What was found of one cell."""

    name: str
    tensors: dict[tuple[Tensor, str], str] = field(default_factory=dict)  # (which, its gate's letter or "") -> key
    unused: list[str] = field(default_factory=list)


def flatten(tensors: Any, prefix: str) -> dict[str, Any]:
    """What stands in dicts of dicts (or whatever has `keys()`) and lists, each under its path, if that begins so.

    Raises ValueError for a path that comes twice.
    """
    found: dict[str, Any] = {}
    for path, value in _leaves(tensors, ""):
        key = path.removesuffix(":0")  # TensorFlow 1 numbers what an operation puts out
        if not key.startswith(prefix):
            continue
        if key in found:
            raise ValueError(f"tensors: expected every key once, got {key} twice")
        found[key] = value
    return found


def as_array(key: str, value: Any) -> Array:
    """The value as an array of floats in native byte order. Raises TypeError where it is none."""
    try:
        array: Array = np.asarray(value)
    except Exception as error:  # whatever the framework raises
        raise TypeError(f"{key}: expected what np.asarray takes, got {type(value).__name__} ({error})") from error
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{key}: expected an array of floats, got {type(value).__name__} of {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def layers(keys: Collection[str], convention: Convention, prefix: str) -> list[Layer]:
    """The cells among the keys, in the order of the numbers in their names, a reverse direction behind its forward.

    Raises ValueError for no cell, for keys that no cell has, and for keys that cannot be represented.
    """
    _refuse(keys, convention)
    patterns = [(tensor, re.compile(_pattern(tensor, convention))) for tensor in convention.tensors]
    idle = [_glob(glob, convention) for glob in convention.unused]
    cells: dict[str, Layer] = {}
    rest = []
    for key in keys:
        own = key.removeprefix(prefix)
        named = ((tensor, pattern.fullmatch(own)) for tensor, pattern in patterns)
        tensor, match = next(((tensor, match) for tensor, match in named if match), (None, None))
        if tensor is None or match is None or any(pattern.fullmatch(own) for pattern in idle):
            rest.append(key)
            continue
        parts = match.groupdict()
        name = prefix + parts["before"] + (parts.get("layer") or "")
        _put(cells.setdefault(name, Layer(name)), (tensor, parts.get("gate") or ""), key)
    if not cells:
        raise ValueError(f"tensors: expected {_keys_of(convention)} of {convention.name}, got {_some(keys)}")
    _sort_out(rest, cells, idle, convention, prefix)
    return [cells[name] for name in sorted(cells, key=_natural)]


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if hasattr(node, "keys"):
        children = [(str(key), node[key]) for key in node.keys()]  # noqa: SIM118 (an h5py group is no dict)
    elif isinstance(node, (list, tuple)):
        children = [(str(i), child) for i, child in enumerate(node)]
    else:
        yield path, node
        return
    for name, child in children:
        yield from _leaves(child, f"{path}/{name}" if path else name)


def _pattern(tensor: Tensor, convention: Convention) -> str:
    key = re.escape(tensor.key).replace(r"\{gate\}", f"(?P<gate>[{convention.order}])")
    key = key.replace(r"\{layer\}", f"(?P<layer>{LAYER})")
    if tensor.position is not None:
        key = rf"(?:{key}|(?<!vars/)(?:vars/)?{tensor.position})"  # Keras keeps a cell's list under cell/vars/
    return _before(convention) + key


def _before(convention: Convention) -> str:
    return rf"(?P<before>(?:.*[{re.escape(convention.separators)}])?)"


def _put(cell: Layer, place: tuple[Tensor, str], key: str) -> None:
    if place in cell.tensors:
        raise ValueError(f"tensors: expected one of {cell.tensors[place]} and {key}, got both")
    cell.tensors[place] = key


def _glob(glob: str, convention: Convention) -> re.Pattern[str]:
    return re.compile(_before(convention) + fnmatch.translate(glob))


def _refuse(keys: Collection[str], convention: Convention) -> None:
    for glob, reason in convention.refused.items():
        if refused := [key for key in keys if _glob(glob, convention).fullmatch(key)]:
            raise ValueError(f"{', '.join(refused)}: expected none, since {reason}, got {len(refused)}")


def _sort_out(
    rest: list[str], cells: dict[str, Layer], idle: list[re.Pattern[str]], convention: Convention, prefix: str
) -> None:
    """Give each cell those of the remaining keys that are known to be of no use; raise for the others."""
    unknown = []
    for key in rest:
        matches = (pattern.fullmatch(key.removeprefix(prefix)) for pattern in idle)
        owner = next((cells.get(prefix + match["before"]) for match in matches if match), None)
        if owner is None:
            unknown.append(key)
        else:
            owner.unused.append(key)
    if unknown:
        raise ValueError(
            f"tensors: expected {_keys_of(convention)} of {convention.name}, got also {_some(unknown)}; "
            "prefix= chooses a part of a model"
        )


def _keys_of(convention: Convention) -> str:
    return ", ".join(tensor.key.replace("{layer}", "[_l0]") for tensor in convention.tensors)


def _some(keys: Collection[str]) -> str:
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return ", ".join(list(keys)[:8]) + more or "none"


def _natural(name: str) -> tuple[list[tuple[int, str]], bool]:
    """rnn2 before rnn10, and Keras's `backward_layer` behind the `forward_layer` in whose place it stands."""
    same = name.replace("backward", "forward")
    pieces = re.split(r"(\d+)", same)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces], same != name
