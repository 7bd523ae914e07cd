"""Initial values of kernels and biases.

Every function draws from the generator it is given and from nothing else, always in float64, and rounds once to
the dtype asked for: float32 and float64 models of one seed start from the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fusecell._typing import Array


def glorot_uniform(
    rng: np.random.Generator, shape: Sequence[int], fan_in: int, fan_out: int, dtype: npt.DTypeLike = np.float32
) -> Array:
    """Uniform on [-limit, limit) with limit = sqrt(6 / (fan_in + fan_out)).

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    Raises ValueError when the fans add up to less than 1.
    """
    if fan_in + fan_out < 1:
        raise ValueError(f"fan_in + fan_out: expected at least 1, got {fan_in} + {fan_out}")
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, tuple(shape)).astype(dtype)


def orthogonal(
    rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0, dtype: npt.DTypeLike = np.float32
) -> Array:
    """A [rows, columns] matrix with orthonormal rows (or columns, where there are more rows), times gain.

    Source: Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks". Orthogonalised by `gram_schmidt`, so the result does not depend on a LAPACK.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"orthogonal: expected at least 1 row and 1 column, got {rows} x {columns}")
    wide = rng.standard_normal((min(rows, columns), max(rows, columns)))
    basis = gram_schmidt(wide)
    return (gain * (basis if rows <= columns else basis.T)).astype(dtype)


def gram_schmidt(rows: Array) -> Array:
    """Orthonormal rows spanning the rows of a [n, m] matrix with n <= m, by Gram-Schmidt done twice.

    Twice is enough (Giraud, Langou and Rozloznik 2005). Sums are einsum's own, not a BLAS's, so that a seed gives
    the same kernels however many threads the BLAS runs. Raises ValueError for rows that depend on each other.
    """
    basis = np.array(rows, dtype=np.float64)
    for k in range(basis.shape[0]):
        for _ in range(2):
            done = basis[:k]
            basis[k] -= np.einsum("j,jm->m", np.einsum("jm,m->j", done, basis[k]), done)
        norm = math.sqrt(float(np.sum(basis[k] * basis[k])))
        if norm == 0.0:
            raise ValueError(f"gram_schmidt: row {k} depends on the rows before it")
        basis[k] /= norm
    return basis


def input_kernel(
    rng: np.random.Generator, channels: int, in_channels: int, kernel: tuple[int, int], dtype: npt.DTypeLike
) -> Array:
    """weight_ih [4C, Cin, kh, kw]: Glorot uniform with the fans of ONE gate block, so four gates do not shrink it."""
    taps = kernel[0] * kernel[1]
    shape = (4 * channels, in_channels, *kernel)
    return glorot_uniform(rng, shape, in_channels * taps, channels * taps, dtype)


def recurrent_kernel(rng: np.random.Generator, channels: int, kernel: tuple[int, int], dtype: npt.DTypeLike) -> Array:
    """weight_hh [4C, C, kh, kw]: each gate block, seen as [C, C * kh * kw], has orthonormal rows."""
    columns = channels * kernel[0] * kernel[1]
    blocks = [orthogonal(rng, channels, columns, dtype=dtype) for _ in range(4)]
    return np.concatenate(blocks).reshape(4 * channels, channels, *kernel)


def gate_bias(channels: int, spatial: Sequence[int], dtype: npt.DTypeLike, forget: float = 1.0) -> Array:
    """[4C, *spatial]: zero, and `forget` in the forget gate's block (Gers, Schmidhuber and Cummins 2000)."""
    bias = np.zeros((4 * channels, *spatial), dtype)
    bias[channels : 2 * channels] = forget
    return bias
