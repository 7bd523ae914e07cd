"""Trivial forecasts, and how far a forecast is ahead of them.

A network that is no better than one of these has learnt nothing, whatever its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusecell._typing import Array

MARK = 0.60
"""A forecast counts as learnt when its error is at most this part of the best trivial forecast's."""


def trivial_forecasts(inputs: Array, target: Array, mean_frame: Array) -> dict[str, Array]:
    """What forecasts the frames `target` [K, B, 1, H, W] after `inputs` [T, B, 1, H, W] without learning anything.

    last: the last input frame again; black: nothing; mean: the training data's mean frame [H, W]; scaled: the last
    frame times the number that fits `target` itself best at that step ahead (least squares over all sequences and
    pixels), so no forecast by a faded last frame can be better. Each broadcasts to the target's shape.
    """
    last = inputs[-1:]
    power = np.sum(np.square(last, dtype=np.float64))
    overlap = np.sum(last * target, axis=(1, 2, 3, 4), keepdims=True, dtype=np.float64)
    scale = overlap / power if power > 0.0 else np.zeros_like(overlap)
    return {
        "last": last,
        "black": np.zeros((1, 1, 1, 1, 1), target.dtype),
        "mean": mean_frame.astype(target.dtype)[None, None, None],
        "scaled": scale.astype(target.dtype) * last,
    }


def horizon_errors(forecast: Array, target: Array) -> Array:
    """Mean squared error at each step ahead: [K] float64 of target [K, B, 1, H, W] and what broadcasts to it."""
    errors: Array = np.mean(np.square(forecast - target, dtype=np.float64), axis=(1, 2, 3, 4))
    return errors


@dataclass(frozen=True)
class Comparison:
    """Errors per step ahead [K] of a forecast and of every trivial one."""

    model: Array
    trivial: Mapping[str, Array]

    @property
    def best(self) -> str:
        """The trivial forecast with the least error over the whole horizon."""
        return min(self.trivial, key=lambda name: float(self.trivial[name].mean()))

    @property
    def ratio(self) -> float:
        """The forecast's error over the best trivial one's, both over the whole horizon."""
        return float(self.model.mean() / self.trivial[self.best].mean())

    @property
    def reached(self) -> bool:
        """Whether the ratio is at most `MARK`. NaN is not."""
        return self.ratio <= MARK

    def table(self) -> str:
        """One line per step ahead, one for all of them; the last column is against the best trivial forecast."""
        names = list(self.trivial)
        lines = [
            "steps ahead    network" + "".join(f"{name:>11}" for name in names) + f"{'network / ' + self.best:>18}"
        ]
        columns = [self.model, *(self.trivial[name] for name in names)]
        rows = [(str(k + 1), [float(c[k]) for c in columns]) for k in range(len(self.model))]
        for label, values in [*rows, ("all", [float(c.mean()) for c in columns])]:
            cells = "".join(f"{value:>11.5f}" for value in values)
            reference = values[1 + names.index(self.best)]
            lines.append(f"{label:>11}{cells}{100 * values[0] / reference:>16.1f} %")
        return "\n".join(lines)

    def verdict(self) -> str:
        """One line: the ratio, and whether the mark is reached."""
        ending = "reached" if self.reached else "NOT reached"
        return (
            f"held-out error: {100 * self.ratio:.1f} % of the best trivial forecast's ({self.best}); "
            f"the mark of {100 * MARK:.0f} % is {ending}"
        )


def compare(forecast: Array, inputs: Array, target: Array, mean_frame: Array) -> Comparison:
    """A forecast [K, B, 1, H, W] held against every trivial one."""
    trivial = trivial_forecasts(inputs, target, mean_frame)
    return Comparison(
        horizon_errors(forecast, target), {name: horizon_errors(f, target) for name, f in trivial.items()}
    )
