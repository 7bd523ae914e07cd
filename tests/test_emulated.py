"""CUDA's kernels on the host: the same bits whatever order threads run in and whenever asynchronous copies arrive."""

from __future__ import annotations

import itertools
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fusecell import _dispatch, selftest
from fusecell._cases import CASES, Arrays, Case, Outcome, largest_error, run_case, upstream_of

_emulated: Any = pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
OPS = selftest.Emulated()
KERNELS = Path(__file__).parents[1] / "csrc" / "cuda" / "kernels.def"

MANNERS = [
    "copies=late",
    "copies=late,order=reversed",
    "copies=eager,order=random,seed=1",
    "copies=late,order=random,seed=2",
]


@pytest.fixture(autouse=True)
def _controls_as_before() -> Iterator[None]:
    yield
    _emulated.set_controls("", False)


def run(case: Case, dtype: Any = np.float32, **extra: Any) -> Outcome:
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    return run_case(OPS, case, case.arguments(rng, dtype), None, **extra)


def same_bits(a: Outcome, b: Outcome) -> bool:
    return all(
        x[n].tobytes() == y[n].tobytes() for x, y in ((a.outputs, b.outputs), (a.gradients, b.gradients)) for n in x
    )


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_in_any_manner(case: Case, manner: str) -> None:
    expected = run(case)
    _emulated.set_controls(manner, False)
    assert same_bits(run(case), expected)


SMALL = [c for c in CASES if c.reason in {"the default cell", "3x3", "bias pixel, peephole pixel", "lengths, reverse"}]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_same_bits_with_a_thread_for_each_thread(case: Case) -> None:
    expected = run(case)
    _emulated.set_controls("engine=threads,copies=late", False)
    assert same_bits(run(case), expected)


# ------------------------------------------------------------------------------------------------- tensor cores
def halves(case: Case, dtype: Any) -> Arrays:
    """A case's arguments in 16 bits, but for the cell state."""
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    return {n: a.astype(np.float32) if n == "c_0" and a is not None else a for n, a in arguments.items()}


def run_halves(case: Case, arguments: Arrays, controls: str) -> tuple[Outcome, int]:
    """The outcome, and how many products of matrices it took."""
    _emulated.set_controls(controls, False)
    _emulated.reset_statistics()
    return run_case(OPS, case, arguments, None), _emulated.statistics()["matrix_products"]


CONVOLUTIONS = [c for c in CASES if c.op in ("conv_lstm", "conv2d")]


# The emulation adds a product's terms in the order of the taps, which on a GPU is the hardware's own.
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_tensor_cores_give_what_plain_products_give(case: Case, dtype: Any) -> None:
    arguments = halves(case, dtype)
    plain, without = run_halves(case, arguments, "tensor_cores=off")
    got, products = run_halves(case, arguments, "")
    assert same_bits(got, plain)
    assert without == 0
    assert (products > 0) == (min(case.shape.get("B", 1), case.shape.get("T", 1)) > 0)
    late, again = run_halves(case, arguments, "copies=late,order=random,seed=2")
    assert same_bits(late, plain)
    assert again == products


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("shape", [{"I": 1, "C": 1}, {"I": 3, "C": 20}])
def test_tensor_cores_spread_a_number_as_far_as_taps_reach(shape: dict[str, int], number: float) -> None:
    """Taps that fill up a product of 16 are zero on both sides: no zero of theirs meets an infinity."""
    case = Case("conv_lstm", "not finite", {"T": 1, "B": 2, "H": 9, "W": 9, "k": 3} | shape)
    arguments = halves(case, ml_dtypes.bfloat16)
    arguments["x"][0, 1, 0, 4, 5] = number  # type: ignore[index]
    got = run_case(OPS, case, arguments, None).outputs["y"].astype(np.float32)
    reached = np.zeros(got.shape, bool)
    reached[0, 1, :, 3:6, 4:7] = True
    assert np.isfinite(got[~reached]).all()
    plain, _ = run_halves(case, arguments, "tensor_cores=off")
    np.testing.assert_array_equal(got, plain.outputs["y"].astype(np.float32))
    assert np.isnan(number) <= np.isnan(got[reached]).all()


@pytest.mark.parametrize("case", [c for c in SMALL if c in CONVOLUTIONS], ids=str)
def test_tensor_cores_race_free(case: Case) -> None:
    arguments = halves(case, ml_dtypes.bfloat16)
    expected, _ = run_halves(case, arguments, "")
    got, products = run_halves(case, arguments, "engine=threads,copies=late")
    assert same_bits(got, expected)
    assert products > 0


def test_every_kernel_has_run(rng: np.random.Generator) -> None:
    _emulated.reset_statistics()
    for case in SMALL:
        run(case)
    x = rng.standard_normal((3, 5))
    OPS.softmax_backward(OPS.softmax_forward(x), x)
    OPS.activation_forward("tanh", x)
    OPS.bernoulli((5,), 0.5, seed=1)
    OPS.clip_by_global_norm_([x], 1.0)
    OPS.sgd_update_([x], [x.copy()], lr=0.1)
    listed = set(re.findall(r"KERNEL\([\w.]+, (\w+)", KERNELS.read_text()))
    assert set(_emulated.launched_kernels()) == listed
    assert _emulated.statistics()["matrix_products"] == 0  # of float32 there are none
    statistics = _emulated.statistics()
    assert min(statistics["barriers"], statistics["shuffles"], statistics["async_copies"]) > 0


def test_several_chunks_of_steps_give_what_one_gives(rng: np.random.Generator) -> None:
    """A test build keeps so little dz that five steps of this size are several chunks."""
    case = Case("conv_lstm", "chunks", {"T": 5, "C": 8, "H": 12, "W": 12, "bias": "pixel", "peephole": "channel"})
    _emulated.reset_statistics()
    got = run(case, np.float64)
    assert _emulated.launched_kernels()["parameter_gradient"] >= 2 * 3
    expected = run_case(selftest.ops, case, case.arguments(np.random.default_rng(zlib.crc32(str(case).encode()))), None)
    for name, gradient in got.gradients.items():
        np.testing.assert_allclose(gradient, expected.gradients[name], rtol=1e-11, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_convolution_back_to_h_0_runs_where_its_gradient_is_wanted(steps: int) -> None:
    arguments = Case("conv_lstm", "one gradient", {"T": steps}).arguments(np.random.default_rng(0))
    *outputs, saved = OPS.conv_lstm_forward(*arguments.values())
    launched = {}
    for name in ("c_0", "h_0"):
        _emulated.reset_statistics()
        OPS.conv_lstm_backward(saved, *upstream_of(outputs), needs=[name])
        launched[name] = _emulated.launched_kernels()
    assert launched["h_0"]["correlate"] == 1
    assert "correlate" not in launched["c_0"]
    # Weights: the input's and the state's as they are; the state's flipped, where a convolution goes back through it.
    assert [launched[name]["pack_weights"] for name in ("c_0", "h_0")] == [2 if steps == 1 else 3, 3]


def pointwise(rng: np.random.Generator, place: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """What the ops give that are no convolution, of arrays that `place` has put somewhere."""

    def made(*shape: int) -> np.ndarray:
        return place(rng.standard_normal(shape).astype(np.float32))

    x, y, dy = (made(5, 40) for _ in range(3))
    results = [OPS.softmax_forward(x), OPS.softmax_backward(y, dy), OPS.softmax_backward(y, dy, 0)]
    for name in ("tanh", "relu"):
        results += [OPS.activation_forward(name, x), OPS.activation_backward(name, x, y, dy)]
    results.append(OPS.bernoulli((1001,), 0.5, seed=1))
    sizes = (9001, 8192, 3)
    values, gradients, first, second = ([made(n) for n in sizes] for _ in range(4))
    OPS.clip_by_global_norm_(gradients, 1.0)
    OPS.adam_update_(
        values, gradients, first, [np.abs(a, out=a) for a in second], step=3, lr=0.1, norm=2.0, max_norm=1.0
    )
    return [*results, *values, *gradients, *first, *second]


@pytest.mark.parametrize("manner", MANNERS)
def test_the_same_bits_in_any_manner_without_a_convolution(manner: str) -> None:
    expected = pointwise(np.random.default_rng(3), np.copy)
    _emulated.set_controls(manner, False)
    got = pointwise(np.random.default_rng(3), np.copy)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected, strict=True))


def moved(a: np.ndarray) -> np.ndarray:
    """The array once more, one element past an address that is a multiple of 16."""
    room = np.empty(a.size + 64, a.dtype)
    at = next(i for i in range(1, 64) if (room[i:].ctypes.data % 16) == a.itemsize % 16)
    view = room[at : at + a.size].reshape(a.shape)
    view[...] = a
    return view


# Whole 16 bytes where every tensor allows it, else one by one: the same bits.
def assert_the_same_bits_wherever_an_array_lies(case: Case, arguments: Arrays) -> None:
    expected = run_case(OPS, case, arguments, None)
    for name in arguments:
        one = {n: moved(a) if n == name and a is not None else a for n, a in arguments.items()}
        assert same_bits(run_case(OPS, case, one, None), expected), name
    upstream = upstream_of(list(expected.outputs.values()))
    for i in range(len(upstream)):
        sent = [moved(a) if j == i else a for j, a in enumerate(upstream)]
        assert same_bits(run_case(OPS, case, arguments, sent), expected), i


@pytest.mark.parametrize("shape", [{"H": 6, "W": 8}, {"H": 5, "W": 7}, {"H": 4, "W": 12, "C": 20}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_that_is_not_aligned_to_16_bytes(shape: dict[str, int], dtype: Any) -> None:
    case = Case("conv_lstm", "unaligned", {"T": 2, "peephole": "pixel", "bias": "pixel"} | shape)
    assert_the_same_bits_wherever_an_array_lies(case, case.arguments(np.random.default_rng(5), dtype))


def test_gates_that_are_not_aligned_to_16_bytes() -> None:
    case = Case("lstm_gates", "unaligned", {"B": 2, "C": 3, "spatial": (4, 4), "bias": "pixel", "peephole": "pixel"})
    assert_the_same_bits_wherever_an_array_lies(case, case.arguments(np.random.default_rng(5), np.float32))


@pytest.mark.parametrize("which", [0, 1, 2, 3, 4, 5, 6])
def test_pointwise_on_memory_that_is_not_aligned_to_16_bytes(which: int) -> None:
    """Of every seven arrays one."""
    count = itertools.count()
    expected = pointwise(np.random.default_rng(3), np.copy)
    got = pointwise(np.random.default_rng(3), lambda a: moved(a) if next(count) % 7 == which else np.copy(a))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, expected, strict=True))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the compiler contracts products and sums")
def test_the_bits_of_the_direct_path() -> None:
    script = Path(__file__).parent / "bits_of_the_direct_path.py"
    environment = {**os.environ, "FUSECELL_ISA": "portable"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_waiting_for_a_value_is_refused_while_a_graph_is_captured(rng: np.random.Generator) -> None:
    g = [rng.standard_normal(5)]
    before = g[0].copy()
    _emulated.set_controls("", True)
    with pytest.raises(RuntimeError, match="error_if_nonfinite: expected no graph capture"):
        OPS.clip_by_global_norm_(g, 1.0, error_if_nonfinite=True)
    assert np.array_equal(g[0], before)
    _emulated.set_controls("", False)
    OPS.clip_by_global_norm_(g, 1.0, error_if_nonfinite=True)


def test_an_error_of_cuda_is_an_exception_and_not_the_end() -> None:
    x, y = np.zeros(3, np.float32), np.full(3, 7, np.float32)
    described = [_dispatch.describe(a) for a in (x, y)]
    message = "activation_forward: CUDA error cudaErrorInvalidDevice: "
    with pytest.raises(RuntimeError, match=message):
        _emulated.activation_forward("tanh", *described, 0.01, 1.0, (0, 0, 1, 7, 0))
    assert (y == 7).all()
    assert run(CASES[0]).outputs["y"].any()


def test_more_channels_than_a_grid_has_rows_are_refused() -> None:
    z, c = np.zeros((1, 4 * 65536)), np.zeros((1, 65536))
    *_, saved = OPS.lstm_gates_forward(z, c)
    with pytest.raises(ValueError, match="c: expected at most 65535 channels on a GPU, got 65536"):
        OPS.lstm_gates_backward(saved, c)
    with pytest.raises(ValueError, match="weight: expected at most 65535 rows on a GPU, got 65536"):
        OPS.conv2d_forward(np.zeros((1, 1, 1, 1)), np.zeros((65536, 1, 1, 1)))


def test_more_taps_than_kernels_count_are_refused() -> None:
    x, weight = (np.zeros((1, 2**29 + 1, 1, 1), np.float16) for _ in range(2))  # memory that nobody touches
    with pytest.raises(ValueError, match="weight: expected at most 2\\^29 taps on a GPU, got 536870913"):
        OPS.conv2d_forward(x, weight)


def test_a_last_chunk_that_is_shorter_takes_no_more_parts_than_were_planned() -> None:
    """Fewer pixels could be cut into more parts, which then lay over the sums of the chunks before."""
    case = Case("conv_lstm", "a shorter chunk", {"T": 58, "B": 1, "I": 180, "C": 1, "H": 1, "W": 83, "k": (1, 10)})
    arguments = case.arguments(np.random.default_rng(0), ml_dtypes.bfloat16)
    arguments["c_0"] = arguments["c_0"].astype(np.float32)  # type: ignore[union-attr]
    got = run_case(OPS, case, arguments, None)
    wide = {n: None if a is None else a.astype(np.float64) for n, a in arguments.items()}
    sent = [u.astype(np.float64) for u in upstream_of(list(got.outputs.values()))]
    assert largest_error(got.gradients, run_case(selftest.ops, case, wide, sent).gradients) < 2.0**-6


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_that_nobody_has_read_before_are_cut_to_what_counts(reverse: bool) -> None:
    """The host does not look at those that lie on a GPU: above T counts as T, a negative one as 0."""
    arguments = Case("conv_lstm", "lengths", {"B": 3, "T": 4, "peephole": "pixel"}).arguments(np.random.default_rng(0))
    results = []
    for lengths in ([9, -5, 2], [4, 0, 2]):
        *outputs, saved = OPS.conv_lstm_forward(*arguments.values(), lengths=lengths, reverse=reverse)
        results.append([*outputs, *OPS.conv_lstm_backward(saved, *upstream_of(outputs)).values()])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True))
