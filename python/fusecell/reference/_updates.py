"""One step of an optimiser. Pure here: new lists come back, of the parameters and of what the rule keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._check import Array
from ._clipping import Arrays, as_list, scale


def _clipped(gradients: Arrays, norm: Any, max_norm: float | None) -> list[Array]:
    arrays = as_list(gradients)
    return arrays if norm is None or max_norm is None else [scale(g, max_norm, float(norm)) for g in arrays]


def sgd_update_(
    parameters: Arrays, gradients: Arrays, velocities: Arrays | None = None, *, lr: float, momentum: float = 0.0,
    nesterov: bool = False, weight_decay: float = 0.0, norm: Any = None, max_norm: float | None = None,
) -> tuple[list[Array], list[Array]]:  # fmt: skip
    """Stochastic gradient descent with momentum as torch has it: the rate stands outside the velocity.

    Returns the new parameters and velocities.
    """
    values, moved, kept = as_list(parameters), [], []
    before = as_list(velocities) if velocities else [np.zeros_like(p) for p in values]
    for p, g, v in zip(values, _clipped(gradients, norm, max_norm), before, strict=True):
        total = g + weight_decay * p
        velocity = momentum * v + total
        moved.append(p - lr * (total + momentum * velocity if nesterov else velocity))
        kept.append(velocity)
    return moved, kept


def adam_update_(
    parameters: Arrays, gradients: Arrays, means: Arrays, squares: Arrays, *, step: int, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    decoupled: bool = False, norm: Any = None, max_norm: float | None = None,
) -> tuple[list[Array], list[Array], list[Array]]:  # fmt: skip
    """Adam, Kingma and Ba (2015), algorithm 1; decoupled: AdamW, Loshchilov and Hutter (2019), algorithm 2.

    Returns the new parameters, means and squares.
    """
    new: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    gradients = _clipped(gradients, norm, max_norm)
    for p, g, m, v in zip(as_list(parameters), gradients, as_list(means), as_list(squares), strict=True):
        total = g if decoupled else g + weight_decay * p
        mean = betas[0] * m + (1 - betas[0]) * total
        square = betas[1] * v + (1 - betas[1]) * total**2
        unbiased_mean, unbiased_square = mean / (1 - betas[0] ** step), square / (1 - betas[1] ** step)
        shrunk = p * (1 - lr * weight_decay) if decoupled else p
        for place, value in zip(
            new, (shrunk - lr * unbiased_mean / (np.sqrt(unbiased_square) + eps), mean, square), strict=True
        ):
            place.append(np.asarray(value))
    return new
