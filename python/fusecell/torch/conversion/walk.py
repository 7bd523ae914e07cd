"""`convert`: walks a model, recognises its ConvLSTMs, and swaps their computation."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from .cells import CellPlan, confirm_cell, recognise
from .fused import hooked
from .loops import confirm_sequence, recognise_loop, recognise_sequence
from .observed import guesses, is_torchs_own, looks_like_one, observe, takes_a_dict
from .report import Kept, Replaced, Report
from .sequences import WATCHED, SequencePlan
from .swapped import is_swapped, swap
from .trace import Refused, named_tensors

TELLING = 3  # a reason of this depth is news: convolutions of x and a state were seen
CALLED = 1  # a reason of this depth, or less: it could not be called
LOOP = "cells fused; the loop over time stays"
Shape = tuple[int, ...] | None


def convert(
    model: nn.Module,
    *,
    example: tuple[Any, ...] | None = None,
    algorithm: Literal["auto", "direct"] = "auto",
    verbose: bool = True,
) -> Report:
    """Swap the computation of every hand-written ConvLSTM in `model` for fusecell's, in place.

    Nothing is replaced on trust: a module is recognised by what it computes on random numbers, and swapped if a copy of
    it, computing by fusecell, agrees with an untouched copy in outputs and gradients, over steps, sizes and modes.
    Parameters, submodules, state_dict and hooks of the model stay the very same; only forwards change. A call of
    another form than those that were probed takes the module's own forward.

    example: arguments for one call of the model, made on a copy of it, from which the shapes are learnt that its
    modules are called with; without it they are guessed from the parameters. algorithm: as `conv_lstm` has it, for all
    that is replaced; those that not every cell can take are none of a model. verbose prints the report.

    Returns the report: what was replaced, and what was kept for which reason. Raises TypeError for an example that is
    no tuple, ValueError for another algorithm; what the model raises on the example comes through.
    """
    if algorithm not in ("auto", "direct"):
        raise ValueError(f'algorithm: expected "auto" or "direct", got {algorithm!r}')
    if example is not None and not isinstance(example, tuple):
        raise TypeError(f"example: expected a tuple of the model's arguments, got {type(example).__name__}")
    scratch, shapes = (model, {}) if example is None else observe(model, example)
    report = Report()
    for name, module in reversed(list(model.named_modules())):
        entry = _converted(name, module, scratch.get_submodule(name), shapes.get(name), algorithm)
        if example is None and isinstance(entry, Kept) and looks_like_one(module):
            again = (_converted(name, module, *guess, algorithm) for guess in guesses(model, name))
            entry = next((found for found in again if isinstance(found, Replaced)), entry)
        if isinstance(entry, Replaced):
            report.replaced.insert(0, entry)
        elif entry is not None and not (entry.reason.startswith(LOOP) and _loop_inside(report, name)):
            report.kept.insert(0, entry)
    if verbose:
        print(report)
    return report


def _loop_inside(report: Report, name: str) -> bool:
    """Whether the report names a loop already that stays inside this module."""
    return any(k.reason.startswith(LOOP) and (not name or k.name.startswith(f"{name}.")) for k in report.kept)


def _converted(name: str, module: nn.Module, scratch: nn.Module, seen: Shape, algorithm: str) -> Replaced | Kept | None:
    """Convert one module, if it is a ConvLSTM; None for what does not look like one."""
    kind = type(module).__name__
    if is_swapped(module) or type(module).__module__.startswith("fusecell."):
        return Kept(name, kind, "computed by fusecell already")
    if is_torchs_own(module):
        return None
    looping = any(is_swapped(m) for m in module.modules())
    try:
        if child := hooked(module):
            raise Refused(f"hooks on {child}, which a fused step would not run", 9)
        plan = _computed_by(algorithm, _plan(scratch, seen, looping))
    except Refused as reason:
        if looping:
            return Kept(name, kind, f"{LOOP}: {reason}") if reason.depth else None
        if reason.depth <= CALLED and takes_a_dict(module):
            return Kept(name, kind, "its state is a dict: expected a tuple, a list, or two tensors")
        return Kept(name, kind, str(reason)) if reason.depth >= TELLING or looks_like_one(module) else None
    notes = () if looping else _notes(module, scratch, plan)
    notes += _unfused_calls(module, plan, looping)
    for each in {module, scratch}:
        swap(each, plan)
    if isinstance(plan, SequencePlan) and not hasattr(module, WATCHED):
        module.__dict__[WATCHED] = False
    return Replaced(name, kind, "cell" if isinstance(plan, CellPlan) else "sequence", notes)


def _plan(module: nn.Module, seen: Shape, looping: bool) -> CellPlan | SequencePlan:
    """Proven on small images, and confirmed at the example's; proven there, if it takes no others. Raises Refused."""
    recognise_any = recognise_sequence if looping else _cell_or_loop
    try:
        plan = recognise_any(module, seen)
        if isinstance(plan, CellPlan) and seen:
            confirm_cell(module, plan, seen)
        elif isinstance(plan, SequencePlan) and seen:
            confirm_sequence(module, plan, seen)
        return plan
    except Refused as reason:
        if seen is None or (reason.depth > CALLED and not looping):  # a loop's cells may refuse another size later
            raise
        return recognise_any(module, seen, exact=True)


def _computed_by(algorithm: str, plan: CellPlan | SequencePlan) -> CellPlan | SequencePlan:
    """The plan with this algorithm: it was proven in float64, where "auto" is the direct one."""
    if isinstance(plan, CellPlan):
        return replace(plan, recipe=plan.recipe.computed_by(algorithm))
    layers = tuple(replace(layer, recipe=layer.recipe.computed_by(algorithm)) for layer in plan.layers)
    return replace(plan, layers=layers)


def _cell_or_loop(module: nn.Module, seen: Shape, exact: bool = False) -> CellPlan | SequencePlan:
    """Raises Refused with the reason of the attempt that got further."""
    if any(isinstance(m, nn.Conv3d) for m in module.modules()):
        raise Refused("its convolutions have three dimensions, expected 1 or 2", 0)
    try:
        return recognise(module, seen, exact)
    except Refused as cell:
        try:
            return recognise_loop(module, seen, exact)
        except Refused as loop:
            raise max(cell, loop, key=lambda reason: reason.depth) from None


def _notes(module: nn.Module, scratch: nn.Module, plan: CellPlan | SequencePlan) -> tuple[str, ...]:
    """What the tensors are for, that the plan was made of and that the module has."""
    recipes = [plan.recipe] if isinstance(plan, CellPlan) else [layer.recipe for layer in plan.layers]
    tensors = {name for recipe in recipes for name in recipe.tensors}
    parameters = {name for name, _ in scratch.named_parameters(remove_duplicate=False)}
    plain = sorted(tensors - parameters)
    dead = [name for name, _ in module.named_parameters() if name not in tensors]
    late = sorted(tensors - set(named_tensors(module)))
    each = (("no parameters, so never trained", plain), ("never used", dead), ("not fused until a call has made", late))
    return tuple(f"{what}: {', '.join(names)}" for what, names in each if names)


def _unfused_calls(module: nn.Module, plan: CellPlan | SequencePlan, looping: bool) -> tuple[str, ...]:
    """The ways of calling that take the module's own forward, as far as its signature tells."""
    absent = [n for n, p in inspect.signature(module.forward).parameters.items() if p.default is None]
    if isinstance(plan, CellPlan):
        state = set(absent) & set(plan.arguments.state) and not plan.starts_at_zero
        ways = ["without a state"] if state else []
        x = plan.arguments.x
    else:
        given = [n for n in (*plan.form.absent, *absent) if n not in (plan.form.x, *plan.form.lengths)]
        ways = [f"with {', '.join(dict.fromkeys(given))}"] if given else []
        ways += [f"with another {name} than the number of frames" for name in plan.form.lengths]
        x = plan.form.x
    ways += [f"without {x}"] if x in absent else []
    own = "the loop over fused cells" if looping else "its own forward"
    return (f"calls {' or '.join(ways)} take {own}",) if ways else ()
