"""Names for types used all over the package."""

from __future__ import annotations

from typing import Any, Literal

import numpy.typing as npt

Array = npt.NDArray[Any]
"""Any array: float32 or float64 where numbers are computed, integers for lengths and labels."""

Pair = int | tuple[int, int]
"""One number for both axes, or (height, width)."""

Algorithm = Literal["auto", "direct", "winograd", "bfloat16", "tensor_cores", "tf32"]
"""How convolutions are computed: docs/cell.md, "Algorithms"."""

Padding = str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
"""As `fusecell.ops` takes it: "same", "valid", one number, (h, w), or ((h_lo, h_hi), (w_lo, w_hi))."""
