"""CUDA graphs: what is captured once is right at every replay, on the numbers that then stand in the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from on_gpu import bits, cupy, normal, put, wait

from fusecell import ops

PARAMETERS = ("weight_ih", "weight_hh", "bias")


class Captured:
    """What `body` enqueues, as a graph.

    The memory that a capture takes belongs to the graph for as long as that lives, though Python frees the arrays: so
    it comes from a pool that nobody else asks. A first call compiles CuPy's kernels, loads fusecell's, and leaves that
    pool with the blocks that the capture then takes; where it needs more, CuPy's mode of capture (relaxed) permits it.
    """

    def __init__(self, stream: Any, body: Callable[[], Any]) -> None:
        self.stream, self.pool = stream, cupy.cuda.MemoryPool()
        wait()
        with cupy.cuda.using_allocator(self.pool.malloc), stream:
            body()
            stream.synchronize()
            stream.begin_capture()
            try:
                self.result = body()
            finally:
                self.graph = stream.end_capture()

    def replay(self) -> Any:
        wait()
        self.graph.launch(self.stream)
        wait()
        return self.result


class Training:
    """A training step on memory that stays where it is."""

    def __init__(self, rng: np.random.Generator, dtype: Any, options: dict[str, Any]) -> None:
        self.options = options
        shapes = [(32, 3, 3, 3), (32, 8, 3, 3), (32,)]
        self.start = [normal(rng, *shape, dtype=dtype, scale=0.2) for shape in shapes]
        self.parameters = [a.copy() for a in self.start]
        slot = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
        self.means, self.squares = ([cupy.zeros(shape, slot) for shape in shapes] for _ in range(2))
        self.x, self.dy = (normal(rng, 5, 2, channels, 16, 16, dtype=dtype) for channels in (3, 8))
        self.inputs = [normal(rng, *self.x.shape, dtype=dtype) for _ in range(4)]
        self.count = cupy.zeros(1, np.int64)

    def reset(self) -> None:
        for now, start in zip(self.parameters, self.start, strict=True):
            put(now, start)
        for slot in (*self.means, *self.squares, self.count):
            slot.fill(0)
        wait()

    def step(self) -> list[Any]:
        y, *_, saved = ops.conv_lstm_forward(self.x, *self.parameters, **self.options)
        gradients = list(ops.conv_lstm_backward(saved, self.dy, needs=PARAMETERS).values())
        norm = ops.clip_by_global_norm_(gradients, 1.0)
        self.count += 1
        ops.adam_update_(self.parameters, gradients, self.means, self.squares, step=self.count, lr=1e-2)
        return [y, norm]

    def train(self, step: Callable[[], list[Any]]) -> list[list[str]]:
        """Every bit of every step on the inputs, one after the other, from the start."""
        self.reset()
        found = []
        for x in self.inputs:
            put(self.x, x)
            wait()
            found.append(bits([*step(), *self.parameters, *self.means, *self.squares, self.count]))
        return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"save": "recompute", "truncation": 2},
        {"training": True, "zoneout_h": 0.2, "zoneout_c": 0.1, "recurrent_dropout": 0.3, "seed": 5},
    ],
    ids=["plain", "recompute", "random masks"],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_training_step(dtype: Any, options: dict[str, Any], rng: np.random.Generator) -> None:
    training = Training(rng, dtype, options)
    eager = training.train(training.step)
    assert len({step[0] for step in eager}) == len(eager)
    captured = Captured(cupy.cuda.Stream(non_blocking=True), training.step)
    assert training.train(captured.replay) == eager
    assert training.train(captured.replay) == eager
    assert training.train(training.step) == eager


def test_clipping_and_an_update_of_200_tensors_of_all_dtypes(rng: np.random.Generator) -> None:
    dtypes = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
    wide = [np.dtype(np.float32 if np.dtype(d).itemsize == 2 else d) for d in dtypes]
    sizes = [int(n) for n in rng.integers(1, 3000, 200)]
    start = [normal(rng, n, dtype=dtypes[i % 4]) for i, n in enumerate(sizes)]
    gradients, parameters = ([a.copy() for a in start] for _ in range(2))
    velocities = [cupy.zeros(n, wide[i % 4]) for i, n in enumerate(sizes)]

    def work() -> Any:
        norm = ops.global_norm(gradients)
        ops.sgd_update_(parameters, gradients, velocities, lr=0.1, momentum=0.9, norm=norm, max_norm=1.0)
        return ops.clip_by_global_norm_(gradients, 2.0)

    def from_the_start(run: Callable[[], Any]) -> list[str]:
        for a, b, v, s in zip(gradients, parameters, velocities, start, strict=True):
            put(a, s)
            put(b, s)
            v.fill(0)
        wait()
        norm = run()
        return bits([norm, *gradients, *parameters, *velocities])

    eager = from_the_start(work)
    squares = sum(float((a.get().astype(np.float64) ** 2).sum()) for a in start)
    captured = Captured(cupy.cuda.Stream(non_blocking=True), work)
    assert from_the_start(captured.replay) == eager
    assert captured.result.dtype == np.float64
    assert captured.result.shape == ()
    assert float(captured.result) == pytest.approx(np.sqrt(squares), rel=1e-12)


def test_error_if_nonfinite_is_refused_and_the_capture_can_be_ended(rng: np.random.Generator) -> None:
    gradients = [normal(rng, 1000)]
    before = bits(gradients)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        ops.clip_by_global_norm_(gradients, 1e9, error_if_nonfinite=True)
        stream.synchronize()
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="error_if_nonfinite: expected no graph capture"):
                ops.clip_by_global_norm_(gradients, 1.0, error_if_nonfinite=True)
        finally:
            graph = stream.end_capture()
        graph.launch(stream)
        assert bits(gradients) == before
        norm = ops.clip_by_global_norm_(gradients, 1.0, error_if_nonfinite=True)
    assert float(norm) > 1.0
    assert bits(gradients) != before


def test_random_masks_are_others_at_each_replay() -> None:
    counter = cupy.zeros(1, np.int64)

    def work() -> Any:
        mask = ops.bernoulli((1000,), 0.5, seed=3, offset=counter, device=0)
        counter.__iadd__(250)
        return mask

    captured = Captured(cupy.cuda.Stream(non_blocking=True), work)
    counter.fill(0)
    drawn = [captured.replay().get() for _ in range(3)]
    for i, mask in enumerate(drawn):
        assert np.array_equal(mask, ops.bernoulli((1000,), 0.5, seed=3, offset=250 * i))
