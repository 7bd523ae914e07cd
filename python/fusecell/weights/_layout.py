"""Between an array as a framework lays it out and blocks [G, O, I, H, W]: gate, output and input channel, image axes.

A layout is written as words, one for each axis, outermost first:

    GO  gate and output channel in one axis, a block for each gate      G  gates alone
    OG  the same, the gates of each channel beside each other           O  output channels alone
    I   input channels                                                  1  an axis of length 1
    *   the image or kernel axes: none (dense), width, or height and width
    +   the same, but at least one
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fusecell._typing import Array

_INSIDE = {"GO": ("G", "O"), "OG": ("O", "G"), "1": ()}
_SPATIAL: tuple[tuple[str, ...], ...] = ((), ("W",), ("H", "W"))
_BLOCK_ORDER = "GOIHW"


def spatial_counts(axes: str) -> range:
    """How many image axes an array of this layout may have."""
    return range(3) if "*" in axes else range(1, 3) if "+" in axes else range(1)


def words(axes: str, spatial: int) -> list[str]:
    """The layout's words, with so many image axes in place of * or +."""
    return [word for part in axes.split() for word in (_SPATIAL[spatial] if part in "*+" else (part,))]


def shape_of(layout: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that an array of this layout must have."""
    return tuple(math.prod(sizes[axis] for axis in _INSIDE.get(word, (word,))) for word in layout)


def axes_in(layout: Sequence[str]) -> list[str]:
    """What the words stand for, outermost first: G, O, I, H and W, and * or + where they still stand."""
    return [axis for word in layout for axis in _INSIDE.get(word, (word,))]


def to_blocks(array: Array, layout: Sequence[str], sizes: Mapping[str, int]) -> Array:
    """The array with its axes in the order of blocks, those that the layout has not left out."""
    axes = axes_in(layout)
    blocks = array.reshape([sizes[axis] for axis in axes])
    return blocks.transpose([axes.index(axis) for axis in _in_block_order(axes)])


def from_blocks(blocks: Array, layout: Sequence[str]) -> Array:
    """The inverse of `to_blocks`."""
    axes = axes_in(layout)
    present = _in_block_order(axes)
    sizes = dict(zip(present, blocks.shape, strict=True))
    return blocks.transpose([present.index(axis) for axis in axes]).reshape(shape_of(layout, sizes))


def _in_block_order(axes: Sequence[str]) -> list[str]:
    return sorted(axes, key=_BLOCK_ORDER.index)
