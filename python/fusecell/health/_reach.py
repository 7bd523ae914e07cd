"""What a linear layer on bounded units can give at all."""

from __future__ import annotations

from fusecell._typing import Array


def output_bounds(weight: Array, bias: Array | None, inputs: tuple[float, float]) -> tuple[float, float]:
    """The least and the largest that y = x W^T + b can be, over all outputs, for x within bounds.

    weight [out, in], bias [out] or None. A linear layer on tanh units cannot leave bias ± sum |w|.
    """
    low, high = weight * inputs[0], weight * inputs[1]
    least, largest = low.clip(max=high).sum(axis=1), low.clip(min=high).sum(axis=1)
    shift = 0.0 if bias is None else bias
    return float((least + shift).min()), float((largest + shift).max())
