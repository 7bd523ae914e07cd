"""Losses: values by hand, gradients against finite differences, extreme logits, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusecell.layers import BatchNorm, Conv2D, ConvLSTM2D, Sequential
from fusecell.losses import (
    add_gradients,
    binary_cross_entropy_with_logits,
    l2_penalty,
    mean_squared,
    softmax_cross_entropy,
)

Array = np.ndarray[Any, Any]
Loss = Callable[[Array, Array], tuple[float, Array]]


def check_gradient(loss: Loss, pred: Array, target: Array) -> None:
    _, gradient = loss(pred, target)
    for place in np.ndindex(*pred.shape):
        moved = [pred.copy(), pred.copy()]
        for array, step in zip(moved, (1e-6, -1e-6), strict=True):
            array[place] += step
        slope = (loss(moved[0], target)[0] - loss(moved[1], target)[0]) / 2e-6
        assert slope == pytest.approx(gradient[place], rel=1e-5, abs=1e-9)


def test_gradients(rng: np.random.Generator) -> None:
    pred, target = rng.standard_normal((2, 3, 4)), rng.uniform(size=(2, 3, 4))
    check_gradient(mean_squared, pred, target)
    check_gradient(binary_cross_entropy_with_logits, 3 * pred, target)
    check_gradient(softmax_cross_entropy, pred, rng.integers(0, 3, (2, 4)))
    check_gradient(softmax_cross_entropy, pred[0], rng.integers(0, 4, 3))


def test_values_by_hand() -> None:
    loss, gradient = mean_squared(np.array([1.0, 3.0]), np.array([0.0, 5.0]))
    assert loss == 2.5
    np.testing.assert_array_equal(gradient, [1.0, -2.0])
    loss, gradient = binary_cross_entropy_with_logits(np.array([0.0, np.log(3.0)]), np.array([1.0, 0.0]))
    assert loss == pytest.approx((np.log(2.0) + np.log(4.0)) / 2)
    np.testing.assert_allclose(gradient, [-0.25, 0.375])
    logits = np.log(np.array([[1.0, 2.0, 5.0]]))
    loss, gradient = softmax_cross_entropy(logits, np.array([1]))
    assert loss == pytest.approx(np.log(4.0))
    np.testing.assert_allclose(gradient, [[0.125, -0.75, 0.625]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits(dtype: Any) -> None:
    logits = np.array([1e4, -1e4, 1e4, -1e4, 40.0], dtype)
    target = np.array([1.0, 0.0, 0.0, 1.0, 1.0], dtype)
    loss, gradient = binary_cross_entropy_with_logits(logits, target)
    assert loss == pytest.approx(2e4 / 5)
    np.testing.assert_allclose(gradient, [0.0, 0.0, 0.2, -0.2, 0.0], atol=1e-12)
    alone, _ = binary_cross_entropy_with_logits(logits[4:], target[4:])
    assert alone == pytest.approx(np.exp(-40.0), rel=1e-5, abs=0.0), "the tail keeps its relative accuracy"
    loss, gradient = softmax_cross_entropy(np.array([[1e4, -1e4], [1e4, -1e4]], dtype), np.array([0, 1]))
    assert loss == 1e4
    np.testing.assert_array_equal(gradient, np.array([[0.0, 0.0], [0.5, -0.5]], dtype))
    assert gradient.dtype == dtype


def test_sums_are_taken_in_double() -> None:
    loss, gradient = mean_squared(np.full(10**6, 0.1, np.float32), np.zeros(10**6, np.float32))
    assert loss == pytest.approx(float(np.float32(0.1)) ** 2, rel=1e-12)
    assert gradient.dtype == np.float32


def test_nan_stays_nan() -> None:
    pred, target = np.array([np.nan, 1.0]), np.zeros(2)
    for loss in (mean_squared, binary_cross_entropy_with_logits):
        value, gradient = loss(pred, target)
        assert np.isnan(value)
        assert np.isnan(gradient[0])
        assert not np.isnan(gradient[1])
    assert np.isnan(softmax_cross_entropy(pred[None], np.array([1]))[0])


def test_arguments_are_left_alone(rng: np.random.Generator) -> None:
    pred, target = rng.standard_normal((2, 3)), rng.uniform(size=(2, 3))
    before = pred.copy(), target.copy()
    mean_squared(pred, target)
    binary_cross_entropy_with_logits(pred, target)
    softmax_cross_entropy(pred, np.array([0, 2]))
    np.testing.assert_array_equal(pred, before[0])
    np.testing.assert_array_equal(target, before[1])


@pytest.mark.parametrize("loss", [mean_squared, binary_cross_entropy_with_logits])
def test_pairs_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"target: expected .* shape \[2\], got \[1\]"):
        loss(np.zeros(2), np.zeros(1))
    with pytest.raises(TypeError, match=r"target: expected .* float64, got float32"):
        loss(np.zeros(2), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="at least one element"):
        loss(np.zeros((0, 2)), np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.array([0]), ValueError, r"labels: expected \[2\] for logits \[2, 3\], got \[1\]"),
        (np.array([0.0, 1.0]), TypeError, "labels: expected integers, got float64"),
        (np.array([0, 3]), ValueError, "labels: expected 0 to 2, got 0 to 3"),
        (np.array([-1, 0]), ValueError, "labels: expected 0 to 2, got -1 to 0"),
    ],
)
def test_labels_refused(labels: Array, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        softmax_cross_entropy(np.zeros((2, 3)), labels)
    with pytest.raises(ValueError, match="at least one"):
        softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, np.int64))


# ------------------------------------------------------------------------------------------------- the penalty


def test_l2_penalty_of_weights_alone(rng: np.random.Generator) -> None:
    net = Sequential(
        [ConvLSTM2D(1, 2, 3, peephole="channel", rng=rng), Conv2D(2, 3, 1, rng=rng), BatchNorm(3, axis=-3)]
    )
    value, gradients = l2_penalty(net.parameters(), 0.1)
    weights = ["0.weight_ih_l0", "0.weight_hh_l0", "1.weight"]
    assert list(gradients) == weights, "no bias, peephole, scale or shift"
    own = net.parameters()
    assert value == pytest.approx(0.1 * sum(float(np.sum(own[name].astype(float) ** 2)) for name in weights), rel=1e-12)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, 0.2 * own[name], rtol=1e-6)
    _, chosen = l2_penalty({"gate_weight": np.ones(2), "bias": np.ones(2), "w": np.ones(2)}, 1.0)
    assert list(chosen) == ["gate_weight"]


def test_l2_penalty_chooses_and_its_gradient_is_its_slope(rng: np.random.Generator) -> None:
    own = {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)}
    value, gradients = l2_penalty(own, 0.3, only=lambda name: name == "b")
    assert list(gradients) == ["b"]
    for place in range(3):
        own["b"][place] += 1e-6
        slope = (l2_penalty(own, 0.3, only=lambda name: name == "b")[0] - value) / 1e-6
        own["b"][place] -= 1e-6
        assert slope == pytest.approx(gradients["b"][place], rel=1e-4, abs=1e-6)
    assert l2_penalty({}, 1.0) == (0.0, {})


def test_gradients_are_added_up() -> None:
    gradients = {"weight": np.array([1.0, 2.0]), "bias": np.array([3.0])}
    total = add_gradients(gradients, {"weight": np.array([0.5, 0.5])})
    assert {name: array.tolist() for name, array in total.items()} == {"weight": [1.5, 2.5], "bias": [3.0]}
    assert gradients["weight"].tolist() == [1.0, 2.0]
    for more, error, words in (
        ({"other": np.zeros(1)}, KeyError, "more: expected names among weight, bias, got other"),
        ({"bias": np.zeros(2)}, ValueError, r"bias: expected \(1,\), got \(2,\)"),
        ({"bias": np.zeros(1, np.float32)}, TypeError, "bias: expected float64, got float32"),
    ):
        with pytest.raises(error, match=words):
            add_gradients(gradients, more)
    for strength in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="strength: expected a finite number of at least 0"):
            l2_penalty(gradients, strength)
