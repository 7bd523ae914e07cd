"""The picture of a run: gradient norms over time steps and training iterations, and the loss above them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusecell import plots
from fusecell._extras import require_installed
from fusecell._typing import Array
from fusecell.health._readings import Observation

_LEAST = 1e-30  # of a norm, where there is none: the colours are logarithmic


def heat_map(path: str | os.PathLike[str], observations: Sequence[Observation]) -> None:
    """PNG. A panel for each recurrent layer, of |dL/d(h_t, c_t)|; one of parameters where there is no such layer."""
    require_installed("matplotlib", "drawing the health of a run")
    panels = _panels(observations)
    heights = [1.0] + [max(1.2, min(2.6, 0.1 * len(rows))) for _, _, rows in panels]
    figure = plots.new_figure(8.0, 1.0 + 1.15 * sum(heights))
    grid = figure.add_gridspec(
        len(heights), 2, height_ratios=heights, width_ratios=(45, 1), left=0.14, right=0.88, top=0.94, bottom=0.09,
        hspace=0.42, wspace=0.05,
    )  # fmt: skip
    iterations = np.array([o.iteration for o in observations])
    axes = figure.add_subplot(grid[0, 0])
    _loss(axes, observations)
    for k, (title, labels, rows) in enumerate(panels):
        axes = figure.add_subplot(grid[k + 1, 0])
        _panel(axes, figure.add_subplot(grid[k + 1, 1]), title, labels, rows, iterations)
    axes.set_xlabel("training iteration", color=plots.DIM)
    plots.save_figure(figure, path)


def _panels(observations: Sequence[Observation]) -> list[tuple[str, list[str], Array]]:
    """(title, what the rows are, norms [rows, observations])."""
    panels: list[tuple[str, list[str], Array]] = []
    for name in observations[-1].steps:
        steps = max(len(o.steps[name].dh) for o in observations if name in o.steps)
        rows = np.full((steps, len(observations)), np.nan)
        for n, o in enumerate(observations):
            if name in o.steps:
                state = o.steps[name].state
                rows[: len(state), n] = state
        panels.append((f"{name or 'cell'}: gradient of the state at each time step", [], rows))
    if panels:
        return panels
    names = [n for n, p in observations[-1].parameters.items() if p.gradient is not None]
    rows = np.array([[o.parameters[n].gradient if n in o.parameters else np.nan for o in observations] for n in names])
    return [("gradient of each parameter", names, rows.astype(np.float64))] if names else []


def _loss(axes: Any, observations: Sequence[Observation]) -> None:
    plots.night_axes(axes)
    given = [(o.iteration, o.loss) for o in observations if o.loss is not None and np.isfinite(o.loss)]
    if given:
        x, y = np.array(given).T
        axes.plot(x, y, color=plots.FORECAST, linewidth=1.4)
        if y.min() > 0:
            axes.set_yscale("log")
    axes.set_title("loss", color=plots.TEXT, loc="left", fontsize=10)


def _panel(axes: Any, scale: Any, title: str, labels: list[str], rows: Array, iterations: Array) -> None:
    plots.night_axes(axes)
    shown = np.log10(np.maximum(rows, _LEAST))
    first, last = int(iterations[0]), int(iterations[-1]) + 1
    image = axes.imshow(
        shown, aspect="auto", origin="lower", interpolation="nearest", cmap=plots.COLOURS,
        extent=(first, last, 0.5, len(rows) + 0.5),
    )  # fmt: skip
    axes.set_title(title, color=plots.TEXT, loc="left", fontsize=10)
    if labels:
        axes.set_yticks(range(1, len(labels) + 1), labels, fontsize=7)
    else:
        axes.set_ylabel("time step", color=plots.DIM)
    bar = axes.figure.colorbar(image, cax=scale)
    bar.ax.tick_params(colors=plots.DIM, labelsize=8)
    bar.set_label("log10 of the norm", color=plots.DIM, fontsize=8)
