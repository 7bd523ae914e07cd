"""Memory that nobody wrote, made to show itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

_MAKERS = ("empty", "empty_like")
_depth = 0  # of contexts that are entered


@contextmanager
def poisoned(*modules: ModuleType, value: float = float("nan")) -> Iterator[None]:
    """Within it `empty` and `empty_like` hand out memory full of `value`: what is read before it is written shows.

        with health.poisoned():
            loss, gradients = step(x)  # NaN wherever a sum began in memory from np.empty

    NumPy's two functions are replaced, and those of the modules given: CuPy, or a script that has them by name
    (`from numpy import empty` before this was entered). Floating and complex arrays are filled with `value`, integers
    and bool with the largest they hold; arrays of other kinds come as they are. `ndarray`, and what NumPy makes
    inside, is not touched. A finite value stands for what earlier work has left in memory.

    On leaving, by an exception too, each module gets back what it had; contexts may be nested, the innermost counts.
    The functions are replaced for the whole process: other threads meet the poison too, and contexts that overlap in
    two threads without nesting restore each other's functions.

    fusecell's buffers come from the same `empty` and are poisoned too where they are NumPy's. The environment variable
    FUSECELL_POISON=1 does that from the start of a process for all of fusecell's outputs and scratch memory, CuPy's
    and torch's among them, and for nobody else's.

    Raises TypeError for what is not a module, ValueError for a module that has neither function, and for torch.
    """
    global _depth
    replaced = [(module, name, getattr(module, name)) for module in (np, *modules) for name in _makers(module)]
    try:
        _depth += 1
        for module, name, make in replaced:
            setattr(module, name, _filling(make, value))
        yield
    finally:
        _depth -= 1
        for module, name, make in replaced:
            setattr(module, name, make)


def is_poisoned() -> bool:
    """Whether this is within `poisoned`."""
    return _depth > 0


def _makers(module: ModuleType) -> list[str]:
    if not isinstance(module, ModuleType):
        raise TypeError(f"modules: expected modules, as cupy, got {type(module).__name__}")
    found = [name for name in _MAKERS if hasattr(module, name)]
    if not found:
        raise ValueError(f"modules: expected one that has empty or empty_like, got {module.__name__}")
    if module.__name__ == "torch":
        raise ValueError(
            "modules: expected one of NumPy's kind, got torch: torch.use_deterministic_algorithms(True) makes it fill "
            "what empty hands out"
        )
    return found


def _filling(make: Callable[..., Any], value: float) -> Callable[..., Any]:
    def make_and_fill(*args: Any, **options: Any) -> Any:
        array = make(*args, **options)
        if array.dtype.kind in "fc" or array.dtype.name == "bfloat16":
            array.fill(value)
        elif array.dtype.kind in "iu":
            array.fill(np.iinfo(array.dtype).max)
        elif array.dtype.kind == "b":
            array.fill(True)
        return array

    return make_and_fill
