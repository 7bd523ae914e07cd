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
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from page import aligned
from processes import Process, Refused
from shapes import GPU_SHAPES, Shape
from timing import median_ratio, take_turns

Found = dict[str, Any]
HERE = Path(__file__).parent
SHAPES = GPU_SHAPES
PRECISIONS = ("bf16", "TF32", "float32")
MODES = ("training", "inference")
SMALL = ("small", "small, k5")  # where pointwise work and launches take more than half of a peer's time

ROUNDS = 5  # of a rematch
RIVALS = 2  # of fusecell's in a rematch
TURN = 0.1  # seconds of a rival's turn in it
SERIES = 0.6  # seconds of the first timing of a cell
LEAST = 12.0  # seconds that must be left for a cell to be begun
AT_ONCE = 5  # compilations beside each other

# Operations per second by precision and bytes per second, measured elsewhere on an H100 80GB; what the same run
# measures of its own GPU goes before.
CEILINGS = {"bf16": 798e12, "TF32": 400e12, "float32": 52e12}
COPY = 3.0e12


@dataclass(frozen=True)
class Peer:
    """patience: seconds for it to be made and to run for the first time. stage: how early it is measured."""

    patience: float
    stage: int
    graphs: bool = True
    compiled: bool = False
    keeps_memory: bool = False  # until its process ends
    modes: tuple[str, ...] = MODES


PEERS = {
    "fusecell": Peer(90, 0),
    "fusecell, recompute": Peer(90, 0, graphs=False, modes=("training",)),  # for its memory
    "eager": Peer(90, 0),
    "channels_last": Peer(90, 0),
    "compile, step": Peer(150, 1),
    "compile": Peer(300, 1, compiled=True),
    "max-autotune": Peer(300, 2),
    "JAX": Peer(150, 2, graphs=False, keeps_memory=True),
    "Keras": Peer(150, 2, graphs=False, keeps_memory=True),
}
OURS, EAGER = "fusecell", "eager"


def is_rival(peer: str) -> bool:
    return not peer.startswith(OURS)


# ------------------------------------------------------------------------------------------------------------ the plan
@dataclass(frozen=True)
class Cell:
    """A peer's training step or inference at a shape, called as usual or replayed as a CUDA graph."""

    shape: str
    precision: str
    peer: str
    mode: str
    graph: bool = False

    @property
    def key(self) -> str:
        return "|".join((self.shape, self.precision, self.peer, self.mode, "graph" if self.graph else "call"))

    @property
    def name(self) -> str:
        return f"{self.peer}, graph" if self.graph else self.peer


@dataclass(frozen=True)
class Rematch:
    """fusecell and its fastest rivals by turns, once the cells are there."""

    shape: str
    precision: str
    mode: str

    @property
    def key(self) -> str:
        return "|".join((self.shape, self.precision, self.mode))


def plan(shapes: Iterable[str], precisions: Iterable[str], peers: Iterable[str]) -> list[Cell | Rematch]:
    """What is measured, the most important first.

    bf16 goes before the others in each stage, and they have their first stage before it has its last, which takes
    minutes. After a shape's cells of a later stage come the rematches that they may have changed, while the peers that
    took long to compile are still there.
    """
    shapes, precisions, peers = list(shapes), list(precisions), list(peers)
    narrow = [p for p in precisions if p == "bf16"]
    wide = [p for p in precisions if p != "bf16"]
    made: list[Cell | Rematch] = []
    for chosen, stage in ((narrow, 0), (narrow, 1), (wide, 0), (narrow, 2), (wide, 1), (wide, 2)):
        wanted = [name for name in peers if PEERS[name].stage == stage]
        for precision in chosen:
            for shape in shapes:
                made += [cell for peer in wanted for cell in cells_of(shape, precision, peer)]
                if stage > 0 and wanted:
                    made += [Rematch(shape, precision, mode) for mode in MODES]
    return made


def cells_of(shape: str, precision: str, peer: str) -> list[Cell]:
    kinds = (False, True) if PEERS[peer].graphs else (False,)
    return [Cell(shape, precision, peer, mode, graph) for graph in kinds for mode in PEERS[peer].modes]


# --------------------------------------------------------------------------------------------------------- the results
class Results:
    """What was found, in a file that is whole at any moment."""

    def __init__(self, path: Path, found: Found | None = None) -> None:
        self.path = path
        self.found = found or {"runs": [], "machine": {}, "ceilings": {}, "cells": {}, "rematches": {}}

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises OSError, ValueError for what is no file of results."""
        found = json.loads(path.read_text(encoding="utf-8"))
        if not {"machine", "cells", "rematches"} <= set(found):
            raise ValueError(f"{path}: expected the results of this program, got {', '.join(found)}")
        return cls(path, found)

    def write(self) -> None:
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        beside.replace(self.path)

    def put(self, part: str, key: str, value: Found) -> None:
        self.found[part][key] = value
        self.write()

    def expect_machine(self, machine: Found) -> None:
        """Raises ValueError where a file is to be continued on another machine, whose times are no rivals."""
        before = self.found["machine"]
        if before and before != machine:
            raise ValueError(f"--resume: expected the machine of {self.path}, {before}, got {machine}")
        self.found["machine"] = machine

    def timing(self, cell: Cell) -> Found | None:
        found = self.found["cells"].get(cell.key, {})
        return found if "ms" in found else None

    def timings(self, shape: str, precision: str, mode: str) -> dict[Cell, Found]:
        cells = (c for peer in PEERS for c in cells_of(shape, precision, peer) if c.mode == mode)
        return {cell: found for cell in cells if (found := self.timing(cell))}

    def fastest(self, shape: str, precision: str, mode: str) -> tuple[Cell | None, list[Cell]]:
        """fusecell's faster form, and every rival's, the fastest rival first; by the first timings."""
        forms: dict[str, Cell] = {}
        times = self.timings(shape, precision, mode)
        for cell in sorted(times, key=lambda cell: times[cell]["ms"]):
            forms.setdefault(cell.peer, cell)
        return forms.get(OURS), [cell for peer, cell in forms.items() if is_rival(peer)]

    def is_there(self, task: Cell | Rematch) -> bool:
        if isinstance(task, Cell):
            return task.key in self.found["cells"]
        contestants = self.contestants(task)
        there = self.found["rematches"].get(task.key, {})
        # Whoever failed stands in it without turns.
        return not contestants or set(there) == {cell.name for cell in contestants}

    def contestants(self, match: Rematch) -> list[Cell]:
        """Nobody where there is nothing to compare."""
        ours, rivals = self.fastest(match.shape, match.precision, match.mode)
        return [ours, *rivals[:RIVALS]] if ours and rivals else []


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
            self.processes[who] = self.start(peer, precision, os.cpu_count() or 1)
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
        if self.held not in (None, who):
            self.workers.leave(*self.held)
        self.held = who
        wanted = PEERS[cell.peer].patience
        return self.ask(cell, "hold", sizes(cell.shape), cell.mode, cell.graph, truth, patience=wanted)

    def ask(self, cell: Cell, method: str, *arguments: Any, patience: float) -> Any:
        patience = self.budget.patience(patience)
        return self.workers.ask(cell.peer, cell.precision, method, *arguments, patience=patience)

    def truth(self, shape: str) -> str:
        """The file with the results in float64. Raises Refused."""
        path = self.truths / f"{shape}.pt"
        if shape in self.without_truth:
            raise self.without_truth[shape]
        if not path.exists():
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
        if self.held:
            self.workers.leave(*self.held)
            self.held = None
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


# ------------------------------------------------------------------------------------------------------------ the aims
@dataclass(frozen=True)
class Aim:
    what: str
    wanted: float
    got: float | None
    most: bool = False

    @property
    def verdict(self) -> str:
        if self.got is None:
            return "no figure"
        return "met" if (self.got <= self.wanted if self.most else self.got >= self.wanted) else "missed"


def aim_of_speed(shape: str, precision: str, mode: str) -> float | None:
    """Times as fast as the best rival. Of float32 and TF32 it is only said: ahead of it."""
    if precision != "bf16":
        return 1.0
    if mode == "inference":
        return None
    return {"reference": 1.3, **dict.fromkeys(SMALL, 2.0)}.get(shape)


def aim_over_eager(shape: str, precision: str, mode: str) -> float | None:
    if (precision, mode) != ("bf16", "training"):
        return None
    return {"reference": 1.9, **dict.fromkeys(SMALL, 4.0)}.get(shape)


MEMORY_AIMS = {"fusecell": 0.65, "fusecell, recompute": 0.45}  # shares of eager's peak, bf16
FLOOR_AIM = 0.6  # of the floor, a forward step in bf16 at the reference shape
STRETCH = 1.6


def floor_ms(shape: Shape, precision: str, ceilings: Found) -> float:
    """A forward step without saved gates: operations or bytes, whichever takes longer. c is float32 in any case."""
    at = {"operations": CEILINGS[precision], "bytes": COPY, **ceilings.get(precision, {})}
    wide = 2 if precision == "bf16" else 4
    pixels = shape.B * shape.H * shape.W
    nbytes = pixels * (wide * (shape.I + 2 * shape.C) + 2 * 4 * shape.C)  # x, h', h; c', c
    return 1e3 * max(shape.operations / shape.T / at["operations"], nbytes / at["bytes"])


@dataclass(frozen=True)
class Row:
    """A shape in a precision, training or inference."""

    shape: str
    precision: str
    mode: str
    ours: str = ""
    ms: float | None = None
    best: str = ""
    best_ms: float | None = None
    ratio: float | None = None  # the best rival's time by fusecell's
    by_turns: bool = False
    over_eager: float | None = None  # both as usually called
    floor: float | None = None  # of the floor's time, a forward step
    failed: str = ""  # why fusecell has no time

    @property
    def aim(self) -> Aim | None:
        wanted = aim_of_speed(self.shape, self.precision, self.mode)
        return None if wanted is None else Aim("by the best rival", wanted, self.ratio)


def row(results: Results, shape: str, precision: str, mode: str) -> Row:
    """From what is there, which may be nothing."""
    ours, rivals = results.fastest(shape, precision, mode)
    if not ours:
        calls = (results.found["cells"].get(c.key, {}) for c in cells_of(shape, precision, OURS) if c.mode == mode)
        reasons = [found["failed"] for found in calls if "failed" in found]
        return Row(shape, precision, mode, failed=reasons[0] if reasons else "no time")
    times = {cell.name: [results.found["cells"][cell.key]["ms"]] for cell in [ours, *rivals]}
    played = results.found["rematches"].get(Rematch(shape, precision, mode).key, {})
    by_turns = set(played) == {cell.name for cell in [ours, *rivals[:RIVALS]]} and all(played.values())
    if by_turns:
        times = {name: list(turns) for name, turns in played.items()}
    ms = statistics.median(times.pop(ours.name))
    best = min(times, key=lambda name: statistics.median(times[name]), default="")
    plain, eager = (results.timing(Cell(shape, precision, peer, mode)) for peer in (OURS, EAGER))
    floor = floor_ms(SHAPES[shape], precision, results.found["ceilings"]) * SHAPES[shape].T
    return Row(
        shape, precision, mode, ours.name, ms, best,
        statistics.median(times[best]) if best else None,
        median_ratio(times[best], played[ours.name] if by_turns else [ms]) if best else None,
        by_turns,
        eager["ms"] / plain["ms"] if plain and eager else None,
        floor / ms if mode == "inference" else None,
    )  # fmt: skip


def memory_share(results: Results, shape: str, precision: str, peer: str) -> float | None:
    """Its peak in a training step by eager's."""
    peaks = [(results.timing(Cell(shape, precision, p, "training")) or {}).get("peak_bytes") for p in (peer, EAGER)]
    return peaks[0] / peaks[1] if all(peaks) else None


def aims(results: Results, rows: Sequence[Row]) -> list[Aim]:
    """What is aimed at besides the best rivals, for the shapes and precisions of the rows."""
    made = []
    for r in rows:
        if wanted := aim_over_eager(r.shape, r.precision, r.mode):
            made.append(Aim(f"{r.mode}, {r.shape}, {r.precision}: by eager", wanted, r.over_eager))
        if (r.shape, r.precision) == ("reference", "bf16"):
            if r.mode == "training":
                made.append(Aim("training, reference, bf16: by the best rival (stretch)", STRETCH, r.ratio))
            else:
                made.append(Aim("forward step, reference, bf16: share of the floor", FLOOR_AIM, r.floor))
        if (r.precision, r.mode) == ("bf16", "training"):
            for peer, wanted in MEMORY_AIMS.items():
                share = memory_share(results, r.shape, r.precision, peer)
                made.append(Aim(f"peak memory, {r.shape}, bf16: {peer} by eager", wanted, share, most=True))
    return made


# ---------------------------------------------------------------------------------------------------------- the tables
def number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


SPEED = ("shape", "precision", "what", "fusecell", "ms", "best rival", "ms", "ratio", "by eager", "aim", "verdict")


def speed_line(r: Row) -> list[str]:
    verdict = r.failed or (r.aim.verdict if r.aim else "")
    ratio = number(r.ratio) + ("" if r.by_turns or r.ratio is None else "*")
    wanted = number(r.aim.wanted) if r.aim else ""
    return [
        r.shape, r.precision, r.mode, r.ours, number(r.ms, ".3f"), r.best, number(r.best_ms, ".3f"), ratio,
        number(r.over_eager), wanted, verdict,
    ]  # fmt: skip


FURTHER = (
    "shape", "precision", "of the floor", "memory", "memory, recompute",
    "error of y", "cuDNN's", "of gradients", "cuDNN's",
)  # fmt: skip


def further_line(results: Results, r: Row) -> list[str]:
    """r: of inference."""
    shares = [memory_share(results, r.shape, r.precision, peer) for peer in MEMORY_AIMS]
    errors = [
        max(((results.timing(Cell(r.shape, r.precision, peer, mode)) or {}).get("errors") or {}).values(), default=None)
        for mode in ("inference", "training")
        for peer in (OURS, EAGER)
    ]
    return [r.shape, r.precision, number(r.floor), *map(number, shares), *(number(e, ".1e") for e in errors)]


def tables(results: Results, shapes: Sequence[str], precisions: Sequence[str]) -> str:
    rows = [row(results, s, p, mode) for p in precisions for s in shapes for mode in MODES]
    forward = (further_line(results, r) for r in rows if r.mode == "inference")
    wanted = (
        [a.what, ("<= " if a.most else ">= ") + number(a.wanted), number(a.got), a.verdict] for a in aims(results, rows)
    )
    failed = [f"{key}: {found['failed']}" for key, found in results.found["cells"].items() if "failed" in found]
    parts = [
        ", ".join(f"{name} {value}" for name, value in results.found["machine"].items() if value),
        "\n".join(f"{s}: {SHAPES[s]}" for s in shapes),
        aligned(SPEED, map(speed_line, rows)) + "\n* from the first timings, not by turns",
        aligned(FURTHER, forward),
        aligned(("aim", "wanted", "got", "verdict"), wanted),
    ]
    return "\n\n".join([*parts, "\n".join(["without a time:", *failed])] if failed else parts)


def of_fusecell_failed(results: Results) -> bool:
    """Wrong, or broken."""
    cells = results.found["cells"].items()
    return any("failed" in found and not is_rival(key.split("|")[2]) for key, found in cells)


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
    budget = Budget(args.seconds)
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or HERE.parent / "build" / "inductor"
    workers = Workers(args.device, Path(cache))
    with tempfile.TemporaryDirectory(prefix="fusecell-truths-") as folder, contextlib.ExitStack() as stack:
        stack.callback(workers.close_all)
        machine = workers.ask(EAGER, args.precisions[0], "machine", patience=budget.patience(90))
        results.expect_machine({**machine, "host": platform.machine()})
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        results.found["runs"].append({"command": " ".join(sys.argv), "date": now, "seconds": args.seconds})
        results.write()
        measuring = Measuring(workers, results, budget, Path(folder))
        with contextlib.suppress(OutOfTime):
            if args.device == "cuda":
                measuring.ceilings(args.precisions)
        measuring.run(tasks)


if __name__ == "__main__":
    sys.exit(main())
