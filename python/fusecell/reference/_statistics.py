"""What a step of back-propagation through time is like, in nine numbers."""

from __future__ import annotations

import numpy as np

from ._check import Array
from ._gates import Activated, SavedGates, new_state_backward, zoneout_backward

STEP_STATISTICS = (
    "count", "dh_squared", "dc_squared", "not_finite", "forget",
    "saturated_i", "saturated_f", "saturated_g", "saturated_o",
)  # fmt: skip
HAVE_TWO_BOUNDS = ("tanh", "hard_tanh", "softsign")


def saturated(gate: Activated, low: float, high: float) -> int:
    """How many outputs lie outside of low .. high."""
    return int(np.sum((gate.y < low) | (gate.y > high)))


def step_statistics(s: SavedGates, dh: Array, dc: Array) -> list[float]:
    """``STEP_STATISTICS``, sums over the step's elements: their count; the squares of dh and of the gradient of C; how
    many of these gradients are not finite; f; how many of i, f, g and o are saturated.

    dh, dc [B, C, H, W]: the gradients of the step's results, later steps included. A gate is saturated below 0.01 or
    above 0.99, g beyond 0.98 or -0.98 where its activation has two bounds.
    """
    dnew_c = new_state_backward(s, zoneout_backward(dh, s.m_h)[1], zoneout_backward(dc, s.m_c)[1])[1]
    gradients = np.stack([dh, dnew_c])
    i, f, o = (saturated(gate, 0.01, 0.99) for gate in (s.i, s.f, s.o))
    g = saturated(s.g, -0.98, 0.98) if s.g.name in HAVE_TWO_BOUNDS else 0
    squares = [float(np.sum(d * d)) for d in gradients]
    return [dh.size, *squares, int(np.sum(~np.isfinite(gradients))), float(np.sum(s.f.y)), i, f, g, o]
