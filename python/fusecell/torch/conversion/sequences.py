"""Modules that run converted cells over time: the loop is replaced by whole sequences, where it can be explained.

The module's own loop runs on two probes of different length and batch, and its cells write down every call. The loop
is explained if each cell takes one step a frame, from zeros or from another cell's last state, on the frames or on
another cell's outputs; and the output, if each tensor of it is a sequence or a last state of these cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import _probes
from .calls import Leaf, rebuild
from .cells import CellPlan
from .fused import conv_lstm, hooked
from .recipe import Recipe
from .swapped import PLAN
from .trace import Refused

DEPTH = 9
SIMPLE = (bool, int, float, str, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
WATCHED = "watched"


@dataclass(frozen=True)
class Layer:
    """One cell over the whole sequence."""

    cell: str  # the submodule whose tensors the recipe names; "" for the module itself
    recipe: Recipe
    sees: tuple[int, ...] = ()  # earlier layers, whose outputs it sees one behind the other; none: the frames
    start: int | None = None  # the earlier layer from whose last state it starts; None: zeros
    reverse: bool = False


@dataclass(frozen=True)
class Place:
    """What stands in one place of the output: y, h or c of a layer, or of several in one tensor."""

    what: str  # "y", "h" or "c"; "steps": a list of y's frames
    layers: tuple[int, ...]
    time: int = 0  # y's axis of time
    flipped: bool = False  # y in the order of a reverse direction's steps
    join: tuple[str, int] | None = None  # ("stack" or "cat", axis), or ("unsqueeze", axis) for one layer

    def of(self, results: list[dict[str, Tensor]]) -> Any:
        """The tensor, from each layer's y [T, B, ...], h and c [B, ...]."""
        if self.what == "steps":
            return list(results[self.layers[0]]["y"].unbind(0))
        parts = [results[layer][self.what] for layer in self.layers]
        if self.flipped:
            parts = [part.flip(0) for part in parts]
        if self.what == "y" and self.time:
            parts = [part.movedim(0, self.time) for part in parts]
        if self.join is None:
            return parts[0]
        how, axis = self.join
        return torch.cat(parts, axis) if how == "cat" else torch.stack(parts, axis)


def places(count: int) -> Iterator[Place]:
    """What a tensor of the output may be, likeliest first."""
    forms = [("y", 0, False), ("y", 1, False), ("h", 0, False), ("c", 0, False)]
    forms += [("y", 2, False), ("y", 0, True), ("y", 1, True)]
    for what, time, flipped in forms:
        for layer in range(count):
            yield Place(what, (layer,), time, flipped)
    several = [tuple(range(count)), *combinations(range(count), 2)] if count > 1 else []
    for what, time, flipped in forms[:4]:
        channel = 2 if what == "y" else 1
        for layers in dict.fromkeys([*several, *((layer,) for layer in range(count))]):
            joins = [("stack", axis) for axis in range(channel + 1)]
            for join in [*joins, ("cat", channel)] if len(layers) > 1 else joins:
                yield Place(what, layers, time, flipped, join)


@dataclass(frozen=True)
class Form:
    """How a forward is called with frames, and with nothing else that matters."""

    names: tuple[str, ...]  # its parameters
    x: str  # the one that takes the frames
    time: int  # the frames' axis of time: 0, 1, or 2 for [B, Cin, T, ...]
    absent: tuple[str, ...]  # parameters that must be given, and are None
    defaults: tuple[tuple[str, Any], ...]
    lengths: tuple[str, ...]  # parameters that must be the number of frames

    def arrange(self, frames: Tensor) -> dict[str, Any]:
        """The keyword arguments for frames [T, B, Cin, ...]."""
        others: dict[str, Any] = dict.fromkeys(self.absent)
        return {self.x: frames.movedim(0, self.time), **others, **dict.fromkeys(self.lengths, len(frames))}

    def frame_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(Cin, ...) of an input's shape."""
        return tuple(n for axis, n in enumerate(shape) if axis not in (self.time, 1 if self.time == 0 else 0))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], axes: int) -> Tensor | None:
        """The frames [T, B, Cin, ...] of a call; None for a call of another form."""
        given = {**dict(self.defaults), **dict(zip(self.names, args, strict=False)), **kwargs}
        x = given.pop(self.x, None)
        if len(args) > len(self.names) or not isinstance(x, Tensor) or x.dim() != axes + 3:
            return None
        frames = x.movedim(self.time, 0)
        wanted: dict[str, Any] = {**dict(self.defaults), **dict.fromkeys(self.lengths, len(frames))}
        for name, value in given.items():
            if value is not None if name not in wanted else value is not wanted[name] and value != wanted[name]:
                return None
        return frames if len(frames) else None


@dataclass(frozen=True)
class SequencePlan:
    """forward(frames) of a module, as fused sequences; every other call takes the module's own loop.

    A converted module is watched as fusecell's own: its attribute `watched` set to True, forwards in training leave
    `probes`, named by layer.
    """

    form: Form
    layers: tuple[Layer, ...]
    output: Any  # a nest with a Leaf(Place) in each place
    settings: tuple[tuple[str, Any], ...]  # the module's plain attributes: the explanation holds for these values

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward's output; None for a call of another form."""
        frames = self.form.bind(args, kwargs, self.layers[0].recipe.axes)
        if frames is None or not self._takes(module, tuple(frames.shape[3:])):
            return None
        made = results(module, self.layers, frames, self._probes(module, frames))
        return rebuild(self.output, lambda leaf: leaf.value.of(made) if isinstance(leaf, Leaf) else leaf)

    def _takes(self, module: nn.Module, image: tuple[int, ...]) -> bool:
        """Whether the module is as it was proven, and has the tensors that frames of this size want."""
        states: list[Any] = []
        for layer in self.layers:
            seen = states[layer.sees[0]] if layer.sees else image
            states.append(seen and layer.recipe.state_image(module.get_submodule(layer.cell), seen))
        now = {n: v for n, v in settings(module) if n != WATCHED or not self._may_be_watched()}
        return all(states) and not hooked(module) and now == dict(self.settings)

    def _may_be_watched(self) -> bool:
        """Unless the module has another use for that name."""
        return WATCHED not in dict(self.settings)

    def _probes(self, module: nn.Module, frames: Tensor) -> dict[str, Tensor]:
        if not self._may_be_watched() or module.__dict__.get(WATCHED) is not True:
            return {}
        return _probes.of_forward(module, map(probe_name, range(len(self.layers)), self.layers), frames)


def probe_name(number: int, layer: Layer) -> str:
    """As a `ConvLSTM2d` names its probes."""
    return f"l{number}_reverse" if layer.reverse else f"l{number}"


def results(
    module: nn.Module, layers: tuple[Layer, ...], frames: Tensor, probes: Mapping[str, Tensor] | None = None
) -> list[dict[str, Tensor]]:
    """y [T, B, C, ...], h and c [B, C, ...] of each layer, for frames [T, B, Cin, ...] and the probes by name."""
    made: list[dict[str, Tensor]] = []
    for number, layer in enumerate(layers):
        seen = [made[n]["y"] for n in layer.sees]
        x = frames if not seen else seen[0] if len(seen) == 1 else torch.cat(seen, 2)
        state = None if layer.start is None else (made[layer.start]["h"], made[layer.start]["c"])
        probe = (probes or {}).get(probe_name(number, layer))
        y, h, c = conv_lstm(layer.recipe, module.get_submodule(layer.cell), x, state, layer.reverse, probe)
        made.append({name: t.to(frames.dtype) for name, t in (("y", y), ("h", h), ("c", c))})
    return made


def settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The plain attributes of a module that its forward may depend on."""
    return tuple((n, v) for n, v in vars(module).items() if n not in OF_EVERY_MODULE and isinstance(v, SIMPLE))


# ------------------------------------------------------------------------------------------------- the recording
@dataclass(eq=False)
class Call:
    """One call of a cell."""

    cell: str
    x: Tensor
    state: tuple[Tensor, Tensor] | None
    h: Tensor
    c: Tensor


@dataclass(eq=False)
class Recording:
    """A cell's plan that writes each call down."""

    plan: CellPlan
    cell: str
    calls: list[Call]

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the plan's; Refused for a call that the plan does not take."""
        bound = self.plan.arguments.bind(args, kwargs)
        output = self.plan.run(module, args, kwargs)
        if bound is None or output is None:
            raise Refused(f"{self.cell} is called in a way that its fused step does not take", DEPTH)
        x, h, c = bound
        state = self.plan.state_of(output)
        self.calls.append(Call(self.cell, x, None if h is None else (h, c), *state))
        return output


def record(twin: nn.Module) -> list[Call]:
    """Make the twin's cells write their calls into the list that is returned."""
    calls: list[Call] = []
    for name, cell in twin.named_modules():
        plan = cell.__dict__.get(PLAN)
        if isinstance(plan, CellPlan):
            cell.__dict__[PLAN] = Recording(plan, name, calls)
        elif plan is not None:
            raise Refused(f"{name} is a fused sequence itself", 0)
    return calls


# ------------------------------------------------------------------------------------------------ the explanation
def explain(calls: list[Call], frames: Tensor, plans: dict[str, CellPlan]) -> tuple[Layer, ...]:
    """The layers that make these calls for frames [T, B, Cin, ...]. Raises Refused with what stays unexplained."""
    by_cell: dict[str, list[Call]] = {}
    for call in calls:
        by_cell.setdefault(call.cell, []).append(call)
    layers: list[Layer] = []
    ys: list[Tensor] = []
    lasts: list[Call] = []
    for cell, own in by_cell.items():
        if len(own) != len(frames):
            raise Refused(f"{cell} is called {len(own)} times for {len(frames)} frames", DEPTH)
        sees, reverse = _seen(cell, [call.x for call in own], frames, ys)
        layers.append(Layer(cell, plans[cell].recipe, sees, _start(cell, own, lasts), reverse))
        y = torch.stack([call.h for call in own])
        ys.append(y.flip(0) if reverse else y)
        lasts.append(own[-1])
    if not layers:
        raise Refused("its forward called none of its cells", 0)
    return tuple(layers)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def _seen(cell: str, xs: list[Tensor], frames: Tensor, ys: list[Tensor]) -> tuple[tuple[int, ...], bool]:
    """Which earlier layers' outputs (none: the frames) the inputs of a cell are, and whether in reverse."""
    if len({x.shape for x in xs}) == 1:
        seen = torch.stack(xs)
        choices = [((), frames), *(((n,), y) for n, y in enumerate(ys))]
        choices += [
            ((m, n), torch.cat([ys[m], ys[n]], 2))
            for m, n in combinations(range(len(ys)), 2)
            if ys[m].shape[:2] == ys[n].shape[:2] and ys[m].shape[3:] == ys[n].shape[3:]
        ]
        for sees, whole in choices:
            for reverse in (False, True):
                if _same(seen, whole.flip(0) if reverse else whole):
                    return sees, reverse
    raise Refused(f"{cell} sees neither the frames nor the outputs of other cells, step by step", DEPTH)


def _start(cell: str, own: list[Call], lasts: list[Call]) -> int | None:
    """The layer from whose last state a cell starts; None for zeros."""
    for before, call in pairwise(own):
        if call.state is None or not (_same(call.state[0], before.h) and _same(call.state[1], before.c)):
            raise Refused(f"{cell} is not given the state that its last step returned", DEPTH)
    first = own[0].state
    if first is None or not any(bool(s.any()) for s in first):
        return None
    for n, last in enumerate(lasts):
        if _same(first[0], last.h) and _same(first[1], last.c):
            return n
    raise Refused(f"{cell} starts from a state that is neither zero nor another cell's last", DEPTH)


def describe(tree: Any, made: list[dict[str, Tensor]]) -> Any:
    """The output with, in place of each tensor, a Leaf with the set of places that it may be."""
    if isinstance(tree, (tuple, list)) and tree and all(isinstance(leaf, Tensor) for leaf in tree):
        for layer, result in enumerate(made):
            if len(tree) == len(result["y"]) and all(_same(a, b) for a, b in zip(tree, result["y"], strict=True)):
                return Leaf({Place("steps", (layer,))})
    if isinstance(tree, dict):
        return type(tree)((key, describe(child, made)) for key, child in tree.items())
    if isinstance(tree, (tuple, list)):
        children = [describe(child, made) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    if not isinstance(tree, Tensor):
        return tree
    return Leaf({place for place in places(len(made)) if _fits(tree, place, made)})


def _fits(tensor: Tensor, place: Place, made: list[dict[str, Tensor]]) -> bool:
    try:
        return _same(tensor, place.of(made))
    except RuntimeError:  # layers of different sizes do not stack
        return False


def merge(a: Any, b: Any) -> Any:
    """Two descriptions of one module's outputs as one. Raises Refused where they have nothing in common."""
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        common = a.value & b.value
        if not common:
            raise Refused("an output is neither a sequence nor a last state of its cells", DEPTH)
        order = list(places(1 + max(max(place.layers) for place in common)))
        return Leaf(min(common, key=lambda place: order.index(place) if place in order else -1))
    if type(a) is not type(b):
        raise Refused("its output changes its form with the number of frames", DEPTH)
    if isinstance(a, dict) and list(a) == list(b):
        return type(a)((key, merge(a[key], b[key])) for key in a)
    if isinstance(a, (tuple, list)) and len(a) == len(b):
        children = [merge(p, q) for p, q in zip(a, b, strict=True)]
        return type(a)(*children) if hasattr(a, "_fields") else type(a)(children)
    if not isinstance(a, (dict, tuple, list)) and a == b:
        return a
    raise Refused("its output changes its form with the number of frames", DEPTH)
