"""Torch's tensors as the core sees them: pointers, shapes and strides, on torch's current stream. Nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusecell import _dispatch

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.uint8: "uint8",
}

HALF = (torch.bfloat16, torch.float16)

Descriptors = dict[str, tuple[Any, ...]]


def describe(tensor: Tensor) -> tuple[Any, ...]:
    """A tensor's descriptor; with strides unless it is contiguous."""
    shape, name = tuple(tensor.shape), _NAMES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
    if tensor.is_contiguous():
        return tensor.data_ptr(), shape, name
    return tensor.data_ptr(), shape, name, tensor.stride()


def describe_all(tensors: Mapping[str, Tensor | None], device: torch.device) -> Descriptors:
    """Descriptors of the tensors that are there. Raises ValueError if one lies elsewhere."""
    described = {}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(f"{name}: expected a tensor on {device}, as the input is, got one on {tensor.device}")
        described[name] = describe(tensor)
    return described


def describe_outputs(tensors: Mapping[str, Tensor]) -> Descriptors:
    """Descriptors of outputs that nothing has written yet: NaN throughout in poison mode."""
    if _dispatch.POISON:
        for tensor in tensors.values():
            tensor.fill_(float("nan"))
    return {name: describe(tensor) for name, tensor in tensors.items()}


def place_of(device: torch.device) -> _dispatch.Place:
    """Where a device's tensors lie."""
    return _dispatch.place("cuda", device.index) if device.type == "cuda" else _dispatch.host_place()


def launch_fields(device: torch.device, scratch: Tensor | None, workers: int | None = None) -> _dispatch.LaunchFields:
    """Where a call finds its scratch memory, with how many workers (by default all) and on which stream it runs."""
    workers = _dispatch.get_num_threads() if workers is None else workers
    at, size = (0, 0) if scratch is None else (scratch.data_ptr(), scratch.numel())
    if device.type != "cuda":
        return at, size, workers, 0, 0
    stream = torch.cuda.current_stream(device).cuda_stream
    return at, size, workers, device.index, stream


def run(
    function: str, device: torch.device, tensors: Descriptors, options: dict[str, Any], plan: dict[str, Any]
) -> None:
    """Call one of the core's functions, <op>_forward or <op>_backward, with its plan's scratch memory and workers."""
    needed = plan["scratch"]
    scratch = torch.empty(needed, dtype=torch.uint8, device=device) if needed else None
    if scratch is not None and _dispatch.POISON:
        scratch.fill_(0xFF)
    getattr(place_of(device).module, function)(tensors, options, launch_fields(device, scratch, plan["workers"]))
