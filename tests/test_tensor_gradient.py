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
        reach = [n + 2 * low - d * (k - 1) - 1 for n, low, d, k in zip(self.size, self.low, self.dilation, self.kernel)]
        return max(reach[0] // self.stride[0] + 1, 1), max(reach[1] // self.stride[1] + 1, 1)

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


def check(problem: Problem) -> None:
    operands = Operands(problem)
    partial, bias = operands.run()
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
@given(problems())
def test_any_problem(problem: Problem) -> None:
    check(problem)


# Several tiles each way; a window of pixels' places ends within a part, and more than all buffers are used again.
LARGE = Problem(rows=200, channels=100, size=(7, 60), kernel=(2, 2), low=(1, 0), batch=2, part=448)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("row_shift", [0, 1, 2])
@pytest.mark.parametrize("buffers", [2, 3, 4])
def test_every_tile_and_number_of_buffers(type: str, row_shift: int, buffers: int) -> None:
    check(replace(LARGE, type=type, row_shift=row_shift, buffers=buffers))
