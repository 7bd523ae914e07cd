"""Timing on a machine that others use, too: rivals take turns, and ratios count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Timed = Callable[[], object]


def interleaved(
    rivals: Mapping[str, Timed], rounds: int, wait: Timed = lambda: None, tick: Timed = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each call, one round after the other (A B C A B C ...), after one call of each that is not timed.

    wait: called before and after each call, for devices that work on their own; tick: after each, for progress.
    """
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            times[name].append(time.perf_counter() - start)
            tick()
    return times


def median_ratio(longer: list[float], shorter: list[float]) -> float:
    """The median over the rounds of the first's time by the second's."""
    return statistics.median(a / b for a, b in zip(longer, shorter, strict=True))
