"""Gradient clipping with the signatures and semantics of `torch.nn.utils`, in one pass to read and one to scale.

Sums are float64 in a fixed order: the same bits on every run. What the fused kernels do not take (other norms than 1, 2
and inf, sparse tensors, DTensors, devices other than CPU and CUDA, 16 bits on a CPU) goes to torch's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import utils

from fusecell.torch import _memory

Parameters: TypeAlias = "Tensor | Iterable[Tensor]"


@torch.no_grad()
def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients in place by min(1, max_norm / (norm + 1e-6)), norm being that of all of them together.

    As `torch.nn.utils.clip_grad_norm_`; foreach is ignored. Waits for a GPU only with error_if_nonfinite. Returns the
    norm before clipping, float64 for float64 gradients and float32 for others, on the first gradient's device.
    Raises RuntimeError for a norm that is not finite, if asked to; then nothing is changed.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    if float(norm_type) not in (1.0, 2.0, math.inf) or not all(map(_is_fused, gradients)):
        return utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    groups = [_Group(group) for group in _by_device(gradients).values()]
    norm = _joined([group.norm(float(norm_type)).to(gradients[0].device) for group in groups], float(norm_type))
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            f"the gradients' norm of order {float(norm_type)} is {norm.item()}: expected a finite one; nothing was "
            "changed. error_if_nonfinite=False scales by it all the same"
        )
    for group in groups:
        there = norm.to(group.device)
        group.call("clip_to_norm", _memory.describe(there), float(max_norm))
        group.copy_back()
    dtype = torch.float64 if gradients[0].dtype == torch.float64 else torch.float32
    return norm.to(dtype).reshape(())


@torch.no_grad()
def clip_grad_value_(parameters: Parameters, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp the gradients in place to [-clip_value, clip_value]; NaN stays NaN. As `torch.nn.utils.clip_grad_value_`;
    foreach is ignored."""
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not all(map(_is_fused, gradients)):
        utils.clip_grad_value_(parameters, clip_value)
        return
    for group in _by_device(gradients).values():
        listed = _Group(group)
        listed.call("clamp", float(clip_value))
        listed.copy_back()


# ------------------------------------------------------------------------------------------------------------- parts
def _is_fused(gradient: Tensor) -> bool:
    if type(gradient) is not Tensor or gradient.layout != torch.strided or not gradient.is_floating_point():
        return False
    return gradient.device.type == "cuda" or (gradient.device.type == "cpu" and gradient.dtype not in _memory.HALF)


def _by_device(gradients: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(gradient.device, []).append(gradient)
    return groups


def _joined(norms: list[Tensor], norm_type: float) -> Tensor:
    """The norm of all from the norms of the groups: float64 [1]."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.cat(norms), norm_type).reshape(1)


class _Group:
    """The gradients of one device. Order in memory does not matter here: what is dense is taken as it lies."""

    def __init__(self, gradients: list[Tensor]) -> None:
        self.device = gradients[0].device
        self._module = _memory.place_of(self.device).module
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._described = [_memory.describe(self._flat(g)) for g in gradients]

    def _flat(self, gradient: Tensor) -> Tensor:
        if torch.ops.aten.is_non_overlapping_and_dense(gradient):
            return gradient.as_strided((gradient.numel(),), (1,))
        self._copies.append((gradient, gradient.contiguous()))
        return self._copies[-1][1]

    def norm(self, norm_type: float) -> Tensor:
        """float64 [1]."""
        out = torch.empty((1,), dtype=torch.float64, device=self.device)
        size = self._module.norm_scratch(self._described)
        scratch = torch.empty((size,), dtype=torch.uint8, device=self.device) if size else None
        self.call("norm", norm_type, False, _memory.describe(out), scratch=scratch)
        return out

    def call(self, function: str, *arguments: object, scratch: Tensor | None = None) -> None:
        """Call one of the core's functions on the list."""
        launch = _memory.launch_fields(self.device, scratch)
        getattr(self._module, function)(self._described, *arguments, launch)

    def copy_back(self) -> None:
        """Write what was done to copies where it belongs."""
        for gradient, copy in self._copies:
            gradient.copy_(copy)
