"""The pictures of a training run: loss curve, strip of frames, animation. matplotlib and Pillow, no display needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusecell._extras import require_installed
from fusecell._typing import Array
from fusecell.baselines import MARK

NIGHT, TEXT, DIM = "#0e1116", "#e6e9ef", "#8b93a3"
INPUT, TRUTH, FORECAST = "#6cb6ff", "#e6e9ef", "#ffb454"
COLOURS = "inferno"
_WHY = "drawing the results"


def require_plotting() -> None:
    """Raise MissingExtraError if matplotlib or Pillow is not installed."""
    for module in ("matplotlib", "PIL"):
        require_installed(module, _WHY)


def loss_curve(
    path: str | os.PathLike[str], losses: Array, held_out: Array, trivial: Mapping[str, float], title: str
) -> None:
    """PNG of the error (mean squared, log scale) over the steps.

    losses [S]: of each training batch; held_out [M, 2] of (step, loss); trivial: name to error, drawn as levels.
    """
    figure = new_figure(7.6, 4.3)
    axes = figure.add_axes((0.095, 0.125, 0.7, 0.755))
    night_axes(axes)
    steps = np.arange(1, len(losses) + 1)
    if len(losses):
        axes.plot(steps, losses, color=INPUT, alpha=0.18, linewidth=0.7)
        axes.plot(steps, smooth(losses, max(1, len(losses) // 50)), color=INPUT, linewidth=1.6, label="training")
    axes.plot(held_out[:, 0], held_out[:, 1], "o-", color=FORECAST, markersize=3.5, linewidth=1.6, label="held out")
    axes.set_yscale("log")
    _levels(axes, trivial)
    _plain_log_ticks(axes)
    axes.set_xlabel("training step", color=DIM)
    axes.set_ylabel("mean squared error", color=DIM)
    axes.set_title(title, color=TEXT, loc="left", fontsize=11)
    axes.legend(loc="lower left", frameon=False, labelcolor=TEXT, fontsize=9)
    save_figure(figure, path)


def smooth(values: Array, width: int) -> Array:
    """Mean of the last `width` values (of as many as there are, at the start). [S] -> [S]."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    mean: Array = (total[end] - total[start]) / (end - start)
    return mean


def strip(path: str | os.PathLike[str], inputs: Array, truth: Array, forecast: Array) -> None:
    """PNG with the rows input, truth and prediction, each sequence a block of its own.

    inputs [T, N, 1, H, W], truth and forecast [K, N, 1, H, W] in [0, 1].
    """
    (steps, count), ahead = inputs.shape[:2], truth.shape[0]
    columns = max(steps, ahead)
    left, top, cell, between = 1.05, 0.62, 0.78, 0.3
    pitch, label = cell + 0.05, 0.17
    block = 3 * pitch + 2 * label
    width, height = left + columns * pitch + 0.12, top + count * (block + between) - between + 0.1
    figure = new_figure(width, height)
    figure.text(0.14 / width, 1 - 0.29 / height, _strip_title(steps, ahead), color=TEXT, fontsize=11, va="center")
    seen = [f"t = {t - steps + 1}".replace("-", "\N{MINUS SIGN}") for t in range(steps)]
    ahead_labels = [f"t = +{t + 1}" for t in range(ahead)]
    for n in range(count):
        y = top + n * (block + between)
        _strip_row(figure, (left, y + label, cell), ("input", INPUT), inputs[:, n, 0], columns - steps, seen)
        y += label + pitch
        _strip_row(figure, (left, y + label, cell), ("truth", TRUTH), truth[:, n, 0], 0, ahead_labels)
        y += label + pitch
        _strip_row(figure, (left, y, cell), ("prediction", FORECAST), forecast[:, n, 0], 0, None)
    save_figure(figure, path)


def animation(
    path: str | os.PathLike[str], inputs: Array, truth: Array, forecast: Array, milliseconds: int = 220
) -> None:
    """GIF: the truth above, the network's forecast below; while the input lasts both rows show it.

    inputs [T, N, 1, H, W], truth and forecast [K, N, 1, H, W] in [0, 1].
    """
    from PIL import Image

    pictures = []
    steps, ahead = inputs.shape[0], truth.shape[0]
    above, below = np.concatenate([inputs, truth]), np.concatenate([inputs, forecast])
    for t in range(steps + ahead):
        seen = t < steps
        caption = f"input, frame {t + 1} of {steps}" if seen else f"prediction, {t - steps + 1} of {ahead} steps ahead"
        pixels = _animation_frame(above[t, :, 0], below[t, :, 0], caption, seen)
        pictures.append(Image.fromarray(pixels))
    # One palette for all frames, made from the first and the last: each phase has a colour of its own.
    width, height = pictures[0].size
    both = Image.new("RGB", (width, 2 * height))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[-1], (0, height))
    palette = both.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    pauses = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pauses, loop=0, optimize=True)


# ------------------------------------------------------------------------------------------------------- the parts


def new_figure(width: float, height: float) -> Any:
    """A figure of its own canvas: no pyplot, no global state, no display."""
    require_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor=NIGHT)
    FigureCanvasAgg(figure)
    return figure


def night_axes(axes: Any) -> None:
    axes.set_facecolor(NIGHT)
    axes.tick_params(colors=DIM, which="both")
    axes.grid(color="#ffffff", alpha=0.07, which="both")
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(DIM)


def _plain_log_ticks(axes: Any) -> None:
    """0.01, 0.02, 0.05: not powers of ten."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def _levels(axes: Any, trivial: Mapping[str, float]) -> None:
    """Dashed lines for the trivial forecasts and the mark, named at the right edge."""
    best = min(trivial.values())
    named = {name: error for name, error in trivial.items() if error > 0.0}
    named[f"mark: {100 * MARK:.0f} % of best"] = MARK * best
    low, high = axes.get_ylim()
    apart = 0.05 * np.log(high / low)
    placed: list[float] = []
    for name, error in sorted(named.items(), key=lambda item: item[1]):
        colour = TEXT if name.startswith("mark") else DIM
        axes.axhline(error, color=colour, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8)
        where = max([np.log(error), *(p + apart for p in placed[-1:])])
        placed.append(where)
        axes.annotate(
            name, (1.015, np.exp(where)), xycoords=("axes fraction", "data"), color=colour, fontsize=8.5, va="center"
        )
    axes.set_ylim(min(low, MARK * best * 0.8), max(high, 1.08 * max(named.values())))


def _strip_title(steps: int, ahead: int) -> str:
    return f"ConvLSTM: {steps} frames in, {ahead} frames predicted, on data it never saw"


def _strip_row(
    figure: Any,
    place: tuple[float, float, float],
    name: tuple[str, str],
    frames: Array,
    indent: int,
    labels: list[str] | None,
) -> None:
    """One row of frames; place = (left, top, cell) in inches."""
    width, height = figure.get_size_inches()
    left, top, cell = place
    centre = 1 - (top + cell / 2) / height
    figure.text((left - 0.14) / width, centre, name[0], color=name[1], fontsize=10, ha="right", va="center")
    for k, frame in enumerate(frames):
        x = left + (k + indent) * (cell + 0.05)
        axes = figure.add_axes((x / width, 1 - (top + cell) / height, cell / width, cell / height))
        _draw_frame(axes, frame, name[1])
        if labels:
            axes.set_title(labels[k], color=DIM, fontsize=7.5, pad=2.5)


def _draw_frame(axes: Any, frame: Array, colour: str) -> None:
    axes.imshow(frame, cmap=COLOURS, vmin=0.0, vmax=1.0, interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(0.8)
        spine.set_alpha(0.75)


def _animation_frame(above: Array, below: Array, caption: str, seen: bool) -> Array:
    """uint8 [height, width, 3] of two rows of frames [N, H, W] under a caption."""
    count, left, top, cell, gap = len(above), 0.95, 0.4, 1.12, 0.07
    width, height = left + count * (cell + gap) + 0.08, top + 2 * (cell + gap) + 0.08
    figure = new_figure(width, height)
    figure.set_dpi(80)
    colour = INPUT if seen else FORECAST
    figure.text(left / width, 1 - 0.21 / height, caption, color=colour, fontsize=11, va="center")
    rows = [("truth", INPUT if seen else TRUTH, above), ("network", colour, below)]
    for r, (name, edge, frames) in enumerate(rows):
        _strip_row(figure, (left, top + r * (cell + gap), cell), (name, edge), frames, 0, None)
    figure.canvas.draw()
    pixels: Array = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    return pixels


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    figure.savefig(path, facecolor=NIGHT, metadata={"Software": None})
