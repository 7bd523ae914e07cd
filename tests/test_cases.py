"""Every case of the table, on every backend: against the reference, and against itself for what must not matter."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

import fusecell
from fusecell import _dispatch, ops, reference
from fusecell._cases import (
    BFLOAT16_CASES,
    CASES,
    RNN_CASES,
    TF32_CASES,
    TOLERANCE,
    WINOGRAD_CASES,
    Case,
    Outcome,
    largest_error,
    run_case,
    upstream_of,
)
from fusecell.selftest import backends


def seeded(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def run(backend: Any, case: Case, dtype: Any, **extra: object) -> Outcome:
    return run_case(backend, case, case.arguments(seeded(case), dtype), None, **extra)


def same_bits(a: Outcome, b: Outcome) -> bool:
    return all(
        list(x) == list(y) and all(x[n].tobytes() == y[n].tobytes() for n in x)
        for x, y in ((a.outputs, b.outputs), (a.gradients, b.gradients))
    )


ON_EACH_BACKEND = [(name, case) for name in backends() for case in CASES]
ON_EACH_BACKEND += [
    ("cpu", case) for case in (*WINOGRAD_CASES, *BFLOAT16_CASES, *RNN_CASES)
]  # which the CPU alone knows
IN_TF32 = [(name, case) for name in backends() if _dispatch.tensor_cores(name) for case in TF32_CASES]


def each(pairs: list[tuple[str, Case]]) -> pytest.MarkDecorator:
    ids = [f"{name}-{case}" for name, case in pairs]
    return pytest.mark.parametrize(("backend", "case"), pairs, ids=ids, indirect=["backend"], scope="session")


# Emulated tensor cores take their time: some of the table, but for the comparison with the reference.
every_case = each([*ON_EACH_BACKEND, *IN_TF32[::4]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@each([*ON_EACH_BACKEND, *IN_TF32])
def test_against_the_reference(backend: Any, case: Case, dtype: type) -> None:
    arguments = case.arguments(seeded(case), dtype)
    name = np.dtype(dtype).name
    if name not in TOLERANCE[case.algorithm]:
        with pytest.raises(ValueError, match=f'got "{case.algorithm}" with {name}( arrays)?$'):
            run_case(backend, case, arguments, None)
        return
    got = run_case(backend, case, arguments, None)
    expected = run_case(
        reference, case, arguments, [u.astype(np.float64) for u in upstream_of(list(got.outputs.values()))]
    )
    assert all(y.dtype == dtype for y in (*got.outputs.values(), *got.gradients.values()))
    allowed = TOLERANCE[case.algorithm][name]
    assert largest_error(got.outputs, expected.outputs) < allowed.outputs
    assert largest_error(got.gradients, expected.gradients) < allowed.gradients


@pytest.mark.parametrize("case", [*CASES, *WINOGRAD_CASES, *BFLOAT16_CASES, *RNN_CASES], ids=str)
def test_same_bits_for_any_number_of_threads(case: Case) -> None:
    before = fusecell.get_num_threads()
    try:
        fusecell.set_num_threads(1)
        one = run(ops, case, np.float32)
        for threads in (2, 3):
            fusecell.set_num_threads(threads)
            assert same_bits(run(ops, case, np.float32), one)
    finally:
        fusecell.set_num_threads(before)


@every_case
def test_same_bits_twice(backend: Any, case: Case) -> None:
    assert same_bits(run(backend, case, np.float32), run(backend, case, np.float32))


@every_case
def test_recomputing_gives_the_same_bits(backend: Any, case: Case) -> None:
    if case.op != "conv_lstm":
        pytest.skip("only the sequence recomputes")
    assert same_bits(run(backend, case, np.float32, save="recompute"), run(backend, case, np.float32, save="gates"))


@every_case
def test_keeping_nothing_changes_no_output(backend: Any, case: Case) -> None:
    if case.op != "conv_lstm":
        pytest.skip("only the sequence may keep nothing")
    arguments = case.arguments(seeded(case), np.float32)
    kept, alone = (backend.conv_lstm_forward(*arguments.values(), **case.options, save=s) for s in ("gates", None))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(kept[:3], alone[:3], strict=True))
    assert alone[3] is None


@every_case
def test_strided_inputs_give_the_same_bits(backend: Any, case: Case) -> None:
    arguments = case.arguments(seeded(case), np.float32)

    def strided(a: np.ndarray) -> np.ndarray:
        return np.repeat(a.swapaxes(-1, -2), 2, axis=0)[::2].swapaxes(-1, -2) if a.ndim > 1 else np.repeat(a, 2)[::2]

    views = {name: None if a is None else strided(a) for name, a in arguments.items()}
    assert same_bits(run_case(backend, case, views, None), run_case(backend, case, arguments, None))


@every_case
def test_nothing_is_left_uninitialised(backend: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = run(backend, case, np.float32)
    monkeypatch.setattr(_dispatch, "POISON", True)
    assert same_bits(run(backend, case, np.float32), clean)
    if case.op == "conv_lstm":  # what is kept for backward, at steps that do not take place, too
        *_, saved = backend.conv_lstm_forward(*case.arguments(seeded(case), np.float32).values(), **case.options)
        assert not any(np.isnan(saved.arrays[name]).any() for name in ("y", "c", "gates"))


@every_case
def test_backward_can_be_called_again_and_in_part(backend: Any, case: Case) -> None:
    if case.op == "conv2d":
        pytest.skip("conv2d keeps nothing")
    *outputs, saved = getattr(backend, f"{case.op}_forward")(
        *case.arguments(seeded(case), np.float32).values(), **case.options
    )
    backward = getattr(backend, f"{case.op}_backward")
    sent = upstream_of(outputs)
    whole = backward(saved, *sent)
    for name, gradient in whole.items():
        alone = backward(saved, *sent, needs=[name])
        assert list(alone) == [name]
        assert alone[name].tobytes() == gradient.tobytes()
    assert backward(saved, *sent, needs=[]) == {}


@every_case
def test_inputs_are_left_alone(backend: Any, case: Case) -> None:
    arguments = case.arguments(seeded(case), np.float32)
    copies = {name: None if a is None else a.copy() for name, a in arguments.items()}
    run_case(backend, case, arguments, None)
    for name, a in arguments.items():
        assert a is None or a.tobytes() == copies[name].tobytes()  # type: ignore[union-attr]


def test_absent_upstream_gradients_are_zero(backend: Any) -> None:
    case = CASES[0]
    *outputs, saved = backend.conv_lstm_forward(*case.arguments(seeded(case)).values())
    dy, dh_n, _ = upstream_of(outputs)
    zero = np.zeros_like(dh_n)
    for given, absent in (((dy, zero, zero), (dy, None, None)), ((np.zeros_like(dy), dh_n, zero), (None, dh_n, None))):
        with_zeros, without = backend.conv_lstm_backward(saved, *given), backend.conv_lstm_backward(saved, *absent)
        assert all(np.array_equal(with_zeros[n], without[n]) for n in with_zeros)


def test_a_step_is_a_sequence_of_one(backend: Any, rng: np.random.Generator) -> None:
    x, wi, wh = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((8, 3, 3, 3)), rng.standard_normal((8, 2, 3, 3))
    h, c = rng.standard_normal((2, 2, 5, 6)), rng.standard_normal((2, 2, 5, 6))
    h1, c1, saved = backend.conv_lstm_step_forward(x, wi, wh, None, None, h, c)
    y, h_n, c_n, whole = backend.conv_lstm_forward(x[None], wi, wh, None, None, h, c)
    assert np.array_equal(h1, h_n)
    assert np.array_equal(h1, y[0])
    assert np.array_equal(c1, c_n)
    dh, dc = rng.standard_normal(h.shape), rng.standard_normal(h.shape)
    step, sequence = backend.conv_lstm_step_backward(saved, dh, dc), backend.conv_lstm_backward(whole, None, dh, dc)
    assert set(step) == {"x", "weight_ih", "weight_hh", "h", "c"}
    assert np.array_equal(step["x"], sequence["x"][0])
    assert np.array_equal(step["h"], sequence["h_0"])
    assert list(backend.conv_lstm_step_backward(saved, dh, dc, needs=["c"])) == ["c"]
    with pytest.raises(TypeError, match="lengths"):
        backend.conv_lstm_step_forward(x, wi, wh, lengths=[1, 1])


def test_what_stands_in_the_padding_affects_nothing(backend: Any, rng: np.random.Generator) -> None:
    lengths = [4, 0, 2]
    for reverse in (False, True):
        x = rng.standard_normal((4, 3, 2, 5, 6))
        wi, wh = rng.standard_normal((8, 2, 3, 3)), rng.standard_normal((8, 2, 3, 3))
        dy = rng.standard_normal((4, 3, 2, 5, 6))
        *clean, saved = backend.conv_lstm_forward(x, wi, wh, lengths=lengths, reverse=reverse)
        gradients = backend.conv_lstm_backward(saved, dy)
        for b, length in enumerate(lengths):
            x[length:, b] = np.nan
            dy[length:, b] = np.nan
        *dirty, saved = backend.conv_lstm_forward(x, wi, wh, lengths=lengths, reverse=reverse)
        dirty_gradients = backend.conv_lstm_backward(saved, dy)
        assert all(np.array_equal(a, b) for a, b in zip(clean, dirty, strict=True))
        assert all(np.array_equal(gradients[n], dirty_gradients[n]) for n in gradients)


def test_an_infinite_state_does_no_harm_where_no_option_reads_it(backend: Any, rng: np.random.Generator) -> None:
    z, c = rng.standard_normal((1, 4, 3)), np.array([[[np.inf, -np.inf, 1.0]]])
    h, c_new, _ = backend.lstm_gates_forward(z, c)
    assert np.isfinite(h).all()
    assert np.isposinf(c_new[0, 0, 0])
    assert np.isneginf(c_new[0, 0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_a_tap_never_reads_does_not_reach_its_gradient(
    backend: Any, bad: float, rng: np.random.Generator
) -> None:
    x, weight = rng.standard_normal((2, 3, 5, 5)), rng.standard_normal((2, 3, 2, 2))
    x[0, 1, 0, 4] = bad  # at the edge: with "valid", only the second column of taps meets it
    dy = rng.standard_normal((2, 2, 4, 4))
    got = backend.conv2d_backward(dy, x, weight, padding="valid")["weight"]
    expected = reference.conv2d_backward(dy, x, weight, padding="valid")["weight"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert np.isfinite(got).sum() == got.size - 2
    x[0, 1, 0, 4], x[:, :, :, 4] = 0.0, bad  # with stride 2, no tap meets the last column
    wi, wh = rng.standard_normal((4, 3, 2, 2)), rng.standard_normal((4, 1, 2, 2))
    *_, saved = backend.conv_lstm_forward(x[None], wi, wh, stride=2, padding="valid")
    assert np.isfinite(backend.conv_lstm_backward(saved, np.ones((1, 2, 1, 2, 2)))["weight_ih"]).all()


def test_without_a_rate_nothing_is_drawn(backend: Any, rng: np.random.Generator) -> None:
    _, _, saved = backend.lstm_gates_forward(
        rng.standard_normal((1, 4, 3)), rng.standard_normal((1, 1, 3)), training=True
    )
    assert saved.arrays["zoneout_mask_h"] is None
    assert saved.arrays["zoneout_mask_c"] is None
