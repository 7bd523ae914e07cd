"""The decisive test: a converted copy against an untouched one, over steps, sizes and modes, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Arguments, Leaf, leaves
from .swapped import Plan, Sure, swap
from .trace import Refused, random_tensor, sandbox, undisturbed

STEPS = 3
TOLERANCE = {
    "outputs": 1e-9,
    "gradients": 1e-6,
}  # torch's derivative of hardsigmoid is right to 3e-8 only, in float64 too
DEPTH = 10
LONG = 37  # frames: a loop may do something else at every 8th, or after the 30th
LOUD = 30.0  # numbers beyond the corners that a forward may have: a clamp of the state, a clipped gradient


def difference(a: Sequence[Any], b: Sequence[Any], of_largest: bool = False) -> float:
    """The largest difference between two flat outputs, relative to values above 1; inf if they are not alike.

    of_largest: relative to a tensor's largest value instead, as it is meant for numbers that grew over many steps.
    """
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
            size = p.abs().max() if of_largest else p.abs()
            gap = float(((p - q).abs() / size.clamp(min=1.0)).detach().max())
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def twins(module: nn.Module, plan: Plan, seed: int = 5) -> tuple[nn.Module, nn.Module]:
    """Two copies with the same random values; the second computes by the plan."""
    original, converted = sandbox(module, seed), sandbox(module, seed)
    swap(converted, Sure(plan))
    return original, converted


Run = Callable[[nn.Module], tuple[list[Any], list[Tensor]]]
"""A run of a module: its outputs, flat, and the inputs whose gradients count."""


def agree(original: nn.Module, converted: nn.Module, run: Run, where: str = "", of_largest: bool = False) -> None:
    """Outputs and gradients of `run` on both, in training and in evaluation. Raises Refused with the difference.

    where: what is special about the run, for the reason; of_largest: as `difference`'s.
    """
    kept: dict[str, Any] = {}
    for training in (True, False):
        results = []
        for module in (original, converted):
            torch.manual_seed(3)
            try:
                results.append(_outputs_and_gradients(module.train(training), run))
            except Refused:
                raise
            except Exception as error:  # a stranger's code may raise anything
                who = "its forward" if module is original else "a converted copy"
                raise Refused(f"{who} raised {type(error).__name__}{where}: {error}", DEPTH) from None
        mode = "training" if training else "evaluation"
        for what, a, b in zip(("outputs", "gradients"), *results, strict=True):
            gap = difference(a, b, of_largest)
            if not gap <= TOLERANCE[what]:
                raise Refused(f"the probe disagrees: {what} differ by {gap:.3g} in {mode} mode{where}", DEPTH)
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


def loud(numbers: Tensor, batch: int) -> Tensor:
    """The numbers times LOUD, and the last sample's zero: as an empty frame's."""
    kept = torch.arange(numbers.shape[batch], device=numbers.device) < max(1, numbers.shape[batch] - 1)
    shape = [-1 if axis == batch else 1 for axis in range(numbers.dim())]
    return LOUD * numbers * kept.view(shape)


def steps(
    arguments: Arguments, output: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], amplified: bool = False
) -> Run:
    """A run of a cell over a few steps, each state fed back; shapes: those of x and of the state."""
    places = leaves(output)

    def run(module: nn.Module) -> tuple[list[Any], list[Tensor]]:
        device = next((p.device for p in module.parameters()), None)
        frames = [random_tensor(*shapes[0], seed=30 + t, device=device) for t in range(STEPS)]
        h, c = (random_tensor(*shapes[1], seed=s, device=device) for s in (40, 41))
        if amplified:
            frames, h, c = [loud(x, 0) for x in frames], LOUD * h, LOUD * c
        for tensor in (*frames, h, c):
            tensor.requires_grad_()
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
    gaps = []
    for absent in ({}, dict.fromkeys(arguments.state)):
        given = {arguments.x: x, **absent}
        try:
            output = leaves(original.forward(**given))
        except Exception:  # it wants a state, or has one of its own making that does not fit
            continue
        gaps.append(difference(output, leaves(converted.forward(**given))))
    return bool(gaps) and max(gaps) <= TOLERANCE["outputs"]


def confirm(module: nn.Module, plan: Plan, run: Run) -> None:
    """Raises Refused, as from a call that failed, unless the outputs of two copies agree."""
    with undisturbed(), torch.no_grad():
        try:
            a, b = (run(twin)[0] for twin in twins(module, plan))
        except Exception as error:  # a stranger's code may raise anything
            raise Refused(f"the example's size is another matter: {error}", 0) from None
    if not difference(a, b) <= TOLERANCE["outputs"]:
        raise Refused("the probe disagrees at the example's size", 0)
