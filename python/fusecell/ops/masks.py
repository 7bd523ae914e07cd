"""Random masks: the same numbers on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import Randomness, as_integer, as_randomness, as_rate

_DROPOUT, _ZONEOUT_H, _ZONEOUT_C = 0, 1, 2  # streams of bernoulli


def bernoulli(
    shape: int | Sequence[int],
    rate: float,
    *,
    seed: int,
    offset: int | Array = 0,
    stream: int = 0,
    device: int | None = None,
) -> Array:
    """A uint8 array that is 1 with probability `rate`, else 0: Philox4x32-10 (Salmon et al. 2011).

    Element e is 1 iff word e % 4 of the block at counter offset + e // 4, in the given stream of the given seed, is
    below floor(rate * 2^32 + 0.5): the same on every backend.

    offset: an int, or an int64 array [1] that is read as the numbers are drawn: a captured graph that counts it up
    draws others at each replay. device: the number of a GPU, for a CuPy array there. Raises TypeError, ValueError.
    """
    extents = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    numbers = as_randomness(seed, offset)
    checked = tuple(as_integer("shape", n, 0) for n in extents)
    place = _dispatch.place_of({"offset": numbers.counter})
    if device is not None:
        place = _dispatch.Place("cuda", as_integer("device", device, 0))
    return _draw(checked, as_rate("rate", rate), numbers, as_integer("stream", stream, 0, 2**32 - 1), place)


def _draw(shape: tuple[int, ...], rate: float, numbers: Randomness, stream: int, place: _dispatch.Place) -> Array:
    out = _dispatch.empty(shape, np.uint8, place)
    _dispatch.place_of({"the mask": out, "offset": numbers.counter})
    _dispatch.call("bernoulli", place, out, rate, numbers.seed, numbers.offset, stream, numbers.counter)
    return out


def draw_zoneout(
    arrays: Mapping[str, Array | None],
    options: dict[str, Any],
    shape: tuple[int, ...],
    numbers: Randomness,
    place: _dispatch.Place,
) -> dict[str, Array]:
    """Random zoneout masks by name, where a rate asks for one and none was given."""
    drawn = {}
    for state, stream in (("h", _ZONEOUT_H), ("c", _ZONEOUT_C)):
        rate = options[f"zoneout_{state}"]
        if rate > 0 and arrays[f"zoneout_mask_{state}"] is None:
            drawn[f"zoneout_mask_{state}"] = _draw(shape, rate, numbers, stream, place)
    return drawn


def draw_dropout(shape: tuple[int, ...], rate: float, dtype: Any, numbers: Randomness, place: _dispatch.Place) -> Array:
    """An inverted dropout mask: 0 or 1 / (1 - rate)."""
    dropped = _draw(shape, rate, numbers, _DROPOUT, place)
    with place.active():
        mask: Array = place.namespace.where(dropped, 0.0, 1.0 / (1.0 - rate)).astype(dtype)
    return mask
