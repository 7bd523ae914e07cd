"""Clipping of gradients. Pure here: g is an array or a list of arrays, and a new list comes back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._check import Array, f64, one_of

Arrays = ArrayLike | list[Any] | tuple[Any, ...]


def as_list(g: Arrays) -> list[Array]:
    return [f64(a) for a in g] if isinstance(g, (list, tuple)) else [f64(g)]


def scale(a: Array, max_norm: float, norm: float) -> Array:
    """a min(1, max_norm / (norm + 1e-6)), as torch."""
    with np.errstate(invalid="ignore"):  # an infinite norm makes 0 of what is finite, NaN of what is not
        return np.asarray(a * np.minimum(1.0, max_norm / (norm + 1e-6)))


def global_norm(g: Arrays, norm_type: float = 2.0) -> float:
    """The norm (1, 2 or inf) of all arrays taken as one vector: NaN if an element is, 0 if there is none.

    Taken relative to the largest element, so that neither a power nor their sum over- or underflows.
    """
    one_of("norm_type", norm_type, (1.0, 2.0, math.inf))
    magnitudes = np.abs(np.concatenate([np.zeros(0), *(a.ravel() for a in as_list(g))]))
    largest = float(np.max(magnitudes, initial=0.0))
    if norm_type == math.inf or largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(np.sum((magnitudes / largest) ** norm_type) ** (1.0 / norm_type))


def clip_by_value_(g: Arrays, limit: float) -> list[Array]:
    """Every element brought into [-limit, limit]. Returns the new list."""
    return [np.clip(a, -limit, limit) for a in as_list(g)]


def clip_by_norm_(g: Arrays, max_norm: float, norm_type: float = 2.0) -> tuple[list[Array], list[float]]:
    """Every array on its own times min(1, max_norm / (norm + 1e-6)). Returns the new list and the norms."""
    arrays = as_list(g)
    norms = [global_norm(a, norm_type) for a in arrays]
    return [scale(a, max_norm, norm) for a, norm in zip(arrays, norms, strict=True)], norms


def clip_if_any_exceeds_(g: Arrays, threshold: float) -> tuple[list[Array], list[bool]]:
    """Every array on its own: g / ||g||_2 if any |g| > threshold. Returns the new list and which did.

    The rule of many hand-written training scripts. It makes a unit vector, whatever the threshold.
    """
    arrays = as_list(g)
    exceeds = [bool(np.any(np.abs(a) > threshold)) for a in arrays]
    with np.errstate(invalid="ignore"):  # inf / inf: NaN is the answer
        return [a / global_norm(a) if e else a.copy() for a, e in zip(arrays, exceeds, strict=True)], exceeds


def clip_by_global_norm_(
    g: Arrays, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> tuple[list[Array], float]:
    """All arrays times min(1, max_norm / (norm + 1e-6)), for the norm of all together (Pascanu et al. 2013).

    Returns the new list and the norm. ``error_if_nonfinite``: FloatingPointError if that is infinite or NaN.
    """
    arrays = as_list(g)
    norm = global_norm(arrays, norm_type)
    if error_if_nonfinite and not math.isfinite(norm):
        raise FloatingPointError(f"g: expected a finite norm, got {norm}")
    return [scale(a, max_norm, norm) for a in arrays], norm
