"""Norms of gradients, and clipping in place.

On a GPU nothing here waits for it: norms stay there, as CuPy arrays, and what they decide is decided there. The one
exception is error_if_nonfinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_flag, as_number, as_view, contiguous

Number = float | Array
"""A Python number for arrays on the host, an array on the GPU for those that lie there."""


class _Gradients:
    """The caller's arrays; `work`: descriptors of contiguous ones, the same where possible; and where they lie."""

    def __init__(self, value: Any, *, in_place: bool, name: str = "gradients") -> None:
        given = value if isinstance(value, (list, tuple)) else [value]
        if not (isinstance(value, (list, tuple)) or hasattr(value, "dtype")):
            raise TypeError(f"{name}: expected an array or a list of arrays, got {type(value).__name__}")
        views = [as_view(f"{name}[{i}]", g) for i, g in enumerate(given)]
        self.place = _dispatch.place_of({f"{name}[{i}]": view for i, view in enumerate(views)})
        for i, view in enumerate(views):
            if not (view.dtype.kind == "f" or view.dtype.name == "bfloat16"):
                raise TypeError(f"{name}[{i}]: expected dtype float32 or float64, got {view.dtype}")
            if in_place and isinstance(view, np.ndarray) and not view.flags.writeable:
                raise ValueError(f"{name}[{i}]: expected a writable array, got a read-only one")
        if in_place:
            _refuse_overlap(views, name)
        self._arrays = [contiguous(view) for view in views]  # a descriptor alone keeps nothing alive
        self._copies = [(view, array) for view, array in zip(views, self._arrays, strict=True) if view is not array]
        self.work = _dispatch.describe_list(self._arrays)

    def copy_back(self) -> None:
        """Bring the results to where the caller has them."""
        for view, result in self._copies:
            with self.place.active():
                view[...] = result

    def number(self, array: Array) -> Number:
        """float64 [1] as what the caller gets."""
        return array.reshape(()) if self.place.on_gpu else float(array.item())


def _refuse_overlap(arrays: Sequence[Array], name: str) -> None:
    """An element that stands in the list twice would be scaled twice."""

    def reach(a: Array) -> tuple[int, int]:
        low = _dispatch.pointer(a)
        if a.flags.c_contiguous:  # most are, and small ones are asked at every step of a training
            return low, low + a.nbytes
        steps = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
        low += sum(min(step, 0) for step in steps)
        return low, low + sum(abs(step) for step in steps) + a.itemsize

    open_until: list[tuple[int, int]] = []  # (end, index) of those that reach as far as the next begins
    for low, high, i in sorted((*reach(a), i) for i, a in enumerate(arrays) if a.size):
        open_until = [entry for entry in open_until if entry[0] > low]
        for _, index in open_until:
            if not isinstance(arrays[index], np.ndarray) or np.shares_memory(arrays[i], arrays[index]):
                raise ValueError(f"{name}[{i}]: expected memory of its own, got some of {name}[{index}]")
        open_until.append((high, i))


def _positive(name: str, value: Any) -> float:
    number = as_number(name, value)
    if not number >= 0:
        raise ValueError(f"{name}: expected a number that is not negative, got {number}")
    return number


def _norm_type(value: Any) -> float:
    return float("inf") if value == "inf" else as_number("norm_type", value)


def global_norm(gradients: Array | Sequence[Array], norm_type: float = 2.0) -> Number:
    """The norm (1, 2 or inf) of all the elements of all the arrays together, summed in float64 in a fixed order.

    Right for any magnitude: squares that would leave float64's range are scaled first. Returns a float, or on a GPU a
    float64 array of no dimension that is there. Raises TypeError, ValueError.
    """
    listed = _Gradients(gradients, in_place=False)
    return listed.number(_dispatch.norm(listed.work, _norm_type(norm_type), listed.place))


def clip_by_global_norm_(
    gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> Number:
    """Scale all the arrays in place by min(1, max_norm / (norm + 1e-6)), norm being that of all of them together.

    As torch.nn.utils.clip_grad_norm_; a norm that is not finite makes the gradients 0 or NaN, as there, unless
    error_if_nonfinite: then FloatingPointError is raised and nothing is changed (a GPU is waited for; RuntimeError
    while a graph is being captured). Returns the norm before clipping, as `global_norm` does. Raises TypeError,
    ValueError.
    """
    listed = _Gradients(gradients, in_place=True)
    limit = _positive("max_norm", max_norm)
    norm = _dispatch.norm(listed.work, _norm_type(norm_type), listed.place)
    if as_flag("error_if_nonfinite", error_if_nonfinite):
        value = _dispatch.read_number(norm, listed.place)
        if not math.isfinite(value):
            raise FloatingPointError(f"the gradients' norm is {value}: expected a finite one; nothing was changed")
    _dispatch.call("clip_to_norm", listed.place, listed.work, norm, limit)
    listed.copy_back()
    return listed.number(norm)


def clip_by_norm_(gradients: Array | Sequence[Array], max_norm: float, norm_type: float = 2.0) -> list[Number]:
    """Scale each array in place by min(1, max_norm / (norm + 1e-6)), norm being its own. Returns the norms.

    Raises TypeError, ValueError.
    """
    listed = _Gradients(gradients, in_place=True)
    limit, kind = _positive("max_norm", max_norm), _norm_type(norm_type)
    norms = [_dispatch.norm([array], kind, listed.place) for array in listed.work]
    for array, norm in zip(listed.work, norms, strict=True):
        _dispatch.call("clip_to_norm", listed.place, [array], norm, limit)
    listed.copy_back()
    return [listed.number(norm) for norm in norms]


def clip_by_value_(gradients: Array | Sequence[Array], limit: float) -> None:
    """Clamp every element in place to [-limit, limit]; NaN stays NaN. Raises TypeError, ValueError."""
    listed = _Gradients(gradients, in_place=True)
    _dispatch.call("clamp", listed.place, listed.work, _positive("limit", limit))
    listed.copy_back()


def clip_if_any_exceeds_(gradients: Array | Sequence[Array], threshold: float) -> list[bool] | list[Array]:
    """The rule of hand-written scripts, for each array: if any |g| > threshold then g <- g / ‖g‖₂, in place.

    Mind that the result has norm 1 whatever the threshold. Returns which arrays were scaled, on a GPU as bool arrays
    of no dimension. Raises TypeError, ValueError.
    """
    listed = _Gradients(gradients, in_place=True)
    bound = _positive("threshold", threshold)
    exceeded = []
    for array in listed.work:
        largest = _dispatch.norm([array], math.inf, listed.place, numbers_only=True)
        norm = _dispatch.norm([array], 2.0, listed.place)
        _dispatch.call("divide_if_above", listed.place, [array], norm, largest, bound)
        with listed.place.active():
            exceeded.append(largest.reshape(()) > bound)
    listed.copy_back()
    return exceeded if listed.place.on_gpu else [bool(above) for above in exceeded]
