"""Whether a peer computes what all compute. What is wrong is not timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of each result's largest value: float32 over a few hundred terms and ten steps


def largest_error(
    name: str, got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = TOLERANCE
) -> float:
    """The largest error of any result, as a share of that result's largest value.

    got, expected: arrays or tensors by the results' names. Raises AssertionError for more than the tolerance.
    """
    worst = 0.0
    for result, value in got.items():
        target = as_float64(expected[result])
        error = float(np.max(np.abs(as_float64(value) - target)) / np.max(np.abs(target)))
        if not error <= tolerance:
            raise AssertionError(f"{name}: {result} is off by {error:.1e}, allowed {tolerance:.0e}: nothing is timed")
        worst = max(worst, error)
    return worst


def as_float64(value: Any) -> np.ndarray:
    """Of a tensor of PyTorch's, on whatever device, or of anything that NumPy takes. NumPy has no bfloat16."""
    return value.detach().double().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, np.float64)
