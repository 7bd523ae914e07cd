"""XOR by hand does not train: what is the update of a weight that belongs to a bias?

The question. A small network of sigmoid units shall learn XOR, with 0.9 for true and 0.1 for false, one pattern at a
time. A weight between two units changes by rate * output * error signal. A bias has one unit alone, so its weight
was changed by rate * output, and nothing is learnt.

The cause. That update leaves the error signal out: it is positive whatever the error is, so that every bias grows
until the units are full on. `health.check_gradients` finds both bias gradients wrong and both others right; the
monitor sees units that saturate.

The cure. A bias is a weight from a unit that always gives 1: its gradient is 1 * error signal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, ops, plots

Array, Arrays = Any, dict[str, Any]
X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGET = np.array([[0.1], [0.9], [0.9], [0.1]])


def outputs(p: Arrays, x: Array) -> tuple[Array, Array]:
    """The hidden units' and the network's: x [N, 2] -> [N, 3], [N, 1]."""
    hidden = ops.activation_forward("sigmoid", x @ p["w1"].T + p["b1"])
    return hidden, ops.activation_forward("sigmoid", hidden @ p["w2"].T + p["b2"])


def backward(p: Arrays, x: Array, target: Array, with_error: bool) -> tuple[float, Arrays]:
    """The loss, half of the squared error, and its gradients; with_error: whether a bias's has the error signal."""
    hidden, y = outputs(p, x)
    error_2 = (y - target) * y * (1 - y)
    error_1 = error_2 @ p["w2"] * hidden * (1 - hidden)
    gradients = {"w1": error_1.T @ x, "w2": error_2.T @ hidden, "b1": error_1.sum(axis=0), "b2": error_2.sum(axis=0)}
    if not with_error:  # what the loop over the layer before left behind: the output of its last unit
        gradients.update(b1=-np.full(3, x[:, -1].sum()), b2=-np.full(1, hidden[:, -1].sum()))
    return float(np.sum((y - target) ** 2)) / 2, gradients


def start() -> Arrays:
    """Weights of three hidden units and one output."""
    rng = np.random.default_rng(0)
    return {"w1": rng.normal(size=(3, 2)), "b1": np.zeros(3), "w2": rng.normal(size=(1, 3)), "b2": np.zeros(1)}


def check(with_error: bool) -> health.GradientCheck:
    """Every gradient against finite differences."""
    return health.check_gradients(lambda **p: backward(p, X, TARGET, with_error), start())


def train(epochs: int, with_error: bool, rate: float = 0.5) -> tuple[Arrays, list[float], health.Monitor]:
    """One pattern at a time; the loss and what the monitor reads are of all four after each epoch."""
    p, losses, monitor = start(), [], health.Monitor(every=max(1, epochs // 200))
    for _ in range(epochs):
        loss, gradients = backward(p, X, TARGET, with_error)
        losses.append(loss)
        hidden, y = outputs(p, X)
        monitor.observe(loss, outputs=y, targets=TARGET, parameters=p, gradients=gradients, units={"hidden": hidden},
                        bounds={"hidden": (0, 1)})  # fmt: skip
        for n in range(4):
            _, gradients = backward(p, X[n : n + 1], TARGET[n : n + 1], with_error)
            for name in p:
                p[name] -= rate * gradients[name]
    return p, losses, monitor


def draw(path: Path, runs: dict[str, tuple[Arrays, list[float]]]) -> None:
    """What each network gives over the square of inputs, and both losses."""
    figure = plots.new_figure(9.0, 3.2)
    side = np.linspace(-0.25, 1.25, 121)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    curves = figure.add_axes((0.62, 0.17, 0.36, 0.67))
    plots.night_axes(curves)
    for k, (title, (p, losses)) in enumerate(runs.items()):
        curves.semilogy(losses, color=(plots.FORECAST, plots.INPUT)[k], label=title)
        surface = figure.add_axes((0.04 + 0.25 * k, 0.12, 0.23, 0.72))
        surface.imshow(outputs(p, square)[1].reshape(121, 121), origin="lower", extent=(-0.25, 1.25, -0.25, 1.25),
                       vmin=0, vmax=1, cmap=plots.COLOURS)  # fmt: skip
        surface.scatter(*X.T, c=TARGET[:, 0], vmin=0, vmax=1, cmap=plots.COLOURS, edgecolors=plots.TEXT, s=70)
        surface.set_title(title, color=plots.TEXT, fontsize=10)
        surface.set_axis_off()
    curves.set_xlabel("epoch", color=plots.DIM)
    curves.set_title("loss", color=plots.TEXT, fontsize=10)
    curves.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Check and train both versions; draw what they learnt."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    epochs = 3000 if args.small else 20000
    figures: dict[str, Any] = {}
    runs: dict[str, tuple[Arrays, list[float]]] = {}
    for name, title in (("faulty", "bias without the error signal"), ("cured", "with it")):
        found = check(name == "cured")
        p, losses, monitor = train(epochs, name == "cured")
        print(f"{title}\n{found}\nloss {losses[0]:.3f} -> {losses[-1]:.2g}, outputs {outputs(p, X)[1][:, 0].round(2)}")
        print(monitor.report(), end="\n\n")
        wrong = [n for n, gradient in found.gradients.items() if not gradient.right]
        figures[name] = {"wrong": wrong, "loss": losses[-1], "verdicts": [v.name for v in monitor.verdicts()]}
        runs[title] = p, losses
    draw(args.out / "xor_biases.png", runs)
    return figures


if __name__ == "__main__":
    main()
