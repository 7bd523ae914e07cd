"""Vanishing and exploding gradients in a plain RNN: when are they certain, and which of them was it?

The question. An RNN (3 inputs, 2 sigmoid units, 1 linear output) makes 500 sequences; a second one learns their last
outputs by SGD. Where the first one's recurrent matrix has a large singular value, the second does not learn length 100:
the exploding gradient, says the blog that tried it (after Pascanu, Mikolov and Bengio 2013). Is it?

The cause. It is not. The learner's gradient shrinks 1e130-fold over 100 steps; the teacher's own never grows twofold.
A recurrent weight of 9.3 is a latch: its unit stays at 1, but for the few sequences that do not set it. To learn when,
one needs the early steps, from which no gradient comes. A sigmoid's slope is at most 1/4, so |dL/dh_t| is at most
(s / 4)^(T-t) |dL/dh_T|, s the largest singular value: vanishing is certain below s = 4, not 0.25 as the blog has it.
Above 4 growth is possible and no more than that, as the teacher with s = 10 shows.

The cure where the past matters: a loss at more steps, or cells with gates. Where it does not, as with s = 0.1, the
gradient vanishes as well and does no harm: the doctor speaks only where the loss does not fall.

Mean cost, the blog's in brackets. It does not give s: 10 is in its code, 0.1 was found to fit.

    epoch         length 2             length 10            length 100
@@TABLE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fusecell import health, layers, losses, ops, plots

Array = Any
LARGEST = {"small": 0.1, "large": 10.0}


def teach(largest: float, length: int) -> dict[str, Array]:
    """x [T, 500, 3] and targets [500, 1] with the blog's seed and order of draws; the norms of the own dy/dh_t, [T]."""
    rng = np.random.RandomState(19910715)
    u, s, v = np.linalg.svd(rng.randn(2, 2))
    weight_hh, bias, weight_ih = u @ np.diag([largest, s[1]]) @ v, rng.randn(2), rng.randn(2, 3)
    readout, shift = rng.randn(1, 2), rng.randn(1)
    x = np.ascontiguousarray(rng.randn(500, length, 3).swapaxes(0, 1))
    _, h, saved = ops.rnn_forward(x, weight_ih, weight_hh, bias, activation="sigmoid")
    sums = ops.rnn_backward(saved, None, np.repeat(readout, 500, axis=0), statistics=True)["statistics"]
    return {"x": x, "target": h @ readout.T + shift, "weight_hh": weight_hh, "norms": np.sqrt(sums[:, 1])}


def learner() -> layers.Sequential:
    """The RNN that learns, with the blog's seed and order of draws; its arrays are [in, out]."""
    drawn, rng, dtype = np.random.RandomState(1234), np.random.default_rng(0), "float64"
    rnn = layers.SimpleRNN(3, 2, activation="sigmoid", return_sequences=False, rng=rng, dtype=dtype)
    net = layers.Sequential([rnn, layers.Dense(2, 1, rng=rng, dtype=dtype)])
    for name, size in (("0.weight_ih_l0", (3, 2)), ("0.weight_hh_l0", (2, 2)), ("1.weight", (2, 1))):
        net.parameters()[name][...] = drawn.normal(scale=0.01, size=size).T
    return net


def epoch(live: list[Array], velocity: list[Array], x: list[Array], target: Array, rate: float, momentum: float) -> float:
    """SGD, one sequence at a time. By ops: 0.1 ms each, where layers take 0.5, and 750 000 make a run."""
    weight_ih, weight_hh, bias, readout, shift = live
    total = 0.0
    for sequence, wanted in zip(x, target[:, 0], strict=True):
        _, h, saved = ops.rnn_forward(sequence, weight_ih, weight_hh, bias, activation="sigmoid")
        error = h[0] @ readout[0] + shift[0] - wanted
        total += error**2
        back = ops.rnn_backward(saved, None, 2 * error * readout, needs=("weight_ih", "weight_hh", "bias"))
        for p, v, g in zip(live, velocity, (*back.values(), 2 * error * h, 2 * error), strict=True):
            v *= momentum
            v -= rate * g
            p += v
    return total / len(x)


def train(taught: dict[str, Array], epochs: tuple[int, int], rate: float, label: str) -> dict[str, Any]:
    """The mean cost of each epoch, the doctor's view from the first of `epochs` to the last, |dL/dh_t| at the end."""
    net, x = learner(), [np.ascontiguousarray(taught["x"][:, k : k + 1]) for k in range(500)]
    live, costs, monitor = list(net.parameters().values()), [], health.Monitor(net)
    velocity = [np.zeros_like(p) for p in live]
    for e in tqdm(range(epochs[1]), desc=label, leave=False, disable=None):
        costs.append(epoch(live, velocity, x, taught["target"], rate, 0.9 if e > 5 else 0.5))
        if e >= epochs[0]:
            loss, dy = losses.mean_squared(net.forward(taught["x"]), taught["target"])
            net.backward(dy)
            monitor.observe(loss)
    norms = monitor.observations[-1].steps["0.l0"].dh
    return {"costs": costs, "verdicts": monitor.verdicts(), "norms": norms, "weight_hh": live[1]}


def draw(path: Path, runs: dict[tuple[str, int], dict[str, Any]], teacher: dict[str, Array]) -> None:
    """The costs, and how the gradient goes back through time, with the bounds."""
    figure = plots.new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.975, bottom=0.125, top=0.9, wspace=0.16)
    colours, lines = {"small": plots.INPUT, "large": plots.FORECAST}, {2: ":", 10: "--", 100: "-"}
    for (name, length), run in runs.items():
        left.semilogy(run["costs"], color=colours[name], linestyle=lines[length], label=f"{name}, length {length}")
    shown = {f"learner, {name}": (runs[name, 100], colours[name]) for name in LARGEST}
    for name, (run, colour) in {**shown, "teacher, large": (teacher, plots.TRUTH)}.items():
        s, t = np.linalg.norm(run["weight_hh"], 2), np.arange(1, 101)
        right.semilogy(t, run["norms"] / run["norms"][-1], color=colour, label=f"{name}: s = {s:.2f}")
        right.semilogy(t, (s / 4) ** (100 - t), color=colour, linestyle=":", linewidth=1)
    for axes, name, title in ((left, "epoch", "Mean cost"), (right, "t", "|dL/dh_t|; dotted: (s/4)^(T-t), its bound")):
        plots.night_axes(axes)
        axes.set_xlabel(name, color=plots.DIM)
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
    runs = {}
    for name, largest in LARGEST.items():
        for length in lengths:
            run = runs[name, length] = train(teach(largest, length), epochs, rate, f"{name}, length {length}")
            costs = ", ".join(f"{run['costs'][e - 1]:.3g} at epoch {e}" for e in epochs)
            print(f"{name}, length {length}: {costs}", *run["verdicts"], sep="\n    ", flush=True)
    teacher = teach(LARGEST["large"], 100)
    draw(args.out / "vanishing_gradient_rnn.png", runs, teacher)
    return {"runs": runs, "teacher": teacher}


if __name__ == "__main__":
    main()
