"""Hand-written gradients against finite differences, with a word on what is likely wrong."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.health._likely_cause import Measured, likely_cause, likeness, norm, relative_error, wrong_shape

Function = Callable[..., tuple[Any, Mapping[str, Any]]]
"""fn(**inputs) -> (loss, {name of an input: gradient})."""

_STEP = 6e-6  # the cube root of float64's epsilon: there rounding and the third derivative err alike
_ROUNDING = 8 * np.finfo(np.float64).eps  # of a loss, as a share of it
_TOO_SMALL = "too small to be compared: the losses' rounding explains the difference"


@dataclass(frozen=True)
class CheckedGradient:
    """What was found of one gradient; `worst` is the index of the element that differs most, and both its values."""

    name: str
    right: bool
    error: float
    """‖analytic - numeric‖ / max(‖analytic‖, ‖numeric‖) over the elements checked; infinite where nothing compares."""
    checked: int
    size: int
    worst: tuple[int, ...]
    analytic: float
    numeric: float
    not_finite: int
    """How many values of the whole gradient are not finite."""
    kinks: int
    """Elements where the slopes on both sides differ; any value between the two counts as right there."""
    repeatable: bool
    """Whether two calls gave the same bits."""
    cause: str
    """What the measurements point to; "" where they point to nothing, or all is right."""
    likeness: str
    """Of a wrong gradient: how much of it is right, and its direction's cosine with the right one."""


@dataclass(frozen=True)
class GradientCheck:
    """The result of `check_gradients`; `str` of it is a table."""

    gradients: dict[str, CheckedGradient]
    tolerance: float
    loss_repeatable: bool

    @property
    def ok(self) -> bool:
        """Whether every gradient is right, and two calls gave the same bits."""
        return self.loss_repeatable and all(found.right for found in self.gradients.values())

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of each gradient."""
        return {name: found.error for name, found in self.gradients.items()}

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the table unless `ok`."""
        if not self.ok:
            raise AssertionError(f"gradients differ from finite differences\n{self}")

    def __str__(self) -> str:
        heads = ("gradient", "", "error", "checked", "worst at", "analytic", "numeric")
        rows = [heads, *(_cells(found) for found in self.gradients.values())]
        widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
        notes: list[Iterable[str]] = [(), *(_notes(found) for found in self.gradients.values())]
        lines = []
        for row, below in zip(rows, notes, strict=True):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            lines += [f"    {note}" for note in below]
        if not self.loss_repeatable:
            lines.append("loss: two calls of fn differ, so no difference means anything: fix its seeds")
        return "\n".join(lines)


def check_gradients(
    fn: Function,
    inputs: Mapping[str, Any],
    *,
    eps: float | None = None,
    tolerance: float = 1e-4,
    most: int | None = 256,
    seed: int = 0,
) -> GradientCheck:
    """Hold the gradients that fn returns against central differences of the loss that it returns.

    fn(**inputs) -> (loss, {name: gradient}): a number and, for any of the inputs, a float64 array of its shape. NumPy
    arrays go in; what comes back may be torch's, too. Every floating input is float64: a difference of float32 losses
    keeps three digits. Other inputs (labels, flags) are passed as they are. fn gets copies, and may write into them.

        >>> import numpy as np
        >>> from fusecell import health, layers, losses
        >>> rng = np.random.default_rng(0)
        >>> x, target = rng.standard_normal((3, 2, 1, 5, 4)), rng.standard_normal((3, 2, 2, 5, 4))
        >>> net = layers.ConvLSTM2D(1, 2, 3, rng=rng, dtype="float64")
        >>> def fn(x, **parameters):
        ...     net.load_parameters(parameters)
        ...     loss, dy = losses.mean_squared(net.forward(x), target)
        ...     return loss, {"x": net.backward(dy), **net.gradients()}
        >>> check = health.check_gradients(fn, {"x": x, **net.parameters()})
        >>> check.ok
        True

    most: of a larger gradient so many elements, drawn with `seed`, are checked (None: all); each costs two calls of
    fn, six beside a kink. eps: the step, for an element x times max(1, |x|); 6e-6 by default. A gradient is right if
    its relative error is at most `tolerance`, or its difference is no more than the rounding of the losses explains,
    and if the last call of fn gives the bits of the first, as one that sums into memory nobody wrote does not always:
    `health.poisoned()` around the check makes sure.

    A long check shows a progress bar on a terminal. Source of the step: Nocedal and Wright 2006, "Numerical
    Optimization", section 8.1. Raises TypeError for dtypes, ValueError for names and a loss that is not finite.
    """
    given = {name: _as_input(name, value) for name, value in inputs.items()}
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"eps: expected a step between 0 and 1, got {eps}")
    slopes = _Slopes(fn, given, _STEP if eps is None else eps, tolerance)
    names = list(slopes.gradients)
    rng = np.random.default_rng(seed)
    drawn = {name: _drawn(rng, given[name].size, most) for name in names}
    with _progress(sum(map(len, drawn.values()))) as bar:
        measured = {name: slopes.measure(name, drawn[name], bar) for name in names}
    loss, again = _call(fn, given)
    found = {n: _compare(n, slopes.gradients[n], again.get(n), measured[n], given, tolerance) for n in names}
    return GradientCheck(_with_convolutions(found, given), tolerance, _same_bits(loss, slopes.loss))


# ---------------------------------------------------------------------------------------------- what goes in and out


def _as_input(name: str, value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if dtype is not None and str(dtype).rpartition(".")[2] in ("float16", "bfloat16", "float32"):
        raise TypeError(f"{name}: expected float64, in which differences keep their digits, got {dtype}; widen it")
    return np.array(value) if isinstance(value, np.ndarray) else value


def _call(fn: Function, inputs: Mapping[str, Any]) -> tuple[float, dict[str, Array]]:
    copies = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
    result = fn(**copies)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise TypeError(f"fn: expected (loss, a dict of gradients) from it, got {type(result).__name__}")
    loss, gradients = result
    if getattr(loss, "ndim", 0) or str(getattr(loss, "dtype", "float64")).rpartition(".")[2] != "float64":
        raise TypeError(f"loss: expected one number in float64, got {loss!r}")
    unknown = sorted(set(gradients) - set(inputs))
    if unknown or not gradients:
        raise ValueError(f"gradients: expected names among {', '.join(inputs)}, got {', '.join(unknown) or 'none'}")
    number = float(loss.item() if hasattr(loss, "item") else loss)
    return number, {name: _as_gradient(name, value, inputs[name]) for name, value in gradients.items()}


def _as_gradient(name: str, value: Any, of: Any) -> Array:
    if not (isinstance(of, np.ndarray) and of.dtype == np.float64):
        raise TypeError(f"{name}: expected a NumPy array of float64, since fn gives its gradient, got {_kind(of)}")
    array = np.asarray(value.get() if hasattr(value, "get") else value).copy()  # fn may reuse the memory
    if array.dtype != np.float64:
        raise TypeError(f"gradients[{name!r}]: expected float64, got {_kind(value)}")
    return array


def _kind(value: Any) -> str:
    return type(value).__name__ + (f" of {value.dtype}" if hasattr(value, "dtype") else "")


def _drawn(rng: np.random.Generator, size: int, most: int | None) -> Array:
    """Flat indices, ascending."""
    return np.arange(size) if most is None or size <= most else np.sort(rng.choice(size, most, replace=False))


def _progress(elements: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=elements, desc="finite differences", delay=3.0, leave=False, disable=not sys.stderr.isatty())


def _same_bits(a: Array | float, b: Array | float) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ----------------------------------------------------------------------------------------------------- the slopes


class _Slopes:
    """fn at the given inputs, and how its loss changes beside them."""

    def __init__(self, fn: Function, inputs: Mapping[str, Any], eps: float, tolerance: float) -> None:
        self._fn, self._inputs, self._eps, self._tolerance = fn, inputs, eps, tolerance
        self.loss, self.gradients = _call(fn, inputs)
        if not math.isfinite(self.loss):
            raise ValueError(f"loss: expected a finite number, got {self.loss}: nothing can be compared")

    def measure(self, name: str, flat: Array, bar: Any) -> Measured:
        """The slopes at some elements of an input."""
        rows = []
        for element in flat:
            rows.append(self._at(name, int(element)))
            bar.update()
        ahead, behind, rounding, kinked = np.array(rows, np.float64).reshape(-1, 4).T
        return Measured(flat, ahead, behind, rounding, kinked.astype(bool))

    def _at(self, name: str, element: int) -> tuple[float, float, float, bool]:
        """(ahead, behind, rounding, whether there is a kink)."""
        ahead, behind, rounding = self._both_sides(name, element, self._eps)
        gap = at_first = abs(ahead - behind)
        for smaller in (4, 16):  # a curve's slopes approach each other as the step shrinks, those of a kink do not
            if not gap > self._tolerance * max(abs(ahead), abs(behind)) + 4 * rounding:
                return ahead, behind, rounding, False
            ahead, behind, rounding = self._both_sides(name, element, self._eps / smaller)
            gap = abs(ahead - behind)
        return ahead, behind, rounding, gap > at_first / 8 and gap > 4 * rounding

    def _both_sides(self, name: str, element: int, eps: float) -> tuple[float, float, float]:
        x = float(self._inputs[name].flat[element])
        step = eps * max(1.0, abs(x))
        up, down = self._loss_at(name, element, x + step), self._loss_at(name, element, x - step)
        rounding = _ROUNDING * max(abs(self.loss), abs(up), abs(down)) / step
        return (up - self.loss) / ((x + step) - x), (self.loss - down) / (x - (x - step)), rounding

    def _loss_at(self, name: str, element: int, value: float) -> float:
        moved = self._inputs[name].copy()
        moved.flat[element] = value
        return _call(self._fn, {**self._inputs, name: moved})[0]


# ------------------------------------------------------------------------------------------------- the comparison


def _compare(
    name: str, analytic: Array, again: Array | None, slopes: Measured, inputs: Mapping[str, Any], tolerance: float
) -> CheckedGradient:
    size, shape = inputs[name].size, inputs[name].shape
    common: dict[str, Any] = {
        "name": name,
        "checked": len(slopes.flat),
        "size": size,
        "not_finite": int(np.sum(~np.isfinite(analytic))),
        "kinks": int(np.sum(slopes.kinked)),
        "repeatable": again is not None and _same_bits(analytic, again),
    }
    if analytic.shape != shape:
        nowhere: dict[str, Any] = {"worst": (), "analytic": math.nan, "numeric": math.nan, "likeness": ""}
        cause = wrong_shape(analytic, shape, slopes, tolerance)
        return CheckedGradient(right=False, error=math.inf, cause=cause, **nowhere, **common)
    picked = analytic.flat[slopes.flat]
    numeric = slopes.nearest(picked)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        difference = np.abs(picked - numeric)
    error = relative_error(picked, numeric)
    exact = error <= tolerance
    close = exact or norm(difference) <= norm(slopes.rounding)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference))) if size else None
    return CheckedGradient(
        right=close and common["repeatable"] and not common["not_finite"],
        error=error,
        worst=() if worst is None else tuple(int(k) for k in np.unravel_index(slopes.flat[worst], shape)),
        analytic=0.0 if worst is None else float(picked[worst]),
        numeric=0.0 if worst is None else float(numeric[worst]),
        cause="" if exact else _TOO_SMALL if close else likely_cause(analytic, slopes, inputs, tolerance),
        likeness="" if close else likeness(analytic, slopes, tolerance),
        **common,
    )


def _cells(found: CheckedGradient) -> tuple[str, ...]:
    checked = str(found.size) if found.checked == found.size else f"{found.checked} of {found.size}"
    at = ", ".join(map(str, found.worst))
    values = (f"{found.analytic:.5g}", f"{found.numeric:.5g}")
    return found.name, "right" if found.right else "WRONG", f"{found.error:.2g}", checked, at, *values


def _notes(found: CheckedGradient) -> Iterator[str]:
    if not found.repeatable:
        yield "not repeatable: two calls differ, as from memory nobody wrote (look with health.poisoned)"
    if found.not_finite:
        yield f"not finite: {found.not_finite} of its values"
    if found.cause:
        yield found.cause
    if found.likeness:
        yield found.likeness
    if found.kinks:
        yield f"kinks: at {found.kinks} elements the slopes on both sides differ (relu, abs, max)"


_CONVOLUTION = (
    "the weights' gradient is right, this is not: a convolution's input gradient needs the kernel flipped and its "
    "channel axes exchanged"
)


def _with_convolutions(found: dict[str, CheckedGradient], inputs: Mapping[str, Any]) -> dict[str, CheckedGradient]:
    """Images whose gradient is wrong, nobody knows why, beside kernels whose gradient is right."""
    kernels = [inputs[name].shape for name, gradient in found.items() if gradient.right and inputs[name].ndim == 4]
    return {
        name: replace(gradient, cause=_CONVOLUTION)
        if gradient.likeness and not gradient.cause and any(_is_image(inputs[name].shape, k) for k in kernels)
        else gradient
        for name, gradient in found.items()
    }


def _is_image(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    larger = len(shape) > 2 and all(n > k for n, k in zip(shape[-2:], kernel[-2:], strict=True))
    return larger and max(kernel[-2:]) > 1
