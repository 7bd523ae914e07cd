"""What ops take: each function checks one argument and brings it into the form that the core takes."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusecell._extras import require
from fusecell._typing import Array


def as_array(name: str, value: Any) -> Array:
    """The array itself, or a copy of it that is C-contiguous, aligned and native. From a GPU: a CuPy array."""
    return contiguous(as_view(name, value))


def as_view(name: str, value: Any) -> Array:
    """A NumPy array as it is; what lies on a GPU as a CuPy array of the same memory."""
    if not isinstance(value, np.ndarray):
        return _view_on_gpu(name, value)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(value).__module__}.{type(value).__qualname__}")
    if value.dtype.hasobject or value.dtype.fields is not None:
        raise TypeError(f"{name}: expected dtype float32 or float64, got {value.dtype}")
    return value


def contiguous(array: Array) -> Array:
    """The array itself, or a copy of it that is C-contiguous, aligned and native."""
    if not isinstance(array, np.ndarray):
        if array.flags.c_contiguous:
            return array
        with array.device:
            return array.copy(order="C")
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)


_CUDA_DEVICES = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def _speaks_dlpack(value: Any) -> bool:
    return hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _CUDA_DEVICES


def _is_on_gpu(value: Any) -> bool:
    # Of the object and not of its type: a PyTorch tensor on the CPU has the attribute, and raises AttributeError.
    return _is_cupy(value) or _speaks_dlpack(value) or hasattr(value, "__cuda_array_interface__")


def _is_cupy(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "flags")


def _view_on_gpu(name: str, value: Any) -> Array:
    if _is_cupy(value):  # first: the other questions ask the driver
        return value  # type: ignore[no-any-return]
    if not _is_on_gpu(value):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name}: expected a NumPy array or an array on a GPU, got {kind}")
    cupy = require("cupy", "an array on a GPU")
    if _speaks_dlpack(value):
        view: Array = cupy.from_dlpack(value)
        return view
    # asarray copies what lies on another GPU than the current one.
    pointer = value.__cuda_array_interface__["data"][0]
    with cupy.cuda.Device(cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else None):
        view = cupy.asarray(value)
    return view


def as_optional_array(name: str, value: Any) -> Array | None:
    """As `as_array`, but None stays None."""
    return None if value is None else as_array(name, value)


def as_integer(name: str, value: Any, low: int = -(2**62), high: int = 2**62) -> int:
    """An int within bounds."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


@dataclass(frozen=True)
class Randomness:
    """Where random numbers come from: Philox's key, and its counter, a part of which may lie where the arrays do."""

    seed: int
    offset: int
    counter: Array | None


def as_randomness(seed: Any, offset: Any) -> Randomness:
    """seed an int, offset an int or an int64 array [1]."""
    key = as_integer("seed", seed, 0, 2**64 - 1)
    if hasattr(offset, "dtype") and getattr(offset, "size", 0) == 1 and getattr(offset, "ndim", 0) == 1:
        return Randomness(key, 0, as_array("offset", offset))
    return Randomness(key, as_integer("offset", offset, 0, 2**64 - 1), None)


def as_number(name: str, value: Any) -> float:
    """A float."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def as_rate(name: str, value: Any, below: float = math.inf) -> float:
    """A float from 0 to 1, or to below 1."""
    rate = as_number(name, value)
    if not (0.0 <= rate <= 1.0 and rate < below):
        raise ValueError(f"{name}: expected a rate from 0 to {'below ' if below == 1.0 else ''}1, got {rate}")
    return rate


def as_flag(name: str, value: Any) -> bool:
    """A bool, and nothing that merely counts as one."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def as_name(name: str, value: Any) -> str:
    """A str that may be a name: which ones there are the core knows."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a name, got {type(value).__name__}")
    if not value.isascii():
        raise ValueError(f"{name}: expected a name in ASCII, got {value!r}")
    return value


def as_pair(name: str, value: Any) -> tuple[int, int]:
    """(h, w) from one integer or two."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one number or two, got {len(value)}")
        return as_integer(name, value[0]), as_integer(name, value[1])
    return (as_integer(name, value),) * 2


def padding_options(value: Any) -> dict[str, Any]:
    """The core's three padding options."""
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(f'padding: expected "same", "valid" or numbers, got {value!r}')
        return {"padding": value}
    if isinstance(value, (tuple, list)) and len(value) == 2:
        ends = [v if isinstance(v, (tuple, list)) else (v, v) for v in value]
    else:
        ends = [(value, value)] * 2
    return {"padding": "explicit", "pad_h": as_pair("padding", ends[0]), "pad_w": as_pair("padding", ends[1])}


def convolution_options(stride: Any, dilation: Any, padding: Any, algorithm: Any) -> dict[str, Any]:
    """The core's options of a convolution."""
    return {
        "stride": as_pair("stride", stride),
        "dilation": as_pair("dilation", dilation),
        **padding_options(padding),
        "algorithm": as_name("algorithm", algorithm),
    }


def as_lengths(value: Any, x: Array) -> Array | None:
    """[B] int64, contiguous, where x lies. Those that are on a GPU already are not read: above T counts as T."""
    if value is None:
        return None
    if not isinstance(value, (np.ndarray, list, tuple)) and _is_on_gpu(value):
        return as_array("lengths", value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("lengths: expected one integer for each sample, got lists of different lengths") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers of 64 bits, got {array.dtype}")
    if array.size and int(array.max()) > 2**62:
        raise ValueError(f"lengths: expected at most the number of steps, got {array.max()}")
    array = np.asarray(array, np.int64, order="C")
    if isinstance(x, np.ndarray):
        return array
    outside = [int(n) for n in array.reshape(-1) if not 0 <= n <= x.shape[0]]
    if outside:
        raise ValueError(f"lengths: expected values from 0 to {x.shape[0]}, got {outside[0]}")
    with x.device:
        on_gpu: Array = require("cupy", "an array on a GPU").asarray(array)
    return on_gpu


def as_mask(name: str, value: Any) -> Array | None:
    """uint8 of 0 and 1. Those on a GPU are not read: what is not 0 counts as 1."""
    if value is None:
        return None
    array = as_array(name, value)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.size and array.max() > 1:
        raise ValueError(f"{name}: expected only 0 and 1, got {array.max()}")
    return array


def wanted_names(needs: Collection[str] | None, possible: Sequence[str]) -> set[str]:
    """The names in `needs`, or all that are possible."""
    if needs is None:
        return set(possible)
    if not isinstance(needs, Collection) or isinstance(needs, str) or not all(isinstance(n, str) for n in needs):
        raise TypeError(f"needs: expected a collection of names, got {needs!r}")
    unknown = sorted(set(needs) - set(possible))
    if unknown:
        raise ValueError(f"needs: expected names among {', '.join(possible)}, got {', '.join(unknown)}")
    return set(needs)


def cell_options(
    recurrent_activation: Any, activation: Any, slope: Any, relu_at_zero: Any, zoneout_h: Any, zoneout_c: Any
) -> dict[str, Any]:
    """The core's options of a cell."""
    return {
        "recurrent_activation": as_name("recurrent_activation", recurrent_activation),
        "activation": as_name("activation", activation),
        "slope": as_number("slope", slope),
        "relu_at_zero": as_number("relu_at_zero", relu_at_zero),
        "zoneout_h": as_rate("zoneout_h", zoneout_h),
        "zoneout_c": as_rate("zoneout_c", zoneout_c),
    }
