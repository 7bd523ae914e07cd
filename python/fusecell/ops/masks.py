"""Random masks: the same numbers on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_integer, as_rate

_DROPOUT, _ZONEOUT_H, _ZONEOUT_C = 0, 1, 2  # streams of bernoulli


def bernoulli(shape: int | Sequence[int], rate: float, *, seed: int, offset: int = 0, stream: int = 0) -> Array:
    """A uint8 array that is 1 with probability `rate`, else 0: Philox4x32-10 (Salmon et al. 2011).

    Element e is 1 iff word e % 4 of the block at counter offset + e // 4, in the given stream of the given seed, is
    below floor(rate * 2^32 + 0.5): the same on every backend. Raises TypeError, ValueError.
    """
    extents = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    out = _dispatch.empty(tuple(as_integer("shape", n, 0) for n in extents), np.uint8)
    numbers = as_integer("seed", seed, 0, 2**64 - 1), as_integer("offset", offset, 0, 2**64 - 1)
    _dispatch.call("bernoulli", out, as_rate("rate", rate), *numbers, as_integer("stream", stream, 0, 2**32 - 1))
    return out


def draw_zoneout(
    arrays: dict[str, Array | None], options: dict[str, Any], shape: tuple[int, ...], seed: int, offset: int
) -> None:
    """Put random zoneout masks where a rate asks for one and none was given."""
    for state, stream in (("h", _ZONEOUT_H), ("c", _ZONEOUT_C)):
        rate = options[f"zoneout_{state}"]
        if rate > 0 and arrays[f"zoneout_mask_{state}"] is None:
            arrays[f"zoneout_mask_{state}"] = bernoulli(shape, rate, seed=seed, offset=offset, stream=stream)


def draw_dropout(shape: tuple[int, ...], rate: float, dtype: Any, seed: int, offset: int) -> Array:
    """An inverted dropout mask: 0 or 1 / (1 - rate)."""
    dropped = bernoulli(shape, rate, seed=seed, offset=offset, stream=_DROPOUT)
    mask: Array = np.where(dropped, 0.0, 1.0 / (1.0 - rate)).astype(dtype)
    return mask
