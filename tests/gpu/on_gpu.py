"""What the tests of this folder share. A module that imports this is skipped where there is nothing to test on."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fusecell import ops, selftest

if "cuda" not in selftest.backends():
    pytest.skip(
        "needs a GPU, fusecell's CUDA kernels and CuPy: `fusecell info` says which is missing", allow_module_level=True
    )

cupy: Any = importlib.import_module("cupy")

# On one multiprocessor: the others go on.
_SPIN = cupy.RawKernel(
    r"""
    extern "C" __global__ void spin(unsigned long long nanoseconds) {
      unsigned long long now, end;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
      end = now + nanoseconds;
      while (now < end) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    }
    """,
    "spin",
)


def spin(seconds: float) -> None:
    """Keep CuPy's current stream busy."""
    _SPIN((1,), (1,), (np.uint64(seconds * 1e9),))


def wait() -> None:
    """Until the GPU has done everything, on every stream."""
    cupy.cuda.Device().synchronize()


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> Any:
    """Random numbers, drawn on the host. They are there when this returns, for every stream."""
    array = cupy.asarray((scale * rng.standard_normal(shape)).astype(dtype))
    wait()
    return array


def digest(array: np.ndarray) -> str:
    """Stands for all bits of an array of the host."""
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def bits(arrays: Sequence[Any]) -> list[str]:
    """What stands for all bits of each array."""
    wait()
    return [digest(array.get()) for array in arrays]


def put(to: Any, source: Any) -> None:
    """Copy an array's bits: CuPy need not know how to compute on the dtype."""
    to.view(np.uint8)[...] = source.view(np.uint8)


class Sequence5D:
    """A ConvLSTM of no round extents, its inputs, and the gradient that is sent back."""

    def __init__(self, rng: np.random.Generator, dtype: Any = np.float32) -> None:
        steps, batch, inputs, channels, size = 4, 2, 3, 20, 18
        self.x = normal(rng, steps, batch, inputs, size, size, dtype=dtype)
        self.weights = [normal(rng, 4 * channels, n, 3, 3, dtype=dtype, scale=0.1) for n in (inputs, channels)]
        self.weights.append(normal(rng, 4 * channels, dtype=dtype))
        self.dy = normal(rng, steps, batch, channels, size, size, dtype=dtype)

    def run(self, **options: Any) -> list[Any]:
        """Outputs and gradients, forward and backward, on CuPy's current stream."""
        *outputs, saved = ops.conv_lstm_forward(self.x, *self.weights, **options)
        return [*outputs, *ops.conv_lstm_backward(saved, self.dy).values()]
