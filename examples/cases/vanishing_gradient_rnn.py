"""Vanishing and exploding gradients in a plain RNN: when are they certain, and which of them was it?

The question. One RNN (3 inputs, 2 sigmoid units, 1 linear output) makes 500 sequences; another learns their last
outputs by SGD, but not at length 100 where the first one's recurrent matrix has a large singular value: the exploding
gradient, says the blog that tried it (after Pascanu, Mikolov and Bengio 2013). Is it?

The cause. It is not: the learner's gradient shrinks 1e130-fold over 100 steps. The teacher's weight of 9.3 is a latch.
Its unit ends at 1 in all but 3 sequences, which are 63 % of the cost; why, their early steps would tell. A sigmoid's
slope is at most 1/4, so |dL/dh_t| <= (s / 4)^(T-t) |dL/dh_T| with s, the largest singular value: vanishing is certain
below s = 4, not 0.25 as the blog has it. Above 4 growth is possible and no more: the teacher's own gradient vanishes.

The cure. To begin where nothing is certain: with 4 on the diagonal, and biases of -2 for the steepest slope (cost at
length 100: 3.54e-3, 1.10e-3). Where the past does not matter (s = 0.1) vanishing does no harm: no verdict.

Mean cost at epochs 500 and 1500, the blog's in brackets. It does not give s: 10 is in its code, 0.1 was found to fit.
    length   2: small 1.22e-5, 3.17e-9 (1.20e-5, 3.21e-9)    large 1.45e-3, 2.39e-5 (1.44e-3, 2.39e-5)
    length  10: small 1.48e-5, 5.14e-9 (1.44e-5, 5.11e-9)    large 3.58e-3, 3.52e-3 (3.58e-3, 3.52e-3)
    length 100: small 1.39e-5, 2.78e-9 (1.35e-5, 2.70e-9)    large 4.55e-3, 4.51e-3 (4.50e-3, 4.50e-3)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusecell import health, layers, losses, ops, plots

RUNS = {"small": (0.1, 0.0), "large": (10.0, 0.0), "large, cured": (10.0, 4.0)}  # (teacher's s, learner's diagonal)


def teach(largest: float, length: int) -> dict[str, Any]:
    """x [T, 500, 3] and targets [500, 1] with the blog's seed and order of draws; the norms of the own dy/dh_t, [T]."""
    rng = np.random.RandomState(19910715)
    u, s, v = np.linalg.svd(rng.randn(2, 2))
    weight_hh, bias, weight_ih = u @ np.diag([largest, s[1]]) @ v, rng.randn(2), rng.randn(2, 3)
    readout, shift = rng.randn(1, 2), rng.randn(1)
    x = np.ascontiguousarray(rng.randn(500, length, 3).swapaxes(0, 1))
    _, h, saved = ops.rnn_forward(x, weight_ih, weight_hh, bias, activation="sigmoid")
    sums = ops.rnn_backward(saved, None, np.repeat(readout, 500, axis=0), statistics=True)["statistics"]
    return {"x": x, "target": h @ readout.T + shift, "weight_hh": weight_hh, "norms": np.sqrt(sums[:, 1])}


def learner(diagonal: float) -> layers.Sequential:
    """The RNN that learns, with the blog's seed and order of draws; its arrays are [in, out]."""
    drawn, rng, dtype = np.random.RandomState(1234), np.random.default_rng(0), "float64"
    rnn = layers.SimpleRNN(3, 2, activation="sigmoid", return_sequences=False, rng=rng, dtype=dtype)
    net = layers.Sequential([rnn, layers.Dense(2, 1, rng=rng, dtype=dtype)])
    for name, size in (("0.weight_ih_l0", (3, 2)), ("0.weight_hh_l0", (2, 2)), ("1.weight", (2, 1))):
        net.parameters()[name][...] = drawn.normal(scale=0.01, size=size).T
    rnn.parameters()["weight_hh_l0"][...] += diagonal * np.eye(2)
    rnn.parameters()["bias_l0"][...] = -diagonal / 2
    return net


def train(name: str, length: int, epochs: tuple[int, int], rate: float) -> dict[str, Any]:
    """The mean cost of each epoch, the doctor's view from the first of `epochs` to the last, |dL/dh_t| at the end."""
    taught, net, costs = teach(RUNS[name][0], length), learner(RUNS[name][1]), []
    x, target, monitor = taught["x"], taught["target"], health.Monitor(net)
    live = weight_ih, weight_hh, bias, readout, shift = list(net.parameters().values())
    velocity = [np.zeros_like(p) for p in live]
    for epoch in tqdm(range(epochs[1]), desc=f"{name}, length {length}", leave=False, disable=None):
        costs.append(0.0)
        for k in range(500):  # by ops: 0.1 ms a sequence; layers, loss and optimiser take 0.5
            _, h, saved = ops.rnn_forward(x[:, k : k + 1], weight_ih, weight_hh, bias, activation="sigmoid")
            error = h[0] @ readout[0] + shift[0] - target[k, 0]
            back = ops.rnn_backward(saved, None, 2 * error * readout, needs=("weight_ih", "weight_hh", "bias"))
            for p, v, g in zip(live, velocity, (*back.values(), 2 * error * h, 2 * error), strict=True):
                v[...] = (0.9 if epoch > 5 else 0.5) * v - rate * g
                p += v
            costs[-1] += error**2 / 500
        if epoch >= epochs[0]:
            loss, dy = losses.mean_squared(net.forward(x), target)
            net.backward(dy)
            monitor.observe(loss)
    norms = monitor.observations[-1].steps["0.l0"].dh
    return {"costs": costs, "verdicts": monitor.verdicts(), "norms": norms, "weight_hh": weight_hh}


def draw(path: Path, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    """The costs, and how the gradient goes back through time, with the bounds."""
    figure = plots.new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.075, "right": 0.975, "bottom": 0.08, "top": 0.9})
    colours = dict(zip((*RUNS, "the teacher"), (plots.INPUT, plots.FORECAST, "#ff6b6b", plots.TRUTH), strict=True))
    for (name, length), run in runs.items():
        s, t, line = np.linalg.norm(run["weight_hh"], 2), np.arange(1, 101), {2: ":", 10: "--", 100: "-"}[length]
        if "costs" in run:
            left.semilogy(run["costs"], color=colours[name], linestyle=line, label=f"{name}, length {length}")
        if length == 100:
            right.semilogy(t, run["norms"] / run["norms"][-1], color=colours[name], label=f"{name}: s = {s:.2f}")
            right.semilogy(t, (s / 4) ** (100 - t), color=colours[name], linestyle=":", linewidth=1, nonpositive="mask")
    titles = "Mean cost over the epochs", "|dL/dh_t| over t; dotted: (s/4)^(T-t), its bound"
    for axes, title in zip((left, right), titles, strict=True):
        plots.night_axes(axes)
        axes.set_title(title, color=plots.TEXT, loc="left", fontsize=11)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Learn from both teachers at each length; the doctor watches from the first epoch of the table to the second."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds: fewer epochs of larger steps")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    lengths, epochs, rate = ((2, 100), (25, 50), 0.02) if args.small else ((2, 10, 100), (500, 1500), 0.001)
    runs: dict[tuple[str, int], Any] = {("the teacher", 100): teach(RUNS["large"][0], 100)}
    for name, length in [*((n, length) for n in ("small", "large") for length in lengths), ("large, cured", 100)]:
        run = runs[name, length] = train(name, length, epochs, rate)
        print(f"{name}, length {length}: cost", *(f"{run['costs'][e - 1]:.3g}" for e in epochs), *run["verdicts"])
    draw(args.out / "vanishing_gradient_rnn.png", runs)
    return runs


if __name__ == "__main__":
    main()
