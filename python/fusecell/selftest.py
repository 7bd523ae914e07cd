"""`fusecell selftest`: every op on every backend of this machine against the NumPy float64 reference."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from fusecell import _dispatch, ops, reference
from fusecell._cases import (
    ACTIVATIONS,
    BFLOAT16_CASES,
    CASES,
    RNN_CASES,
    TF32_CASES,
    TOLERANCE,
    WINOGRAD_CASES,
    Case,
    largest_error,
    run_case,
    upstream_of,
)


class Emulated:
    """The functions of fusecell.ops, with CUDA's kernels run on the host: a test build has them."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with _dispatch.using("emulated"):
                return function(*arguments, **options)

        return call


class OnGpu:
    """The functions of fusecell.ops for NumPy arrays that are computed on by a GPU: sent there and fetched again."""

    def __init__(self) -> None:
        self._cupy = importlib.import_module("cupy")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **options: Any) -> Any:
            sent = self._send(arguments)
            result = self._fetch(function(*sent, **self._send(options)), as_numbers="norm" in name or "clip" in name)
            if name.endswith("_"):
                self._copy_back(sent, arguments)
            return result

        return call

    def _send(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._cupy.asarray(value)
        if isinstance(value, dict):
            return {key: self._send(item) for key, item in value.items()}
        return type(value)(map(self._send, value)) if isinstance(value, (list, tuple)) else value

    def _fetch(self, value: Any, as_numbers: bool = False) -> Any:
        if isinstance(value, self._cupy.ndarray):
            return value.item() if as_numbers else value.get()
        if isinstance(value, dict):
            return {key: self._fetch(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._fetch(item, as_numbers) for item in value)
        return value

    def _copy_back(self, sent: Any, given: Any) -> None:
        if isinstance(given, np.ndarray):
            given[...] = sent.get()
        elif isinstance(given, (list, tuple)):
            for item, target in zip(sent, given, strict=True):
                self._copy_back(item, target)


def backends() -> dict[str, Any]:
    """The backends that work here: for each name something with the functions of fusecell.ops, on NumPy arrays."""
    found: dict[str, Any] = {"cpu": ops}
    for name, make in (("emulated", Emulated), ("cuda", OnGpu)):
        with contextlib.suppress(_dispatch.NoCudaKernelsError, ImportError):
            if _dispatch.Place(name).module.devices():
                found[name] = make()
    return found


Row = tuple[str, str, str, int, float, float]  # op, backend, dtype, cases, largest error, allowed


def _error_of_case(backend: str, case: Case, dtype: str) -> float:
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())), dtype)
    got = run_case(backends()[backend], case, arguments, None)
    sent = [u.astype(np.float64) for u in upstream_of(list(got.outputs.values()))]
    expected = run_case(reference, case, arguments, sent)
    return max(largest_error(got.outputs, expected.outputs), largest_error(got.gradients, expected.gradients))


def _deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return largest_error({"": got}, {"": expected})


def _error_of_activations(backend: str, dtype: str) -> float:
    module = backends()[backend]
    x = np.concatenate([np.linspace(-30, 30, 4001), [0.0, -0.0, 1, -1, 2.5, -2.5, 3, -3, 1e4, -1e4]]).astype(dtype)
    dy = np.cos(np.arange(x.size)).astype(dtype)
    worst = 0.0
    for name in ACTIVATIONS:
        y = module.activation_forward(name, x)
        expected = reference.activation_forward(name, x)
        dx = module.activation_backward(name, x, y, dy)
        worst = max(worst, _deviation(y, expected))
        worst = max(worst, _deviation(dx, reference.activation_backward(name, x, expected, dy)))
    return worst


def _error_of_softmax(backend: str, dtype: str) -> float:
    module = backends()[backend]
    x = (5 * np.random.default_rng(0).standard_normal((3, 7, 5))).astype(dtype)
    dy = np.cos(np.arange(x.size)).reshape(x.shape).astype(dtype)
    y, expected = module.softmax_forward(x, axis=1), reference.softmax_forward(x, axis=1)
    dx, dx_expected = module.softmax_backward(y, dy, axis=1), reference.softmax_backward(expected, dy, axis=1)
    return max(_deviation(y, expected), _deviation(dx, dx_expected))


def _error_of_clipping(backend: str, dtype: str) -> float:
    module = backends()[backend]
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (70000,), (1,))]
    worst = 0.0
    for norm_type in (1.0, 2.0, np.inf):
        clipped = [g.copy() for g in gradients]
        norm = module.clip_by_global_norm_(clipped, 1.5, norm_type)
        expected, expected_norm = reference.clip_by_global_norm_(gradients, 1.5, norm_type)
        worst = max(worst, abs(norm / expected_norm - 1), *map(_deviation, clipped, expected))
    return worst


def rows(names: Collection[str]) -> Iterator[Row]:
    """One row per op, backend among the names, and dtype."""
    others = {"activation": _error_of_activations, "softmax": _error_of_softmax, "clipping": _error_of_clipping}
    for backend in names:
        table = {op: [case for case in CASES if case.op == op] for op in ("conv_lstm", "lstm_gates", "conv2d")}
        if backend == "cpu":  # which alone knows this op and these algorithms
            table["rnn"] = list(RNN_CASES)
            table["winograd"] = list(WINOGRAD_CASES)
            table["bfloat16"] = list(BFLOAT16_CASES) if _dispatch.amx() in ("usable", "emulated") else []
        elif _dispatch.tensor_cores(backend):
            table["tf32"] = list(TF32_CASES)
        for dtype in ("float64", "float32"):
            for op, cases in table.items():
                if not cases or dtype not in TOLERANCE[cases[0].algorithm]:
                    continue
                error = max(_error_of_case(backend, case, dtype) for case in cases)
                yield op, backend, dtype, len(cases), error, TOLERANCE[cases[0].algorithm][dtype].gradients
            for op, error_of in others.items():
                count = len(ACTIVATIONS) if op == "activation" else 1
                yield op, backend, dtype, count, error_of(backend, dtype), TOLERANCE["direct"][dtype].outputs


def main(args: argparse.Namespace) -> int:
    """Print the table. 0 if every error is within tolerance, 1 if not, 2 if there is no such backend."""
    here = list(backends())
    if args.backend is not None and args.backend not in here:
        sys.stderr.write(f"--backend: expected one that works here ({', '.join(here)}), got {args.backend}\n")
        return 2
    sys.stdout.write(f"{'op':<12}{'backend':<9}{'dtype':<9}{'cases':>6}{'largest error':>16}{'allowed':>10}\n")
    failed = 0
    for op, backend, dtype, cases, error, allowed in rows(here if args.backend is None else [args.backend]):
        good = error <= allowed
        failed += not good
        verdict = "ok" if good else "FAILED"
        sys.stdout.write(f"{op:<12}{backend:<9}{dtype:<9}{cases:>6}{error:>16.1e}{allowed:>10.0e}  {verdict}\n")
    sys.stdout.write("all within tolerance\n" if not failed else f"{failed} rows out of tolerance\n")
    return 1 if failed else 0
