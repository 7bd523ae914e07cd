"""What stands between the last layer and a softmax: nothing should.

The questions. One network has ReLU on its last layer too, before softmax and cross entropy: its loss falls, its
accuracy does not follow. Another ends in ten sigmoid units and is trained with the loss of a softmax: accuracy at 10 %
(of which the greater part is its penalty of 1 on the weights: drowning_penalty.py).

The causes. After ReLU a class whose value is below 0 gives exactly 0 and gets no gradient: where it should be raised
it cannot be, and a class that is below 0 for every picture is lost. After a sigmoid all values lie in 0 to 1, so that
the softmax can give the right one of ten at most e / (e + 9) = 23 %: a loss below ln(1 + 9 / e) = 1.46 is out of reach,
and gradients pass a slope of at most 1/4.

The cure. A linear last layer. For sigmoid outputs, the loss that fits them: binary cross entropy with logits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array = Any
FLOOR = float(np.log(1 + 9 / np.e))
ENDS = ("relu", "sigmoid", "identity")


def train(end: str, seed: int, steps: int, rate: float = 0.3) -> tuple[list[float], float, health.Monitor]:
    """(loss of each step, accuracy on digits it never saw, monitor) of 64-32-10 with `end` before the softmax."""
    x, labels = load_digits(return_X_y=True)
    x, rng = (x / 16).astype(np.float32), np.random.default_rng(seed)
    net = layers.Sequential(
        [
            layers.Dense(64, 32, rng=rng), layers.Activation("relu"), layers.Dense(32, 10, rng=rng),
            *([] if end == "identity" else [layers.Activation(end)]),
        ]
    )  # fmt: skip
    optimizer, monitor, curve = optim.SGD(net.parameters(), rate), health.Monitor(net), []
    for _ in range(steps):
        batch = rng.integers(1297, size=50)
        outputs = net.forward(x[batch])
        loss, dy = losses.softmax_cross_entropy(outputs, labels[batch])
        net.backward(dy)
        monitor.observe(loss, outputs=outputs, targets=labels[batch])
        curve.append(loss)
        optimizer.step(net.gradients())
    return curve, float(np.mean(net.forward(x[1297:]).argmax(axis=1) == labels[1297:])), monitor


def draw(path: Path, curves: dict[str, Array], accuracies: dict[str, list[float]]) -> None:
    """The losses of the first seed, and where each seed ended."""
    figure = plots.new_figure(8.4, 4.0)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.subplots_adjust(left=0.08, right=0.97, bottom=0.13, top=0.89, wspace=0.2)
    for k, (end, colour) in enumerate(zip(ENDS, (plots.FORECAST, plots.TEXT, plots.INPUT), strict=True)):
        name = "linear" if end == "identity" else end
        left.plot(plots.smooth(np.array(curves[end]), 20), color=colour, linewidth=1.5, label=f"{name}, then softmax")
        right.plot(np.full(len(accuracies[end]), k), 100 * np.array(accuracies[end]), "o", color=colour, alpha=0.7)
    left.axhline(FLOOR, color=plots.DIM, linestyle="--", linewidth=1)
    left.text(len(curves["relu"]), FLOOR, f"{FLOOR:.2f}: sigmoid's floor", color=plots.DIM, ha="right", va="top")
    left.set_xlabel("training step", color=plots.DIM)
    left.set_title("Cross entropy", color=plots.TEXT, loc="left", fontsize=11)
    left.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    right.set_xticks(range(3), ["relu", "sigmoid", "linear"])
    right.set_xlim(-0.5, 2.5)
    right.set_title("Accuracy in %, one dot for each seed", color=plots.TEXT, loc="left", fontsize=11)
    for axes in (left, right):
        plots.night_axes(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train the same network with each end from several seeds, and ask the monitor."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    seeds, steps = (3, 300) if args.small else (10, 1000)
    curves, accuracies, verdicts = {}, {}, {}
    for end in ENDS:
        runs = [train(end, seed, steps) for seed in range(seeds)]
        curves[end], accuracies[end] = runs[0][0], [accuracy for _, accuracy, _ in runs]
        verdicts[end] = [monitor.verdicts() for _, _, monitor in runs]
        print(
            f"{end:8} loss {np.mean(curves[end][-50:]):.3f}, accuracy {np.mean(accuracies[end]):.3f} "
            f"({min(accuracies[end]):.3f} to {max(accuracies[end]):.3f})"
        )
        print(*(verdicts[end][0] or ["nothing wrong"]), sep="\n")
    draw(args.out / "last_layer.png", curves, accuracies)
    ends = {end: float(np.mean(curve[-50:])) for end, curve in curves.items()}
    return {"losses": ends, "accuracies": accuracies, "verdicts": verdicts, "floor": FLOOR}


if __name__ == "__main__":
    main()
