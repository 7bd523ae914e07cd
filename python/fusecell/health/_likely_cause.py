"""What a wrong gradient has in common with the right one, and what that points to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusecell import ops
from fusecell._typing import Array


@dataclass(frozen=True)
class Measured:
    """Slopes of the loss at some elements: ahead and behind of each, and what rounding may add to either."""

    flat: Array
    ahead: Array
    behind: Array
    rounding: Array
    kinked: Array

    @property
    def central(self) -> Array:
        mean: Array = (self.ahead + self.behind) / 2
        return mean

    def nearest(self, analytic: Array) -> Array:
        """The central difference; at a kink what lies between both slopes and nearest to `analytic`."""
        low, high = np.minimum(self.ahead, self.behind), np.maximum(self.ahead, self.behind)
        return np.where(self.kinked, np.clip(analytic, low, high), self.central)

    def smooth(self) -> tuple[Array, Array]:
        """The elements without a kink, and their slopes."""
        return self.flat[~self.kinked], self.central[~self.kinked]


def relative_error(a: Array, b: Array) -> float:
    """‖a - b‖ / max(‖a‖, ‖b‖); infinite where either is not finite."""
    scale = max(norm(a), norm(b))
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        error = norm(a - b) / scale if scale else 0.0
    return math.inf if math.isnan(error) else error


def norm(a: Array) -> float:
    """‖a‖, of any magnitude: gradients that explode are compared, too."""
    return float(ops.global_norm(a))


def wrong_shape(analytic: Array, shape: tuple[int, ...], slopes: Measured, tolerance: float) -> str:
    """What is said of a gradient of another shape than its input's."""
    words = f"shape: expected {shape}, got {analytic.shape}"
    turned = analytic.T
    if turned.shape == shape and relative_error(turned.flat[slopes.flat], slopes.central) <= tolerance:
        return words + ": transposed"
    return words


def likely_cause(analytic: Array, slopes: Measured, inputs: Mapping[str, Any], tolerance: float) -> str:
    """What the measurements point to, the surest first; "" if to nothing."""
    flat, numeric = slopes.smooth()
    picked = analytic.flat[flat]
    if not np.isfinite(numeric).all():
        return f"the loss is not finite a step away from {int(np.sum(~np.isfinite(numeric)))} elements"
    if not (len(flat) and np.isfinite(picked).all()):
        return ""
    if not analytic.any():
        return "zero everywhere: never computed, or overwritten"
    if not numeric.any():
        return "the loss does not change with it: does fn use this input?"
    if factor := _constant_factor(picked, numeric, inputs, tolerance):
        return factor
    for words, rearranged in _rearranged(analytic):
        if relative_error(rearranged.flat[flat], numeric) <= tolerance:
            return words
    return ""


def _constant_factor(picked: Array, numeric: Array, inputs: Mapping[str, Any], tolerance: float) -> str:
    ratio = float(picked / norm(numeric) @ (numeric / norm(numeric)))
    if len(picked) < 2 or relative_error(picked, ratio * numeric) > tolerance:
        return ""
    return f"{ratio:.5g} times the right one throughout{_why(ratio, inputs, tolerance)}"


def _why(ratio: float, inputs: Mapping[str, Any], tolerance: float) -> str:
    known = {-1.0: "its sign is turned", 2.0: "the 2 of a square too often?", 0.5: "the 2 of a square forgotten?"}
    for factor, words in known.items():
        if math.isclose(ratio, factor, rel_tol=tolerance):
            return f": {words}"
    for name, value in inputs.items():
        for length, axis in [(n, f"axis {k}") for k, n in enumerate(np.shape(value))] + [(np.size(value), "the size")]:
            if length > 1 and math.isclose(ratio, length, rel_tol=tolerance):
                return f": {axis} of {name} is {length}; a sum where the loss has a mean?"
            if length > 1 and math.isclose(ratio, 1 / length, rel_tol=tolerance):
                return f": {axis} of {name} is {length}; a mean where the loss has a sum, or taken twice?"
    return ""


def _rearranged(analytic: Array) -> Iterator[tuple[str, Array]]:
    """The gradient with two axes exchanged, or turned around, and the words for it."""
    axes = range(analytic.ndim)
    for a, b in ((a, b) for a in axes for b in axes if a < b and analytic.shape[a] == analytic.shape[b] > 1):
        yield "transposed" if analytic.ndim == 2 else f"axes {a} and {b} are exchanged", np.swapaxes(analytic, a, b)
    if analytic.ndim > 2:
        yield "flipped: right when turned around along its last two axes", np.flip(analytic, (-2, -1))
    for axis in axes:
        yield f"flipped: right when turned around along axis {axis}", np.flip(analytic, axis)


def likeness(analytic: Array, slopes: Measured, tolerance: float) -> str:
    """At how many elements a wrong gradient is right, where it is wrong, and how its direction differs."""
    flat, numeric = slopes.smooth()
    picked = analytic.flat[flat]
    if not (np.isfinite(numeric).all() and np.isfinite(picked).all() and numeric.any() and picked.any()):
        return ""
    right = np.abs(picked - numeric) <= tolerance * np.max(np.abs(numeric))
    cosine = float(picked / norm(picked) @ (numeric / norm(numeric)))
    where = _where(~right, np.unravel_index(flat, analytic.shape))
    return f"right at {np.sum(right)} of {len(right)} elements{where}; cosine with the right one {cosine:.3f}"


def _where(wrong: Array, index: tuple[Array, ...]) -> str:
    """Along which axis the wrong elements keep to at most half of the places."""
    for axis, places in enumerate(index):
        found, length = np.unique(places[wrong]), len(np.unique(places))
        if 2 * len(found) <= length:
            listed = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            return f", wrong only where axis {axis} is {listed}"
    return ""
