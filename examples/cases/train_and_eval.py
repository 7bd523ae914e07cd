"""One image, another answer at every call: a network that is used in training mode.

The question. A trained network with dropout or batch normalisation is asked for its outputs, but the argument that said
`train=False` is gone from the framework. What does it do, and what happens without it?

The cause. In training mode dropout draws anew at every call, and batch normalisation takes mean and variance from the
batch at hand: an answer depends on the images beside it. Sorted by class, what an image has in common with them, and
would be known by, is subtracted with the mean; and every call moves the running statistics, so that evaluation suffers.
Training was sound, and the monitor, which watches training, finds nothing wrong: this mistake is made after it.

The cure. `net.eval()` before use, `net.train()` before going on. Then an answer is the image's own, to the bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array = Any
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)


def digits() -> tuple[Array, Array]:
    """Images [N, 64] in 0 to 1 and classes, in an order by chance."""
    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32), labels[order]


def train(steps: int, x: Array, labels: Array) -> tuple[layers.Sequential, list[str]]:
    """A network with batch normalisation, and what the monitor says of its training."""
    rng = np.random.default_rng(1)
    hidden = [layers.Dense(64, 64, rng=rng), layers.BatchNorm(64), layers.Activation("relu")]
    net = layers.Sequential([*hidden, layers.Dense(64, 10, rng=rng)])
    optimizer, monitor = optim.Adam(net.parameters(), lr=1e-2), health.Monitor(net)
    for _ in range(steps):
        batch = rng.integers(0, len(x), 64)
        y = net.forward(x[batch])
        loss, dy = losses.softmax_cross_entropy(y, labels[batch])
        net.backward(dy)
        monitor.observe(loss, outputs=y, targets=labels[batch])
        optimizer.step(net.gradients())
    return net, [verdict.name for verdict in monitor.verdicts()]


def accuracy(net: layers.Sequential, x: Array, labels: Array, batch: int) -> float:
    """Over full batches, in the order given."""
    parts = range(0, len(x) - batch + 1, batch)
    answers = np.concatenate([net.forward(x[start : start + batch]).argmax(axis=1) for start in parts])
    return float(np.mean(answers == labels[: len(answers)]))


def dropout_repeats(training: bool) -> bool:
    """Whether a ConvLSTM with dropout gives the same twice."""
    rng = np.random.default_rng(0)
    net, x = layers.ConvLSTM2D(1, 4, 3, dropout=0.5, rng=rng), rng.random((5, 1, 1, 8, 8), np.float32)
    if not training:
        net.eval()
    return np.array_equal(net.forward(x), net.forward(x))


def draw(path: Path, curves: dict[str, list[float]]) -> None:
    """The share of right answers over the size of the batches."""
    figure = plots.new_figure(7.6, 4.2)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.77))
    plots.night_axes(axes)
    for name, values in curves.items():
        colour, line = plots.INPUT if "eval" in name else plots.FORECAST, "--" if "sorted" in name else "-"
        axes.semilogx(BATCHES, values, line, marker="o", markersize=4, color=colour, base=2, label=name)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("images in a batch", color=plots.DIM)
    axes.set_title(
        "The same network, the same images: share of right answers", color=plots.TEXT, loc="left", fontsize=11
    )
    axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train one network; use it in both modes, on batches of every size, shuffled and sorted by class."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    x, labels = digits()
    net, verdicts = train(200 if args.small else 2000, x[:1285], labels[:1285])
    x, labels, trained = x[1285:], labels[1285:], net.state_dict()
    by_class, before = np.argsort(labels, kind="stable"), accuracy(net.eval(), x, labels, 64)
    curves = {}
    for mode in (net.eval, net.train):
        for name, order in (("shuffled", np.arange(len(x))), ("sorted by class", by_class)):
            net.load_state_dict(trained)
            mode()
            values = curves[f"{mode.__name__}, {name}"] = [accuracy(net, x[order], labels[order], b) for b in BATCHES]
            print(f"{mode.__name__}(), {name:16}", "".join(f"{100 * value:5.0f} %" for value in values))
    accuracy(net, x[by_class], labels[by_class], 4)
    after = accuracy(net.eval(), x, labels, 64)
    print(f"eval() again, {before:.0%} -> {after:.0%} right: training mode has moved the running statistics")
    draw(args.out / "train_and_eval.png", curves)
    repeats = {training: dropout_repeats(training) for training in (True, False)}
    return {"curves": curves, "before": before, "after": after, "repeats": repeats, "verdicts": verdicts}


if __name__ == "__main__":
    main()
