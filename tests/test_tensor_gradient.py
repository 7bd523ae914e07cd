"""The weights' gradient on tensor cores by itself, tensors with channels last, against a sum written out in NumPy.

Operands are small integers, which every type holds and whose sums float32 holds: what is expected is expected exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_emulated: Any = pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")

TYPES: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _controls_as_before() -> Iterator[None]:
    yield
    _emulated.set_controls("", False)
    _emulated.want_hopper(False)


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Problem:
    """A convolution's shape, and which steps of a batch of sequences its images are."""

    type: str = "bfloat16"
    rows: int = 8
    channels: int = 3
    size: tuple[int, int] = (5, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    low: tuple[int, int] = (1, 1)
    batch: int = 1
    slots: int = 1  # steps of this call
    time: int = 0  # its first
    steps: int = 1  # of the sequences
    lengths: tuple[int, ...] | None = None
    shift: int = 0
    initial: bool = False
    part: int = 0  # pixels of a part of the sum; 0: as the core chooses
    row_shift: int = 0
    buffers: int = 0  # 0: this and the tile as the core chooses

    @property
    def out(self) -> tuple[int, int]:
        """The result's extents with as much padding behind as in front, and one row or column at least."""

        def along(axis: int) -> int:
            reach = self.size[axis] + 2 * self.low[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
            return max(reach // self.stride[axis] + 1, 1)

        return along(0), along(1)

    @property
    def piece(self) -> int:
        return 16 // np.dtype(TYPES[self.type]).itemsize


class Operands:
    """Arrays of a problem, as the kernel wants them: every pixel padded to whole pieces."""

    def __init__(self, problem: Problem, draw: Any = None) -> None:
        rng = np.random.default_rng(0)
        self.problem = problem
        p, dtype = problem, TYPES[problem.type]

        def values(*shape: int) -> Array:
            drawn: Array = draw(rng, shape) if draw else rng.integers(-4, 5, shape)
            return drawn.astype(dtype)

        pixels, out = p.size[0] * p.size[1], p.out[0] * p.out[1]
        pitch = round_up(p.channels, p.piece)
        # One piece of its own more between the states' pixels than between the frames'.
        self.frames = np.zeros((p.slots, p.batch, pixels, pitch), dtype)
        self.frames[..., : p.channels] = values(p.slots, p.batch, pixels, p.channels)
        self.start = np.full((p.batch, pixels, pitch + p.piece), np.nan, dtype)
        self.start[..., :pitch] = 0
        self.start[..., : p.channels] = values(p.batch, pixels, p.channels)
        self.dz = np.zeros((p.slots * p.batch, out, round_up(p.rows, p.piece)), dtype)
        self.dz[..., : p.rows] = values(p.slots * p.batch, out, p.rows)
        for n in range(p.slots * p.batch):
            if self.image(n) is None:
                self.dz[n] = 0

    def takes_place(self, b: int, time: int) -> bool:
        p = self.problem
        return 0 <= time < p.steps and (p.lengths is None or time < p.lengths[b])

    def image(self, n: int) -> Array | None:
        """[P, channels] of sample n; None: its step does not take place."""
        p = self.problem
        slot, b = divmod(n, p.batch)
        if not self.takes_place(b, p.time + slot):
            return None
        frames = self.frames if not p.shift or self.takes_place(b, p.time + slot + p.shift) else None
        if frames is None and not p.initial:
            return np.zeros((p.size[0] * p.size[1], p.channels))
        image = self.start[b] if frames is None else frames[slot, b]
        return image[:, : p.channels].astype(np.float64)

    def taps(self) -> Array:
        p = self.problem
        places = [(i, j) for i in range(p.kernel[0]) for j in range(p.kernel[1])]
        taps = [
            (first, i * p.dilation[0], j * p.dilation[1], at)
            for at, (i, j) in enumerate(places)
            for first in range(0, p.channels, p.piece)
        ]
        taps += [(-1, 0, 0, 0)] * (round_up(len(taps), 8) - len(taps))
        return np.array(taps, np.int32)

    def run(self) -> tuple[Array, Array]:
        """The parts of the weights' gradient and of the bias's, as the kernel leaves them."""
        p = self.problem
        partial, bias = _emulated.tensor_gradient(
            type=p.type,
            frames=self.frames,
            dz=self.dz,
            initial=self.start if p.initial else None,
            lengths=None if p.lengths is None else np.array(p.lengths, np.int64),
            time=p.time,
            steps=p.steps,
            shift=p.shift,
            geometry=[*p.size, p.out[1], *p.stride, *p.low],
            taps=self.taps(),
            rows=p.rows,
            channels=p.channels,
            kernel=p.kernel[0] * p.kernel[1],
            part=p.part,
            row_shift=p.row_shift,
            buffers=p.buffers,
        )
        return partial, bias

    def expected(self) -> tuple[Array, Array]:
        p = self.problem
        dz = self.dz[..., : p.rows].astype(np.float64).reshape(-1, *p.out, p.rows)
        gradient = np.zeros((p.rows, p.channels, p.kernel[0], p.kernel[1]))
        for n, of_sample in enumerate(dz):
            image = self.image(n)
            if image is None:
                continue
            rows = [(p.out[i] - 1) * p.stride[i] + (p.kernel[i] - 1) * p.dilation[i] + 1 for i in range(2)]
            padded = np.zeros((max(rows[0], p.low[0] + p.size[0]), max(rows[1], p.low[1] + p.size[1]), p.channels))
            padded[p.low[0] :, p.low[1] :][: p.size[0], : p.size[1]] = image.reshape(*p.size, -1)
            for i in range(p.kernel[0]):
                for j in range(p.kernel[1]):
                    seen = padded[i * p.dilation[0] :: p.stride[0], j * p.dilation[1] :: p.stride[1]]
                    seen = seen[: p.out[0], : p.out[1]]
                    gradient[:, :, i, j] += np.einsum("hwr,hwc->rc", of_sample, seen)
        return gradient.reshape(p.rows, -1), dz.sum((0, 1, 2))


def check(problem: Problem, hopper: bool = False) -> None:
    operands = Operands(problem)
    _emulated.want_hopper(hopper)
    _emulated.reset_statistics()
    partial, bias = operands.run()
    assert (_emulated.statistics()["warpgroup_products"] > 0) == (hopper and problem.type != "float32")
    gradient, of_bias = operands.expected()
    total = problem.slots * problem.batch * problem.out[0] * problem.out[1]
    if problem.part:
        assert len(partial) == len(bias) == -(-total // problem.part)
    np.testing.assert_array_equal(partial.sum(0, dtype=np.float64), gradient)
    np.testing.assert_array_equal(bias.sum(0, dtype=np.float64), of_bias)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def problems(draw: Any) -> Problem:
    batch, slots, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 4
    with_lengths, type = draw(st.booleans()), draw(st.sampled_from(list(TYPES)))
    return Problem(
        type=type,
        rows=draw(st.sampled_from([1, 4, 24, 64, 100, 132])),
        channels=draw(st.sampled_from([1, 3, 8, 24, 40])),
        size=draw(st.tuples(st.integers(1, 8), st.integers(1, 8))),
        kernel=draw(pairs),
        stride=draw(pairs),
        dilation=draw(pairs),
        low=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        batch=batch,
        slots=slots,
        time=draw(st.integers(0, steps - slots)),
        steps=steps,
        lengths=tuple(draw(st.lists(st.integers(0, 5), min_size=batch, max_size=batch))) if with_lengths else None,
        shift=draw(st.sampled_from([0, -1, 1])),
        initial=draw(st.booleans()),
        part=draw(st.sampled_from([0, 32, 64])),
        row_shift=draw(st.integers(0, 2)),
        buffers=draw(st.integers(0, 4).filter(lambda n: n != 1)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.booleans())
def test_any_problem(problem: Problem, hopper: bool) -> None:
    check(problem, hopper)


# Several tiles each way; a window of pixels' places ends within a part, and more than all buffers are used again.
LARGE = Problem(rows=200, channels=100, size=(7, 60), kernel=(2, 2), low=(1, 0), batch=2, part=448)


with_and_without_hopper = pytest.mark.parametrize("hopper", [False, True], ids=["portable", "hopper"])


@with_and_without_hopper
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("row_shift", [0, 1, 2])
@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_every_tile_and_number_of_buffers(type: str, row_shift: int, buffers: int, hopper: bool) -> None:
    check(replace(LARGE, type=type, row_shift=row_shift, buffers=buffers), hopper)


# Only here, where both add in the order of the pixels; a part of fewer pixels than a stage, and of fewer stages than
# buffers.
@pytest.mark.parametrize("type", ["bfloat16", "float16"])
@pytest.mark.parametrize("row_shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(7, 60), (3, 7), (5, 8)], ids=str)
def test_warpgroups_have_the_bits_of_warps(type: str, row_shift: int, size: tuple[int, int]) -> None:
    problem = replace(LARGE, type=type, size=size, row_shift=row_shift, buffers=4, batch=1)
    operands = Operands(problem, draw=lambda rng, shape: rng.normal(size=shape))
    portable = operands.run()
    _emulated.want_hopper(True)
    for got, expected in zip(operands.run(), portable, strict=True):
        assert got.tobytes() == expected.tobytes()


# Copies that come late, or at once, find what is not waited for, or overwritten too early.
@with_and_without_hopper
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("manner", ["copies=late", "copies=late,order=reversed", "copies=eager,order=random,seed=1"])
def test_any_manner(type: str, manner: str, hopper: bool) -> None:
    _emulated.set_controls(manner, False)
    for row_shift, buffers in [(0, 2), (1, 3), (2, 4)]:
        check(replace(LARGE, type=type, rows=70, channels=24, row_shift=row_shift, buffers=buffers), hopper)


@with_and_without_hopper
@pytest.mark.parametrize("type", TYPES)
def test_threads(type: str, hopper: bool) -> None:
    _emulated.set_controls("engine=threads,copies=late", False)
    shape = {"rows": 24, "channels": 9, "size": (6, 12), "batch": 3}
    check(Problem(type=type, **shape, lengths=(1, 0, 1), initial=True, shift=-1), hopper)


@with_and_without_hopper
@pytest.mark.parametrize("type", TYPES)
def test_what_is_infinite_stays_in_its_row_and_column(type: str, hopper: bool) -> None:
    _emulated.want_hopper(hopper)
    operands = Operands(replace(LARGE, type=type))
    operands.dz[0, 40, 17] = np.inf
    operands.frames[0, 1, 50, 33] = np.nan
    partial, bias = operands.run()
    finite = np.isfinite(partial.sum(0)).reshape(200, 100, 4)
    assert not finite[17].any()
    assert not finite[:, 33].all()
    assert np.delete(np.delete(finite, 17, 0), 33, 1).all()
    assert np.flatnonzero(~np.isfinite(bias.sum(0))).tolist() == [17]


def rounded_to_tf32(values: Array) -> Array:
    bits = values.astype(np.float32).view(np.uint32)
    rounded: Array = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return rounded


def test_floats_are_rounded_to_tf32_but_in_the_bias() -> None:
    operands = Operands(replace(LARGE, type="float32"), draw=lambda rng, shape: rng.normal(size=shape))
    partial, bias = operands.run()
    of_bias = operands.dz[..., :200].sum((0, 1), dtype=np.float64)
    np.testing.assert_allclose(bias.sum(0, dtype=np.float64), of_bias, rtol=0, atol=2e-5)
    operands.dz, operands.frames = rounded_to_tf32(operands.dz), rounded_to_tf32(operands.frames)
    np.testing.assert_allclose(partial.sum(0, dtype=np.float64), operands.expected()[0], rtol=0, atol=2e-4)
    assert np.abs(operands.expected()[1] - of_bias).max() > 1e-3


# ------------------------------------------------------------------------------------------------ what the core chooses
GPUS = {"sm_80": 164, "sm_86": 100, "sm_90": 228}  # KiB of a multiprocessor's shared memory


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("rows", "pieces"), [(64, 72), (256, 72), (256, 8), (1024, 144), (1, 8)])
def test_two_blocks_fit_and_parts_cover_all(gpu: str, type: str, rows: int, pieces: int) -> None:
    for total in (1, 1000, 131072, 2**33):
        plan = {"type": type, "rows": rows, "pieces": pieces, "total": total}
        tile, buffers, shared, parts, size = _emulated.tensor_gradient_plan(shared=GPUS[gpu] << 10, **plan)
        aligned = 1024 if gpu == "sm_90" else 0  # what the panels of warpgroups take more
        assert 2 * (shared + aligned + 1024) <= GPUS[gpu] << 10
        assert (2 if gpu == "sm_86" else 3) <= buffers <= 4
        assert (parts - 1) * size < total <= parts * size <= parts * 2**30
        width = np.dtype(TYPES[type]).itemsize
        assert size % (64 // width) == 0
        tiles = -(-rows // tile) * -(-pieces * (16 // width) // (16384 // tile))
        assert parts * tiles <= 264 or total > 2**30
        assert parts == 1 or size >= 2**30 or size >= 256


def test_a_block_has_a_kibibyte_besides() -> None:
    plan = {"type": "bfloat16", "rows": 256, "pieces": 72, "total": 1}
    _, buffers, shared, _, _ = _emulated.tensor_gradient_plan(shared=228 << 10, **plan)
    enough = 2 * (shared + 1024)
    assert buffers == _emulated.tensor_gradient_plan(shared=enough, **plan)[1] == 4
    assert _emulated.tensor_gradient_plan(shared=enough - 2, **plan)[1] == 3


@pytest.mark.parametrize(
    ("rows", "pieces", "tile"),
    [
        pytest.param(256, 72, 128, id="16x20x64x64x64x64: ten square tiles read less than nine of 256 rows"),
        pytest.param(64, 72, 64, id="4x10x1x16x64x64, h: three tiles, not five"),
        pytest.param(64, 16, 128, id="the same, x: one tile of either kind"),
        pytest.param(512, 144, 128, id="2x12x128x128x256x256: as many of any kind"),
        pytest.param(256, 8, 256, id="a kernel of one place"),
    ],
)
def test_the_tiles_are_those_that_read_least(rows: int, pieces: int, tile: int) -> None:
    plan = {"type": "bfloat16", "total": 1, "shared": 228 << 10}
    assert _emulated.tensor_gradient_plan(rows=rows, pieces=pieces, **plan)[0] == tile


# -------------------------------------------------------------------------------------------------- bias and peepholes
SIGMOID, TANH, SOFTSIGN, HARD_SIGMOID = 1, 2, 10, 7  # of cell/activation.h


def activate(kind: int, saved: Array) -> Array:
    """Return the value that a saved gate stands for: itself, or what is still to be activated."""
    if kind == HARD_SIGMOID:
        return np.clip(saved + 3, 0, 6) / 6
    return saved / (1 + np.abs(saved)) if kind == SOFTSIGN else saved


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    type=st.sampled_from(list(TYPES)),
    channels=st.sampled_from([1, 3, 8, 20, 70]),
    batch=st.integers(1, 3),
    slots=st.integers(1, 3),
    time=st.integers(0, 1),
    pixels=st.integers(1, 40),
    lengths=st.none() | st.lists(st.integers(0, 5), min_size=3, max_size=3),
    shift=st.sampled_from([-1, 1]),
    initial=st.booleans(),
    per_pixel=st.booleans(),
    peephole=st.booleans(),
    kinds=st.sampled_from([(SIGMOID, TANH), (HARD_SIGMOID, SOFTSIGN)]),
    part=st.sampled_from([0, 16, 100]),
)
def test_parameter_gradients(
    type: str,
    channels: int,
    batch: int,
    slots: int,
    time: int,
    pixels: int,
    lengths: list[int] | None,
    shift: int,
    initial: bool,
    per_pixel: bool,
    peephole: bool,
    kinds: tuple[int, int],
    part: int,
) -> None:
    rng, dtype, C = np.random.default_rng(1), TYPES[type], channels
    dz = np.full((slots * batch, pixels, 4 * C + 8), np.nan, dtype)
    dz[..., : 4 * C] = rng.normal(size=(slots * batch, pixels, 4 * C))
    gates = rng.normal(size=(slots * batch, pixels, 4 * C)).astype(dtype)
    c = rng.normal(size=(slots, batch, pixels, C)).astype(np.float32)
    start = rng.normal(size=(batch, pixels, C)).astype(np.float32)

    def takes_place(b: int, at: int) -> bool:
        return 0 <= at < 4 and (lengths is None or at < lengths[b])

    if not peephole:  # the caller's duty, there
        for n in range(slots * batch):
            if not takes_place(n % batch, time + n // batch):
                dz[n, :, : 4 * C] = 0
    terms = np.zeros((slots * batch, pixels, 3 * C if peephole else 4 * C))
    for n in range(slots * batch):
        slot, b = divmod(n, batch)
        z = dz[n, :, : 4 * C].astype(np.float64)
        if not takes_place(b, time + slot):
            continue
        if not peephole:
            terms[n] = z
            continue
        state = c[slot, b] if takes_place(b, time + slot + shift) else start[b] if initial else np.zeros((pixels, C))
        gate = [activate(kinds[k == 2], g) for k, g in enumerate(np.split(gates[n].astype(np.float64), 4, -1))]
        after = gate[1] * state + gate[0] * gate[2]
        terms[n] = np.concatenate([z[:, :C] * state, z[:, C : 2 * C] * state, z[:, 3 * C :] * after], -1)
    got = _emulated.tensor_parameter_gradient(
        type=type,
        dz=dz,
        c=c,
        gates=gates if peephole else None,
        initial=start if initial else None,
        lengths=None if lengths is None else np.array(lengths, np.int64),
        time=time,
        steps=4,
        shift=shift,
        rows=4 * C,
        part=part,
        peephole=peephole,
        per_pixel=per_pixel,
        gate_kind=kinds[0],
        state_kind=kinds[1],
    )
    if per_pixel:
        np.testing.assert_allclose(got, terms.sum(0).T, rtol=0, atol=1e-5)
    else:
        np.testing.assert_allclose(got.sum(0), terms.sum((0, 1)), rtol=0, atol=1e-4)
