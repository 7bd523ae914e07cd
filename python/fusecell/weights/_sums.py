"""Biases that a source keeps apart: added on import, split on export, without a bit lost where there is room for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusecell._typing import Array


def total(terms: Sequence[Array]) -> Array:
    """The sum of arrays of one shape; what each addition rounds off is added in the end."""
    result, rest = terms[0], np.zeros_like(terms[0])
    for term in terms[1:]:
        result, lost = _two_sum(result, term)
        rest = rest + lost
    return result + rest if len(terms) > 1 else result


def split(bias: Array, forward: Array, parts: int) -> list[Array]:
    """`parts` arrays that, with `forward` added, give `bias` back.

    The first is bias - forward. The second, if there is one, holds what rounding that took, so that `total` gives the
    same bits; with only one, f's bias keeps an absolute error of half a unit in the last place of the larger number.
    """
    first, lost = _two_sum(bias, -forward) if np.any(forward) else (bias, np.zeros_like(bias))
    return [first, lost, *[np.zeros_like(bias)] * (parts - 2)][:parts]


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, and what rounding it lost, exactly (Knuth, TAOCP 2, 4.2.2). Nothing is lost of an infinity or NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        s = a + b
        of_b = s - a
        lost = (a - (s - of_b)) + (b - of_b)
    return s, np.where(np.isfinite(lost), lost, np.zeros_like(lost))
