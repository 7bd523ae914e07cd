"""Who is compared on a CPU: a line of PEERS for each. It is made in the process of cpu_worker.py that is its own."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from array_peers import WEIGHTS, Numbers, flax_peer, keras_on_jax, keras_on_tensorflow, ops_peer
from verify import TOLERANCE, as_float64


@dataclass(frozen=True)
class Entry:
    """make: gives what has step(), infer(), results(what step returned) and forget(); or a Stream."""

    make: Callable[[Numbers], Any]
    needs: tuple[str, ...] = ("torch",)
    bfloat16: bool = False
    slow: bool = False
    """Takes tens of times as long as the rest: fewer rounds, and none with --quick."""
    environment: dict[str, str] = field(default_factory=dict)
    say: str = ""

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    @property
    def tolerance(self) -> float:
        """bfloat16 has 8 bits: x, weights, z and h of each step (c, too, where it is of 16 bits) are rounded by up to
        2^-9 of themselves. The worst result of S, M and K5 is off by 1.6e-2 of its largest value (y, after ten steps);
        where one channel of h is lost, y is off by 1.1e-1 at the least."""
        return 4e-2 if self.bfloat16 else TOLERANCE


def loop(*, bfloat16: bool = False, **options: bool) -> Callable[[Numbers], Any]:
    """The loop that people write in PyTorch. bfloat16: of its parameters, x and dy."""

    def make(numbers: Numbers) -> Any:
        import torch
        from torch_peers import Problem, loop_peer

        return loop_peer(Problem(numbers.shape, "cpu", torch.bfloat16 if bfloat16 else torch.float32), **options)

    return make


def fused(*, bfloat16: bool = False, **options: Any) -> Callable[[Numbers], Any]:
    """fusecell.torch.ConvLSTM2d with these options."""

    def make(numbers: Numbers) -> Any:
        import torch
        from torch_peers import Problem, fusecell_peer

        return fusecell_peer(Problem(numbers.shape, "cpu", torch.bfloat16 if bfloat16 else torch.float32), **options)

    return make


def keras_on_torch(data_format: str) -> Callable[[Numbers], Any]:
    def make(numbers: Numbers) -> Any:
        from torch_peers import Problem, keras_peer

        return keras_peer(Problem(numbers.shape, "cpu"), data_format=data_format)

    return make


def keras(make: Callable[[Numbers], Any], backend: str, *, slow: bool = False) -> Entry:
    return Entry(make, ("keras", backend), slow=slow, environment={"KERAS_BACKEND": backend})


XLA = "XLA has no fast gradient of a convolution on CPUs"
PEERS = {
    "eager": Entry(loop()),
    "eager, channels_last": Entry(loop(channels_last=True)),
    "compile": Entry(loop(compiled=True)),
    "compile, channels_last": Entry(loop(compiled=True, channels_last=True)),
    "Keras on torch": keras(keras_on_torch("channels_first"), "torch"),
    "Keras on torch, ch. last": keras(keras_on_torch("channels_last"), "torch"),
    "Keras on TensorFlow": keras(keras_on_tensorflow, "tensorflow"),
    "Keras on JAX": keras(keras_on_jax, "jax", slow=True),
    "flax": Entry(flax_peer, ("jax", "flax"), slow=True),
    "fusecell": Entry(fused()),
    "fusecell, recompute": Entry(fused(recompute=True)),
    "fusecell, direct": Entry(fused(algorithm="direct")),
    "fusecell.ops": Entry(ops_peer, ()),
    "eager, autocast": Entry(loop(autocast=True), bfloat16=True),
    "bf16": Entry(loop(bfloat16=True), bfloat16=True),
    "bf16, channels_last": Entry(loop(bfloat16=True, channels_last=True), bfloat16=True),
    "bf16, compile, ch. last": Entry(loop(bfloat16=True, compiled=True, channels_last=True), bfloat16=True),
    "fusecell, bf16": Entry(fused(bfloat16=True), bfloat16=True, say="computed in float32, rounded at the ends"),
}


def is_ours(peer: str) -> bool:
    return peer.startswith("fusecell")


# ------------------------------------------------------------------------------------------------------ frame by frame
@dataclass
class Stream:
    """One sample, a frame at a time, the state carried on; step(frame, state) returns the state, h first."""

    step: Callable[[Any, Any], Any]
    frames: list[Any]
    state: Any
    """Zeros, before the first frame."""
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext

    def outputs(self) -> list[Any]:
        """h after each frame of the sequence, from the state there is: call it first."""
        return [as_float64(state[0])[0] for _, state in self._run(len(self.frames))]

    def seconds(self, count: int) -> list[float]:
        """How long each of the next frames takes."""
        return [seconds for seconds, _ in self._run(count)]

    def _run(self, count: int) -> Iterator[tuple[float, Any]]:
        with self.mode():
            for index in range(count):
                frame, start = self.frames[index % len(self.frames)], time.perf_counter()
                self.state = self.step(frame, self.state)
                yield time.perf_counter() - start, self.state


def loop_stream(*, channels_last: bool = False, compiled: bool = False) -> Callable[[Numbers], Stream]:
    def make(numbers: Numbers) -> Stream:
        import torch
        from torch_peers import Loop, Problem, usual_step

        problem = Problem(numbers.shape, "cpu")
        form = torch.channels_last if channels_last else torch.contiguous_format
        module = Loop(problem).to(memory_format=form)
        frames = [frame[:1].contiguous(memory_format=form) for frame in problem.x]
        zeros = torch.zeros(1, numbers.shape.C, *problem.x.shape[3:]).contiguous(memory_format=form)
        step = torch.compile(usual_step) if compiled else usual_step
        return Stream(lambda x, hc: step(x, *hc, module.weight, module.bias), frames, (zeros, zeros), torch.no_grad)

    return make


def fused_stream(numbers: Numbers) -> Stream:
    """fusecell.torch.ConvLSTMCell2d."""
    import torch
    from torch_peers import Problem

    from fusecell.torch import ConvLSTMCell2d

    shape, problem = numbers.shape, Problem(numbers.shape, "cpu")
    cell = ConvLSTMCell2d(shape.I, shape.C, shape.k)
    cell.load_state_dict({name: getattr(problem, name) for name in WEIGHTS})
    frames = [frame[:1].contiguous() for frame in problem.x]
    zeros = torch.zeros(1, shape.C, *problem.x.shape[3:])
    return Stream(cell, frames, (zeros, zeros), torch.no_grad)


def ops_stream(numbers: Numbers, **options: Any) -> Stream:
    from fusecell import ops

    x, *given = (numbers.given[name] for name in ("x", *WEIGHTS))
    forward = functools.partial(ops.conv_lstm_step_forward, save=None, **options)

    def step(frame: Any, state: Any) -> Any:
        return forward(frame, *given, h=state[0], c=state[1])[:2]

    return Stream(step, [frame[:1] for frame in x], (None, None))


STREAMS = {
    "eager": Entry(loop_stream()),
    "eager, channels_last": Entry(loop_stream(channels_last=True)),
    "compile": Entry(loop_stream(compiled=True)),
    "fusecell": Entry(fused_stream),
    "fusecell.ops": Entry(ops_stream, ()),
}
