"""`convert`: walks a model, recognises its ConvLSTMs, and swaps their computation."""

from __future__ import annotations

from typing import Any

from torch import nn

from .cells import CellPlan, recognise
from .loops import recognise_loop, recognise_sequence
from .report import Kept, Replaced, Report
from .sequences import SequencePlan
from .swapped import is_swapped, swap
from .trace import Refused, named_tensors

TELLING = 3  # a reason of this depth is news: convolutions of x and a state were seen


def convert(model: nn.Module, *, example: tuple[Any, ...] | None = None, verbose: bool = True) -> Report:
    """Swap the computation of every hand-written ConvLSTM in `model` for fusecell's, in place.

    Nothing is replaced on trust: a module is recognised by what it computes on random numbers, and swapped if a copy of
    it, computing by fusecell, agrees with an untouched copy in outputs and gradients, over steps, sizes and modes.
    Parameters, submodules, state_dict and hooks of the model stay the very same; only forwards change.

    example: arguments for one call of the model, on a copy of it, from which the shapes are learnt that its modules are
    called with; without it they are guessed from the parameters. verbose prints the report.

    Returns the report: what was replaced, and what was kept for which reason. Raises nothing of the probes' making.
    """
    report = Report()
    for name, module in reversed(list(model.named_modules())):
        entry = _converted(name, module)
        if isinstance(entry, Replaced):
            report.replaced.insert(0, entry)
        elif entry is not None:
            report.kept.insert(0, entry)
    if verbose:
        print(report)
    return report


def _converted(name: str, module: nn.Module) -> Replaced | Kept | None:
    """Convert one module, if it is a ConvLSTM; None for what does not look like one."""
    kind = type(module).__name__
    if is_swapped(module) or type(module).__module__.startswith("fusecell."):
        return Kept(name, kind, "computed by fusecell already")
    if type(module).__module__.startswith("torch.nn."):
        return None
    looping = any(is_swapped(m) for m in module.modules())
    try:
        if looping:
            swap(module, recognise_sequence(module))
            return Replaced(name, kind, "sequence")
        _refuse_hooks(module)
        plan = _cell_or_loop(module)
    except Refused as reason:
        if looping:
            return Kept(name, kind, f"cells fused; the loop over time stays: {reason}") if reason.depth else None
        return Kept(name, kind, str(reason)) if reason.depth >= TELLING or "lstm" in kind.lower() else None
    swap(module, plan)
    return Replaced(name, kind, "cell" if isinstance(plan, CellPlan) else "sequence", _notes(module, plan))


def _cell_or_loop(module: nn.Module) -> CellPlan | SequencePlan:
    """Raises Refused with the reason of the attempt that got further."""
    if not any(t.dim() in (3, 4) for t in named_tensors(module).values()):
        raise Refused("it has no kernels", 0)
    try:
        return recognise(module)
    except Refused as cell:
        try:
            return recognise_loop(module)
        except Refused as loop:
            raise max(cell, loop, key=lambda reason: reason.depth) from None


def _refuse_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks)
        if name and any(hooks):
            raise Refused(f"hooks on {name}, which a fused step would not run", 9)


def _notes(module: nn.Module, plan: CellPlan | SequencePlan) -> tuple[str, ...]:
    tensors = plan.recipe.tensors if isinstance(plan, CellPlan) else plan.layers[0].recipe.tensors
    dead = [name for name, _ in module.named_parameters() if name not in tensors]
    notes = []
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    if plain := sorted(tensors - parameters):
        notes.append(f"no parameters, so never trained: {', '.join(plain)}")
    if dead:
        notes.append(f"never used: {', '.join(dead)}")
    return tuple(notes)
