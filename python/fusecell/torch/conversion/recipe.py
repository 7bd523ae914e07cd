"""How a module's own tensors make up the weights of the cell: slices, sums and concatenations, done at call time.

Nothing is copied out of a module when it is converted. Each forward packs the parameters as they are then, by
differentiable slices, so optimisers, checkpoints, parametrizations and `functional_call` see what they always saw. The
packed weights are not kept from call to call: `parameter.data.copy_(...)`, which averages of weights use, changes no
version counter, and a stale copy would be a wrong result in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """The rows of one gate in a tensor of the module: C from `start`, every `step`-th; of a weight, some columns."""

    name: str  # the attribute's path from the module: "conv.weight"
    start: int
    step: int
    columns: tuple[int, int] | None = None  # from, to; None for what has no input channels

    batched: bool = False  # [1, R, ...]: the channels stand in the second place

    def of(self, module: nn.Module, channels: int) -> Tensor:
        """The block, [C, ...]."""
        whole: Tensor = attrgetter(self.name)(module)
        rows = slice(self.start, self.start + self.step * channels, self.step)
        if self.columns is None:
            return (whole[0] if self.batched else whole)[rows]
        return whole[rows, self.columns[0] : self.columns[1]]


Sums = tuple[tuple[Block, ...], ...]
"""For each gate, the blocks that are added."""


@dataclass(frozen=True)
class Recipe:
    """The cell that a module computes, in terms of the module's tensors."""

    inputs: int  # channels of x
    channels: int  # of the state
    axes: int  # of an image: 1 or 2
    weight_ih: Sums  # i, f, g, o
    weight_hh: Sums
    bias: Sums
    constants: tuple[float, float, float, float]  # what forward adds to each gate
    peephole: Sums  # i, f, o
    embedding: tuple[
        int, int, int, int
    ]  # zeros around weight_hh (left, right, top, bottom) that make its padding "same"
    options: tuple[tuple[str, Any], ...]  # stride, dilation, padding, activations, algorithm

    def pack(self, module: nn.Module) -> dict[str, Tensor | None]:
        """weight_ih, weight_hh, bias and peephole in fusecell's form, as functions of the module's tensors."""
        weight_hh = self._weight(module, self.weight_hh)
        if any(self.embedding):
            weight_hh = F.pad(weight_hh, self.embedding)
        return {
            "weight_ih": self._weight(module, self.weight_ih),
            "weight_hh": weight_hh,
            "bias": self._vector(module, self.bias, self.constants),
            "peephole": self._vector(module, self.peephole, (0.0,) * 3),
        }

    @property
    def tensors(self) -> list[str]:
        """The names of all tensors that the cell reads."""
        sums = (*self.weight_ih, *self.weight_hh, *self.bias, *self.peephole)
        return list(dict.fromkeys(block.name for blocks in sums for block in blocks))

    @property
    def activations(self) -> set[str]:
        """The names of both."""
        options = dict(self.options)
        return {options["recurrent_activation"], options["activation"]}

    def computed_by(self, algorithm: str) -> Recipe:
        """The same cell, its convolutions computed so."""
        return replace(self, options=tuple({**dict(self.options), "algorithm": algorithm}.items()))

    def is_whole(self, module: nn.Module) -> bool:
        """Whether the module has all tensors: before a first forward some may not be there."""
        try:
            return all(isinstance(attrgetter(name)(module), Tensor) for name in self.tensors)
        except AttributeError:
            return False

    def state_image(self, module: nn.Module, image: tuple[int, ...]) -> tuple[int, ...] | None:
        """The state's size for an x of this size; None where the module lacks a tensor, or has one of another size."""
        if not self.is_whole(module):
            return None
        options = dict(self.options)
        kernel = attrgetter(self.weight_ih[0][0].name)(module).shape[2:]
        each = zip(
            image, kernel, *(options[n][2 - self.axes :] for n in ("stride", "dilation", "padding")), strict=True
        )
        state = tuple((n + sum(sides) - d * (k - 1) - 1) // s + 1 for n, k, s, d, sides in each)
        for block in (block for blocks in (*self.bias, *self.peephole) for block in blocks):
            pixels = tuple(attrgetter(block.name)(module).shape[2 if block.batched else 1 :])
            if set(pixels) - {1} and pixels != state:
                return None
        return state

    def _weight(self, module: nn.Module, gates: Sums) -> Tensor:
        whole = self._in_one(gates)
        packed = whole.of(module, 4 * self.channels) if whole else torch.cat([self._sum(module, g) for g in gates])
        return packed if self.axes == 2 else packed.unsqueeze(-2)

    def _in_one(self, gates: Sums) -> Block | None:
        """The one block that holds all gates, in order, if there is one: a view, no copy."""
        first = gates[0][0]
        in_order = tuple(
            (Block(first.name, first.start + q * self.channels, 1, first.columns),) for q in range(len(gates))
        )
        return first if gates == in_order else None

    def _sum(self, module: nn.Module, blocks: tuple[Block, ...]) -> Tensor:
        total = blocks[0].of(module, self.channels)
        for block in blocks[1:]:
            total = total + block.of(module, self.channels)
        return total

    def _vector(self, module: nn.Module, gates: Sums, constants: tuple[float, ...]) -> Tensor | None:
        """A bias or peephole, [nC] or [nC, H, W]; None if no gate has a part."""
        if not any(gates) and not any(constants):
            return None
        parts = [self._part(module, blocks, constant) for blocks, constant in zip(gates, constants, strict=True)]
        if all(p.dim() == 1 for p in parts):
            return torch.cat(parts)
        whole = [p if p.dim() > 1 else p[:, None, None] for p in parts]
        return torch.cat(torch.broadcast_tensors(*whole))

    def _part(self, module: nn.Module, blocks: tuple[Block, ...], constant: float) -> Tensor:
        like: Tensor = attrgetter(self.weight_ih[0][0].name)(module)
        total = like.new_full((self.channels,), constant)
        pixels = None
        for block in blocks:
            part = block.of(module, self.channels)
            if part[0].numel() == 1:
                total = total + part.reshape(-1)
            else:
                part = part if self.axes == 2 else part.unsqueeze(-2)
                pixels = part if pixels is None else pixels + part
        return total if pixels is None else pixels + total[:, None, None]
