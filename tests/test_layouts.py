"""Sequences and states as they lie in memory: any order of T, B and C, channels last, slices; the bits of copies.

The core is called as a framework's adapter calls it: with descriptors that carry strides.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fusecell import _dispatch, ops
from fusecell._cases import CASES, Case, upstream_of

Arrays = dict[str, np.ndarray]
GUARD = 0xFF  # NaN, if it is read as a number


def memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that nobody has written, at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.full(size + 64, GUARD, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Layout:
    """The axes in their order in memory. In memory an axis may be twice as long, which is used by half or by turns,
    each run along an axis may have one element behind it, and the whole may begin one element later."""

    order: str
    half: str = ""
    turns: str = ""
    gap: str = ""
    late: bool = False

    def __str__(self) -> str:
        words = [f"half {self.half}"] * bool(self.half) + [f"turns {self.turns}"] * bool(self.turns)
        return " ".join([self.order, *words, *[f"gap {self.gap}"] * bool(self.gap), *["late"] * self.late])

    def empty(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Memory, and the part of it that is an array [T, B, C, H, W] or [B, C, H, W]."""
        extents = dict(zip("TBCHW", (*(1,) * (5 - len(shape)), *shape), strict=True))
        strides, run, first = {}, 1, int(self.late)
        for axis in reversed(self.order):
            strides[axis] = run * (2 if axis == self.turns else 1)
            first += run * extents[axis] if axis == self.half else 0
            run *= extents[axis] * (2 if axis in (self.half, self.turns) else 1)
            run += axis == self.gap
        room = memory((run + 1,), dtype)
        axes = "TBCHW"[5 - len(shape) :]
        at = tuple(strides[axis] * room.itemsize for axis in axes)
        return room, np.lib.stride_tricks.as_strided(room[first if room.size > first else 0 :], shape, at)

    def holding(self, values: np.ndarray) -> np.ndarray:
        """An array with these values."""
        _, view = self.empty(values.shape, values.dtype)
        view[...] = values
        return view


CONTIGUOUS = Layout("TBCHW")
# Those of frameworks, and slices of what two directions share.
USUAL = [Layout("BTCHW"), Layout("BTHWC"), Layout("TBCHW", half="C"), Layout("BTHWC", half="C")]
UNUSUAL = [
    CONTIGUOUS,
    Layout("TBHWC"),
    Layout("BCTHW"),
    Layout("TBCHW", turns="T"),
    Layout("TBCHW", turns="W"),
    # No multiple of 16 bytes: from one channel, sample or frame to the next, and to the first element.
    Layout("TBCHW", gap="H"),
    Layout("TBCHW", gap="C"),
    Layout("TBCHW", gap="B"),
    Layout("TBCHW", late=True),
]
InLayout = Callable[[str], Layout]
INPUTS, UPSTREAM = ("x", "h_0", "c_0"), ("dy", "dh_n", "dc_n")
OUTPUTS, GRADIENTS = ("y", "h_n", "c_n"), ("dx", "dh_0", "dc_0")
IN_ANY_LAYOUT = {*INPUTS, *UPSTREAM, *OUTPUTS, *GRADIENTS}


# ------------------------------------------------------------------------------------------------- calling the core
def described(array: np.ndarray) -> tuple[Any, ...]:
    return array.ctypes.data, array.shape, array.dtype.name, tuple(s // array.itemsize for s in array.strides)


def describe_all(arrays: Any) -> dict[str, tuple[Any, ...]]:
    return {name: described(a) for name, a in arrays.items() if a is not None}


@pytest.fixture(params=["cpu", "emulated"])
def place(request: pytest.FixtureRequest) -> _dispatch.Place:
    if request.param == "emulated":
        pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    return _dispatch.Place(request.param)


def call(place: _dispatch.Place, arrays: Any, options: Any, gradients: Arrays | None = None) -> None:
    """Forward, or backward into the gradients; scratch memory that nobody has written."""
    plan = place.module.conv_lstm_plan(describe_all(arrays), options, gradients is not None, 2)
    scratch = memory((plan["scratch"],), np.uint8)
    function = place.module.conv_lstm_forward if gradients is None else place.module.conv_lstm_backward
    function(describe_all({**arrays, **(gradients or {})}), options, (scratch.ctypes.data, scratch.size, 2, 0, 0))


def alike(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory that nobody has written, and an array in it that lies as this one does: channels last, perhaps."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    room = memory(tuple(array.shape[axis] for axis in order), array.dtype)
    return room, room.transpose(np.argsort(order))


class Outputs:
    """What a call is to write. Nothing beside it may be touched."""

    def __init__(self, layout: InLayout, like: Arrays) -> None:
        made = {
            name: layout(name).empty(a.shape, a.dtype) if name in IN_ANY_LAYOUT else alike(a)
            for name, a in like.items()
        }
        self.rooms = {name: room for name, (room, _) in made.items()}
        self.views = {name: view for name, (_, view) in made.items()}

    def taken(self) -> Arrays:
        """The values; then what is beside them must be as it was."""
        values = {name: view.copy() for name, view in self.views.items()}
        for name, view in self.views.items():
            view[...] = memory((1,), view.dtype)[0]
            assert (self.rooms[name].view(np.uint8) == GUARD).all(), f"{name}: its neighbours"
        return values


class Sequence:
    """A case as `fusecell.ops` runs it on contiguous arrays, to be run again in other layouts."""

    def __init__(self, place: _dispatch.Place, case: Case, dtype: Any = np.float32) -> None:
        self.place = place
        arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
        if dtype is ml_dtypes.bfloat16:
            arguments["c_0"] = arguments["c_0"].astype(np.float32)  # type: ignore[union-attr]
        with _dispatch.using(place.backend):
            y, h_n, c_n, saved = ops.conv_lstm_forward(*arguments.values(), **case.options)  # type: ignore[arg-type]
            assert saved is not None
            dy, dh_n, dc_n = upstream_of([y, h_n, c_n])
            self.gradients = {f"d{n}": a for n, a in ops.conv_lstm_backward(saved, dy, dh_n, dc_n).items()}
        self.outputs, self.upstream = {"y": y, "h_n": h_n, "c_n": c_n}, {"dy": dy, "dh_n": dh_n, "dc_n": dc_n}
        self.options = saved.options
        self.inputs = {n: a for n, a in saved.arrays.items() if a is not None and n not in ("y", "c", "gates")}
        self.kept: Arrays = {n: saved.arrays[n] for n in ("c", "gates")}  # type: ignore[misc]

    def inputs_in(self, layout: InLayout) -> Arrays:
        return {n: layout(n).holding(a) if n in IN_ANY_LAYOUT else a for n, a in self.inputs.items()}

    def forward(self, layout: InLayout, *, keep: bool) -> Arrays:
        outputs = Outputs(layout, self.outputs | (self.kept if keep else {}))
        call(self.place, self.inputs_in(layout) | outputs.views, self.options)
        return outputs.taken()

    def backward(self, layout: InLayout, kept: Arrays, upstream: Arrays) -> Arrays:
        gradients = Outputs(layout, self.gradients)
        arrays = self.inputs_in(layout) | {"y": layout("y").holding(self.outputs["y"])} | kept
        call(self.place, arrays, self.options, upstream | gradients.views)
        return gradients.taken()


def assert_same_bits(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, a in got.items():
        assert a.tobytes() == expected[name].tobytes(), name


def everywhere(layout: Layout) -> InLayout:
    return lambda _: layout


def check(sequence: Sequence, layout: InLayout) -> None:
    assert_same_bits(sequence.forward(layout, keep=True), sequence.outputs | sequence.kept)
    assert_same_bits(sequence.forward(layout, keep=False), sequence.outputs)
    upstream = {name: layout(name).holding(a) for name, a in sequence.upstream.items()}
    assert_same_bits(sequence.backward(layout, sequence.kept, upstream), sequence.gradients)
    made_again = sequence.backward(layout, {"c": sequence.kept["c"]}, upstream)
    assert_same_bits(made_again, sequence.gradients)


# ------------------------------------------------------------------------------------------------------ the same bits
# Whole 16 bytes where the pixels are neighbours at such addresses, else one by one.
ALIGNED = Case("conv_lstm", "16 pixels", {"H": 4, "W": 4, "C": 20, "I": 4, "peephole": "pixel"}, {"zoneout_h": 0.25})


@pytest.mark.parametrize("layout", USUAL, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.op == "conv_lstm"], ids=str)
def test_a_layout_changes_no_bit(place: _dispatch.Place, case: Case, layout: Layout) -> None:
    check(Sequence(place, case), everywhere(layout))


@pytest.mark.parametrize("layout", [*USUAL, *UNUSUAL], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_layout_changes_no_bit_of_any_dtype(place: _dispatch.Place, dtype: Any, layout: Layout) -> None:
    if dtype is ml_dtypes.bfloat16 and place.backend == "cpu":
        pytest.skip("the CPU computes in float32 and float64")
    check(Sequence(place, ALIGNED, dtype), everywhere(layout))


@pytest.mark.parametrize("layout", USUAL, ids=str)
@pytest.mark.parametrize("algorithm", ["winograd", "bfloat16"])
def test_a_layout_changes_no_bit_of_any_algorithm(algorithm: str, layout: Layout) -> None:
    case = replace(ALIGNED, options=ALIGNED.options | {"algorithm": algorithm})
    check(Sequence(_dispatch.Place("cpu"), case), everywhere(layout))


# Tensor cores read x and y in place where their channels are whole 16 bytes at such addresses, else a copy.
IN_PIECES = Case("conv_lstm", "16 channels", {"H": 4, "W": 4, "C": 16, "I": 8, "T": 3, "peephole": "pixel"})


@pytest.mark.parametrize("layout", [*USUAL, *UNUSUAL], ids=str)
@pytest.mark.parametrize(("dtype", "algorithm"), [(ml_dtypes.bfloat16, "tensor_cores"), (np.float32, "tf32")])
def test_a_layout_changes_no_bit_on_tensor_cores(dtype: Any, algorithm: str, layout: Layout) -> None:
    pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    case = replace(IN_PIECES, options={"algorithm": algorithm})
    check(Sequence(_dispatch.Place("emulated"), case, dtype), everywhere(layout))


@pytest.mark.parametrize("name", sorted(IN_ANY_LAYOUT))
@pytest.mark.parametrize(
    "layout",
    [Layout("BTHWC"), Layout("BTHWC", late=True), Layout("BTHWC", gap="C"), Layout("BTHWC", half="C")],
    ids=str,
)
def test_one_array_in_another_layout_on_tensor_cores(name: str, layout: Layout) -> None:
    pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    sequence = Sequence(_dispatch.Place("emulated"), IN_PIECES, ml_dtypes.bfloat16)
    check(sequence, lambda other: layout if other == name else Layout("TBHWC"))


@pytest.mark.parametrize("layout", [USUAL[1], *UNUSUAL[-4:]], ids=str)
@pytest.mark.parametrize("name", sorted(IN_ANY_LAYOUT))
def test_one_array_in_another_layout(place: _dispatch.Place, name: str, layout: Layout) -> None:
    check(Sequence(place, ALIGNED), lambda other: layout if other == name else CONTIGUOUS)


def test_an_upstream_gradient_may_be_one_number_for_all(place: _dispatch.Place) -> None:
    sequence = Sequence(place, ALIGNED)
    one = {name: np.full_like(a, 0.5) for name, a in sequence.upstream.items()}
    expanded = {name: np.broadcast_to(np.float32(0.5), a.shape) for name, a in one.items()}
    assert all(set(a.strides) == {0} for a in expanded.values())
    got, expected = (sequence.backward(everywhere(CONTIGUOUS), sequence.kept, sent) for sent in (expanded, one))
    assert_same_bits(got, expected)


def test_two_directions_write_side_by_side(place: _dispatch.Place) -> None:
    """y and dy of each direction are half of the channels of one array, with channels last and first."""
    there, back = (Sequence(place, Case("conv_lstm", "sides", {"T": 4}, {"reverse": r})) for r in (False, True))
    shape = there.outputs["y"].shape
    for order in ("TBCHW", "BTHWC"):
        _, both = Layout(order).empty((*shape[:2], 2 * shape[2], *shape[3:]), np.float32)
        halves = both[:, :, : shape[2]], both[:, :, shape[2] :]
        for sequence, half in zip((there, back), halves, strict=True):
            call(place, sequence.inputs | sequence.outputs | {"y": half}, sequence.options)
        for sequence, half in zip((there, back), halves, strict=True):
            assert half.tobytes() == sequence.outputs["y"].tobytes()
            got = sequence.backward(everywhere(CONTIGUOUS), sequence.kept, sequence.upstream | {"dy": half})
            expected = sequence.backward(everywhere(CONTIGUOUS), sequence.kept, sequence.upstream | {"dy": half.copy()})
            assert_same_bits(got, expected)


# ---------------------------------------------------------------------------------------------------------- bad strides
def strided(array: np.ndarray, *strides: int) -> tuple[Any, ...]:
    return (*described(array)[:3], strides)


STATE = (2, 3, 5, 6)  # of the default case: contiguous strides are 90, 30, 6, 1


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        ("x", (120, 60, 30, 12, 1), "x: expected strides with H and W as one axis, the last two (6, 1), got strides"),
        ("x", (120, 60, 30, -6, -1), "x: expected strides of at least 0, got strides (120, 60, 30, -6, -1)"),
        ("x", (120, 60, 30, 6), "x: expected 5 strides, got strides (120, 60, 30, 6)"),
        ("x", (2**46, 60, 30, 6, 1), "x: expected strides within 2^46 elements, got strides"),
        ("x", (2**63 - 1, 60, 30, 6, 1), "x: expected strides within 2^46 elements, got strides"),
        ("h_0", (90, 30, 1, 5), "h_0: expected strides with H and W as one axis, the last two (30, 5), got strides"),
        ("y", (180, 90, 0, 6, 1), "y: expected strides that keep the elements of an output apart, got strides (180,"),
        ("y", (90, 90, 30, 6, 1), "y: expected strides that keep the elements of an output apart"),
        ("h_n", (90, 29, 6, 1), "h_n: expected strides that keep the elements of an output apart"),
        ("c_n", (0, 30, 6, 1), "c_n: expected strides that keep the elements of an output apart"),
        ("c", (180, 90, 1, 18, 3), "c: expected a C-contiguous array, got strides (180, 90, 1, 18, 3)"),
        ("weight_ih", (1, 12, 36, 108), "weight_ih: expected a C-contiguous array, got strides (1, 12, 36, 108)"),
        ("weight_hh", (27, 9, 3), "weight_hh: expected 4 strides, got strides (27, 9, 3)"),
        ("bias", (2,), "bias: expected a C-contiguous array, got strides (2,)"),
    ],
)  # fmt: skip
def test_strides_that_are_refused(place: _dispatch.Place, name: str, strides: tuple[int, ...], message: str) -> None:
    sequence = Sequence(place, CASES[0])
    outputs = Outputs(everywhere(CONTIGUOUS), sequence.outputs | sequence.kept)
    arrays = sequence.inputs | outputs.views
    given = describe_all(arrays) | {name: strided(arrays[name], *strides)}
    scratch = memory((2**20,), np.uint8)
    with pytest.raises(ValueError, match=re.escape(message)):
        place.module.conv_lstm_forward(given, sequence.options, (scratch.ctypes.data, scratch.size, 1, 0, 0))
    assert all(np.isnan(a).all() for a in outputs.taken().values())


@pytest.mark.parametrize("name", ["dx", "dh_0", "dc_0"])
def test_gradients_that_overlap_are_refused(place: _dispatch.Place, name: str) -> None:
    sequence = Sequence(place, CASES[0])
    arrays = sequence.inputs | {"y": sequence.outputs["y"]} | sequence.kept | sequence.gradients
    given = describe_all(arrays) | {name: strided(arrays[name], *(0,) * arrays[name].ndim)}
    with pytest.raises(ValueError, match=f"^{name}: expected strides that keep the elements of an output apart"):
        place.module.conv_lstm_backward(given, sequence.options, (0, 2**30, 1, 0, 0))


def test_strides_along_one_element_or_none_are_any_number(place: _dispatch.Place) -> None:
    for case in (Case("conv_lstm", "", {"B": 1, "C": 1, "I": 1, "H": 1, "T": 1}), Case("conv_lstm", "", {"B": 0})):
        sequence = Sequence(place, case)
        outputs = Outputs(everywhere(CONTIGUOUS), sequence.outputs)
        given = describe_all(sequence.inputs | outputs.views)
        for name in ("x", "h_0", "y", "h_n", "weight_ih"):
            pointer, shape, dtype, strides = given[name]
            free = [2**40 if extent == 1 or 0 in shape else s for extent, s in zip(shape, strides, strict=True)]
            given[name] = pointer, shape, dtype, tuple(free)
        scratch = memory((2**20,), np.uint8)
        place.module.conv_lstm_forward(given, sequence.options, (scratch.ctypes.data, scratch.size, 1, 0, 0))
        assert_same_bits(outputs.taken(), sequence.outputs)


@pytest.mark.parametrize(("name", "strides"), [("x", (2**34, 2**33, 2**31, 6, 1)), ("h_0", (2**40, 1, 6 << 31, 2**31))])
def test_strides_beyond_32_bits_inside_an_image_are_refused_on_a_gpu(name: str, strides: tuple[int, ...]) -> None:
    _emulated = pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    sequence = Sequence(_dispatch.Place("emulated"), CASES[0])
    given = describe_all(sequence.inputs | sequence.outputs | sequence.kept)
    given[name] = (*given[name][:3], strides)
    with pytest.raises(
        ValueError, match=f"^{name}: expected strides of channels and pixels below 2\\^31 on a GPU, got"
    ):
        _emulated.conv_lstm_forward(given, sequence.options, (0, 2**30, 1, 0, 0))


@pytest.mark.parametrize("op", ["conv2d", "lstm_gates"])
def test_the_other_ops_take_contiguous_arrays(place: _dispatch.Place, op: str) -> None:
    name, array = ("x", memory((2, 3, 4, 4), np.float32)) if op == "conv2d" else ("z", memory((2, 4, 4, 4), np.float32))
    rest = {"weight": memory((1, 3, 1, 1), np.float32)} if op == "conv2d" else {"c": memory((2, 1, 4, 4), np.float32)}
    given = describe_all(rest) | {name: strided(array, 48, 1, 12, 3)}
    with pytest.raises(ValueError, match=f"^{name}: expected a C-contiguous array, got strides"):
        getattr(place.module, f"{op}_plan")(given, {}, False, 1)
