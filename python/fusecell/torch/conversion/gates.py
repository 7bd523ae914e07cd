"""Which rows of which tensor belong to which gate: read off the derivatives, then checked against the formula.

The convolutions' outputs are leaves of the graph. Rows that are added before an activation have the same derivative;
a bias has the sum of its gate's, a peephole that sum weighted by the cell state that it looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .. import plain
from .geometry import Source
from .trace import Refused, random_tensor

DEPTH = 4
TOLERANCE = 1e-9
SIGMA = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2")
PHI = ("tanh", "relu", "hard_tanh", "softsign", "identity", "leaky_relu")


@dataclass(frozen=True)
class Rows:
    """C rows of a tensor: from `start`, every `step`-th."""

    start: int
    step: int


@dataclass(eq=False)
class Gate:
    """What is added up before one activation."""

    value: Tensor  # [B, C, ...]: the sum, without peepholes
    derivative: Tensor  # of the probe's loss
    feeds_c: bool  # whether the new cell state depends on it
    rows: list[tuple[Source, Rows]]
    biases: list[tuple[str, Rows]] = field(default_factory=list)
    peepholes: list[tuple[str, Rows]] = field(default_factory=list)


@dataclass(frozen=True)
class Formula:
    """The cell that explains h and c: its gates in the order i, f, g, o."""

    gates: tuple[Gate, Gate, Gate, Gate]
    forget: float  # the constant that forward adds to the forget gate
    recurrent_activation: str
    activation: str
    slope: float


@dataclass(frozen=True)
class Step:
    """One recorded step: the state before and after, and the module's tensors by name."""

    c: Tensor
    new_h: Tensor
    new_c: Tensor
    found: list[Source]
    tensors: dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------- the rows
def _loss(step: Step, by_channel: bool) -> Tensor:
    """A random sum of h and c; by_channel weights each channel by its number, counted from 1."""
    shape = (step.c.shape[0], 1, *step.c.shape[2:])
    number = torch.arange(1, step.c.shape[1] + 1, device=step.c.device).view(-1, *[1] * (step.c.dim() - 2))
    both = sum(
        random_tensor(*shape, seed=seed, device=step.c.device) * state
        for seed, state in ((11, step.new_h), (12, step.new_c))
    )
    total: Tensor = (both * number if by_channel else both).sum()
    return total


def _gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    if not of or not loss.requires_grad:
        return [torch.zeros_like(t) for t in of]
    return list(torch.autograd.grad(loss, of, retain_graph=True, materialize_grads=True, allow_unused=True))


def _slots(source: Source, once: Tensor, numbered: Tensor, channels: int) -> list[Rows]:
    """The rows of one convolution, gate by gate: a row belongs to the channel by which its derivative grows."""
    rows_of: dict[int, list[int]] = {}
    for row in range(once.shape[1]):
        a, b = once[:, row].flatten(), numbered[:, row].flatten()
        used = a.abs() > 1e-12
        if not used.any():
            raise Refused(f"{source.weight}: the module's output does not depend on row {row}", DEPTH)
        ratio = (b[used] / a[used]).median()
        channel = int(ratio.round()) - 1
        if not 0 <= channel < channels or not torch.allclose(b, a * (channel + 1), rtol=1e-6, atol=1e-9):
            raise Refused(f"{source.weight}: its outputs are not used pixel by pixel and channel by channel", DEPTH)
        rows_of.setdefault(channel, []).append(row)
    counts = {len(rows) for rows in rows_of.values()}
    if len(rows_of) != channels or len(counts) != 1:
        raise Refused(
            f"{source.weight}: {once.shape[1]} rows that are not the same gates of {channels} channels", DEPTH
        )
    return [_regular(source, [rows_of[c][slot] for c in range(channels)]) for slot in range(counts.pop())]


def _regular(source: Source, rows: list[int]) -> Rows:
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step < 1 or any(row != rows[0] + n * step for n, row in enumerate(rows)):
        raise Refused(f"{source.weight}: the rows of a gate stand in no regular order", DEPTH)
    return Rows(rows[0], step)


def gates_of(step: Step) -> list[Gate]:
    """The sums before the activations, in any order. Raises Refused."""
    channels = step.c.shape[1]
    outputs = [source.call.output for source in step.found]
    once, numbered = (_gradients(_loss(step, by_channel), outputs) for by_channel in (False, True))
    through_c = _gradients(step.new_c.sum(), outputs)
    gates: list[Gate] = []
    for source, a, b, via_c in zip(step.found, once, numbered, through_c, strict=True):
        if not (a != 0).any():  # computed and never used
            continue
        if a.shape[2:] != step.c.shape[2:]:
            raise Refused(f"{source.weight}: its output {tuple(a.shape[2:])} is not of the state's size", DEPTH)
        for rows in _slots(source, a, b, channels):
            at = slice(rows.start, rows.start + rows.step * channels, rows.step)
            derivative, value = a[:, at], source.call.output.detach()[:, at]
            same = [g for g in gates if torch.allclose(g.derivative, derivative, rtol=1e-9, atol=1e-13)]
            if same:
                same[0].value = same[0].value + value
                same[0].rows.append((source, rows))
            else:
                gates.append(Gate(value, derivative, bool((via_c[:, at] != 0).any()), [(source, rows)]))
    if len(gates) != 4:
        raise Refused(f"{len(gates)} gates, expected 4", DEPTH)
    return gates


# ------------------------------------------------------------------------------------------ biases, peepholes
def place_vectors(step: Step, gates: list[Gate]) -> None:
    """Find the gate of every other tensor that the step reads: a bias, or a peephole. Raises Refused."""
    convolved = {name for s in step.found for name in (s.weight, s.bias)}
    others = {n: t for n, t in step.tensors.items() if n not in convolved and t.requires_grad}
    loss, tensors = _loss(step, False), list(others.values())
    direct = _gradients(loss, tensors)
    if step.c.requires_grad:  # in a loop: what the step before contributed does not count
        (of_c,) = _gradients(loss, [step.c])
        earlier = _gradients((of_c * step.c).sum(), tensors)
        direct = [a - b for a, b in zip(direct, earlier, strict=True)]
    for (name, tensor), gradient in zip(others.items(), direct, strict=True):
        if gradient.abs().max() > 1e-12:
            _place(name, tensor, gradient, step, gates)
    for gate in gates:
        for name, rows in gate.biases:
            gate.value = gate.value + _in_place(step.tensors[name].detach(), rows, step.c)


def _channels_first(tensor: Tensor, axes: int) -> Tensor:
    return tensor[0] if tensor.dim() == axes + 2 and tensor.shape[0] == 1 else tensor


def _in_place(tensor: Tensor, rows: Rows, like: Tensor) -> Tensor:
    """C rows of a bias or peephole, to be broadcast over `like` [B, C, ...]."""
    axes = like.dim() - 2
    block = _channels_first(tensor, axes)[rows.start : rows.start + rows.step * like.shape[1] : rows.step]
    return block.reshape(-1, *[1] * axes) if block.dim() == 1 else block


def _place(name: str, tensor: Tensor, gradient: Tensor, step: Step, gates: list[Gate]) -> None:
    axes, channels = step.c.dim() - 2, step.c.shape[1]
    pixels = step.c.shape[2:]
    per_row = _channels_first(gradient, axes)
    if per_row.dim() not in (1, axes + 1) or per_row.shape[0] % channels or (
        per_row.dim() > 1 and per_row.shape[1:] not in (pixels, (1,) * axes)
    ):  # fmt: skip
        raise Refused(f"{name} {tuple(tensor.shape)}: neither per channel nor per pixel of the state", DEPTH)
    count = per_row.shape[0] // channels
    blocked = [Rows(n * channels, 1) for n in range(count)]
    interleaved = [Rows(n, count) for n in range(count)]
    for slots in (blocked, interleaved):
        homes = [_home(_in_place(gradient, rows, step.c), step, gates) for rows in slots]
        if all(homes):
            for rows, home in zip(slots, homes, strict=True):
                gate, kind = home  # type: ignore[misc]
                (gate.biases if kind == "bias" else gate.peepholes).append((name, rows))
            return
    raise Refused(f"{name} enters the cell as neither a bias nor a peephole does", DEPTH + 1)


def _home(gradient: Tensor, step: Step, gates: list[Gate]) -> tuple[Gate, str] | None:
    """The gate that has this gradient as a bias's or a peephole's."""
    for gate in gates:
        sees = step.c if gate.feeds_c else step.new_c
        for kind, factor in (("bias", torch.ones_like(step.c)), ("peephole", sees.detach())):
            if torch.allclose((gate.derivative * factor).sum_to_size(gradient.shape), gradient, rtol=1e-8, atol=1e-11):
                return gate, kind
        if not gate.feeds_c:
            old = (gate.derivative * step.c.detach()).sum_to_size(gradient.shape)
            if torch.allclose(old, gradient, rtol=1e-8, atol=1e-11):
                raise Refused("the output gate's peephole looks at the old cell state, expected the new one", DEPTH + 2)
    return None


# ------------------------------------------------------------------------------------------------ the formula
def formula_of(step: Step, gates: list[Gate]) -> Formula:
    """The roles of the gates and the activations for which the formula gives the module's h and c. Raises Refused."""
    o = [gate for gate in gates if not gate.feeds_c]
    if len(o) != 1:
        raise Refused(f"{4 - len(o)} gates feed the cell state, expected 3", DEPTH)
    for i, f, g in permutations([gate for gate in gates if gate.feeds_c]):
        for sigma in SIGMA:
            for phi, slope, forget in _explanations_of_c(step, i, f, g, sigma):
                if g.peepholes:
                    raise Refused("a peephole on the candidate g, expected on i, f and o alone", DEPTH + 2)
                _check_h(step, o[0], sigma, phi, slope)
                return Formula((i, f, g, o[0]), forget, sigma, phi, slope)
    raise Refused("the new cell state is not f c + i g for any order of the gates and any known activations", DEPTH + 2)


def _sum(gate: Gate, step: Step, c: Tensor) -> Tensor:
    total = gate.value
    for name, rows in gate.peepholes:
        total = total + _in_place(step.tensors[name].detach(), rows, c) * c
    return total


def _agree(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _explanations_of_c(step: Step, i: Gate, f: Gate, g: Gate, sigma: str) -> Iterator[tuple[str, float, float]]:
    """(phi, slope, constant of the forget gate) that make the new cell state."""
    c, new_c = step.c.detach(), step.new_c.detach()
    gate_i, z_f, z_g = plain.sigma(_sum(i, step, c), sigma), _sum(f, step, c), _sum(g, step, c)
    for phi in PHI:
        slope = _slope((new_c - plain.sigma(z_f, sigma) * c) / gate_i, z_g) if phi == "leaky_relu" else 0.01
        if slope is None:
            continue
        new = gate_i * plain.phi(z_g, phi, slope)
        forget = _constant((new_c - new) / c, z_f, sigma)
        if forget is not None and _agree(plain.sigma(z_f + forget, sigma) * c + new, new_c):
            yield phi, slope, forget


def _slope(g: Tensor, z: Tensor) -> float | None:
    """The slope below zero that makes g of z; None if there is none."""
    below = z < 0
    slopes = g[below] / z[below]
    if slopes.numel() == 0 or not _agree(slopes, slopes[0].expand_as(slopes)):
        return None
    return round(float(slopes.median()), 10)


def _constant(f: Tensor, z: Tensor, sigma: str) -> float | None:
    """k with f = sigma(z + k), the same everywhere; None if there is none."""
    if _agree(f, plain.sigma(z, sigma)):
        return 0.0
    inside = (f > 1e-6) & (f < 1 - 1e-6)
    inverse: Any = {
        "sigmoid": torch.logit,
        "hard_sigmoid": lambda y: 6.0 * y - 3.0,
        "hard_sigmoid_keras2": lambda y: 5.0 * y - 2.5,
    }[sigma]
    constants: Tensor = inverse(f[inside]) - z[inside]
    if constants.numel() == 0 or not torch.allclose(constants, constants.median().expand_as(constants), atol=1e-5):
        return None
    return round(float(constants.median()), 8)


def _check_h(step: Step, o: Gate, sigma: str, phi: str, slope: float) -> None:
    """Raises Refused unless h = o phi(c)."""
    new_c, new_h = step.new_c.detach(), step.new_h.detach()
    gate = _sum(o, step, new_c)
    expected = plain.sigma(gate, sigma) * plain.phi(new_c, phi, slope)
    if _agree(expected, new_h):
        return
    for other in PHI:
        if _agree(plain.sigma(gate, sigma) * plain.phi(new_c, other, slope), new_h):
            raise Refused(f"the activation of g is {phi}, that of the cell state {other}: expected one for both", 9)
    difference = float((expected - new_h).abs().max())
    raise Refused(f"h is not o {phi}(c): the largest difference is {difference:.3g}", 9)
