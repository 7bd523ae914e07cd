"""NaN, or values of 1e-100, in a network of logistic units; and a loss that never improves.

The question. A fully connected network with logistic units learns digits by minibatches. With some combinations of
layer size (1000), rate and batch there are NaN, or activations of 1e-100; without them the loss does not fall either.

The cause. All of these come from a large z = W a + b. (a) The logistic function as e^z / (1 + e^z) is inf / inf = NaN
from z = 710 on: pixels of 0 to 255 with weights N(0, 1) do that in the first layer of the first step. (b) 1e-100 is
the logistic function of z = -230; its slope is as small, and the unit learns no more. It is made by the step, which
moves z by rate x error x |a|^2, and of 1000 units between 0 and 1 that square is about 500: what is right for 10 units
ruins 1000. The rest of the script is right: an output delta of output - target is the gradient of cross entropy.

The cure. Pixels in 0 to 1, a logistic function without overflow (fusecell's), and a rate that fits the width; or ReLU
with weights by Glorot and Bengio's rule.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from fusecell import health, layers, losses, optim, plots


class NaiveLogistic(layers.Activation):
    """e^z / (1 + e^z), as one writes it down."""

    def __init__(self) -> None:
        super().__init__("sigmoid")
        self.look: Any = lambda array: None

    def forward(self, x: Any) -> Any:
        """NaN from x = 710 on."""
        with np.errstate(over="ignore", invalid="ignore"):
            y = (e := np.exp(x)) / (1 + e)
        self.look(e)
        self._saved, self._activity = (x, y), {"": y}
        return y


def train(activation: Any, width: int, rate: float, steps: int, top: int = 1, normal: bool = True) -> dict[str, Any]:
    """Train 64-width-width-10; its accuracy, losses, verdicts, and which unit first gave less than 1e-100, and when."""
    x, labels = load_digits(return_X_y=True)
    x, targets, rng = x * (top / 16), np.eye(10)[labels], np.random.default_rng(0)
    dense = [layers.Dense(*sizes, rng=rng, dtype="float64") for sizes in ((64, width), (width, width), (width, 10))]
    for layer in dense if normal else []:
        layer.parameters()["weight"][...] = rng.normal(size=layer.parameters()["weight"].shape)
    net = layers.Sequential([dense[0], activation(), dense[1], activation(), dense[2]])
    optimizer, monitor, curve, tiny = optim.SGD(net.parameters(), rate), health.Monitor(net), [], None
    for n, layer in enumerate(net.layers):
        layer.look = partial(monitor.look, f"e^z of layer {n}")
    for step in range(steps):
        batch = rng.integers(len(x), size=50)
        mean, dy = losses.binary_cross_entropy_with_logits(net.forward(x[batch]), targets[batch])
        net.backward(10 * dy)  # of the sum over the outputs
        monitor.observe(10 * mean)
        curve.append(10 * mean)
        smallest = {name: monitor.observations[-1].units[name].smallest for name in "13"}
        tiny = tiny or next(((f"layer {n}", step, v) for n, v in smallest.items() if v < 1e-100), None)
        if not np.isfinite(mean):
            break
        optimizer.step(net.gradients())
    with np.errstate(invalid="ignore"):
        accuracy = float(np.mean(net.forward(x).argmax(axis=1) == labels))
    return {"accuracy": accuracy, "losses": curve, "verdicts": monitor.verdicts(), "tiny": tiny}


def draw(path: Path, found: dict[tuple[int, float], float], widths: list[int], rates: list[float]) -> None:
    """Which rates train which widths."""
    figure = plots.new_figure(7.0, 4.4)
    axes = figure.add_axes((0.1, 0.13, 0.86, 0.76))
    plots.night_axes(axes)
    axes.grid(visible=False)
    accuracy = np.reshape(list(found.values()), (len(widths), len(rates)))
    axes.imshow(accuracy, cmap=plots.COLOURS, vmin=0, vmax=1, aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(accuracy):
        colour = plots.NIGHT if value > 0.6 else plots.TEXT
        axes.text(column, row, f"{100 * value:.0f} %", color=colour, ha="center", va="center")
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(widths)), [str(width) for width in widths])
    axes.set_xlabel("learning rate", color=plots.DIM)
    axes.set_ylabel("units in a layer", color=plots.DIM)
    axes.set_title("Logistic units, weights N(0, 1): accuracy", color=plots.TEXT, loc="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The network that gives NaN, the one that stalls, two that train; and all widths with all rates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    small = 200, 150, [10, 200], [0.3, 3.0, 15.0]
    full = 1000, 200, [10, 30, 100, 300, 1000], [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    width, steps, widths, rates = small if args.small else full
    runs = {
        "pixels to 255": train(NaiveLogistic, width, 0.3, steps, top=255),
        "large steps": train(NaiveLogistic, width, 3000 / width, steps),
        "smaller steps": train(lambda: layers.Activation("sigmoid"), width, 0.3, steps),
        "relu, Glorot": train(lambda: layers.Activation("relu"), width, 0.1, steps, normal=False),
    }
    for name, run in runs.items():
        print(f"{name}: loss {run['losses'][0]:.3g} -> {run['losses'][-1]:.3g}, accuracy {run['accuracy']:.3f}, below "
              f"1e-100: {run['tiny'] or 'never'}", *(run["verdicts"] or ["nothing wrong"]), sep="\n    ")  # fmt: skip
    cells = tqdm([(w, r) for w in widths for r in rates], leave=False, disable=None)
    found = {cell: train(NaiveLogistic, *cell, steps)["accuracy"] for cell in cells}
    draw(args.out / "wide_logistic_network.png", found, widths, rates)
    return {**runs, "map": found}


if __name__ == "__main__":
    main()
