"""Ten per cent right on digits: the course's network, rebuilt with an L2 penalty of 1.

The question. An exercise has a network of 25 hidden sigmoid units for handwritten digits, regularised with lambda = 1.
Rebuilt in a framework, with L2 of strength 1 on both matrices, cross entropy on ten sigmoid outputs and plain gradient
descent on all examples at once, it stays at the accuracy of guessing.

The cause. The exercise divides its penalty by two times the number of examples, the framework does not: the same 1 is
thousands of times as strong. At first the penalty is twenty times the cross entropy, and it wins: the weights shrink to
nothing. Behind it a second fault waits: with a rate of 0.01 a hundred epochs of one step each move little.
Sigmoids under a cross entropy that divides them by their sum, a softmax of their logarithms, do no harm here.

The cure. strength = lambda / (2 N) and a rate of 1, each measured; a linear last layer under softmax is simpler, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, layers, losses, optim, plots

Array = Any
EXAMPLES = 1300
WEAK = 1 / (2 * EXAMPLES)  # the exercise's lambda of 1
RUNS: dict[str, dict[str, Any]] = {
    "as asked: L2 of 1, rate 0.01": {"strength": 1.0, "rate": 0.01, "softmax": False},
    "L2 of 1, rate 0.1": {"strength": 1.0, "rate": 0.1, "softmax": False},
    "L2 of 1 / 2N, rate 0.01": {"strength": WEAK, "rate": 0.01, "softmax": False},
    "L2 of 1 / 2N, rate 1": {"strength": WEAK, "rate": 1.0, "softmax": False},
    "L2 of 1 / 2N, rate 1, softmax": {"strength": WEAK, "rate": 1.0, "softmax": True},
}


def digits() -> tuple[Array, Array, Array, Array]:
    """Images [N, 64] in 0 to 1 and classes [N], to train on and held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    x, labels = (found.data[order] / 16).astype(np.float32), found.target[order]
    return x[:EXAMPLES], labels[:EXAMPLES], x[EXAMPLES:], labels[EXAMPLES:]


def cross_entropy_of_shares(y: Array, labels: Array) -> tuple[float, Array]:
    """Mean of -log(y[label] / sum of y): what a framework makes of outputs that do not add up to 1."""
    total, rows = y.sum(axis=1, keepdims=True), np.arange(len(y))
    dy = np.repeat(1 / total, y.shape[1], axis=1)
    dy[rows, labels] -= 1 / y[rows, labels]
    return float(np.mean(np.log(total[:, 0] / y[rows, labels]))), (dy / len(y)).astype(y.dtype)


def train(epochs: int, strength: float, rate: float, softmax: bool) -> dict[str, Any]:
    """Gradient descent on all examples at once; the loss in its two parts, and accuracies."""
    rng, (x, labels, x_test, labels_test) = np.random.default_rng(0), digits()
    network = [layers.Dense(64, 25, rng=rng), layers.Activation("sigmoid"), layers.Dense(25, 10, rng=rng)]
    net = layers.Sequential(network if softmax else [*network, layers.Activation("sigmoid")])
    optimizer, monitor, history = optim.SGD(net.parameters(), lr=rate), health.Monitor(net), []
    loss_of = losses.softmax_cross_entropy if softmax else cross_entropy_of_shares
    for _ in range(epochs):
        y = net.forward(x)
        entropy, dy = loss_of(y, labels)
        net.backward(dy)
        penalty, dpenalty = losses.l2_penalty(net.parameters(), strength)
        gradients = losses.add_gradients(net.gradients(), dpenalty)
        monitor.observe(
            entropy + penalty, outputs=y if softmax else np.log(y), targets=labels, penalty=penalty, gradients=gradients
        )
        optimizer.step(gradients)
        history.append((entropy, penalty))
    accuracy = float(np.mean(net.forward(x_test).argmax(axis=1) == labels_test))
    return {"accuracy": accuracy, "history": np.array(history), "weight": net.parameters()["0.weight"],
            "verdicts": [v.name for v in monitor.verdicts()], "report": monitor.report()}  # fmt: skip


def draw(path: Path, asked: dict[str, Any], cured: dict[str, Any]) -> None:
    """What the hidden units look for, on one scale of colours, and the two parts of the loss."""
    from matplotlib.colors import LinearSegmentedColormap

    figure = plots.new_figure(9.0, 6.0)
    colours = LinearSegmentedColormap.from_list("weights", [plots.INPUT, plots.NIGHT, plots.FORECAST])
    colours = colours.with_extremes(bad=plots.DIM + "4d")
    limit = float(np.abs(cured["weight"]).max()) / 2
    for k, (title, run) in enumerate({"L2 of 1": asked, "L2 of 1 / 2N": cured}.items()):
        units = figure.add_axes((0.03, 0.52 - 0.48 * k, 0.3, 0.43))
        tiles = np.pad(run["weight"].reshape(5, 5, 8, 8), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        units.imshow(tiles.transpose(0, 2, 1, 3).reshape(45, 45), cmap=colours, vmin=-limit, vmax=limit)
        units.set_title(f"weights of 25 units: {title}", color=plots.TEXT, fontsize=10)
        units.set_axis_off()
        parts = figure.add_axes((0.43, 0.56 - 0.46 * k, 0.55, 0.36))
        plots.night_axes(parts)
        entropy, penalty = run["history"].T
        parts.semilogy(penalty, color=plots.FORECAST, label="penalty")
        parts.semilogy(entropy, color=plots.INPUT, label="cross entropy")
        parts.set_title(f"{100 * run['accuracy']:.0f} % right", color=plots.TEXT, fontsize=10)
        parts.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    parts.set_xlabel("epoch", color=plots.DIM)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train as asked, and with one thing changed after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    found = {name: train(100 if args.small else 1000, **how) for name, how in RUNS.items()}
    for name, run in found.items():
        entropy, verdicts = run["history"][[0, -1], 0], ", ".join(run["verdicts"])
        print(f"{name:30}  {100 * run['accuracy']:3.0f} % right, cross entropy {entropy.round(3)}  {verdicts}")
    print(found["as asked: L2 of 1, rate 0.01"]["report"])
    draw(args.out / "drowning_penalty.png", *list(found.values())[:: len(found) - 1])
    return found


if __name__ == "__main__":
    main()
