"""What is kept of one training step: numbers read from parameters, units, time steps and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.health import _arrays
from fusecell.health._thresholds import EDGE, PRESSED

Bounds = tuple[float, float]

Recurrent = tuple[Array, int, tuple[int, ...] | None]
"""A recurrent weight, its gates, and the image that it is convolved with; None for a matrix."""

_MOST_VALUES = 1 << 14  # of a layer's output that are looked at: enough for shares to a per cent
_EXAMPLES = 256  # that are looked at even so, and by which twins among units are told apart


@dataclass(frozen=True)
class Bad:
    """Values that are not finite: how many, the first one's place, and the time step if there is one."""

    count: int
    place: tuple[int, ...] | None = None
    step: int | None = None


@dataclass
class ParameterReading:
    """Of one parameter. `update` is the norm of its change by the step after, over its own norm; None: not known."""

    norm: float
    gradient: float | None  # its norm; None: there is none
    rows: int
    twins: float | None = None  # share of rows that another row equals; None: not looked
    update: float | None = None
    matrix: bool = True
    bad: Bad | None = None


@dataclass(frozen=True)
class UnitReading:
    """Of one layer's output, over the examples of one forward pass. Shares are of units, `saturated` of values."""

    units: int
    examples: int
    zero: Array  # [units]: 0 for every example
    same: float  # one value for every example
    twins: float  # equal to another unit for every example
    saturated: float | None  # None: without bounds
    low: float
    high: float
    smallest: float  # magnitude above 0
    bad: Bad | None = None

    @property
    def dead(self) -> float:
        """Share of the units that give 0 for every example of this step."""
        return float(np.mean(self.zero))


@dataclass(frozen=True)
class StepReading:
    """Of one recurrent layer and direction, over time steps: [T] each, in the order of time."""

    dh: Array  # norm of the loss's gradient with respect to h_t
    dc: Array | None = None
    forget: Array | None = None  # mean of f
    saturated: Mapping[str, Array] = field(default_factory=dict)  # gate: share
    bad: Array | None = None  # how many of dh and dc are not finite
    reverse: bool = False

    @property
    def span(self) -> str:
        """The way that the gradient goes, in words."""
        return f"from step 1 to {len(self.dh)}" if self.reverse else f"from step {len(self.dh)} to 1"

    @property
    def state(self) -> Array:
        """Norm of the gradient with respect to the whole state, (h_t, c_t), from the direction's first step on."""
        both = self.dh if self.dc is None else np.hypot(self.dh, self.dc)
        return both[::-1] if self.reverse else both


@dataclass(frozen=True)
class OutputReading:
    """Of the network's outputs and the targets: sums from which a window of steps gets its variances."""

    low: float
    high: float
    zeros: float  # share that is exactly 0
    sums_to_one: bool  # over classes, every example
    classes: int  # if the targets are their numbers, else 0
    examples: int
    mean: Array = field(default_factory=lambda: np.zeros(0))  # of each output, over examples
    square: Array = field(default_factory=lambda: np.zeros(0))
    target_mean: Array = field(default_factory=lambda: np.zeros(0))
    target_square: Array = field(default_factory=lambda: np.zeros(0))
    error: float = 0.0  # mean square, all outputs
    beyond: float = 0.0  # share of the targets outside `reach`, on the sides on which the outputs press against it
    reach: Bounds | None = None  # what the last layer can give at all


@dataclass
class Observation:
    """One training step."""

    iteration: int
    loss: float | None = None
    penalty: float | None = None
    parameters: dict[str, ParameterReading] = field(default_factory=dict)
    units: dict[str, UnitReading] = field(default_factory=dict)
    steps: dict[str, StepReading] = field(default_factory=dict)
    outputs: OutputReading | None = None

    @property
    def gradient(self) -> float:
        """The norm of all gradients together."""
        return math.hypot(*(p.gradient for p in self.parameters.values() if p.gradient is not None))


# ------------------------------------------------------------------------------------------------------------- reading
def read_parameter(value: Any, gradient: Any | None, *, look_for_twins: bool) -> ParameterReading:
    """Of a live parameter and its gradient."""
    size, matrix = _arrays.norm(value), value.ndim >= 2
    own = None if gradient is None else _arrays.norm(gradient)
    bad = _bad(value, size) or (None if own is None else _bad(gradient, own))
    twins = None
    if look_for_twins and matrix and value.shape[0] and len(value[0].reshape(-1)) > 1:  # numbers of 16 bits do collide
        twins = twin_share(_arrays.to_numpy(value).reshape(value.shape[0], -1))
    return ParameterReading(size, own, value.shape[0] if value.ndim else 1, twins, None, matrix, bad)


def _bad(array: Any, norm: float) -> Bad | None:
    found = None if np.isfinite(norm) else _arrays.not_finite(array)
    return None if found is None else Bad(*found)


def twin_share(rows: Array) -> float:
    """Share of the rows [N, ...] that another row equals; 0 for a single row."""
    if len(rows) < 2:
        return 0.0
    _, counts = np.unique(np.ascontiguousarray(rows), axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(rows))


def read_units(y: Any, axis: int, bounds: Bounds | None) -> UnitReading:
    """Of a layer's output; axis: that of the units. Of large outputs every n-th example is taken."""
    bad = _bad(y, _arrays.norm(y))
    values = _examples_by_units(y, axis)
    finite = np.where(np.isfinite(values), values, 0.0) if bad else values
    top, bottom, size = finite.max(axis=0), finite.min(axis=0), np.abs(finite)
    nonzero = size[size > 0]
    saturated = None
    if bounds is not None:
        margin = EDGE * (bounds[1] - bounds[0])
        saturated = float(np.mean((finite <= bounds[0] + margin) | (finite >= bounds[1] - margin)))
    return UnitReading(
        units=values.shape[1],
        examples=len(values),
        zero=(top == 0) & (bottom == 0),
        same=float(np.mean(top - bottom <= 1e-6 * np.maximum(np.abs(top), np.abs(bottom)))),
        twins=twin_share(finite[:_EXAMPLES].T),
        saturated=saturated,
        low=float(bottom.min()),
        high=float(top.max()),
        smallest=float(nonzero.min()) if nonzero.size else 0.0,
        bad=bad,
    )


def _examples_by_units(y: Any, axis: int) -> Array:
    """[examples, units]: all of them, or about _MOST_VALUES values but at least _EXAMPLES examples."""
    moved = y.movedim(axis, -1) if _arrays.is_tensor(y) else np.moveaxis(_arrays.to_numpy(y), axis, -1)
    shape = tuple(moved.shape[:-1])
    examples = int(np.prod(shape))
    most = max(_EXAMPLES, _MOST_VALUES // moved.shape[-1])
    if examples <= most:
        return _arrays.to_numpy(moved.reshape(examples, moved.shape[-1]))
    taken = np.linspace(0, examples - 1, most).astype(np.int64)  # gathered: a reshape would copy all of it
    return _arrays.to_numpy(moved[np.unravel_index(taken, shape)])


def unit_axis(y: Any) -> int:
    """Channels of images [..., C, H, W], the last axis of anything else."""
    return -3 if y.ndim >= 4 else -1


def read_steps(statistics: Array, names: tuple[str, ...], reverse: bool) -> StepReading:
    """Of what a fused backward kernel summed, [T, columns]; steps that all samples are too short for are left out."""
    sums = np.asarray(_arrays.to_numpy(statistics), np.float64)
    column = dict(zip(names, sums[sums[:, 0] > 0].T, strict=True))
    count = column["count"]
    saturated = {name.rpartition("_")[2]: column[name] / count for name in names if name.startswith("saturated_")}
    if "saturated" in column:
        saturated = {"h": column["saturated"] / count}
    return StepReading(
        dh=np.sqrt(column["dh_squared"]),
        dc=np.sqrt(column["dc_squared"]) if "dc_squared" in column else None,
        forget=column["forget"] / count if "forget" in column else None,
        saturated=saturated,
        bad=column["not_finite"],
        reverse=reverse,
    )


def read_outputs(outputs: Any, targets: Any | None, reach: Bounds | None) -> OutputReading:
    """Of what goes into the loss. targets: integers for classes, or numbers of the outputs' shape.

    Raises ValueError for numbers of another shape: NumPy and torch would make every output meet every target.
    """
    y = _arrays.to_numpy(outputs)
    t = None if targets is None else _arrays.to_numpy(targets)
    labels = t is not None and t.dtype.kind in "iu" and t.shape != y.shape and y.ndim >= 2 and y.shape[1] > 1
    of_class = y.sum(axis=1) if labels else np.zeros(1)
    if t is not None and t.dtype.kind == "f" and t.shape != y.shape:
        raise ValueError(f"targets: expected the outputs' shape {y.shape}, or class numbers, got {t.shape}")
    summary: dict[str, Any] = {
        "low": float(y.min()),
        "high": float(y.max()),
        "zeros": float(np.mean(y == 0)),
        "sums_to_one": bool(np.all(np.abs(of_class - 1) < 1e-4)),
        "classes": y.shape[1] if labels else 0,
        "examples": len(y) if y.ndim else 1,
    }
    if t is None or labels or t.shape != y.shape:
        return OutputReading(**summary)
    units = y.shape[-1] if y.ndim == 2 else 1
    ys, ts = y.reshape(-1, units).astype(np.float64), t.reshape(-1, units).astype(np.float64)
    beyond = 0.0 if reach is None else _share_beyond(ts, reach, summary["low"], summary["high"])
    return OutputReading(
        **summary,
        mean=ys.mean(axis=0),
        square=np.square(ys).mean(axis=0),
        target_mean=ts.mean(axis=0),
        target_square=np.square(ts).mean(axis=0),
        error=float(np.mean(np.square(ys - ts))),
        beyond=beyond,
        reach=reach,
    )


def _share_beyond(targets: Array, reach: Bounds, low: float, high: float) -> float:
    margin = PRESSED * (reach[1] - reach[0])
    below = np.mean(targets < reach[0]) if low <= reach[0] + margin else 0.0
    above = np.mean(targets > reach[1]) if high >= reach[1] - margin else 0.0
    return float(below + above)
