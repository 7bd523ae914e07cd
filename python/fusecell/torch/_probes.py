"""The probes of watched modules: tensors whose gradients say what each step of a sequence was like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fusecell.torch._conv_lstm import PROBE_COLUMNS


def of_forward(module: Any, names: Iterable[str], x: Tensor, time: int = 0) -> dict[str, Tensor]:
    """New `probes` of a module whose forward starts, for frames x whose axis of time is `time`; none out of training.

    The second run of an activation checkpoint belongs to the first one's probes, if that had any.
    """
    if not module.training:
        return {}
    in_backward = torch._C._current_graph_task_id() != -1
    if not in_backward:
        module.probes = {}
    if not torch.is_grad_enabled():
        return {}
    if not module.probes:  # all at once: torch.compile breaks the graph here
        shape, device = (x.shape[time], PROBE_COLUMNS), x.device
        module.probes = {
            name: torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True) for name in names
        }
    probes: dict[str, Tensor] = module.probes
    return probes
