"""Which operand each convolution of a step saw, by exact comparison, and where its zeros stand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trace import Convolution, Refused, Trace, named_tensors

DEPTH = 2
Sides = tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Source:
    """A convolution of the step: what it sees ("x", "h", "xh" or "hx" one behind the other), and its tensors' names."""

    sees: str
    sides: Sides  # zeros before and after, for each axis, those of an explicit pad counted in
    weight: str
    bias: str | None
    call: Convolution

    def columns(self, operand: str, inputs: int, channels: int) -> tuple[int, int] | None:
        """The weight's columns that meet x or h; None if they do not meet."""
        widths = {"x": inputs, "h": channels}
        start = 0
        for name in self.sees:
            if name == operand:
                return start, start + widths[name]
            start += widths[name]
        return None


def sources(trace: Trace, twin: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> list[Source]:
    """Every convolution of the trace as a source. Raises Refused, with what it is that no ConvLSTM has."""
    if trace.norms:
        raise Refused(f"a norm stands between convolution and gates ({', '.join(sorted(set(trace.norms)))})", DEPTH + 1)
    if trace.dropouts:
        raise Refused(f"{trace.dropouts[0]} inside the cell", DEPTH + 1)
    if trace.transposed:
        raise Refused("a transposed convolution inside the cell", DEPTH)
    operands = _operands(x, h)
    names = {id(tensor): name for name, tensor in named_tensors(twin).items()}
    for call in trace.convolutions:
        if located(call.x, c) and any(located(other.x, h) for other in trace.convolutions):
            raise Refused(f"{names.get(id(call.weight), 'it')}: a convolution sees the cell state", DEPTH + 1)
    return [_source(call, operands, names) for call in trace.convolutions]


def seeing(calls: list[Convolution], x: Tensor, h: Tensor) -> list[Convolution]:
    """Those of the convolutions that see x, h or both. Raises Refused where x or h is seen by none."""
    operands = _operands(x, h)
    found = {name: [call for call in calls if located(call.x, seen)] for name, seen in operands.items()}
    for one in "xh":
        if not any(found[name] for name in found if one in name):
            raise Refused(f"no convolution sees {one} itself, alone or beside the other", DEPTH - 1)
    return [call for call in calls if any(call in those for those in found.values())]


def _operands(x: Tensor, h: Tensor) -> dict[str, Tensor]:
    both = {"xh": torch.cat([x, h], 1), "hx": torch.cat([h, x], 1)} if x.shape[2:] == h.shape[2:] else {}
    return {"x": x, "h": h, **both}


def _source(call: Convolution, operands: dict[str, Tensor], names: dict[int, str]) -> Source:
    weight = names.get(id(call.weight))
    if weight is None:
        maker = type(call.weight.grad_fn).__name__.removesuffix("0").removesuffix("Backward")
        raise Refused(f"the weight of a convolution is computed from other tensors ({maker})", DEPTH + 1)
    bias = None
    if call.bias is not None:
        bias = names.get(id(call.bias))
        if bias is None:
            raise Refused(f"the bias beside {weight} is computed from other tensors", DEPTH + 1)
    if call.groups != 1:
        raise Refused(f"{weight}: a convolution in {call.groups} groups", DEPTH + 1)
    for sees, operand in operands.items():
        sides = located(call.x, operand)
        if sides is not None:
            both = tuple((a + c, b + d) for (a, b), (c, d) in zip(sides, call.padding, strict=True))
            return Source(sees, both, weight, bias, call)
    if any(_padded_otherwise(call.x, operand) for operand in operands.values()):
        raise Refused(f"{weight}: the convolution sees an image padded with other values than zeros", DEPTH + 1)
    raise Refused(f"{weight}: the convolution sees neither x nor h, nor one behind the other", DEPTH)


def located(seen: Tensor, operand: Tensor) -> Sides | None:
    """The zeros around `operand` that make `seen` of it; None if it is something else."""
    if seen.shape[:2] != operand.shape[:2] or seen.dim() != operand.dim():
        return None
    extra = [s - o for s, o in zip(seen.shape[2:], operand.shape[2:], strict=True)]
    if min(extra) < 0:
        return None
    for before in product(*(range(e + 1) for e in extra)):
        sides = tuple((b, e - b) for b, e in zip(before, extra, strict=True))
        if torch.equal(F.pad(operand, [n for side in reversed(sides) for n in side]), seen):
            return sides
    return None


def _padded_otherwise(seen: Tensor, operand: Tensor) -> bool:
    """Whether `operand` stands in the middle of `seen`."""
    extra = [s - o for s, o in zip(seen.shape[2:], operand.shape[2:], strict=True)]
    if seen.shape[:2] != operand.shape[:2] or min(extra) < 0:
        return False
    for axis, (e, n) in enumerate(zip(extra, operand.shape[2:], strict=True), start=2):
        seen = seen.narrow(axis, e // 2, n)
    return torch.equal(seen, operand)


def convolution_options(found: list[Source], inputs: int) -> dict[str, Any]:
    """Stride, dilation and padding of the input convolution, the same for all that see x. Raises Refused."""
    seeing = [s for s in found if "x" in s.sees]
    if not seeing:
        raise Refused("no convolution sees x itself, alone or beside h", DEPTH)
    options = {(s.call.weight.shape[2:], s.call.stride, s.call.dilation, s.sides) for s in seeing}
    if len(options) > 1:
        raise Refused("the convolutions of x differ in kernel, stride, dilation or padding", DEPTH + 1)
    _, stride, dilation, sides = options.pop()
    for source in found:
        if "h" in source.sees and (set(source.call.stride) != {1} or set(source.call.dilation) != {1}):
            raise Refused(
                f"{source.weight}: stride {source.call.stride} and dilation {source.call.dilation} in the recurrent "
                "convolution, expected 1",
                DEPTH + 1,
            )
    if len(sides) == 1:
        stride, dilation, sides = (1, *stride), (1, *dilation), ((0, 0), *sides)
    return {"stride": stride, "dilation": dilation, "padding": sides}


def embedding(found: list[Source]) -> tuple[int, int, int, int]:
    """Zeros (left, right, top, bottom) around the recurrent weight for which "same" pads as the module does.

    Raises Refused unless the state keeps its size.
    """
    seeing = [s for s in found if "h" in s.sees]
    if not seeing:
        raise Refused("no convolution sees h itself, alone or beside x", DEPTH)
    if len({(s.call.weight.shape[2:], s.sides) for s in seeing}) > 1:
        raise Refused("the recurrent convolutions differ in kernel or padding", DEPTH + 1)
    zeros: list[int] = []
    for kernel, (before, after) in zip(seeing[0].call.weight.shape[2:], seeing[0].sides, strict=True):
        if before + after != kernel - 1:
            raise Refused(f"the state changes its size: kernel {kernel}, padding {before} + {after}", DEPTH + 1)
        reach = max(before, after)
        same = before == (kernel - 1) // 2
        zeros = [0, 0, *zeros] if same else [reach - before, reach - after, *zeros]
    left, right, *rest = zeros
    return (left, right, rest[0], rest[1]) if rest else (left, right, 0, 0)
