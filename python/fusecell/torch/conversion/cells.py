"""Cells: recognised by structure, checked by a numeric probe, computed by the fused step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from . import probe
from .calls import Arguments, Leaf, conventions, leaves, rebuild
from .fused import conv_lstm_step, hooked
from .gates import Formula, Rows, Step, formula_of, gates_of, place_vectors
from .geometry import convolution_options, embedding, located, sources
from .recipe import Block, Recipe, Sums
from .swapped import swap
from .trace import (
    Recorder,
    Refused,
    Trace,
    first_success,
    named_tensors,
    no_new_tensors,
    random_tensor,
    sandbox,
    undisturbed,
)
from .watch import watch

DEFAULT_SIZES = ((6, 5), (4, 7))
SAMPLES = 8  # enough that no relu is 0 in all of them, on an image of a few pixels too


@dataclass(frozen=True)
class CellPlan:
    """forward(x, state) of a cell, as one fused step."""

    recipe: Recipe
    arguments: Arguments
    output: Any  # a nest with a Leaf("h") or Leaf("c") in each place
    starts_at_zero: bool  # whether a call without a state starts from zeros
    image: tuple[int, ...]  # a size of x with which it was proven

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward's output; None for a call of another form, which the module's own forward takes."""
        bound = self.arguments.bind(args, kwargs)
        if bound is None or not self._takes(module, *bound):
            return None
        x, h, c = bound
        new = conv_lstm_step(self.recipe, module, x, None if h is None else (h, c))
        return rebuild(self.output, lambda leaf: new[leaf.value] if isinstance(leaf, Leaf) else leaf)

    def state_of(self, output: Any) -> tuple[Tensor, Tensor]:
        """The (h, c) in an output of this plan."""
        found = {p.value: y for p, y in zip(leaves(self.output), leaves(output), strict=True) if isinstance(p, Leaf)}
        return found["h"], found["c"]

    def _takes(self, module: nn.Module, x: Tensor, h: Tensor | None, c: Tensor | None) -> bool:
        if hooked(module) or x.dim() != self.recipe.axes + 2:
            return False
        state = self.recipe.state_image(module, tuple(x.shape[2:]))
        if state is None or h is None or c is None:
            return state is not None and self.starts_at_zero
        if h.shape != (x.shape[0], self.recipe.channels, *state) or c.shape != h.shape:
            return False
        return x.dtype == h.dtype == c.dtype or torch.is_autocast_enabled(x.device.type)


# -------------------------------------------------------------------------------------------------- the sizes
@dataclass(frozen=True)
class Sizes:
    """What to try a module with: channels of x and of the state, and sizes of the image."""

    inputs: int
    channels: int
    images: tuple[tuple[int, ...], ...]


def sizes(module: nn.Module, seen: tuple[int, ...] | None = None, exact: bool = False) -> Iterator[Sizes]:
    """The sizes that the module's tensors allow, likeliest first; seen: (Cin, ...) of a frame it was called with.

    exact: only images of that frame's size, which take as much longer as they are larger.
    """
    for axes, kind in ((2, nn.Conv2d), (1, nn.Conv1d)):
        pool = {(m.out_channels, m.in_channels) for m in module.modules() if isinstance(m, kind)}
        raw = [t for t in named_tensors(module).values() if t.dim() == axes + 2]
        pool |= {(t.shape[0], t.shape[1]) for t in raw}
        pairs = {
            (inputs, channels)
            for rows, _ in pool
            for blocks in (4, 1, 3, 2)
            if rows % blocks == 0
            for channels in (rows // blocks,)
            for inputs in _inputs(pool, channels)
        }
        for inputs, channels in sorted(pairs, key=lambda p: _unlikely(pool, *p)):
            if seen is None or (seen[0] == inputs and len(seen) == axes + 1):
                yield Sizes(inputs, channels, (seen[1:],) if seen and exact else _images(module, axes, channels))


def _inputs(pool: set[tuple[int, int]], channels: int) -> set[int]:
    rows = {channels * n for n in (1, 2, 3, 4)}
    wide = {columns - channels for r, columns in pool if r in rows and columns > channels}
    beside = {columns for r, columns in pool if r in rows} if any(c == channels for _, c in pool) else set()
    return wide | beside


def _unlikely(pool: set[tuple[int, int]], inputs: int, channels: int) -> tuple[bool, int]:
    whole = (4 * channels, inputs + channels) in pool or {(4 * channels, inputs), (4 * channels, channels)} <= pool
    return not whole, -channels


def _images(module: nn.Module, axes: int, channels: int) -> tuple[tuple[int, ...], ...]:
    per_pixel = [
        tuple(t.shape[-axes:])
        for t in named_tensors(module).values()
        if t.dim() in (axes + 1, axes + 2) and t.shape[-axes - 1] % channels == 0 and max(t.shape[-axes:]) > 1
    ]
    attributes = [
        tuple(value)
        for value in vars(module).values()
        if isinstance(value, (tuple, list)) and len(value) == axes and all(isinstance(v, int) and v > 1 for v in value)
    ]
    default = tuple(size[2 - axes :] for size in DEFAULT_SIZES)
    return (*default[:1], *dict.fromkeys([*per_pixel, *attributes]), *default[1:])


# ---------------------------------------------------------------------------------------------- recognition
def recognise(module: nn.Module, seen: tuple[int, ...] | None = None, exact: bool = False) -> CellPlan:
    """The plan of a cell; seen: the shape of an x it was called with; exact: as sizes'. Raises the deepest Refused."""
    probed = [
        (arguments, size, image)
        for size in sizes(module, None if seen is None else seen[1:], exact)
        for arguments, image in product(conventions(module), size.images)
    ]
    if not probed:
        raise Refused("it could not be called with x, h and c", 0)
    with undisturbed():
        twin = sandbox(module)
        attempts = (partial(_attempt, module, twin, *given) for given in probed)
        return first_success(attempts, "it could not be called with x, h and c")


def _attempt(module: nn.Module, twin: nn.Module, arguments: Arguments, size: Sizes, image: tuple[int, ...]) -> CellPlan:
    device = next((t.device for t in twin.parameters()), None)
    x = random_tensor(SAMPLES, size.inputs, *image, seed=1, device=device)
    output, trace, states = _call(twin, arguments, x, size.channels)
    distinct = _distinct([leaf for leaf in leaves(output) if isinstance(leaf, Tensor)])
    if len(distinct) != 2 or any(t.shape != states[0].shape for t in distinct):
        raise Refused(f"its output holds {len(distinct)} different tensors, expected h and c", 2)

    def plan(h_first: bool, new_h: Tensor, new_c: Tensor) -> CellPlan:
        h, c = states if h_first else states[::-1]
        recipe = explained(twin, trace, x, h, c, new_h, new_c, size)
        parts = rebuild(output, lambda leaf: _leaf(leaf, new_h))
        return CellPlan(recipe, replace(arguments, h_first=h_first), parts, False, image)

    attempts = (partial(plan, h_first, *news) for h_first in (True, False) for news in (distinct, distinct[::-1]))
    return _proven(module, first_success(attempts, "it is no ConvLSTM"), size, image)


def explained(
    twin: nn.Module, trace: Trace, x: Tensor, h: Tensor, c: Tensor, new_h: Tensor, new_c: Tensor, size: Sizes
) -> Recipe:
    """The recipe of the step from (h, c) to (new_h, new_c) whose convolutions are in the trace. Raises Refused."""
    found = sources(trace, twin, x, h, c)
    options, zeros = convolution_options(found, size.inputs), embedding(found)
    step = Step(c, new_h, new_c, found, named_tensors(twin))
    gates = gates_of(step)
    place_vectors(step, gates)
    return recipe_of(formula_of(step, gates), step, size, options, zeros)


def _leaf(leaf: Any, new_h: Tensor) -> Any:
    return Leaf("h" if torch.equal(leaf, new_h) else "c") if isinstance(leaf, Tensor) else leaf


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    distinct: list[Tensor] = []
    for tensor in tensors:
        if not any(tensor.shape == other.shape and torch.equal(tensor, other) for other in distinct):
            distinct.append(tensor)
    return distinct


def _call(twin: nn.Module, arguments: Arguments, x: Tensor, channels: int) -> tuple[Any, Trace, tuple[Tensor, Tensor]]:
    """Run the twin's forward, at first with a state of x's size, then of the size that its convolution of x gives."""
    image = tuple(x.shape[2:])
    for _ in range(2):
        h, c = (random_tensor(x.shape[0], channels, *image, seed=s, device=x.device) for s in (2, 3))
        recorder = Recorder(cut=True)
        try:
            with recorder, no_new_tensors(twin):
                return twin.forward(**arguments.arrange(x, h, c)), recorder.trace, (h, c)
        except Refused:
            raise
        except Exception as error:  # a stranger's code may raise anything
            reason = f"its forward raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            smaller = {tuple(c.output.shape[2:]) for c in recorder.trace.convolutions if located(c.x, x)}
            if len(smaller) != 1 or smaller == {image}:
                break
            image = smaller.pop()
    raise Refused(reason, 1)


def recipe_of(formula: Formula, step: Step, size: Sizes, options: dict[str, Any], zeros: Any) -> Recipe:
    """The recipe of a step that the formula explains; zeros: the embedding of the recurrent weight."""
    axes = step.c.dim() - 2
    gates = formula.gates

    def weights(operand: str) -> Sums:
        return tuple(
            tuple(
                Block(source.weight, rows.start, rows.step, columns)
                for source, rows in gate.rows
                if (columns := source.columns(operand, size.inputs, size.channels))
            )
            for gate in gates
        )

    def vector(name: str, rows: Rows) -> Block:
        tensor = step.tensors[name]
        return Block(name, rows.start, rows.step, batched=tensor.dim() == axes + 2)

    bias = tuple(
        (
            *(Block(source.bias, rows.start, rows.step) for source, rows in gate.rows if source.bias),
            *(vector(*at) for at in gate.biases),
        )
        for gate in gates
    )
    i, f, _, o = gates
    activations = {
        "recurrent_activation": formula.recurrent_activation,
        "activation": formula.activation,
        "slope": formula.slope,
    }
    weight_ih, weight_hh = weights("x"), weights("h")
    if not all(weight_ih) or not all(weight_hh):
        raise Refused("a gate without a convolution of x, or of h", 9)
    return Recipe(
        inputs=size.inputs,
        channels=size.channels,
        axes=axes,
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        bias=bias,
        constants=(0.0, formula.forget, 0.0, 0.0),
        peephole=tuple(tuple(vector(*at) for at in gate.peepholes) for gate in (i, f, o)),
        embedding=zeros,
        options=tuple({**options, **activations}.items()),
    )


# --------------------------------------------------------------------------------------------------- the proof
def _proven(module: nn.Module, plan: CellPlan, size: Sizes, image: tuple[int, ...]) -> CellPlan:
    """The plan, if a copy that computes by it agrees with an untouched copy. Raises Refused."""
    original, converted = probe.twins(module, plan)
    watch(original, plan.recipe.activations)
    for batch, pixels in ((2, image), (1, tuple(n + 1 + a for a, n in enumerate(image)))):
        state = plan.recipe.state_image(original, pixels)
        if state is None and pixels != image:
            continue  # a peephole per pixel knows one size
        if state is None:
            raise Refused(f"its first forward makes some of {', '.join(plan.recipe.tensors)}: expected them before", 9)
        shapes = (batch, size.inputs, *pixels), (batch, size.channels, *state)
        run = probe.steps(plan.arguments, plan.output, shapes)
        if pixels != image and not _runs(original, run):
            continue
        probe.agree(original, converted, run)
        amplified = probe.steps(plan.arguments, plan.output, shapes, amplified=True)
        probe.agree(original, converted, amplified, " on large numbers", of_largest=True)
    assuming = replace(plan, starts_at_zero=True)
    swap(converted, assuming)
    zero = probe.starts_at_zero(original, converted, plan.arguments, (2, size.inputs, *image))
    return assuming if zero else plan


def confirm_cell(module: nn.Module, plan: CellPlan, seen: tuple[int, ...]) -> None:
    """Raises Refused unless a plan that was proven on small images holds for an x of this size."""
    state = plan.recipe.state_image(module, seen[2:])
    if state is None:
        raise Refused("its tensors are not of the example's size", 0)
    shapes = (1, plan.recipe.inputs, *seen[2:]), (1, plan.recipe.channels, *state)
    probe.confirm(module, plan, probe.steps(plan.arguments, plan.output, shapes))


def _runs(original: nn.Module, run: probe.Run) -> bool:
    try:
        run(original)
    except Refused:
        raise
    except Exception:  # a stranger's code may raise anything
        return False
    return True
