"""The ConvLSTMs that are compared in PyTorch: fusecell's, the loop that people write, and Keras's. The same weights.

Each takes a sequence in the layout that suits it best; what can be laid out before a step is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from shapes import SHAPES, Shape
from torch import Tensor, nn
from verify import largest_error

from fusecell.torch import ConvLSTM2d

__all__ = ["PEERS", "SHAPES", "Peer", "Problem", "Shape", "check", "truth"]


@dataclass
class Problem:
    """Weights, a sequence and what is sent into its output, drawn anew from the same seed for every peer."""

    shape: Shape
    device: str
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        s, generator = self.shape, torch.Generator().manual_seed(0)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(size, generator=generator)).to(self.device, self.dtype)

        self.weight_ih = normal(4 * s.C, s.I, s.k, s.k, scale=(s.I * s.k * s.k) ** -0.5)
        self.weight_hh = normal(4 * s.C, s.C, s.k, s.k, scale=(s.C * s.k * s.k) ** -0.5)
        self.bias = normal(4 * s.C, scale=0.5)
        self.x = normal(s.T, s.B, s.I, s.H, s.W)
        self.dy = normal(s.T, s.B, s.C, s.H, s.W)


@dataclass
class Peer:
    """A network with its own parameters, input and upstream gradient, which `step` runs."""

    run: Callable[[Tensor], Tensor]
    x: Tensor
    dy: Tensor
    parameters: list[Tensor]
    results: Callable[[Tensor], dict[str, Tensor]]
    """Of an output and the gradients that stand in x and the parameters: all of them in fusecell's layout."""

    def step(self) -> Tensor:
        """Forward and backward; the gradients stand in x and the parameters, which had none."""
        self.forget()
        y = self.run(self.x)
        y.backward(self.dy)
        return y.detach()

    def forget(self) -> None:
        for tensor in (self.x, *self.parameters):
            tensor.grad = None

    def infer(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.x)


# ------------------------------------------------------------------------------------------------------------ fusecell
def fusecell_peer(problem: Problem, **options: Any) -> Peer:
    """options: ConvLSTM2d's."""
    s = problem.shape
    module = ConvLSTM2d(s.I, s.C, s.k, device=problem.device, dtype=problem.dtype, **options)
    module.load_state_dict({f"{n}_l0": getattr(problem, n) for n in ("weight_ih", "weight_hh", "bias")})
    x = problem.x.requires_grad_()

    def results(y: Tensor) -> dict[str, Tensor]:
        gradients = {f"d{n.removesuffix('_l0')}": p.grad for n, p in module.named_parameters()}
        return {"y": y, "dx": x.grad, **gradients}

    return Peer(lambda x: module(x)[0], x, problem.dy, list(module.parameters()), results)


# ------------------------------------------------------------------------------------------------------------ the loop
def usual_loop(x: Tensor, weight: Tensor, bias: Tensor, channels: int) -> Tensor:
    """The ConvLSTM as it is written everywhere. x [T, B, I, H, W], weight [4C, I + C, k, k]; y [T, B, C, H, W]."""
    h = c = x.new_zeros(x.shape[1], channels, *x.shape[3:])
    outputs = []
    for frame in x:
        h, c = usual_step(frame, h, c, weight, bias)
        outputs.append(h)
    return torch.stack(outputs)


def usual_step(x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A frame x [B, I, H, W]; the new h and c [B, C, H, W]."""
    z = nn.functional.conv2d(torch.cat([x, h], 1), weight, bias, padding="same")
    i, f, g, o = z.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class Loop(nn.Module):
    """The same with its parameters."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.channels = problem.shape.C
        self.weight = nn.Parameter(torch.cat([problem.weight_ih, problem.weight_hh], 1))
        self.bias = nn.Parameter(problem.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return usual_loop(x, self.weight, self.bias, self.channels)


def loop_peer(problem: Problem, *, channels_last: bool = False, compiled: bool = False, autocast: bool = False) -> Peer:
    """The loop on tensors of the problem's dtype; autocast: bfloat16 where torch's autocast deems it right."""
    module = Loop(problem)
    x, dy = problem.x, problem.dy
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
        x, dy = (t.flatten(0, 1).to(memory_format=torch.channels_last).view_as(t) for t in (x, dy))
    x.requires_grad_()

    def results(y: Tensor) -> dict[str, Tensor]:
        dweight_ih, dweight_hh = module.weight.grad.split([problem.shape.I, problem.shape.C], 1)
        return {"y": y, "dx": x.grad, "dweight_ih": dweight_ih, "dweight_hh": dweight_hh, "dbias": module.bias.grad}

    run = torch.compile(module) if compiled else module

    def cast(x: Tensor) -> Tensor:
        with torch.autocast(problem.device, torch.bfloat16):
            return run(x)

    return Peer(cast if autocast else run, x, dy, list(module.parameters()), results)


# --------------------------------------------------------------------------------------------------------------- Keras
def keras_peer(problem: Problem, *, data_format: str) -> Peer:
    if os.environ.setdefault("KERAS_BACKEND", "torch") != "torch":
        raise RuntimeError(f"KERAS_BACKEND: expected torch, got {os.environ['KERAS_BACKEND']}")
    import keras

    keras.backend.set_image_data_format(data_format)
    s, last = problem.shape, data_format == "channels_last"
    order, back = ((1, 0, 3, 4, 2), (1, 0, 4, 2, 3)) if last else ((1, 0, 2, 3, 4), (1, 0, 2, 3, 4))
    x, dy = (t.permute(order).contiguous() for t in (problem.x, problem.dy))
    x.requires_grad_()
    with torch.device(problem.device):
        layer = keras.layers.ConvLSTM2D(s.C, s.k, padding="same", return_sequences=True, data_format=data_format)
        layer.build(x.shape)
    given = (problem.weight_ih.permute(2, 3, 1, 0), problem.weight_hh.permute(2, 3, 1, 0), problem.bias)
    layer.set_weights([w.cpu().numpy() for w in given])
    parameters = [variable.value for variable in layer.trainable_variables]

    def results(y: Tensor) -> dict[str, Tensor]:
        dkernel, drecurrent, dbias = (p.grad for p in parameters)
        dweight_ih, dweight_hh = dkernel.permute(3, 2, 0, 1), drecurrent.permute(3, 2, 0, 1)
        return {
            "y": y.permute(back), "dx": x.grad.permute(back), "dweight_ih": dweight_ih, "dweight_hh": dweight_hh,
            "dbias": dbias,
        }  # fmt: skip

    return Peer(lambda x: layer(x, training=True), x, dy, parameters, results)


PEERS: dict[str, Callable[[Problem], Peer]] = {
    "eager": loop_peer,
    "eager, channels_last": lambda problem: loop_peer(problem, channels_last=True),
    "torch.compile": lambda problem: loop_peer(problem, compiled=True),
    "Keras": lambda problem: keras_peer(problem, data_format="channels_first"),
    "Keras, channels_last": lambda problem: keras_peer(problem, data_format="channels_last"),
    "fusecell": fusecell_peer,
    "fusecell, recompute": lambda problem: fusecell_peer(problem, recompute=True),
}


# ---------------------------------------------------------------------------------------------------------- the truth
def truth(shape: Shape, device: str) -> dict[str, Tensor]:
    """The results of the loop in float64, from the same (float32) numbers."""
    problem = Problem(shape, device)
    for name in ("weight_ih", "weight_hh", "bias", "x", "dy"):
        setattr(problem, name, getattr(problem, name).double())
    peer = loop_peer(problem)
    return peer.results(peer.step())


def check(name: str, peer: Peer, expected: dict[str, Tensor]) -> float:
    """Run a step and return the largest error. Raises AssertionError where a result is wrong."""
    return largest_error(name, peer.results(peer.step()), expected)
