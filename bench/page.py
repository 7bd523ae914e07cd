"""The tables of docs/cpu.md, from what bench_cpu.py found: a page that nobody copies numbers into."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def renew(path: Path, tables: dict[str, str]) -> None:
    """Put each table between `<!-- name -->` and `<!-- end -->`. Raises ValueError where a pair is missing."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text, count = re.subn(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text)
        if count != 1:
            raise ValueError(f"{path}: expected <!-- {name} --> and <!-- end --> once, got {count} of them")
    path.write_text(text, encoding="utf-8")


def tables(result: Row) -> dict[str, str]:
    """In Markdown; of parts that were not measured, none."""
    made = {"machine": machine(result)}
    if result["sequences"]:
        made["sequences"] = by_shape(result["sequences"], of_sequence)
    if result["streaming"]:
        made["streaming"] = by_shape(result["streaming"], lambda row, _: f"{row['ratio']:.2f}, {row['late_ratio']:.2f}")
    if result["aims"]:
        made["aims"] = lined(("aim", "wanted", "got", "", "best", "ceiling", "against"), map(of_aim, result["aims"]))
    return made


def machine(result: Row) -> str:
    names = ("kernels", "threads", "rounds", "torch", "keras", "tensorflow-cpu", "jax", "flax")
    busy = max((row.get("others", 0.0) for row in result["sequences"] + result["streaming"]), default=0.0)
    said = ", ".join(f"{name} {result[name]}" for name in names if name in result)
    return f"{said}; {crowded(busy)}.\n"


def crowded(others: float) -> str:
    """Threads that wait for each other lose most where others take the CPUs: a library's loss is not a rival's gain."""
    return f"others kept {others:.2f} CPUs busy meanwhile" + (": NO FIGURE TO KEEP" if others > 0.1 else "")


def of_sequence(row: Row, eager: Row) -> str:
    memory = f"{row['peak_bytes'] / eager['peak_bytes']:.2f}" if row["peak_bytes"] and eager["peak_bytes"] else "-"
    return f"{row['step_ratio']:.2f}, {row['forward_ratio']:.2f}, {memory}"


def of_aim(row: Row) -> list[str]:
    wanted = f"{'at most' if row['most'] else 'at least'} {row['wanted']:.2f}"
    further = (f"{row[name]:.2f}" if name in row else "" for name in ("best", "ceiling"))
    return [row["aim"], wanted, f"{row['got']:.2f}", "met" if row["met"] else "missed", *further, row["against"]]


def by_shape(rows: list[Row], say: Callable[[Row, Row], str]) -> str:
    """A line for each peer, a column for each shape."""
    shapes, peers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "peer"))
    found = {(row["peer"], row["shape"]): row for row in rows}

    def cell(peer: str, shape: str) -> str:
        row = found[peer, shape]
        return "refused" if "refused" in row else say(row, found["eager", shape])

    return lined(("", *shapes), ([peer, *(cell(peer, shape) for shape in shapes)] for peer in peers))


def lined(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, ["---"] * len(head), *rows))


def aligned(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The same for a terminal: columns of one width."""
    lines = [tuple(cells) for cells in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = ([cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)
