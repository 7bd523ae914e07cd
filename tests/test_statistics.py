"""What backward says of each time step: against the reference, and without an effect on anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusecell
from fusecell import _cpu, _dispatch, layers, ops, reference
from fusecell._cases import CASES, WINOGRAD_CASES, Case, upstream_of
from fusecell.selftest import backends

SEQUENCES = [case for case in CASES if case.op == "conv_lstm"]
COUNTS = [ops.STEP_STATISTICS.index(n) for n in ops.STEP_STATISTICS if n.startswith(("count", "not_", "saturated"))]
SUMS = [column for column in range(len(ops.STEP_STATISTICS)) if column not in COUNTS]
# Sums of what the gradients' tolerance allows; squares err twice as much, and Winograd's bound is its own.
TOLERANCE = {"direct": {"float64": 1e-12, "float32": 2e-5}, "winograd": {"float64": 1e-9, "float32": 2e-3}}


def column(statistics: np.ndarray, name: str) -> np.ndarray:
    return statistics[:, ops.STEP_STATISTICS.index(name)]


def arguments_of(case: Case, dtype: Any) -> dict[str, Any]:
    """Those of the table, but that a part of the activations saturates."""
    made = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    return {**made, "weight_ih": made["weight_ih"] * dtype(3)}


def backward(module: Any, case: Case, arguments: dict[str, Any], **extra: Any) -> dict[str, np.ndarray]:
    """The gradients of a case, for what the test's own seed sends into it."""
    *outputs, saved = module.conv_lstm_forward(*arguments.values(), **case.options)
    return module.conv_lstm_backward(saved, *upstream_of(outputs), **extra)


def check(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.dtype == np.float64
    assert got.shape == expected.shape
    assert np.array_equal(got[:, COUNTS], expected[:, COUNTS])
    scale = np.abs(expected[:, SUMS]).max(axis=0, initial=1e-300)
    assert np.all(np.abs(got[:, SUMS] - expected[:, SUMS]) <= tolerance * scale)


# ------------------------------------------------------------------------------------------------------- the values
ON_EACH_BACKEND = [(name, case) for name in backends() for case in SEQUENCES]
ON_EACH_BACKEND += [("cpu", case) for case in WINOGRAD_CASES if case.op == "conv_lstm"]
every_case = pytest.mark.parametrize(
    ("backend", "case"), ON_EACH_BACKEND, ids=[f"{n}-{c}" for n, c in ON_EACH_BACKEND], indirect=["backend"],
    scope="session",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@every_case
def test_against_the_reference_and_no_gradient_changes(backend: Any, case: Case, dtype: type) -> None:
    arguments = arguments_of(case, dtype)
    got = backward(backend, case, arguments, statistics=True)
    statistics = got.pop("statistics")
    plain = backward(backend, case, arguments)
    assert list(got) == list(plain)
    assert all(got[name].tobytes() == plain[name].tobytes() for name in plain)
    expected = backward(reference, case, arguments, statistics=True)["statistics"]
    check(statistics, expected, TOLERANCE[case.algorithm][np.dtype(dtype).name])


def test_the_columns_have_the_references_names() -> None:
    assert ops.STEP_STATISTICS == reference.STEP_STATISTICS


def test_the_table_has_saturated_gates_of_each_kind() -> None:
    totals = sum(
        backward(reference, case, arguments_of(case, np.float64), statistics=True)["statistics"].sum(axis=0)
        for case in SEQUENCES[:12]
    )
    assert all(totals[ops.STEP_STATISTICS.index(f"saturated_{gate}")] > 0 for gate in "ifgo")


@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [
        (ml_dtypes.bfloat16, "direct"),
        (np.float16, "direct"),
        (ml_dtypes.bfloat16, "tensor_cores"),
        (np.float16, "tensor_cores"),
        (np.float32, "tf32"),
    ],
)
def test_16_bits_and_tensor_cores(dtype: Any, algorithm: str) -> None:
    if "emulated" not in backends():
        pytest.skip("not a test build")
    [case] = [c for c in SEQUENCES if "everything at once" in c.reason]
    case = replace(case, options=case.options | {"algorithm": algorithm})
    arguments = arguments_of(case, dtype)
    arguments["c_0"] = arguments["c_0"].astype(np.float32)
    got = backward(backends()["emulated"], case, arguments, statistics=True)["statistics"]
    wide = {name: None if a is None else a.astype(np.float64) for name, a in arguments.items()}
    direct = replace(case, options=case.options | {"algorithm": "direct"})
    expected = backward(reference, direct, wide, statistics=True)["statistics"]
    assert np.array_equal(column(got, "count"), column(expected, "count"))
    for name in ("dh_squared", "dc_squared", "forget"):
        assert np.allclose(column(got, name), column(expected, name), rtol=0.05)


def test_the_norm_of_dh_is_that_of_a_gradient_sent_into_h(backend: Any, rng: np.random.Generator) -> None:
    """Another way to dL/dh_t: y of a step is its h, so the gradient by an added y is it. One step alone shows it."""
    x, w_ih, w_hh = (rng.standard_normal(s) for s in ((1, 2, 2, 5, 6), (12, 2, 3, 3), (12, 3, 3, 3)))
    y, *_, saved = backend.conv_lstm_forward(x, w_ih, w_hh)
    dy, dh_n = rng.standard_normal(y.shape), rng.standard_normal(y.shape[1:])
    (row,) = backend.conv_lstm_backward(saved, dy, dh_n, statistics=True)["statistics"]
    assert row[0] == y.size
    assert row[1] == pytest.approx(float(np.sum((dy[0] + dh_n) ** 2)), rel=1e-13)


# --------------------------------------------------------------------------------------- what is lost, what is broken
def test_gradients_that_vanish_are_still_counted(backend: Any, rng: np.random.Generator) -> None:
    x, w_ih, w_hh = (rng.standard_normal(s).astype(np.float32) for s in ((2, 1, 1, 4, 4), (8, 1, 3, 3), (8, 2, 3, 3)))
    y, *_, saved = backend.conv_lstm_forward(x, w_ih, w_hh)
    statistics = backend.conv_lstm_backward(saved, np.full_like(y, 1e-30), statistics=True)["statistics"]
    assert column(statistics, "dh_squared")[-1] == pytest.approx(y[0].size * 1e-60, rel=1e-6)
    assert 0 < column(statistics, "dc_squared")[-1] < column(statistics, "dh_squared")[-1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_not_finite_is_counted_from_its_step_on(backend: Any, dtype: type, bad: float) -> None:
    rng = np.random.default_rng(0)
    x, w_ih, w_hh = (rng.standard_normal(s).astype(dtype) for s in ((4, 1, 1, 9, 9), (8, 1, 1, 1), (8, 2, 3, 3)))
    y, *_, saved = backend.conv_lstm_forward(x, w_ih, w_hh, algorithm="direct")
    dy = rng.standard_normal(y.shape).astype(dtype)
    dy[2, 0, 1, 4, 4] = bad
    counts = column(backend.conv_lstm_backward(saved, dy, statistics=True)["statistics"], "not_finite")
    assert counts[3] == 0
    assert counts[2] == 2  # dh and dc of that element
    assert counts[1] == 9 * 2 * 2  # that of all channels within the kernel
    assert counts[0] == 25 * 2 * 2


def test_squares_that_overflow_are_no_gradient_that_is_not_finite(backend: Any) -> None:
    x, w_ih, w_hh = np.ones((1, 1, 1, 2, 2)), np.ones((4, 1, 1, 1)), np.zeros((4, 1, 1, 1))
    y, *_, saved = backend.conv_lstm_forward(x, w_ih, w_hh)
    statistics = backend.conv_lstm_backward(saved, np.full_like(y, 1e200), statistics=True)["statistics"]
    assert column(statistics, "dh_squared") == np.inf
    assert column(statistics, "not_finite") == 0


# ---------------------------------------------------------------------------------------------------------- the bits
def large(statistics: bool = True) -> dict[str, np.ndarray]:
    """Several tasks in each of several groups of samples, on the CPU."""
    rng = np.random.default_rng(0)
    x, w_ih, w_hh = (
        rng.standard_normal(s).astype(np.float32) for s in ((3, 5, 2, 70, 60), (64, 2, 3, 3), (64, 16, 3, 3))
    )
    y, *_, saved = ops.conv_lstm_forward(x, w_ih, w_hh, lengths=[3, 2, 0, 1, 3])
    return ops.conv_lstm_backward(saved, y, statistics=statistics)


def test_the_same_bits_for_any_number_of_threads() -> None:
    before = fusecell.get_num_threads()
    try:
        fusecell.set_num_threads(1)
        one = large()
        for threads in (2, 3):
            fusecell.set_num_threads(threads)
            _cpu.reset_pool_statistics()
            for _ in range(20):  # a helper may sleep through one run on a busy machine
                assert all(a.tobytes() == one[name].tobytes() for name, a in large().items())
                if _cpu.pool_statistics()["most_workers"] >= 2:
                    break
            assert _cpu.pool_statistics()["most_workers"] >= 2
    finally:
        fusecell.set_num_threads(before)


def test_several_groups_of_samples() -> None:
    assert column(large()["statistics"], "count").tolist() == [4 * 16 * 4200, 3 * 16 * 4200, 2 * 16 * 4200]


@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_nothing_is_left_uninitialised(backend: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of(case, np.float32)
    clean = backward(backend, case, arguments, statistics=True)["statistics"]
    monkeypatch.setattr(_dispatch, "POISON", True)
    assert backward(backend, case, arguments, statistics=True)["statistics"].tobytes() == clean.tobytes()


OF_AN_ISA = """
import json, zlib
import numpy as np
from fusecell import ops
rng = np.random.default_rng(0)
x, w_ih, w_hh = (rng.standard_normal(s).astype("float32") for s in ((3, 2, 2, 21, 30), (12, 2, 3, 3), (12, 3, 3, 3)))
y, *_, saved = ops.conv_lstm_forward(x, w_ih, w_hh, algorithm="direct")
print(json.dumps(ops.conv_lstm_backward(saved, y, statistics=True)["statistics"].tolist()))
"""


def test_every_instruction_set_finds_the_same() -> None:
    names = _cpu.build_info()["isas_usable"]
    assert "portable" in names
    found = []
    for name in names:
        run = subprocess.run(
            [sys.executable, "-c", OF_AN_ISA], env={**os.environ, "FUSECELL_ISA": name},
            check=True, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        found.append(np.array(json.loads(run.stdout)))
    for other in found[1:]:
        assert np.array_equal(other[:, COUNTS], found[0][:, COUNTS])
        assert np.allclose(other, found[0], rtol=1e-5)


# ------------------------------------------------------------------------------------------------- asking, and layers
def test_needs_may_leave_the_statistics_alone(backend: Any) -> None:
    case = SEQUENCES[0]
    arguments = arguments_of(case, np.float64)
    alone = backward(backend, case, arguments, needs=[], statistics=True)
    assert list(alone) == ["statistics"]
    all_of_it = backward(backend, case, arguments, statistics=True)
    assert alone["statistics"].tobytes() == all_of_it["statistics"].tobytes()


def test_recomputed_gates_give_the_same_statistics(backend: Any) -> None:
    case = next(c for c in SEQUENCES if "everything at once" in c.reason)
    arguments = arguments_of(case, np.float32)
    found = []
    for save in ("gates", "recompute"):
        *outputs, saved = backend.conv_lstm_forward(*arguments.values(), **case.options, save=save)
        found.append(backend.conv_lstm_backward(saved, *upstream_of(outputs), statistics=True)["statistics"])
    assert found[0].tobytes() == found[1].tobytes()


def test_bad_calls() -> None:
    y, *_, saved = ops.conv_lstm_forward(np.ones((2, 1, 1, 3, 3)), np.ones((4, 1, 1, 1)), np.ones((4, 1, 1, 1)))
    with pytest.raises(TypeError, match="statistics: expected True or False, got 1"):
        ops.conv_lstm_backward(saved, y, statistics=1)  # type: ignore[arg-type]


def test_the_core_checks_the_shape() -> None:
    *_, saved = ops.conv_lstm_forward(np.ones((2, 1, 1, 3, 3)), np.ones((4, 1, 1, 1)), np.ones((4, 1, 1, 1)))
    given = _dispatch.describe_all({**saved.arrays, "statistics": np.zeros((2, 3, 9))})
    place = _dispatch.host_place()
    plan = _dispatch.plan("conv_lstm", place, _dispatch.describe_all(saved.arrays), saved.options, backward=True)
    assert plan["statistics_parts"] == 1
    with pytest.raises(ValueError, match=r"statistics: expected \(2, 1, 9\), got \(2, 3, 9\)"):
        _dispatch.run("conv_lstm_backward", place, given, saved.options, plan)


def test_a_watched_layer_leaves_what_its_steps_were_like(rng: np.random.Generator) -> None:
    net = layers.ConvLSTM2D(2, 3, 3, num_layers=2, bidirectional=True, rng=rng, dtype=np.float64)
    x = rng.standard_normal((4, 2, 2, 5, 6))
    y = net.forward(x, lengths=np.array([4, 2]))
    net.backward(y)
    plain = net.gradients()
    assert net.step_statistics == {}
    net.watched = True
    net.backward(y)
    assert all(np.array_equal(plain[name], g) for name, g in net.gradients().items())
    assert list(net.step_statistics) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for statistics in net.step_statistics.values():
        assert column(statistics, "count").tolist() == [180, 180, 90, 90]
        assert np.all(column(statistics, "dh_squared") > 0)
    net.watched = False
    net.backward(y)
    assert net.step_statistics == {}
