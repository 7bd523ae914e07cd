"""A ConvLSTM of fusecell, PyTorch, JAX or Keras in a process of its own, for gpu_training.py: made, compared, timed.

    python bench/gpu_peers.py PEER PRECISION DEVICE      answers requests, as processes.py has it

A training step is forward, the mean of y^2, and backward to the weights and the bias: x has no gradient, as a first
layer's has none, and there is no optimiser. Weights and inputs are float32. bf16: under autocast (JAX: what a step
reads is cast, the state c stays float32); TF32, float32: PyTorch's two switches on or off, and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from processes import serve
from shapes import Shape
from torch import Tensor, nn
from torch_peers import usual_step

import fusecell
from fusecell.torch import ConvLSTM2d

TOLERANCE = {"bf16": 5e-2, "TF32": 1e-2, "float32": 1e-4}  # of each result's largest value, against float64
WARM = 3  # runs before anything is timed or captured: libraries choose and compile in them


class Numbers:
    """A shape's weights and x [T, B, I, H, W], float32: the same in every process on the same kind of device."""

    def __init__(self, shape: Shape, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(size, generator=generator, device=device)

        s = self.shape = shape
        self.device = device
        self.weight_ih = normal(4 * s.C, s.I, s.k, s.k, scale=(s.I * s.k * s.k) ** -0.5)
        self.weight_hh = normal(4 * s.C, s.C, s.k, s.k, scale=(s.C * s.k * s.k) ** -0.5)
        self.bias = normal(4 * s.C, scale=0.5)
        self.x = normal(s.T, s.B, s.I, s.H, s.W)


def lying_last(frames: Tensor) -> Tensor:
    """[T, B, C, H, W] with channels last in memory."""
    return frames.movedim(2, -1).contiguous().movedim(-1, 2)


# -------------------------------------------------------------------------------------------------------- in PyTorch
class Loop(nn.Module):
    """The usual loop in one memory format throughout: what leaves it lies as what enters."""

    def __init__(self, numbers: Numbers, *, channels_last: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inputs, self.channels, self.last = numbers.shape.I, numbers.shape.C, channels_last
        weight = torch.cat([numbers.weight_ih, numbers.weight_hh], 1).to(dtype)
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last) if channels_last else weight)
        self.bias = nn.Parameter(numbers.bias.to(dtype))
        self.step: Callable[..., tuple[Tensor, Tensor]] = usual_step

    def forward(self, x: Tensor) -> Tensor:
        _, batch, _, height, width = x.shape
        if self.last:
            h = c = x.new_zeros(batch, height, width, self.channels).movedim(-1, 1)
        else:
            h = c = x.new_zeros(batch, self.channels, height, width)
        outputs = []
        for frame in x:
            h, c = self.step(frame, h, c, self.weight, self.bias)
            outputs.append(h)
        if self.last:
            return torch.stack([h.movedim(1, -1) for h in outputs]).movedim(-1, 2)
        return torch.stack(outputs)

    def gradients(self) -> dict[str, Tensor]:
        assert self.weight.grad is not None
        assert self.bias.grad is not None
        weight_ih, weight_hh = self.weight.grad.split([self.inputs, self.channels], 1)
        return {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias": self.bias.grad}


class TorchPeer:
    """run: x to y; loss: x to the mean of y^2. module: whose parameters get gradients, which `named` names."""

    def __init__(
        self, module: nn.Module, x: Tensor, bf16: bool, named: Callable[[], dict[str, Tensor]],
        run: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.x, self.gradients, self.run, self.loss = x, named, run, loss
        self.parameters = list(module.parameters())
        self.on_gpu = x.device.type == "cuda"
        device = x.device.type
        self.casting = (lambda: torch.autocast(device, torch.bfloat16)) if bf16 else contextlib.nullcontext

    def step(self) -> Tensor:
        self.forget()
        with self.casting():
            loss = self.loss(self.x)
        loss.backward()
        return loss.detach()

    def infer(self) -> Tensor:
        with torch.no_grad(), self.casting():
            return self.run(self.x)

    def as_y(self, output: Tensor) -> Tensor:
        return output

    def forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def captured(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same as a CUDA graph. What it writes is NaN first, so that nothing left over passes for its work."""
        if not self.on_gpu:
            raise RuntimeError("a CUDA graph needs a GPU")
        for _ in range(WARM):
            run()
        self.forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            output = run()
        for written in (output, *(p.grad for p in self.parameters if p.grad is not None)):
            written.fill_(float("nan"))

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def series(self, run: Callable[[], Any], count: int) -> list[float]:
        """Milliseconds of each run, without a pause in between: the host's time counts where it is the longer one."""
        run()
        self.wait()
        if not self.on_gpu:
            return [1e3 * seconds for seconds in _differences(time.perf_counter, run, count)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        self.wait()
        return [before.elapsed_time(after) for before, after in itertools.pairwise(events)]

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Bytes at the peak of a run, beyond the parameters and x; None where there is no GPU."""
        if not self.on_gpu:
            return None
        self.forget()
        gc.collect()
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return int(torch.cuda.max_memory_allocated() - before)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def _differences(clock: Callable[[], float], run: Callable[[], Any], count: int) -> list[float]:
    times = [clock()]
    for _ in range(count):
        run()
        times.append(clock())
    return [after - before for before, after in itertools.pairwise(times)]


def fusecell_peer(numbers: Numbers, precision: str, **options: Any) -> TorchPeer:
    """options: ConvLSTM2d's."""
    s = numbers.shape
    module = ConvLSTM2d(s.I, s.C, s.k, device=numbers.device, **options)
    module.load_state_dict({f"{n}_l0": getattr(numbers, n) for n in ("weight_ih", "weight_hh", "bias")})

    def named() -> dict[str, Tensor]:
        return {n.removesuffix("_l0"): p.grad for n, p in module.named_parameters() if p.grad is not None}

    def run(x: Tensor) -> Tensor:
        return module(x)[0]

    return TorchPeer(module, lying_last(numbers.x), precision == "bf16", named, run, lambda x: mean_square(run(x)))


def loop_peer(
    numbers: Numbers, precision: str, *, channels_last: bool = True, compiled: str = "", mode: str | None = None
) -> TorchPeer:
    """compiled: "" (nothing), "step" or "loop" (with the loss, where there is one). mode: torch.compile's."""
    module = Loop(numbers, channels_last=channels_last)

    def run(x: Tensor) -> Tensor:
        return module(x)

    def loss(x: Tensor) -> Tensor:
        return mean_square(module(x))

    if compiled == "step":
        module.step = torch.compile(usual_step, dynamic=False, mode=mode)
    if compiled == "loop":
        run, loss = (torch.compile(f, dynamic=False, mode=mode) for f in (run, loss))
    x = lying_last(numbers.x) if channels_last else numbers.x
    return TorchPeer(module, x, precision == "bf16", module.gradients, run, loss)


def mean_square(y: Tensor) -> Tensor:
    return y.square().mean()


# ------------------------------------------------------------------------------------------------------ on top of JAX
class JaxPeer:
    """forward: (parameters, x) to y, with arrays of JAX. order: the axes of y in fusecell's order.

    XLA makes CUDA graphs as it sees fit.
    """

    def __init__(
        self, forward: Callable[[Any, Any], Any], parameters: dict[str, Any], x: Any, order: tuple[int, ...],
        named: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> None:  # fmt: skip
        import jax
        import jax.numpy as jnp

        self.parameters, self.x, self.order, self.named = parameters, x, order, named
        self.wait = jax.block_until_ready
        loss = lambda p, x: jnp.mean(jnp.square(forward(p, x)), dtype=jnp.float32)  # noqa: E731
        self.train, self.run = jax.jit(jax.grad(loss)), jax.jit(forward)
        self.made: Any = None

    def step(self) -> Any:
        self.made = self.train(self.parameters, self.x)
        return self.made

    def infer(self) -> Any:
        return self.run(self.parameters, self.x)

    def as_y(self, output: Any) -> Tensor:
        return torch.from_dlpack(self.wait(output)).permute(self.order)

    def gradients(self) -> dict[str, Tensor]:
        return self.named({name: torch.from_dlpack(self.wait(d)) for name, d in self.made.items()})

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("XLA makes CUDA graphs as it sees fit")

    def series(self, run: Callable[[], Any], count: int) -> list[float]:
        """Five means of a fifth of the runs each: JAX has no events, and is not made to wait for each run."""
        each = max(1, count // 5)

        def several() -> None:
            for _ in range(each):
                output = run()
            self.wait(output)

        several()
        return [1e3 * seconds / each for seconds in _differences(time.perf_counter, several, 5)]

    def peak(self, run: Callable[[], Any]) -> None:
        """JAX counts from its start, not from a step's."""
        return


def jax_peer(numbers: Numbers, precision: str) -> JaxPeer:
    """jax.lax.scan over the usual step, channels last, under jax.jit."""
    jnp = _jax(numbers.device, precision)
    from jax import lax, nn

    s = numbers.shape
    kind = jnp.bfloat16 if precision == "bf16" else jnp.float32
    weight = torch.cat([numbers.weight_ih, numbers.weight_hh], 1).permute(2, 3, 1, 0)
    parameters = {"weight": _to_jax(weight), "bias": _to_jax(numbers.bias)}

    def forward(given: dict[str, Any], x: Any) -> Any:
        weight, bias = (given[name].astype(kind) for name in ("weight", "bias"))

        def step(state: Any, frame: Any) -> Any:
            h, c = state
            both = jnp.concatenate([frame, h], -1)
            z = lax.conv_general_dilated(both, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            i, f, g, o = jnp.split(z + bias, 4, -1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = (nn.sigmoid(o) * jnp.tanh(c)).astype(kind)
            return (h, c), h

        start = (jnp.zeros((s.B, s.H, s.W, s.C), dtype) for dtype in (kind, jnp.float32))
        return lax.scan(step, tuple(start), x.astype(kind))[1]

    def named(made: dict[str, Tensor]) -> dict[str, Tensor]:
        weight_ih, weight_hh = made["weight"].permute(3, 2, 0, 1).split([s.I, s.C], 1)
        return {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias": made["bias"]}

    return JaxPeer(forward, parameters, _to_jax(numbers.x.movedim(2, -1)), (0, 1, 4, 2, 3), named)


def keras_peer(numbers: Numbers, precision: str) -> JaxPeer:
    """keras.layers.ConvLSTM2D on JAX, batch first and channels last, under jax.jit."""
    _jax(numbers.device, precision)
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(f"KERAS_BACKEND: expected jax, got {keras.backend.backend()}")
    s = numbers.shape
    policy = "mixed_bfloat16" if precision == "bf16" else "float32"
    layer = keras.layers.ConvLSTM2D(
        s.C, s.k, padding="same", return_sequences=True, data_format="channels_last", dtype=policy
    )
    x = numbers.x.permute(1, 0, 3, 4, 2)
    layer.build(x.shape)
    given = (numbers.weight_ih.permute(2, 3, 1, 0), numbers.weight_hh.permute(2, 3, 1, 0), numbers.bias)
    layer.set_weights([w.cpu().numpy() for w in given])
    names = ("weight_ih", "weight_hh", "bias")
    parameters = {n: v.value for n, v in zip(names, layer.trainable_variables, strict=True)}
    others = [variable.value for variable in layer.non_trainable_variables]

    def forward(given: dict[str, Any], x: Any) -> Any:
        return layer.stateless_call([given[name] for name in names], others, x, training=True)[0]

    def named(made: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: d.permute(3, 2, 0, 1) if d.dim() == 4 else d for name, d in made.items()}

    return JaxPeer(forward, parameters, _to_jax(x), (1, 0, 4, 2, 3), named)


def _jax(device: str, precision: str) -> Any:
    """jax.numpy, with its precision set; on the device that is meant, since JAX takes another without a word."""
    import jax

    meant = "gpu" if device == "cuda" else device
    if jax.default_backend() != meant:
        raise RuntimeError(f"JAX: expected the backend {meant}, got {jax.default_backend()}")
    words = {"bf16": "default", "TF32": "tensorfloat32", "float32": "highest"}
    jax.config.update("jax_default_matmul_precision", words[precision])
    return jax.numpy


def _to_jax(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.array(jnp.from_dlpack(tensor.contiguous()), copy=True)


Maker = Callable[[Numbers, str], "TorchPeer | JaxPeer"]
MAKERS: dict[str, Maker] = {
    "fusecell": fusecell_peer,
    "fusecell, recompute": lambda n, p: fusecell_peer(n, p, recompute=True),
    "eager": lambda n, p: loop_peer(n, p, channels_last=False),
    "channels_last": loop_peer,
    "compile, step": lambda n, p: loop_peer(n, p, compiled="step"),
    "compile": lambda n, p: loop_peer(n, p, compiled="loop"),
    "max-autotune": lambda n, p: loop_peer(n, p, compiled="loop", mode="max-autotune-no-cudagraphs"),
    "JAX": jax_peer,
    "Keras": keras_peer,
}


# --------------------------------------------------------------------------------------------------- what is answered
class Served:
    """One peer at one shape at a time, in one precision."""

    def __init__(self, peer: str, precision: str, device: str) -> None:
        self.peer, self.precision, self.device = peer, precision, device
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "TF32"
        torch.backends.cudnn.benchmark = True
        if device == "cuda":
            # A graph is captured on a stream of its own, and autograd wants the one that it ran on before.
            torch.cuda.set_stream(torch.cuda.Stream())
        self.shape: Shape | None = None
        self.made: Any = None
        self.run: Callable[[], Any] | None = None

    def hold(self, shape: Sequence[int], mode: str, graph: bool, truth: str | None) -> dict[str, Any]:
        """Make a run of it ready for `series`, compared with the truth in that file.

        mode: "training" or "inference". Returns its errors, by result, the milliseconds of a run, and the bytes at the
        peak of a training step. Raises AssertionError where a result is wrong.
        """
        self.run = None
        if self.shape != Shape(*shape):
            self.drop()
            self.made = MAKERS[self.peer](Numbers(Shape(*shape), self.device), self.precision)
            self.shape = Shape(*shape)
        one = self.made
        run = one.step if mode == "training" else one.infer
        run = one.captured(run) if graph else run
        output = run()
        found = {} if truth is None else one.gradients() if mode == "training" else {"y": one.as_y(output)}
        errors = self._compared(found, truth)
        del output, found
        once = min(one.series(run, WARM))
        peak = one.peak(run) if mode == "training" and not graph else None
        self.run = run
        return {"errors": errors, "once_ms": once, "peak_bytes": peak}

    def _compared(self, found: dict[str, Tensor], truth: str | None) -> dict[str, float]:
        expected = {} if truth is None else torch.load(truth, mmap=True)
        allowed = TOLERANCE[self.precision]
        errors = {name: largest_error(value.detach(), expected[name]) for name, value in found.items()}
        for name, error in errors.items():
            if not error <= allowed:
                raise AssertionError(f"{self.peer}: {name} is off by {error:.1e}, allowed {allowed:.0e}: not timed")
        return errors

    def series(self, count: int) -> list[float]:
        """Milliseconds of each of so many runs of what is held."""
        if self.run is None:
            raise RuntimeError(f"{self.peer}: expected a run that has been checked, got none: nothing is timed")
        return self.made.series(self.run, count)

    def rest(self) -> None:
        """Give back the memory of what is held; the peer stays, and what was compiled for it."""
        self.run = None
        if isinstance(self.made, TorchPeer):
            self.made.forget()
        self._give_back()

    def drop(self) -> None:
        """Give all memory back. Raises what the GPU still has to say of an earlier fault."""
        self.run = self.made = self.shape = None
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        self._give_back()

    def _give_back(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def truth(self, shape: Sequence[int], path: str) -> None:
        """Write y and the gradients in float64, of the same numbers, to a file."""
        self.drop()
        numbers = Numbers(Shape(*shape), self.device)
        module = Loop(numbers, channels_last=False, dtype=torch.float64)
        torch.backends.cudnn.benchmark = False  # once is not worth a search
        y = module(numbers.x.double())
        mean_square(y).backward()
        torch.backends.cudnn.benchmark = True
        found = {"y": y.detach(), **module.gradients()}
        torch.save({name: t.contiguous().cpu() for name, t in found.items()}, path)
        del numbers, module, y, found
        self.drop()

    def machine(self) -> dict[str, str]:
        """What a table must say of where it was made."""
        gpu = self.device == "cuda"
        return {
            "device": torch.cuda.get_device_name() if gpu else self.device, "fusecell": fusecell.__version__,
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version()) if gpu else "",
        }  # fmt: skip

    def ceilings(self, size: int, count: int) -> dict[str, float]:
        """Operations and bytes per second: a product of two matrices of that size, a copy of so many floats."""
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=self.device).to(kind) for _ in range(2))
        source = torch.randn(count, device=self.device)
        target = torch.empty_like(source)
        clock = TorchPeer(nn.Module(), source, False, dict, lambda x: x, lambda x: x)
        product, copy = (min(clock.series(run, 10)) for run in (lambda: a @ b, lambda: target.copy_(source)))
        return {"operations": 2e3 * size**3 / product, "bytes": 2e3 * source.nbytes / copy}


def largest_error(got: Tensor, expected: Tensor) -> float:
    """As a share of the largest value. A part at a time, since float64 takes memory. NaN where anything is NaN."""
    parts = zip(got.split(1), expected.split(1), strict=True)
    both = [(_apart(g, e.to(g.device)), e.abs().max().to(g.device)) for g, e in parts]
    error, scale = (torch.stack(values).max() for values in zip(*both, strict=True))
    return float(error / scale)


def _apart(got: Tensor, expected: Tensor) -> Tensor:
    return (got.double() - expected).abs().max()


if __name__ == "__main__":
    serve(Served(*sys.argv[1:]))
