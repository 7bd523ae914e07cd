"""Five tanh units fit a curve in tens of iterations in one program, in far more in another: Levenberg-Marquardt.

The question. A network with one input, a few tanh units and a linear output shall follow a curve. A toolbox that trains
it by Levenberg-Marquardt needs far fewer iterations than the same method written by hand. What else does it do?

The cause, measured: what the method is given. Inputs from 0 to 10, not -1 to 1, make most starts fail; a toolbox scales
them. It also spreads its units' corners over them at first (Nguyen and Widrow 1990): sooner there, or stuck elsewhere.

The cure. SciPy's least_squares(method="lm") on scaled inputs, its Jacobian from one backward pass: the error that comes
to a layer has a row for each example; its product with the layer's input, of which a gradient is the sum, is taken row
by row. Plain gradient descent is slow, not sick: the monitor finds nothing wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from fusecell import health, layers, losses, optim, plots

Array = Any
HIDDEN, ENOUGH = 5, 3e-4  # units; half of the mean squared error at which the question's loop ends
X = np.linspace(-1, 1, 60)[:, None]
Y = 0.6 * np.sin(np.pi * X) + 0.3 * np.cos(2.2 * np.pi * X) * np.exp(-X)


def network(seed: int, spread: int) -> tuple[layers.Sequential, Array]:
    """1-H-1, and all its parameters in a vector: small ones, or units' corners spread over -1 to 1."""
    rng = np.random.default_rng(seed)
    first, last = (layers.Dense(*size, rng=rng, dtype="float64") for size in ((1, HIDDEN), (HIDDEN, 1)))
    vector = rng.normal(0, 0.3, 3 * HIDDEN + 1)
    if spread:
        slope = 0.7 * HIDDEN * rng.choice([-1.0, 1.0], HIDDEN)
        vector = np.concatenate([slope, slope * np.linspace(-1, 1, HIDDEN), rng.uniform(-1, 1, HIDDEN + 1)])
    return layers.Sequential([first, layers.Activation("tanh"), last]), vector


def residuals(vector: Array, net: layers.Sequential, x: Array) -> Array:
    """Prediction less target [N], with the parameters of the vector."""
    for array, part in zip(net.parameters().values(), np.split(vector, HIDDEN * np.arange(1, 4)), strict=True):
        array.flat = part
    return (net.forward(x) - Y)[:, 0]


def jacobian(vector: Array, net: layers.Sequential, x: Array) -> Array:
    """Of the residuals, [N, 3 H + 1], from one backward pass."""
    residuals(vector, net, x)
    (_, tanh, last), ones = net.layers, np.ones_like(x)
    dz = tanh.backward(last.backward(ones))
    return np.hstack([dz * x, dz, tanh.activity()[""], ones])


def marquardt(net: layers.Sequential, vector: Array, x: Array) -> dict[str, Any]:
    """The errors at every iteration, where a Jacobian is asked for, and the fits there [iterations, N]."""
    found: list[Array] = []

    def slopes(vector: Array, *data: Any) -> Array:
        found.append(residuals(vector, *data))
        return jacobian(vector, *data)

    found.append(least_squares(residuals, vector, slopes, method="lm", args=(net, x), max_nfev=100).fun)
    errors = np.mean(np.square(found), axis=1) / 2
    needed = np.argmax(errors < ENOUGH) if errors.min() < ENOUGH else np.inf
    return {"errors": errors, "fits": Y[:, 0] + found, "needed": needed}


def descent(net: layers.Sequential, vector: Array, steps: int) -> dict[str, Any]:
    """The errors of plain gradient descent, and what the monitor says of it."""
    residuals(vector, net, X)
    optimizer, monitor, errors = optim.SGD(net.parameters(), lr=0.2), health.Monitor(net, every=20), []
    for _ in range(steps):
        loss, dy = losses.mean_squared(net.forward(X), Y)
        net.backward(dy)
        monitor.observe(loss)
        optimizer.step(net.gradients())
        errors.append(loss / 2)
    return {"errors": np.array(errors), "verdicts": [verdict.name for verdict in monitor.verdicts()]}


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """The curve, and how it is fitted after some iterations; the errors over the iterations."""
    figure = plots.new_figure(9.6, 3.8)
    left, right = figure.add_axes((0.07, 0.12, 0.42, 0.78)), figure.add_axes((0.55, 0.12, 0.43, 0.78))
    for k in range(0, 17, 4):
        left.plot(X, found["small start"]["fits"][k], color=plots.INPUT, alpha=0.2 + 0.05 * k, label=f"iteration {k}")
    left.plot(X, Y, ".", color=plots.TRUTH, markersize=4, label="to be fitted")
    for name, colour in (("small start", plots.INPUT), ("inputs 0 to 10", plots.DIM), ("descent", plots.FORECAST)):
        right.loglog(np.arange(len(found[name]["errors"])) + 1, found[name]["errors"], color=colour, label=name)
    right.set_xlabel("iterations; down: half of the mean squared error", color=plots.DIM)
    for axes in (left, right):
        plots.night_axes(axes)
        axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_figure(figure, path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """From small and from spread starts, on inputs scaled or not; gradient descent beside them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="takes seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cases"))
    args = parser.parse_args(argv)
    found = {}
    for name, x, spread in (("small start", X, 0), ("spread start", X, 1), ("inputs 0 to 10", 5 + 5 * X, 0)):
        runs = [marquardt(*network(seed, spread), x) for seed in range(8 if args.small else 100)]
        found[name] = {**runs[0], "needed": np.array([run["needed"] for run in runs])}
        arrived = [run["needed"] for run in runs if run["needed"] < np.inf]
        print(f"{name:15} {len(arrived)} of {len(runs)} starts arrive, after {np.median(arrived):g} iterations")
    found["descent"] = slow = descent(*network(0, spread=0), 3000 if args.small else 100_000)
    print(f"gradient descent: {slow['errors'][-1]:.1e} after {len(slow['errors'])} steps; verdicts: {slow['verdicts']}")
    draw(args.out / "levenberg_marquardt.png", found)
    return found


if __name__ == "__main__":
    main()
