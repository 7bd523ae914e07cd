"""How fast the CPU path is, against a plain copy and against what people write in PyTorch.

    python bench/cpu.py [--threads N] [--quick] [--json FILE]

Results are compared before anything is timed. Each measurement interleaves its rivals (A B A B ...) and reports the
median of the ratios, since absolute times on a shared machine say little. float32 throughout, the same number of
threads for both. PyTorch, if it is installed, runs the usual ConvLSTM cell (cat, conv2d, chunk, sigmoid, tanh) with
autograd, in both memory formats; the faster one counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any

import numpy as np
from timing import Timed, interleaved, median_ratio

import fusecell
from fusecell import _dispatch, ops

SHAPES = (
    (10, 8, 1, 16, 32, 3),
    (10, 8, 32, 32, 32, 3),
    (5, 4, 64, 64, 64, 3),
    (10, 8, 16, 32, 16, 5),
)  # T B I C size k


def ratio(ours: Timed, theirs: Timed, pairs: int) -> float:
    """The median over interleaved pairs of theirs' time by ours': above 1, we are faster."""
    times = interleaved({"ours": ours, "theirs": theirs}, pairs)
    return median_ratio(times["theirs"], times["ours"])


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------- against a copy
def pointwise(pairs: int) -> list[dict[str, Any]]:
    """Against a copy of the same bytes into fresh memory, which an op that returns arrays must touch, too."""
    z, c, big = random(8, 256, 64, 64), random(8, 64, 64, 64), random(1 << 24)
    h, c_new, saved = ops.lstm_gates_forward(z, c)
    forward_bytes = 2 * z.nbytes + 3 * c.nbytes  # z, c in; gates, h, c out
    backward_bytes = 2 * z.nbytes + 4 * c.nbytes  # gates, c, dh, dc in; dz, dc out, with dz as large as z
    y = ops.activation_forward("tanh", big)
    measured: list[tuple[str, Timed, int]] = [
        ("gates forward", lambda: ops.lstm_gates_forward(z, c), forward_bytes),
        ("gates backward", lambda: ops.lstm_gates_backward(saved, h, c_new), backward_bytes),
        ("tanh", lambda: ops.activation_forward("tanh", big), 2 * big.nbytes),
        ("tanh backward", lambda: ops.activation_backward("tanh", big, y, big), 3 * big.nbytes),
    ]
    rows = []
    for name, run, nbytes in measured:
        source = np.ones(nbytes // 2 // 4, np.float32)
        rows.append({"what": name, "rival": "a copy of the same bytes", "ratio": ratio(run, source.copy, pairs)})
    total = [big]
    rows.append(
        {"what": "global norm", "rival": "numpy's sum", "ratio": ratio(lambda: ops.global_norm(total), big.sum, pairs)}
    )
    return rows


# --------------------------------------------------------------------------------------------- against PyTorch
def training_step(torch: Any, T: int, B: int, I: int, C: int, size: int, k: int, pairs: int) -> dict[str, Any]:
    x, wi, wh, b = (
        random(T, B, I, size, size),
        random(4 * C, I, k, k) / (3 * k),
        random(4 * C, C, k, k) / (3 * k),
        random(4 * C),
    )
    dy = random(T, B, C, size, size, seed=1)
    from torch_peers import usual_loop

    def ours() -> dict[str, np.ndarray]:
        *_, saved = ops.conv_lstm_forward(x, wi, wh, b)
        return ops.conv_lstm_backward(saved, dy, needs=("x", "weight_ih", "weight_hh", "bias"))

    def theirs(memory_format: Any) -> tuple[Timed, Any, Any]:
        tx = torch.from_numpy(x).requires_grad_()
        joined = torch.cat([torch.from_numpy(wi), torch.from_numpy(wh)], 1)
        weight, bias = joined.to(memory_format=memory_format).requires_grad_(), torch.from_numpy(b).requires_grad_()
        upstream = torch.from_numpy(dy)

        def run() -> None:
            tx.grad = weight.grad = bias.grad = None
            frames = tx.flatten(0, 1).to(memory_format=memory_format).view(tx.shape)
            usual_loop(frames, weight, bias, C).backward(upstream)

        return run, tx, weight

    rows = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        run, tx, weight = theirs(memory_format)
        run()
        got = ours()
        for mine, other in (
            (got["x"], tx.grad),
            (np.concatenate([got["weight_ih"], got["weight_hh"]], 1), weight.grad),
        ):
            error = np.max(np.abs(mine - other.numpy())) / np.max(np.abs(mine))
            if error > 1e-4:
                raise AssertionError(f"the results differ by {error:.1e}: nothing is timed")
        rows.append(ratio(ours, run, pairs))
    return {
        "what": f"training step T={T} B={B} {I}->{C} channels {size}x{size} k={k}",
        "rival": f"torch {torch.__version__} eager, the faster memory format",
        "ratio": min(rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="for both rivals; 1 is the steadiest on a shared machine")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    if args.threads:
        fusecell.set_num_threads(args.threads)
    pairs = 5 if args.quick else 15
    rows = pointwise(pairs)
    try:
        import torch
    except ImportError:
        sys.stderr.write("torch is not installed: its rows are left out\n")
    else:
        torch.set_num_threads(fusecell.get_num_threads())
        for T, B, I, C, size, k in SHAPES:
            rows.append(training_step(torch, T, B, I, C, size, k, pairs if size < 64 else max(3, pairs // 3)))
    machine = (
        f"{platform.machine()}, {fusecell.get_num_threads()} threads, {_dispatch.build_info()['isa']} kernels, float32"
    )
    sys.stdout.write(f"{machine}\n{'what':<56}{'times as fast as':<50}{'ratio':>6}\n")
    for row in rows:
        sys.stdout.write(f"{row['what']:<56}{row['rival']:<50}{row['ratio']:>6.2f}\n")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
