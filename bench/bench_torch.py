"""Training in PyTorch: fusecell.torch.ConvLSTM2d against the loop that people write, torch.compile of it, and Keras.

    python bench/bench_torch.py [--shapes S M L K5] [--cases] [--overhead] [--device cuda] [--threads N] [--rounds N]
                                [--peers NAME ...] [--json FILE] [--plot]

Without a choice: all shapes, and the overhead. Every peer has the same weights; outputs and gradients are compared with
a composition in float64 before anything is timed. Rivals take turns; what is printed are medians of the ratios to the
eager loop, on a GPU milliseconds besides. bench/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no workers that outlive a compilation

import numpy as np
import torch
from picture import GREYS, bars, in_short
from timing import Timed, interleaved, median_ratio
from torch import Tensor, nn
from torch_memory import peak_bytes
from torch_peers import PEERS, SHAPES, Problem, check, truth
from tqdm import tqdm

import fusecell
import fusecell.torch
from fusecell import _dispatch
from fusecell._cases import CASES, Case
from fusecell.torch import ConvLSTM2d, plain

Row = dict[str, Any]
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "bench_torch.png"


class Bench:
    """Where, how often, and who."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.threads, self.rounds = args.device, args.threads, args.rounds
        self.peers = ["eager", *(name for name in args.peers if name != "eager")]
        torch.set_num_threads(self.threads)
        fusecell.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # as fusecell's float32
        torch.backends.cudnn.benchmark = True

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def time(self, what: str, rivals: dict[str, Timed]) -> dict[str, list[float]]:
        """Seconds of each rival, with a bar on a terminal."""
        with tqdm(total=self.rounds * len(rivals), desc=what, leave=False, disable=None) as bar:
            return interleaved(rivals, self.rounds, self.wait, bar.update)

    def wait(self) -> None:
        """For what a GPU still has to do."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def each_peer(self, what: str) -> Iterator[str]:
        yield from tqdm(self.peers, desc=what, leave=False, disable=None)

    def machine(self) -> Row:
        name = torch.cuda.get_device_name() if self.on_gpu else f"{_dispatch.build_info()['isa']} kernels"
        return {
            "machine": platform.machine(), "device": self.device, "name": name, "threads": self.threads,
            "rounds": self.rounds, "torch": torch.__version__, "fusecell": fusecell.__version__,
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ training steps
def sequence(bench: Bench, name: str) -> list[Row]:
    """A row for each peer at one shape."""
    shape = SHAPES[name]
    expected = truth(shape, bench.device)
    peers = {peer: PEERS[peer](Problem(shape, bench.device)) for peer in bench.peers}
    errors = {peer: check(peer, peers[peer], expected) for peer in bench.each_peer(f"{name}, checking")}
    step = bench.time(f"{name}, training", {peer: made.step for peer, made in peers.items()})
    for made in peers.values():
        made.forget()
    infer = bench.time(f"{name}, forward", {peer: made.infer for peer, made in peers.items()})
    del peers, made
    peaks = {peer: peak_bytes(peer, name, bench.device, bench.threads) for peer in bench.each_peer(f"{name}, memory")}
    return [
        {
            "shape": name, "sizes": str(shape), "peer": peer, "error": errors[peer],
            "step_ratio": median_ratio(step["eager"], step[peer]),
            "forward_ratio": median_ratio(infer["eager"], infer[peer]),
            "step_ms": 1e3 * statistics.median(step[peer]),
            "forward_ms": 1e3 * statistics.median(infer[peer]),
            "peak_bytes": peaks[peer],
        }
        for peer in bench.peers
    ]  # fmt: skip


def print_sequences(bench: Bench, rows: list[Row]) -> None:
    """Times as fast as eager, and shares of its memory."""
    head = f"{'':<26}{'training x':>11}{'forward x':>11}{'memory':>9}"
    head += f"{'ms':>10}{'ms':>9}{'MiB':>8}" if bench.on_gpu else ""
    for row in rows:
        if row["peer"] == "eager":
            eager = row
            print(f"\n{row['shape']}: {row['sizes']}\n{head}")
        share = row["peak_bytes"] / eager["peak_bytes"]
        line = f"{row['peer']:<26}{row['step_ratio']:>11.2f}{row['forward_ratio']:>11.2f}{share:>9.2f}"
        if bench.on_gpu:
            line += f"{row['step_ms']:>10.3f}{row['forward_ms']:>9.3f}{row['peak_bytes'] / 2**20:>8.0f}"
        print(line)


# -------------------------------------------------------------------------------------------- the table of small cases
def cases(bench: Bench) -> list[Row]:
    """fusecell.torch.conv_lstm against fusecell.torch.plain on the cases with a step and without drawn masks."""
    chosen = [case for case in CASES if case.op == "conv_lstm" and "training" not in case.options]
    return [small(bench, case) for case in tqdm(chosen, desc="cases", disable=None) if case.shape.get("T", 3) > 0]


def small(bench: Bench, case: Case) -> Row:
    made = case.arguments(np.random.default_rng(0), np.float32)
    options = {n: o for n, o in case.options.items() if n != "algorithm"}

    def tensors(dtype: torch.dtype) -> dict[str, Tensor | None]:
        return {
            n: None if a is None else torch.tensor(a, device=bench.device, dtype=dtype).requires_grad_()
            for n, a in made.items()
        }

    def composed(given: dict[str, Tensor | None]) -> list[Tensor]:
        return train_once(plain.conv_lstm(**given, **options)[0], given)

    def fused(given: dict[str, Tensor | None]) -> list[Tensor]:
        rates = {"zoneout": (options.get("zoneout_h", 0.0), options.get("zoneout_c", 0.0))}
        others = {n: o for n, o in options.items() if not n.startswith("zoneout")}
        *inputs, h_0, c_0 = given.values()
        hx = None if h_0 is None else (h_0, c_0)
        return train_once(fusecell.torch.conv_lstm(*inputs, hx=hx, **others, **rates)[0], given)

    expected, narrow = composed(tensors(torch.float64)), tensors(torch.float32)
    error = max(map(relative_error, fused(narrow), expected))
    if not error <= 1e-4:
        raise AssertionError(f"{case}: off by {error:.1e}: nothing is timed")
    rounds = interleaved(
        {"eager": lambda: composed(narrow), "fusecell": lambda: fused(narrow)}, bench.rounds, bench.wait
    )
    return {"case": case.reason, "error": error, "step_ratio": median_ratio(rounds["eager"], rounds["fusecell"])}


def train_once(y: Tensor, given: dict[str, Tensor | None]) -> list[Tensor]:
    leaves = [t for t in given.values() if t is not None]
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves, materialize_grads=True, allow_unused=True)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    if got.numel() == 0:
        return 0.0
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def print_cases(rows: list[Row]) -> None:
    print(f"\n{'training step of a small case':<60}{'times as fast as eager':>24}")
    for row in sorted(rows, key=lambda row: row["step_ratio"]):
        print(f"{row['case']:<60}{row['step_ratio']:>24.2f}")


# ------------------------------------------------------------------------------------------- what a call alone costs
CALLS = 200  # in one timing: a single call is shorter than the clock's jitter


def overhead(bench: Bench) -> list[Row]:
    """A call on tiny tensors, against torch.nn.LSTM."""
    ours, theirs = ConvLSTM2d(2, 2, 3, device=bench.device), nn.LSTM(2, 2, device=bench.device)
    x, row = torch.randn(2, 1, 2, 4, 4, device=bench.device), torch.randn(2, 1, 2, device=bench.device)

    def forward(module: nn.Module, given: Tensor) -> None:
        for _ in range(CALLS):
            module(given)

    def without(module: nn.Module, given: Tensor) -> None:
        with torch.no_grad():
            forward(module, given)

    def training(module: nn.Module, given: Tensor) -> None:
        for _ in range(CALLS):
            module(given)[0].sum().backward()

    rows = []
    for what, run in (("forward, with grad", forward), ("forward, no_grad", without), ("training step", training)):
        rivals = {"ours": lambda run=run: run(ours, x), "theirs": lambda run=run: run(theirs, row)}
        times = bench.time(f"overhead, {what}", rivals)
        us = {name: 1e6 * statistics.median(t) / CALLS for name, t in times.items()}
        rows.append({"what": what, "ratio": median_ratio(times["ours"], times["theirs"]), "us": us})
    return rows


def print_overhead(bench: Bench, rows: list[Row]) -> None:
    print(f"\n{'a call on [2, 1, 2, 4, 4]':<26}{'nn.LSTM takes 1, ours':>24}   (aim: below 2)")
    for row in rows:
        us = f"   {row['us']['ours']:.0f} us, {row['us']['theirs']:.0f} us" if bench.on_gpu else ""
        print(f"{row['what']:<26}{row['ratio']:>24.2f}{us}")


# ---------------------------------------------------------------------------------------------------------- the picture
def draw(rows: list[Row], machine: Row, path: Path) -> None:
    """Two groups of bars for each shape: times as fast as eager, and share of its memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, peak = figure.subplots(1, 2)
    shapes, peers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "peer"))
    greys = iter(GREYS)
    colours = {p: {"fusecell": "#d9720c", "fusecell, recompute": "#f2b56b"}.get(p) or next(greys) for p in peers}
    eager = {row["shape"]: row["peak_bytes"] for row in rows if row["peer"] == "eager"}
    bars(speed, "training step, times as fast as eager", rows, lambda row: row["step_ratio"], shapes, colours)
    share = "peak memory, share of eager's"
    bars(peak, share, rows, lambda row: row["peak_bytes"] / eager[row["shape"]], shapes, colours)
    for axes in (speed, peak):
        axes.set_xticks(range(len(shapes)), [in_short(SHAPES[shape]) for shape in shapes], fontsize=8)
    figure.legend(
        *speed.get_legend_handles_labels(), loc="outside lower center", ncols=len(peers), frameon=False, fontsize=8
    )
    figure.suptitle(f"float32, {machine['name']}, torch {machine['torch']}", fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------ arguments
def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[])
    parser.add_argument("--cases", action="store_true", help="the small cases of fusecell's table")
    parser.add_argument("--overhead", action="store_true", help="what a call costs, against torch.nn.LSTM")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=present_peers())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="for all peers; 1 is the steadiest on a shared machine")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--plot", action="store_true", help=f"also draw {PICTURE.relative_to(PICTURE.parents[2])}")
    args = parser.parse_args()
    if not (args.shapes or args.cases or args.overhead):
        args.shapes, args.overhead = list(SHAPES), True
    return args


def present_peers() -> list[str]:
    if importlib.util.find_spec("keras"):
        return list(PEERS)
    sys.stderr.write("keras is not installed: it is left out\n")
    return [name for name in PEERS if not name.startswith("Keras")]


def main() -> int:
    args = parsed()
    bench = Bench(args)
    result: Row = {**bench.machine(), "sequences": [], "cases": [], "overhead": []}
    print(", ".join(f"{name}: {value}" for name, value in bench.machine().items()))
    for name in args.shapes:
        rows = sequence(bench, name)
        print_sequences(bench, rows)
        result["sequences"] += rows
    if args.cases:
        result["cases"] = cases(bench)
        print_cases(result["cases"])
    if args.overhead:
        result["overhead"] = overhead(bench)
        print_overhead(bench, result["overhead"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if args.plot and result["sequences"]:
        draw(result["sequences"], bench.machine(), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
