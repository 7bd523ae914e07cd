"""Activations and softmax, and their derivatives."""

from __future__ import annotations

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_array, as_integer, as_name, as_number


def activation_forward(name: str, x: Array, *, slope: float = 0.01, alpha: float = 1.0) -> Array:
    """Apply an activation elementwise to an array of any shape.

    name: identity, sigmoid, tanh, relu, leaky_relu (slope), elu (alpha), softplus, hard_sigmoid (relu6(x + 3) / 6),
    hard_sigmoid_keras2 (clip(0.2 x + 0.5, 0, 1)), hard_tanh or softsign. NaN in gives NaN out.
    Raises TypeError, ValueError.
    """
    x = as_array("x", x)
    place = _dispatch.place_of({"x": x})
    y = _dispatch.empty(x.shape, x.dtype, place)
    _dispatch.call(
        "activation_forward", place, as_name("name", name), x, y, as_number("slope", slope), as_number("alpha", alpha)
    )
    return y


def activation_backward(
    name: str, x: Array, y: Array, dy: Array, *, slope: float = 0.01, alpha: float = 1.0, at_zero: float = 0.0
) -> Array:
    """dx of y = activation(x), given x, y and dy of one shape.

    At the corners the derivative is torch's; relu's at exactly 0 is `at_zero` (0, 0.5 or 1).
    Raises TypeError, ValueError.
    """
    x, y, dy = as_array("x", x), as_array("y", y), as_array("dy", dy)
    place = _dispatch.place_of({"x": x, "y": y, "dy": dy})
    dx = _dispatch.empty(x.shape, x.dtype, place)
    parameters = as_number("slope", slope), as_number("alpha", alpha), as_number("at_zero", at_zero)
    _dispatch.call("activation_backward", place, as_name("name", name), x, y, dy, dx, *parameters)
    return dx


def softmax_forward(x: Array, axis: int = -1) -> Array:
    """Softmax along an axis, shifted by the largest value so that it cannot overflow. Raises TypeError, ValueError."""
    x = as_array("x", x)
    place = _dispatch.place_of({"x": x})
    y = _dispatch.empty(x.shape, x.dtype, place)
    _dispatch.call("softmax_forward", place, x, y, as_integer("axis", axis))
    return y


def softmax_backward(y: Array, dy: Array, axis: int = -1) -> Array:
    """dx = y (dy - Σ y dy) of y = softmax(x) along the axis. Raises TypeError, ValueError."""
    y, dy = as_array("y", y), as_array("dy", dy)
    place = _dispatch.place_of({"y": y, "dy": dy})
    dx = _dispatch.empty(y.shape, y.dtype, place)
    _dispatch.call("softmax_backward", place, y, dy, dx, as_integer("axis", axis))
    return dx
