"""Timing on a machine that others use, too: rivals take turns, and ratios count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Timed = Callable[[], object]
Turn = TypeVar("Turn")


def interleaved(
    rivals: Mapping[str, Timed], rounds: int, wait: Timed = lambda: None, tick: Timed = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each call, one round after the other (A B C A B C ...), after one call of each that is not timed.

    wait: called before and after each call, for devices that work on their own; tick: after each, for progress.
    """
    for run in rivals.values():
        run()
    return take_turns({name: stopwatch(run, wait) for name, run in rivals.items()}, rounds, tick)


def stopwatch(run: Timed, wait: Timed = lambda: None) -> Callable[[], float]:
    """What runs it once and returns the seconds that took."""

    def seconds() -> float:
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    return seconds


def take_turns(
    rivals: Mapping[str, Callable[[], Turn]],
    rounds: int,
    tick: Timed = lambda: None,
    *,
    fewer: Mapping[str, int] | None = None,
    rest: float = 0.0,
) -> dict[str, list[Turn]]:
    """What each rival's turns return, one round after the other.

    fewer: rivals that take part in the first few rounds only. rest: seconds of sleep after a turn, in which threads
    that spin while they wait for work give up.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in rivals}
    for index in range(rounds):
        for name, run in rivals.items():
            if index < (fewer or {}).get(name, rounds):
                turns[name].append(run())
                tick()
                time.sleep(rest)
    return turns


def median_ratio(longer: list[float], shorter: list[float]) -> float:
    """The median of the first's time by the second's, over the rounds in which both took part."""
    return statistics.median(a / b for a, b in zip(longer, shorter, strict=False))
