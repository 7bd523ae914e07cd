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
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fusecell import _dispatch, selftest
from fusecell._cases import CASES, Arrays, Case, Outcome, Results, largest_error, run_case, upstream_of

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
CONVOLUTIONS = [c for c in CASES if c.op in ("conv_lstm", "conv2d")]
ON_TENSOR_CORES = {ml_dtypes.bfloat16: "tensor_cores", np.float16: "tensor_cores", np.float32: "tf32"}
# How far tensor cores may be from the direct path. Of 16 bits both round a sum once: to neighbours, at most. TF32 drops
# 2^-11 of each factor.
APART = {ml_dtypes.bfloat16: 2.0**-7, np.float16: 2.0**-10, np.float32: 2.0**-9}
every_type = pytest.mark.parametrize("dtype", ON_TENSOR_CORES)


def narrowed(case: Case, dtype: Any) -> Arrays:
    """A case's arguments, all but the cell state of this type."""
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    return {n: a.astype(np.float32) if n == "c_0" and a is not None else a for n, a in arguments.items()}


def run_by(case: Case, arguments: Arrays, algorithm: str, controls: str = "") -> tuple[Outcome, int]:
    """The outcome, and how many products of matrices it took."""
    _emulated.set_controls(controls, False)
    _emulated.reset_statistics()
    chosen = replace(case, options=case.options | {"algorithm": algorithm})
    return run_case(OPS, chosen, arguments, None), _emulated.statistics()["matrix_products"]


def wide(results: Results) -> Results:
    return {name: a.astype(np.float64) for name, a in results.items()}


# Each in one of the types, by turns: test_cases.py and test_half_precision.py compare them all with the reference.
@pytest.mark.parametrize(
    ("case", "dtype"), [*zip(CONVOLUTIONS, itertools.cycle(ON_TENSOR_CORES), strict=False)], ids=str
)
def test_tensor_cores_give_what_the_direct_path_gives(case: Case, dtype: Any) -> None:
    arguments = narrowed(case, dtype)
    direct, without = run_by(case, arguments, "direct")
    got, products = run_by(case, arguments, ON_TENSOR_CORES[dtype])
    assert largest_error(got.outputs, wide(direct.outputs)) < APART[dtype]
    assert largest_error(got.gradients, wide(direct.gradients)) < APART[dtype]
    assert without == 0
    assert (products > 0) == (min(case.shape.get("B", 1), case.shape.get("T", 1)) > 0)
    late, again = run_by(case, arguments, ON_TENSOR_CORES[dtype], "copies=late,order=random,seed=2")
    assert same_bits(late, got)
    assert again == products


@pytest.fixture
def hopper() -> Iterator[Any]:
    yield _emulated.want_hopper
    _emulated.want_hopper(False)


# Tiles of 256 pixels and of 128 times 128, a last one of each that is not full, and a small tile; of the weights'
# gradients tiles of 64, 256 and 128 rows.
@pytest.mark.parametrize("shape", [(1, 24, 5, 15, 20), (1, 32, 40, 5, 6), (2, 3, 24, 9, 13), (1, 3, 5, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_hopper_has_the_bits_of_its_portable_twin(shape: tuple[int, ...], dtype: Any, hopper: Any) -> None:
    """Only here, where both add in the order of K."""
    names = ("B", "I", "C", "H", "W")
    case = Case(
        "conv_lstm", "as large as it must be", {"T": 2, "k": 3, "kh": 3, **dict(zip(names, shape, strict=True))}
    )
    arguments, counts = narrowed(case, dtype), []
    portable, _ = run_by(case, arguments, "tensor_cores")
    assert _emulated.statistics()["bulk_copies"] == 0
    hopper(True)
    for manner in ("", "copies=late,order=random,seed=3"):
        got, _ = run_by(case, arguments, "tensor_cores", manner)
        counts.append([_emulated.statistics()[what] for what in ("warpgroup_products", "bulk_copies")])
        assert same_bits(got, portable)
    assert counts[0] == counts[1]
    _emulated.reset_statistics()
    OPS.conv_lstm_forward(*arguments.values(), algorithm="tensor_cores")
    of_convolutions = _emulated.statistics()["warpgroup_products"]
    assert (of_convolutions > 0) == (shape != (1, 3, 5, 4, 5))
    assert counts[0][0] > of_convolutions
    assert (counts[0][1] > 0) == (shape != (1, 3, 5, 4, 5))


@pytest.mark.parametrize(
    ("case", "dtype"), [*zip(CONVOLUTIONS, itertools.cycle([ml_dtypes.bfloat16, np.float16]), strict=False)], ids=str
)
def test_hopper_has_them_in_every_case(case: Case, dtype: Any, hopper: Any) -> None:
    arguments = narrowed(case, dtype)
    portable, _ = run_by(case, arguments, "tensor_cores")
    hopper(True)
    got, _ = run_by(case, arguments, "tensor_cores", "copies=late,order=random,seed=4")
    assert same_bits(got, portable)


def up(n: int, by: int) -> int:
    return -(-n // by)


def products_of(pixels: int, groups: int, stages: int) -> int:
    """Of a convolution: a tile has one group of rows and 256 pixels or two and 128; 512 products a stage."""
    side_by_side = min(groups, 2)
    return up(pixels, 256 // side_by_side) * up(groups, side_by_side) * stages * 512


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 3), (64, 8), (65, 9), (130, 65)])
@every_type
def test_a_convolution_takes_as_many_products_as_its_shape_says(dtype: Any, outputs: int, inputs: int) -> None:
    case = Case("conv2d", "counted", {"B": 2, "I": inputs, "O": outputs, "H": 11, "W": 13, "k": 3})
    x, weight, _ = narrowed(case, dtype).values()
    _emulated.reset_statistics()
    OPS.conv2d_forward(x, weight, algorithm=ON_TENSOR_CORES[dtype])
    stages = up(up(inputs, 16 // x.itemsize) * 9, 8)  # type: ignore[union-attr]
    assert _emulated.statistics()["matrix_products"] == products_of(2 * 11 * 13, up(outputs, 64), stages)


@every_type
@pytest.mark.parametrize("channels", [3, 16, 17, 40])
def test_a_sequence_takes_as_many_products_as_its_shape_says(dtype: Any, channels: int) -> None:
    """A group has 16 channels' gates; the first step, which has no state before it, convolves x alone."""
    case = Case("conv_lstm", "counted", {"T": 3, "B": 2, "I": 5, "C": channels, "H": 9, "W": 15, "start": False})
    arguments = narrowed(case, dtype)
    _emulated.reset_statistics()
    OPS.conv_lstm_forward(*arguments.values(), algorithm=ON_TENSOR_CORES[dtype])
    piece, taps = 16 // np.dtype(dtype).itemsize, 9
    of_x, of_h = up(up(5, piece) * taps, 8), up(up(channels, piece) * taps, 8)
    assert _emulated.statistics()["matrix_products"] == sum(
        products_of(2 * 9 * 15, up(channels, 16), stages) for stages in (of_x, of_x + of_h, of_x + of_h)
    )


@pytest.mark.parametrize("algorithm", ["direct", "tensor_cores"])
@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("shape", [{"I": 1, "C": 1}, {"I": 3, "C": 20}, {"I": 8, "C": 16}])
def test_a_number_spreads_as_far_as_taps_reach(shape: dict[str, int], number: float, algorithm: str) -> None:
    """Taps and channels that fill up a stage are zero on both sides: no zero of theirs meets an infinity."""
    case = Case("conv_lstm", "not finite", {"T": 1, "B": 2, "H": 9, "W": 9, "k": 3} | shape)
    arguments = narrowed(case, ml_dtypes.bfloat16)
    finite = run_by(case, arguments, algorithm)[0].outputs["y"].astype(np.float32)
    arguments["x"][0, 1, 0, 4, 5] = number  # type: ignore[index]
    got = run_by(case, arguments, algorithm)[0].outputs["y"].astype(np.float32)
    reached = np.zeros(got.shape, bool)
    reached[0, 1, :, 3:6, 4:7] = True
    assert np.array_equal(got[~reached], finite[~reached])
    assert (got[reached] != finite[reached]).all()
    assert np.isnan(number) <= np.isnan(got[reached]).all()


@pytest.mark.parametrize("algorithm", ["direct", "tensor_cores"])
@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 20), (16, 70)])
def test_a_number_spreads_through_a_convolution(inputs: int, outputs: int, number: float, algorithm: str) -> None:
    """Forward to the outputs that read its pixel, and from an output's gradient back to the pixels that it read."""
    case = Case("conv2d", "not finite", {"B": 2, "I": inputs, "O": outputs, "H": 9, "W": 9, "k": 3})
    x, weight, bias = narrowed(case, np.float16).values()
    x[1, 0, 4, 5] = number  # type: ignore[index]
    y = OPS.conv2d_forward(x, weight, bias, stride=2, algorithm=algorithm)
    reached = np.zeros(y.shape, bool)
    reached[1, :, 2, 2:4] = True  # row 2 reads rows 3 to 5; columns 2 and 3 read columns 3 to 7
    assert np.array_equal(~np.isfinite(y), reached)
    dy = np.ones(y.shape, np.float16)
    dy[0, 0, 1, 3] = number
    dx = OPS.conv2d_backward(dy, x, weight, needs=["x"], stride=2, algorithm=algorithm)["x"]
    reached = np.zeros(dx.shape, bool)
    reached[0, :, 1:4, 5:8] = True
    assert np.array_equal(~np.isfinite(dx), reached)


@pytest.mark.parametrize(
    ("case", "dtype"), [*zip((c for c in SMALL if c in CONVOLUTIONS), ON_TENSOR_CORES, strict=False)], ids=str
)
def test_tensor_cores_race_free(case: Case, dtype: Any) -> None:
    arguments = narrowed(case, dtype)
    expected, _ = run_by(case, arguments, ON_TENSOR_CORES[dtype])
    got, _ = run_by(case, arguments, ON_TENSOR_CORES[dtype], "engine=threads,copies=late")
    assert same_bits(got, expected)


@pytest.mark.parametrize("wanted", [False, True])
def test_tensor_cores_race_free_in_large_tiles(wanted: bool, hopper: Any) -> None:
    """With more stages than buffers: forward, for dx and for the weights."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 8, 15, 20), (20, 8, 3, 3), (20, 5, 3, 3)]
    x, *weights = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in shapes)
    hopper(wanted)
    found = []
    for controls in ("", "engine=threads,copies=late"):
        _emulated.set_controls(controls, False)
        y, *_, saved = OPS.conv_lstm_forward(x, *weights)
        gradients = OPS.conv_lstm_backward(saved, y)
        found.append([a.tobytes() for a in (y, *gradients.values())])
    assert found[0] == found[1]


@every_type
def test_a_convolution_has_the_same_gradients_whatever_else_is_wanted(dtype: Any) -> None:
    case = Case("conv2d", "in part", {"B": 2, "I": 9, "O": 5, "H": 7, "W": 6, "k": 3})
    x, weight, bias = narrowed(case, dtype).values()
    dy = OPS.conv2d_forward(x, weight, bias, algorithm=ON_TENSOR_CORES[dtype])
    every = OPS.conv2d_backward(dy, x, weight, algorithm=ON_TENSOR_CORES[dtype])
    for name in ("x", "weight", "bias"):
        alone = OPS.conv2d_backward(dy, x, weight, needs=[name], algorithm=ON_TENSOR_CORES[dtype])
        assert alone[name].tobytes() == every[name].tobytes(), name


@pytest.fixture
def no_tensor_cores() -> Iterator[None]:
    """A GPU before sm_80. What was planned for another is forgotten, and what is planned for this one, too."""
    _emulated.set_controls("tensor_cores=off", False)
    _dispatch._plans.cache_clear()
    yield
    _dispatch._plans.cache_clear()


CONV2D = Case("conv2d", "3x3", {"B": 2, "I": 3, "O": 5, "H": 7, "W": 6, "k": 3})
SEQUENCE = Case("conv_lstm", "3x3", {"k": 3, "kh": 3})


@pytest.mark.parametrize("case", [CONV2D, SEQUENCE], ids=str)
@pytest.mark.usefixtures("no_tensor_cores")
def test_a_gpu_without_tensor_cores_takes_the_direct_path(case: Case) -> None:
    arguments = narrowed(case, np.float16)
    direct, _ = run_by(case, arguments, "direct", "tensor_cores=off")
    auto, products = run_by(case, arguments, "auto", "tensor_cores=off")
    assert same_bits(auto, direct)
    assert products == 0


@pytest.mark.parametrize(("dtype", "algorithm"), [(np.float16, "tensor_cores"), (np.float32, "tf32")])
@pytest.mark.parametrize("case", [CONV2D, SEQUENCE], ids=str)
@pytest.mark.usefixtures("no_tensor_cores")
def test_a_gpu_without_tensor_cores_refuses_them(case: Case, dtype: Any, algorithm: str) -> None:
    with pytest.raises(ValueError, match=f'^algorithm: expected "auto" or "direct" .*, got "{algorithm}" with no such'):
        run_by(case, narrowed(case, dtype), algorithm, "tensor_cores=off")


@pytest.mark.parametrize("case", [CONV2D, SEQUENCE], ids=str)
def test_auto_takes_tensor_cores_for_16_bits_alone(case: Case) -> None:
    assert run_by(case, narrowed(case, np.float16), "auto")[1] > 0
    assert run_by(case, narrowed(case, ml_dtypes.bfloat16), "auto")[1] > 0
    assert run_by(case, narrowed(case, np.float32), "auto")[1] == 0


def test_every_kernel_has_run(rng: np.random.Generator) -> None:
    _emulated.reset_statistics()
    for case in SMALL:
        run(case)
    assert _emulated.statistics()["matrix_products"] == 0  # of float32 there are none, but by name
    for case in SMALL:
        if case in CONVOLUTIONS:
            run(replace(case, options=case.options | {"algorithm": "tf32"}))
    x = rng.standard_normal((3, 5))
    OPS.softmax_backward(OPS.softmax_forward(x), x)
    OPS.activation_forward("tanh", x)
    OPS.bernoulli((5,), 0.5, seed=1)
    OPS.clip_by_global_norm_([x], 1.0)
    OPS.sgd_update_([x], [x.copy()], lr=0.1)
    listed = set(re.findall(r"KERNEL\([\w.]+, (\w+)", KERNELS.read_text()))
    assert set(_emulated.launched_kernels()) == listed
    statistics = _emulated.statistics()
    assert min(statistics[n] for n in ("barriers", "shuffles", "async_copies", "matrix_products")) > 0


def test_several_chunks_of_steps_give_what_one_gives(rng: np.random.Generator) -> None:
    """A test build keeps so little dz that five steps of this size are several chunks."""
    case = Case("conv_lstm", "chunks", {"T": 5, "C": 8, "H": 12, "W": 12, "bias": "pixel", "peephole": "channel"})
    _emulated.reset_statistics()
    got = run(case, np.float64)
    assert _emulated.launched_kernels()["parameter_gradient"] >= 2 * 3
    expected = run_case(selftest.ops, case, case.arguments(np.random.default_rng(zlib.crc32(str(case).encode()))), None)
    for name, gradient in got.gradients.items():
        np.testing.assert_allclose(gradient, expected.gradients[name], rtol=1e-11, atol=1e-11, err_msg=name)


@every_type
@pytest.mark.parametrize("reverse", [False, True])
def test_several_chunks_of_steps_on_tensor_cores(dtype: Any, reverse: bool) -> None:
    """What a chunk begins with is the dz of the one after, and what is summed over pixels goes on."""
    shape = {"T": 7, "C": 9, "H": 12, "W": 12, "bias": "channel", "peephole": "channel"}
    case = Case("conv_lstm", "chunks", shape, {"reverse": reverse, "lengths": [7, 5]})
    arguments = narrowed(case, dtype)
    got, _ = run_by(case, arguments, ON_TENSOR_CORES[dtype])
    assert _emulated.launched_kernels()["tensor_parameter_gradient"] >= 3
    direct, _ = run_by(case, arguments, "direct")
    assert largest_error(got.gradients, wide(direct.gradients)) < APART[dtype]


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


@pytest.mark.parametrize(
    "case",
    [
        Case("conv_lstm", "unaligned", {"T": 2, "I": 8, "C": 16, "H": 4, "W": 4, "peephole": "pixel", "bias": "pixel"}),
        Case("conv2d", "unaligned", {"B": 2, "I": 8, "O": 16, "H": 5, "W": 4, "k": 3}),
        Case("conv2d", "unaligned, one pixel", {"B": 3, "I": 8, "O": 16, "H": 1, "W": 1, "k": 1}),
    ],
    ids=str,
)
@every_type
def test_tensor_cores_on_memory_that_is_not_aligned_to_16_bytes(case: Case, dtype: Any) -> None:
    chosen = replace(case, options={"algorithm": ON_TENSOR_CORES[dtype]})
    assert_the_same_bits_wherever_an_array_lies(chosen, narrowed(chosen, dtype))


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


def test_more_channels_than_a_grid_has_pieces_are_refused() -> None:
    x, weight = (np.zeros((1, 2**22 - 63, 1, 1), np.float16) for _ in range(2))  # memory that nobody touches
    with pytest.raises(ValueError, match="x: expected at most 4194240 channels on tensor cores, got 4194241"):
        OPS.conv2d_forward(x, weight)


def test_a_last_chunk_that_is_shorter_takes_no_more_parts_than_were_planned() -> None:
    """Fewer pixels could be cut into more parts, which then lay over the sums of the chunks before."""
    case = Case("conv_lstm", "a shorter chunk", {"T": 58, "B": 1, "I": 180, "C": 1, "H": 1, "W": 83, "k": (1, 10)})
    arguments = case.arguments(np.random.default_rng(0), ml_dtypes.bfloat16)
    arguments["c_0"] = arguments["c_0"].astype(np.float32)  # type: ignore[union-attr]
    got = run_case(OPS, case, arguments, None)
    given = {n: None if a is None else a.astype(np.float64) for n, a in arguments.items()}
    sent = [u.astype(np.float64) for u in upstream_of(list(got.outputs.values()))]
    assert largest_error(got.gradients, run_case(selftest.ops, case, given, sent).gradients) < 2.0**-6


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_that_nobody_has_read_before_are_cut_to_what_counts(reverse: bool) -> None:
    """The host does not look at those that lie on a GPU: above T counts as T, a negative one as 0."""
    arguments = Case("conv_lstm", "lengths", {"B": 3, "T": 4, "peephole": "pixel"}).arguments(np.random.default_rng(0))
    results = []
    for lengths in ([9, -5, 2], [4, 0, 2]):
        *outputs, saved = OPS.conv_lstm_forward(*arguments.values(), lengths=lengths, reverse=reverse)
        results.append([*outputs, *OPS.conv_lstm_backward(saved, *upstream_of(outputs)).values()])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True))
