"""The operators `torch.ops.fusecell.conv_lstm` and `conv_lstm_backward`: a whole sequence, a step being one of T = 1.

x [T, B, Cin, Hin, Win], y [T, B, C, H, W], states [B, C, H, W]; outputs lie in memory as x does, but c and gates, which
are for backward alone, as its kernels read them: channels last on tensor cores. What the arguments mean is in
docs/cell.md. `save`: "gates", "recompute" or "none", as `fusecell.ops.conv_lstm_forward` has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusecell.torch import plain
from fusecell.torch._layout import (
    addressable,
    empty_frames,
    empty_sequence,
    follows,
    is_batch_first,
    with_channels_last,
)
from fusecell.torch._library import Given, Tensors
from fusecell.torch._operation import Operation, cell_dtype, nothing
from fusecell.torch._options import output_extent
from fusecell.torch._tensor_cores import on_tensor_cores

PROBE_COLUMNS = 9  # fusecell.ops.STEP_STATISTICS


class _ConvLSTM(Operation):
    name = "conv_lstm"
    inputs = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")
    required = ("x", "weight_ih", "weight_hh")
    masks = ("lengths", "dropout_mask", "zoneout_mask_h", "zoneout_mask_c")
    outputs = ("y", "h_n", "c_n", "c", "gates")
    sent = ("dy", "dh_n", "dc_n")
    saved = ("y", "c", "gates")
    saves = ("none", "recompute", "gates")
    wide = frozenset({"c_n", "c", "c_0"})
    as_they_lie = frozenset({"x", "h_0", "c_0", "y", "dy", "dh_n", "dc_n"})
    probe_columns = PROBE_COLUMNS

    def shapes(self, given: Given, plan: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(plan["y"]), plan["channels_last"]

    def fake_shapes(self, given: Given, options: Mapping[str, Any]) -> tuple[Any, ...]:
        x, kernel, weight_hh = (given[name].shape for name in self.required)  # type: ignore[union-attr]
        size = (output_extent(x[3 + a], kernel[2 + a], a, options) for a in (0, 1))
        return (*x[:2], weight_hh[0] // 4, *size), self._on_tensor_cores(given, options)

    def _on_tensor_cores(self, given: Given, options: Mapping[str, Any]) -> bool:
        x = given["x"]
        assert x is not None
        return on_tensor_cores(x, options.get("algorithm", "auto"))

    def _placed(self, given: Given, options: Mapping[str, Any]) -> Given:
        if not self._on_tensor_cores(given, options):
            return super()._placed(given, options)
        ways = {"c": addressable, "gates": with_channels_last}
        kept = {name: ways[name](t) for name, t in given.items() if name in ways and t is not None}
        others = {name: t for name, t in given.items() if name not in kept}
        return {**super()._placed(others, options), **kept}

    def allocate(self, given: Given, shapes: tuple[Any, ...], save: str) -> Tensors:
        x, weight_hh = given["x"], given["weight_hh"]
        assert x is not None
        assert weight_hh is not None
        cell, frames_last, device = cell_dtype(x.dtype), follows(x, weight_hh), x.device
        sequence, kept_last = shapes
        t, b, channels, *size = sequence
        y = empty_sequence(sequence, frames_last, is_batch_first(x), x, x.dtype)
        h_n = empty_frames(sequence[1:], frames_last, x, x.dtype)
        c_n = empty_frames(sequence[1:], frames_last, x, cell)
        c, gates = nothing(cell, device), nothing(x.dtype, device)
        if save != "none" and t != 1:  # a single step's c is c_n
            c = empty_frames(sequence, kept_last, x, cell)
        if save == "gates":
            gates = empty_frames((t, b, 4 * channels, *size), kept_last, x, x.dtype)
        return y, h_n, c_n, c, gates

    def to_save(self, outputs: dict[str, Tensor]) -> Tensors:
        y, c, gates = super().to_save(outputs)
        return y, outputs["c_n"].unsqueeze(0) if y.shape[0] == 1 else c, gates

    def compose(self, given: Given, options: Mapping[str, Any]) -> Tensors:
        named: dict[str, Any] = {**options, **{name: given[name] for name in self.names}}
        named.pop("algorithm", None)  # fusecell's own; the text of an older export has none
        if named["padding"] == "explicit":
            named["padding"] = (named.pop("pad_h"), named.pop("pad_w"))
        return plain.conv_lstm(**named)


conv_lstm = _ConvLSTM().operator
