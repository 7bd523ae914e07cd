"""`to_plain`: the way back from fusecell, to stock torch operators."""

from __future__ import annotations

from torch import nn

from .. import plain
from .swapped import is_swapped, unswap
from .trace import duplicate

MODULES = "fusecell.torch.modules"


def to_plain(model: nn.Module) -> nn.Module:
    """A deep copy of `model` that computes without fusecell: for torch.export, torch.jit.trace, or to be passed on.

    Converted modules have their own forward again; fusecell's modules become their twins in `fusecell.torch.plain`,
    with the same parameters and state_dict keys. Raises TypeError for a subclass of fusecell's modules, whose code
    may need more of fusecell than the twin has.
    """
    copied = duplicate(model)
    for name, module in copied.named_modules():
        if is_swapped(module):
            unswap(module)
        elif type(module).__module__ == MODULES:
            module.__class__ = getattr(plain, type(module).__name__)
        elif any(base.__module__ == MODULES for base in type(module).__mro__):
            raise TypeError(
                f"{name or 'model'}: expected fusecell's own class, got its subclass {type(module).__name__}"
            )
    return copied
