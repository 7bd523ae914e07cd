"""The few things that the doctor asks of any array: NumPy's, CuPy's or torch's, where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusecell import ops
from fusecell._typing import Array


def is_tensor(array: Any) -> bool:
    """Whether it is torch's; torch is not imported."""
    return hasattr(array, "requires_grad")


def as_array(array: Any) -> Any:
    """NumPy's of a list or a number; any array as it is, a sparse tensor's values for it."""
    if is_tensor(array):
        return array.coalesce().values() if array.is_sparse else array
    return array if hasattr(array, "dtype") else np.asarray(array)


def as_number(value: Any) -> float | None:
    """A float of a number or of an array of one, on whatever device; None of None."""
    return None if value is None else float(value.detach() if is_tensor(value) else value)


def norm(array: Any) -> float:
    """The 2-norm, summed in double: squares of vanished gradients are below what float32 holds."""
    return float(lazy_norm(array))


def lazy_norm(array: Any) -> Any:
    """The same as a number, or where the host would wait for a GPU, a tensor there."""
    if is_tensor(array):
        import torch

        array = as_array(array.detach())
        array = torch.view_as_real(array) if array.is_complex() else array
        if array.device.type != "cpu" or array.element_size() == 2:
            return torch.linalg.vector_norm(array, dtype=torch.float64)
        array = array.numpy()  # a third of the time that torch takes to sum in double
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    given = array if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else array.astype(np.float64)
    return ops.global_norm([given])


def distance(one: Any, other: Any) -> float:
    """The norm of the difference."""
    return norm(one - other)


def copied(array: Any) -> Any:
    """A copy that later writes do not reach."""
    return array.detach().clone() if is_tensor(array) else array.copy()


def to_numpy(array: Any) -> Array:
    """The values on the host, in float32 where they have 16 bits."""
    if is_tensor(array):
        here = as_array(array.detach()).cpu()
        return np.asarray((here.float() if here.element_size() == 2 and here.is_floating_point() else here).numpy())
    return np.asarray(array.get() if hasattr(array, "get") else array)


def not_finite(array: Any) -> tuple[int, tuple[int, ...]] | None:
    """(how many values are not finite, where the first of them is), None if all are."""
    values = to_numpy(array)
    bad = ~np.isfinite(values)
    if not bad.any():  # their squares are too large
        return None
    return int(np.count_nonzero(bad)), tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
