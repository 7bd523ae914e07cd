"""The plain recurrent network, beyond the table of cases: random shapes, its statistics, and what a tiny call costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusecell
from fusecell import _cpu, _dispatch, ops, reference
from fusecell._cases import ACTIVATIONS, Case, largest_error, run_case, upstream_of

STATISTICS = {name: column for column, name in enumerate(ops.RNN_STEP_STATISTICS)}


@st.composite
def networks(draw: Any) -> Case:
    extents = {"T": st.integers(0, 7), "B": st.integers(0, 20), "I": st.integers(1, 40), "C": st.integers(1, 70)}
    shape = {name: draw(extent) for name, extent in extents.items()}
    shape |= {"bias": draw(st.booleans()), "start": draw(st.booleans())}
    return Case("rnn", "drawn", shape, {"activation": draw(st.sampled_from(["tanh", "sigmoid", "elu", "softsign"]))})


@settings(max_examples=150)
@given(networks(), st.integers(0, 10**6))
def test_against_the_reference(case: Case, seed: int) -> None:
    arguments = case.arguments(np.random.default_rng(seed))
    got = run_case(ops, case, arguments, None)
    expected = run_case(reference, case, arguments, upstream_of(list(got.outputs.values())))
    assert largest_error(got.outputs, expected.outputs) < 1e-12
    assert largest_error(got.gradients, expected.gradients) < 1e-11


def watched(case: Case, dtype: Any = np.float64, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The statistics, and the reference's. Inputs are wide, so that some units saturate."""
    arguments = case.arguments(np.random.default_rng(3), dtype)
    arguments["x"] = 40 * arguments["x"]  # type: ignore[operator]
    tables = []
    for module in (ops, reference):
        *outputs, saved = module.rnn_forward(*arguments.values(), **case.options)
        sent = [scale * upstream for upstream in upstream_of(outputs)]
        tables.append(module.rnn_backward(saved, *(u.astype(y.dtype) for u, y in zip(sent, outputs, strict=True)),
                                          statistics=True)["statistics"])  # fmt: skip
    return tables[0], tables[1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_statistics(activation: str) -> None:
    got, expected = watched(Case("rnn", "watched", {"T": 5, "B": 19, "C": 11}, {"activation": activation}))
    assert got.shape == (5, 4)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    bounded = activation in ("sigmoid", "tanh", "softsign") or activation.startswith("hard")
    assert (got[:, STATISTICS["saturated"]].sum() > 0) == bounded


def test_statistics_of_vanished_gradients_do_not_underflow() -> None:
    got, expected = watched(Case("rnn", "vanished", {"B": 9}), np.float32, scale=1e-30)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert 0 < got[:, STATISTICS["dh_squared"]].max() < 1e-55


def test_statistics_count_what_is_not_finite() -> None:
    case = Case("rnn", "broken", {"T": 4, "B": 10, "C": 3})
    y, _, saved = ops.rnn_forward(*case.arguments(np.random.default_rng(0)).values())  # type: ignore[arg-type]
    dy = np.zeros_like(y)
    dy[2, 9, 1], dy[2, 0, 0] = np.nan, np.inf
    table = ops.rnn_backward(saved, dy, statistics=True)["statistics"]
    assert table[:, STATISTICS["not_finite"]].tolist() == [6, 6, 2, 0], "each spoils all units of its sample before"
    assert table[:, STATISTICS["count"]].tolist() == [30] * 4
    assert not np.isfinite(table[:3, STATISTICS["dh_squared"]]).any()


def test_statistics_change_no_bit_and_have_their_own_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("rnn", "large", {"T": 6, "B": 40, "I": 30, "C": 60})
    y, h_n, saved = ops.rnn_forward(*case.arguments(np.random.default_rng(0), np.float32).values())  # type: ignore[arg-type]
    plain = ops.rnn_backward(saved, y, h_n)
    monkeypatch.setattr(_dispatch, "POISON", True)
    before = fusecell.get_num_threads()
    tables = []
    try:
        for threads in (1, 2, 3):
            fusecell.set_num_threads(threads)
            found = ops.rnn_backward(saved, y, h_n, statistics=True)
            tables.append(found.pop("statistics").tobytes())
            assert {name: g.tobytes() for name, g in found.items()} == {name: g.tobytes() for name, g in plain.items()}
    finally:
        fusecell.set_num_threads(before)
    assert len(set(tables)) == 1


def test_relu_at_zero_is_an_argument() -> None:
    x, weight = np.array([[[0.0]], [[1.0]]]), np.ones((1, 1))
    for at_zero in (0.0, 0.5, 1.0):
        *_, saved = ops.rnn_forward(x, weight, weight, activation="relu", relu_at_zero=at_zero)
        assert ops.rnn_backward(saved, None, np.ones((1, 1)))["x"].reshape(-1).tolist() == [at_zero, 1.0]


def test_a_tiny_call_wakes_nobody_and_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = _cpu.rnn_plan
    monkeypatch.setattr(_cpu, "rnn_plan", lambda *a: asked.append(a[2]) or original(*a))
    _dispatch._plans.cache_clear()
    case = Case("rnn", "tiny", {"T": 100, "B": 1, "C": 2}, {"activation": "sigmoid"})
    arguments = case.arguments(np.random.default_rng(0))
    before = fusecell.get_num_threads()
    try:
        fusecell.set_num_threads(2)
        _cpu.reset_pool_statistics()
        for _ in range(200):
            *outputs, saved = ops.rnn_forward(*arguments.values(), **case.options)  # type: ignore[arg-type]
            ops.rnn_backward(saved, *outputs)
        assert _cpu.pool_statistics()["most_workers"] == 0
    finally:
        fusecell.set_num_threads(before)
    assert asked == [False, True]


def test_several_workers_take_part_and_give_the_same_bits() -> None:
    case = Case("rnn", "large", {"T": 20, "B": 128, "I": 64, "C": 128})
    arguments = case.arguments(np.random.default_rng(0), np.float32)
    before = fusecell.get_num_threads()
    try:
        fusecell.set_num_threads(1)
        one = run_case(ops, case, arguments, None)
        fusecell.set_num_threads(2)
        _cpu.reset_pool_statistics()
        for _ in range(200):  # a helper may sleep through many runs on a busy machine
            two = run_case(ops, case, arguments, None)
            for a, b in ((one.outputs, two.outputs), (one.gradients, two.gradients)):
                assert all(a[name].tobytes() == b[name].tobytes() for name in a)
            if _cpu.pool_statistics()["most_workers"] >= 2:
                break
        assert _cpu.pool_statistics()["most_workers"] >= 2
    finally:
        fusecell.set_num_threads(before)


def test_it_refuses_what_the_cpu_does_not_compute_on() -> None:
    arguments = Case("rnn", "refused", {}).arguments(np.random.default_rng(0))
    *_, saved = ops.rnn_forward(*arguments.values())  # type: ignore[arg-type]
    words = "x: expected a NumPy array for the CPU, which alone computes this op, got one for the backend emulated"
    with _dispatch.using("emulated"):
        with pytest.raises(ValueError, match=words):
            ops.rnn_forward(*arguments.values())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            ops.rnn_backward(saved)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weight_hh": np.zeros((5, 4))}, ValueError, r"weight_hh: expected \(5, 5\), got \(5, 4\)"),
        ({"weight_ih": np.zeros((5, 2))}, ValueError, r"weight_ih: expected \(5, 3\), got \(5, 2\)"),
        ({"x": np.zeros((4, 3))}, ValueError, r"x: expected shape \[T, B, I\], got \(4, 3\)"),
        ({"bias": np.zeros(5, np.float32)}, TypeError, "bias: expected dtype float64, got float32"),
        ({"h_0": np.zeros((2, 5))}, ValueError, r"h_0: expected \(3, 5\), got \(2, 5\)"),
        ({"activation": "gelu"}, ValueError, 'activation: expected one of identity, .*, got "gelu"'),
        ({"activation": None}, TypeError, "activation: expected a name, got NoneType"),
    ],
)
def test_messages(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = Case("rnn", "spoiled", {}).arguments(np.random.default_rng(0))
    with pytest.raises(error, match=words):
        ops.rnn_forward(**{**arguments, **change})


def test_what_no_machine_can_hold_is_a_memory_error() -> None:
    x = np.empty((0, 2**45, 1), np.float32)
    with pytest.raises(MemoryError, match="h_n: expected at most"):
        ops.rnn_forward(x, np.ones((4, 1), np.float32), np.ones((4, 4), np.float32))


def test_it_names_the_gpu_that_arrays_lie_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = Case("rnn", "refused", {}).arguments(np.random.default_rng(0))
    monkeypatch.setattr(_dispatch, "place_of", lambda arrays: _dispatch.place("cuda", 1))
    with pytest.raises(ValueError, match=r"x: expected a NumPy array for the CPU, .* got one on GPU 1"):
        ops.rnn_forward(*arguments.values())  # type: ignore[arg-type]
