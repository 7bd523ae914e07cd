"""Optimisers against the formulas written out for one number at a time, clipping, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fusecell.optim import SGD, Adam, AdamW, Optimizer

Array = np.ndarray[Any, Any]
Parameters = dict[str, Array]


def make(rng: np.random.Generator, dtype: Any = np.float64) -> Parameters:
    shapes: dict[str, tuple[int, ...]] = {"weight": (3, 2), "bias": (2,), "scalar": ()}
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def sgd_by_hand(p: float, gradients: Iterator[float], lr: float, mu: float, decay: float, nesterov: bool) -> float:
    v = 0.0
    for g in gradients:
        g += decay * p
        v = mu * v + g
        p -= lr * (g + mu * v if nesterov else v if mu else g)
    return p


def adam_by_hand(
    p: float, gradients: Iterator[float], lr: float, b1: float, b2: float, eps: float, decay: float, decoupled: bool
) -> float:
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            p -= lr * decay * p
        else:
            g += decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        p -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return p


SGD_CASES = [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.01, True), (0.0, 0.1, False)]
ADAM_CASES = [(0.9, 0.999, 1e-8, 0.0, False), (0.8, 0.95, 1e-3, 0.1, False), (0.9, 0.99, 1e-8, 0.1, True)]


def assert_by_hand(
    optimizer: Optimizer, own: Parameters, rng: np.random.Generator, rule: Callable[[float, Iterator[float]], float]
) -> None:
    start = {name: array.copy() for name, array in own.items()}
    history = [{name: np.asarray(rng.standard_normal(a.shape)) for name, a in own.items()} for _ in range(5)]
    for gradients in history:
        assert optimizer.step({name: array.copy() for name, array in gradients.items()}) is None
    for name, array in own.items():
        for place in np.ndindex(*array.shape):
            expected = rule(float(start[name][place]), iter([float(g[name][place]) for g in history]))
            assert array[place] == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize(("mu", "decay", "nesterov"), SGD_CASES)
def test_sgd(mu: float, decay: float, nesterov: bool, rng: np.random.Generator) -> None:
    own = make(rng)
    optimizer = SGD(own, 0.1, momentum=mu, weight_decay=decay, nesterov=nesterov)
    assert_by_hand(optimizer, own, rng, lambda p, g: sgd_by_hand(p, g, 0.1, mu, decay, nesterov))


@pytest.mark.parametrize(("b1", "b2", "eps", "decay", "decoupled"), ADAM_CASES)
def test_adam(b1: float, b2: float, eps: float, decay: float, decoupled: bool, rng: np.random.Generator) -> None:
    own = make(rng)
    optimizer = Adam(own, 0.01, (b1, b2), eps, weight_decay=decay, decoupled=decoupled)
    assert_by_hand(optimizer, own, rng, lambda p, g: adam_by_hand(p, g, 0.01, b1, b2, eps, decay, decoupled))


def test_adamw(rng: np.random.Generator) -> None:
    own = make(rng)
    assert_by_hand(AdamW(own), own, rng, lambda p, g: adam_by_hand(p, g, 1e-3, 0.9, 0.999, 1e-8, 0.01, True))


def test_clipping_by_norm() -> None:
    own = {"a": np.zeros(1), "b": np.zeros(1)}
    optimizer = SGD(own, 1.0, clip_norm=1.0)
    gradients = {"a": np.array([3.0]), "b": np.array([4.0])}
    assert optimizer.step(gradients) == pytest.approx(5.0)
    np.testing.assert_allclose([own["a"][0], own["b"][0]], [-0.6, -0.8], rtol=1e-6)
    assert gradients["a"] == 3.0, "clipped as it is read: the array itself stays"
    assert optimizer.step({"a": np.array([0.3]), "b": np.array([0.4])}) == pytest.approx(0.5)
    np.testing.assert_allclose(own["a"], [-0.9], rtol=1e-6, err_msg="a short gradient is left alone")


def test_clipping_by_value_and_then_by_norm() -> None:
    own = {"a": np.zeros(2)}
    assert SGD(own, 1.0, clip_value=2.0).step({"a": np.array([3.0, -4.0])}) == pytest.approx(5.0)
    np.testing.assert_array_equal(own["a"], [-2.0, 2.0])
    own = {"a": np.zeros(2)}
    both = SGD(own, 1.0, clip_value=3.0, clip_norm=1.0)
    assert both.step({"a": np.array([3.0, -40.0])}) == pytest.approx(math.hypot(3.0, 40.0)), "before any clipping"
    np.testing.assert_allclose(own["a"], [-(0.5**0.5), 0.5**0.5], rtol=1e-6)


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_a_norm_that_is_not_finite_changes_nothing(clip: dict[str, float], rng: np.random.Generator) -> None:
    own = make(rng)
    optimizer = Adam(own, 0.1, error_if_nonfinite=True, **clip)
    optimizer.step(make(rng))
    before, state = {n: a.copy() for n, a in own.items()}, optimizer.state_dict()
    bad = make(rng)
    bad["bias"][0] = np.nan
    with pytest.raises(FloatingPointError):
        optimizer.step(bad)
    for name in own:
        np.testing.assert_array_equal(own[name], before[name])
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


MAKERS: list[Callable[[Parameters], Optimizer]] = [
    lambda p: SGD(p, 0.1),
    lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5),
    lambda p: Adam(p, 0.01, weight_decay=0.1, decoupled=True, clip_value=0.2),
    lambda p: AdamW(p, 0.01, weight_decay=0.1, clip_norm=0.5),
]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resuming_gives_the_same_bits(
    maker: Callable[[Parameters], Optimizer], dtype: Any, rng: np.random.Generator
) -> None:
    history = [make(rng, dtype) for _ in range(6)]
    whole = make(rng, dtype)
    broken = {name: array.copy() for name, array in whole.items()}
    optimizer, first = maker(whole), maker(broken)
    for step, gradients in enumerate(history):
        if step == 3:
            state, first = first.state_dict(), maker(broken)
            first.load_state_dict(state)
            assert first.steps == 3
        optimizer.step({name: array.copy() for name, array in gradients.items()})
        first.step({name: array.copy() for name, array in gradients.items()})
    for name in whole:
        assert whole[name].dtype == dtype
        np.testing.assert_array_equal(whole[name], broken[name])


def test_state_is_a_copy_and_holds_the_rate(rng: np.random.Generator) -> None:
    own = make(rng)
    optimizer = Adam(own, 0.01)
    optimizer.step(make(rng))
    optimizer.lr = 0.005
    state = optimizer.state_dict()
    kept = state["mean.weight"].copy()
    optimizer.step(make(rng))
    np.testing.assert_array_equal(state["mean.weight"], kept)
    other = Adam(own, 0.01)
    other.load_state_dict(state)
    assert (other.lr, other.steps) == (0.005, 1)


def test_refusals(rng: np.random.Generator) -> None:
    own = make(rng)
    before = {name: array.copy() for name, array in own.items()}
    optimizer = Adam(own, 0.01)
    with pytest.raises(KeyError, match="gradients: missing"):
        optimizer.step({"weight": own["weight"]})
    with pytest.raises(ValueError, match=r"bias: expected \(2,\), got \(3,\)"):
        optimizer.step({**own, "bias": np.zeros(3)})
    with pytest.raises(TypeError, match="bias: expected float64, got float32"):
        optimizer.step({**own, "bias": np.zeros(2, np.float32)})
    with pytest.raises(KeyError, match="Adam state"):
        optimizer.load_state_dict(SGD(own, 0.1).state_dict())
    for name in own:
        np.testing.assert_array_equal(own[name], before[name])


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (lambda p: SGD(p, -1.0), "lr: expected at least 0, got -1.0"),
        (lambda p: SGD(p, float("nan")), "lr: expected at least 0, got nan"),
        (lambda p: SGD(p, 0.1, momentum=1.0), "momentum"),
        (lambda p: SGD(p, 0.1, nesterov=True), "nesterov: expected a momentum above 0"),
        (lambda p: SGD(p, 0.1, clip_norm=0.0), "clip_norm: expected more than 0 or None, got 0.0"),
        (lambda p: Adam(p, 0.1, betas=(0.9, 1.0)), "betas"),
        (lambda p: Adam(p, 0.1, eps=-1.0), "eps"),
        (lambda p: Adam(p, 0.1, weight_decay=-1.0), "weight_decay"),
        (lambda p: AdamW(p, betas=(1.0, 0.9)), "betas"),
    ],
)
def test_settings_refused(maker: Callable[[Parameters], Optimizer], words: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=words):
        maker(make(rng))
