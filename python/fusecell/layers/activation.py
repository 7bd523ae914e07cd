"""A pointwise activation as a layer."""

from __future__ import annotations

from fusecell import ops
from fusecell._typing import Array
from fusecell.layers.base import Layer

_BOUNDS: dict[str, tuple[float, float] | None] = {
    "identity": None,
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": None,
    "leaky_relu": None,
    "elu": None,
    "softplus": None,
    "hard_sigmoid": (0.0, 1.0),
    "hard_sigmoid_keras2": (0.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}


def bounds(name: str) -> tuple[float, float] | None:
    """The range (low, high) that an activation's output cannot leave; None unless it is bounded on both sides.

    Raises ValueError for an unknown name.
    """
    if name not in _BOUNDS:
        raise ValueError(f"name: expected one of {', '.join(_BOUNDS)}, got {name!r}")
    return _BOUNDS[name]


class Activation(Layer):
    """y = name(x), any shape: sigmoid, tanh, relu, leaky_relu, elu, softplus, hard_sigmoid,
    hard_sigmoid_keras2, hard_tanh, softsign, identity.

    slope is leaky_relu's, alpha elu's, at_zero the derivative of relu at exactly 0 (0, 0.5 or 1).
    """

    def __init__(self, name: str, *, slope: float = 0.01, alpha: float = 1.0, at_zero: float = 0.0) -> None:
        super().__init__()
        self.name, self.slope, self.alpha, self.at_zero = name, slope, alpha, at_zero
        self._saved: tuple[Array, Array] | None = None

    def forward(self, x: Array) -> Array:
        """y of x's shape and dtype. Raises ValueError for an unknown name."""
        y = ops.activation_forward(self.name, x, slope=self.slope, alpha=self.alpha)
        self._saved = (x, y)
        self._activity = {"": y}
        return y

    def backward(self, dy: Array) -> Array:
        """dx of x's shape and dtype."""
        if self._saved is None:
            raise RuntimeError("Activation.backward: call forward first")
        x, y = self._saved
        return ops.activation_backward(self.name, x, y, dy, slope=self.slope, alpha=self.alpha, at_zero=self.at_zero)
