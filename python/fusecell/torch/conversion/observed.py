"""What can be learnt of a model by looking at it, and by running a copy of it once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .calls import leaves
from .cells import sizes
from .trace import duplicate, random_tensor, undisturbed, without_hooks

Shapes = dict[str, tuple[int, ...]]


def observe(model: nn.Module, example: tuple[Any, ...]) -> tuple[nn.Module, Shapes]:
    """A copy of the model that has run once, and the shapes of the first tensor that each of its modules was given."""
    copied = without_hooks(duplicate(model)).eval()
    shapes: Shapes = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
            if tensors:
                shapes.setdefault(name, tuple(tensors[0].shape))

        return hook

    handles = [m.register_forward_pre_hook(watch(n), with_kwargs=True) for n, m in copied.named_modules()]
    with undisturbed(torch.get_default_dtype()), torch.no_grad():
        copied(*example)
    for handle in handles:
        handle.remove()
    return copied, shapes


def guesses(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Copies of a submodule that has run, itself or its parents, on frames or an image, and the shape it was given.

    Some make their peepholes in a first forward, their own or that of the module around them.
    """
    parts = name.split(".") if name else []
    parents = [n for n in range(len(parts) + 1) if not is_torchs_own(model.get_submodule(".".join(parts[:n])))]
    for parent, inner in ((model.get_submodule(".".join(parts[:n])), ".".join(parts[n:])) for n in parents[:-4:-1]):
        tensor = next(iter(parent.parameters()), None)
        if tensor is None:
            continue
        for inputs, leading in product(dict.fromkeys(size.inputs for size in sizes(parent)), ((2, 3), (2,))):
            x = random_tensor(*leading, inputs, 6, 5, seed=70, device=tensor.device).to(tensor.dtype)
            try:
                copied, shapes = observe(parent, (x,))
            except Exception:  # a stranger's code may raise anything
                continue
            if inner in shapes:
                yield copied.get_submodule(inner), shapes[inner]


def is_torchs_own(module: nn.Module) -> bool:
    """Whether the class is torch's, as containers and layers are."""
    return type(module).__module__.startswith("torch.")


def looks_like_one(module: nn.Module) -> bool:
    """Whether a module's name, or the words of its forward, are those of an LSTM: a reason to say why it is kept."""
    if "lstm" in type(module).__name__.lower():
        return True
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and {"sigmoid", "tanh"} <= _words(code)


def takes_a_dict(module: nn.Module) -> bool:
    """Whether a module's forward has the words of an LSTM whose state is a dict."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "sigmoid" not in _words(code):
        return False
    return any(keys <= set(code.co_consts) for keys in ({"cell", "hidden"}, {"c", "h"}))


def _words(code: CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*(_words(c) for c in inner))
