"""Random shapes and options against the reference: what nobody thought of putting into the table."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fusecell import ops, reference
from fusecell._cases import Case, largest_error, run_case, upstream_of

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
kernels = st.tuples(st.integers(1, 6), st.integers(1, 6))
ends = st.tuples(st.integers(0, 3), st.integers(0, 3))
paddings = st.one_of(st.sampled_from(["same", "valid"]), st.tuples(ends, ends))


@st.composite
def sequences(draw: Any) -> Case:
    T, B = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = {
        "T": T, "B": B, "I": draw(st.integers(1, 4)), "C": draw(st.integers(1, 6)),
        "H": draw(st.integers(1, 12)), "W": draw(st.integers(1, 40)), "k": draw(kernels), "kh": draw(kernels),
        "bias": draw(st.sampled_from([None, "channel", "pixel"])),
        "peephole": draw(st.sampled_from([None, "channel", "pixel"])), "start": draw(st.booleans()),
    }  # fmt: skip
    options: dict[str, Any] = {
        "stride": draw(pairs), "dilation": draw(pairs), "padding": draw(paddings), "reverse": draw(st.booleans()),
        "recurrent_activation": draw(st.sampled_from(["sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"])),
        "activation": draw(st.sampled_from(["tanh", "relu", "leaky_relu", "hard_tanh", "softsign", "identity"])),
        "truncation": draw(st.integers(0, 3)), "zoneout_h": draw(st.sampled_from([0.0, 0.3])),
        "zoneout_c": draw(st.sampled_from([0.0, 0.5])), "recurrent_dropout": draw(st.sampled_from([0.0, 0.5])),
        "training": draw(st.booleans()), "seed": draw(st.integers(0, 2**64 - 1)),
    }  # fmt: skip
    if draw(st.booleans()):
        options["lengths"] = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    return Case("conv_lstm", "drawn", shape, options)


@st.composite
def convolutions(draw: Any) -> Case:
    shape = {
        "B": draw(st.integers(0, 3)), "I": draw(st.integers(1, 9)), "O": draw(st.integers(1, 20)),
        "H": draw(st.integers(1, 20)), "W": draw(st.integers(1, 70)), "k": draw(kernels),
    }  # fmt: skip
    options = {"stride": draw(pairs), "dilation": draw(pairs), "padding": draw(paddings)}
    return Case("conv2d", "drawn", shape, options)


@st.composite
def by_winograd(draw: Any) -> Case:
    case = draw(st.one_of(sequences(), convolutions()))
    side = draw(st.sampled_from([3, 5]))
    kernels = {name: (side, side) for name in ("k", "kh") if name in case.shape}
    options = {name: value for name, value in case.options.items() if name not in ("stride", "dilation")}
    if case.op == "conv_lstm":  # no kinks: where z is 0 but for rounding, the reference's derivative is another's
        options |= {"recurrent_activation": "sigmoid", "activation": draw(st.sampled_from(["tanh", "identity"]))}
    return Case(case.op, "drawn", case.shape | kernels, options | {"algorithm": "winograd"})


def assert_as_the_reference(backend: Any, case: Case, seed: int) -> None:
    try:
        arguments = case.arguments(np.random.default_rng(seed))
        got = run_case(backend, case, arguments, None)
    except ValueError as error:  # no output pixel: the reference must refuse it, too
        assume("at least" not in str(error) and "negative dimensions" not in str(error))
        raise
    expected = run_case(reference, case, arguments, upstream_of(list(got.outputs.values())))
    digits = 100 if case.algorithm == "winograd" else 1  # that its transforms may cancel
    assert largest_error(got.outputs, expected.outputs) < 1e-12 * digits
    assert largest_error(got.gradients, expected.gradients) < 1e-11 * digits


@settings(max_examples=150)
@given(sequences(), st.integers(0, 10**6))
def test_sequences(backend: Any, case: Case, seed: int) -> None:
    assert_as_the_reference(backend, case, seed)


@settings(max_examples=150)
@given(convolutions(), st.integers(0, 10**6))
def test_convolutions(backend: Any, case: Case, seed: int) -> None:
    assert_as_the_reference(backend, case, seed)


@settings(max_examples=150)
@given(by_winograd(), st.integers(0, 10**6))
def test_winograd(case: Case, seed: int) -> None:
    assert_as_the_reference(ops, case, seed)


@settings(max_examples=100)
@given(
    st.integers(0, 300),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)
def test_masks_are_the_references_bit_for_bit(
    backend: Any, n: int, rate: float, seed: int, offset: int, stream: int
) -> None:
    got = backend.bernoulli((n,), rate, seed=seed, offset=offset, stream=stream)
    assert got.dtype == np.uint8
    assert np.array_equal(got, reference.bernoulli((n,), rate, seed=seed, offset=offset, stream=stream))


def test_a_counter_that_lies_in_memory_is_read_as_the_numbers_are_drawn(backend: Any) -> None:
    options = {"zoneout_h": 0.5, "recurrent_dropout": 0.5, "training": True, "seed": 9}
    arguments = list(Case("conv_lstm", "drawn", {"T": 2}).arguments(np.random.default_rng(0)).values())
    for offset in (0, 3, 2**40):
        counter = np.array([offset], np.int64)
        told = backend.bernoulli((50,), 0.5, seed=9, offset=offset)
        assert np.array_equal(backend.bernoulli((50,), 0.5, seed=9, offset=counter), told)
        y = backend.conv_lstm_forward(*arguments, **options, offset=counter)[0]
        assert y.tobytes() == backend.conv_lstm_forward(*arguments, **options, offset=offset)[0].tobytes()
