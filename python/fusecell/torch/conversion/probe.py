"""The decisive test: a converted copy against an untouched one, over steps, sizes and modes, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Arguments, Leaf, leaves
from .swapped import Plan, swap
from .trace import Refused, random_tensor, sandbox

STEPS = 3
TOLERANCE = {
    "outputs": 1e-9,
    "gradients": 1e-6,
}  # torch's derivative of hardsigmoid is right to 3e-8 only, in float64 too
DEPTH = 10


def difference(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The largest difference between two flat outputs, relative to values above 1; inf if they are not alike."""
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for p, q in zip(a, b, strict=True):
        if isinstance(p, Tensor) != isinstance(q, Tensor):
            return float("inf")
        if not isinstance(p, Tensor):
            worst = max(worst, 0.0 if p == q else float("inf"))
        elif p.shape != q.shape or p.dtype != q.dtype:
            return float("inf")
        elif p.numel():
            gap = float(((p - q).abs() / p.abs().clamp(min=1.0)).detach().max())
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def twins(module: nn.Module, plan: Plan, seed: int = 5) -> tuple[nn.Module, nn.Module]:
    """Two copies with the same random values; the second computes by the plan."""
    original, converted = sandbox(module, seed), sandbox(module, seed)
    swap(converted, plan)
    return original, converted


Run = Callable[[nn.Module], tuple[list[Any], list[Tensor]]]
"""A run of a module: its outputs, flat, and the inputs whose gradients count."""


def agree(original: nn.Module, converted: nn.Module, run: Run) -> None:
    """Outputs and gradients of `run` on both, in training and in evaluation. Raises Refused with the difference."""
    kept: dict[str, Any] = {}
    for training in (True, False):
        results = []
        for module in (original, converted):
            torch.manual_seed(3)
            results.append(_outputs_and_gradients(module.train(training), run))
        mode = "training" if training else "evaluation"
        for what, a, b in zip(("outputs", "gradients"), *results, strict=True):
            gap = difference(a, b)
            if not gap <= TOLERANCE[what]:
                raise Refused(f"the probe disagrees: {what} differ by {gap:.3g} in {mode} mode", DEPTH)
        before, kept = kept, _kept_tensors(original)
        written = [name for name in kept if kept[name] is not before.get(name)]
        if written and not training:  # the first run may make peepholes, the second may not replace them
            raise Refused(f"its forward keeps tensors in {', '.join(written)}, as a fused one would not", DEPTH)


def _kept_tensors(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that hold tensors."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if not name.startswith("_") and any(isinstance(leaf, Tensor) for leaf in leaves(value))
    }


def _outputs_and_gradients(module: nn.Module, run: Run) -> tuple[list[Any], list[Tensor]]:
    outputs, inputs = run(module)
    made = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
    loss = sum((random_tensor(*y.shape, seed=20 + n, device=y.device) * y).sum() for n, y in enumerate(made))
    wanted = [*module.parameters(), *inputs]
    if not isinstance(loss, Tensor):
        return outputs, []
    return outputs, list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))


def steps(arguments: Arguments, output: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Run:
    """A run of a cell over a few steps, each state fed back; shapes: those of x and of the state."""
    places = leaves(output)

    def run(module: nn.Module) -> tuple[list[Any], list[Tensor]]:
        device = next((p.device for p in module.parameters()), None)
        frames = [random_tensor(*shapes[0], seed=30 + t, device=device).requires_grad_() for t in range(STEPS)]
        h, c = (random_tensor(*shapes[1], seed=s, device=device).requires_grad_() for s in (40, 41))
        inputs, outputs = [*frames, h, c], []
        for x in frames:
            made = leaves(module.forward(**arguments.arrange(x, h, c)))
            outputs += made
            state = {p.value: y for p, y in zip(places, made, strict=True) if isinstance(p, Leaf)}
            h, c = state["h"], state["c"]
        return outputs, inputs

    return run


def starts_at_zero(original: nn.Module, converted: nn.Module, arguments: Arguments, x_shape: tuple[int, ...]) -> bool:
    """Whether a call without a state is one that starts from zeros."""
    device = next((p.device for p in original.parameters()), None)
    x = random_tensor(*x_shape, seed=50, device=device)
    try:
        output = leaves(original.forward(**arguments.arrange(x, None, None)))
    except Exception:  # it wants a state, or has one of its own making that does not fit
        return False
    return difference(output, leaves(converted.forward(**arguments.arrange(x, None, None)))) <= TOLERANCE["outputs"]
