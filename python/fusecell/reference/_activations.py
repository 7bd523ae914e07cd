"""Activations and softmax. A derivative takes (x, y) and uses y only where y determines it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._check import Array, expect, f64, one_of


@dataclass(frozen=True)
class Shape:
    """The numbers that shape an activation."""

    slope: float  # leaky_relu below 0
    alpha: float  # elu below 0
    at_zero: float  # the derivative of relu at exactly 0


def sigmoid(x: Array, p: Shape) -> Array:
    e = np.exp(-np.abs(x))  # in [0, 1]: neither end overflows, and small results keep all their digits
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def sigmoid_derivative(x: Array, y: Array, p: Shape) -> Array:
    return y * (1.0 - y)


def tanh(x: Array, p: Shape) -> Array:
    return np.tanh(x)


def tanh_derivative(x: Array, y: Array, p: Shape) -> Array:
    return 1.0 - y * y


def relu(x: Array, p: Shape) -> Array:
    return np.maximum(x, 0.0) + 0.0  # the sum makes 0.0 of -0.0


def relu_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(x == 0, p.at_zero, np.where(x > 0, 1.0, 0.0))


def leaky_relu(x: Array, p: Shape) -> Array:
    return x * np.where(x > 0, 1.0, p.slope)


def leaky_relu_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(x > 0, 1.0, p.slope)


def elu(x: Array, p: Shape) -> Array:
    return np.where(x > 0, x, p.alpha * np.expm1(np.where(x > 0, 0.0, x)))


def elu_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(x > 0, 1.0, p.alpha * np.exp(np.where(x > 0, 0.0, x)))


def softplus(x: Array, p: Shape) -> Array:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def softplus_derivative(x: Array, y: Array, p: Shape) -> Array:
    return sigmoid(x, p)


def hard_sigmoid(x: Array, p: Shape) -> Array:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def hard_sigmoid_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(np.abs(x) < 3.0, 1.0 / 6.0, 0.0)


def hard_sigmoid_keras2(x: Array, p: Shape) -> Array:
    return np.clip(0.2 * x + 0.5, 0.0, 1.0)


def hard_sigmoid_keras2_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(np.abs(x) <= 2.5, 0.2, 0.0)  # the corners belong to the slope, as in torch.clamp


def hard_tanh(x: Array, p: Shape) -> Array:
    return np.clip(x, -1.0, 1.0)


def hard_tanh_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.where(np.abs(x) < 1.0, 1.0, 0.0)


def softsign(x: Array, p: Shape) -> Array:
    finite = np.where(np.isinf(x), 0.0, x)
    return np.where(np.isinf(x), np.sign(x), finite / (1.0 + np.abs(finite)))


def softsign_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.square(1.0 / (1.0 + np.abs(x)))


def identity(x: Array, p: Shape) -> Array:
    return x.copy()


def identity_derivative(x: Array, y: Array, p: Shape) -> Array:
    return np.ones_like(x)


Function = Callable[[Array, Shape], Array]
Derivative = Callable[[Array, Array, Shape], Array]
ACTIVATIONS: dict[str, tuple[Function, Derivative]] = {
    "sigmoid": (sigmoid, sigmoid_derivative),
    "tanh": (tanh, tanh_derivative),
    "relu": (relu, relu_derivative),
    "leaky_relu": (leaky_relu, leaky_relu_derivative),
    "elu": (elu, elu_derivative),
    "softplus": (softplus, softplus_derivative),
    "hard_sigmoid": (hard_sigmoid, hard_sigmoid_derivative),
    "hard_sigmoid_keras2": (hard_sigmoid_keras2, hard_sigmoid_keras2_derivative),
    "hard_tanh": (hard_tanh, hard_tanh_derivative),
    "softsign": (softsign, softsign_derivative),
    "identity": (identity, identity_derivative),
}


def activation_forward(name: str, x: ArrayLike, *, slope: float = 0.01, alpha: float = 1.0) -> Array:
    """y = name(x), elementwise, x of any shape. NaN gives NaN; nothing overflows on the way.

    sigmoid; tanh; relu; leaky_relu (``slope`` x below 0); elu (``alpha`` (e^x - 1) below 0; Clevert et
    al. 2015); softplus log(1 + e^x); hard_sigmoid relu6(x + 3) / 6 (torch, Keras 3); hard_sigmoid_keras2
    clip(0.2 x + 0.5, 0, 1) (Keras 2); hard_tanh clip(x, -1, 1); softsign x / (1 + |x|); identity.
    """
    one_of("name", name, ACTIVATIONS)
    function, _ = ACTIVATIONS[name]
    return np.asarray(function(f64(x), Shape(slope, alpha, at_zero=0.0)))


def activation_backward(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    dy: ArrayLike,
    *,
    slope: float = 0.01,
    alpha: float = 1.0,
    at_zero: float = 0.0,
) -> Array:
    """dx = dy name'(x), for the x and y of ``activation_forward``; x, y and dy share one shape.

    At the corners as torch: hard_tanh 0 at |x| = 1, hard_sigmoid 0 at |x| = 3, hard_sigmoid_keras2 0.2 at
    |x| = 2.5, leaky_relu ``slope`` and elu ``alpha`` at 0. relu has ``at_zero`` (0, 0.5 or 1) at 0.
    NaN in x or dy gives NaN, for every function.
    """
    one_of("name", name, ACTIVATIONS)
    one_of("at_zero", at_zero, (0.0, 0.5, 1.0))
    x, y, dy = f64(x), f64(y), f64(dy)
    expect("y", y, x.shape)
    expect("dy", dy, x.shape)
    _, derivative = ACTIVATIONS[name]
    with np.errstate(invalid="ignore"):  # an infinite dy times a derivative of 0: NaN is the answer
        return np.asarray(dy * np.where(np.isnan(x), np.nan, derivative(x, y, Shape(slope, alpha, at_zero))))


def softmax_forward(x: ArrayLike, axis: int = -1) -> Array:
    """y = e^x / sum(e^x) along ``axis``, x of any shape; shifted by the maximum, so nothing overflows."""
    x = f64(x)
    with np.errstate(invalid="ignore"):  # inf - inf: NaN is the answer
        e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def softmax_backward(y: ArrayLike, dy: ArrayLike, axis: int = -1) -> Array:
    """dx = y (dy - sum(y dy)) along ``axis``, for the y of ``softmax_forward``."""
    y, dy = f64(y), f64(dy)
    expect("dy", dy, y.shape)
    return np.asarray(y * (dy - np.sum(y * dy, axis=axis, keepdims=True)))
