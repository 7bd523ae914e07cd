"""Batch normalisation: before the activation, or after it?

The question. The paper (Ioffe and Szegedy 2015) normalises what goes into the activation; its authors are said to have
changed their minds; tutorials do either. Which is right?

The cause. Tasks differ, and so do seeds. Here, over 20 seeds, with the normalisation before ReLU 98.1 % of the digits
that it never saw are right, after it 97.6 % (less by 0.46 ± 0.09; at a rate of 0.5 by 0.73 ± 0.19), without it 96.2 %;
one seed differs from another by 0.5, and the training loss is lower after ReLU. After two epochs 95 % are right with
it, wherever it stands, and 72 % without.

The cure. Normalise at all; choose the place by measuring on the task at hand, over several seeds. What matters more is
to evaluate in eval mode: in training mode a prediction depends on the other examples of its batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from fusecell import health, layers, losses, optim, plots

Array = Any
ORDERS = ("none", "before", "after")


def network(order: str, rng: np.random.Generator) -> layers.Sequential:
    """64-64-64-64-10 with ReLU; `order`: where the normalisation stands with respect to it."""
    parts: list[layers.Layer] = []
    for _ in range(3):
        parts += [
            layers.Dense(64, 64, rng=rng),
            *([layers.BatchNorm(64)] if order == "before" else []),
            layers.Activation("relu"),
            *([layers.BatchNorm(64)] if order == "after" else []),
        ]
    return layers.Sequential([*parts, layers.Dense(64, 10, rng=rng)])


def train(order: str, seed: int, epochs: int, rate: float) -> tuple[list[float], list[float], health.Monitor]:
    """(loss of each epoch, accuracy on digits it never saw after each epoch, monitor)."""
    x, labels = load_digits(return_X_y=True)
    x, rng = (x / 16).astype(np.float32), np.random.default_rng(seed)
    held_out, rest = np.split(rng.permutation(len(x)), [497])
    net = network(order, rng)
    optimizer, monitor, curve, accuracy = optim.SGD(net.parameters(), rate), health.Monitor(net, every=5), [], []
    for _ in range(epochs):
        total = 0.0
        for batch in rng.permutation(rest).reshape(26, 50):
            loss, dy = losses.softmax_cross_entropy(net.forward(x[batch]), labels[batch])
            net.backward(dy)
            monitor.observe(loss)
            optimizer.step(net.gradients())
            total += loss
        curve.append(total / 26)
        net.eval()
        accuracy.append(float(np.mean(net.forward(x[held_out]).argmax(axis=1) == labels[held_out])))
        net.train()
    return curve, accuracy, monitor


def draw(path: Path, curves: dict[str, Array], accuracies: dict[str, Array]) -> None:
    """Medians over the seeds, and the middle half of them."""
    figure = plots.new_figure(9.0, 4.2)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.97, bottom=0.12, top=0.9, wspace=0.16)
    for order, colour in zip(ORDERS, (plots.DIM, plots.INPUT, plots.FORECAST), strict=True):
        for axes, values in ((left, curves[order]), (right, 100 * accuracies[order])):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            epochs = np.arange(1, len(middle) + 1)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(epochs, middle, color=colour, label="without" if order == "none" else f"{order} ReLU")
    left.set_yscale("log")
    right.set_ylim(80, 100)
    for axes, title in ((left, "Training loss"), (right, "Accuracy on held-out digits in %")):
        plots.night_axes(axes)
        axes.set_xlabel("epoch", color=plots.DIM)
        axes.set_title(title, color=plots.TEXT, loc="left", fontsize=11)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train without, before and after, from several seeds; the difference with its standard error."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    parser.add_argument("--rate", type=float, default=0.1)
    args = parser.parse_args(argv)
    seeds, epochs = (3, 6) if args.small else (20, 20)
    curves, accuracies, verdicts = {}, {}, {}
    for order in ORDERS:
        bar = tqdm(range(seeds), desc=order, leave=False, disable=None)
        runs = [train(order, seed, epochs, args.rate) for seed in bar]
        curves[order], accuracies[order] = (np.array([run[k] for run in runs]) for k in (0, 1))
        verdicts[order] = [monitor.verdicts() for *_, monitor in runs]
        early, end = 100 * accuracies[order][:, 1].mean(), 100 * accuracies[order][:, -1].mean()
        print(f"{order:6}: accuracy {early:.2f} % after 2 epochs, {end:.2f} % at the end")
    difference = 100 * (accuracies["after"] - accuracies["before"])[:, -1]
    error = difference.std(ddof=1) / np.sqrt(seeds)
    print(f"after less before, at the end: {difference.mean():+.2f} ± {error:.2f} %")
    draw(args.out / "batch_norm_order.png", curves, accuracies)
    return {"losses": curves, "accuracies": accuracies, "verdicts": verdicts, "difference": (difference.mean(), error)}


if __name__ == "__main__":
    main()
