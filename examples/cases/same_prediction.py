"""A regression that gives the same value for every input, since it has relu, Adam and L2: which of them is it?

The question. To be rid of a ceiling in its predictions a regression was changed in three ways at once: relu for
sigmoid, Adam for gradient descent, an L2 penalty. Now it predicts one value whatever comes in.

The cause, found by changing one thing at a time: the penalty. At strength 1 it is many times the error at first, the
weights shrink to nothing, and what is left, the last bias, learns the mean of the targets. Tanh or SGD in its place
changes nothing. The same symptom has another cause where inputs keep their own units (metres, years) under a high
learning rate: the first steps push every relu below 0 for every example, and a dead unit gets no gradient. The
monitor tells the two apart: "penalty drowns the loss" and "dead units".

The cure. A penalty a thousand times weaker; inputs with mean 0 and spread 1, and a smaller learning rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, layers, losses, optim, plots

Array = Any
AS_ASKED: dict[str, Any] = {"activation": "relu", "adam": True, "l2": 1.0, "scaled": True, "rate": 0.01}
RUNS: dict[str, dict[str, Any]] = {
    "relu, Adam, L2": {},
    "tanh for relu": {"activation": "tanh"},
    "SGD for Adam": {"adam": False},
    "L2 of 0.001": {"l2": 0.001},
    "no L2, raw inputs, rate 0.3": {"l2": 0.0, "scaled": False, "rate": 0.3},
    "no L2, inputs scaled, rate 0.01": {"l2": 0.0},
}
CURED = ("L2 of 0.001", "no L2, inputs scaled, rate 0.01")


def houses(scaled: bool) -> tuple[Array, Array]:
    """512 houses: area, year, metres to the centre, rooms [N, 4]; prices of mean 0 and spread 1 [N, 1]."""
    rng = np.random.default_rng(0)
    low, high = (40, 1900, 100, 1), (250, 2020, 20000, 8)
    x = rng.uniform(low, high, (512, 4))
    area, year, distance, rooms = x.T
    price = 2 * area + 0.5 * year - 0.006 * distance + 10 * rooms + 40 * np.sin(area / 20) + rng.normal(0, 10, 512)
    if scaled:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x.astype(np.float32), ((price - price.mean()) / price.std()).astype(np.float32)[:, None]


def train(steps: int, activation: str, adam: bool, l2: float, scaled: bool, rate: float) -> dict[str, Any]:
    """Train on batches of 64; predictions for all houses and what the monitor says."""
    rng = np.random.default_rng(1)
    (x, price), network = houses(scaled), []
    for inputs in (4, 16):
        network += [layers.Dense(inputs, 16, rng=rng), layers.Activation(activation)]
    net = layers.Sequential([*network, layers.Dense(16, 1, rng=rng)])
    make = optim.Adam if adam else optim.SGD
    optimizer, monitor = make(net.parameters(), lr=rate), health.Monitor(net, every=2)
    for _ in range(steps):
        batch = rng.integers(0, len(x), 64)
        y = net.forward(x[batch])
        error, dy = losses.mean_squared(y, price[batch])
        net.backward(dy)
        penalty, dpenalty = losses.l2_penalty(net.parameters(), l2)
        gradients = losses.add_gradients(net.gradients(), dpenalty)
        monitor.observe(error + penalty, outputs=y, targets=price[batch], penalty=penalty, gradients=gradients)
        optimizer.step(gradients)
    y = net.forward(x)
    return {"price": price, "prediction": y, "spread": float(y.std()), "monitor": monitor,
            "error": float(np.mean((y - price) ** 2)), "verdicts": [v.name for v in monitor.verdicts()]}  # fmt: skip


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Prediction against price: a level line where one value is given to all."""
    figure = plots.new_figure(9.0, 5.6)
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.93, bottom=0.1, hspace=0.25, wspace=0.08)
    for axes, (name, run) in zip(grid.flat, found.items(), strict=True):
        plots.night_axes(axes)
        axes.plot([-2.5, 2.5], [-2.5, 2.5], color=plots.DIM, linewidth=0.8)
        colour = plots.INPUT if name in CURED else plots.FORECAST
        axes.scatter(run["price"], run["prediction"], s=5, color=colour, alpha=0.6, linewidths=0)
        axes.set_title(name, color=plots.TEXT, fontsize=10)
        axes.set_ylim(-2.6, 2.6)
    for axes in grid[1]:
        axes.set_xlabel("price", color=plots.DIM)
    for axes in grid[:, 0]:
        axes.set_ylabel("prediction", color=plots.DIM)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train as asked, and with one thing changed at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    found = {name: train(400 if args.small else 4000, **{**AS_ASKED, **change}) for name, change in RUNS.items()}
    print(f"{'':32}  spread    error  verdicts")
    for name, run in found.items():
        print(f"{name:32}  {run['spread']:.1e}  {run['error']:5.3f}  {', '.join(run['verdicts']) or 'nothing wrong'}")
    print(found["relu, Adam, L2"]["monitor"].report())
    draw(args.out / "same_prediction.png", found)
    return found


if __name__ == "__main__":
    main()
