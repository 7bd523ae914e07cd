"""What `gpu_training.py` measures, in which order, what it found, and what that is held against.

Nothing here runs a peer or needs a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import aligned
from shapes import GPU_SHAPES, Shape
from timing import median_ratio

Found = dict[str, Any]
SHAPES = GPU_SHAPES
PRECISIONS = ("bf16", "TF32", "float32")
MODES = ("training", "inference")
SMALL = ("small", "small, k5")  # where pointwise work and launches take more than half of a peer's time
RIVALS = 2  # of fusecell's in a rematch

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
    needs: str = ""  # a module that not every machine has

    @property
    def is_missing(self) -> bool:
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


PEERS = {
    "fusecell": Peer(90, 0),
    "fusecell, recompute": Peer(90, 0, graphs=False, modes=("training",)),  # for its memory
    "eager": Peer(90, 0),
    "channels_last": Peer(90, 0),
    "compile, step": Peer(150, 1),
    "compile": Peer(300, 1, compiled=True),
    "max-autotune": Peer(200, 2),  # it times kernels while it compiles, and so has the GPU for itself
    "JAX": Peer(150, 2, graphs=False, keeps_memory=True, needs="jax"),
    "Keras": Peer(150, 2, graphs=False, keeps_memory=True, needs="keras"),
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
    took long to compile are still there; those of the first stage alone, which takes seconds, if there is no other.
    """
    shapes, precisions, peers = list(shapes), list(precisions), list(peers)
    last = max(PEERS[name].stage for name in peers)
    narrow = [p for p in precisions if p == "bf16"]
    wide = [p for p in precisions if p != "bf16"]
    made: list[Cell | Rematch] = []
    for chosen, stage in ((narrow, 0), (narrow, 1), (wide, 0), (narrow, 2), (wide, 1), (wide, 2)):
        wanted = [name for name in peers if PEERS[name].stage == stage]
        for precision in chosen:
            for shape in shapes:
                made += [cell for peer in wanted for cell in cells_of(shape, precision, peer)]
                if wanted and (stage > 0 or stage == last):
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
        "\n".join(f"{run['date']}, commit {run['commit']}, {run['seconds']:.0f} s" for run in results.found["runs"]),
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
