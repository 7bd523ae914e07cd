"""The same data, the same weights, another loss in every run: a ConvLSTM whose backward pass is written by hand.

The question. One example at a time, plain SGD, biases per pixel, clipping inside the loop over time: two runs from one
state file agree at first, then drift apart, although nothing draws a random number. Is it the clipping, or rounding?
The cause, twice. (a) The sums of the bias gradients begin in memory from `empty` and grow by `+=`: each begins with
what earlier work has left there. (b) Unnoticed, since it is the same in every run: the gradient of a convolution's
input is made with the kernel as it is, where the adjoint has it flipped.
The cure. (a) `zeros`; with `health.poisoned` what `empty` hands out is NaN, and the monitor names the first sum that
has one: tensor, time step, example. (b) fusecell's step; `health.check_gradients` says what is wrong with the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fusecell import health, ops, plots

GATES, RATE, Arrays = ("bias_i", "bias_f", "bias_c", "bias_o"), 0.05, dict[str, Any]  # NumPy's arrays, or CuPy's


def bptt(
    p: Arrays, movie: Any, h: Any = None, c: Any = None, *, xp: Any = np, begin: str = "zeros",
    flipped: bool = True, look: Any = lambda *at, step: None,
) -> tuple[float, Arrays]:  # fmt: skip
    """Train on a movie [T + 1, 1, 1, H, W], whose last frame is to be predicted: its loss, all gradients; p changes."""
    bias, steps = xp.concatenate([p[name] for name in GATES]), []
    for x in movie[:-1]:
        h, c, saved = ops.conv_lstm_step_forward(x, p["kernel"][:, :1], p["kernel"][:, 1:], bias, None, h, c)
        steps.append(saved)
    y = ops.activation_forward("sigmoid", ops.conv2d_forward(h, p["readout"]) + p["bias_y"])
    dz = (y - movie[-1]) * y * (1 - y)
    back = ops.conv2d_backward(dz, h, p["readout"])
    readout, dh, dc = {"readout": back["weight"], "bias_y": dz}, back["x"], None
    for name in readout:  # the script's order: it clips these two below, in vain
        p[name] -= RATE * readout[name]
    sums = {"kernel": xp.zeros_like(p["kernel"]), **{name: getattr(xp, begin)(p[name].shape) for name in GATES}}
    for t in reversed(range(len(steps))):
        g = ops.conv_lstm_step_backward(steps[t], dh, dc)
        dz, dkernel = g["bias"], xp.concatenate([g["weight_ih"], g["weight_hh"]], axis=1)  # dz: of one example
        for (name, total), part in zip(sums.items(), (dkernel, *xp.split(dz, 4)), strict=True):
            total += part
            look(f"d{name}", total, step=t)
        ops.clip_if_any_exceeds_([*sums.values(), *readout.values()], 1.0)  # if any |g| > 1: g / norm(g)
        dh, dc = g["h"] if flipped else ops.conv2d_forward(dz[None], p["kernel"][:, 1:].swapaxes(0, 1)), g["c"]
    for name in sums:
        p[name] -= RATE * sums[name]
    return float(((y - movie[-1]) ** 2).sum()) / 2, {**readout, **sums, "h": dh, "c": dc}


def run(xp: Any, size: tuple[int, int], begin: str) -> tuple[list[float], health.Monitor]:
    """The losses of 50 examples from the state file: five waves, shown again and again."""
    p, losses, monitor = {name: xp.asarray(a) for name, a in state_file(*size).items()}, [], health.Monitor()
    for k in range(50):
        losses.append(bptt(p, xp.asarray(wave(k % 5, 8, size[1])), xp=xp, begin=begin, look=monitor.look)[0])
        monitor.observe(losses[-1])
    return losses, monitor


def check(steps: int, flipped: bool) -> health.GradientCheck:
    """All gradients, here too small to be clipped, against finite differences."""
    h, c = np.random.default_rng(1).normal(size=(2, 1, 2, 5, 5))
    inputs = {"movie": wave(0, steps, 5), "h": h, "c": c, **state_file(2, 5)}
    return health.check_gradients(lambda movie, h, c, **p: bptt(p, movie, h, c, flipped=flipped), inputs, most=64)


def state_file(channels: int, size: int) -> Arrays:
    """A kernel for frame and state together, biases per pixel, a 1x1 readout."""
    normal = np.random.default_rng(0).normal
    p = {"kernel": normal(0, 0.2, (4 * channels, 1 + channels, 3, 3)), "readout": normal(0, 0.3, (1, channels, 1, 1))}
    return {**p, **{g: normal(0, 0.1, (channels, size, size)) for g in GATES}, "bias_y": np.zeros((1, 1, size, size))}


def wave(seed: int, steps: int, size: int) -> Any:
    """A wave in [0, 1] that drifts: [T + 1, 1, 1, H, W]."""
    times, row, column = np.ogrid[: steps + 1, :size, :size]
    angle, speed, phase = np.random.default_rng(seed).uniform(0.3, 1.2, 3)
    across = (np.cos(angle) * row + np.sin(angle) * column) * 2 * np.pi / size
    return 0.5 + 0.5 * np.sin(across + 3 * (phase + speed * times))[:, None, None]


def draw(path: Path, good: list[float], *faulty: list[float]) -> None:
    """The losses, and by how much two runs differ."""
    losses, apart = plots.new_figure(7.6, 5.2).subplots(2, 1, sharex=True)
    losses.set_title("Loss of each example in turn, from one state file", color=plots.TEXT, loc="left", fontsize=11)
    losses.plot(good, color=plots.INPUT, label="begun in zeros: every run")
    losses.plot(faulty[0], color=plots.FORECAST, label="begun in empty: one run")
    losses.plot(faulty[1], ":", color=plots.TEXT, label="begun in empty: another")
    apart.semilogy(np.abs(np.subtract(*faulty)), ":", color=plots.TEXT, label="by how much the two differ")
    for axes in (losses, apart):
        plots.night_axes(axes)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=9)
    plots.save_figure(losses.figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the script as it should be and as it was, find both mistakes, draw the losses."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="gpu: with CuPy")
    args = parser.parse_args(argv)
    xp, size = __import__({"cpu": "numpy", "gpu": "cupy"}[args.device]), (4, 12) if args.small else (8, 16)
    (good, healthy), (again, _) = run(xp, size, "zeros"), run(xp, size, "zeros")
    memory_held = (0.01, 0.02, np.nan)  # the first two as earlier work may leave it: that is the allocator's choice
    (one, _), (another, _), (_, sick) = [health.poisoned(xp, value=v)(run)(xp, size, "empty") for v in memory_held]
    print(f"begun in zeros: the same bits: {good == again}; {healthy.verdicts() or 'no verdict'}")
    print(f"begun in empty: apart by up to {np.abs(np.subtract(one, another)).max():.2g}; {sick.verdicts()[0]}")
    checks = {"unflipped": check(1, False), "unflipped, 4 steps": check(4, False), "flipped, 4 steps": check(4, True)}
    print("\n".join(f"\n{name}\n{check}" for name, check in checks.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "conv_lstm_by_hand.png", good, one, another)
    return {"good": (good, again), "faulty": (one, another), "monitors": (healthy, sick), **checks}


if __name__ == "__main__":
    main()
