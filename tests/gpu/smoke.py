"""One small call of every op and kernel, forward and backward: what compute-sanitizer watches.

    compute-sanitizer --tool racecheck python tests/gpu/smoke.py

Each array has an allocation of its own, so that memcheck sees a step beyond its end. Only what is not finite is noticed
here; whether results are right is for the tests.
"""

from __future__ import annotations

import importlib
import sys
import zlib
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from fusecell import selftest
from fusecell._cases import CASES, Case, run_case

REASONS = {
    "the default cell",
    "bias pixel, peephole pixel",
    "channels that fill no register tile, two groups of rows",
    "lengths, reverse",
    "everything at once",
    "bias and peephole per channel",
    "three spatial dimensions, everything per pixel",
    "zoneout by masks",
    "3x3",
    "stride 2, same",
}
WHOLE_TILES = Case("conv_lstm", "whole tiles", {"T": 2, "B": 2, "I": 16, "C": 16, "H": 16, "W": 16, "k": 3, "kh": 3})


def arguments_of(case: Case, dtype: Any) -> dict[str, Any]:
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    if np.dtype(dtype).itemsize > 2:
        return arguments
    cell_state = "c" if case.op == "lstm_gates" else "c_0"
    return {n: a.astype(np.float32) if n == cell_state and a is not None else a for n, a in arguments.items()}


# So many pixels that tiles are large, of both shapes: one forward, the other backward.
LARGE_TILES = Case("conv_lstm", "large tiles", {"T": 2, "B": 4, "I": 8, "C": 20, "H": 96, "W": 96, "k": 3, "kh": 3})


def run_on_tensor_cores(gpu: Any, dtype: Any) -> list[np.ndarray]:
    algorithm = {"algorithm": "tf32" if dtype is np.float32 else "tensor_cores"}
    cases = [replace(c, options=c.options | algorithm) for c in CASES if c.reason in REASONS and c.op != "lstm_gates"]
    found = []
    for case in (replace(LARGE_TILES, options=algorithm), *cases):
        outcome = run_case(gpu, case, arguments_of(case, dtype), None)
        found += [*outcome.outputs.values(), *outcome.gradients.values()]
    return found


def run_on_hopper(gpu: Any, dtype: Any) -> list[np.ndarray]:
    core = importlib.import_module("fusecell._cuda")
    before = core.hopper_wanted()
    core.want_hopper(True)
    try:
        return run_on_tensor_cores(gpu, dtype)
    finally:
        core.want_hopper(before)


def run_cases(gpu: Any, dtype: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for case in (WHOLE_TILES, *(c for c in CASES if c.reason in REASONS)):
        for extra in ({}, {"save": "recompute"}) if case.op == "conv_lstm" else ({},):
            outcome = run_case(gpu, case, arguments_of(case, dtype), None, **extra)
            found += [*outcome.outputs.values(), *outcome.gradients.values()]
    return found


def run_elementwise(gpu: Any, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    wide = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
    x, dy = (rng.standard_normal((3, 37, 5)).astype(dtype) for _ in range(2))
    found = []
    for name in ("tanh", "relu", "softplus"):
        y = gpu.activation_forward(name, x)
        found += [y, gpu.activation_backward(name, x, y, dy)]
    for axis in (1, 2):
        y = gpu.softmax_forward(x, axis)
        found += [y, gpu.softmax_backward(y, dy, axis)]
    gradients = [rng.standard_normal(n).astype(dtype) for n in (20_003, 64, 1)]
    parameters = [g.copy() for g in gradients]
    slots = [[np.zeros(g.shape, wide) for g in gradients] for _ in range(3)]
    for kind in (1.0, 2.0, np.inf):
        gpu.clip_by_global_norm_(gradients, 50.0, kind)
    norm = gpu.global_norm(gradients)
    gpu.clip_by_norm_(gradients, 5.0)
    gpu.clip_if_any_exceeds_(gradients, 0.5)
    gpu.clip_by_value_(gradients, 0.3)
    gpu.adam_update_(parameters, gradients, slots[0], slots[1], step=1, lr=0.1, norm=norm, max_norm=1.0)
    gpu.sgd_update_(parameters, gradients, slots[2], lr=0.1, momentum=0.9)
    return [*found, *gradients, *parameters, gpu.bernoulli((1001,), 0.5, seed=1, device=0)]


def main() -> int:
    importlib.import_module("cupy").cuda.set_allocator(None)
    gpu = selftest.backends()["cuda"]
    parts = (run_cases, run_on_tensor_cores, run_on_hopper, run_elementwise)
    results = [a for dtype in (np.float32, ml_dtypes.bfloat16) for f in parts for a in f(gpu, dtype)]
    finite = all(np.isfinite(a.astype(np.float64)).all() for a in results)
    sys.stdout.write(f"{len(results)} results, {'all finite' if finite else 'NOT all finite'}\n")
    return 0 if finite else 1


if __name__ == "__main__":
    sys.exit(main())
