"""What every layer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fusecell._typing import Array, Pair

_L = TypeVar("_L", bound="Layer")
_C = TypeVar("_C", bound="Composite")


class Layer(ABC):
    """forward, backward, and the parameters between them.

    A forward keeps what its backward needs until the next forward; `backward` may be called again and gives the
    same answer. `gradients()` are those of the last backward alone: nothing is accumulated, so nothing need be
    zeroed. A layer is used by one thread at a time; different layers may be used by different threads.
    """

    def __init__(self) -> None:
        self.training = True
        self._parameters: dict[str, Array] = {}
        self._gradients: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        self._activity: dict[str, Array] = {}

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """The layer's output."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """The gradient of the input, given the output's. Raises RuntimeError before the first forward."""

    def __call__(self, x: Array) -> Array:
        """The same as `forward`."""
        return self.forward(x)

    def parameters(self) -> dict[str, Array]:
        """The live arrays by name, in an order that never changes: an optimiser writes into them."""
        return dict(self._parameters)

    def gradients(self) -> dict[str, Array]:
        """The same keys as `parameters()`, from the last backward. Raises RuntimeError before it."""
        if self._parameters and not self._gradients:
            raise RuntimeError(f"{type(self).__name__}.gradients: call backward first")
        return dict(self._gradients)

    def buffers(self) -> dict[str, Array]:
        """The live arrays besides the parameters that training changes and evaluation needs: running statistics."""
        return dict(self._buffers)

    def activity(self) -> dict[str, Array]:
        """What the units gave in the last forward, not copied, by name: "" for a layer with one set of them.

        Empty before a forward, and for a layer without units of its own.
        """
        return dict(self._activity)

    def train(self: _L) -> _L:
        """Training mode: dropout and zoneout draw, normalisation takes the batch's statistics. Returns self."""
        self.training = True
        return self

    def eval(self: _L) -> _L:
        """Evaluation mode: nothing is drawn, running statistics are used and stay. Returns self."""
        self.training = False
        return self

    def load_parameters(self, arrays: Mapping[str, Array]) -> None:
        """Copy values into the live parameters. All of them or, on an error, none.

        Raises KeyError for a name missing or unknown, ValueError for a shape, TypeError for a dtype that differ.
        """
        own = self.parameters()
        check_like(own, arrays, "parameters")
        for name, array in own.items():
            array[...] = arrays[name]

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers: what a checkpoint keeps of a layer."""
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, arrays: Mapping[str, Array]) -> None:
        """Take over what `state_dict` gave. All of it or, on an error, nothing.

        Raises KeyError for a name missing or unknown, ValueError for a shape, TypeError for a dtype that differ.
        """
        own = self._state()
        check_like(own, arrays, f"{type(self).__name__} state")
        for name, array in own.items():
            array[...] = arrays[name]

    def _state(self) -> dict[str, Array]:
        return self.parameters() | self.buffers()

    def _keep_gradients(self, gradients: Mapping[str, Array]) -> None:
        self._gradients = {name: gradients[name] for name in self._parameters}


class Composite(Layer):
    """A layer made of others: parameters and gradients are theirs, named `<child>.<name>`."""

    @abstractmethod
    def children(self) -> dict[str, Layer]:
        """The layers by name, in an order that never changes."""

    def parameters(self) -> dict[str, Array]:
        """All children's live arrays."""
        return {f"{c}.{n}": a for c, layer in self.children().items() for n, a in layer.parameters().items()}

    def gradients(self) -> dict[str, Array]:
        """All children's gradients of the last backward, the same keys."""
        return {f"{c}.{n}": a for c, layer in self.children().items() for n, a in layer.gradients().items()}

    def buffers(self) -> dict[str, Array]:
        """All children's live buffers, named as their parameters are."""
        return {f"{c}.{n}": a for c, layer in self.children().items() for n, a in layer.buffers().items()}

    def activity(self) -> dict[str, Array]:
        """All children's, named `<child>` or, where a child has several, `<child>.<name>`."""
        found = {(c, n): a for c, layer in self.children().items() for n, a in layer.activity().items()}
        return {f"{c}.{n}" if n else c: a for (c, n), a in found.items()}

    def train(self: _C) -> _C:
        """Training mode for every child. Returns self."""
        for layer in self.children().values():
            layer.train()
        return super().train()

    def eval(self: _C) -> _C:
        """Evaluation mode for every child. Returns self."""
        for layer in self.children().values():
            layer.eval()
        return super().eval()


def check_like(own: Mapping[str, Array], given: Mapping[str, Array], what: str) -> None:
    """Raise unless `given` has exactly the names, shapes and dtypes of `own`."""
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise KeyError(f"{what}: missing {missing}, not expected {unknown}")
    for name, array in own.items():
        if given[name].shape != array.shape:
            raise ValueError(f"{name}: expected {array.shape}, got {given[name].shape}")
        if given[name].dtype != array.dtype:
            raise TypeError(f"{name}: expected {array.dtype}, got {given[name].dtype}")


def float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype, if layers compute in it. Raises TypeError otherwise."""
    result: np.dtype[Any] = np.dtype(dtype)
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected float32 or float64, got {result}")
    return result


def positive(value: int, name: str) -> int:
    """The value, if it is an integer of at least 1. Raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def pair(value: Pair, name: str) -> tuple[int, int]:
    """(h, w) from one integer or two, each at least 1. Raises TypeError or ValueError otherwise."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise TypeError(f"{name}: expected an integer or two of them, got {value!r}")
    return positive(both[0], name), positive(both[1], name)


def rate(value: float, name: str) -> float:
    """The value, if it is a probability below 1. Raises ValueError otherwise."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected 0 <= rate < 1, got {value!r}")
    return float(value)


def seed_from(rng: np.random.Generator) -> int:
    """A 64-bit Philox seed: one draw."""
    return int(rng.integers(0, 2**64, dtype=np.uint64))
