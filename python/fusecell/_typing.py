"""Names for types used all over the package."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
"""Any array: float32 or float64 where numbers are computed, integers for lengths and labels."""

Pair = int | tuple[int, int]
"""One number for both axes, or (height, width)."""

Padding = str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
"""As `fusecell.ops` takes it: "same", "valid", one number, (h, w), or ((h_lo, h_hi), (w_lo, w_hi))."""


def pair(value: Pair, name: str) -> tuple[int, int]:
    """(h, w) from one integer or two, each at least 1. Raises TypeError or ValueError with the argument's name."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or any(isinstance(n, bool) or not isinstance(n, int) for n in both):
        raise TypeError(f"{name}: expected an integer or two of them, got {value!r}")
    if min(both) < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return both
