"""Bars: a group for each shape, one bar for each peer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shapes import Shape

GREYS = ("#3c4048", "#6c717b", "#9a9fa8", "#c0c4ca", "#dcdfe3")


def bars(
    axes: Any,
    title: str,
    rows: Iterable[dict[str, Any]],
    value: Callable[[dict[str, Any]], float | None],
    shapes: Sequence[str],
    colours: dict[str, Any],
) -> None:
    """value: of a row with "shape" and "peer", times or a share of eager's; None draws nothing. colours: by peer."""
    peers, width = list(colours), 0.85 / len(colours)
    for row in rows:
        at = shapes.index(row["shape"]) + (peers.index(row["peer"]) - (len(peers) - 1) / 2) * width
        label = row["peer"] if row["shape"] == shapes[0] else None
        axes.bar(at, value(row) or 0.0, width, color=colours[row["peer"]], label=label)
    axes.axhline(1, color="#888888", linewidth=0.8, zorder=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def in_short(s: Shape) -> str:
    return f"{s.I} -> {s.C}, {s.k}x{s.k}\n{s.H}x{s.W}"
