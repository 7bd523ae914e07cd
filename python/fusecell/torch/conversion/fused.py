"""The calls of fusecell's ops that converted modules make."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..plain import conv_lstm as _conv_lstm
from .recipe import Recipe


def conv_lstm(recipe: Recipe, module: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence x [T, B, Cin, (H,) W] from the state (h, c) or None: y [T, B, C, (H,) W], h_n and c_n."""
    packed = recipe.pack(module)
    h, c = (None, None) if state is None else state
    if recipe.axes == 2:
        return _conv_lstm(x, **packed, h_0=h, c_0=c, **dict(recipe.options))
    h, c = (None if s is None else s.unsqueeze(-2) for s in (h, c))
    y, h, c = _conv_lstm(x.unsqueeze(-2), **packed, h_0=h, c_0=c, **dict(recipe.options))
    return y.squeeze(-2), h.squeeze(-2), c.squeeze(-2)


def conv_lstm_step(recipe: Recipe, module: nn.Module, x: Tensor, state: Any) -> dict[str, Tensor]:
    """One step, x [B, Cin, (H,) W]: the new h and c by name, c in the dtype of the state that came."""
    _, h, c = conv_lstm(recipe, module, x[None], state)
    return {"h": h, "c": c.to(x.dtype if state is None else state[1].dtype)}
