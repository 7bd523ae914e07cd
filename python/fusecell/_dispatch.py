"""From arrays to a backend: describes memory, allocates outputs, picks the module that computes.

Everything that calls the compiled core goes through here: `ops` with NumPy arrays, and each framework's adapter with
its own tensors. Nothing here knows what an op means; the rules about arguments are the core's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusecell import _cpu
from fusecell._typing import Array

Descriptor = tuple[int, tuple[int, ...], str]
"""Where an array lies, its shape, the name of its dtype: C-contiguous, native byte order."""

POISON = os.environ.get("FUSECELL_POISON", "") not in ("", "0")
"""With FUSECELL_POISON=1 every output and scratch buffer starts as NaN, so that a value nobody wrote shows itself."""


class SilentCopyError(RuntimeError):
    """An array that must be described in place is not contiguous: a mistake in the caller, never in the user."""


def version() -> str:
    """The version that was compiled in."""
    return str(_cpu.build_info()["version"])


def build_info() -> dict[str, Any]:
    """What was built and what this machine uses of it: version, compiler, instruction sets, default threads."""
    return dict(_cpu.build_info())


def set_num_threads(n: int) -> None:
    """Use at most n threads (1 to 1024) in an op. Results do not depend on it. Raises TypeError or ValueError."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n: expected an integer, got {type(n).__name__}")
    if not 1 <= n <= 1024:
        raise ValueError(f"n: expected a number of threads from 1 to 1024, got {n}")
    _cpu.set_num_threads(int(n))


def get_num_threads() -> int:
    """Threads that an op may use; at first the cores that this process may use (affinity and container quota)."""
    return int(_cpu.get_num_threads())


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised output; NaN throughout (255 for uint8) in poison mode."""
    array = np.empty(shape, dtype)
    if POISON:
        array.reshape(-1).view(np.uint8).fill(0xFF)
    return array


def scratch(nbytes: int) -> Array:
    """Working memory for one call."""
    return empty((max(nbytes, 1),), np.uint8)


def describe(array: Array) -> Descriptor:
    """The descriptor of an array that is contiguous already."""
    if not (array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative):
        raise SilentCopyError("an array that is not contiguous, aligned and native reached the core")
    return array.ctypes.data, array.shape, array.dtype.name


def describe_all(arrays: Mapping[str, Array | None]) -> dict[str, Descriptor]:
    """Descriptors of the arrays that are there; an absent one is an argument that was not given."""
    return {name: describe(array) for name, array in arrays.items() if array is not None}


def plan(op: str, arrays: Mapping[str, Array | None], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the inputs of an op and say the shapes of its outputs. Raises ValueError, TypeError, MemoryError."""
    return dict(getattr(_cpu, f"{op}_plan")(describe_all(arrays), dict(options), False, get_num_threads()))


def run(
    op: str,
    arrays: Mapping[str, Array | None],
    options: Mapping[str, Any],
    gradients: Mapping[str, Array | None] | None = None,
) -> None:
    """Run an op forward into the outputs among `arrays`, or backward into those among `gradients`, if there are any."""
    backward, threads = gradients is not None, get_num_threads()
    forward, chosen = describe_all(arrays), dict(options)
    space = scratch(getattr(_cpu, f"{op}_plan")(forward, chosen, backward, threads)["scratch"])
    function = getattr(_cpu, f"{op}_backward" if backward else f"{op}_forward")
    function({**forward, **describe_all(gradients or {})}, chosen, (space.ctypes.data, space.nbytes, threads))


def call(function: str, *arguments: Any) -> Any:
    """Call one of the core's elementwise functions: arrays become descriptors, the number of threads goes last."""
    described = [describe(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return getattr(_cpu, function)(*described, get_num_threads())


def call_list(function: str, arrays: list[Array], *arguments: Any) -> Any:
    """As `call`, with a list of arrays as the first argument."""
    return getattr(_cpu, function)([describe(a) for a in arrays], *arguments, get_num_threads())
