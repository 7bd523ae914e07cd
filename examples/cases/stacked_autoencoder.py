"""Actual: 784 != 250. An autoencoder trained layer by layer, and what each next layer is fed.

The question. A stack of autoencoders is trained one after the other: the codes of each are the data of the next. Since
an update the argument train=False of `encode` is gone, and there is an error about sizes, 784 and 250.

The cause. The next layer has 250 inputs and got the images, of 784, not the codes: `Dense` says so. And without
evaluation mode dropout stays on: codes differ from call to call by a third of their spread and more. Measured, that
costs no quality, since noise does an autoencoder no harm, but nothing repeats.

The cure. `encoder.eval()`, then codes = encoder.forward(codes), layer after layer; then train all layers together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fusecell import health, layers, losses, optim, plots

Array = Any
SIZES = ((784, 250), (250, 100), (100, 30))


class Dropout(layers.Layer):
    """Zeros by chance, the rest scaled up; in evaluation mode x itself."""

    def __init__(self, rate: float, rng: np.random.Generator) -> None:
        super().__init__()
        self._rate, self._rng, self._mask = rate, rng, np.ones(())

    def forward(self, x: Array) -> Array:
        """x of any shape."""
        kept = (self._rng.random(x.shape) >= self._rate) / (1 - self._rate) if self.training else np.ones(())
        self._mask = kept.astype(x.dtype)
        return x * self._mask

    def backward(self, dy: Array) -> Array:
        """dx, with the same zeros."""
        return dy * self._mask


def images() -> tuple[Array, Array]:
    """Digits of 28x28 [N, 784], to train on and held out: those of 8x8, each pixel 4x4, less a margin."""
    small = load_digits().images[np.random.default_rng(0).permutation(1797)] / 16
    x = np.kron(small, np.ones((4, 4)))[:, 2:-2, 2:-2].reshape(-1, 784).astype(np.float32)
    return x[:1280], x[1280:]


def train(net: layers.Sequential, x: Array, epochs: int, rng: np.random.Generator) -> list[str]:
    """Learn to give x for x; what the monitor says."""
    optimizer, monitor = optim.Adam(net.train().parameters(), lr=3e-3), health.Monitor(net, every=5)
    for _ in range(epochs):
        for batch in np.split(rng.permutation(len(x)), 20):
            y = net.forward(x[batch])
            loss, dy = losses.mean_squared(y, x[batch])
            net.backward(dy)
            monitor.observe(loss, outputs=y, targets=x[batch])
            optimizer.step(net.gradients())
    net.eval()
    return [verdict.name for verdict in monitor.verdicts()]


def stack(x: Array, epochs: int, mode: str) -> tuple[layers.Sequential, dict[str, Any]]:
    """All layers, one after the other, codes made in "eval" or "train" mode; by how much two calls differ."""
    rng, codes = np.random.default_rng(1), x
    encoders, decoders, verdicts, differ = [], [], [], []
    for inputs, outputs in SIZES:
        dense, decoder = layers.Dense(inputs, outputs, rng=rng), layers.Dense(outputs, inputs, rng=rng)
        encoder = layers.Sequential([Dropout(0.3, rng), dense, layers.Activation("sigmoid")])
        verdicts += train(layers.Sequential([encoder, decoder]), codes, epochs, rng)
        getattr(encoder, mode)()
        again, codes = encoder.forward(codes), encoder.forward(codes)
        differ.append(float(np.linalg.norm(codes - again) / np.linalg.norm(codes - codes.mean(axis=0))))
        encoders, decoders = [*encoders, encoder], [decoder, *decoders]
    return layers.Sequential([*encoders, *decoders]).eval(), {"differ": differ, "verdicts": verdicts}


def draw(path: Path, rows: dict[str, Array]) -> None:
    """Fourteen images of each kind in a row."""
    figure = plots.new_figure(9.6, 0.72 * len(rows) + 0.1)
    for k, (name, pictures) in enumerate(rows.items()):
        axes = figure.add_axes((0.2, 1 - (k + 0.97) / len(rows), 0.79, 0.9 / len(rows)))
        strip = np.hstack(list(pictures[:14].reshape(14, 28, 28)))
        axes.imshow(strip, vmin=0, vmax=1, cmap=plots.COLOURS, aspect="auto")
        axes.set_axis_off()
        figure.text(0.19, 1 - (k + 0.5) / len(rows), name, color=plots.TEXT, fontsize=9, ha="right", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The error about sizes; the stack from codes of both modes; all layers together at the end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    epochs, (x, held_out) = 4 if args.small else 40, images()
    found, rows, rng = {}, {"held out": held_out}, np.random.default_rng(2)
    runs = {"codes in training mode": ("train", 1, 0), "codes in eval mode": ("eval", 1, 0)}
    runs |= {"... then all together": ("eval", 1, 1), "all from random weights": ("eval", 0, 1)}
    for name, (mode, alone, together) in runs.items():
        net, found[name] = stack(x, alone * epochs, mode)
        found[name]["verdicts"] += train(net, x, together * epochs, rng)
        rows[name] = net.forward(held_out)
        found[name]["unexplained"] = np.mean((rows[name] - held_out) ** 2) / held_out.var(axis=0).mean()
        print(f"{name:24} {found[name]['unexplained']:.1%} of the variance unexplained;", found[name])
    try:
        net.layers[1].forward(x)
    except ValueError as error:
        print(found.setdefault("error", str(error)))
    draw(args.out / "stacked_autoencoder.png", rows)
    return found


if __name__ == "__main__":
    main()
