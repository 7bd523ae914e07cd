"""What importer and exporter ask of a convention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.weights.canonical import OPTIONS, ConvLSTMWeights
from fusecell.weights.convention import Convention, Tensor
from fusecell.weights.conventions import CONVENTIONS

ORDER = "ifgo"


def find(convention: str | Convention) -> Convention:
    """The convention itself, or the one of this name. Raises ValueError for an unknown name."""
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return CONVENTIONS[convention]


def check_options(convention: Convention, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an unknown option, ValueError for one that the convention has fixed to another value."""
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        raise TypeError(f"options: expected some of {', '.join(OPTIONS)}, got {', '.join(unknown)}")
    fixed = {**OPTIONS, **convention.options}
    for name, value in options.items():
        if name not in convention.choices and value != fixed[name]:
            raise ValueError(f"{name}: expected {fixed[name]!r}, which {convention.name} always has, got {value!r}")


def check_kernels(weights: ConvLSTMWeights, convention: Convention) -> None:
    """Raise ValueError for an even kernel where the convention can only have odd ones."""
    for name in convention.odd:
        kernel = getattr(weights, name).shape[2:]
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(
                f"{name}: expected odd kernel sizes, since {convention.name} pads both sides alike and an even one "
                f"changes the size of its state, got {kernel}"
            )


def gates_of(tensor: Tensor, convention: Convention) -> tuple[str, str]:
    """The source's letters for the gates that stand in this tensor, and their names here."""
    pairs = zip(convention.order, convention.gates, strict=True)
    held = [pair for pair in pairs if tensor.holds != "peephole" or pair[1] != "g"]
    return "".join(a for a, _ in held), "".join(b for _, b in held)


def forget_bias(convention: Convention, like: Array) -> Array:
    """What the framework's forward adds to the gates: [4C], or [4C, 1, 1] where `like` has image axes, too."""
    c = len(like) // 4
    forward = np.zeros((4 * c, *[1] * (like.ndim - 1)), like.dtype)
    forward[c : 2 * c] = convention.forget_bias
    return forward
