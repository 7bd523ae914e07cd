"""`convert`: walks a model, recognises its ConvLSTMs, and swaps their computation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .calls import leaves
from .cells import CellPlan, recognise
from .loops import recognise_loop, recognise_sequence
from .report import Kept, Replaced, Report
from .sequences import SequencePlan
from .swapped import is_swapped, swap
from .trace import Refused, duplicate, undisturbed, without_hooks

TELLING = 3  # a reason of this depth is news: convolutions of x and a state were seen
Shapes = dict[str, tuple[int, ...]]


def convert(model: nn.Module, *, example: tuple[Any, ...] | None = None, verbose: bool = True) -> Report:
    """Swap the computation of every hand-written ConvLSTM in `model` for fusecell's, in place.

    Nothing is replaced on trust: a module is recognised by what it computes on random numbers, and swapped if a copy of
    it, computing by fusecell, agrees with an untouched copy in outputs and gradients, over steps, sizes and modes.
    Parameters, submodules, state_dict and hooks of the model stay the very same; only forwards change. A call of
    another form than those that were probed takes the module's own forward.

    example: arguments for one call of the model, made on a copy of it, from which the shapes are learnt that its
    modules are called with; without it they are guessed from the parameters. verbose prints the report.

    Returns the report: what was replaced, and what was kept for which reason. What `example` raises comes through.
    """
    scratch, shapes = (model, {}) if example is None else _observed(model, example)
    report = Report()
    for name, module in reversed(list(model.named_modules())):
        entry = _converted(name, module, scratch.get_submodule(name), shapes)
        if isinstance(entry, Replaced):
            report.replaced.insert(0, entry)
        elif entry is not None:
            report.kept.insert(0, entry)
    if verbose:
        print(report)
    return report


def _observed(model: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, Shapes]:
    """A copy of the model that has run once, and the shapes of the first tensor that each of its modules was given."""
    copied = without_hooks(duplicate(model)).eval()
    shapes: Shapes = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
            if tensors:
                shapes.setdefault(name, tuple(tensors[0].shape))

        return hook

    handles = [m.register_forward_pre_hook(watch(n), with_kwargs=True) for n, m in copied.named_modules()]
    with undisturbed(torch.get_default_dtype()), torch.no_grad():
        copied(*example)
    for handle in handles:
        handle.remove()
    return copied, shapes


def _converted(name: str, module: nn.Module, scratch: nn.Module, shapes: Shapes) -> Replaced | Kept | None:
    """Convert one module, if it is a ConvLSTM; None for what does not look like one."""
    kind = type(module).__name__
    if is_swapped(module) or type(module).__module__.startswith("fusecell."):
        return Kept(name, kind, "computed by fusecell already")
    if type(module).__module__.startswith("torch."):
        return None
    looping = any(is_swapped(m) for m in module.modules())
    try:
        _refuse_hooks(module)
        plan = recognise_sequence(scratch, shapes.get(name)) if looping else _cell_or_loop(scratch, shapes.get(name))
    except Refused as reason:
        if looping:
            return Kept(name, kind, f"cells fused; the loop over time stays: {reason}") if reason.depth else None
        return Kept(name, kind, str(reason)) if reason.depth >= TELLING or "lstm" in kind.lower() else None
    notes = () if looping else _notes(module, plan)
    swap(module, plan)
    if scratch is not module:
        swap(scratch, plan)
    return Replaced(name, kind, "cell" if isinstance(plan, CellPlan) else "sequence", notes)


def _cell_or_loop(module: nn.Module, seen: tuple[int, ...] | None) -> CellPlan | SequencePlan:
    """Raises Refused with the reason of the attempt that got further."""
    if any(isinstance(m, nn.Conv3d) for m in module.modules()):
        raise Refused("its convolutions have three dimensions, expected 1 or 2", 0)
    try:
        return recognise(module, seen)
    except Refused as cell:
        try:
            return recognise_loop(module, seen)
        except Refused as loop:
            raise max(cell, loop, key=lambda reason: reason.depth) from None


def _refuse_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks)
        if name and any(hooks):
            raise Refused(f"hooks on {name}, which a fused step would not run", 9)


def _notes(module: nn.Module, plan: CellPlan | SequencePlan) -> tuple[str, ...]:
    tensors = plan.recipe.tensors if isinstance(plan, CellPlan) else plan.layers[0].recipe.tensors
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    dead = [name for name, _ in module.named_parameters() if name not in tensors]
    plain = sorted(tensors - parameters)
    notes = [f"no parameters, so never trained: {', '.join(plain)}"] if plain else []
    return (*notes, f"never used: {', '.join(dead)}") if dead else tuple(notes)
