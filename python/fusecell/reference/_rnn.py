"""The plain recurrent network: one sample, one step and one unit at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._activations import activation_backward, activation_forward
from ._check import Array, expect, expect_axes, f64, one_of, shaped, wanted

RNN_STEP_STATISTICS = ("count", "dh_squared", "not_finite", "saturated")

# Below the first or above the second, an activation's output counts as saturated.
SATURATED = {
    "sigmoid": (0.01, 0.99),
    "hard_sigmoid": (0.01, 0.99),
    "hard_sigmoid_keras2": (0.01, 0.99),
    "tanh": (-0.98, 0.98),
    "hard_tanh": (-0.98, 0.98),
    "softsign": (-0.98, 0.98),
}


@dataclass(frozen=True)
class Saved:
    """What ``rnn_backward`` needs of the forward call; ``a`` is y before the activation."""

    x: Array
    weight_ih: Array
    weight_hh: Array
    bias: Array | None
    h_0: Array
    a: Array
    y: Array
    activation: str
    slope: float
    alpha: float
    relu_at_zero: float


def rnn_forward(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias: ArrayLike | None = None,
    h_0: ArrayLike | None = None,
    *,
    activation: str = "tanh",
    slope: float = 0.01,
    alpha: float = 1.0,
    relu_at_zero: float = 0.0,
) -> tuple[Array, Array, Saved]:
    """h_t = phi(W_ih x_t + W_hh h_(t-1) + b), the network of Elman, "Finding Structure in Time" (1990).

    x [T, B, I], weight_ih [C, I], weight_hh [C, C], bias [C] or none, h_0 [B, C], zero for none. Gives
    y [T, B, C], all h_t; h_n [B, C], the last of them, h_0 where T is 0; and what backward needs.
    """
    one_of("relu_at_zero", relu_at_zero, (0.0, 0.5, 1.0))
    x, weight_ih, weight_hh = f64(x), f64(weight_ih), f64(weight_hh)
    expect_axes("x", x, "T B I")
    expect_axes("weight_ih", weight_ih, "C I")
    steps, batch, inputs = x.shape
    channels = weight_ih.shape[0]
    expect("weight_ih", weight_ih, (channels, inputs))
    expect("weight_hh", weight_hh, (channels, channels))
    b = shaped("bias", bias, (channels,))
    h = start = shaped("h_0", h_0, (batch, channels))
    a = np.zeros((steps, batch, channels))
    y = np.zeros((steps, batch, channels))
    for t in range(steps):
        for n in range(batch):
            for c in range(channels):
                a[t, n, c] = np.sum(weight_ih[c] * x[t, n]) + np.sum(weight_hh[c] * h[n]) + b[c]
        h = y[t] = activation_forward(activation, a[t], slope=slope, alpha=alpha)
    kept = None if bias is None else b
    saved = Saved(x, weight_ih, weight_hh, kept, start, a, y, activation, slope, alpha, relu_at_zero)
    return y, h.copy(), saved


def rnn_backward(
    saved: Saved,
    dy: ArrayLike | None = None,
    dh_n: ArrayLike | None = None,
    *,
    needs: Iterable[str] | None = None,
    statistics: bool = False,
) -> dict[str, Array]:
    """The gradients of ``rnn_forward``, by its argument names; dy [T, B, C], dh_n [B, C], zero for none.

    With ``statistics`` also [T, 4], the columns RNN_STEP_STATISTICS: of each step's dL/dh_t and h_t.
    """
    s = saved
    dy, dh = shaped("dy", dy, s.y.shape), shaped("dh_n", dh_n, s.h_0.shape).copy()
    dx, dweight_ih, dweight_hh = np.zeros_like(s.x), np.zeros_like(s.weight_ih), np.zeros_like(s.weight_hh)
    dbias = np.zeros(s.weight_hh.shape[0])
    table = np.zeros((len(s.y), len(RNN_STEP_STATISTICS)))
    for t in reversed(range(len(s.y))):
        dh = dh + dy[t]
        table[t] = step_statistics(dh, s.y[t], s.activation)
        da = activation_backward(s.activation, s.a[t], s.y[t], dh, slope=s.slope, alpha=s.alpha, at_zero=s.relu_at_zero)
        before = s.y[t - 1] if t > 0 else s.h_0
        dh = np.zeros_like(s.h_0)
        for n in range(s.x.shape[1]):
            dx[t, n] = s.weight_ih.T @ da[n]
            dh[n] = s.weight_hh.T @ da[n]
            dweight_ih += np.outer(da[n], s.x[t, n])
            dweight_hh += np.outer(da[n], before[n])
            dbias += da[n]
    gradients = {"x": dx, "weight_ih": dweight_ih, "weight_hh": dweight_hh, "bias": dbias, "h_0": dh}
    if s.bias is None:
        del gradients["bias"]
    found = wanted(gradients, needs)
    return found | {"statistics": table} if statistics else found


def step_statistics(dh: Array, y: Array, activation: str) -> tuple[float, float, float, float]:
    """The columns RNN_STEP_STATISTICS of one step, dh [B, C] being its total gradient."""
    low, high = SATURATED.get(activation, (-np.inf, np.inf))
    saturated = np.sum((y < low) | (y > high))
    return float(dh.size), float(np.sum(dh * dh)), float(np.sum(~np.isfinite(dh))), float(saturated)
