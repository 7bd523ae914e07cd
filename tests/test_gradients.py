"""Every gradient against central differences of the forward pass in float64, along random directions."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusecell import ops
from fusecell._cases import ACTIVATIONS, CASES, OUTPUTS, RNN_CASES, Arrays, Case, upstream_of

EPSILON = 1e-5  # central: error of order 1e-10 from the third derivative, 1e-11 from rounding
TOLERANCE = 1e-7

DIFFERENTIABLE = [
    c for c in CASES if not c.options.get("truncation") and c.shape.get("B", 1) > 0 and c.shape.get("T", 1) > 0
]


def difference(loss: Callable[[Arrays], float], arguments: Arrays, name: str, direction: np.ndarray) -> float:
    def at(step: float) -> float:
        moved = arguments[name] + step * direction  # type: ignore[operator]
        return loss({**arguments, name: moved})

    return (at(EPSILON) - at(-EPSILON)) / (2 * EPSILON)


def assert_gradients(
    loss: Callable[[Arrays], float], arguments: Arrays, gradients: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    for name, gradient in gradients.items():
        if arguments.get(name) is None:
            continue  # an initial state that was not given
        direction = rng.choice([-1.0, 1.0], gradient.shape)
        expected = difference(loss, arguments, name, direction)
        got = float(np.sum(gradient * direction))
        assert got == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE * np.sqrt(gradient.size)), name


def total(outputs: list[np.ndarray], upstream: list[np.ndarray]) -> float:
    return float(sum(np.sum(y * u) for y, u in zip(outputs, upstream, strict=True)))


def assert_case(backend: Any, case: Case) -> None:
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    arguments = case.arguments(rng)
    forward, backward = (getattr(backend, f"{case.op}_{way}") for way in ("forward", "backward"))

    def outputs(given: Arrays) -> list[np.ndarray]:
        result = forward(*given.values(), **case.options)
        return [result] if case.op == "conv2d" else list(result[: len(OUTPUTS[case.op])])

    upstream = upstream_of(outputs(arguments))
    if case.op == "conv2d":
        gradients = backward(upstream[0], arguments["x"], arguments["weight"], **case.options)
    else:
        gradients = backward(forward(*arguments.values(), **case.options)[-1], *upstream)
    assert_gradients(lambda given: total(outputs(given), upstream), arguments, gradients, rng)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_against_finite_differences(backend: Any, case: Case) -> None:
    assert_case(backend, case)


@pytest.mark.parametrize("case", [c for c in RNN_CASES if c.shape.get("B", 1) and c.shape.get("T", 1)], ids=str)
def test_plain_networks_against_finite_differences(case: Case) -> None:
    assert_case(ops, case)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_truncation_with_the_boundary_states_frozen(
    backend: Any, every: int, reverse: bool, rng: np.random.Generator
) -> None:
    case = Case("conv_lstm", "truncation", {"T": 5, "peephole": "channel"})
    arguments = case.arguments(rng)
    options = {"truncation": every, "reverse": reverse, "zoneout_h": 0.2, "zoneout_c": 0.1}
    *outputs, saved = backend.conv_lstm_forward(*arguments.values(), **options)
    upstream = upstream_of(outputs)
    gradients = backend.conv_lstm_backward(saved, *upstream)
    order = list(range(5))[::-1] if reverse else list(range(5))
    segments = [order[start : start + every] for start in range(0, 5, every)]

    def run(given: Arrays, times: list[int], h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
        part = {**given, "x": given["x"][sorted(times)], "h_0": h, "c_0": c}  # type: ignore[index]
        return backend.conv_lstm_forward(*part.values(), **{**options, "truncation": 0}, save=None)[:3]

    frozen = []  # the states at the boundaries, which finite differences must not move
    h, c = arguments["h_0"], arguments["c_0"]
    for times in segments:
        frozen.append((h, c))
        _, h, c = run(arguments, times, h, c)  # type: ignore[arg-type]

    def loss(given: Arrays) -> float:
        value = 0.0
        for number, times in enumerate(segments):
            h, c = (given["h_0"], given["c_0"]) if number == 0 else frozen[number]
            y, h_n, c_n = run(given, times, h, c)  # type: ignore[arg-type]
            value += float(np.sum(y * upstream[0][sorted(times)]))
            if number == len(segments) - 1:
                value += float(np.sum(h_n * upstream[1]) + np.sum(c_n * upstream[2]))
        return value

    assert_gradients(loss, arguments, gradients, rng)


def test_truncation_leaves_short_samples_whole(backend: Any, rng: np.random.Generator) -> None:
    """A boundary in the padding detaches nothing: h_n of a sample of length 2 still reaches its first step."""
    x, wi, wh = (
        rng.standard_normal((4, 1, 2, 4, 4)),
        rng.standard_normal((8, 2, 3, 3)),
        rng.standard_normal((8, 2, 3, 3)),
    )
    dh_n = rng.standard_normal((1, 2, 4, 4))
    *_, padded = backend.conv_lstm_forward(x, wi, wh, lengths=[2], truncation=2)
    *_, alone = backend.conv_lstm_forward(x[:2], wi, wh)
    got, expected = (backend.conv_lstm_backward(saved, None, dh_n) for saved in (padded, alone))
    assert np.array_equal(got["x"][:2], expected["x"])
    assert not got["x"][2:].any()
    assert np.array_equal(got["weight_hh"], expected["weight_hh"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend: Any, name: str, rng: np.random.Generator) -> None:
    x = rng.uniform(-4, 4, 500)
    x = x[np.min(np.abs(x[:, None] - [0, 1, -1, 2.5, -2.5, 3, -3]), axis=1) > 1e-3]
    options = {"slope": 0.2, "alpha": 1.3}
    dy = rng.standard_normal(x.shape)
    dx = backend.activation_backward(name, x, backend.activation_forward(name, x, **options), dy, **options)
    up, down = (backend.activation_forward(name, x + step, **options) for step in (1e-6, -1e-6))
    assert dx == pytest.approx(dy * (up - down) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(backend: Any, axis: int, rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((4, 5, 3)), rng.standard_normal((4, 5, 3))
    dx = backend.softmax_backward(backend.softmax_forward(x, axis), dy, axis)
    direction = rng.standard_normal(x.shape)
    up, down = (np.sum(dy * backend.softmax_forward(x + step * direction, axis)) for step in (EPSILON, -EPSILON))
    assert np.sum(dx * direction) == pytest.approx((up - down) / (2 * EPSILON), rel=1e-8)
