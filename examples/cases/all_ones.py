"""Every hidden unit gives 1 for every picture: 1600 inputs, all weights positive.

The question. A classifier for 24 hand shapes, 40x40 pixels in, sigmoid units throughout, lowers its error a little, but
all hidden units give 1: every picture gets the same answer, with more units and at other rates, too.

The cause. Weights drawn from 0 to 1: a unit sums 1600 products of about 1/4, and sigmoid(400) is 1 with a slope of 0:
"saturated units". Behind it stand three more: no bias; the rate twice in the hidden units' error, so that the first
layer learns at its square (`check_gradients`: a constant factor); and y (1 - y) in the output's error.

The cure. Weights of both signs, about 0, without which all else is in vain; each is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, layers, losses, optim, plots

Array = Any
CLASSES, SIDE, UNITS, RATE = 24, 40, 30, 0.1
RUNS = {
    "as asked": ("positive", "no bias", "squared error", "rate twice"),
    "+ bias": ("positive", "squared error", "rate twice"),
    "+ log loss": ("positive", "no bias", "rate twice"),
    "+ weights of both signs": ("no bias", "squared error", "rate twice"),
    "... and the rate once": ("no bias", "squared error"),
    "... and the log loss": ("no bias",),
    "... and a bias": (),
}


def hands(count: int, seed: int) -> tuple[Array, Array]:
    """Pictures [N, 1600] in 0 to 1 of 24 shapes, each a little moved and noisy; and which shape it is [N]."""
    waves = np.cos(np.pi * np.outer(np.arange(5), np.arange(SIDE) + 0.5) / SIDE)
    shapes = waves.T @ np.random.default_rng(7).standard_normal((CLASSES, 5, 5)) @ waves > 0
    rng, labels = np.random.default_rng(seed), np.arange(count) * CLASSES // count
    moved = [np.roll(shapes[label], rng.integers(-2, 3, 2), axis=(0, 1)) for label in labels]
    pictures = np.clip(0.15 + 0.7 * np.array(moved) + 0.1 * rng.standard_normal((count, SIDE, SIDE)), 0, 1)
    return pictures.reshape(count, -1), labels


def build(faults: tuple[str, ...], dtype: str = "float32") -> layers.Sequential:
    """The classifier; with the squared error its outputs pass a sigmoid, in the log loss that is part of the loss."""
    rng, network = np.random.default_rng(1), []
    for size in ((SIDE * SIDE, UNITS), (UNITS, CLASSES)):
        dense = layers.Dense(*size, bias="no bias" not in faults, rng=rng, dtype=dtype)
        dense.parameters()["weight"][...] = rng.uniform(*((0, 1) if "positive" in faults else (-0.1, 0.1)), size[::-1])
        network += [dense, layers.Activation("sigmoid")]
    return layers.Sequential(network if "squared error" in faults else network[:-1])


def backward(net: layers.Sequential, faults: tuple[str, ...], x: Array, target: Array) -> tuple[float, Any, Array]:
    """The loss, summed over the classes; its gradients; the outputs."""
    y = net.forward(x)
    measure = losses.mean_squared if "squared error" in faults else losses.binary_cross_entropy_with_logits
    loss, dy = measure(y, target)
    net.backward(CLASSES * dy)
    slowed = ("0.weight", "0.bias") if "rate twice" in faults else ()
    return CLASSES * loss, {name: RATE * g if name in slowed else g for name, g in net.gradients().items()}, y


def train(epochs: int, faults: tuple[str, ...]) -> dict[str, Any]:
    """Train on batches of 16; accuracy on others, and what the hidden units give for those."""
    (x, labels), (x_test, labels_test) = hands(960, seed=0), hands(240, seed=1)
    target, net, rng = np.eye(CLASSES, dtype=np.float32)[labels], build(faults), np.random.default_rng(2)
    optimizer, monitor = optim.SGD(net.parameters(), lr=RATE), health.Monitor(net, every=10)
    for _ in range(epochs):
        for batch in np.split(rng.permutation(len(x)), 60):
            loss, gradients, y = backward(net, faults, x[batch].astype(np.float32), target[batch])
            monitor.observe(loss, outputs=y, targets=target[batch], gradients=gradients)
            optimizer.step(gradients)
    accuracy = np.mean(net.forward(x_test.astype(np.float32)).argmax(axis=1) == labels_test)
    verdicts = [verdict.name for verdict in monitor.verdicts()]
    return {"accuracy": accuracy, "hidden": net.layers[1].activity()[""], "verdicts": verdicts}


def check(*faults: str) -> health.GradientCheck:
    """The gradients of a few pictures against finite differences."""
    net, (x, labels) = build(faults, "float64"), hands(4, seed=0)

    def fn(**parameters: Array) -> tuple[float, Any]:
        net.load_parameters(parameters)
        return backward(net, faults, x, np.eye(CLASSES)[labels])[:2]

    return health.check_gradients(fn, net.parameters(), most=32)


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """What each hidden unit gives for each picture."""
    figure = plots.new_figure(10.0, 4.2)
    for k, (name, run) in enumerate(found.items()):
        axes = figure.add_axes((0.02 + 0.14 * k, 0.1, 0.125, 0.72))
        axes.imshow(run["hidden"], aspect="auto", vmin=0, vmax=1, cmap=plots.COLOURS, interpolation="nearest")
        axes.set_title(f"{name}\n{100 * run['accuracy']:.0f} % right", color=plots.TEXT, fontsize=8)
        axes.set_axis_off()
    figure.text(0.02, 0.04, "across: 30 hidden units; down: 240 pictures by class; dark 0, bright 1", color=plots.DIM)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train with all faults, and with fewer and fewer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    found = {name: train(10 if args.small else 40, faults) for name, faults in RUNS.items()}
    for name, run in found.items():
        print(f"{name:24}  {100 * run['accuracy']:3.0f} % right  {', '.join(run['verdicts']) or 'nothing wrong'}")
    draw(args.out / "all_ones.png", found)
    print(faulty := check("no bias", "squared error", "rate twice"))
    return {**found, "cause": faulty.gradients["0.weight"].cause, "mended": check().ok}


if __name__ == "__main__":
    main()
