"""Recognising modules that loop over time: over converted cells, or over convolutions of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import Any

from torch import Tensor, nn

from . import probe
from .calls import leaves, named_parameters_of
from .cells import CellPlan, Sizes, explained, sizes
from .geometry import seeing
from .recipe import Recipe
from .sequences import SIMPLE, Call, Form, Layer, SequencePlan, describe, explain, merge, record, results, settings
from .swapped import PLAN
from .trace import (
    Convolution,
    Recorder,
    Refused,
    Trace,
    first_success,
    no_new_tensors,
    random_tensor,
    sandbox,
    undisturbed,
)
from .watch import watch

PROBES = ((4, 7), (3, 5))  # T and B: different, so that the axes can be told apart
DEPTH = 9


@dataclass(frozen=True)
class Input:
    """What a loop is probed with: how it is called, the channels of a frame, and the image's size."""

    form: Form
    inputs: int
    image: tuple[int, ...]

    def frames(self, module: nn.Module, steps: int, batch: int) -> Tensor:
        """Random frames [T, B, Cin, ...]."""
        device = next((p.device for p in module.parameters()), None)
        return random_tensor(steps, batch, self.inputs, *self.image, seed=60 + steps, device=device)

    def run(self, module: nn.Module, frames: Tensor) -> Any:
        """The module's own output. Raises Refused for whatever its forward raises."""
        try:
            with no_new_tensors(module):
                return module.forward(**self.form.arrange(frames))
        except Refused:
            raise
        except Exception as error:  # a stranger's code may raise anything
            text = str(error).splitlines()[0] if str(error) else ""
            raise Refused(f"its forward raised {type(error).__name__} on frames alone: {text}", 1) from None


def forms(module: nn.Module) -> Iterator[Form]:
    """The ways in which a forward may want its frames, likeliest first."""
    parameters = named_parameters_of(module.forward)
    names = tuple(p.name for p in parameters)
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    numbers = tuple(p.name for p in parameters if isinstance(p.default, int) and not isinstance(p.default, bool))
    for x in (required or list(names))[:2]:
        absent = tuple(name for name in required if name != x)
        defaults = tuple((p.name, p.default) for p in parameters if p.name != x and isinstance(p.default, SIMPLE))
        for time, lengths in product((1, 0, 2), (((), numbers) if numbers else ((),))):
            yield Form(names, x, time, absent, defaults, lengths)


# ------------------------------------------------------------------------------------------ over converted cells
def recognise_sequence(module: nn.Module, seen: tuple[int, ...] | None = None, exact: bool = False) -> SequencePlan:
    """The plan of a module whose forward runs converted cells over time; exact: as sizes'. Raises Refused."""
    plans = {name: m.__dict__[PLAN] for name, m in module.named_modules() if PLAN in m.__dict__}
    if not all(isinstance(plan, CellPlan) for plan in plans.values()):
        raise Refused("it holds a fused sequence", 0)
    images = sorted({(plan.recipe.inputs, plan.image) for plan in plans.values()})
    probed = [
        Input(form, inputs, form.frame_of(seen)[1:] if seen and exact else image)
        for form, (inputs, image) in product(forms(module), images)
        if seen is None or (len(seen) == len(image) + 3 and form.frame_of(seen)[0] == inputs)
    ]
    with undisturbed():
        twin = sandbox(module)
        calls = record(twin)
        attempts = (partial(_over_cells, module, twin, calls, plans, probed_with) for probed_with in probed)
        return first_success(attempts, "its forward could not be called with frames alone", 1)


def _over_cells(
    module: nn.Module, twin: nn.Module, calls: list[Call], plans: dict[str, CellPlan], given: Input
) -> SequencePlan:
    explanations = []
    for steps, batch in PROBES:
        calls.clear()
        frames = given.frames(twin, steps, batch)
        output = given.run(twin, frames)
        layers = explain(calls, frames, plans)
        explanations.append((layers, describe(output, results(twin, layers, frames))))
    (layers, a), (again, b) = explanations
    if layers != again:
        raise Refused("its loop changes its form with the number of frames", DEPTH)
    return _proven(module, SequencePlan(given.form, layers, merge(a, b), settings(module)), given)


def _proven(module: nn.Module, plan: SequencePlan, given: Input) -> SequencePlan:
    """The plan, if a copy that computes by it agrees with a copy that loops. Raises Refused."""
    own = {name for layer in plan.layers if not layer.cell for name in layer.recipe.activations}
    original, converted = probe.twins(module, plan)
    watch(original, own)
    for steps, batch, amplified in ((3, 2, False), (5, 1, False), (1, 2, False), (probe.LONG, 1, False), (3, 2, True)):

        def run(
            twin: nn.Module, steps: int = steps, batch: int = batch, amplified: bool = amplified
        ) -> tuple[list[Any], list[Tensor]]:
            frames = given.frames(twin, steps, batch)
            frames = (probe.loud(frames, 1) if amplified else frames).requires_grad_()
            return leaves(given.run(twin, frames)), [frames]

        where = f" over {steps} frames{' of large numbers' if amplified else ''}"
        probe.agree(original, converted, run, where, of_largest=steps == probe.LONG or amplified)
    return plan


def confirm_sequence(module: nn.Module, plan: SequencePlan, seen: tuple[int, ...]) -> None:
    """Raises Refused unless a plan that was proven on small images holds for frames of this size."""
    inputs, *image = plan.form.frame_of(seen)
    given = Input(plan.form, inputs, tuple(image))

    def run(twin: nn.Module) -> tuple[list[Any], list[Tensor]]:
        return leaves(given.run(twin, given.frames(twin, 2, 1))), []

    probe.confirm(module, plan, run)


# --------------------------------------------------------------------------------------- over its own convolutions
def recognise_loop(module: nn.Module, seen: tuple[int, ...] | None = None, exact: bool = False) -> SequencePlan:
    """The plan of a module whose forward steps through time with its own convolutions; exact: as sizes'.

    Raises Refused.
    """
    probed = [
        Input(form, size.inputs, image)
        for form in forms(module)
        for size in sizes(module, None if seen is None else form.frame_of(seen), exact)
        for image in size.images
    ]
    if not probed:
        raise Refused("it has no kernels that a ConvLSTM could have", 0)
    with undisturbed():
        twin = sandbox(module)
        attempts = (partial(_over_own, module, twin, given) for given in dict.fromkeys(probed))
        return first_success(attempts, "its forward could not be called with frames")


def _over_own(module: nn.Module, twin: nn.Module, given: Input) -> SequencePlan:
    layers = _own_layers(twin, given)
    described = []
    for steps, batch in PROBES:
        frames = given.frames(twin, steps, batch)
        described.append(describe(given.run(twin, frames), results(twin, layers, frames)))
    return _proven(module, SequencePlan(given.form, layers, merge(*described), settings(module)), given)


def _own_layers(twin: nn.Module, given: Input) -> tuple[Layer, ...]:
    """The cells of a loop, by its second step: the first starts from zeros, which tell less."""
    frames = given.frames(twin, *PROBES[0])
    recorder = Recorder(cut=True)
    with recorder:
        given.run(twin, frames)
    trace = recorder.trace
    count, rest = divmod(len(trace.convolutions), len(frames))
    weights = [id(call.weight) for call in trace.convolutions]
    if not count or rest or weights != weights[:count] * len(frames):
        raise Refused(
            f"{len(weights)} convolutions in {len(frames)} steps: expected each step's in turn, the same in each", 2
        )
    step = Trace(trace.convolutions[count : 2 * count], trace.norms, trace.dropouts, trace.transposed)
    before, after = (list(chain(*trace.between[n : n + count])) for n in (0, count))
    made = zip(before, after, strict=False)
    pairs = [(a, b) for a, b in made if a.shape == b.shape and a.dim() == frames.dim() - 1 and len(a) == PROBES[0][1]]
    attempts = (partial(_stack, twin, step, pairs, frames[-2 if reverse else 1], reverse) for reverse in (False, True))
    return first_success(attempts, "its steps differ")


Pair = tuple[Tensor, Tensor]
"""A tensor that the step before made, and its like of this step."""


def _stack(twin: nn.Module, step: Trace, pairs: list[Pair], x: Tensor, reverse: bool) -> tuple[Layer, ...]:
    """Layers upon layers, until every convolution of the step has its place. Raises Refused."""
    layers: list[Layer] = []
    calls = list(step.convolutions)
    while calls:
        rest = Trace(calls, step.norms, step.dropouts, step.transposed)
        attempts = (partial(_layer, twin, rest, pairs, x, h) for h in pairs)
        recipe, x, used = first_success(attempts, "no state was found among the tensors that its step made", 2)
        layers.append(Layer("", recipe, (len(layers) - 1,) if layers else (), reverse=reverse and not layers))
        calls = [call for call in calls if call not in used]
    return tuple(layers)


def _layer(
    twin: nn.Module, rest: Trace, pairs: list[Pair], x: Tensor, h: Pair
) -> tuple[Recipe, Tensor, list[Convolution]]:
    """The recipe of the layer that steps from h[0] to h[1], its new h, and its convolutions. Raises Refused."""
    used = seeing(rest.convolutions, x.detach(), h[0])
    own = Trace(used, rest.norms, rest.dropouts, rest.transposed)
    size = Sizes(x.shape[1], h[0].shape[1], ())
    attempts = (
        partial(explained, twin, own, x, h[0], c[0], h[1], c[1], size) for c in pairs if c[0].shape == h[0].shape
    )
    return first_success(attempts, "no cell state was found", 2), h[1], used
