"""All zeros: the gradients of a step, saved for later, once the loop has cleared them.

The question. A training loop sums gradients over a few small batches, updates, sets the sums to zero, and then collects
all of them into one vector for later use. That vector is zero, in every step.

The cause. Clearing writes zeros into the very arrays that are read afterwards. Keeping them before it does not help if
what is kept is the arrays and not copies: those are cleared with them. The monitor, given what the loop collects, says
that no parameter gets a gradient, although the loss falls.

The cure. Copy before clearing. fusecell's layers have nothing to clear: every backward makes new arrays, so that those
of `gradients()` stay as they were. One thing writes into them, an optimiser with `clip_value`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array, Arrays = Any, dict[str, Any]
DIGITS = load_digits()
WAYS = ("read after clearing", "kept before, not copied", "copied before")


def network() -> layers.Sequential:
    """64-32-10 for digits."""
    rng = np.random.default_rng(0)
    return layers.Sequential([layers.Dense(64, 32, rng=rng), layers.Activation("tanh"), layers.Dense(32, 10, rng=rng)])


def backward(net: layers.Sequential, rng: np.random.Generator) -> float:
    """The loss of 16 digits; the gradients are in the layers."""
    batch = rng.integers(0, len(DIGITS.target), 16)
    y = net.forward((DIGITS.data[batch] / 16).astype(np.float32))
    loss, dy = losses.softmax_cross_entropy(y, DIGITS.target[batch])
    net.backward(dy)
    return loss


def train(steps: int, way: str) -> dict[str, Any]:
    """A loop that sums over four batches and clears; the vector that it collects in each step, [steps, elements]."""
    net, rng = network(), np.random.default_rng(1)
    sums = {name: np.zeros_like(array) for name, array in net.parameters().items()}
    optimizer, monitor = optim.SGD(net.parameters(), lr=0.5), health.Monitor()
    collected, history = [], []
    for _ in range(steps):
        loss = 0.0
        for _ in range(4):
            loss += backward(net, rng) / 4
            for name, gradient in net.gradients().items():
                sums[name] += gradient / 4
        kept = {name: array.copy() if way == "copied before" else array for name, array in sums.items()}
        optimizer.step(sums)
        for array in sums.values():
            array[...] = 0
        if way == "read after clearing":
            kept = dict(sums)
        monitor.observe(loss, parameters=net.parameters(), gradients=kept)
        collected.append(np.concatenate([array.ravel() for array in kept.values()]))
        history.append(loss)
    return {"vectors": np.array(collected), "losses": history, "verdicts": [v.name for v in monitor.verdicts()]}


def stays(next_step: str) -> bool:
    """Whether what `gradients()` gave is the same after another backward, or an update."""
    net, rng = network(), np.random.default_rng(1)
    backward(net, rng)
    kept = net.gradients()
    copies = {name: array.copy() for name, array in kept.items()}
    if next_step == "backward":
        backward(net, rng)
    else:
        optim.SGD(net.parameters(), lr=0.5, **{next_step: 1e-3}).step(kept)
    return all(np.array_equal(kept[name], copies[name]) for name in kept)


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """The vectors of every way; of the copies, how the directions of any two steps agree."""
    figure = plots.new_figure(10.4, 3.4)
    for k, (way, run) in enumerate(found.items()):
        axes = figure.add_axes((0.02 + 0.235 * k, 0.1, 0.215, 0.74))
        axes.imshow(np.abs(run["vectors"][:, ::29]), aspect="auto", vmin=0, vmax=0.02, cmap=plots.COLOURS)
        axes.set_title(way, color=plots.TEXT, fontsize=10)
    axes = figure.add_axes((0.735, 0.1, 0.245, 0.74))
    unit = run["vectors"] / np.linalg.norm(run["vectors"], axis=1, keepdims=True)
    axes.imshow(unit @ unit.T, vmin=-0.2, vmax=1, cmap=plots.COLOURS)
    axes.set_title("cosine between the copies of two steps", color=plots.TEXT, fontsize=10)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.text(0.02, 0.03, "down: steps; across: some elements of the collected vector", color=plots.DIM, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Collect in three ways; see what of ours stays."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    found = {way: train(40 if args.small else 400, way) for way in WAYS}
    for way, run in found.items():
        largest, falls = np.abs(run["vectors"]).max(), f"{run['losses'][0]:.2f} -> {run['losses'][-1]:.2f}"
        print(f"{way:24} largest {largest:.2g}, loss {falls}  {', '.join(run['verdicts']) or 'nothing wrong'}")
    ours = {after: stays(after) for after in ("backward", "clip_norm", "clip_value")}
    print(f"what gradients() gave stays as it was after: {ours}")
    draw(args.out / "saved_gradients.png", found)
    return {**found, "stays": ours}


if __name__ == "__main__":
    main()
