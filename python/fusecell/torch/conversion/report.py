"""What `convert` did, module by module."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Replaced:
    """A module that computes by fusecell's kernels now."""

    name: str
    kind: str  # its class's name
    how: str  # "cell" or "sequence"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A module that looks like a ConvLSTM and computes as before."""

    name: str
    kind: str
    reason: str


@dataclass
class Report:
    """`replaced` and `kept`, in the model's order; `print` shows them as a table."""

    replaced: list[Replaced] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(r.name or "(model)", r.kind, r.how, "; ".join(r.notes)) for r in self.replaced]
        rows += [(k.name or "(model)", k.kind, "kept", k.reason) for k in self.kept]
        if not rows:
            return "fusecell: no ConvLSTM was found"
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
        )
