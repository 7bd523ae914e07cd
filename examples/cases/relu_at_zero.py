"""The derivative of relu at exactly 0: is it 0, 0.5 or 1, and does it matter?

The question. max(0, x) has no derivative at 0. What does gradient descent make of it, and does it change anything
which value between 0 and 1 is taken there? Said was: try it, 0, 0.5 and 1, for 200 steps of a small network.

The cause of any difference is a sum that is exactly 0. Measured: on random numbers there is none, and the three runs
are the same to the last bit. Where zeros do occur the runs differ, and end as well: inputs that are 0 in every feature
(an empty patch of a picture) under a bias that is 0 still, or whole numbers as inputs and weights. It decides over
everything in one case: a first layer that starts at 0 gives 0 for every example. With 0 as the derivative nothing ever
comes through ("dead units", says the monitor); with 0.5 or 1 the same network learns.

The cure for that is not another derivative but a start at random; `layers.Activation("relu", at_zero=...)` has all
three for whoever wants to compare with another framework.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, layers, losses, optim, plots

Array = Any
CHOICES = (0.0, 0.5, 1.0)
DATA = ("random numbers", "a quarter of the inputs empty", "whole numbers", "first layer starts at 0")


def problem(kind: str, examples: int, hidden: int) -> tuple[Array, Array, Array]:
    """Inputs [N, 2], targets [N, 1] and the first matrix [hidden, 2], in float64."""
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((examples, 2)), rng.standard_normal((hidden, 2))
    if kind == "a quarter of the inputs empty":
        x[::4] = 0.0
    elif kind == "whole numbers":
        x, weight = x.round(), weight.round()
    elif kind == "first layer starts at 0":
        weight[:] = 0.0
    return x, np.sin(2 * x[:, :1]) + x[:, 1:] ** 2 + 0.5, weight


def train(kind: str, at_zero: float, examples: int, hidden: int = 30, rate: float = 0.05) -> dict[str, Any]:
    """200 steps of gradient descent on all examples; losses, and how many sums were exactly 0 in the first."""
    x, target, weight = problem(kind, examples, hidden)
    rng = np.random.default_rng(2)
    first, relu = layers.Dense(2, hidden, rng=rng, dtype="float64"), layers.Activation("relu", at_zero=at_zero)
    net = layers.Sequential([first, relu, layers.Dense(hidden, 1, rng=rng, dtype="float64")])
    first.parameters()["weight"][...] = weight
    optimizer, monitor, history = optim.SGD(net.parameters(), lr=rate), health.Monitor(net), []
    zeros = float(np.mean(first.forward(x) == 0))
    for _ in range(200):
        y = net.forward(x)
        loss, dy = losses.mean_squared(y, target)
        net.backward(dy)
        monitor.observe(loss, outputs=y, targets=target)
        optimizer.step(net.gradients())
        history.append(loss)
    return {"losses": np.array(history), "zeros": zeros, "verdicts": [v.name for v in monitor.verdicts()]}


def draw(path: Path, found: dict[str, dict[float, dict[str, Any]]]) -> None:
    """The losses, and below them by how much they differ from those with a derivative of 0."""
    figure = plots.new_figure(11.0, 4.8)
    figure.subplots_adjust(left=0.07, right=0.99, top=0.86, bottom=0.1, hspace=0.12, wspace=0.06)
    grid = figure.subplots(2, 4, sharex=True, sharey="row")
    for (above, below), (kind, runs) in zip(grid.T, found.items(), strict=True):
        for (at_zero, run), colour in zip(runs.items(), (plots.TRUTH, plots.INPUT, plots.FORECAST), strict=True):
            above.semilogy(run["losses"], color=colour, label=f"{at_zero:g}", linewidth=1.2)
            below.plot(run["losses"] - runs[0.0]["losses"], color=colour, linewidth=1.2)
        above.set_title(f"{kind}\n{100 * runs[0.0]['zeros']:.0f} % of sums are 0", color=plots.TEXT, fontsize=9)
        below.set_xlabel("step", color=plots.DIM)
        plots.night_axes(above)
        plots.night_axes(below)
    grid[1, 0].set_ylim(-0.03, 0.03)
    grid[0, 0].set_ylabel("loss", color=plots.DIM)
    grid[1, 0].set_ylabel("less that of 0", color=plots.DIM)
    grid[0, 0].legend(title="derivative at 0", frameon=False, labelcolor=plots.TEXT, fontsize=8)
    grid[0, 0].get_legend().get_title().set_color(plots.TEXT)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Every choice on every kind of data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    examples = 64 if args.small else 1000
    found = {kind: {at_zero: train(kind, at_zero, examples) for at_zero in CHOICES} for kind in DATA}
    print(f"{'':29}  derivative at 0  sums that are 0  loss after 200 steps")
    for kind, runs in found.items():
        for at_zero, run in runs.items():
            verdicts = ", ".join(run["verdicts"])
            print(f"{kind:29}  {at_zero:15}  {100 * run['zeros']:13.0f} %  {run['losses'][-1]:.6f}  {verdicts}")
    draw(args.out / "relu_at_zero.png", found)
    return found


if __name__ == "__main__":
    main()
