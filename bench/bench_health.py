"""What watching costs: a training step of a ConvLSTM2D layer, watched and not, turn by turn.

`python bench/bench_health.py [--threads 1] [--rounds 101] [--shapes S M]` prints, for each shape, the medians and the
median ratio of a round. Off is measured twice: the ratio of the two says what the machine's unrest alone does. All
turns are one layer's, on the same arrays, so that no place in memory is better than another.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
from shapes import SHAPES, Shape
from timing import interleaved, median_ratio

import fusecell
from fusecell.layers import ConvLSTM2D


def training_step(shape: Shape) -> Callable[[bool], object]:
    """Forward and backward of a layer, watched or not."""
    rng = np.random.default_rng(0)
    layer = ConvLSTM2D(shape.I, shape.C, shape.k, rng=rng)
    x = rng.standard_normal((shape.T, shape.B, shape.I, shape.H, shape.W)).astype(np.float32)
    dy = rng.standard_normal((shape.T, shape.B, shape.C, shape.H, shape.W)).astype(np.float32)

    def run(watched: bool) -> object:
        layer.watched = watched
        layer.forward(x)
        return layer.backward(dy)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S", "M"])
    chosen = parser.parse_args()
    fusecell.set_num_threads(chosen.threads)
    print("shape      off, ms   on, ms   on/off   off/off")
    for name in chosen.shapes:
        step = training_step(SHAPES[name])
        seconds = interleaved(
            {"off": partial(step, False), "on": partial(step, True), "off again": partial(step, False)}, chosen.rounds
        )
        off, on = (statistics.median(seconds[kind]) * 1e3 for kind in ("off", "on"))
        ratios = (median_ratio(seconds[kind], seconds["off"]) for kind in ("on", "off again"))
        print(f"{name:6}  {off:10.1f}  {on:7.1f}", *(f"{ratio:8.3f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
