"""`convert`: walks a model, recognises its ConvLSTMs, and swaps their computation."""

from __future__ import annotations

from typing import Any

from torch import nn

from .cells import CellPlan, recognise
from .report import Kept, Replaced, Report
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
        kind = type(module).__name__
        if is_swapped(module) or type(module).__module__.startswith("fusecell."):
            report.kept.insert(0, Kept(name, kind, "computed by fusecell already"))
            continue
        if not _candidate(module):
            continue
        try:
            _refuse_hooks(module)
            plan = recognise(module)
        except Refused as reason:
            if reason.depth >= TELLING or "lstm" in kind.lower():
                report.kept.insert(0, Kept(name, kind, str(reason)))
            continue
        swap(module, plan)
        report.replaced.insert(0, Replaced(name, kind, "cell", _notes(module, plan)))
    if verbose:
        print(report)
    return report


def _candidate(module: nn.Module) -> bool:
    """Whether a module may be a cell: somebody's own class, with kernels, and no converted module inside."""
    if type(module).__module__.startswith("torch.nn.") or any(is_swapped(m) for m in module.modules()):
        return False
    return any(t.dim() in (3, 4) for t in named_tensors(module).values())


def _refuse_hooks(module: nn.Module) -> None:
    for name, child in module.named_modules():
        hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks)
        if name and any(hooks):
            raise Refused(f"hooks on {name}, which a fused step would not run", 9)


def _notes(module: nn.Module, plan: CellPlan) -> tuple[str, ...]:
    tensors = plan.recipe.tensors
    dead = [name for name, _ in module.named_parameters() if name not in tensors]
    notes = []
    if plan.plain:
        notes.append(f"no parameters, so never trained: {', '.join(plan.plain)}")
    if dead:
        notes.append(f"never used: {', '.join(dead)}")
    return tuple(notes)
