"""Everything is fine for eight epochs, then a network of ReLUs collapses to guessing.

The question. A library written by hand trains digits well with sigmoid units. With ReLU, on 500 examples, the score
rises for about eight epochs and falls to that of a dummy, 0.1; ReLU's forward and backward pass are right. Is it
numerically unstable?

The cause. It is not: every number is finite. The steps are so large that now and then one throws a unit so far that it
gives 0 for every example. Its gradient is 0 from then on: it is dead, and no later step brings it back. Units die one
after another while the rest still learn, until a whole layer is dead and the network says the same for every picture.
Tanh units saturate by the same steps, but their gradient is small rather than 0, and they come back.

The cure. A smaller learning rate, first of all. Leaky ReLU alone, whose units cannot die, survives the large one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array = Any
RUNS = {
    "relu": ("relu", 0.12), "relu, a tenth of the rate": ("relu", 0.012), "leaky relu": ("leaky_relu", 0.12),
    "tanh": ("tanh", 0.12),
}  # fmt: skip


def train(activation: str, rate: float, epochs: int, seed: int = 1) -> tuple[list[float], health.Monitor]:
    """(accuracy after each epoch, monitor) of 64-50-50-50-10 by SGD with momentum 0.9."""
    x, labels = load_digits(return_X_y=True)
    x, labels, rng = (x[:500] / 16).astype(np.float32), labels[:500], np.random.default_rng(seed)
    parts: list[layers.Layer] = []
    for inputs in (64, 50, 50):
        parts += [layers.Dense(inputs, 50, rng=rng), layers.Activation(activation)]
    net = layers.Sequential([*parts, layers.Dense(50, 10, rng=rng)])
    optimizer, monitor, accuracy = optim.SGD(net.parameters(), rate, momentum=0.9), health.Monitor(net), []
    for _ in range(epochs):
        for batch in rng.permutation(500).reshape(25, 20):
            outputs = net.forward(x[batch])
            loss, dy = losses.softmax_cross_entropy(outputs, labels[batch])
            net.backward(dy)
            monitor.observe(loss, outputs=outputs, targets=labels[batch])
            optimizer.step(net.gradients())
        accuracy.append(float(np.mean(net.forward(x).argmax(axis=1) == labels)))
    return accuracy, monitor


def dead_units(monitor: health.Monitor) -> dict[str, Array]:
    """The share of each hidden layer's units that are 0 for the whole minibatch, at every step."""
    return {f"layer {k // 2 + 1}": np.array([o.units[str(k)].dead for o in monitor.observations]) for k in (1, 3, 5)}


def draw(path: Path, accuracies: dict[str, list[float]], dead: dict[str, Array]) -> None:
    """The collapse, and the units that died on the way there."""
    figure = plots.new_figure(7.6, 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.97, bottom=0.1, top=0.93, hspace=0.25)
    colours = (plots.FORECAST, plots.INPUT, plots.TEXT, plots.DIM)
    for (name, accuracy), colour in zip(accuracies.items(), colours, strict=True):
        top.plot(np.arange(1, len(accuracy) + 1), 100 * np.array(accuracy), color=colour, label=name)
    top.set_title("Accuracy in %", color=plots.TEXT, loc="left", fontsize=11)
    for (name, share), line in zip(dead.items(), (":", "--", "-"), strict=True):
        shown = 100 * plots.smooth(share, 25)
        bottom.plot(np.arange(len(shown)) / 25, shown, color=plots.FORECAST, linestyle=line, label=f"relu, {name}")
    bottom.set_title("Units that are 0 for a whole minibatch, in %", color=plots.TEXT, loc="left", fontsize=11)
    bottom.set_xlabel("epoch", color=plots.DIM)
    for axes in (top, bottom):
        plots.night_axes(axes)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train the network that collapses and the two that do not, and ask the monitor."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    accuracies, verdicts, dead = {}, {}, {}
    for name, (activation, rate) in RUNS.items():
        accuracies[name], monitor = train(activation, rate, 25 if args.small else 50)
        verdicts[name], dead[name] = monitor.verdicts(), dead_units(monitor)
        print(f"{name}: best {max(accuracies[name]):.2f}, after epoch 8 {accuracies[name][7]:.2f}, at the end "
              f"{accuracies[name][-1]:.2f}", *(verdicts[name] or ["nothing wrong"]), sep="\n    ")  # fmt: skip
    draw(args.out / "relu_collapse.png", accuracies, dead["relu"])
    ends = {name: {layer: float(np.mean(s[-25:])) for layer, s in of.items()} for name, of in dead.items()}
    return {"accuracies": accuracies, "verdicts": verdicts, "dead": ends}


if __name__ == "__main__":
    main()
