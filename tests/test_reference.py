"""The reference's own proof: finite differences, closed forms, known answers, equalities that must hold."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from fusecell import reference
from fusecell.reference._philox import philox4x32_10

INF, NAN = math.inf, math.nan
ACTIVATIONS = [
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "hard_sigmoid", "hard_sigmoid_keras2",
    "hard_tanh", "softsign", "identity",
]  # fmt: skip
ARGUMENTS = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")


# ----------------------------------------------------------------------------------------- finite differences


def check_gradients(function, arguments, gradients, cotangents, rng, *, every_entry=False):
    """Holds ``gradients`` of sum(cotangent . result) against central differences of ``function``.

    In two random directions, which no wrong entry escapes; or along every entry.
    """
    step = 1e-5

    def loss(changed):
        results = function(**(arguments | changed))
        return sum(np.sum(w * r) for w, r in zip(cotangents, results, strict=True))

    for name, gradient in gradients.items():
        value = np.asarray(arguments[name], np.float64)
        assert gradient.shape == value.shape, name
        assert gradient.dtype == np.float64, name
        if every_entry:
            directions = np.eye(value.size).reshape(-1, *value.shape)
        else:
            directions = rng.standard_normal((2, *value.shape))
        for direction in directions:
            up, down = loss({name: value + step * direction}), loss({name: value - step * direction})
            expected = (up - down) / (2 * step)
            assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def problem(
    rng, *, T=4, B=3, Cin=2, C=2, size=(4, 3), state=None, k_ih=(3, 3), k_hh=(3, 3), bias="channel",
    peephole=None, gain=1.0,
):  # fmt: skip
    """The arguments of conv_lstm_forward; ``state`` is the size after the input convolution."""
    state = state or size

    def normal(*shape):
        return gain * rng.standard_normal(shape)

    kinds = {None: lambda n: None, "channel": lambda n: normal(n), "pixel": lambda n: normal(n, *state)}
    return {
        "x": normal(T, B, Cin, *size),
        "weight_ih": 0.4 * normal(4 * C, Cin, *k_ih),
        "weight_hh": 0.4 * normal(4 * C, C, *k_hh),
        "bias": kinds[bias](4 * C),
        "peephole": kinds[peephole](3 * C),
        "h_0": normal(B, C, *state),
        "c_0": normal(B, C, *state),
    }


def cotangents_of(arguments, rng):
    """dy, dh_n and dc_n of a problem."""
    state = arguments["h_0"].shape
    return [rng.standard_normal(s) for s in ((len(arguments["x"]), *state), state, state)]


def masks(rng, T=4, B=3, C=2, state=(4, 3)):
    """Masks for all that is random in a cell."""
    return {
        "zoneout_mask_h": rng.integers(0, 2, (T, B, C, *state), dtype=np.uint8),
        "zoneout_mask_c": rng.integers(0, 2, (T, B, C, *state), dtype=np.uint8),
        "dropout_mask": rng.integers(0, 2, (B, C, *state)) / 0.5,
    }


MASKS = masks(np.random.default_rng(99))
EVERYTHING = MASKS | {"lengths": [4, 2, 0], "reverse": True}
SEEDED = {"zoneout_h": 0.3, "zoneout_c": 0.4, "recurrent_dropout": 0.25, "seed": 2**40 + 7, "offset": 11}

STEEP = {"gain": 1.7, "peephole": "channel"}  # reaches both sides of every corner

# name: (what differs from problem()'s defaults, options of the cell)
CELLS = {
    "plain": ({}, {}),
    "no bias": ({"bias": None}, {}),
    "bias per pixel": ({"bias": "pixel"}, {}),
    "peephole per channel": ({"peephole": "channel"}, {}),
    "peephole per pixel": ({"peephole": "pixel", "bias": "pixel"}, {}),
    "one step": ({"T": 1}, {}),
    "one pixel": ({"T": 1, "B": 1, "Cin": 1, "C": 1, "size": (1, 1), "k_ih": (1, 1), "k_hh": (1, 1)}, {}),
    "one row": ({"size": (1, 5), "k_ih": (1, 3), "k_hh": (1, 5)}, {}),
    "kernel above the image": ({"size": (2, 1), "k_ih": (5, 3), "k_hh": (3, 7)}, {}),
    "even kernels": ({"k_ih": (2, 4), "k_hh": (4, 2)}, {}),
    "stride": ({"size": (7, 5), "state": (4, 3)}, {"stride": 2}),
    "strides": ({"size": (7, 5), "state": (3, 3), "k_ih": (2, 3)}, {"stride": (3, 2)}),
    "dilation": ({"size": (5, 6)}, {"dilation": (2, 3)}),
    "stride and dilation": ({"size": (6, 7), "state": (3, 3)}, {"stride": (2, 3), "dilation": 2}),
    "valid": ({"size": (6, 4), "state": (4, 2)}, {"padding": "valid"}),
    "padding": ({"size": (3, 3), "state": (5, 5)}, {"padding": 2}),
    "padding h, w": ({"size": (3, 3), "state": (3, 1)}, {"padding": (1, 0)}),
    "padding four": ({"size": (3, 3), "state": (4, 4)}, {"padding": ((0, 3), (2, 1))}),
    "lengths": ({}, {"lengths": [2, 4, 0]}),
    "reverse": ({}, {"reverse": True}),
    "reverse, lengths": ({"peephole": "channel"}, {"reverse": True, "lengths": np.int32([3, 0, 1])}),
    "zoneout masks": ({}, {k: MASKS[k] for k in ("zoneout_mask_h", "zoneout_mask_c")}),
    "zoneout of h": ({}, {"zoneout_mask_h": MASKS["zoneout_mask_h"]}),
    "zoneout of c": ({"peephole": "channel"}, {"zoneout_mask_c": MASKS["zoneout_mask_c"]}),
    "zoneout expected": ({"peephole": "channel"}, {"zoneout_h": 0.3, "zoneout_c": 0.2}),
    "zoneout drawn": ({}, {"zoneout_h": 0.3, "zoneout_c": 0.2, "training": True, "seed": 5}),
    "zoneout whole": ({}, {"zoneout_h": 1.0, "zoneout_c": 1.0}),
    "dropout mask": ({}, {"dropout_mask": MASKS["dropout_mask"]}),
    "dropout drawn": ({}, {"recurrent_dropout": 0.4, "training": True, "offset": 3}),
    "dropout, zoneout": ({}, MASKS),
    "everything": ({"peephole": "pixel"}, EVERYTHING),
    "everything drawn": ({}, SEEDED | {"training": True, "reverse": True, "lengths": [1, 3, 4]}),
    "hard sigmoid": (STEEP, {"recurrent_activation": "hard_sigmoid"}),
    "hard sigmoid, Keras 2": (STEEP, {"recurrent_activation": "hard_sigmoid_keras2"}),
    "relu": ({"peephole": "channel"}, {"activation": "relu"}),
    "leaky relu": ({"peephole": "channel"}, {"activation": "leaky_relu", "slope": 0.2}),
    "hard tanh": ({"peephole": "channel"}, {"activation": "hard_tanh"}),
    "softsign": ({"peephole": "channel"}, {"activation": "softsign"}),
    "identity": ({"peephole": "channel"}, {"activation": "identity"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_conv_lstm_gradients(name):
    rng = np.random.default_rng(1)
    different, options = CELLS[name]
    arguments = problem(rng, **different)
    cotangents = cotangents_of(arguments, rng)
    *results, saved = reference.conv_lstm_forward(**arguments, **options)
    assert [r.shape for r in results] == [w.shape for w in cotangents]
    gradients = reference.conv_lstm_backward(saved, *cotangents)
    assert set(gradients) == {name for name in ARGUMENTS if arguments[name] is not None}

    def function(**changed):
        return reference.conv_lstm_forward(**changed, **options)[:3]

    check_gradients(function, arguments, gradients, cotangents, rng)


def test_conv_lstm_gradients_entry_by_entry():
    rng = np.random.default_rng(2)
    arguments = problem(rng, T=2, B=2, C=1, size=(2, 2), k_hh=(2, 3), peephole="pixel", bias="channel")
    cotangents = cotangents_of(arguments, rng)
    gradients = reference.conv_lstm_backward(reference.conv_lstm_forward(**arguments)[3], *cotangents)

    def function(**changed):
        return reference.conv_lstm_forward(**changed)[:3]

    check_gradients(function, arguments, gradients, cotangents, rng, every_entry=True)


@pytest.mark.parametrize("given", range(1, 8))
def test_missing_cotangents_are_zero(given):
    rng = np.random.default_rng(3)
    arguments = problem(rng)
    saved = reference.conv_lstm_forward(**arguments)[3]
    cotangents = cotangents_of(arguments, rng)
    some = [w if given >> n & 1 else None for n, w in enumerate(cotangents)]
    zeros = [np.zeros_like(w) if s is None else w for w, s in zip(cotangents, some, strict=True)]
    assert_same(reference.conv_lstm_backward(saved, *some), reference.conv_lstm_backward(saved, *zeros))


# ---------------------------------------------------------------------------- the sequence as a loop of steps


def assert_same(got, expected, **tolerance):
    """Two dicts of arrays: equal to the bit, or within a tolerance."""
    assert list(got) == list(expected)
    for name in expected:
        if tolerance:
            np.testing.assert_allclose(got[name], expected[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def loop_of_steps(
    *, x, weight_ih, weight_hh, bias, peephole, h_0, c_0, truncation=0, frozen=None, lengths=None,
    reverse=False, zoneout_mask_h=None, zoneout_mask_c=None, **options,
):  # fmt: skip
    """conv_lstm by whole batches and np.where; states that enter steps k, 2k, ... can be held ``frozen``."""
    T, B = x.shape[:2]
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    h, c = h_0, c_0
    y = np.zeros((T, *h.shape))
    entered = {}
    for s in range(T):
        t = T - 1 - s if reverse else s
        active = (t < lengths)[:, None, None, None]
        if truncation and s and s % truncation == 0:
            entered[s] = h, c
            if frozen:
                h, c = (np.where(active, old, new) for old, new in zip(frozen[s], (h, c), strict=True))
        if zoneout_mask_h is not None:
            options["zoneout_mask_h"] = zoneout_mask_h[t]
        if zoneout_mask_c is not None:
            options["zoneout_mask_c"] = zoneout_mask_c[t]
        new_h, new_c, _ = reference.conv_lstm_step_forward(x[t], weight_ih, weight_hh, bias, peephole, h, c, **options)
        h, c = np.where(active, new_h, h), np.where(active, new_c, c)
        y[t] = np.where(active, new_h, 0.0)
    return (y, h, c), entered


TRUNCATED = {
    "every step": ({}, {"truncation": 1}),
    "every second": ({"T": 5}, {"truncation": 2}),
    "later than the end": ({}, {"truncation": 4}),
    "reverse": ({"T": 5}, {"truncation": 2, "reverse": True}),
    "lengths": ({}, {"truncation": 2, "lengths": [4, 2, 1]}),
    "reverse, lengths": ({}, {"truncation": 2, "lengths": [4, 2, 1], "reverse": True}),
    "everything": ({"peephole": "pixel"}, {"truncation": 3, **EVERYTHING}),
    "expected zoneout": ({}, {"truncation": 3, "zoneout_h": 0.2, "zoneout_c": 0.4}),
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_gradients_are_those_with_frozen_boundary_states(name):
    rng = np.random.default_rng(4)
    different, options = TRUNCATED[name]
    arguments = problem(rng, **different)
    cotangents = cotangents_of(arguments, rng)
    *results, saved = reference.conv_lstm_forward(**arguments, **options)
    expected, frozen = loop_of_steps(**arguments, **options)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)

    def function(**changed):
        return loop_of_steps(**changed, **options, frozen=frozen)[0]

    check_gradients(function, arguments, reference.conv_lstm_backward(saved, *cotangents), cotangents, rng)


def test_truncation_is_segments_run_one_by_one():
    rng = np.random.default_rng(5)
    arguments = problem(rng, T=5, peephole="channel")
    dy, dh_n, dc_n = cotangents_of(arguments, rng)
    y, h_n, c_n, saved = reference.conv_lstm_forward(**arguments, truncation=2)
    got = reference.conv_lstm_backward(saved, dy, dh_n, dc_n)

    state = {"h_0": arguments["h_0"], "c_0": arguments["c_0"]}
    parts = []
    for t in (slice(0, 2), slice(2, 4), slice(4, 5)):
        y_part, h, c, saved = reference.conv_lstm_forward(**(arguments | state | {"x": arguments["x"][t]}))
        np.testing.assert_array_equal(y_part, y[t])
        last = t.stop == 5
        parts.append(reference.conv_lstm_backward(saved, dy[t], dh_n if last else None, dc_n if last else None))
        state = {"h_0": h, "c_0": c}
    np.testing.assert_array_equal(state["h_0"], h_n)
    np.testing.assert_array_equal(state["c_0"], c_n)
    expected = {name: sum(p[name] for p in parts) for name in got}
    expected |= {"x": np.concatenate([p["x"] for p in parts]), "h_0": parts[0]["h_0"], "c_0": parts[0]["c_0"]}
    assert_same(got, expected, rtol=1e-12, atol=1e-12)


def test_a_padded_step_passes_gradients_on_even_at_a_boundary():
    rng = np.random.default_rng(6)
    arguments = problem(rng, T=4, B=3)
    _, dh_n, dc_n = cotangents_of(arguments, rng)
    for reverse in (False, True):
        options = {"lengths": [0, 4, 3], "truncation": 2, "reverse": reverse}
        got = reference.conv_lstm_backward(reference.conv_lstm_forward(**arguments, **options)[3], None, dh_n, dc_n)
        np.testing.assert_array_equal(got["h_0"][0], dh_n[0])
        np.testing.assert_array_equal(got["c_0"][0], dc_n[0])
        np.testing.assert_array_equal(got["h_0"][1], 0.0)  # all four steps active: cut at step 2
        np.testing.assert_array_equal(got["x"][:2, 1] == 0.0, not reverse)


@pytest.mark.parametrize("name", ["plain", "stride", "everything", "everything drawn", "hard sigmoid"])
def test_step_gradients(name):
    rng = np.random.default_rng(7)
    different, options = CELLS[name]
    options = {k: v for k, v in options.items() if k not in ("lengths", "reverse")}
    options |= {k: options[k][0] for k in ("zoneout_mask_h", "zoneout_mask_c") if k in options}
    arguments = problem(rng, **different)
    arguments |= {"x": arguments["x"][0], "h": arguments.pop("h_0"), "c": arguments.pop("c_0")}
    cotangents = [rng.standard_normal(arguments["h"].shape) for _ in range(2)]
    *_, saved = reference.conv_lstm_step_forward(**arguments, **options)
    gradients = reference.conv_lstm_step_backward(saved, *cotangents)
    assert set(gradients) == {name for name in arguments if arguments[name] is not None}

    def function(**changed):
        return reference.conv_lstm_step_forward(**changed, **options)[:2]

    check_gradients(function, arguments, gradients, cotangents, rng)


def test_reverse_is_forward_on_flipped_time():
    rng = np.random.default_rng(8)
    arguments = problem(rng, peephole="pixel")
    flipped = arguments | {"x": arguments["x"][::-1]}
    flipped_masks = MASKS | {k: MASKS[k][::-1] for k in ("zoneout_mask_h", "zoneout_mask_c")}
    dy, dh_n, dc_n = cotangents_of(arguments, rng)
    y, h_n, c_n, saved = reference.conv_lstm_forward(**arguments, **MASKS, reverse=True, truncation=3)
    y_flipped, h, c, saved_flipped = reference.conv_lstm_forward(**flipped, **flipped_masks, truncation=3)
    np.testing.assert_array_equal(y, y_flipped[::-1])
    np.testing.assert_array_equal(h_n, h)
    np.testing.assert_array_equal(c_n, c)
    np.testing.assert_array_equal(h_n, y[0])
    got = reference.conv_lstm_backward(saved, dy, dh_n, dc_n)
    expected = reference.conv_lstm_backward(saved_flipped, dy[::-1], dh_n, dc_n)
    assert_same(got, expected | {"x": expected["x"][::-1]})


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_are_each_sample_alone(reverse):
    rng = np.random.default_rng(9)
    lengths = [3, 0, 4]
    arguments = problem(rng, peephole="pixel")
    dy, dh_n, dc_n = cotangents_of(arguments, rng)
    *results, saved = reference.conv_lstm_forward(**arguments, **MASKS, lengths=lengths, reverse=reverse)
    got = reference.conv_lstm_backward(saved, dy, dh_n, dc_n)

    expected = {name: np.zeros_like(array) for name, array in arguments.items()}
    expected_results = [np.zeros_like(r) for r in results]
    for n, length in enumerate(lengths):
        b, t = slice(n, n + 1), slice(0, length)
        alone = arguments | {"x": arguments["x"][t, b], "h_0": arguments["h_0"][b], "c_0": arguments["c_0"][b]}
        its_masks = {
            "zoneout_mask_h": MASKS["zoneout_mask_h"][t, b],
            "zoneout_mask_c": MASKS["zoneout_mask_c"][t, b],
            "dropout_mask": MASKS["dropout_mask"][b],
        }
        *its_results, saved = reference.conv_lstm_forward(**alone, **its_masks, reverse=reverse)
        for whole, part, where in zip(expected_results, its_results, ((t, b), b, b), strict=True):
            whole[where] = part
        gradients = reference.conv_lstm_backward(saved, dy[t, b], dh_n[b], dc_n[b])
        expected["x"][t, b] = gradients.pop("x")
        expected["h_0"][b] = gradients.pop("h_0")
        expected["c_0"][b] = gradients.pop("c_0")
        for name, gradient in gradients.items():
            expected[name] += gradient
    for r, e in zip(results, expected_results, strict=True):
        np.testing.assert_allclose(r, e, rtol=1e-12, atol=1e-14)
    assert_same(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rubbish", [NAN, INF])
def test_what_stands_in_the_padding_affects_nothing(reverse, rubbish):
    rng = np.random.default_rng(10)
    arguments = problem(rng, peephole="channel")
    options = EVERYTHING | {"reverse": reverse}
    cotangents = cotangents_of(arguments, rng)
    *clean, saved = reference.conv_lstm_forward(**arguments, **options)
    clean_gradients = reference.conv_lstm_backward(saved, *cotangents)

    padding = np.arange(4)[:, None] >= np.asarray(options["lengths"])
    for array in (arguments["x"], cotangents[0]):
        array[padding] = rubbish
    options["zoneout_mask_h"] = np.where(padding[..., None, None, None], 77, options["zoneout_mask_h"])
    *results, saved = reference.conv_lstm_forward(**arguments, **options)
    for r, e in zip(results, clean, strict=True):
        np.testing.assert_array_equal(r, e)
    np.testing.assert_array_equal(results[0][padding], 0.0)
    gradients = reference.conv_lstm_backward(saved, *cotangents)
    assert_same(gradients, clean_gradients)
    np.testing.assert_array_equal(gradients["x"][padding], 0.0)


def test_length_zero_returns_the_first_state_with_gradient_one():
    rng = np.random.default_rng(11)
    arguments = problem(rng)
    cotangents = cotangents_of(arguments, rng)
    y, h_n, c_n, saved = reference.conv_lstm_forward(**arguments, lengths=[0, 0, 0])
    gradients = reference.conv_lstm_backward(saved, *cotangents)
    np.testing.assert_array_equal(y, 0.0)
    np.testing.assert_array_equal(h_n, arguments["h_0"])
    np.testing.assert_array_equal(c_n, arguments["c_0"])
    np.testing.assert_array_equal(gradients.pop("h_0"), cotangents[1])
    np.testing.assert_array_equal(gradients.pop("c_0"), cotangents[2])
    assert not any(g.any() for g in gradients.values())


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_empty(T, B):
    rng = np.random.default_rng(12)
    arguments = problem(rng, T=T, B=B, peephole="pixel")
    for options in ({}, SEEDED | {"training": True}, {"lengths": np.zeros(B, int)}, {"reverse": True}):
        y, h_n, c_n, saved = reference.conv_lstm_forward(**arguments, **options)
        assert y.shape == (T, B, 2, 4, 3)
        np.testing.assert_array_equal(h_n, arguments["h_0"])
        np.testing.assert_array_equal(c_n, arguments["c_0"])
        gradients = reference.conv_lstm_backward(saved, y, h_n, c_n)
        assert {name: g.shape for name, g in gradients.items()} == {n: a.shape for n, a in arguments.items()}
        assert not any(g.any() for name, g in gradients.items() if name not in ("h_0", "c_0"))


def test_the_state_is_zero_if_not_given():
    arguments = problem(np.random.default_rng(13))
    given = arguments | {"h_0": np.zeros((3, 2, 4, 3)), "c_0": np.zeros((3, 2, 4, 3))}
    left_out = {name: a for name, a in arguments.items() if name not in ("h_0", "c_0")}
    *results, saved = reference.conv_lstm_forward(**left_out)
    *expected, saved_given = reference.conv_lstm_forward(**given)
    for r, e in zip(results, expected, strict=True):
        np.testing.assert_array_equal(r, e)
    dy = np.ones_like(results[0])
    assert_same(reference.conv_lstm_backward(saved, dy), reference.conv_lstm_backward(saved_given, dy))


def test_arguments_and_saved_tensors_are_left_alone():
    rng = np.random.default_rng(14)
    arguments = problem(rng, peephole="channel")
    before = {name: a.copy() for name, a in arguments.items()}
    cotangents = cotangents_of(arguments, rng)
    *results, saved = reference.conv_lstm_forward(**arguments, **EVERYTHING)
    first = reference.conv_lstm_backward(saved, *cotangents)
    for r in results:
        r.fill(NAN)  # the caller's to do with as he likes
    second = reference.conv_lstm_backward(saved, *cotangents)
    assert_same(first, second)
    assert_same(arguments, before)


def test_float32_and_strided_arguments():
    arguments = problem(np.random.default_rng(15), peephole="pixel")
    narrow = {name: a.astype(np.float32) for name, a in arguments.items()}
    strided = {name: np.repeat(a, 2, axis=0)[::2] for name, a in narrow.items()}
    for r, e in zip(reference.conv_lstm_forward(**strided)[:3], reference.conv_lstm_forward(**narrow)[:3], strict=True):
        assert r.dtype == np.float64
        np.testing.assert_allclose(r, e, rtol=1e-13)


def test_needs():
    rng = np.random.default_rng(16)
    arguments = problem(rng, bias=None)
    saved = reference.conv_lstm_forward(**arguments)[3]
    every = reference.conv_lstm_backward(saved, np.ones((4, 3, 2, 4, 3)))
    assert set(every) == {"x", "weight_ih", "weight_hh", "h_0", "c_0"}
    some = reference.conv_lstm_backward(saved, np.ones((4, 3, 2, 4, 3)), needs=["weight_hh", "x"])
    assert_same(some, {"weight_hh": every["weight_hh"], "x": every["x"]})
    assert reference.conv_lstm_backward(saved, needs=[]) == {}
    with pytest.raises(ValueError, match="needs"):
        reference.conv_lstm_backward(saved, needs=["bias"])


# ------------------------------------------------------------------------------------------ the cell, by hand


def test_one_cell_by_hand():
    """One pixel, one channel, two steps, every option: the formula of the design once more, in scalars."""
    x, h, c = [0.7, -1.2], 0.3, -0.6
    w_ih, w_hh, b = [0.5, -0.4, 0.9, 1.1], [-0.3, 0.8, 0.6, -0.7], [0.1, 1.0, -0.2, 0.3]
    p_i, p_f, p_o = 0.25, -0.5, 0.75
    dropout, keep_h, keep_c = 2.0, [0, 1], [1, 0]

    def sigma(a):
        return 1 / (1 + math.exp(-a))

    expected = []
    for t in range(2):
        z = [w_ih[n] * x[t] + w_hh[n] * dropout * h + b[n] for n in range(4)]
        i, f, g = sigma(z[0] + p_i * c), sigma(z[1] + p_f * c), math.tanh(z[2])
        new_c = f * c + i * g
        new_h = sigma(z[3] + p_o * new_c) * math.tanh(new_c)
        c = c if keep_c[t] else new_c
        h = h if keep_h[t] else new_h
        expected.append((h, c))

    y, h_n, c_n, _ = reference.conv_lstm_forward(
        np.reshape(x, (2, 1, 1, 1, 1)), np.reshape(w_ih, (4, 1, 1, 1)), np.reshape(w_hh, (4, 1, 1, 1)), b,
        [p_i, p_f, p_o], [[[[0.3]]]], [[[[-0.6]]]], dropout_mask=[[[[dropout]]]],
        zoneout_mask_h=np.reshape(keep_h, (2, 1, 1, 1, 1)),
        zoneout_mask_c=np.reshape(keep_c, (2, 1, 1, 1, 1)),
    )  # fmt: skip
    np.testing.assert_allclose(y.ravel(), [h for h, _ in expected], rtol=1e-14)
    np.testing.assert_allclose([h_n.item(), c_n.item()], expected[-1], rtol=1e-14)


def test_drawn_masks_are_bernoulli():
    arguments = problem(np.random.default_rng(17))
    state = arguments["h_0"].shape
    where = {"seed": SEEDED["seed"], "offset": SEEDED["offset"]}
    drawn = {
        "zoneout_mask_h": reference.bernoulli((4, *state), 0.3, stream=1, **where),
        "zoneout_mask_c": reference.bernoulli((4, *state), 0.4, stream=2, **where),
        "dropout_mask": (1 - reference.bernoulli(state, 0.25, stream=0, **where).astype(float)) / 0.75,
    }
    for mask in drawn.values():
        assert 0 < np.count_nonzero(mask) < mask.size
    got = reference.conv_lstm_forward(**arguments, **SEEDED, training=True)[:3]
    expected = reference.conv_lstm_forward(**arguments, **drawn)[:3]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)
    # a mask that is given wins over the rate, in training and out of it
    for training in (False, True):
        got = reference.conv_lstm_forward(**arguments, **drawn, **SEEDED, training=training)[:3]
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_array_equal(g, e)


def test_outside_training_dropout_is_off_and_zoneout_its_expectation():
    arguments = problem(np.random.default_rng(18))
    got = reference.conv_lstm_forward(**arguments, recurrent_dropout=0.5, zoneout_h=0.25)[:3]
    expected = reference.conv_lstm_forward(**arguments, zoneout_mask_h=np.full((4, 3, 2, 4, 3), 0.25))[:3]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)


def test_an_infinite_state_makes_no_nan_of_what_is_not_there():
    z = np.zeros((1, 4, 1))
    h, c, _ = reference.lstm_gates_forward(z, [[[INF]]])  # no peephole: no 0 * inf
    assert c.item() == INF
    assert h.item() == 0.5


# ------------------------------------------------------------------------------------------------------ gates


@pytest.mark.parametrize("spatial", [(), (3,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("kind", ["none", "channel", "pixel"])
@pytest.mark.parametrize("zoneout", [{}, {"zoneout_h": 0.3, "zoneout_c": 0.6}])
def test_gates_gradients(spatial, kind, zoneout):
    rng = np.random.default_rng(19)
    B, C = 2, 3
    arguments = {"z": rng.standard_normal((B, 4 * C, *spatial)), "c": rng.standard_normal((B, C, *spatial))}
    if kind != "none":
        pixels = spatial if kind == "pixel" else ()
        arguments["bias"] = rng.standard_normal((4 * C, *pixels))
        arguments["peephole"] = rng.standard_normal((3 * C, *pixels))
    if zoneout:
        arguments["h"] = rng.standard_normal((B, C, *spatial))
    cotangents = [rng.standard_normal((B, C, *spatial)) for _ in range(2)]
    for training in (False, True):
        options = zoneout | {"training": training, "seed": 3}
        gradients = reference.lstm_gates_backward(reference.lstm_gates_forward(**arguments, **options)[2], *cotangents)
        assert set(gradients) == set(arguments)

        def function(options=options, **changed):
            return reference.lstm_gates_forward(**changed, **options)[:2]

        check_gradients(function, arguments, gradients, cotangents, rng, every_entry=spatial == (3,))


def test_gates_are_the_pointwise_part_of_a_step():
    rng = np.random.default_rng(20)
    a = problem(rng, peephole="pixel", bias="pixel")
    z = reference.conv2d_forward(a["x"][0], a["weight_ih"]) + reference.conv2d_forward(a["h_0"], a["weight_hh"])
    got = reference.lstm_gates_forward(z, a["c_0"], a["h_0"], a["bias"], a["peephole"], zoneout_h=0.1)[:2]
    expected = reference.conv_lstm_step_forward(
        a["x"][0], a["weight_ih"], a["weight_hh"], a["bias"], a["peephole"], a["h_0"], a["c_0"], zoneout_h=0.1
    )[:2]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-13)


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_relu_at_zero_reaches_the_cell(at_zero):
    z, c = np.zeros((1, 4)), np.zeros((1, 1))  # g = phi(0), C = 0
    options = {"activation": "relu", "relu_at_zero": at_zero}
    got = reference.lstm_gates_backward(reference.lstm_gates_forward(z, c, **options)[2], [[1.0]], [[1.0]])
    dnew_c = 1.0 + 0.5 * at_zero
    assert got["c"].item() == 0.5 * dnew_c
    assert got["z"][0, 2] == dnew_c * 0.5 * at_zero


def test_gates_with_zoneout_need_h():
    for options in ({"zoneout_h": 0.1}, {"zoneout_mask_h": [[1]]}):
        with pytest.raises(ValueError, match=r"^h: "):
            reference.lstm_gates_forward(np.zeros((1, 4)), np.zeros((1, 1)), **options)


# ------------------------------------------------------------------------------------------------ convolution


def convolution_by_hand(x, weight, stride, dilation, low, out):
    y = np.zeros((len(x), len(weight), *out))
    for b, o, h, w in np.ndindex(*y.shape):
        for i, r, s in np.ndindex(*weight.shape[1:]):
            row = h * stride[0] - low[0] + r * dilation[0]
            column = w * stride[1] - low[1] + s * dilation[1]
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                y[b, o, h, w] += weight[o, i, r, s] * x[b, i, row, column]
    return y


# size, kernel, stride, dilation, padding -> zeros before, outputs; worked out on paper for each axis
CONVOLUTIONS = [
    ((5, 4), (3, 1), (1, 1), (1, 1), "same", (1, 0), (5, 4)),
    ((4, 5), (2, 4), (1, 1), (1, 1), "same", (0, 1), (4, 5)),
    ((5, 6), (3, 3), (2, 2), (1, 1), "same", (1, 0), (3, 3)),
    ((5, 5), (1, 2), (3, 2), (1, 1), "same", (0, 0), (2, 3)),
    ((5, 6), (3, 2), (1, 1), (2, 3), "same", (2, 1), (5, 6)),
    ((7, 7), (3, 3), (3, 2), (2, 2), "same", (2, 2), (3, 4)),
    ((1, 1), (11, 5), (1, 1), (1, 1), "same", (5, 2), (1, 1)),
    ((5, 4), (3, 2), (1, 1), (1, 1), "valid", (0, 0), (3, 3)),
    ((7, 6), (3, 3), (2, 3), (2, 1), "valid", (0, 0), (2, 2)),
    ((3, 4), (3, 3), (1, 2), (1, 1), 2, (2, 2), (5, 3)),
    ((3, 4), (3, 3), (1, 1), (1, 1), (0, 1), (0, 1), (1, 4)),
    ((3, 4), (3, 3), (1, 1), (1, 1), ((2, 0), (0, 3)), (2, 0), (3, 5)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "padding", "low", "out"), CONVOLUTIONS)
def test_conv2d(size, kernel, stride, dilation, padding, low, out):
    rng = np.random.default_rng(21)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    arguments = {
        "x": rng.standard_normal((2, 3, *size)),
        "weight": rng.standard_normal((4, 3, *kernel)),
        "bias": rng.standard_normal(4),
    }
    y = reference.conv2d_forward(**arguments, **options)
    expected = convolution_by_hand(arguments["x"], arguments["weight"], stride, dilation, low, out)
    np.testing.assert_allclose(y, expected + arguments["bias"][:, None, None], rtol=1e-12, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    gradients = reference.conv2d_backward(dy, arguments["x"], arguments["weight"], **options)

    def function(**changed):
        return [reference.conv2d_forward(**changed, **options)]

    check_gradients(function, arguments, gradients, [dy], rng)


def test_conv2d_defaults_and_needs():
    rng = np.random.default_rng(22)
    x, weight, dy = (rng.standard_normal(s) for s in ((1, 2, 4, 4), (3, 2, 3, 3), (1, 3, 4, 4)))
    np.testing.assert_array_equal(
        reference.conv2d_forward(x, weight), reference.conv2d_forward(x, weight, padding=((1, 1), (1, 1)))
    )
    every = reference.conv2d_backward(dy, x, weight)
    assert_same(reference.conv2d_backward(dy, x, weight, needs=["bias"]), {"bias": every["bias"]})
    assert reference.conv2d_forward(np.zeros((0, 2, 4, 4)), weight).shape == (0, 3, 4, 4)


# ------------------------------------------------------------------------------------------------ activations


def by_formula(name, x):
    """(y, dy/dx) away from overflow, from the formula as one writes it."""
    e = math.exp(-abs(x))
    return {
        "sigmoid": lambda: (1 / (1 + math.exp(-x)), e / (1 + e) ** 2),
        "tanh": lambda: (math.tanh(x), 1 / math.cosh(x) ** 2),
        "relu": lambda: (max(x, 0.0), float(x > 0)),
        "leaky_relu": lambda: (x if x > 0 else 0.01 * x, 1.0 if x > 0 else 0.01),
        "elu": lambda: (x, 1.0) if x > 0 else (math.exp(x) - 1, math.exp(x)),
        "softplus": lambda: (math.log(1 + math.exp(x)), 1 / (1 + math.exp(-x))),
        "hard_sigmoid": lambda: (min(max(x + 3, 0), 6) / 6, 1 / 6 if -3 < x < 3 else 0.0),
        "hard_sigmoid_keras2": lambda: (min(max(x / 5 + 0.5, 0), 1), 0.2 if -2.5 <= x <= 2.5 else 0.0),
        "hard_tanh": lambda: (min(max(x, -1), 1), float(-1 < x < 1)),
        "softsign": lambda: (x / (1 + abs(x)), (1 + abs(x)) ** -2),
        "identity": lambda: (x, 1.0),
    }[name]()


# (y, dy/dx) at -inf or -1e4, and at 1e4 or inf; None where it is y = x there
TAILS = {
    "sigmoid": ((0, 0), (1, 0)),
    "tanh": ((-1, 0), (1, 0)),
    "relu": ((0, 0), (None, 1)),
    "leaky_relu": ((None, 0.01), (None, 1)),
    "elu": ((-1, 0), (None, 1)),
    "softplus": ((0, 0), (None, 1)),
    "hard_sigmoid": ((0, 0), (1, 0)),
    "hard_sigmoid_keras2": ((0, 0), (1, 0)),
    "hard_tanh": ((-1, 0), (1, 0)),
    "identity": ((None, 1), (None, 1)),
}


def activate(name, x, **shape):
    """(y, dy/dx) of the reference, as floats."""
    y = reference.activation_forward(name, x, **{k: v for k, v in shape.items() if k != "at_zero"})
    return y.item(), reference.activation_backward(name, x, y, 1.0, **shape).item()


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 3.0, -3.0, 0.3, -0.3, 5.5, -5.5])
def test_activation_at_corners(name, x):
    assert activate(name, x) == pytest.approx(by_formula(name, x), rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("x", [-INF, -1e4, 1e4, INF])
def test_activation_in_the_tails(name, x):
    y, derivative = TAILS[name][x > 0]
    if y is None:
        y = 0.01 * x if name == "leaky_relu" and x < 0 else x
    assert activate(name, x) == (y, derivative)


def test_softsign_in_the_tails():
    assert activate("softsign", INF) == (1.0, 0.0)
    assert activate("softsign", -INF) == (-1.0, 0.0)
    assert activate("softsign", -1e4) == pytest.approx((-1e4 / 10001, 10001.0**-2), rel=1e-15)
    assert activate("softsign", 1e300)[0] == 1.0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_in_nan_out(name):
    assert all(math.isnan(v) for v in activate(name, NAN))
    assert math.isnan(reference.activation_backward(name, 0.5, 0.5, NAN).item())
    assert math.isnan(reference.activation_backward(name, -9.0, -9.0, NAN).item())


def test_signs_of_zero():
    y = reference.activation_forward("relu", [-0.0, -1.0, 0.0])
    np.testing.assert_array_equal(np.signbit(y), False)
    for name in ("tanh", "hard_tanh", "softsign", "identity", "elu", "leaky_relu"):
        assert np.signbit(reference.activation_forward(name, -0.0)), name


@pytest.mark.parametrize("at_zero", [0, 0.5, 1])
def test_relu_at_zero(at_zero):
    for zero in (0.0, -0.0):
        assert activate("relu", zero, at_zero=at_zero) == (0.0, at_zero)
    assert activate("relu", 5e-324, at_zero=at_zero) == (5e-324, 1.0)
    assert activate("relu", -5e-324, at_zero=at_zero) == (0.0, 0.0)


def test_slope_and_alpha():
    assert activate("leaky_relu", -2.0, slope=0.25) == (-0.5, 0.25)
    assert activate("leaky_relu", 0.0, slope=0.25) == (0.0, 0.25)
    assert activate("elu", 0.0, alpha=1.5) == (0.0, 1.5)
    assert activate("elu", -1.0, alpha=1.5) == pytest.approx((1.5 * (math.exp(-1) - 1), 1.5 * math.exp(-1)))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "elu"])
def test_activation_to_a_few_ulp(name):
    magnitudes = [1e-300, 1e-20, 1e-9, 1e-3, 0.1, 0.5, 1, 3, 10, 36, 40, 100, 300, 700]
    with localcontext() as context:
        context.prec = 400
        for x in itertools.chain(magnitudes, (-m for m in magnitudes)):
            e = Decimal(x).exp()
            exact = {
                "sigmoid": lambda e=e: e / (1 + e),
                "tanh": lambda e=e: (e * e - 1) / (e * e + 1),
                "softplus": lambda e=e: (1 + e).ln(),
                "elu": lambda x=x, e=e: Decimal(x) if x > 0 else e - 1,
            }[name]()
            y = reference.activation_forward(name, x).item()
            assert abs(Decimal(y) - exact) <= 3 * Decimal(math.ulp(float(exact))), x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gradients(name):
    rng = np.random.default_rng(23)
    x, dy = rng.uniform(-4, 4, (50,)), rng.standard_normal(50)
    shape = {"slope": 0.3, "alpha": 0.7}
    dx = reference.activation_backward(name, x, reference.activation_forward(name, x, **shape), dy, **shape)

    def function(x):
        return [reference.activation_forward(name, x, **shape)]

    check_gradients(function, {"x": x}, {"x": dx}, [dy], rng, every_entry=True)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis):
    rng = np.random.default_rng(24)
    x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
    y = reference.softmax_forward(x, axis)
    np.testing.assert_allclose(y, np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True), rtol=1e-14)
    dx = reference.softmax_backward(y, dy, axis)
    check_gradients(lambda x: [reference.softmax_forward(x, axis)], {"x": x}, {"x": dx}, [dy], rng, every_entry=True)


def test_softmax_does_not_overflow():
    np.testing.assert_allclose(reference.softmax_forward([1e4, 1e4 + math.log(3)]), [0.25, 0.75], rtol=1e-10)
    np.testing.assert_array_equal(reference.softmax_forward([-1e4, 1e4, -INF]), [0.0, 1.0, 0.0])
    assert np.isnan(reference.softmax_forward([[NAN, 1.0]])).all()
    assert np.isnan(reference.softmax_forward([[INF, 1.0]])[0, 0])
    assert reference.softmax_forward(np.zeros((0, 3))).shape == (0, 3)


# --------------------------------------------------------------------------------------------- random numbers


def words(text):
    return [int(word, 16) for word in text.split()]


# The known answers that Random123 ships for philox4x32-10: counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, result):
    got = philox4x32_10([np.array([w], np.uint64) for w in words(counter)], tuple(words(key)))
    assert [w.item() for w in got] == words(result)


def one_word(word, **where):
    """Whether ``word`` is what the last element compares: 0 at the word's own rate, 1 just above it."""
    shape = (where.pop("element") + 1,)
    return [reference.bernoulli(shape, (word + n) / 2**32, **where)[-1] for n in (0, 1)] == [0, 1]


def test_bernoulli_follows_philox():
    for element, word in enumerate(words(KNOWN_ANSWERS[0][2])):
        assert one_word(word, element=element, seed=0)
    seed, stream, offset = 0x0123456789ABCDEF, 0xFEDCBA98, 2**32 - 1
    for element in range(9):
        position = offset + element // 4
        counter = [position & 0xFFFFFFFF, position >> 32, stream, 0]
        block = philox4x32_10([np.array([w], np.uint64) for w in counter], (0x89ABCDEF, 0x01234567))
        assert one_word(block[element % 4].item(), element=element, seed=seed, stream=stream, offset=offset)


def test_bernoulli():
    drawn = reference.bernoulli((50, 41), 0.3, seed=1)
    assert drawn.dtype == np.uint8
    assert drawn.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(reference.bernoulli((30,), 0.3, seed=1), drawn.ravel()[:30])
    np.testing.assert_array_equal(reference.bernoulli((30,), 0.3, seed=1, offset=5), drawn.ravel()[20:50])
    np.testing.assert_array_equal(reference.bernoulli((8,), 0.3, seed=1, offset=2**64 - 1)[4:], drawn.ravel()[:4])
    assert not np.array_equal(reference.bernoulli((50, 41), 0.3, seed=1, stream=1), drawn)
    assert not np.array_equal(reference.bernoulli((50, 41), 0.3, seed=1 + 2**32), drawn)
    assert not reference.bernoulli((99,), 0.0, seed=1).any()
    assert reference.bernoulli((99,), 1.0, seed=1).all()
    assert reference.bernoulli((0, 3), 0.5, seed=1).shape == (0, 3)
    assert reference.bernoulli((), 1.0, seed=1).shape == ()


# --------------------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30, 1e200, 1e-200, 1e-310])
def test_global_norm_at_any_size(size):
    g = [np.array([[3.0, 0.0]]) * size, np.array([-4.0]) * size, np.zeros((0, 2))]
    for norm_type, norm in ((1, 7), (2, 5), (INF, 4)):
        assert reference.global_norm(g, norm_type) == pytest.approx(norm * size, rel=1e-13, abs=0)
    assert reference.global_norm(g) == pytest.approx(5 * size, rel=1e-13, abs=0)


def test_global_norm_of_the_odd():
    assert reference.global_norm([]) == 0.0
    assert reference.global_norm([np.zeros(3)]) == 0.0
    assert reference.global_norm(np.array([3.0, 4.0])) == 5.0
    assert reference.global_norm([np.array([1e30, 1e-30], np.float32)]) == pytest.approx(1e30, rel=1e-7)
    for norm_type in (1, 2, INF):
        assert reference.global_norm([np.array([1.0, -INF])], norm_type) == INF
        assert math.isnan(reference.global_norm([np.array([1.0, NAN, INF])], norm_type))
    with pytest.raises(ValueError, match="norm_type"):
        reference.global_norm([np.ones(2)], 3.0)


def test_clip_by_value():
    g = [np.array([-3.0, -0.5, 0.5, 3.0, INF, -INF, NAN])]
    (got,) = reference.clip_by_value_(g, 1.0)
    np.testing.assert_array_equal(got, [-1.0, -0.5, 0.5, 1.0, 1.0, -1.0, NAN])
    assert g[0][0] == -3.0


@pytest.mark.parametrize("norm_type", [1, 2, INF])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_clip_by_norm_and_by_global_norm(norm_type, max_norm):
    g = [np.array([3.0, -4.0]), np.array([[0.25]]), np.zeros(2)]
    before = [a.copy() for a in g]

    def expected(arrays, norm):
        return [a * min(1.0, max_norm / (norm + 1e-6)) for a in arrays]

    all_norms = {1: [7.0, 0.25, 0.0], 2: [5.0, 0.25, 0.0], INF: [4.0, 0.25, 0.0]}[norm_type]
    got, norms = reference.clip_by_norm_(g, max_norm, norm_type)
    assert norms == pytest.approx(all_norms)
    for a, b, norm in zip(got, g, all_norms, strict=True):
        np.testing.assert_allclose(a, expected([b], norm)[0], rtol=1e-14)

    whole = {1: 7.25, 2: math.hypot(5, 0.25), INF: 4.0}[norm_type]
    got, norm = reference.clip_by_global_norm_(g, max_norm, norm_type)
    assert norm == pytest.approx(whole)
    for a, b in zip(got, expected(g, whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    for a, b in zip(g, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_clip_of_what_is_not_finite():
    g = [np.array([1.0, INF]), np.array([2.0])]
    got, norm = reference.clip_by_global_norm_(g, 1.0)
    assert norm == INF
    np.testing.assert_array_equal(np.concatenate(got), [0.0, NAN, 0.0])
    got, norm = reference.clip_by_global_norm_([np.array([1.0, NAN])], 1.0)
    assert math.isnan(norm)
    assert np.isnan(got[0]).all()
    for bad in (INF, NAN):
        with pytest.raises(FloatingPointError, match="norm"):
            reference.clip_by_global_norm_([np.array([1.0, bad])], 1.0, error_if_nonfinite=True)


def test_clip_if_any_exceeds():
    g = [np.array([3.0, -4.0]), np.array([3.0, -3.0]), np.array([NAN, 0.0]), np.array([1e200, 1e200])]
    got, which = reference.clip_if_any_exceeds_(g, 3.0)
    assert which == [True, False, False, True]
    np.testing.assert_allclose(got[0], [0.6, -0.8], rtol=1e-15)
    np.testing.assert_array_equal(got[1], g[1])
    np.testing.assert_array_equal(got[2], g[2])
    np.testing.assert_allclose(got[3], [0.5**0.5] * 2, rtol=1e-15)
    assert g[0][0] == 3.0


# ------------------------------------------------------------------------------------ defaults, bad arguments


def test_defaults_of_functions():
    rng = np.random.default_rng(25)
    x, y, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    np.testing.assert_array_equal(reference.softmax_forward(x), reference.softmax_forward(x, axis=2))
    np.testing.assert_array_equal(reference.softmax_backward(y, dy), reference.softmax_backward(y, dy, axis=1))
    assert reference.clip_by_norm_([np.array([3.0, 4.0])], 1.0)[1] == [5.0]
    assert reference.clip_by_global_norm_([np.array([3.0, 4.0])], 1.0)[1] == 5.0
    np.testing.assert_array_equal(
        reference.bernoulli((40,), 0.5, seed=1), reference.bernoulli((40,), 0.5, seed=1, offset=0, stream=0)
    )


@pytest.mark.parametrize(
    ("chosen", "defaults"),
    [
        ({}, {"recurrent_activation": "sigmoid", "activation": "tanh", "training": False}),
        ({}, {"stride": 1, "dilation": 1, "padding": "same", "truncation": 0, "reverse": False}),
        ({}, {"zoneout_h": 0.0, "zoneout_c": 0.0, "recurrent_dropout": 0.0, "lengths": None}),
        ({"activation": "relu"}, {"relu_at_zero": 0.0}),
        ({"activation": "leaky_relu"}, {"slope": 0.01}),
        ({"training": True, "zoneout_h": 0.5, "recurrent_dropout": 0.5}, {"seed": 0, "offset": 0}),
    ],
)
def test_defaults_of_the_cell(chosen, defaults):
    rng = np.random.default_rng(26)
    arguments = problem(rng, bias=None)
    for name in ("x", "h_0", "c_0"):
        arguments[name][0] = 0.0  # makes z = 0, where relu_at_zero counts
    cotangents = cotangents_of(arguments, rng)
    *got, saved = reference.conv_lstm_forward(**arguments, **chosen)
    *expected, spelt = reference.conv_lstm_forward(**arguments, **chosen, **defaults)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)
    gradients = reference.conv_lstm_backward(saved, *cotangents)
    assert_same(gradients, reference.conv_lstm_backward(spelt, *cotangents))


def test_bad_rate_and_bad_z():
    for rate in (-0.1, 1.5, NAN):
        with pytest.raises(ValueError, match="rate: expected 0 to 1"):
            reference.bernoulli((3,), rate, seed=0)
    for shape in ((4,), (1, 6, 2)):
        with pytest.raises(ValueError, match="z: expected"):
            reference.lstm_gates_forward(np.zeros(shape), np.zeros((1, 1, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_hh": np.zeros((8, 3, 3, 3))}, r"weight_hh: expected \(8, 2, 3, 3\), got \(8, 3, 3, 3\)"),
        ({"weight_hh": np.zeros((12, 3, 3, 3))}, r"weight_hh: expected \(8, 2, 3, 3\), got \(12, 3, 3, 3\)"),
        ({"weight_ih": np.zeros((9, 2, 3, 3))}, r"weight_ih: expected \(8, 2, 3, 3\), got \(9, 2, 3, 3\)"),
        ({"weight_ih": np.zeros((8, 3, 3, 3))}, r"weight_ih: expected \(8, 2, 3, 3\), got \(8, 3, 3, 3\)"),
        ({"weight_ih": np.zeros((8, 2, 3))}, "weight_ih: expected"),
        ({"x": np.zeros((3, 2, 4, 3))}, "x: expected"),
        ({"bias": np.zeros(6)}, r"bias: expected \(8,\), got \(6,\)"),
        ({"peephole": np.zeros((6, 3, 4))}, r"peephole: expected \(6, 4, 3\), got \(6, 3, 4\)"),
        ({"h_0": np.zeros((3, 2, 4, 4))}, "h_0: expected"),
        ({"c_0": np.zeros((2, 2, 4, 3))}, "c_0: expected"),
        ({"lengths": [1, 2]}, "lengths: expected"),
        ({"lengths": [1, 2, 5]}, "lengths: expected 0 to 4"),
        ({"lengths": [1, -1, 2]}, "lengths: expected 0 to 4"),
        ({"activation": "sigmoid"}, "activation: expected one of"),
        ({"recurrent_activation": "tanh"}, "recurrent_activation: expected one of"),
        ({"relu_at_zero": 0.3}, "relu_at_zero: expected one of"),
        ({"padding": "full"}, "padding: expected"),
        ({"padding": -1}, "padding: expected"),
        ({"stride": 0}, "stride: expected"),
        ({"dilation": (1, 0)}, "dilation: expected"),
        ({"padding": "valid", "dilation": 9}, "x: "),
        ({"zoneout_h": 1.5}, "zoneout_h: expected"),
        ({"zoneout_c": NAN}, "zoneout_c: expected"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout: expected"),
        ({"truncation": -1}, "truncation: expected"),
        ({"zoneout_mask_h": np.zeros((4, 3, 2, 4, 4))}, "zoneout_mask_h: expected"),
        ({"dropout_mask": np.zeros((4, 3, 2, 4, 3))}, "dropout_mask: expected"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        reference.conv_lstm_forward(**(problem(np.random.default_rng(0)) | changes))


@pytest.mark.parametrize("changes", [{"lengths": [1.0, 2.0, 3.0]}, {"zoneout": 0.1}, {"save": "gates"}])
def test_bad_kinds(changes):
    with pytest.raises(TypeError, match=next(iter(changes))):
        reference.conv_lstm_forward(**(problem(np.random.default_rng(0)) | changes))
