"""What must not be: arrays in two places, other dtypes, no memory left. And sizes beyond 32 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from on_gpu import Sequence5D, bits, cupy, digest, normal, wait

from fusecell import ops


@pytest.fixture(autouse=True)
def _memory_given_back() -> Iterator[None]:
    yield
    cupy.get_default_memory_pool().set_limit(size=0)
    cupy.get_default_memory_pool().free_all_blocks()


# ------------------------------------------------------------------------------------------------------ bad calls
def test_arrays_in_two_places_are_refused_by_name(rng: np.random.Generator) -> None:
    z, c = normal(rng, 2, 8, 5), normal(rng, 2, 2, 5)
    with pytest.raises(ValueError, match="c: expected an array on GPU 0, as z is, got one on the CPU"):
        ops.lstm_gates_forward(z, c.get())
    with pytest.raises(ValueError, match="c: expected an array on the CPU, as z is, got one on GPU 0"):
        ops.lstm_gates_forward(z.get(), c)
    with pytest.raises(ValueError, match=r"gradients\[1\]: expected an array on GPU 0"):
        ops.clip_by_global_norm_([z, c.get()], 1.0)


def test_a_wrong_dtype_is_refused_by_name(rng: np.random.Generator) -> None:
    with pytest.raises(TypeError, match="x: expected dtype float32, float64, bfloat16 or float16, got int32"):
        ops.activation_forward("tanh", cupy.zeros(3, np.int32))
    with pytest.raises(TypeError, match="c: expected dtype float32, got float64"):
        ops.lstm_gates_forward(normal(rng, 2, 8, 5), normal(rng, 2, 2, 5, dtype=np.float64))


def test_an_array_that_stands_twice_is_refused(rng: np.random.Generator) -> None:
    base = normal(rng, 100)
    before = bits([base])
    with pytest.raises(ValueError, match=r"gradients\[1\]: expected memory of its own"):
        ops.clip_by_global_norm_([base, base[50:]], 0.1)
    assert bits([base]) == before


def test_error_if_nonfinite_changes_nothing(rng: np.random.Generator) -> None:
    gradients = [normal(rng, 100), normal(rng, 7)]
    gradients[1][3] = np.nan
    before = bits(gradients)
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        ops.clip_by_global_norm_(gradients, 1.0, error_if_nonfinite=True)
    assert bits(gradients) == before


# --------------------------------------------------------------------------------------------------------- memory
def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError):
        ops.bernoulli(2**44, 0.5, seed=0, device=0)
    assert bits([ops.bernoulli(64, 0.5, seed=3, device=0)]) == [digest(ops.bernoulli(64, 0.5, seed=3))]


def test_the_next_call_works_wherever_memory_ran_out(rng: np.random.Generator) -> None:
    problem, pool = Sequence5D(rng), cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    expected = bits(problem.run())
    needed = pool.total_bytes() - before
    refused = 0
    for tenths in range(0, 10, 2):
        pool.free_all_blocks()
        pool.set_limit(size=max(pool.used_bytes(), pool.total_bytes()) + needed * tenths // 10 + 1)
        try:
            problem.run()
        except MemoryError:
            refused += 1
    assert refused > 0
    pool.set_limit(size=0)
    assert bits(problem.run()) == expected


# ----------------------------------------------------------------------------------------------------------- size
N = 2**31 + 4099
PART = 2**28
PERIOD = 251


def pattern(first: int, count: int) -> cupy.ndarray:
    """Small whole numbers, whose squares add up exactly."""
    return (cupy.arange(first, first + count, dtype=np.int64) % PERIOD - PERIOD // 2).astype(np.float32)


@pytest.fixture
def large() -> cupy.ndarray:
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 30 * 2**30:
        pytest.skip(f"needs 30 GiB of free GPU memory, there are {free / 2**30:.0f}")
    x = cupy.empty(N, np.float32)
    for first in range(0, N, PART):
        part = x[first : first + PART]
        part[...] = pattern(first, part.size)
    return x


def test_more_than_two_to_the_31_elements(large: cupy.ndarray) -> None:
    y = ops.activation_forward("relu", large)
    for first in range(0, N, PART):
        part = y[first : first + PART]
        assert bool((part == cupy.maximum(pattern(first, part.size), 0)).all())
    del y, part
    wholes, rest = divmod(N, PERIOD)
    values = np.arange(PERIOD, dtype=np.int64) - PERIOD // 2
    exact = np.sqrt(float(wholes * int((values**2).sum()) + int((values[:rest] ** 2).sum())))
    assert float(ops.global_norm([large])) == pytest.approx(exact, rel=1e-12)
    ops.clip_by_global_norm_([large], exact / 2)
    for first in (0, 2**31 - 100, N - 200):
        expected = pattern(first, 200).get() / 2
        np.testing.assert_allclose(large[first : first + 200].get(), expected, rtol=1e-6)


def test_masks_beyond_two_to_the_31() -> None:
    mask = ops.bernoulli(N, 0.5, seed=1, device=0)
    tail = ops.bernoulli(N - 2**31, 0.5, seed=1, offset=2**31 // 4, device=0)
    wait()
    assert bits([mask[2**31 :]]) == bits([tail])
