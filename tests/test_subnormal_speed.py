"""Subnormal numbers, which vanishing gradients and states are, take no op much longer than others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import fusecell
from fusecell import ops

SIZE = 1 << 16  # one thread's chunk: in the second-level cache, where nothing but arithmetic counts


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = fusecell.get_num_threads()
    fusecell.set_num_threads(1)
    yield
    fusecell.set_num_threads(before)


def activation_forward(name: str) -> Callable[[np.ndarray], Callable[[], object]]:
    return lambda x: lambda: ops.activation_forward(name, x)


def activation_backward(name: str) -> Callable[[np.ndarray], Callable[[], object]]:
    def prepare(x: np.ndarray) -> Callable[[], object]:
        y = ops.activation_forward(name, x)
        return lambda: ops.activation_backward(name, x, y, x)

    return prepare


def gates(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.reshape(1, 64, 32, 32), x[: SIZE // 4].reshape(1, 16, 32, 32)


def gates_forward(x: np.ndarray) -> Callable[[], object]:
    z, c = gates(x)
    return lambda: ops.lstm_gates_forward(z, c)


def gates_backward(x: np.ndarray) -> Callable[[], object]:
    z, c = gates(x)
    *_, saved = ops.lstm_gates_forward(z, c)
    return lambda: ops.lstm_gates_backward(saved, c, c)


def momentum(x: np.ndarray) -> Callable[[], object]:
    value, velocity = x.copy(), x.copy()
    return lambda: ops.sgd_update_([value], [x], [velocity], lr=0.1, momentum=0.9)


def adam(x: np.ndarray) -> Callable[[], object]:
    value, mean, square = x.copy(), x.copy(), np.abs(x)
    return lambda: ops.adam_update_([value], [x], [mean], [square], step=3, lr=0.1)


def clip(x: np.ndarray) -> Callable[[], object]:
    return lambda: ops.clip_by_global_norm_([x], 1e30)


PREPARE = {
    "sigmoid": activation_forward("sigmoid"),
    "tanh": activation_forward("tanh"),
    "sigmoid backward": activation_backward("sigmoid"),
    "tanh backward": activation_backward("tanh"),
    "gates forward": gates_forward,
    "gates backward": gates_backward,
    "momentum": momentum,
    "adam": adam,
    "clip": clip,
}


@pytest.mark.parametrize("name", PREPARE)
def test_subnormal_numbers_take_no_op_twice_as_long(name: str, rng: np.random.Generator) -> None:
    """The least of interleaved times: what else the machine does makes some of them longer, and none shorter."""
    x = rng.standard_normal(SIZE, np.float32)
    runs = [PREPARE[name](x), PREPARE[name](x * np.float32(1e-40))]
    least = [np.inf, np.inf]
    for _ in range(40):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            least[i] = min(least[i], time.perf_counter() - start)
    assert least[1] < 2 * least[0]
