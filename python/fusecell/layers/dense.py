"""A fully connected layer whose matrix products repeat bit for bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from fusecell._typing import Array
from fusecell.initializers import glorot_uniform
from fusecell.layers.base import Layer, float_dtype, positive


class _SingleThread:
    """The process's BLAS libraries, held at one thread while a product runs.

    A BLAS splits a product by its number of threads and so rounds differently with each. The limit is a setting of
    the whole process, so a lock keeps two callers from restoring each other's number; a forked child gets a new one.
    """

    def __init__(self) -> None:
        self._controller: ThreadpoolController | None = None
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if self._controller is None:
                self._controller = ThreadpoolController()
            with self._controller.limit(limits=1):
                yield


_single_thread = _SingleThread()


class Dense(Layer):
    """y = x W^T + b: x [..., in] -> y [..., out].

    weight [out, in] is Glorot uniform, bias [out] zero (bias=False: none). The product is NumPy's own, run on one
    thread under a process-wide `threadpoolctl.ThreadpoolController`, so training repeats bit for bit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        inputs, outputs = positive(in_features, "in_features"), positive(out_features, "out_features")
        kind = float_dtype(dtype)
        self._parameters["weight"] = glorot_uniform(rng, (outputs, inputs), inputs, outputs, kind)
        if bias:
            self._parameters["bias"] = np.zeros(outputs, kind)
        self._x: Array | None = None

    def forward(self, x: Array) -> Array:
        """y [..., out]. Raises ValueError for another last axis, TypeError for another dtype."""
        weight = self._parameters["weight"]
        if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x: expected [..., {weight.shape[1]}], got {list(x.shape)}")
        if x.dtype != weight.dtype:
            raise TypeError(f"x: expected {weight.dtype}, got {x.dtype}")
        self._x = x
        rows = _rows(x)
        with _single_thread.held():
            y: Array = np.matmul(rows, weight.T)
        if "bias" in self._parameters:
            y += self._parameters["bias"]
        y = y.reshape(*x.shape[:-1], weight.shape[0])
        self._activity = {"": y}
        return y

    def backward(self, dy: Array) -> Array:
        """dx of x's shape. Raises ValueError or TypeError unless dy has y's shape and dtype."""
        if self._x is None:
            raise RuntimeError("Dense.backward: call forward first")
        weight = self._parameters["weight"]
        expected = (*self._x.shape[:-1], weight.shape[0])
        if dy.shape != expected:
            raise ValueError(f"dy: expected {expected}, got {dy.shape}")
        if dy.dtype != weight.dtype:
            raise TypeError(f"dy: expected {weight.dtype}, got {dy.dtype}")
        rows = _rows(dy)
        with _single_thread.held():
            dx: Array = np.matmul(rows, weight)
            dweight: Array = np.matmul(rows.T, _rows(self._x))
        self._keep_gradients({"weight": dweight, "bias": rows.sum(axis=0)})
        return dx.reshape(self._x.shape)


def _rows(x: Array) -> Array:
    """[..., n] -> [N, n], contiguous: a BLAS may take another path for another layout."""
    return np.ascontiguousarray(x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1]))
