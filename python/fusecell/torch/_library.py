"""The library `torch.ops.fusecell`, and what all of its operators have in common.

Autograd is registered as a kernel for the key "Autograd" and not by `torch.library.register_autograd`: that one reads
the schema's defaults at every call, which takes 30 us for a dozen arguments, half of what a small call costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function as _within_one_level
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

Given = dict[str, Tensor | None]
Tensors = tuple[Tensor, ...]

library = torch.library.Library("fusecell", "DEF")


class AutogradKernel(_SingleLevelFunction):
    """What records a call for backward.

    Not a `torch.autograd.Function`: a kernel for the key "Autograd" is within one level of torch.func's transforms
    already, where that class would start from the first one again.
    """


def define(
    schema: str, kernel: Callable[..., Tensors], fake: Callable[..., Tensors], function: type[AutogradKernel]
) -> Any:
    """Define an operator for CPU and CUDA. `function`: its autograd, whose first argument is what `below` takes."""
    name = schema.partition("(")[0]
    library.define(schema)
    for key in ("CPU", "CUDA"):
        library.impl(name, kernel, key)
    torch.library.register_fake(f"fusecell::{name}", fake, lib=library)
    operator = getattr(torch.ops.fusecell, name).default

    def below(keyset: Any, *args: Any) -> Tensors:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensors = operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        return result

    def autograd(keyset: Any, *args: Any) -> Tensors:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            with _within_one_level() if torch._C._are_functorch_transforms_active() else nullcontext():
                result: Tensors = function.apply(keyset, below, *args)
            return result
        return below(keyset, *args)

    library.impl(name, autograd, "Autograd", with_keyset=True)
    return operator


def second_order(
    composition: Callable[[Given], Tensors],
    saved: Given,
    sent: Sequence[str],
    first: Mapping[str, Tensor],
    wanted: Sequence[str],
) -> Given:
    """The gradients of a gradient, through a composition that torch differentiates itself.

    composition: outputs from the tensors by name; sent: the names of what was sent into its outputs; first: for each
    input whose gradient was taken, what is sent into that gradient; wanted: the names to differentiate by. The result
    can be differentiated again.
    """
    if not first:
        return {}
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: what was sent may itself hang on an input, and that way is not this operator's to walk.
        own = {name: t if t is None else t.view_as(t) for name, t in saved.items()}
        reached = [(y, own[name]) for y, name in zip(composition(own), sent, strict=True) if own[name] is not None]
        gradients = torch.autograd.grad(
            [y for y, _ in reached],
            [own[name] for name in first],
            [dy for _, dy in reached],
            create_graph=True,
            allow_unused=True,
        )
        pairs = [(d, dd) for d, dd in zip(gradients, first.values(), strict=True) if d is not None and d.requires_grad]
        if not pairs:
            return {}
        found = torch.autograd.grad(
            [d for d, _ in pairs],
            [own[name] for name in wanted],
            [dd for _, dd in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    return dict(zip(wanted, found, strict=True))


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """Forward-mode differentiation would lose the tangents in silence."""
    for arg in args:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(
                f"{name}: forward-mode differentiation (torch.func.jvp, jacfwd, dual numbers) is not fused; "
                "fusecell.torch.to_plain(module) gives a twin of torch's own operators, which has it"
            )
