"""Norms of gradients, and clipping in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_array, as_flag, as_number


def _gradients(value: Any, *, in_place: bool) -> tuple[list[Array], list[Array]]:
    """The caller's arrays, and contiguous ones to work on: the same where that is possible."""
    given = [value] if isinstance(value, np.ndarray) else value
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"gradients: expected an array or a list of arrays, got {type(value).__name__}")
    work = [as_array(f"gradients[{i}]", g) for i, g in enumerate(given)]
    for i, g in enumerate(given):
        if g.dtype.kind != "f" or g.dtype.itemsize not in (4, 8):
            raise TypeError(f"gradients[{i}]: expected dtype float32 or float64, got {g.dtype}")
        if in_place and not g.flags.writeable:
            raise ValueError(f"gradients[{i}]: expected a writable array, got a read-only one")
    if in_place:
        _refuse_overlap(given)
    return list(given), work


def _refuse_overlap(arrays: Sequence[Array]) -> None:
    """An element that stands in the list twice would be scaled twice."""

    def reach(item: tuple[int, Array]) -> tuple[int, int]:
        a = item[1]
        steps = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
        low = a.ctypes.data + sum(min(step, 0) for step in steps)
        return low, low + sum(abs(step) for step in steps) + a.itemsize

    open_until: list[tuple[int, int, Array]] = []  # (end, index, array) of those that reach as far as the next begins
    for item in sorted(((i, a) for i, a in enumerate(arrays) if a.size), key=reach):
        low, high = reach(item)
        open_until = [entry for entry in open_until if entry[0] > low]
        for _, index, other in open_until:
            if np.shares_memory(item[1], other):
                raise ValueError(f"gradients[{item[0]}]: expected memory of its own, got some of gradients[{index}]")
        open_until.append((high, item[0], item[1]))


def _copy_back(given: list[Array], work: list[Array]) -> None:
    for target, result in zip(given, work, strict=True):
        if target is not result:
            np.copyto(target, result)


def _positive(name: str, value: Any) -> float:
    number = as_number(name, value)
    if not number >= 0:
        raise ValueError(f"{name}: expected a number that is not negative, got {number}")
    return number


def _norm_type(value: Any) -> float:
    return float("inf") if value == "inf" else as_number("norm_type", value)


def global_norm(gradients: Array | Sequence[Array], norm_type: float = 2.0) -> float:
    """The norm (1, 2 or inf) of all the elements of all the arrays together, summed in float64 in a fixed order.

    Right for any magnitude: squares that would leave float64's range are scaled first. Raises TypeError, ValueError.
    """
    _, work = _gradients(gradients, in_place=False)
    return float(_dispatch.call_list("global_norm", work, _norm_type(norm_type)))


def clip_by_global_norm_(
    gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> float:
    """Scale all the arrays in place by min(1, max_norm / (norm + 1e-6)), norm being that of all of them together.

    As torch.nn.utils.clip_grad_norm_; a norm that is not finite makes the gradients 0 or NaN, as there, unless
    error_if_nonfinite: then FloatingPointError is raised and nothing is changed. Returns the norm before clipping.
    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    limit = _positive("max_norm", max_norm)
    norm = float(_dispatch.call_list("global_norm", work, _norm_type(norm_type)))
    if as_flag("error_if_nonfinite", error_if_nonfinite) and not math.isfinite(norm):
        raise FloatingPointError(f"the gradients' norm is {norm}: expected a finite one; nothing was changed")
    _scale_to(given, work, limit, norm)
    return norm


def _scale_to(given: list[Array], work: list[Array], limit: float, norm: float) -> None:
    coefficient = limit / (norm + 1e-6)
    if coefficient >= 1.0:  # not so for NaN, which must reach the gradients
        return
    for array in work:
        _dispatch.call("scale", array, coefficient)
    _copy_back(given, work)


def clip_by_norm_(gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0) -> list[float]:
    """Scale each array in place by min(1, max_norm / (norm + 1e-6)), norm being its own. Returns the norms.

    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    limit, kind = _positive("max_norm", max_norm), _norm_type(norm_type)
    norms = [float(_dispatch.call_list("global_norm", [array], kind)) for array in work]
    for target, array, norm in zip(given, work, norms, strict=True):
        _scale_to([target], [array], limit, norm)
    return norms


def clip_by_value_(gradients: Array | Sequence[Array], limit: float) -> None:
    """Clamp every element in place to [-limit, limit]; NaN stays NaN. Raises TypeError, ValueError."""
    given, work = _gradients(gradients, in_place=True)
    bound = _positive("limit", limit)
    for array in work:
        _dispatch.call("clamp", array, bound)
    _copy_back(given, work)


def clip_if_any_exceeds_(gradients: Array | Sequence[Array], threshold: float) -> list[bool]:
    """The rule of hand-written scripts, for each array: if any |g| > threshold then g <- g / ‖g‖₂, in place.

    Mind that the result has norm 1 whatever the threshold. Returns which arrays were scaled.
    Raises TypeError, ValueError.
    """
    given, work = _gradients(gradients, in_place=True)
    bound = _positive("threshold", threshold)
    exceeds = [bool(_dispatch.call("any_above", array, bound)) for array in work]
    for target, array, above in zip(given, work, exceeds, strict=True):
        if above:
            norm = float(_dispatch.call_list("global_norm", [array], 2.0))
            if norm < 1e-300:  # its inverse would overflow
                _dispatch.call("scale", array, 2.0**500)
                norm *= 2.0**500
            _dispatch.call("scale", array, 1.0 / norm)
            _copy_back([target], [array])
    return exceeds
