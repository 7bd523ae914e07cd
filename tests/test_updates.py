"""One step of an optimiser over a list of arrays, clipping as it reads: against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusecell import ops, reference

SHAPES = [(70_001,), (3, 4), (0,), (1,), ()]


def lists(rng: np.random.Generator, count: int, dtype: Any) -> list[list[np.ndarray]]:
    return [[np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES] for _ in range(count)]


def assert_alike(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """To a few roundings of the largest value: a step of Adam may be a large number less another."""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * np.finfo(a.dtype).eps * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {"weight_decay": 0.1}]
)
def test_sgd(
    backend: Any, dtype: Any, max_norm: float | None, options: dict[str, Any], rng: np.random.Generator
) -> None:
    p, g, v = lists(rng, 3, dtype)
    clipping = {} if max_norm is None else {"norm": backend.global_norm(g), "max_norm": max_norm}
    before = [a.copy() for a in g]
    expected_p, expected_v = reference.sgd_update_(p, g, v, lr=0.1, **options, **clipping)
    backend.sgd_update_(p, g, v if options.get("momentum") else None, lr=0.1, **options, **clipping)
    assert_alike(p, expected_p)
    if options.get("momentum"):
        assert_alike(v, expected_v)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(g, before, strict=True)), "gradients are only read"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True}])
def test_adam(
    backend: Any, dtype: Any, max_norm: float | None, options: dict[str, Any], rng: np.random.Generator
) -> None:
    p, g, m, v = lists(rng, 4, dtype)
    v = [np.asarray(np.abs(a)) for a in v]
    clipping = {} if max_norm is None else {"norm": backend.global_norm(g), "max_norm": max_norm}
    for step in (1, 7, 1000):
        expected = reference.adam_update_(p, g, m, v, step=step, lr=0.1, **options, **clipping)
        # A step that the device counts gives the same bits as one that is told.
        copies = [[a.copy() for a in arrays] for arrays in (p, m, v)]
        counted = np.array([step], np.int64)
        backend.adam_update_(copies[0], g, copies[1], copies[2], step=counted, lr=0.1, **options, **clipping)
        backend.adam_update_(p, g, m, v, step=step, lr=0.1, **options, **clipping)
        for got, want, again in zip((p, m, v), expected, copies, strict=True):
            assert_alike(got, want)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(got, again, strict=True))


def test_many_arrays(backend: Any, rng: np.random.Generator) -> None:
    p, g, v = ([rng.standard_normal(n) for n in range(150)] for _ in range(3))
    expected, _ = reference.sgd_update_(p, g, v, lr=0.1, momentum=0.5)
    backend.sgd_update_(p, g, v, lr=0.1, momentum=0.5)
    assert_alike(p, expected)


def test_a_nan_norm_reaches_the_parameters(backend: Any) -> None:
    p, g = [np.zeros(3)], [np.array([1.0, np.nan, 2.0])]
    backend.sgd_update_(p, g, lr=1.0, norm=backend.global_norm(g), max_norm=1.0)
    assert np.isnan(p[0]).all()


def test_bad_calls_change_nothing(backend: Any) -> None:
    p, g = [np.zeros(3)], [np.ones(3)]
    for call, error, message in [
        (lambda: backend.sgd_update_(p, [np.ones(4)], lr=1.0), ValueError, r"gradients\[0\]: expected \(3,\)"),
        (lambda: backend.sgd_update_(p, [np.ones(3, "f4")], lr=1.0), TypeError, r"gradients\[0\]: expected dtype"),
        (lambda: backend.sgd_update_(p, [*g, *g], lr=1.0), ValueError, "gradients: expected 1 arrays"),
        (lambda: backend.sgd_update_(p, g, lr=1.0, momentum=0.5), TypeError, "velocities: expected arrays, got none"),
        (lambda: backend.sgd_update_(p, g, [np.ones(2)], lr=1.0), ValueError, r"velocities\[0\]: expected \(3,\)"),
        (lambda: backend.adam_update_(p, g, g, [], step=1, lr=1.0), TypeError, "squares: expected arrays"),
        (lambda: backend.adam_update_(p, g, g, g, step=0, lr=1.0), ValueError, "step: expected an integer from 1"),
        (lambda: backend.sgd_update_(p, g, lr="fast"), TypeError, "lr: expected a number"),
        (lambda: backend.sgd_update_(p, g, lr=1.0, norm=1.0), TypeError, "max_norm: expected a number"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert not p[0].any()


def test_a_parameter_that_stands_twice_is_refused() -> None:
    p, g = [np.zeros(3)], [np.ones(3)]
    with pytest.raises(ValueError, match=r"parameters\[1\]: expected memory of its own"):
        ops.sgd_update_([*p, *p], [*g, *g], lr=1.0)
    assert not p[0].any()
