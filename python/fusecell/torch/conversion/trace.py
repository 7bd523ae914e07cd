"""Running a copy of a module on random numbers and writing down what it does; the module itself is left alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
OTHER_CONVOLUTIONS = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
NORMS = {"batch_norm", "group_norm", "layer_norm", "instance_norm", "local_response_norm", "rms_norm"}
DROPOUTS = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
}


class Refused(Exception):
    """Why a module is not converted. `depth`: how far it got; the reason of the deepest attempt is the one reported."""

    def __init__(self, reason: str, depth: int = 0) -> None:
        super().__init__(reason)
        self.depth = depth


Result = TypeVar("Result")


def first_success(attempts: Iterable[Callable[[], Result]], otherwise: str, depth: int = 0) -> Result:
    """What the first attempt gives that is not refused. Raises the deepest refusal, or `otherwise`."""
    deepest = Refused(otherwise, depth)
    for attempt in attempts:
        try:
            return attempt()
        except Refused as reason:
            if reason.depth > deepest.depth:
                deepest = reason
    raise deepest


# --------------------------------------------------------------------------------------------------- copies
def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All tensors of a module by path: parameters, buffers, and plain attributes."""
    found: dict[str, Tensor] = {}
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        plain = {name: value for name, value in vars(child).items() if isinstance(value, Tensor)}
        for name, value in {**child._parameters, **child._buffers, **plain}.items():
            if value is not None:
                found[prefix + name] = value
    return found


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors that autograd made are detached, which a deep copy cannot do."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(module).values():
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # locks, generators, files: a stranger's module may hold anything
        raise Refused(f"it cannot be copied: {error}", 1) from None


def without_hooks(module: nn.Module) -> nn.Module:
    """The module, less the hooks of others than torch: a stranger's hook may write anywhere."""
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks, child._backward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not (getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch."):
                    del hooks[key]
    return module


def sandbox(module: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in float64, each floating tensor of it random: a peephole that is 0 tells nothing of its place."""
    twin = without_hooks(duplicate(module)).double().train()  # in evaluation a dropout could not be seen
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, Tensor] = {}
    for path, tensor in named_tensors(twin).items():
        if not tensor.is_floating_point():
            continue
        parent, _, name = path.rpartition(".")
        holder = twin.get_submodule(parent)
        if id(tensor) not in seen:
            value = _random_like(tensor, name in holder._buffers, generator)
            if isinstance(tensor, nn.Parameter):
                tensor.data = value
                tensor.requires_grad_()
                value = tensor
            seen[id(tensor)] = value
        if not isinstance(tensor, nn.Parameter):
            target = holder._buffers if name in holder._buffers else vars(holder)
            target[name] = seen[id(tensor)]
    twin.zero_grad(set_to_none=True)
    return twin


def _random_like(tensor: Tensor, buffer: bool, generator: torch.Generator) -> Tensor:
    values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    fan_in = tensor[0].numel() if tensor.dim() > 2 else 4
    bound: float = (6.0 / max(fan_in, 6)) ** 0.5
    # A buffer is made positive: it may be a variance.
    values = 0.3 + 0.6 * values if buffer else (2.0 * values - 1.0) * bound
    return values.to(tensor.device).requires_grad_()


@contextmanager
def no_new_tensors(module: nn.Module) -> Iterator[None]:
    """Raises Refused if a first forward makes peepholes: being zero, they tell nothing of their place."""
    before = set(named_tensors(module))
    yield
    if made := sorted(set(named_tensors(module)) - before):
        raise Refused(f"its first forward makes {', '.join(made)}: expected them before, or an example", 8)


def random_tensor(*shape: int, seed: int, device: Any = None) -> Tensor:
    """Normal numbers in float64, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


@contextmanager
def undisturbed(dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Leaves the random states of torch, NumPy and Python, and torch's default dtype, as they were; `dtype` within."""
    # The legacy generator is the one that strangers' modules draw from.
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state, default = random.getstate(), torch.get_default_dtype()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


# ------------------------------------------------------------------------------------------------ recording
@dataclass(eq=False)
class Convolution:
    """One call of a convolution: what it was given, and its output, cut off from what came before."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # before, after, for each axis
    dilation: tuple[int, ...]
    groups: int
    output: Tensor


@dataclass
class Trace:
    """What a run called."""

    convolutions: list[Convolution] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    dropouts: list[str] = field(default_factory=list)
    transposed: bool = False
    between: list[list[Tensor]] = field(default_factory=list)  # all tensors made between one convolution and the next


class Recorder(TorchFunctionMode):
    """Writes the calls of convolutions, norms and dropouts into a trace."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.trace = Trace()
        self.cut = cut  # make the convolutions' outputs leaves of the graph

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called in place of each of torch's functions."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in NORMS:
            self.trace.norms.append(name)
        if name in DROPOUTS and dropout_rate(args, kwargs) > 0.0:
            self.trace.dropouts.append(name)
        if func in OTHER_CONVOLUTIONS:
            self.trace.transposed = True
        output = func(*args, **kwargs)
        if func in CONVOLUTIONS:
            if self.cut:
                output = output.detach().requires_grad_()
            self.trace.convolutions.append(_convolution(output, *args, **kwargs))
            self.trace.between.append([])
        elif self.trace.between:
            made = output if isinstance(output, (tuple, list)) else (output,)
            self.trace.between[-1] += [t for t in made if isinstance(t, Tensor)]
        return output


def dropout_rate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The p of a call of a dropout."""
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    return float(rate)


def _convolution(
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Convolution:
    axes = weight.dim() - 2
    stride, dilation = (_per_axis(v, axes) for v in (stride, dilation))
    reach = tuple(d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    if padding == "same":
        sides = tuple((r // 2, r - r // 2) for r in reach)
    elif padding == "valid":
        sides = ((0, 0),) * axes
    else:
        sides = tuple((p, p) for p in _per_axis(padding, axes))
    return Convolution(input, weight, bias, stride, sides, dilation, groups, output)


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) * (axes if len(value) == 1 else 1)
