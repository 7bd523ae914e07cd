"""What watching costs: a training step watched and not, turn by turn.

`python bench/bench_health.py [--threads 1] [--rounds 41] [--shapes S M]` prints, for each shape and each kind of
watching, the median of a step and the median ratio of a round. "off" is measured twice: the ratio of the two says what
the machine's unrest alone does.

    statistics      ConvLSTM2D: the sums that its backward kernels take at every time step
    monitor         ConvLSTM2D and a readout: health.Monitor.observe at every training step
    monitor / 10    the same with every=10
    hooks           the loop that people write in PyTorch: health.Monitor.observe at every training step
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from shapes import SHAPES, Shape
from timing import interleaved, median_ratio

import fusecell
from fusecell import health
from fusecell.layers import Conv2D, ConvLSTM2D, Sequential

Step = Callable[[], object]


def arrays(shape: Shape, channels: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    lead, image = (shape.T, shape.B), (shape.H, shape.W)
    return tuple(rng.standard_normal((*lead, c, *image)).astype(np.float32) for c in (shape.I, channels))


def layer_step(shape: Shape, watched: bool) -> Step:
    """Forward and backward of the layer alone."""
    layer = ConvLSTM2D(shape.I, shape.C, shape.k, rng=np.random.default_rng(0))
    layer.watched = watched
    x, dy = arrays(shape, shape.C)

    def run() -> object:
        layer.forward(x)
        return layer.backward(dy)

    return run


def monitored_step(shape: Shape, every: int | None) -> Step:
    """Of the layer with a readout; every: the monitor's, None for no monitor."""
    rng = np.random.default_rng(0)
    model = Sequential([ConvLSTM2D(shape.I, shape.C, shape.k, rng=rng), Conv2D(shape.C, 1, 1, rng=rng)])
    monitor = None if every is None else health.Monitor(model, every=every, keep=64)
    x, dy = arrays(shape, 1)

    def run() -> None:
        model.forward(x)
        model.backward(dy)
        if monitor is not None:
            monitor.observe(1.0)

    return run


def torch_step(shape: Shape, watched: bool) -> Step:
    """Of a cell in a loop over time, as people write it."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = nn.Conv2d(shape.I + shape.C, 4 * shape.C, shape.k, padding=shape.k // 2)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Cell()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = c = x.new_zeros(shape.B, shape.C, shape.H, shape.W)
            outputs = []
            for frame in x:
                h, c = self.cell(frame, h, c)
                outputs.append(h)
            return torch.stack(outputs)

    model = Loop()
    monitor = health.Monitor(model, keep=64) if watched else None
    x, dy = (torch.from_numpy(a) for a in arrays(shape, shape.C))

    def run() -> None:
        model.zero_grad()
        model(x).backward(dy)
        if monitor is not None:
            monitor.observe(1.0)

    return run


def kinds(shape: Shape) -> dict[str, tuple[Step, Step, Step]]:
    """(on, off, off again) of each kind of watching."""
    found = {
        "statistics": (layer_step(shape, True), layer_step(shape, False), layer_step(shape, False)),
        "monitor": (monitored_step(shape, 1), monitored_step(shape, None), monitored_step(shape, None)),
        "monitor / 10": (monitored_step(shape, 10), monitored_step(shape, None), monitored_step(shape, None)),
    }
    try:
        found["hooks"] = torch_step(shape, True), torch_step(shape, False), torch_step(shape, False)
    except ImportError:
        print("hooks: left out, torch is not installed")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S", "M"])
    chosen = parser.parse_args()
    fusecell.set_num_threads(chosen.threads)
    try:
        import torch

        torch.set_num_threads(chosen.threads)
    except ImportError:
        pass
    print("                  off, ms   on, ms   on/off   off/off")
    for name in chosen.shapes:
        for kind, steps in kinds(SHAPES[name]).items():
            seconds = interleaved(dict(zip(("on", "off", "off again"), steps, strict=True)), chosen.rounds)
            off, on = (statistics.median(seconds[which]) * 1e3 for which in ("off", "on"))
            ratios = (median_ratio(seconds[which], seconds["off"]) for which in ("on", "off again"))
            print(f"{name:2} {kind:12} {off:9.1f} {on:8.1f}", *(f"{ratio:8.3f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
