"""Calling conventions: where x and the state stand in a forward's arguments, and what its output is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Arguments:
    """forward(x, (h, c)), forward(x, h, c), forward(state, x) and their like."""

    names: tuple[str, ...]  # forward's positional parameters
    x: str
    state: tuple[str, ...]  # the one that holds both, as a tuple or list, or the two
    as_list: bool = False
    h_first: bool = True

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any] | None:
        """(x, h, c) of a call, h and c None if no state is given; None for a call of another form."""
        given = dict(zip(self.names, args, strict=False))
        given.update(kwargs)
        x = given.pop(self.x, None)
        parts = [given.pop(name, None) for name in self.state]
        if given or len(args) > len(self.names) or not isinstance(x, Tensor):
            return None
        pair = parts if len(parts) == 2 else parts[0]
        if pair is None or (len(parts) == 2 and parts[0] is None and parts[1] is None):
            return x, None, None
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(s, Tensor) for s in pair):
            return None
        return (x, pair[0], pair[1]) if self.h_first else (x, pair[1], pair[0])

    def arrange(self, x: Tensor, h: Tensor | None, c: Tensor | None) -> dict[str, Any]:
        """The keyword arguments of a call; without a state, only x."""
        if h is None or c is None:
            return {self.x: x}
        pair = (h, c) if self.h_first else (c, h)
        if len(self.state) == 2:
            return {self.x: x, **dict(zip(self.state, pair, strict=True))}
        return {self.x: x, self.state[0]: list(pair) if self.as_list else pair}


def positional(forward: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a forward that may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(forward).parameters.values() if p.kind in kinds]


def conventions(module: nn.Module) -> Iterator[Arguments]:
    """The ways in which a forward may want x and the state, likeliest first."""
    parameters = positional(module.forward)
    names = tuple(p.name for p in parameters)
    required = {p.name for p in parameters if p.default is inspect.Parameter.empty}
    for x in range(len(names)):
        others = [n for n in range(len(names)) if n != x]
        for s in others:
            if required <= {names[x], names[s]}:
                yield Arguments(names, names[x], (names[s],))
                yield Arguments(names, names[x], (names[s],), as_list=True)
        for s in others:
            for t in others:
                if s < t and required <= {names[x], names[s], names[t]}:
                    yield Arguments(names, names[x], (names[s], names[t]))


@dataclass(frozen=True)
class Leaf:
    """A place in an output, and what stands there."""

    value: Any


def leaves(tree: Any) -> list[Any]:
    """What stands in nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    if isinstance(tree, (tuple, list)):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def rebuild(tree: Any, replace: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, named tuples, lists and dicts, with each leaf replaced."""
    if isinstance(tree, dict):
        return type(tree)((key, rebuild(child, replace)) for key, child in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[rebuild(child, replace) for child in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([rebuild(child, replace) for child in tree])
    return replace(tree)
