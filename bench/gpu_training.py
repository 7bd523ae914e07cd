"""Training and inference of a ConvLSTM layer on a GPU: fusecell against PyTorch, JAX and Keras, and against its aims.

    python bench/gpu_training.py --json FILE [--resume] [--seconds N] [--shapes NAME ...] [--precisions NAME ...]
                                 [--peers NAME ...] [--list] [--read]

Each peer runs in a process of its own, so that one that fails, hangs or breaks its CUDA context ends no other; one
runs at a time. Results are compared with float64 before anything is timed. The most important cells come first, FILE
is written after each, and --resume goes on with those that are missing. bench/README.md says what the tables mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from gpu_results import (
    EAGER,
    MODES,
    PEERS,
    PRECISIONS,
    SHAPES,
    Cell,
    Found,
    Rematch,
    Results,
    of_fusecell_failed,
    plan,
    tables,
)
from processes import Process, Refused
from timing import take_turns

HERE = Path(__file__).parent

ROUNDS = 5  # of a rematch
TURN = 0.1  # seconds of a rival's turn in it
SERIES = 0.6  # seconds of the first timing of a cell
LEAST = 12.0  # seconds that must be left for a cell to be begun
AT_ONCE = 5  # compilations beside each other


# ----------------------------------------------------------------------------------------------------------- measuring
class OutOfTime(Exception):
    """The budget is spent; what is missing stays missing."""


class Budget:
    """Seconds for all of it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self.end - self.clock()

    def patience(self, wanted: float) -> float:
        """At most what is left, less a moment to write and print. Raises OutOfTime where that is too little."""
        if self.left < LEAST:
            raise OutOfTime
        return min(wanted, self.left - 3)


class Workers:
    """A process for each peer and precision, begun when it is needed and again after it broke."""

    def __init__(self, device: str, cache: Path) -> None:
        self.device, self.cache = device, cache
        self.processes: dict[tuple[str, str], Process] = {}

    def start(self, peer: str, precision: str, threads: int) -> Process:
        command = [sys.executable, str(HERE / "gpu_peers.py"), peer, precision, self.device]
        environment = {
            # A cache for each precision: TF32's switches are not in all of Inductor's keys.
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache / precision),
            "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "KERAS_BACKEND": "jax",
        }
        return Process(f"{peer}, {precision}", command, environment)

    def ask(self, peer: str, precision: str, method: str, *arguments: Any, patience: float) -> Any:
        """Raises Refused. A process that may have harmed its CUDA context is closed."""
        who = peer, precision
        if who not in self.processes:
            self.processes[who] = self.start(peer, precision, min(8, os.cpu_count() or 1))
        try:
            return self.processes[who].ask(method, *arguments, patience=patience)
        except Refused as reason:
            if type(reason) is not Refused or not self.is_well(who):
                self.close(*who)
            raise

    def is_well(self, who: tuple[str, str]) -> bool:
        """Whether the GPU has nothing to say against its process, whose memory is given back."""
        try:
            self.processes[who].ask("drop", patience=20)
        except Refused:
            return False
        return True

    def close(self, peer: str, precision: str) -> None:
        if process := self.processes.pop((peer, precision), None):
            process.close()

    def leave(self, peer: str, precision: str) -> None:
        """Let others have the memory; what was compiled stays."""
        if PEERS[peer].keeps_memory:
            self.close(peer, precision)
        elif (peer, precision) in self.processes:
            with contextlib.suppress(Refused):  # then its process has been closed
                self.ask(peer, precision, "rest", patience=20)

    def close_all(self) -> None:
        for who in list(self.processes):
            self.close(*who)


class Measuring:
    """Works through a plan."""

    def __init__(self, workers: Workers, results: Results, budget: Budget, truths: Path) -> None:
        self.workers, self.results, self.budget, self.truths = workers, results, budget, truths
        self.held: tuple[str, str] | None = None
        self.compiled: set[tuple[str, str]] = set()
        self.without_truth: dict[str, Refused] = {}

    def run(self, tasks: Sequence[Cell | Rematch]) -> None:
        """All that is missing, as far as the time goes."""
        try:
            for task in tasks:
                if self.results.is_there(task):
                    continue
                if isinstance(task, Rematch):
                    self.rematch(task)
                else:
                    if PEERS[task.peer].compiled:
                        self.compile_ahead(task, tasks)
                    self.measure(task)
        except OutOfTime:
            log("no time is left")

    def measure(self, cell: Cell) -> None:
        try:
            held = self.hold(cell)
            count = repetitions(held["once_ms"], SERIES, self.budget.left)
            times = self.ask(cell, "series", count, patience=60)
        except Refused as reason:
            if self.budget.left < LEAST:  # it may be our time that ran out, and not its own
                raise OutOfTime from None
            self.fail(cell, reason)
        else:
            timing = {"ms": statistics.median(times), "min_ms": min(times), "repetitions": len(times)}
            self.results.put("cells", cell.key, {**timing, **held})
            log(f"{cell.key}: {timing['ms']:.3f} ms")

    def fail(self, cell: Cell, reason: Refused) -> None:
        self.results.put("cells", cell.key, {"failed": in_a_line(reason)})
        log(f"{cell.key}: FAILED: {in_a_line(reason)}")

    def hold(self, cell: Cell) -> Found:
        """Ready to be timed, with everything else out of the GPU's memory."""
        who = cell.peer, cell.precision
        truth = self.truth(cell.shape)
        if self.held != who:
            self.clear()
        self.held = who
        wanted = PEERS[cell.peer].patience
        return self.ask(cell, "hold", sizes(cell.shape), cell.mode, cell.graph, truth, patience=wanted)

    def clear(self) -> None:
        """Nobody holds anything on the GPU."""
        if self.held:
            self.workers.leave(*self.held)
            self.held = None

    def ask(self, cell: Cell, method: str, *arguments: Any, patience: float) -> Any:
        patience = self.budget.patience(patience)
        return self.workers.ask(cell.peer, cell.precision, method, *arguments, patience=patience)

    def truth(self, shape: str) -> str:
        """The file with the results in float64. Raises Refused."""
        path = self.truths / f"{shape}.pt"
        if shape in self.without_truth:
            raise self.without_truth[shape]
        if not path.exists():
            self.clear()
            patience = self.budget.patience(120)
            try:
                self.workers.ask(EAGER, "float32", "truth", sizes(shape), str(path), patience=patience)
            except Refused as reason:
                self.without_truth[shape] = Refused(f"no results in float64 to compare with: {reason}")
                raise self.without_truth[shape] from reason
        return str(path)

    def ceilings(self, precisions: Iterable[str], size: int = 8192, count: int = 1 << 28) -> None:
        """Of this GPU, for the floors."""
        for precision in precisions:
            if precision not in self.results.found["ceilings"]:
                patience = self.budget.patience(60)
                try:
                    found = self.workers.ask(EAGER, precision, "ceilings", size, count, patience=patience)
                except Refused as reason:
                    log(f"ceilings of {precision}: {in_a_line(reason)}: those of docs/cuda.md are taken")
                else:
                    self.results.put("ceilings", precision, found)
                self.workers.leave(EAGER, precision)

    def compile_ahead(self, cell: Cell, tasks: Sequence[Cell | Rematch]) -> None:
        """Fill the cache with what this peer needs in this precision: several at a time, which cannot be timed.

        Each in a process of its own, for at most a quarter of the time that is left. What fails here will do so again
        where it is measured, and say why.
        """
        if (cell.peer, cell.precision) in self.compiled:
            return
        self.compiled.add((cell.peer, cell.precision))
        missing = [t for t in tasks if isinstance(t, Cell) and not t.graph and not self.results.is_there(t)]
        chosen = [t for t in missing if (t.peer, t.precision) == (cell.peer, cell.precision)]
        shapes = list(dict.fromkeys(task.shape for task in chosen))
        if len(shapes) < 2:
            return
        self.clear()
        log(f"compiling {cell.peer}, {cell.precision}: {', '.join(shapes)}")
        end = self.budget.clock() + min(PEERS[cell.peer].patience, self.budget.left / 4)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda shape: self.compile_one(cell, shape, end), shapes))

    def compile_one(self, cell: Cell, shape: str, end: float) -> None:
        process = self.workers.start(cell.peer, cell.precision, max(1, (os.cpu_count() or 1) // AT_ONCE))
        with process:
            for mode in MODES:
                patience = end - self.budget.clock()
                if patience < 5:
                    return
                try:
                    process.ask("hold", sizes(shape), mode, False, None, patience=patience)
                except Refused as reason:
                    log(f"compiling {cell.peer}, {cell.precision}, {shape}, {mode}: {in_a_line(reason)}")
                    return

    def rematch(self, match: Rematch) -> None:
        """By turns: every contestant is held by its own process, and only one of them runs."""
        contestants = self.results.contestants(match)
        self.clear()
        turns: dict[str, Callable[[], float]] = {}
        found: Found = {cell.name: [] for cell in contestants}
        try:
            for cell in contestants:
                patience = PEERS[cell.peer].patience
                with contextlib.suppress(Refused):
                    arguments = sizes(cell.shape), cell.mode, cell.graph, self.truth(cell.shape)
                    self.ask(cell, "hold", *arguments, patience=patience)
                    turns[cell.name] = self.turn(cell)
            if len(turns) > 1 and contestants[0].name in turns:
                with contextlib.suppress(Refused):
                    found |= take_turns(turns, ROUNDS)
        finally:
            for cell in contestants:
                self.workers.leave(cell.peer, cell.precision)
        if self.budget.left < LEAST:
            raise OutOfTime
        self.results.put("rematches", match.key, found)
        log(f"rematch {match.key}: " + ", ".join(f"{n} {statistics.median(t):.3f}" for n, t in found.items() if t))

    def turn(self, cell: Cell) -> Callable[[], float]:
        timing = self.results.timing(cell)
        assert timing
        count = repetitions(timing["ms"], TURN, self.budget.left)
        return lambda: statistics.median(self.ask(cell, "series", count, patience=60))


def repetitions(ms: float, seconds: float, left: float) -> int:
    """5 to 100 runs; fewer seconds where few are left."""
    return max(5, min(100, int(1e3 * min(seconds, left / 20) / ms)))


def sizes(shape: str) -> tuple[int, ...]:
    return astuple(SHAPES[shape])


def in_a_line(reason: BaseException) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


# ---------------------------------------------------------------------------------------------------------- the command
def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the results are kept, after each cell")
    parser.add_argument("--resume", action="store_true", help="go on with what is missing there, on the same machine")
    parser.add_argument("--read", action="store_true", help="print the tables of what is there, and measure nothing")
    parser.add_argument("--seconds", type=float, default=500, help="for all of it")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--device", default="cuda", help="cpu: to try the program, not to measure")
    parser.add_argument("--list", action="store_true", help="what is measured, in this order")
    args = parser.parse_args(given)
    args.peers = [name for name in args.peers if not PEERS[name].is_missing] or parser.error("--peers: none is there")
    if not (args.json or args.list):
        parser.error("--json: expected a file, got none")
    return args


def main(given: Sequence[str] | None = None) -> int:
    args = parsed(given)
    tasks = plan(args.shapes, args.precisions, args.peers)
    if args.device != "cuda":
        tasks = [task for task in tasks if not getattr(task, "graph", False)]
    if args.list:
        sys.stdout.write("".join(f"{type(task).__name__.lower()} {task.key}\n" for task in tasks))
        return 0
    there = args.read or (args.resume and args.json.exists())
    results = Results.read(args.json) if there else Results(args.json)
    try:
        if not args.read:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the tables are still printed
            measure(args, tasks, results)
    finally:
        sys.stdout.write(f"\n{tables(results, args.shapes, args.precisions)}\n")
    return 1 if of_fusecell_failed(results) else 0


def measure(args: argparse.Namespace, tasks: Sequence[Cell | Rematch], results: Results) -> None:
    """Raises SystemExit where nothing can be measured."""
    budget = Budget(args.seconds)
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or HERE.parent / "build" / "inductor"
    workers = Workers(args.device, Path(cache))
    with contextlib.ExitStack() as stack:
        stack.callback(workers.close_all)
        stack.enter_context(contextlib.suppress(OutOfTime))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fusecell-truths-"))
        try:
            machine = workers.ask(EAGER, args.precisions[0], "machine", patience=budget.patience(90))
        except Refused as reason:
            raise SystemExit(f"nothing can be measured: {reason}") from None
        results.expect_machine({**machine, "host": platform.machine()})
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        run = {"command": " ".join(sys.argv), "commit": commit(), "date": now, "seconds": args.seconds}
        results.found["runs"].append({**run, "peers": args.peers})
        results.write()
        measuring = Measuring(workers, results, budget, Path(folder))
        if args.device == "cuda":
            measuring.ceilings(args.precisions)
        measuring.run(tasks)


def commit() -> str:
    """Of this checkout, if it is one."""
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip() or "unknown"
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
