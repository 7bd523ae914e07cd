"""What the files of this folder share: the array type, and checks that name the argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def f64(array: ArrayLike) -> Array:
    return np.asarray(array, dtype=np.float64)


def expect(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {array.shape}")


def expect_axes(name: str, array: NDArray[Any], axes: str) -> None:
    if array.ndim != len(axes.split()):
        raise ValueError(f"{name}: expected [{axes}], got {array.shape}")


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")


def shaped(name: str, array: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """``array`` as float64, refused if it has another shape; zeros for None."""
    if array is None:
        return np.zeros(shape)
    array = f64(array)
    expect(name, array, shape)
    return array


def wanted(gradients: dict[str, Array], needs: Iterable[str] | None) -> dict[str, Array]:
    """The gradients asked for by name; all there are for None."""
    if needs is None:
        return gradients
    names = list(needs)
    for name in names:
        one_of("needs", name, gradients)
    return {name: gradients[name] for name in names}
