"""Recognising modules that loop over time: over converted cells, or over convolutions of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import probe
from .calls import leaves, positional
from .cells import CellPlan, Sizes, recipe_of, sizes
from .gates import Step, formula_of, gates_of, place_vectors
from .geometry import convolution_options, embedding, sources
from .sequences import SIMPLE, Layer, SequencePlan, describe, explain, merge, record, results, settings
from .swapped import PLAN, swap
from .trace import Recorder, Refused, Trace, named_tensors, random_tensor, sandbox, undisturbed

PROBES = ((4, 2), (3, 5))  # T and B: different, so that the axes can be told apart
DEPTH = 9


# ------------------------------------------------------------------------------------------------------ calling
def _arguments(module: nn.Module) -> Iterator[tuple[tuple[str, ...], str, dict[str, Any]]]:
    """The names of forward's parameters, the one that takes the frames, and what is given to others that must be given."""
    parameters = positional(module.forward)
    names = tuple(p.name for p in parameters)
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    for x in (required or names)[:2]:
        yield names, x, {name: None for name in required if name != x}


def _defaults(module: nn.Module, x: str) -> tuple[tuple[str, Any], ...]:
    """What other arguments may be for a call to be one of frames alone."""
    return tuple(
        (p.name, None if p.default is inspect.Parameter.empty else p.default)
        for p in positional(module.forward)
        if p.name != x and (p.default is inspect.Parameter.empty or isinstance(p.default, SIMPLE))
    )


def _run(module: nn.Module, x: str, others: dict[str, Any], frames: Tensor, batch_first: bool) -> Any:
    given = frames.transpose(0, 1) if batch_first else frames
    try:
        return module.forward(**{x: given, **others})
    except Refused:
        raise
    except Exception as error:  # a stranger's code may raise anything
        text = str(error).splitlines()[0] if str(error) else ""
        raise Refused(f"its forward raised {type(error).__name__} on frames alone: {text}", 1) from None


def _frames(module: nn.Module, steps: int, batch: int, inputs: int, image: tuple[int, ...]) -> Tensor:
    device = next((p.device for p in module.parameters()), None)
    return random_tensor(steps, batch, inputs, *image, seed=60 + steps, device=device)


# ------------------------------------------------------------------------------------------ over converted cells
def recognise_sequence(module: nn.Module) -> SequencePlan:
    """The plan of a module whose forward runs converted cells over time. Raises Refused."""
    plans = {name: m.__dict__[PLAN] for name, m in module.named_modules() if PLAN in m.__dict__}
    if not all(isinstance(plan, CellPlan) for plan in plans.values()):
        raise Refused("it holds a fused sequence", 0)
    images = {(_inputs(module, name, plan), plan.image) for name, plan in plans.items()}
    deepest = Refused("its forward could not be called", 0)
    with undisturbed():
        for (names, x, others), (inputs, image) in ((a, i) for a in _arguments(module) for i in sorted(images)):
            for batch_first in (True, False):
                try:
                    found = [
                        _explained(module, plans, x, others, batch_first, (*shape, inputs, image)) for shape in PROBES
                    ]
                    (layers, a), (again, b) = found
                    if layers != again:
                        raise Refused("its loop changes its form with the number of frames", DEPTH)
                    defaults = _defaults(module, x)
                    plan = SequencePlan(names, x, defaults, batch_first, layers, merge(a, b), settings(module))
                    return _proven(module, plan, others, inputs, image)
                except Refused as reason:
                    deepest = reason if reason.depth > deepest.depth else deepest
    raise deepest


def _inputs(module: nn.Module, name: str, plan: CellPlan) -> int:
    weight = plan.recipe.pack(module.get_submodule(name))["weight_ih"]
    return weight.shape[1]


def _explained(
    module: nn.Module, plans: dict[str, CellPlan], x: str, others: dict[str, Any], batch_first: bool, shape: Any
) -> tuple[tuple[Layer, ...], Any]:
    twin = sandbox(module)
    calls = record(twin)
    frames = _frames(twin, *shape)
    output = _run(twin, x, others, frames, batch_first)
    layers = explain(calls, frames, plans)
    return layers, describe(output, results(sandbox(module), layers, frames))


def _proven(
    module: nn.Module, plan: SequencePlan, others: dict[str, Any], inputs: int, image: tuple[int, ...]
) -> SequencePlan:
    """The plan, if a copy that computes by it agrees with a copy that loops. Raises Refused."""
    original, converted = probe.twins(module, plan)
    for steps, batch in ((3, 2), (5, 1), (1, 2)):

        def run(twin: nn.Module, steps: int = steps, batch: int = batch) -> tuple[list[Any], list[Tensor]]:
            frames = _frames(twin, steps, batch, inputs, image).requires_grad_()
            return leaves(_run(twin, plan.x, others, frames, plan.batch_first)), [frames]

        probe.agree(original, converted, run)
    return plan


# --------------------------------------------------------------------------------------- over its own convolutions
def recognise_loop(module: nn.Module) -> SequencePlan:
    """The plan of a module whose forward steps through time with convolutions of its own. Raises Refused."""
    deepest = Refused("its forward could not be called", 0)
    with undisturbed():
        for size in sizes(module):
            for names, x, others in _arguments(module):
                for batch_first, image in ((b, i) for b in (True, False) for i in size.images):
                    try:
                        layer = _own_layer(module, x, others, batch_first, size, image)
                        a, b = (
                            _described(module, layer, x, others, batch_first, (*shape, size.inputs, image))
                            for shape in PROBES
                        )
                        output = merge(a, b)
                        defaults = _defaults(module, x)
                        plan = SequencePlan(names, x, defaults, batch_first, (layer,), output, settings(module))
                        return _proven(module, plan, others, size.inputs, image)
                    except Refused as reason:
                        deepest = reason if reason.depth > deepest.depth else deepest
    raise deepest


def _described(module: nn.Module, layer: Layer, x: str, others: dict[str, Any], batch_first: bool, shape: Any) -> Any:
    twin = sandbox(module)
    frames = _frames(twin, *shape)
    return describe(_run(twin, x, others, frames, batch_first), results(twin, (layer,), frames))


def _own_layer(
    module: nn.Module, x: str, others: dict[str, Any], batch_first: bool, size: Sizes, image: tuple[int, ...]
) -> Layer:
    twin = sandbox(module)
    frames = _frames(twin, *PROBES[0], size.inputs, image)
    recorder = Recorder(cut=True)
    with recorder:
        _run(twin, x, others, frames, batch_first)
    trace = recorder.trace
    count, rest = divmod(len(trace.convolutions), len(frames))
    weights = [id(call.weight) for call in trace.convolutions]
    if not count or rest or weights != weights[:count] * len(frames):
        raise Refused(f"{len(weights)} convolutions in {len(frames)} steps, expected the same in each", 2)
    step_1 = Trace(trace.convolutions[count : 2 * count], trace.norms, trace.dropouts, trace.transposed)
    after_0, after_1 = (sum(trace.between[n : n + count], []) for n in (0, count))
    deepest = Refused("its steps differ", 2)
    for reverse in (False, True):
        frame = frames[-2 if reverse else 1]
        try:
            recipe = _own_recipe(twin, step_1, after_0, after_1, frame, size)
            return Layer("", recipe, reverse=reverse)
        except Refused as reason:
            deepest = reason if reason.depth > deepest.depth else deepest
    raise deepest


def _own_recipe(
    twin: nn.Module, step_1: Trace, after_0: list[Tensor], after_1: list[Tensor], frame: Tensor, size: Sizes
) -> Any:
    """The recipe of the loop's second step: its states are among the tensors that the first step made."""
    states = [
        (old, new)
        for old, new in zip(after_0, after_1, strict=False)
        if old.dim() == frame.dim() and old.shape[:2] == (frame.shape[0], size.channels) and old.shape == new.shape
    ]
    deepest = Refused("no step's state was found among the tensors that the step before made", 2)
    for h, new_h in states:
        try:
            found = sources(step_1, twin, frame, h)
            options, zeros = convolution_options(found, size.inputs), embedding(found)
        except Refused as reason:
            deepest = reason if reason.depth > deepest.depth else deepest
            continue
        for c, new_c in states:
            try:
                step = Step(c, new_h, new_c, found, named_tensors(twin))
                gates = gates_of(step)
                place_vectors(step, gates)
                return recipe_of(formula_of(step, gates), step, size, options, zeros)
            except Refused as reason:
                deepest = reason if reason.depth > deepest.depth else deepest
    raise deepest
