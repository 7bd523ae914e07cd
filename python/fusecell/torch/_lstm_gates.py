"""The operators `torch.ops.fusecell.lstm_gates` and `lstm_gates_backward`: the pointwise tier alone.

z [B, 4C, ...], c and h [B, C, ...]; what the arguments mean is in docs/cell.md. `save`: "gates" or "none".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fusecell.torch import plain
from fusecell.torch._library import Given, Tensors
from fusecell.torch._operation import Operation, cell_dtype, nothing


class _LSTMGates(Operation):
    name = "lstm_gates"
    inputs = ("z", "c", "h", "bias", "peephole")
    required = ("z", "c")
    masks = ("zoneout_mask_h", "zoneout_mask_c")
    outputs = ("h_out", "c_out", "gates")
    sent = ("dh_out", "dc_out")
    saved = ("gates",)
    saves = ("none", "gates")
    wide = frozenset({"c_out", "c"})
    always = frozenset({"z", "c"})
    core_names: Mapping[str, str] = {"dh_out": "dh", "dc_out": "dc", "dc": "dc_before", "dh": "dh_before"}

    def shapes(self, given: Given, plan: Mapping[str, Any]) -> tuple[Any, ...]:
        return ()

    def fake_shapes(self, given: Given, options: Mapping[str, Any]) -> tuple[Any, ...]:
        return ()

    def allocate(self, given: Given, shapes: tuple[Any, ...], save: str) -> Tensors:
        z, c = given["z"], given["c"]
        assert z is not None
        assert c is not None

        def empty(shape: Any, dtype: torch.dtype) -> Any:
            return torch.empty(shape, dtype=dtype, device=z.device)

        gates = empty(z.shape, z.dtype) if save == "gates" else nothing(z.dtype, z.device)
        return empty(c.shape, z.dtype), empty(c.shape, cell_dtype(z.dtype)), gates

    def compose(self, given: Given, options: Mapping[str, Any]) -> Tensors:
        named: dict[str, Any] = {**options, **{name: given[name] for name in self.names}}
        return plain.lstm_gates(**named)


lstm_gates = _LSTMGates().operator
