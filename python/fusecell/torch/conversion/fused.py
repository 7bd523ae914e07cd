"""The calls of fusecell's ops that converted modules make."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..functional import State
from ..functional import conv_lstm as _conv_lstm
from .recipe import Recipe


def conv_lstm(
    recipe: Recipe,
    module: nn.Module,
    x: Tensor,
    state: State | None,
    reverse: bool = False,
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence x [T, B, Cin, (H,) W] from the state (h, c) or zeros: y [T, B, C, (H,) W], h_n and c_n."""
    options: dict[str, Any] = {**recipe.pack(module), **dict(recipe.options), "reverse": reverse, "probe": probe}
    if recipe.axes == 2:
        y, (h, c) = _conv_lstm(x, hx=state, **options)
        return y, h, c
    rows = None if state is None else (state[0].unsqueeze(-2), state[1].unsqueeze(-2))
    y, (h, c) = _conv_lstm(x.unsqueeze(-2), hx=rows, **options)
    return y.squeeze(-2), h.squeeze(-2), c.squeeze(-2)


def conv_lstm_step(recipe: Recipe, module: nn.Module, x: Tensor, state: State | None) -> dict[str, Tensor]:
    """One step, x [B, Cin, (H,) W]: the new h and c by name, in the dtypes of the state that came, or else in x's."""
    y, _, c = conv_lstm(recipe, module, x[None], state)  # y, and not h_n: it is what backward keeps
    dtypes = (x.dtype, x.dtype) if state is None else (state[0].dtype, state[1].dtype)
    return {"h": y[0].to(dtypes[0]), "c": c.to(dtypes[1])}


def hooked(module: nn.Module) -> str:
    """The name of a submodule that has hooks, which a fused forward would not run; "" if there is none."""
    for name, child in module.named_modules():
        hooks = child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
        if name and hooks:
            return name
    return ""
