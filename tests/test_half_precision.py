"""bfloat16 and float16: what is stored has 16 bits, what is summed and the cell state have 32."""

from __future__ import annotations

import zlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fusecell import _dispatch, ops, reference
from fusecell._cases import (
    ACTIVATIONS,
    CASES,
    TENSOR_CORES_CASES,
    Arrays,
    Case,
    Outcome,
    largest_error,
    run_case,
    upstream_of,
)
from fusecell.optim import Adam
from fusecell.selftest import backends

HALVES = [n for n in backends() if n != "cpu"]
pytestmark = pytest.mark.skipif(not HALVES, reason="only GPUs compute in 16 bits, and no test build emulates one")

# A number's distance to the next, relative: the rounding of one result is half of it.
EPSILON = {ml_dtypes.bfloat16: 2.0**-7, np.float16: 2.0**-10}


@pytest.fixture(scope="module", params=HALVES)
def backend(request: pytest.FixtureRequest) -> Any:
    return backends()[request.param]


def arguments_of(case: Case, dtype: Any) -> Arrays:
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    cell_state = "c" if case.op == "lstm_gates" else "c_0"
    return {n: a.astype(np.float32) if n == cell_state and a is not None else a for n, a in arguments.items()}


ON_EACH_BACKEND = [(name, case) for name in HALVES for case in CASES]
ON_TENSOR_CORES = [(name, case) for name in HALVES if _dispatch.tensor_cores(name) for case in TENSOR_CORES_CASES]
# The table itself asks for the direct algorithm, whose properties test_cases.py has in float32.
SOME = [*ON_TENSOR_CORES[::4], *ON_EACH_BACKEND[::9]]


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("backend", "case"), [*ON_EACH_BACKEND, *ON_TENSOR_CORES], ids=str, indirect=["backend"])
def test_against_the_reference_on_the_same_inputs(backend: Any, case: Case, dtype: Any) -> None:
    arguments = arguments_of(case, dtype)
    got = run_case(backend, case, arguments, None)
    wide = {n: None if a is None else a.astype(np.float64) for n, a in arguments.items()}
    sent = [u.astype(np.float64) for u in upstream_of(list(got.outputs.values()))]
    expected = run_case(reference, case, wide, sent)
    for name, y in {**got.outputs, **{f"d{n}": g for n, g in got.gradients.items()}}.items():
        assert y.dtype == (np.float32 if name in ("c", "c_n", "dc", "dc_0") else dtype), name
    # Rounding of the result, and of the h that the next steps read.
    assert largest_error(got.outputs, expected.outputs) < EPSILON[dtype]
    if case.smooth:  # elsewhere a rounded value may lie on the other side of a corner, with another derivative
        assert largest_error(got.gradients, expected.gradients) < 4 * EPSILON[dtype]


def assert_same_bits(got: Outcome, expected: Outcome) -> None:
    for mine, theirs in ((got.outputs, expected.outputs), (got.gradients, expected.gradients)):
        assert list(mine) == list(theirs)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


def strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a.swapaxes(-1, -2), 2, axis=0)[::2].swapaxes(-1, -2) if a.ndim > 1 else np.repeat(a, 2)[::2]


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("backend", "case"), SOME, ids=str, indirect=["backend"])
def test_the_same_bits(backend: Any, case: Case, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, of strided inputs, with gates made again, and where what nobody wrote is NaN."""
    arguments = arguments_of(case, dtype)
    expected = run_case(backend, case, arguments, None)
    views = {name: None if a is None else strided(a) for name, a in arguments.items()}
    assert_same_bits(run_case(backend, case, views, None), expected)
    if case.op == "conv_lstm":
        assert_same_bits(run_case(backend, case, arguments, None, save="recompute"), expected)
    monkeypatch.setattr(_dispatch, "POISON", True)
    assert_same_bits(run_case(backend, case, arguments, None), expected)
    if case.op == "conv_lstm":  # what is kept for backward, at steps that do not take place, too
        *_, saved = backend.conv_lstm_forward(*arguments.values(), **case.options)
        assert not any(np.isnan(saved.arrays[name].astype(np.float32)).any() for name in ("y", "c", "gates"))


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(
    ("backend", "case"), [pair for pair in SOME if pair[1].op != "conv2d"], ids=str, indirect=["backend"]
)
def test_backward_in_part(backend: Any, case: Case, dtype: Any) -> None:
    *outputs, saved = getattr(backend, f"{case.op}_forward")(*arguments_of(case, dtype).values(), **case.options)
    backward, sent = getattr(backend, f"{case.op}_backward"), upstream_of(outputs)
    for name, gradient in backward(saved, *sent).items():
        alone = backward(saved, *sent, needs=[name])
        assert list(alone) == [name]
        assert alone[name].tobytes() == gradient.tobytes()


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend: Any, name: str, dtype: Any) -> None:
    x = np.concatenate([np.linspace(-9, 9, 777), [0.0, -0.0, np.inf, -np.inf, np.nan]]).astype(dtype)
    dy = np.cos(np.arange(x.size)).astype(dtype)
    y = backend.activation_forward(name, x)
    dx = backend.activation_backward(name, x, y, dy)
    assert y.dtype == dx.dtype == dtype
    # The adjoint is given y as it was stored.
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    half = EPSILON[dtype] / 2
    np.testing.assert_allclose(y.astype(np.float64), reference.activation_forward(name, wide_x), rtol=half, atol=1e-7)
    expected = reference.activation_backward(name, wide_x, wide_y, dy.astype(np.float64))
    np.testing.assert_allclose(dx.astype(np.float64), expected, rtol=half, atol=1e-7)


@pytest.mark.parametrize("dtype", EPSILON)
def test_softmax(backend: Any, dtype: Any, rng: np.random.Generator) -> None:
    x, dy = (5 * rng.standard_normal((3, 40, 5))).astype(dtype), rng.standard_normal((3, 40, 5)).astype(dtype)
    for axis in (1, 2):
        y = backend.softmax_forward(x, axis)
        dx = backend.softmax_backward(y, dy, axis)
        half = EPSILON[dtype] / 2
        np.testing.assert_allclose(
            y.astype(np.float64), reference.softmax_forward(x.astype(np.float64), axis), rtol=2 * half, atol=1e-7
        )
        expected = reference.softmax_backward(y.astype(np.float64), dy.astype(np.float64), axis)
        np.testing.assert_allclose(dx.astype(np.float64), expected, rtol=half, atol=1e-6)


def test_clipping_a_list_of_all_dtypes(backend: Any, rng: np.random.Generator) -> None:
    dtypes = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
    given = [rng.standard_normal((n,)).astype(d) for n, d in zip((1001, 70_000, 33, 9), dtypes, strict=True)]
    wide = [g.astype(np.float64) for g in given]
    expected, expected_norm = reference.clip_by_global_norm_(wide, 1.0)
    assert backend.clip_by_global_norm_(given, 1.0) == pytest.approx(expected_norm, rel=1e-12)
    assert [g.dtype for g in given] == dtypes
    for g, want in zip(given, expected, strict=True):
        rounding = EPSILON.get(g.dtype.type, 1e-7)
        np.testing.assert_allclose(g.astype(np.float64), want, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("dtype", EPSILON)
def test_adam_keeps_its_slots_in_float32(backend: Any, dtype: Any, rng: np.random.Generator) -> None:
    p, g = rng.standard_normal(100).astype(dtype), rng.standard_normal(100).astype(dtype)
    mean, square = np.zeros(100, np.float32), np.zeros(100, np.float32)
    wide = p.astype(np.float64), g.astype(np.float64)
    backend.adam_update_([p], [g], [mean], [square], step=1, lr=0.1)
    (new,), (new_mean,), (new_square,) = reference.adam_update_(
        [wide[0]], [wide[1]], [0 * wide[0]], [0 * wide[0]], step=1, lr=0.1
    )
    np.testing.assert_allclose(p.astype(np.float64), new, rtol=EPSILON[dtype] / 2, atol=1e-7)
    np.testing.assert_allclose(mean, new_mean, rtol=1e-6)
    np.testing.assert_allclose(square, new_square, rtol=1e-6)


@pytest.mark.parametrize("dtype", EPSILON)
def test_the_cpu_says_what_it_cannot(dtype: Any) -> None:
    x = np.zeros((1, 1, 1, 4, 4), dtype)
    with pytest.raises(TypeError, match="x: expected dtype float32 or float64, got"):
        ops.conv_lstm_forward(x, np.zeros((4, 1, 3, 3), dtype), np.zeros((4, 1, 3, 3), dtype))


def test_the_cell_state_is_float32(backend: Any) -> None:
    case = CASES[0]
    arguments = case.arguments(np.random.default_rng(0), np.float16)
    with pytest.raises(TypeError, match="c_0: expected dtype float32, got float16"):
        backend.conv_lstm_forward(*arguments.values())


@pytest.mark.skipif("emulated" not in HALVES, reason="not a test build")
def test_an_optimiser_of_16_bit_parameters_has_slots_of_32(rng: np.random.Generator) -> None:
    parameters = {"w": rng.standard_normal(50).astype(ml_dtypes.bfloat16)}
    optimizer = Adam(parameters, 0.1, clip_norm=1.0)
    assert {a.dtype for name, a in optimizer.state_dict().items() if name.endswith(".w")} == {np.dtype(np.float32)}
    with _dispatch.using("emulated"):
        optimizer.step({"w": parameters["w"].copy()})
