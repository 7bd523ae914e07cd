"""Sequences and states in other layouts, on a GPU: the bits of contiguous arrays. tests/test_layouts.py has more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from on_gpu import Sequence5D, bits, cupy

from fusecell import _dispatch, ops

Arrays = dict[str, Any]


def laid(array: Any, order: str) -> Any:
    """The array, with its axes in this order in memory; a state has no T."""
    axes = "TBCHW"[5 - array.ndim :]
    there = [axes.index(axis) for axis in order if axis in axes]
    return cupy.ascontiguousarray(array.transpose(there)).transpose(np.argsort(there).tolist())


def describe_all(arrays: Arrays) -> dict[str, Any]:
    return {
        name: (_dispatch.pointer(a), a.shape, a.dtype.name, tuple(s // a.itemsize for s in a.strides))
        for name, a in arrays.items()
    }


def call(arrays: Arrays, options: Any, gradients: Arrays | None = None) -> None:
    place, forward = _dispatch.place_of(arrays), describe_all(arrays)
    needed = place.module.conv_lstm_plan(forward, options, gradients is not None, 1)["scratch"]
    function = place.module.conv_lstm_forward if gradients is None else place.module.conv_lstm_backward
    scratch = _dispatch.empty((needed,), np.uint8, place)
    launch = (_dispatch.pointer(scratch), needed, 1, place.device, place.stream)
    function(forward | describe_all(gradients or {}), options, launch)


@pytest.mark.parametrize("order", ["BTCHW", "TBHWC", "BTHWC", "BCTHW"])
def test_a_layout_changes_no_bit(order: str, rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    *outputs, saved = ops.conv_lstm_forward(problem.x, *problem.weights)
    assert saved is not None
    gradients = ops.conv_lstm_backward(saved, problem.dy)
    given = {name: a for name, a in saved.arrays.items() if a is not None and name not in ("y", "c", "gates")}
    given["x"] = laid(given["x"], order)
    kept = {name: saved.arrays[name] for name in ("c", "gates")}

    # What is to be overwritten holds other numbers before.
    written = {name: laid(1 + a, order) for name, a in zip(("y", "h_n", "c_n"), outputs, strict=True)}
    call(given | written, saved.options)
    assert bits([cupy.ascontiguousarray(a) for a in written.values()]) == bits(outputs)
    results = {f"d{n}": laid(1 + a, order) if n in ("x", "h_0", "c_0") else 1 + a for n, a in gradients.items()}
    call(given | {"y": written["y"]} | kept, saved.options, {"dy": laid(problem.dy, order), **results})
    assert bits([cupy.ascontiguousarray(a) for a in results.values()]) == bits(list(gradients.values()))
