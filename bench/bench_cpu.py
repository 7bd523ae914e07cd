"""ConvLSTMs on a CPU: fusecell against PyTorch, Keras and flax, frame by frame too; and the gates against a plain copy.

    python bench/bench_cpu.py [--parts sequences streaming pointwise] [--shapes S M L K5] [--peers NAME ...]
                              [--threads N] [--rounds N] [--quick] [--absolute] [--json FILE] [--plot]

Every peer has a process of its own and as many threads. All have the same weights; results are compared with the loop
in float64 before anything is timed, and what is wrong is refused. Peers take turns; what is printed are medians of the
rounds' ratios. The last table holds them against what is aimed at. bench/README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_peers import WEIGHTS, Numbers
from cpu_peers import PEERS, STREAMS, XLA, is_ours
from cpu_worker import Load, Worker
from page import crowded, renew, tables
from processes import Refused
from shapes import SHAPES, Shape
from timing import Timed, interleaved, median_ratio, stopwatch, take_turns
from tqdm import tqdm

import fusecell
from fusecell import _dispatch, ops

Row = dict[str, Any]
DOCS = Path(__file__).parent.parent / "docs"
PAGE, PICTURE = DOCS / "cpu.md", DOCS / "images" / "bench_cpu.png"
REST = 0.05  # seconds between turns: after its work libgomp was seen to spin for 3 ms, NumPy's OpenBLAS for up to 40
SLOW_ROUNDS = 2
FRAMES = 100  # in a turn of the streaming part

# Times as fast as the fastest rival in float32; training steps, and forward alone the same or better.
SPEED_AIMS = {"S": 3.5, "M": 3.0, "L": 3.0, "K5": 1.5}
BFLOAT16_AIMS = {"M": 1.5, "L": 1.5}  # against torch's best in bfloat16
MEMORY_AIMS = {"fusecell": 0.65, "fusecell, recompute": 0.45}  # shares of eager's


class Bench:
    """Where, how often, and who."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.threads, self.folder, self.absolute = args.threads, folder, args.absolute
        self.rounds = args.rounds or (3 if args.quick else 11)
        chosen = args.peers or list(PEERS)
        self.peers = ["eager", *(n for n in chosen if n != "eager" and not (args.quick and PEERS[n].slow))]
        self.streams = ["eager", *(n for n in chosen if n != "eager" and n in STREAMS)]
        self.failed = False
        fusecell.set_num_threads(self.threads)

    def bar(self, what: str, total: int) -> tqdm[Any]:
        return tqdm(total=total, desc=what, leave=False, disable=None)

    def refuse(self, peer: str, reason: Refused) -> str:
        self.failed = True
        sys.stderr.write(f"refused: {reason}\n")
        return str(reason)

    def rounds_of(self, names: Iterable[str]) -> dict[str, int]:
        """Of the slow ones."""
        return {name: min(SLOW_ROUNDS, self.rounds) for name in names if name in PEERS and PEERS[name].slow}

    def turns(self, what: str, rivals: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        fewer = self.rounds_of(rivals)
        with self.bar(what, sum(fewer.get(name, self.rounds) for name in rivals)) as bar:
            return take_turns(rivals, self.rounds, bar.update, fewer=fewer, rest=REST)

    @contextlib.contextmanager
    def workers(self, table: str, names: list[str]) -> Iterator[dict[str, Worker]]:
        with contextlib.ExitStack() as stack:
            yield {name: stack.enter_context(Worker(table, name, self.threads)) for name in names}

    def checked(self, workers: dict[str, Worker], method: str, path: Path, what: str) -> dict[str, float | str]:
        """The error of each worker's peer, or why it is refused."""
        found: dict[str, float | str] = {}
        with self.bar(f"{what}, checking", len(workers)) as bar:
            for name, worker in workers.items():
                try:
                    found[name] = worker.ask(method, str(path))
                except Refused as reason:
                    found[name] = self.refuse(name, reason)
                bar.update()
        if isinstance(found["eager"], str):
            raise SystemExit(f"eager is the measure of all: {found['eager']}")
        return found

    def expect_silence(self, workers: dict[str, Worker]) -> None:
        """Whether peers that wait leave the CPUs to the one whose turn it is."""
        load = Load(workers.values())
        time.sleep(0.5)
        own, _ = load.cores()
        if own > 0.05:
            sys.stderr.write(f"peers that wait use {own:.2f} of a CPU: their threads spin, and all times suffer\n")

    def machine(self) -> Row:
        return {
            "machine": platform.machine(), "kernels": _dispatch.build_info()["isa"], "threads": self.threads,
            "rounds": self.rounds, "fusecell": fusecell.__version__, **versions(),
        }  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("torch", "keras", "tensorflow-cpu", "tensorflow", "jax", "flax", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def numbers_of(shape: Shape) -> Numbers:
    from torch_peers import Problem, truth

    problem = Problem(shape, "cpu")
    given = {name: getattr(problem, name).numpy() for name in ("x", "dy", *WEIGHTS)}
    return Numbers(shape, given, {name: tensor.numpy() for name, tensor in truth(shape, "cpu").items()})


# ----------------------------------------------------------------------------------------------------------- sequences
class Roofline:
    """What the machine can do: the best that a library was seen to reach, a stand-in for the true peaks.

    Operations: a product of two matrices by NumPy, one by torch, and a convolution of many channels by torch. BLAS
    libraries use half of the width of some processors' vectors, where torch's convolution uses all of it. Bytes, read
    and written: a copy. All take turns with the peers.
    """

    def __init__(self) -> None:
        import torch

        a, b, product = (np.ones((2048, 2048), np.float32) for _ in range(3))
        ta, tb, tproduct = map(torch.from_numpy, (a, b, product))
        image = torch.ones(1, 512, 64, 64).to(memory_format=torch.channels_last)
        kernel = torch.ones(512, 512, 3, 3).to(memory_format=torch.channels_last)
        source, target = torch.ones(1 << 25), torch.zeros(1 << 25)
        self.work: dict[str, tuple[Timed, int]] = {
            "NumPy's product": (lambda: np.matmul(a, b, out=product), 2 * 2048**3),
            "torch's product": (lambda: torch.mm(ta, tb, out=tproduct), 2 * 2048**3),
            "torch's convolution": (lambda: torch.conv2d(image, kernel, padding=1), 2 * 64 * 64 * 512 * 512 * 9),
            "a copy": (lambda: target.copy_(source), 2 * source.nbytes),
        }
        self.rivals = {name: stopwatch(run) for name, (run, _) in self.work.items()}
        self.best: dict[str, float] = {}
        self.learn(take_turns(self.rivals, 5))

    def learn(self, turns: dict[str, list[float]]) -> None:
        for name, (_, amount) in self.work.items():
            self.best[name] = max(self.best.get(name, 0.0), amount / min(turns[name]))

    @property
    def peak(self) -> float:
        """Floating-point operations in a second."""
        return max(rate for name, rate in self.best.items() if name != "a copy")

    @property
    def bandwidth(self) -> float:
        """Bytes in a second."""
        return self.best["a copy"]


def floats_moved(shape: Shape, *, training: bool) -> int:
    """The fewest to and from memory, where nothing stays in a cache from forward to backward.

    Forward reads x and writes y; training writes gates and c besides; backward reads all of that and dy, and writes dx.
    """
    pixels = shape.T * shape.B * shape.H * shape.W
    return pixels * (3 * shape.I + 13 * shape.C if training else shape.I + shape.C)


def sequences(bench: Bench, names: dict[str, Shape], rows: list[Row]) -> None:
    roofline = Roofline()
    with bench.workers("PEERS", bench.peers) as workers:
        for name, shape in names.items():
            found = sequence(bench, name, shape, dict(workers), roofline)
            print_sequence(bench, found, shape)
            rows += found


def sequence(bench: Bench, name: str, shape: Shape, workers: dict[str, Worker], roofline: Roofline) -> list[Row]:
    """A row for each peer at one shape."""
    path = bench.folder / "numbers.npz"
    numbers_of(shape).write(path)
    errors = bench.checked(workers, "peer", path, name)
    right = {peer: worker for peer, worker in workers.items() if not isinstance(errors[peer], str)}
    bench.expect_silence(right)
    seconds, load = {}, Load(right.values())
    for what, method in (("step", "step"), ("forward", "infer")):
        rivals = {peer: lambda w=w, method=method: w.ask(method) for peer, w in right.items()}
        seconds[what] = bench.turns(f"{name}, {what}", {**rivals, **roofline.rivals})
        roofline.learn(seconds[what])
    _, others = load.cores()
    peaks = memory(bench, right, path, name)
    rows = []
    for peer, error in errors.items():
        row: Row = {"shape": name, "sizes": str(shape), "peer": peer, "bfloat16": PEERS[peer].bfloat16}
        if isinstance(error, str):
            rows.append({**row, "refused": error})
            continue
        row |= {"error": error, "rounds": len(seconds["step"][peer]), "peak_bytes": peaks.get(peer), "note": note(peer)}
        for what, turns in seconds.items():
            row |= {f"{what}_{n}": v for n, v in timed(turns, peer, floor(shape, what, roofline)).items()}
        rows.append({**row, "others": others})
    return rows


def floor(shape: Shape, what: str, roofline: Roofline) -> dict[str, float]:
    """The fewest seconds that operations and bytes take; the direct algorithm can reach the larger of the two."""
    training = what == "step"
    operations, moved = shape.operations * (3 if training else 1), 4 * floats_moved(shape, training=training)
    return {"operations": operations / roofline.peak, "bytes": moved / roofline.bandwidth}


def timed(turns: dict[str, list[float]], peer: str, floor: dict[str, float]) -> Row:
    best = min(turns[peer])
    return {
        "ms": 1e3 * statistics.median(turns[peer]),
        "ratio": median_ratio(turns["eager"], turns[peer]),
        "seconds": turns[peer],
        "of_peak": floor["operations"] / best,
        "of_copy": floor["bytes"] / best,
        "floor": max(floor.values()),
    }


def note(peer: str) -> str:
    return f"{SLOW_ROUNDS} rounds: {XLA}" if PEERS[peer].slow else PEERS[peer].say


def memory(bench: Bench, peers: Iterable[str], path: Path, name: str) -> dict[str, int]:
    """Peak bytes of a training step, in a process of its own for each."""
    found = {}
    for peer in tqdm(list(peers), desc=f"{name}, memory", leave=False, disable=None):
        try:
            with Worker("PEERS", peer, bench.threads, measured=True) as worker:
                found[peer] = worker.ask("peak", str(path))
        except Refused as reason:
            bench.refuse(peer, reason)
    return found


def print_sequence(bench: Bench, rows: list[Row], shape: Shape) -> None:
    """Times as fast as eager; shares of its memory and of what the machine can do."""
    head = f"{'':<26}{'training x':>11}{'forward x':>11}{'memory':>9}{'of peak':>9}{'of copy':>9}{'error':>9}"
    head += f"{'ms':>10}{'ms':>9}{'MiB':>8}{'GFLOP/s':>9}" if bench.absolute else ""
    eager = rows[0]
    print(f"\n{eager['shape']}: {shape}; {crowded(eager['others'])}\n{head}")
    for row in rows:
        if "refused" in row:
            print(f"{row['peer']:<26}refused: {row['refused']}")
            continue
        share = f"{row['peak_bytes'] / eager['peak_bytes']:.2f}" if row["peak_bytes"] and eager["peak_bytes"] else "-"
        line = f"{row['peer']:<26}{row['step_ratio']:>11.2f}{row['forward_ratio']:>11.2f}{share:>9}"
        line += f"{row['step_of_peak']:>9.2f}{row['step_of_copy']:>9.2f}{row['error']:>9.0e}"
        if bench.absolute:
            rate = 3e-6 * shape.operations / row["step_ms"]
            line += (
                f"{row['step_ms']:>10.2f}{row['forward_ms']:>9.2f}{(row['peak_bytes'] or 0) / 2**20:>8.0f}{rate:>9.0f}"
            )
        print(line + (f"   {row['note']}" if row["note"] else ""))


# ----------------------------------------------------------------------------------------------------------- streaming
def streaming(bench: Bench, names: dict[str, Shape], rows: list[Row]) -> None:
    """A frame at a time, T = 1, B = 1: rows of each peer at each shape."""
    print(f"\n{'a frame at a time':<26}{'median':>9}{'99 %':>9}   eager's time by it")
    with bench.workers("STREAMS", bench.streams) as workers:
        for name, shape in names.items():
            found = stream(bench, name, shape, workers)
            print(
                f"{name}: {shape.I}->{shape.C} channels {shape.H}x{shape.W} k={shape.k}; {crowded(found[0]['others'])}"
            )
            for row in found:
                print_stream(bench, row)
            rows += found


def stream(bench: Bench, name: str, shape: Shape, workers: dict[str, Worker]) -> list[Row]:
    path = bench.folder / "numbers.npz"
    numbers_of(shape).write(path)
    errors = bench.checked(workers, "stream", path, f"{name}, streaming")
    right = {peer: w for peer, w in workers.items() if not isinstance(errors[peer], str)}
    bench.expect_silence(right)
    load = Load(right.values())
    turns = bench.turns(f"{name}, streaming", {peer: lambda w=w: w.ask("frames", FRAMES) for peer, w in right.items()})
    _, others = load.cores()
    medians = {peer: [statistics.median(turn) for turn in taken] for peer, taken in turns.items()}
    late = {peer: [float(np.percentile(turn, 99)) for turn in taken] for peer, taken in turns.items()}
    rows = []
    for peer, error in errors.items():
        row: Row = {"shape": name, "peer": peer}
        if isinstance(error, str):
            rows.append({**row, "refused": error})
            continue
        row |= {"error": error, "others": others, "ratio": median_ratio(medians["eager"], medians[peer])}
        row |= {"late_ratio": median_ratio(late["eager"], late[peer])}
        us = {"us": 1e6 * statistics.median(medians[peer]), "late_us": 1e6 * statistics.median(late[peer])}
        rows.append({**row, **us})
    return rows


def print_stream(bench: Bench, row: Row) -> None:
    if "refused" in row:
        print(f"{row['peer']:<26}refused: {row['refused']}")
        return
    us = f"   {row['us']:.0f} us, {row['late_us']:.0f} us" if bench.absolute else ""
    print(f"{row['peer']:<26}{row['ratio']:>9.2f}{row['late_ratio']:>9.2f}{us}")


# ----------------------------------------------------------------------------------------------------------- pointwise
def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def pointwise(bench: Bench) -> list[Row]:
    """Against a copy of the same bytes into fresh memory, which an op that returns arrays must touch, too."""
    z, c, big = random(8, 256, 64, 64), random(8, 64, 64, 64), random(1 << 24)
    h, c_new, saved = ops.lstm_gates_forward(z, c)
    forward_bytes = 2 * z.nbytes + 3 * c.nbytes  # z, c in; gates, h, c out
    backward_bytes = 2 * z.nbytes + 4 * c.nbytes  # gates, c, dh, dc in; dz, dc out, with dz as large as z
    y, total = ops.activation_forward("tanh", big), [big]
    measured: list[tuple[str, Timed, int]] = [
        ("gates forward", lambda: ops.lstm_gates_forward(z, c), forward_bytes),
        ("gates backward", lambda: ops.lstm_gates_backward(saved, h, c_new), backward_bytes),
        ("tanh", lambda: ops.activation_forward("tanh", big), 2 * big.nbytes),
        ("tanh backward", lambda: ops.activation_backward("tanh", big, y, big), 3 * big.nbytes),
    ]
    rows = []
    for name, run, nbytes in measured:
        rows.append(against(bench, name, run, "a copy of the same bytes", np.ones(nbytes // 8, np.float32).copy, 0.67))
    rows.append(against(bench, "global norm", lambda: ops.global_norm(total), "numpy's sum", big.sum, 1.0))
    return rows


def against(bench: Bench, what: str, run: Timed, rival: str, theirs: Timed, aim: float) -> Row:
    """aim: of the rival's speed."""
    with bench.bar(what, 2 * bench.rounds) as bar:
        times = interleaved({"ours": run, "theirs": theirs}, bench.rounds, tick=bar.update)
    return {"what": what, "rival": rival, "ratio": median_ratio(times["theirs"], times["ours"]), "aim": aim}


def print_pointwise(rows: list[Row]) -> None:
    print(f"\n{'pointwise':<26}{'x':>9}   times as fast as")
    for row in rows:
        print(f"{row['what']:<26}{row['ratio']:>9.2f}   {row['rival']}")


# ---------------------------------------------------------------------------------------------------------------- aims
def aims(result: Row) -> Iterator[Row]:
    """What is aimed at, what came, and whether that is met. "ceiling": what the direct algorithm could reach here."""
    for name in dict.fromkeys(row["shape"] for row in result["sequences"]):
        rows = {r["peer"]: r for r in result["sequences"] if r["shape"] == name and "refused" not in r}
        wide = [r for r in rows.values() if not r["bfloat16"] and not is_ours(r["peer"])]
        narrow = [r for r in rows.values() if r["bfloat16"] and not is_ours(r["peer"])]
        for what in ("step", "forward"):
            yield from speed_aim(f"{name}, {what}", what, rows.get("fusecell"), wide, SPEED_AIMS.get(name))
        yield from speed_aim(f"{name}, step, bf16", "step", rows.get("fusecell, bf16"), narrow, BFLOAT16_AIMS.get(name))
        for peer, wanted in MEMORY_AIMS.items():
            if peer in rows and rows[peer]["peak_bytes"] and rows["eager"]["peak_bytes"]:
                share = rows[peer]["peak_bytes"] / rows["eager"]["peak_bytes"]
                yield {
                    "aim": f"{name}, memory, {peer}",
                    "against": "eager",
                    "wanted": wanted,
                    "got": share,
                    "most": True,
                }
    for row in result["pointwise"]:
        yield {"aim": row["what"], "against": row["rival"], "wanted": row["aim"], "got": row["ratio"], "most": False}


def speed_aim(aim: str, what: str, ours: Row | None, rivals: list[Row], wanted: float | None) -> Iterator[Row]:
    """Against the fastest of the rivals. "best": by each one's fastest round, which a busy machine distorts least."""
    if ours is None or not rivals or wanted is None:
        return
    taken = f"{what}_seconds"
    got, fastest = min(((median_ratio(rival[taken], ours[taken]), rival) for rival in rivals), key=lambda pair: pair[0])
    best = min(fastest[taken]) / min(ours[taken])
    row = {"aim": aim, "against": fastest["peer"], "wanted": wanted, "got": got, "most": False, "best": best}
    if not fastest["bfloat16"]:  # whose multipliers' peak is another
        row["ceiling"] = min(fastest[taken]) / ours[f"{what}_floor"]
    yield row


def is_met(row: Row) -> bool:
    return row["got"] <= row["wanted"] if row["most"] else row["got"] >= row["wanted"]


def print_aims(rows: list[Row]) -> None:
    print(f"\n{'aim':<36}{'wanted':>9}{'got':>7}  {'':<7}{'best':>6}{'ceiling':>9}  against")
    for row in rows:
        wanted = f"{'<=' if row['most'] else '>='} {row['wanted']:.2f}"
        best, ceiling = (f"{row[name]:.2f}" if name in row else "" for name in ("best", "ceiling"))
        verdict = "met" if row["met"] else "missed"
        print(f"{row['aim']:<36}{wanted:>9}{row['got']:>7.2f}  {verdict:<7}{best:>6}{ceiling:>9}  {row['against']}")


# ---------------------------------------------------------------------------------------------------------- the picture
def draw(rows: list[Row], machine: Row, path: Path) -> None:
    """Three groups of bars for each shape: times as fast as eager in training and forward, and share of its memory."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from picture import bars, in_short

    rows = [row for row in rows if "refused" not in row]
    shapes, peers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "peer"))
    ours, theirs = [p for p in peers if is_ours(p)], [p for p in peers if not is_ours(p)]
    colours = {p: colormaps["Greys"](0.9 - 0.7 * i / len(theirs)) for i, p in enumerate(theirs)}
    colours |= {p: colormaps["Oranges"](0.8 - 0.5 * i / len(ours)) for i, p in enumerate(ours)}
    eager = {row["shape"]: row for row in rows if row["peer"] == "eager"}

    def share(row: Row) -> float | None:
        whole = eager[row["shape"]]["peak_bytes"]
        return row["peak_bytes"] / whole if row["peak_bytes"] and whole else None

    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = (
        ("training step, times as fast as eager", lambda row: row["step_ratio"]),
        ("forward, times as fast as eager", lambda row: row["forward_ratio"]),
        ("peak memory of a training step, share of eager's", share),
    )
    for axes, (title, value) in zip(figure.subplots(len(panels), 1), panels, strict=True):
        bars(axes, title, rows, value, shapes, colours)
        axes.set_xticks(range(len(shapes)), [in_short(shape_of(name)) for name in shapes], fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    said = ", ".join(f"{n} {machine[n]}" for n in ("torch", "keras", "tensorflow-cpu", "jax", "flax") if n in machine)
    busy = crowded(max(row["others"] for row in rows))
    said = f"{machine['threads']} threads, {machine['kernels']}, {said}; {busy}"
    figure.suptitle(said, fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------ arguments
def shape_of(name: str) -> Shape:
    """S, M, L, K5, or B,T,I,C,H,W,k."""
    if name in SHAPES:
        return SHAPES[name]
    try:
        return Shape(*map(int, name.split(",")))
    except (TypeError, ValueError):
        text = f"expected {', '.join(SHAPES)} or seven numbers B,T,I,C,H,W,k, got {name}"
        raise argparse.ArgumentTypeError(text) from None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts, cores = ("sequences", "streaming", "pointwise"), len(os.sched_getaffinity(0))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="SHAPE", help=shape_of.__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="beside eager, which is the measure; all by default")
    parser.add_argument("--threads", type=int, default=min(2, cores), help="of every peer, and the CPUs it may run on")
    parser.add_argument("--rounds", type=int, help="11; 3 with --quick; the slow ones take 2")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and without the slow ones")
    parser.add_argument("--absolute", action="store_true", help="also print milliseconds, MiB and GFLOP/s")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--plot", action="store_true", help="also renew docs/cpu.md: its picture and its tables")
    args = parser.parse_args()
    try:
        args.shapes = {name: shape_of(name) for name in args.shapes}
    except argparse.ArgumentTypeError as error:
        parser.error(f"--shapes: {error}")
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads: expected 1 to {cores}, the CPUs this process may run on, got {args.threads}")
    args.peers = present(args.peers or list(PEERS))
    return args


def present(peers: list[str]) -> list[str]:
    for peer in peers:
        if PEERS[peer].missing:
            sys.stderr.write(f"{', '.join(PEERS[peer].missing)} not installed: {peer} is left out\n")
    return [peer for peer in peers if not PEERS[peer].missing]


def confine(threads: int) -> None:
    """To the first CPUs there are (`taskset -c` chooses others), for the processes that are started from here, too."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure(bench: Bench, args: argparse.Namespace, result: Row) -> None:
    """Into the lists of the result, so that what there is remains where it is stopped."""
    if "pointwise" in args.parts:
        result["pointwise"] = pointwise(bench)
        print_pointwise(result["pointwise"])
    if PEERS["eager"].missing:
        sys.stderr.write("torch is not installed: sequences and streaming, which are measured by it, are left out\n")
        return
    import torch

    torch.set_num_threads(bench.threads)
    if "sequences" in args.parts:
        sequences(bench, args.shapes, result["sequences"])
    if "streaming" in args.parts:
        streaming(bench, args.shapes, result["streaming"])


def main() -> int:
    args = parsed()
    confine(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        result: Row = {**bench.machine(), "sequences": [], "streaming": [], "pointwise": []}
        print(", ".join(f"{name}: {value}" for name, value in bench.machine().items()))
        try:
            measure(bench, args, result)
        except (KeyboardInterrupt, Refused) as stop:
            sys.stderr.write(f"stopped: {stop or 'by hand'}\n")
            bench.failed, args.plot = True, False
    result["aims"] = [{**row, "met": is_met(row)} for row in aims(result)]
    if result["aims"]:
        print_aims(result["aims"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if args.plot:
        renew(PAGE, tables(result))
        if result["sequences"]:
            draw(result["sequences"], result, PICTURE)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
