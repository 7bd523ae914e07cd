"""Convolutions on tensor cores at sizes that fill a GPU: tiles of every shape, and Hopper's own instructions."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from on_gpu import bits, normal

from fusecell import ops

# B, C_in, C, H, W: a small tile, a wide one, a square one, several beside each other; and the weights' gradients'
# tiles of 64, 128 and 256 rows.
SHAPES = [(2, 8, 16, 24, 20), (4, 8, 16, 96, 96), (4, 24, 32, 96, 96), (2, 64, 100, 64, 72)]
TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Both round sums to 16 bits, and what differs in the last bit is read by the next steps.
ALLOWED = {"bfloat16": 2.0**-6, "float16": 2.0**-9, "float32": 2.0**-8}


@pytest.fixture
def hopper() -> Iterator[Any]:
    core = importlib.import_module("fusecell._cuda")
    if core.devices()[0]["compute_capability"] != "9.0":
        pytest.skip("needs a GPU of compute capability 9.0")
    before = core.hopper_wanted()
    yield core.want_hopper
    core.want_hopper(before)


def results(shape: tuple[int, ...], dtype: Any, algorithm: str, steps: int = 5) -> dict[str, Any]:
    B, I, C, H, W = shape
    rng = np.random.default_rng(0)
    x, dy = normal(rng, steps, B, I, H, W, dtype=dtype), normal(rng, steps, B, C, H, W, dtype=dtype)
    weights = [normal(rng, 4 * C, n, 3, 3, dtype=dtype, scale=1 / (9 * n) ** 0.5) for n in (I, C)]
    bias = normal(rng, 4 * C, dtype=dtype)
    y, h_n, c_n, saved = ops.conv_lstm_forward(x, *weights, bias, algorithm=algorithm)
    return {"y": y, "h_n": h_n, "c_n": c_n, **ops.conv_lstm_backward(saved, dy)}


def distance(got: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of any result, by that result's largest value."""
    pairs = [(got[n].get().astype(np.float64), expected[n].get().astype(np.float64)) for n in expected]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ALLOWED)
def test_close_to_the_direct_path(name: str, shape: tuple[int, ...]) -> None:
    dtype, algorithm = TYPES.get(name, np.float32), "tensor_cores" if name in TYPES else "tf32"
    got = results(shape, dtype, algorithm)
    assert distance(got, results(shape, dtype, "direct")) < ALLOWED[name]
    again = results(shape, dtype, algorithm)
    assert bits(list(again.values())) == bits(list(got.values()))


# The last: dz of 40 steps is two chunks of 256 MiB, between which the steps stop overlapping.
@pytest.mark.parametrize(("shape", "steps"), [*((shape, 5) for shape in SHAPES), ((4, 8, 64, 80, 80), 40)], ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_hopper_does_what_its_portable_twin_does(name: str, shape: tuple[int, ...], steps: int, hopper: Any) -> None:
    hopper(False)
    portable = results(shape, TYPES[name], "tensor_cores", steps)
    hopper(True)
    got = results(shape, TYPES[name], "tensor_cores", steps)
    assert distance(got, portable) < ALLOWED[name] * max(1, steps / 10)
    for _ in range(3):  # what a step that overlaps another reads too early would differ from time to time
        again = results(shape, TYPES[name], "tensor_cores", steps)
        assert bits(list(again.values())) == bits(list(got.values()))
