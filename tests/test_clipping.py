"""Norms to 1e-6 for any size and magnitude, and clipping as torch and hand-written scripts do it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fusecell import reference
from fusecell.selftest import OnGpu

NORMS = [1.0, 2.0, math.inf]


def gradients(rng: np.random.Generator, dtype: type = np.float32) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(dtype) for shape in ((70_001,), (3, 4), (1,), (0, 2), ())]


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30, 1e-38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norm_at_any_magnitude(
    backend: Any, norm_type: float, scale: float, dtype: type, rng: np.random.Generator
) -> None:
    scaled = [np.asarray(g * scale, dtype) for g in gradients(rng, dtype)]
    expected = reference.global_norm(scaled, norm_type)
    assert backend.global_norm(scaled, norm_type) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("magnitude", [1e300, 1e-300, 5e-324, 1e160, 1e-170])
def test_the_norm_where_squares_leave_float64(backend: Any, magnitude: float) -> None:
    g = np.full(10_000, magnitude)
    assert backend.global_norm([g]) == pytest.approx(100 * magnitude, rel=1e-12, abs=0)


def test_small_and_large_squares_beside_ordinary_ones(backend: Any) -> None:
    assert backend.global_norm([np.array([3.0, 1e-300]), np.full(5, 1e-310), np.array([4.0])]) == 5.0
    a, b = 1.5 * 2.0**486, 0.9 * 2.0**486  # on either side of where squares are scaled
    assert backend.global_norm([np.array([a, b])]) == pytest.approx(math.hypot(a, b), rel=1e-12, abs=0)


def test_more_arrays_than_one_launch_takes(backend: Any, rng: np.random.Generator) -> None:
    given = [rng.standard_normal(1 + n % 7) for n in range(400)]
    given[-1][:] = 50.0  # what is left out is missed
    expected, expected_norm = reference.clip_by_global_norm_(given, 0.5)
    assert backend.clip_by_global_norm_(given, 0.5) == pytest.approx(expected_norm, rel=1e-12)
    for got, want in zip(given, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.slow
def test_the_norm_of_a_hundred_million(backend: Any) -> None:
    g = np.full(100_000_000, 0.1, np.float32)
    value = float(np.float32(0.1))
    assert backend.global_norm([g]) == pytest.approx(value * 1e4, rel=1e-12)
    assert backend.global_norm([g], 1.0) == pytest.approx(value * 1e8, rel=1e-12)


@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, math.inf])
def test_by_global_norm(backend: Any, norm_type: float, max_norm: float, rng: np.random.Generator) -> None:
    given = gradients(rng)
    expected, expected_norm = reference.clip_by_global_norm_(given, max_norm, norm_type)
    before = [g.copy() for g in given]
    assert backend.clip_by_global_norm_(given, max_norm, norm_type) == pytest.approx(expected_norm, rel=1e-12)
    for got, want in zip(given, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    if max_norm >= 1e9:
        assert all(np.array_equal(a, b) for a, b in zip(given, before, strict=True))


def test_the_coefficient_is_torchs(backend: Any) -> None:
    g = np.array([3.0, 4.0])
    backend.clip_by_global_norm_([g], 1.0)
    assert g.tolist() == [3.0 * (1.0 / (5.0 + 1e-6)), 4.0 * (1.0 / (5.0 + 1e-6))]


def test_a_factor_below_float32s_range(backend: Any) -> None:
    g = np.array([3e30, 4e30], np.float32)
    backend.clip_by_global_norm_([g], 1e-12)
    np.testing.assert_allclose(g, [0.6e-12, 0.8e-12], rtol=1e-6)


def test_mixed_dtypes_in_one_list(backend: Any, rng: np.random.Generator) -> None:
    given = [rng.standard_normal(9).astype(np.float32), rng.standard_normal(7)]
    expected = math.sqrt(sum(float(np.sum(g.astype(float) ** 2)) for g in given))
    assert backend.clip_by_global_norm_(given, 0.1) == pytest.approx(expected)
    assert [g.dtype for g in given] == [np.float32, np.float64]
    assert backend.global_norm(given) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm_type", NORMS)
def test_norms_that_are_not_finite(backend: Any, bad: float, norm_type: float) -> None:
    g, other = np.array([1.0, bad, 2.0]), np.ones(3)
    before = g.copy()
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        backend.clip_by_global_norm_([g, other], 1.0, norm_type, error_if_nonfinite=True)
    assert np.array_equal(g, before, equal_nan=True)
    assert (other == 1).all()
    norm = backend.clip_by_global_norm_([g, other], 1.0, norm_type)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert np.isnan(other).all() if math.isnan(bad) else (other == 0).all()  # as torch: inf gives the coefficient 0
    assert np.isnan(g[1])


def test_nan_is_seen_wherever_it_stands(backend: Any) -> None:
    for n in (1, 15, 16, 17, 65_536, 65_537):
        for at in {0, n // 2, n - 1}:
            g = np.ones(n, np.float32)
            g[at] = np.nan
            assert all(math.isnan(backend.global_norm([g], kind)) for kind in NORMS)


def test_by_norm_each_array_by_its_own(backend: Any, rng: np.random.Generator) -> None:
    given = gradients(rng)
    expected, expected_norms = reference.clip_by_norm_(given, 1.0)
    norms = backend.clip_by_norm_(given, 1.0)
    assert norms == pytest.approx(list(expected_norms), rel=1e-12)
    for got, want in zip(given, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_by_value(backend: Any) -> None:
    g = np.array([-3.0, -1.0, -0.0, 0.5, 1.0, 7.0, np.inf, -np.inf, np.nan], np.float32)
    backend.clip_by_value_([g], 1.0)
    np.testing.assert_array_equal(g, np.array([-1, -1, 0, 0.5, 1, 1, 1, -1, np.nan], np.float32))


def test_if_any_exceeds(backend: Any) -> None:
    large, small = np.array([3.0, 4.0]), np.array([3.0, 3.9])
    with_nan = np.array([np.nan, 5.0])
    assert backend.clip_if_any_exceeds_([large, small, with_nan], 3.95) == [True, False, True]
    np.testing.assert_allclose(large, [0.6, 0.8], rtol=1e-15)
    assert small.tolist() == [3.0, 3.9]
    assert np.isnan(with_nan).all()
    reached = np.array([4.0])
    assert backend.clip_if_any_exceeds_(reached, 4.0) == [False]  # exceeds, not reaches
    assert reached == 4.0


def test_strided_arrays_are_clipped_in_place(backend: Any) -> None:
    base = np.arange(24.0).reshape(4, 6)
    view = base[::2, ::3]
    expected = view / (np.linalg.norm(view) + 1e-6)
    rest = base[1::2].copy()
    backend.clip_by_global_norm_([view], 1.0)
    np.testing.assert_allclose(base[::2, ::3], expected, rtol=1e-12)
    assert np.array_equal(base[1::2], rest)
    backend.clip_by_value_(view, 0.1)
    assert base[::2, ::3].max() == 0.1


def test_nothing_to_clip(backend: Any) -> None:
    assert backend.clip_by_global_norm_([], 1.0) == 0.0
    assert backend.clip_by_norm_([], 1.0) == []
    assert backend.clip_by_global_norm_([np.zeros(4)], 0.0) == 0.0


def test_an_array_that_stands_twice_in_the_list_is_refused(backend: Any) -> None:
    if isinstance(backend, OnGpu):
        pytest.skip("it sends a copy of each array; tests/gpu has this on CuPy arrays")
    base = np.arange(12.0)
    interleaved = [base[::2], base[1::2]]
    backend.clip_by_global_norm_(interleaved, 1e9)  # neighbours in memory, but nothing shared
    before = base.copy()
    for twice in ([base, base], [base[:6], base[3:]], [base, np.ones(2), base[::-3]]):
        with pytest.raises(ValueError, match=r"gradients\[\d\]: expected memory of its own"):
            backend.clip_by_global_norm_(twice, 0.1)
    assert np.array_equal(base, before)


def test_if_any_exceeds_on_subnormal_gradients(backend: Any) -> None:
    g = np.array([3e-310, 4e-310])
    assert backend.clip_if_any_exceeds_(g, 0.0) == [True]
    np.testing.assert_allclose(g, [0.6, 0.8], rtol=1e-10)
