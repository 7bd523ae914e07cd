"""The activations to a few ulp over their whole range, and at every corner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusecell import reference
from fusecell._cases import ACTIVATIONS

TAILS = np.concatenate([np.geomspace(1e-44, 1e4, 4000), [0.0, 2.0**-149, 2.0**-126, 20, 88.7, 103.9, 709.7, 745.1]])
SWEEP = np.concatenate([-TAILS[::-1], TAILS, np.linspace(-40, 40, 60001)])
CORNERS = np.array([0.0, -0.0, 1, -1, 2.5, -2.5, 3, -3, 1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, np.nan])


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """In extended precision, by formulas that lose nothing."""
    x = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        e = np.exp(-np.abs(x))
        if name == "sigmoid":
            return np.where(x >= 0, 1 / (1 + e), e / (1 + e))
        if name == "tanh":
            return np.tanh(x)
        if name == "softplus":
            return np.maximum(x, 0) + np.log1p(e)
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))  # elu


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(np.longdouble) - want) / np.spacing(np.abs(want).astype(got.dtype)).astype(np.longdouble)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "allowed"), [("sigmoid", 2.0), ("tanh", 2.0), ("softplus", 3.0), ("elu", 1.5)])
def test_a_few_ulp_from_the_denormals_to_the_tails(backend: Any, name: str, allowed: float, dtype: type) -> None:
    x = SWEEP.astype(dtype)
    assert ulps(backend.activation_forward(name, x), exact(name, x)).max() < allowed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_corners_as_the_reference_has_them(backend: Any, name: str, dtype: type) -> None:
    x = CORNERS.astype(dtype)
    options = {"slope": 0.25, "alpha": 0.75}
    y = backend.activation_forward(name, x, **options)
    expected = reference.activation_forward(name, x, **options)
    np.testing.assert_allclose(y, expected.astype(dtype), rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(y[-1])
    for at_zero in (0.0, 0.5, 1.0):
        dx = backend.activation_backward(name, x, y, np.full_like(x, 2), **options, at_zero=at_zero)
        want = reference.activation_backward(name, x, expected, np.full(x.shape, 2.0), **options, at_zero=at_zero)
        # atol: the derivatives of sigmoid and tanh are made from y, whose own rounding stands against 1 - y
        np.testing.assert_allclose(dx, want.astype(dtype), rtol=8 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)
        assert np.isnan(dx[-1])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_nan_gradient_stays_nan(backend: Any, name: str) -> None:
    x = np.array([-5.0, -0.5, 0.0, 0.5, 5.0])
    dx = backend.activation_backward(name, x, backend.activation_forward(name, x), np.full_like(x, np.nan))
    assert np.isnan(dx).all()


def test_relus_derivative_at_zero_is_what_was_asked(backend: Any) -> None:
    x = np.array([0.0, -0.0, 1e-300, -1e-300])
    for at_zero in (0.0, 0.5, 1.0):
        dx = backend.activation_backward("relu", x, backend.activation_forward("relu", x), np.ones(4), at_zero=at_zero)
        assert dx.tolist() == [at_zero, at_zero, 1.0, 0.0]


def test_softmax_is_shifted_and_sums_to_one(backend: Any) -> None:
    x = np.array([[1e4, -1e4, 1e4], [1e4, 1e4 + 1, -np.inf], [-1e4, -1e4, -1e4]], np.float32)
    y = backend.softmax_forward(x)
    np.testing.assert_allclose(y, reference.softmax_forward(x), rtol=1e-6)
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    with_nan = backend.softmax_forward(np.array([[1.0, np.nan, 2.0], [1.0, 2.0, 3.0]]))
    assert np.isnan(with_nan[0]).all()
    assert np.isfinite(with_nan[1]).all()
    assert backend.softmax_forward(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("extent", [1, 33, 64, 65, 129, 300])
def test_softmax_of_lines_that_are_longer_than_one_round_of_a_warp(
    backend: Any, extent: int, dtype: type, rng: np.random.Generator
) -> None:
    x, dy = (rng.standard_normal((3, extent)).astype(dtype) for _ in range(2))
    y = backend.softmax_forward(x)
    dx = backend.softmax_backward(y, dy)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(y, reference.softmax_forward(x.astype(float)), rtol=16 * eps)
    np.testing.assert_allclose(dx, reference.softmax_backward(y.astype(float), dy.astype(float)), rtol=0, atol=8 * eps)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_shape(backend: Any, name: str) -> None:
    for shape in ((), (0,), (1,), (3, 0, 2), (2, 3, 5)):
        x = np.full(shape, 0.3)
        assert backend.activation_forward(name, x).shape == shape
