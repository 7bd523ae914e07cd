"""How fast the CUDA path is: against what the memory can do, and against PyTorch.

    python bench/gpu.py [--seconds N] [--only TEXT] [--json FILE] [--list]

Results are compared before anything is timed; what is wrong is not timed. Times are medians of CUDA events, the L2
cache flushed before each repetition, and each is taken twice: the spread of the two is in the JSON. bench/README.md
says what the rows mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import itertools
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

from page import aligned
from shapes import GPU_SHAPES

Run = Callable[[], Any]

DEVICE = "cuda"
GATES = (16, 256, 256, 256)  # B, 4C, H, W: 1 GB in float32, so that launches and tails do not count
ACTIVATED = 1 << 28
COPIED = 1 << 28  # floats
NORMED = 100_000_000
CLIPPED = (50, 200_000)  # tensors, floats in each
SEQUENCES = [astuple(GPU_SHAPES[name]) for name in ("small", "small, k5", "reference", "wide")]
PRECISIONS = ("float32", "TF32", "bfloat16")  # TF32: PyTorch's; fusecell's own float32 is what it is compared with
GRADIENTS = ("x", "weight_ih", "weight_hh", "bias")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # ‖got - expected‖ / ‖expected‖ of a sequence and its gradients


# ------------------------------------------------------------------------------------------------------- the table
@dataclass
class Timing:
    """Milliseconds: the medians of two series of as many repetitions."""

    first: float
    second: float
    repetitions: int

    @property
    def ms(self) -> float:
        return (self.first + self.second) / 2


@dataclass
class Row:
    """One line of the table. With `bytes` it is a rate, held against `ceiling` (GB/s); else against the best peer."""

    what: str
    shape: str
    precision: str
    ours: Timing | None = None
    peers: dict[str, Timing] = field(default_factory=dict)
    bytes: int = 0
    ceiling: float = 0.0
    aim: float | None = None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.bytes / self.ours.ms / 1e6 if self.ours else 0.0

    @property
    def best(self) -> str:
        return min(self.peers, key=lambda name: self.peers[name].ms) if self.peers else ""

    @property
    def ratio(self) -> float | None:
        if self.ours is None:
            return None
        if self.ceiling:
            return self.rate / self.ceiling
        return self.peers[self.best].ms / self.ours.ms if self.peers else None

    @property
    def verdict(self) -> str:
        if self.note:
            return self.note
        if self.aim is None or self.ratio is None:
            return ""
        return "met" if self.ratio >= self.aim else "NOT met"

    def cells(self) -> tuple[str, ...]:
        ours = f"{self.ours.ms:.3f} ms" if self.ours else ""
        if self.ours and self.bytes:
            ours += f", {self.rate:.0f} GB/s"
        peer = f"{self.best} {self.peers[self.best].ms:.3f} ms" if self.peers else ""
        if self.ceiling:
            peer = f"{self.details['against']} {self.ceiling:.0f} GB/s"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return (
            self.what, self.shape, self.precision, ours, peer, ratio, str(self.aim or ""), self.verdict,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("ours", "peers")}
        timings = {"ours": self.ours and vars(self.ours), "peers": {n: vars(t) for n, t in self.peers.items()}}
        return {**plain, **timings, "gb_per_s": self.rate, "best_peer": self.best, "ratio": self.ratio}


HEAD = ("what", "shape", "precision", "fusecell", "best peer", "ratio", "aim", "verdict")


def table(rows: list[Row]) -> str:
    return aligned(HEAD, (row.cells() for row in rows))


# -------------------------------------------------------------------------------------------------------- measuring
class Gpu:
    """The libraries, the clock and the memory that empties the cache."""

    def __init__(self, seconds: float) -> None:
        # Before torch is imported: workers that outlive a compilation that took too long would hold up the end.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        self.end = time.monotonic() + seconds
        self.torch, self.cupy = importlib.import_module("torch"), importlib.import_module("cupy")
        self.ops = importlib.import_module("fusecell.ops")
        self.torch.backends.cudnn.benchmark = True
        self.tf32(False)
        self.torch.manual_seed(0)
        properties = self.torch.cuda.get_device_properties(0)
        self.l2 = int(getattr(properties, "L2_cache_size", 0)) or 64 << 20
        self.name = str(properties.name)
        self.flush = self.torch.empty(2 * self.l2, dtype=self.torch.uint8, device=DEVICE)
        self.copy_rate = self.read_rate = 0.0

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def tf32(self, on: bool) -> None:
        self.torch.backends.cuda.matmul.allow_tf32 = on
        self.torch.backends.cudnn.allow_tf32 = on

    def random(self, *shape: int, dtype: str = "float32", scale: float = 1.0) -> Any:
        """A torch tensor; fusecell gets the same memory."""
        return (scale * self.torch.randn(shape, device=DEVICE)).to(getattr(self.torch, dtype))

    def array(self, tensor: Any) -> Any:
        """The same memory for CuPy; bfloat16 goes as int16, which every version of DLPack knows."""
        if tensor.dtype != self.torch.bfloat16:
            return self.cupy.from_dlpack(tensor)
        bfloat16 = importlib.import_module("ml_dtypes").bfloat16
        return self.cupy.from_dlpack(tensor.view(self.torch.int16)).view(bfloat16)

    def tensor(self, array: Any) -> Any:
        if array.dtype.name != "bfloat16":
            return self.torch.from_dlpack(array)
        return self.torch.from_dlpack(array.view("int16")).view(self.torch.bfloat16)

    def release(self) -> None:
        self.torch.cuda.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()
        self.torch.cuda.empty_cache()

    def time(self, run: Run, seconds: float = 1.2, *, device_alone: bool = False) -> Timing:
        """Time a call from when the GPU has nothing else to do, or without what the host needs to enqueue it.

        device_alone: the GPU sleeps until the host has enqueued everything. At least 20 repetitions, unless they would
        take longer than there is time; then at least 3.
        """
        torch = self.torch
        for _ in range(2):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        enqueued = time.perf_counter() - start
        torch.cuda.synchronize()
        once = time.perf_counter() - start
        seconds = min(seconds, max(self.left / 8, 0.0))
        repetitions = max(3, min(30, int(seconds / 2 / (once + 2e-4))))
        # About 2e9 cycles a second; twice the host's time, and a little for the events.
        cycles = int(min(2 * enqueued + 1e-4, 0.05) * 2e9) if device_alone else 0
        first, second = (self._series(run, repetitions, cycles) for _ in range(2))
        return Timing(first, second, repetitions)

    def _series(self, run: Run, repetitions: int, cycles: int) -> float:
        cuda = self.torch.cuda
        times = []
        for _ in range(repetitions):
            before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            self.flush.zero_()
            cuda.synchronize()
            if cycles:
                cuda._sleep(cycles)
            before.record()
            run()
            after.record()
            cuda.synchronize()
            times.append(before.elapsed_time(after))
        return statistics.median(times)

    def error(self, got: Any, expected: Any) -> float:
        """‖got - expected‖ / ‖expected‖ in float64; infinite where something is not finite."""
        wide, target = got.double(), expected.double()
        value = float((wide - target).norm() / target.norm().clamp_min(1e-300))
        return value if value == value else float("inf")

    def expect(self, name: str, got: Any, expected: Any, tolerance: float) -> float:
        found = self.error(got, expected)
        if not found <= tolerance:
            raise AssertionError(f"wrong: {name} is off by {found:.1e}, allowed {tolerance:.0e}: not timed")
        return found


# ------------------------------------------------------------------------------------------------ memory's own rates
def rates(gpu: Gpu) -> Iterator[Row]:
    torch = gpu.torch
    source = gpu.random(COPIED)
    target = torch.empty_like(source)
    copied = gpu.time(lambda: target.copy_(source), device_alone=True)
    row = Row("device copy", f"{COPIED * 4 / 1e9:.1f} GB", "read and written", copied, bytes=2 * source.nbytes)
    gpu.copy_rate = row.rate
    yield row
    x = source[:NORMED]
    readers: dict[str, Run] = {
        "torch sum": x.sum,
        "torch amax": x.amax,
        "torch norm": lambda: torch.linalg.vector_norm(x),
    }
    timings = {name: gpu.time(run, 0.5, device_alone=True) for name, run in readers.items()}
    best = min(timings, key=lambda name: timings[name].ms)
    row = Row("device read", f"{NORMED:.0e} floats", best, timings[best], bytes=x.nbytes)
    gpu.read_rate = row.rate
    yield row


def against_copy(gpu: Gpu, what: str, shape: str, precision: str, run: Run, nbytes: int, aim: float | None) -> Row:
    timing = gpu.time(run, device_alone=True)
    details = {"against": "copy"}
    return Row(what, shape, precision, timing, bytes=nbytes, ceiling=gpu.copy_rate, aim=aim, details=details)


# ------------------------------------------------------------------------------------------------------------- gates
def torch_gates(torch: Any, z: Any, c: Any) -> tuple[Any, Any]:
    i, f, g, o = z.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gates(gpu: Gpu) -> Iterator[Row]:
    batch, rows, height, width = GATES
    shape = f"[{batch}, {rows}, {height}, {width}]"
    for dtype in ("float32", "bfloat16"):
        state = (batch, rows // 4, height, width)
        z, c = gpu.random(*GATES, dtype=dtype), gpu.random(*state)  # the cell state is float32 in either
        dh, dc = gpu.random(*state, dtype=dtype), gpu.random(*state)
        given = [gpu.array(t) for t in (z, c, dh, dc)]
        check_gates(gpu, dtype, z, c, dh, dc)
        h, c_new, saved = gpu.ops.lstm_gates_forward(given[0], given[1])
        nbytes = 2 * z.nbytes + 2 * c.nbytes + dh.nbytes  # z, c in; gates, h, c out
        del h, c_new
        run = lambda given=given: gpu.ops.lstm_gates_forward(given[0], given[1])  # noqa: E731
        yield against_copy(gpu, "gates forward", shape, dtype, run, nbytes, 0.85)
        nbytes = 2 * z.nbytes + 3 * c.nbytes + dh.nbytes  # gates, c, dh, dc in; dz, dc out
        run = lambda given=given, saved=saved: gpu.ops.lstm_gates_backward(saved, given[2], given[3])  # noqa: E731
        yield against_copy(gpu, "gates backward", shape, dtype, run, nbytes, 0.85)
        del z, c, dh, dc, given, saved, run
        gpu.release()


def check_gates(gpu: Gpu, dtype: str, z: Any, c: Any, dh: Any, dc: Any) -> None:
    """The last sample against torch in float64."""
    wide_z, wide_c = (t[-1:].double().requires_grad_() for t in (z, c))
    expected_h, expected_c = torch_gates(gpu.torch, wide_z, wide_c)
    gpu.torch.autograd.backward([expected_h, expected_c], [dh[-1:].double(), dc[-1:].double()])
    h, c_new, saved = gpu.ops.lstm_gates_forward(gpu.array(z), gpu.array(c))
    gradients = gpu.ops.lstm_gates_backward(saved, gpu.array(dh), gpu.array(dc))
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    for name, got, expected in (
        ("h", h, expected_h), ("c", c_new, expected_c),
        ("dz", gradients["z"], wide_z.grad), ("dc", gradients["c"], wide_c.grad),
    ):  # fmt: skip
        gpu.expect(name, gpu.tensor(got)[-1:], expected.detach(), tolerance)


# -------------------------------------------------------------------------------------------------------- activations
def activations(gpu: Gpu) -> Iterator[Row]:
    torch, shape = gpu.torch, f"{ACTIVATED / 1e6:.0f}e6"
    for dtype, name in itertools.product(("float32", "bfloat16"), ("tanh", "sigmoid")):
        x, dy = (gpu.array(gpu.random(ACTIVATED, dtype=dtype)) for _ in range(2))
        y = gpu.ops.activation_forward(name, x)
        dx = gpu.ops.activation_backward(name, x, y, dy)
        some = [gpu.tensor(a)[-(1 << 20) :].double() for a in (x, y, dy, dx)]
        tolerance = 1e-6 if dtype == "float32" else 1e-2
        gpu.expect("y", some[1], getattr(torch, name)(some[0]), tolerance)
        slope = 1 - some[1] ** 2 if name == "tanh" else some[1] * (1 - some[1])
        gpu.expect("dx", some[3], some[2] * slope, tolerance)
        del dx
        forward = lambda x=x, name=name: gpu.ops.activation_forward(name, x)  # noqa: E731
        yield against_copy(gpu, f"{name} forward", shape, dtype, forward, 2 * x.nbytes, None)
        # The adjoint of these two reads y and not x.
        backward = lambda x=x, y=y, dy=dy, name=name: gpu.ops.activation_backward(name, x, y, dy)  # noqa: E731
        yield against_copy(gpu, f"{name} backward", shape, dtype, backward, 3 * x.nbytes, None)
        del x, y, dy, forward, backward
        gpu.release()


# ------------------------------------------------------------------------------------------------- norms and clipping
def norm(gpu: Gpu) -> Iterator[Row]:
    x = gpu.random(NORMED)
    mine = [gpu.array(x)]
    expected = gpu.torch.linalg.vector_norm(x.double())
    gpu.expect("norm", gpu.tensor(gpu.ops.global_norm(mine)), expected, 1e-10)
    timing = gpu.time(lambda: gpu.ops.global_norm(mine), device_alone=True)
    details = {"against": "read"}
    yield Row(
        "norm, sums in float64", f"{NORMED:.0e} floats", "float32", timing, bytes=x.nbytes, ceiling=gpu.read_rate,
        aim=0.85, details=details,
    )  # fmt: skip


class Clipping:
    """The same gradients for both."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, (count, each) = gpu, CLIPPED
        self.start = [gpu.random(each, scale=0.01) for _ in range(count)]
        self.parameters = [gpu.torch.nn.Parameter(gpu.random(each)) for _ in range(count)]
        self.mine = [gpu.array(t.clone()) for t in self.start]
        self.values = [gpu.array(p.detach().clone()) for p in self.parameters]
        for parameter, gradient in zip(self.parameters, self.start, strict=True):
            parameter.grad = gradient.clone()
        self.shape = f"{count * each:.0e} floats in {count}"
        self.nbytes = 4 * count * each

    def theirs(self, max_norm: float, raises: bool = False) -> Any:
        clip = self.gpu.torch.nn.utils.clip_grad_norm_
        return clip(self.parameters, max_norm, foreach=True, error_if_nonfinite=raises)

    def ours(self, max_norm: float, raises: bool = False) -> Any:
        return self.gpu.ops.clip_by_global_norm_(self.mine, max_norm, error_if_nonfinite=raises)

    def check(self) -> None:
        expected, got = self.theirs(1.0), self.ours(1.0)
        self.gpu.expect("norm", self.gpu.tensor(got), expected, 1e-5)
        for mine, parameter in zip(self.mine, self.parameters, strict=True):
            self.gpu.expect("clipped gradient", self.gpu.tensor(mine), parameter.grad, 1e-5)


def clip(gpu: Gpu) -> Iterator[Row]:
    both = Clipping(gpu)
    both.check()
    # A norm that was clipped to 0.5 is 0.5 or a little more or less: still something to scale, by 1 - 2e-6.
    for what, max_norm, raises, alone, aim in (
        ("clip, the GPU's time", 0.5, False, True, 3.0),
        ("clip, as called", 0.5, False, False, 3.0),
        ("clip below the limit, the GPU's time", 1e9, False, True, None),
        ("clip with error_if_nonfinite, as called", 0.5, True, False, None),
    ):
        ours, theirs = (
            gpu.time(lambda run=run, args=(max_norm, raises): run(*args), device_alone=alone)
            for run in (both.ours, both.theirs)
        )
        moved = both.nbytes * (1 if max_norm > 1 else 3)
        details = {"gb_per_s_of_ours": moved / ours.ms / 1e6, "share_of_copy": moved / ours.ms / 1e6 / gpu.copy_rate}
        yield Row(what, both.shape, "float32", ours, {"torch foreach": theirs}, aim=aim, details=details)


def adam(gpu: Gpu) -> Iterator[Row]:
    torch, both = gpu.torch, Clipping(gpu)
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    optimiser = torch.optim.Adam(both.parameters, fused=True, **options)
    slots = [[gpu.cupy.zeros_like(v) for v in both.values] for _ in range(2)]
    steps = itertools.count(1)

    def ours() -> None:
        total = gpu.ops.global_norm(both.mine)
        gpu.ops.adam_update_(both.values, both.mine, *slots, step=next(steps), norm=total, max_norm=0.5, **options)

    def theirs() -> None:
        both.theirs(0.5)
        optimiser.step()

    for _ in range(3):
        ours()
        theirs()
    for mine, parameter in zip(both.values, both.parameters, strict=True):
        gpu.expect("parameter after 3 steps", gpu.tensor(mine), parameter.detach(), 1e-6)
    for what, alone in (("clip and Adam, the GPU's time", True), ("clip and Adam, as called", False)):
        timings = [gpu.time(run, device_alone=alone) for run in (ours, theirs)]
        yield Row(what, both.shape, "float32", timings[0], {"torch foreach, fused Adam": timings[1]})


# ---------------------------------------------------------------------------------------------- sequences, and torch's
def torch_cell(torch: Any) -> Callable[..., tuple[Any, Any]]:
    """The usual ConvLSTM cell, as it is written everywhere."""

    def cell(frame: Any, h: Any, c: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
        z = torch.nn.functional.conv2d(torch.cat([frame, h], 1), weight, bias, padding=weight.shape[-1] // 2)
        return torch_gates(torch, z, c)

    return cell


class TorchSequence:
    """A sequence of such cells in one memory format, ready to run; what can be laid out beforehand is."""

    def __init__(self, torch: Any, x: Any, weight: Any, bias: Any, dy: Any, channels_last: bool, cell: Any) -> None:
        self.torch, self.cell = torch, cell
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.x, self.weight, self.bias = (
            self.laid_out(x).requires_grad_(),
            weight.detach().contiguous(memory_format=self.memory_format).requires_grad_(),
            bias.detach().clone().requires_grad_(),
        )
        self.dy = list(self.laid_out(dy))
        self.zero = torch.zeros_like(self.dy[0])

    def laid_out(self, frames: Any) -> Any:
        flat = frames.detach().flatten(0, 1).contiguous(memory_format=self.memory_format)
        return flat.clone(memory_format=self.torch.preserve_format).view(frames.shape)

    def forward(self) -> list[Any]:
        h = c = self.zero
        outputs = []
        for frame in self.x:
            h, c = self.cell(frame, h, c, self.weight, self.bias)
            outputs.append(h)
        return outputs

    def train(self) -> list[Any]:
        self.x.grad = self.weight.grad = self.bias.grad = None
        outputs = self.forward()
        self.torch.autograd.backward(outputs, self.dy)
        return outputs

    def infer(self) -> list[Any]:
        with self.torch.no_grad():
            return self.forward()

    def results(self) -> dict[str, Any]:
        outputs = [h.detach() for h in self.train()]
        return {"y": self.torch.stack(outputs), "dx": self.x.grad, "dweight": self.weight.grad, "dbias": self.bias.grad}


class Problem:
    """One shape in one precision: fusecell's run, torch's runs, and what the result should be."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: str) -> None:
        B, T, I, C, H, W, k = shape
        self.gpu, self.dtype, self.inputs, self.channels = gpu, dtype, I, C
        scale = ((I + C) * k * k) ** -0.5
        self.x = gpu.random(T, B, I, H, W, dtype=dtype)
        self.weight = gpu.random(4 * C, I + C, k, k, dtype=dtype, scale=scale)
        self.bias = gpu.random(4 * C, dtype=dtype, scale=0.5)
        self.dy = gpu.random(T, B, C, H, W, dtype=dtype)
        parts = self.x, self.weight[:, :I].contiguous(), self.weight[:, I:].contiguous(), self.bias
        self.mine = [gpu.array(t) for t in parts]
        self.my_dy = gpu.array(self.dy)
        self.flops = 2 * T * B * H * W * 4 * C * (I + C) * k * k

    def train(self) -> tuple[Any, dict[str, Any]]:
        y, _, _, saved = self.gpu.ops.conv_lstm_forward(*self.mine)
        return y, self.gpu.ops.conv_lstm_backward(saved, self.my_dy, needs=GRADIENTS)

    def infer(self) -> Any:
        return self.gpu.ops.conv_lstm_forward(*self.mine, save=None)[0]

    def torch(self, channels_last: bool, cell: Any = None, dtype: str | None = None) -> TorchSequence:
        kind = getattr(self.gpu.torch, dtype or self.dtype)
        given = [t.to(kind) for t in (self.x, self.weight, self.bias, self.dy)]
        return TorchSequence(self.gpu.torch, *given, channels_last, cell or torch_cell(self.gpu.torch))

    def results(self) -> dict[str, Any]:
        y, gradients = self.train()
        found = {name: self.gpu.tensor(a) for name, a in {"y": y, **gradients}.items()}
        weight = self.gpu.torch.cat([found["weight_ih"], found["weight_hh"]], 1)
        return {"y": found["y"], "dx": found["x"], "dweight": weight, "dbias": found["bias"]}

    def check(self) -> dict[str, float]:
        """Against torch's float32, TF32 off, on the same inputs (in bfloat16: as they were rounded)."""
        self.gpu.tf32(False)
        expected = self.torch(False, dtype="float32").results()
        got, tolerance = self.results(), TOLERANCE[self.dtype]
        return {name: self.gpu.expect(name, got[name], expected[name], tolerance) for name in expected}

    def my_peak(self, run: Run) -> int:
        """Bytes that CuPy's pool grows by: outputs, what is kept, and scratch."""
        pool = self.gpu.cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        run()
        return int(pool.total_bytes() - before)

    def torch_peak(self, run: Run) -> int:
        cuda = self.gpu.torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        run()
        cuda.synchronize()
        return int(cuda.max_memory_allocated() - before)


Contest = dict[tuple[str, str, str], Row]  # by mode, shape, precision


def sequence_rows() -> Contest:
    """All of them, before anything is measured: so a row that time did not reach is seen."""
    return {
        (mode, describe(shape), precision): Row(f"ConvLSTM {mode}", describe(shape), label(precision), note="no time")
        for shape in SEQUENCES
        for mode in ("training", "inference")
        for precision in PRECISIONS
    }


def describe(shape: tuple[int, ...]) -> str:
    B, T, I, C, H, W, k = shape
    return f"B{B} T{T} {I}->{C} {H}x{W} k{k}"


def label(precision: str) -> str:
    return "float32, torch's TF32" if precision == "TF32" else precision


def sequences(gpu: Gpu, rows: Contest) -> None:
    """fusecell and torch eager, for each shape."""
    for shape, dtype in itertools.product(SEQUENCES, TOLERANCE):
        if gpu.left < 10:
            return
        with guarded([row for key, row in rows.items() if applies(key, shape, dtype)]):
            eager(gpu, Problem(gpu, shape, dtype), shape, rows)
        gpu.release()


def applies(key: tuple[str, str, str], shape: tuple[int, ...], dtype: str) -> bool:
    return key[1] == describe(shape) and (key[2] == "bfloat16") == (dtype == "bfloat16")


@contextlib.contextmanager
def guarded(rows: list[Row]) -> Iterator[None]:
    """What goes wrong is written into the rows that it is missing from."""
    try:
        yield
    except Exception as error:
        for row in rows:
            row.note = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        log(f"FAILED {rows[0].what} {rows[0].shape}: {type(error).__name__}: {error}")


def eager(gpu: Gpu, problem: Problem, shape: tuple[int, ...], rows: Contest) -> None:
    errors = problem.check()
    gpu.release()
    own = {"training": problem.train, "inference": problem.infer}
    precisions = [p for p in PRECISIONS if (p == "bfloat16") == (problem.dtype == "bfloat16")]
    for mode, run in own.items():
        peak, timing = problem.my_peak(run), gpu.time(run)
        work = problem.flops * (3 if mode == "training" else 1)
        for precision in precisions:
            row = rows[mode, describe(shape), precision]
            row.ours, row.note = timing, ""
            row.details = {
                "errors": errors, "peak_bytes": {"fusecell": peak}, "tflops_of_ours": work / timing.ms / 1e9
            }  # fmt: skip
    gpu.release()
    for precision, channels_last in itertools.product(precisions, (False, True)):
        peer = problem.torch(channels_last)
        measure_torch(gpu, problem, peer, "channels_last" if channels_last else "contiguous", precision, shape, rows)
        del peer
        gpu.release()


def measure_torch(
    gpu: Gpu, problem: Problem, peer: TorchSequence, name: str, precision: str, shape: tuple[int, ...], rows: Contest
) -> None:
    gpu.tf32(precision == "TF32")
    try:
        for mode, run in (("training", peer.train), ("inference", peer.infer)):
            row = rows[mode, describe(shape), precision]
            run()  # cudnn tries its algorithms, with memory that is not theirs in the end
            row.details["peak_bytes"][name] = problem.torch_peak(run)
            row.peers[name] = gpu.time(run)
            log(f"{row.what} {row.shape} {row.precision}: {name} {row.peers[name].ms:.3f} ms")
    finally:
        gpu.tf32(False)


def compiled(gpu: Gpu, rows: Contest) -> None:
    """torch.compile of the cell, channels_last, as far as time goes: the smaller shapes first."""
    torch = gpu.torch
    for shape, precision in itertools.product(SEQUENCES, ("bfloat16", "TF32", "float32")):
        concerned = [rows[mode, describe(shape), precision] for mode in ("training", "inference")]
        if gpu.left < 20 or any(row.ours is None for row in concerned):
            for row in concerned:
                row.details["torch.compile"] = "not measured: no time, or no result to compare with"
            continue
        try:
            with time_limit(min(60.0, gpu.left - 5)):
                torch._dynamo.reset()
                problem = Problem(gpu, shape, "bfloat16" if precision == "bfloat16" else "float32")
                peer = problem.torch(True, torch.compile(torch_cell(torch), dynamic=False))
                peer.zero.requires_grad_()  # else the first step is another graph, and compiled apart
                measure_torch(gpu, problem, peer, "torch.compile", precision, shape, rows)
                del problem, peer
        except Exception as error:  # the row stands without it
            for row in concerned:
                row.details["torch.compile"] = f"not measured: {type(error).__name__}"
            log(f"torch.compile {describe(shape)} {precision}: {type(error).__name__}: {str(error)[:300]}")
        gpu.release()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------------- the command
ELEMENTWISE: dict[str, Callable[[Gpu], Iterator[Row]]] = {
    "rates": rates, "gates": gates, "activations": activations, "norm": norm, "clip": clip, "adam": adam,
}  # fmt: skip


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def measure(gpu: Gpu, only: str, rows: list[Row]) -> None:
    """Append to rows, so that they are there whatever happens to the next."""
    for name, function in ELEMENTWISE.items():
        if only in name or name == "rates":  # others are held against these
            try:
                for row in function(gpu):
                    rows.append(row)
                    log(" | ".join(row.cells()))
            except Exception as error:
                log(f"FAILED {name}: {type(error).__name__}: {error}")
                rows.append(Row(name, "", "", note=f"{type(error).__name__}: {error}".splitlines()[0][:100]))
            gpu.release()
    if only in "sequences":
        contest = sequence_rows()
        rows.extend(contest.values())
        sequences(gpu, contest)
        compiled(gpu, contest)


def about(gpu: Gpu) -> dict[str, Any]:
    properties = gpu.torch.cuda.get_device_properties(0)
    return {
        "command": " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": gpu.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": gpu.l2,
        "versions": {
            "python": platform.python_version(),
            "torch": gpu.torch.__version__,
            "cuda of torch": gpu.torch.version.cuda,
            "cudnn": gpu.torch.backends.cudnn.version(),
            "cupy": gpu.cupy.__version__,
            "fusecell": str(importlib.import_module("fusecell").__version__),
            "kernels": str(importlib.import_module("fusecell._dispatch").build_info()["cuda"]),
        },
        "copy_gb_per_s": gpu.copy_rate,
        "read_gb_per_s": gpu.read_rate,
    }


def listing() -> str:
    lines = [f"{name}: {(function.__doc__ or '').strip()}".rstrip(": ") for name, function in ELEMENTWISE.items()]
    return "\n".join(
        [*lines, *(f"sequences: {row.what} {row.shape} {row.precision}" for row in sequence_rows().values())]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180, help="for all of it; repetitions are left out, then rows")
    parser.add_argument("--only", default="", help="the groups whose names have this in them (see --list)")
    parser.add_argument("--json", help="also write everything to this file")
    parser.add_argument("--list", action="store_true", help="what is measured; needs no GPU")
    args = parser.parse_args()
    if args.list:
        sys.stdout.write(listing() + "\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is measured by then is still written
    gpu, rows = Gpu(args.seconds), list[Row]()
    try:
        measure(gpu, args.only, rows)
    finally:
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump({**about(gpu), "rows": [row.as_json() for row in rows]}, file, indent=1)
        sys.stdout.write(f"\n{gpu.name}\n{table(rows)}\n")
    return 1 if any(row.note and row.note != "no time" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
