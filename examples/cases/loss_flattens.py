"""The loss flattens at the same value, whatever the learning rate, the number of layers or the activation.

The question. A network written from scratch (leaky ReLU hidden layers, sigmoid outputs, handwritten digits) begins at
a loss of 6.98 and always ends at 3.24. What is wrong in its forward or backward pass?

The cause. Nothing in them: every weight begins at 0, or all at one value. Both numbers say so. A network that says 0.5
for each of ten outputs has the loss 10 ln 2 = 6.93; one that says "a tenth", the same for every picture, has
10 (0.1 ln 10 + 0.9 ln 10/9) = 3.25. From zero weights only the last bias ever gets a gradient, and that is all a bias
can learn. From equal weights all units of a layer get the same gradient and stay one unit: it ends where one unit can.

The cure. Weights drawn at random, by Glorot and Bengio's rule (2010), as fusecell's layers do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array = Any
RATES = (0.1, 0.2, 0.4)
STARTS = {"zero": 0.0, "equal": 0.01, "random": None}


def network(start: float | None, hidden: int) -> layers.Sequential:
    """Leaky ReLU, leaky ReLU, ten logits; every weight the same where `start` is given."""
    rng = np.random.default_rng(0)
    dense = [layers.Dense(*sizes, rng=rng) for sizes in ((64, hidden), (hidden, hidden), (hidden, 10))]
    for layer in dense if start is not None else []:
        layer.parameters()["weight"][...] = start
    first, second, last = dense
    return layers.Sequential([first, layers.Activation("leaky_relu"), second, layers.Activation("leaky_relu"), last])


def train(net: layers.Sequential, rate: float, steps: int) -> tuple[list[float], health.Monitor]:
    """The loss of each step, summed over the ten outputs as in the question."""
    x, labels = load_digits(return_X_y=True)
    x, targets = (x / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]
    optimizer, monitor, curve = optim.SGD(net.parameters(), rate), health.Monitor(net), []
    rng = np.random.default_rng(1)
    for _ in range(steps):
        batch = rng.integers(len(x), size=100)
        mean, dy = losses.binary_cross_entropy_with_logits(net.forward(x[batch]), targets[batch])
        net.backward(10 * dy)
        curve.append(10 * mean)
        monitor.observe(curve[-1])
        optimizer.step(net.gradients())
    return curve, monitor


def draw(path: Path, curves: dict[tuple[str, float], list[float]], plateau: float) -> None:
    """All losses, and the two values that give the cause away."""
    figure = plots.new_figure(7.6, 4.3)
    axes = figure.add_axes((0.09, 0.12, 0.87, 0.78))
    plots.night_axes(axes)
    styles = {"zero": (plots.FORECAST, "-"), "equal": (plots.TEXT, ":"), "random": (plots.INPUT, "-")}
    for (start, rate), curve in curves.items():
        colour, line = styles[start]
        label = f"{start} weights, three rates" if rate == RATES[0] else None
        axes.plot(plots.smooth(np.array(curve), 10), color=colour, linestyle=line, linewidth=1.4, label=label)
    for level, words in ((10 * np.log(2), "0.5 for everything"), (plateau, "a tenth for everything")):
        axes.axhline(level, color=plots.DIM, linestyle="--", linewidth=1)
        axes.text(len(curve), level, f"{level:.2f}: {words}", color=plots.DIM, fontsize=9, ha="right", va="bottom")
    axes.set_ylim(0, 7.6)
    axes.set_xlabel("training step", color=plots.DIM)
    axes.set_title("The same plateau at any learning rate", color=plots.TEXT, loc="left", fontsize=11)
    axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.9))
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train from zero, equal and random weights at three rates each, and ask the monitor."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    hidden, steps = (32, 200) if args.small else (64, 1000)
    share = np.bincount(load_digits(return_X_y=True)[1]) / 1797
    plateau = float(-np.sum(share * np.log(share) + (1 - share) * np.log(1 - share)))
    curves, verdicts = {}, {}
    for start, value in STARTS.items():
        for rate in RATES:
            curve, monitor = train(network(value, hidden), rate, steps)
            curves[start, rate], verdicts[start, rate] = curve, monitor.verdicts()
            names = ", ".join(v.name for v in verdicts[start, rate]) or "nothing wrong"
            print(f"{start:6} weights, rate {rate}: {curve[0]:.2f} -> {np.mean(curve[-50:]):.2f}  {names}")
    print(f"the loss of saying each digit's share: {plateau:.2f}\n")
    print("\n".join(str(v) for v in verdicts["zero", RATES[0]] if v.name == "symmetric units"))
    draw(args.out / "loss_flattens.png", curves, plateau)
    ends = {key: float(np.mean(curve[-50:])) for key, curve in curves.items()}
    return {"ends": ends, "plateau": plateau, "first": curves["zero", RATES[0]][0], "verdicts": verdicts}


if __name__ == "__main__":
    main()
