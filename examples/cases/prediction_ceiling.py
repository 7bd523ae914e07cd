"""A regression whose predictions never exceed a ceiling.

The question. A network with tanh (or sigmoid) units and a linear output fits small values well and never predicts more
than some value, although the data has more. What cuts it off?

The cause. A linear layer on units in -1 to 1 can give no more than bias + sum |w|, and no less than bias - sum |w|:
`health.output_bounds`. It begins near 0 while the targets go up to 100, and it grows only as fast as the weights do, a
learning rate at each step. Until then everything above it is predicted as the ceiling itself.

The cure. Targets of mean 0 and deviation 1, so that the ceiling lies above them nearly from the start; predictions are
scaled back. Or units without a bound before the last layer, as ReLU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, layers, losses, optim, plots

Array = Any


def data(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """x in -1 to 1, [N, 1], and a value that grows from 0 to 100 with some noise, [N, 1]."""
    x = rng.uniform(-1, 1, (count, 1))
    return x, 100 * ((x + 1) / 2) ** 3 + rng.normal(0, 1, x.shape)


def train(activation: str, steps: int, *, scaled: bool = False) -> dict[str, Any]:
    """Fit 1-16-1 by Adam; its predictions on a grid, the reach of its last layer, and what the monitor says."""
    rng = np.random.default_rng(0)
    last = layers.Dense(16, 1, rng=rng, dtype="float64")
    net = layers.Sequential([layers.Dense(1, 16, rng=rng, dtype="float64"), layers.Activation(activation), last])
    x, y = data(rng, 500)
    middle, size = (y.mean(), y.std()) if scaled else (0.0, 1.0)
    optimizer, monitor, reach = optim.Adam(net.parameters(), 1e-2), health.Monitor(net), []
    for _ in range(steps):
        batch = rng.integers(500, size=50)
        target = (y[batch] - middle) / size
        outputs = net.forward(x[batch])
        loss, dy = losses.mean_squared(outputs, target)
        net.backward(dy)
        monitor.observe(loss, outputs=outputs, targets=target)
        reach.append(health.output_bounds(**last.parameters(), inputs=(-1, 1)))
        optimizer.step(net.gradients())
    grid = np.linspace(-1, 1, 201)[:, None]
    return {
        "predicted": net.forward(grid)[:, 0] * size + middle,
        "reach": np.array(reach) * size + middle,
        "error": float(np.sqrt(np.mean((net.forward(x) * size + middle - y) ** 2))),
        "verdicts": monitor.verdicts(),
    }


def draw(path: Path, runs: dict[str, dict[str, Any]]) -> None:
    """The fits with the ceiling, and how the ceiling moves."""
    figure = plots.new_figure(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.97, bottom=0.12, top=0.9, wspace=0.16)
    x, y = data(np.random.default_rng(1), 300)
    left.plot(x[:, 0], y[:, 0], ".", color=plots.DIM, markersize=3, label="data")
    for (name, run), colour in zip(runs.items(), (plots.FORECAST, plots.INPUT, plots.TEXT), strict=True):
        left.plot(np.linspace(-1, 1, 201), run["predicted"], color=colour, label=name)
        if "relu" not in name:
            right.plot(run["reach"][:, 1], color=colour, label=name)
    left.axhline(runs["tanh"]["reach"][-1, 1], color=plots.FORECAST, linestyle="--", linewidth=1)
    right.axhline(100, color=plots.DIM, linestyle="--", linewidth=1)
    for axes, title in ((left, "Predictions; dashed: the ceiling"), (right, "bias + sum |w| over the training steps")):
        plots.night_axes(axes)
        axes.set_title(title, color=plots.TEXT, loc="left", fontsize=11)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9, loc="center left")
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Fit with tanh units, with scaled targets, with ReLU; report each ceiling."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    steps = 400 if args.small else 800
    runs = {
        "tanh": train("tanh", steps),
        "tanh, scaled targets": train("tanh", steps, scaled=True),
        "relu": train("relu", steps),
    }
    for name, run in runs.items():
        low, high = run["reach"][-1]
        ceiling = "no ceiling" if name == "relu" else f"cannot leave {low:.1f} to {high:.1f}"
        print(f"{name}: error {run['error']:.2f}, highest prediction {run['predicted'].max():.1f}, {ceiling}",
              *(run["verdicts"] or ["nothing wrong"]), sep="\n    ")  # fmt: skip
    draw(args.out / "prediction_ceiling.png", runs)
    return runs


if __name__ == "__main__":
    main()
