"""From arrays to a backend: describes memory, allocates outputs, picks the module that computes.

Everything that calls the compiled core goes through here: `ops` with NumPy and CuPy arrays, and each framework's
adapter with its own tensors. Nothing here knows what an op means; the rules about arguments are the core's.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from fusecell import _cpu
from fusecell._typing import Array

Descriptor = tuple[int, tuple[int, ...], str] | tuple[int, tuple[int, ...], str, tuple[int, ...]]
"""Where an array lies, its shape, the name of its dtype: native byte order, C-contiguous.

With its strides in elements as a fourth it need not be contiguous where the core takes other layouts: docs/cell.md.
"""

LaunchFields = tuple[int, int, int, int, int]
"""Scratch memory and its bytes, threads, number of the GPU, its stream."""

POISON = os.environ.get("FUSECELL_POISON", "") not in ("", "0")
"""With FUSECELL_POISON=1 every output and scratch buffer starts as NaN, so that a value nobody wrote shows itself."""

REBUILD = "FUSECELL_CUDA=on pip install --no-cache-dir --force-reinstall --no-binary fusecell fusecell"
"""Builds the CUDA kernels. pip would take a wheel without them from its cache."""

_host_backend: ContextVar[str] = ContextVar("fusecell_host_backend", default="cpu")


class SilentCopyError(RuntimeError):
    """An array that must be described in place is not contiguous: a mistake in the caller, never in the user."""


class NoCudaKernelsError(RuntimeError):
    """An array on a GPU, but this build of fusecell has no CUDA kernels, or they cannot be loaded."""


# -------------------------------------------------------------------------------------------------------- places
@dataclass(frozen=True)
class Place:
    """Where arrays lie, which says who computes on them: "cpu", "cuda", or "emulated" (CUDA's kernels on the host)."""

    backend: str = "cpu"
    device: int = 0

    def __str__(self) -> str:
        return f"GPU {self.device}" if self.backend == "cuda" else "the CPU"

    @property
    def on_gpu(self) -> bool:
        """Whether the host cannot read the memory."""
        return self.backend == "cuda"

    @property
    def namespace(self) -> Any:
        """The array library: NumPy or CuPy."""
        return importlib.import_module("cupy") if self.on_gpu else np

    @property
    def module(self) -> ModuleType:
        """The compiled backend. Raises NoCudaKernelsError."""
        return _cpu if self.backend == "cpu" else _load(self.backend)

    @property
    def stream(self) -> int:
        """CuPy's current stream there; 0 on the host."""
        return int(self.namespace.cuda.get_current_stream(self.device).ptr) if self.on_gpu else 0

    def active(self) -> AbstractContextManager[Any]:
        """Within it the array library allocates here."""
        context: AbstractContextManager[Any] = self.namespace.cuda.Device(self.device) if self.on_gpu else nullcontext()
        return context


def _load(backend: str) -> ModuleType:
    try:
        return importlib.import_module(f"fusecell._{backend}")
    except ImportError as error:
        reason = str(_cpu.build_info()["cuda"]) if error.name == f"fusecell._{backend}" else str(error)
        raise NoCudaKernelsError(
            f"arrays: expected NumPy arrays, since this fusecell has no kernels for others ({reason}); "
            f"to build them: {REBUILD}"
        ) from None


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Within it NumPy arrays are computed on by another backend of host memory: "emulated", for tests."""
    token = _host_backend.set(backend)
    try:
        yield
    finally:
        _host_backend.reset(token)


@functools.cache
def place(backend: str, device: int = 0) -> Place:
    """The same object for the same place, made once."""
    return Place(backend, device)


def host_place() -> Place:
    """Where memory of the host lies: "cpu", or what `using` says."""
    return place(_host_backend.get())


def place_of_array(array: Any) -> Place:
    """Where one NumPy or CuPy array lies."""
    return host_place() if isinstance(array, np.ndarray) else place("cuda", int(array.device.id))


def place_of(arrays: Mapping[str, Any]) -> Place:
    """Where the arrays lie, None being none. Raises ValueError if they do not lie together."""
    found: Place | None = None
    first = ""
    host = host_place()
    for name, array in arrays.items():
        if array is None:
            continue
        here = host if isinstance(array, np.ndarray) else place_of_array(array)
        if found is None:
            found, first = here, name
        elif here is not found and here != found:
            raise ValueError(f"{name}: expected an array on {found}, as {first} is, got one on {here}")
    return found or host


def expect_place(name: str, array: Any, place: Place) -> None:
    """Raise ValueError if an array, or None, lies elsewhere."""
    if array is not None and place_of_array(array) != place:
        raise ValueError(f"{name}: expected an array on {place}, got one on {place_of_array(array)}")


# ------------------------------------------------------------------------------------------------- build and threads
def version() -> str:
    """The version that was compiled in."""
    return str(_cpu.build_info()["version"])


def amx() -> str:
    """Whether convolutions can be products of bfloat16: "usable", "emulated", "refused" by the system, or "absent"."""
    return _cpu.amx()


@functools.cache
def tensor_cores(backend: str) -> bool:
    """Whether its kernels take tensor cores: on all GPUs of this machine (or if there is none), or on no one. The plan
    of one pixel says so. Raises NoCudaKernelsError."""
    if backend == "cpu":
        return False
    shapes = {"x": (1, 1, 1, 1, 1), "weight_ih": (4, 1, 1, 1), "weight_hh": (4, 1, 1, 1)}
    inputs: dict[str, Descriptor] = {name: (0, shape, "bfloat16") for name, shape in shapes.items()}
    return bool(plan("conv_lstm", place(backend), inputs, {})["channels_last"])


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


# ------------------------------------------------------------------------------------------------------------ memory
def empty(shape: tuple[int, ...], dtype: Any, place: Place) -> Array:
    """An uninitialised output; NaN throughout (255 for uint8) in poison mode."""
    if not place.on_gpu:  # without a context, which takes longer than the memory
        return _poisoned(np.empty(shape, dtype))
    with place.active():
        return _poisoned(place.namespace.empty(shape, dtype))


def empty_channels_last(shape: tuple[int, ...], dtype: Any, place: Place) -> Array:
    """The same of [..., C, H, W] with neighbouring channels."""
    *outer, c, h, w = shape
    array = empty((*outer, h, w, c), dtype, place)
    turned: Array = place.namespace.moveaxis(array, -1, -3)
    return turned


def _poisoned(array: Array) -> Array:
    if POISON:
        array.reshape(-1).view(np.uint8).fill(0xFF)
    return array


def pointer(array: Any) -> int:
    """Where an array's first element lies."""
    return _cpu.address(array) if isinstance(array, np.ndarray) else int(array.data.ptr)


def describe(array: Array) -> Descriptor:
    """The descriptor of an array that is contiguous already, or channels last as `empty_channels_last` makes it."""
    if not array.flags.c_contiguous and array.ndim >= 3 and array.size:
        strides = tuple(stride // array.itemsize for stride in array.strides)
        if _is_channels_last(array.shape, strides):
            return pointer(array), array.shape, _name(array.dtype), strides
    if not array.flags.c_contiguous or (isinstance(array, np.ndarray) and not _is_plain(array)):
        raise SilentCopyError("an array that is not contiguous, aligned and native reached the core")
    return pointer(array), array.shape, _name(array.dtype)


@functools.cache
def _name(dtype: Any) -> str:  # NumPy makes it anew each time: a microsecond
    return str(dtype.name)


def _is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    *outer, c, h, w = range(len(shape))
    stride = 1
    for axis in (c, w, h, *reversed(outer)):
        if shape[axis] > 1 and strides[axis] != stride:
            return False
        stride *= shape[axis]
    return True


def _is_plain(array: Array) -> bool:
    return array.flags.aligned and array.dtype.isnative


def describe_all(arrays: Mapping[str, Array | None]) -> dict[str, Descriptor]:
    """Descriptors of the arrays that are there; an absent one is an argument that was not given."""
    return {name: describe(array) for name, array in arrays.items() if array is not None}


def _scratch(place: Place, size: int) -> Array | None:
    """Memory that must live as long as the call; its stream orders who gets it next."""
    return empty((size,), np.uint8, place) if size else None


def _launch(place: Place, scratch: Array | None, workers: int) -> LaunchFields:
    """What a call is told of where it runs."""
    at, size = (0, 0) if scratch is None else (pointer(scratch), scratch.nbytes)
    return at, size, workers, place.device, place.stream


# ------------------------------------------------------------------------------------------------------------- calls
@functools.cache
def _plans(place: Place, function: str, workers: int) -> dict[Any, dict[str, Any]]:
    return {}


_MOST_PLANS = 4096  # of one function: shapes that change at every call must not fill the memory


def plan(
    op: str,
    place: Place,
    inputs: Mapping[str, Descriptor],
    options: dict[str, Any],
    key: Hashable | None = None,
    *,
    backward: bool = False,
) -> dict[str, Any]:
    """What the core says of a call: shapes of outputs, bytes of scratch, workers. Remembered by shapes and `key`.

    key: what stands for the options; by default their names and values. A hit skips the checks: the call itself makes
    them again. The dict is not to be changed. Raises ValueError, TypeError, MemoryError.
    """
    workers = get_num_threads()
    plans = _plans(place, f"{op}_backward" if backward else op, workers)
    known = tuple(options.items()) if key is None else key
    # The address counts as far as it decides whether 16 bytes can be read at once.
    full_key = (known, *((name, described[0] % 16, *described[1:]) for name, described in inputs.items()))
    found = plans.get(full_key)
    if found is None:
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        asked = getattr(place.module, f"{op}_plan")(inputs, options, backward, workers)
        found = plans[full_key] = {**asked, "workers": workers}
    return found


def run(
    function: str, place: Place, tensors: Mapping[str, Descriptor], options: dict[str, Any], plan: Mapping[str, Any]
) -> None:
    """Call one of the core's functions, <op>_forward or <op>_backward, with its plan's scratch memory and workers."""
    scratch = _scratch(place, plan["scratch"])
    getattr(place.module, function)(tensors, options, _launch(place, scratch, plan["workers"]))


def describe_list(arrays: Sequence[Array]) -> list[Descriptor]:
    """The descriptors of many arrays, for a list that several calls are given."""
    return [describe(array) for array in arrays]


def _described(argument: Any) -> Any:
    return describe(argument) if hasattr(argument, "shape") else argument


def call(function: str, place: Place, *arguments: Any, scratch_bytes: int = 0) -> Any:
    """Call one of the core's elementwise functions: arrays become descriptors; lists are of descriptors already."""
    scratch = _scratch(place, scratch_bytes)
    return getattr(place.module, function)(*map(_described, arguments), _launch(place, scratch, get_num_threads()))


def norm(arrays: list[Descriptor], norm_type: float, place: Place, *, numbers_only: bool = False) -> Array:
    """The norm of all the arrays together: float64 [1], where they lie."""
    out = empty((1,), np.float64, place)
    needed = place.module.norm_scratch(arrays)
    call("norm", place, arrays, norm_type, numbers_only, out, scratch_bytes=needed)
    return out


def read_number(array: Array, place: Place) -> float:
    """The one number in an array. Waits for the GPU. Raises RuntimeError while a graph is being captured."""
    if place.backend != "cpu":
        place.module.expect_no_capture("error_if_nonfinite", place.device, place.stream)
    return float(array.item())
