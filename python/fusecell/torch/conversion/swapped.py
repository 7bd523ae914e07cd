"""A module's forward, swapped: its class becomes a subclass of its own, which asks a plan first.

A subclass and not an attribute `forward`: so the module is what the plan is given, in copies, in DataParallel's
replicas and under torch.compile alike. `copy.deepcopy` and `pickle` see the original class and the plan.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

from torch import nn

from .trace import Refused

PLAN = "_fusecell"


class Plan(Protocol):
    """How to compute a forward; `run` gives None for a call that the original forward must take."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of module.forward(*args, **kwargs), or None."""


class Sure:
    """A plan that must take every call: a proof by a copy that computes as ever would be none."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the plan's; Refused where that gives None."""
        output = self.plan.run(module, args, kwargs)
        if output is None:
            raise Refused("its fused form does not take the call: it keeps what it needs from an earlier one", 10)
        return output


@functools.cache
def swapped_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `original`, of the same name, whose forward is its instance's plan."""

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = self.__dict__[PLAN].run(self, args, kwargs)
        return original.forward(self, *args, **kwargs) if output is None else output

    def reduce(self: nn.Module, protocol: Any) -> Any:
        get: Any = getattr(self, "__getstate__", None)  # every object has one since Python 3.11
        state = get() if get else self.__dict__
        return _blank, (original,), state

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (original,), {**names, "forward": forward, "__reduce_ex__": reduce})


def _blank(original: type[nn.Module]) -> nn.Module:
    fused: type[nn.Module] = swapped_class(original)  # type: ignore[arg-type] # mypy doubts that classes are hashable
    return nn.Module.__new__(fused)


def swap(module: nn.Module, plan: Plan) -> None:
    """From now on `module` computes its forward by `plan`."""
    if not is_swapped(module):
        module.__class__ = swapped_class(type(module))  # type: ignore[arg-type]
    module.__dict__[PLAN] = plan


def unswap(module: nn.Module) -> None:
    """Give a swapped module its own forward back."""
    del module.__dict__[PLAN]
    module.__class__ = type(module).__mro__[1]


def is_swapped(module: nn.Module) -> bool:
    """Whether `module` computes by a plan."""
    return PLAN in module.__dict__
