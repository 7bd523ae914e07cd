"""The report: a short table of what was measured, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusecell._typing import Array
from fusecell.health._readings import Observation, Recurrent, StepReading, UnitReading
from fusecell.health._spectrum import largest_singular_value
from fusecell.health._verdicts import Run, Verdict

_MOST_ROWS = 12
_GATE = "ifgo"


def text(run: Run, verdicts: Sequence[Verdict], recurrent: Mapping[str, Recurrent], modelled: bool) -> str:
    """The whole of it. modelled: whether a model is watched, or arrays alone."""
    if not run.observations:  # `look` may have found something even so
        nothing = "nothing observed: call monitor.observe(loss) in every training step, after backward"
        return "\n\n".join([nothing, *map(str, verdicts)])
    last = run.observations[-1]
    parts = [
        _heading(run),
        _table(("parameter", "norm", "gradient", "update"), _parameter_rows(run.recent)),
        _table(("units of", "number", "dead", "same", "saturated", "from", "to"), _unit_rows(last.units))
        or ("no layer's output was seen: a compiled model shows none" if modelled else ""),
        "\n".join(_step_lines(last.steps, recurrent)),
        "\n".join(str(v) for v in verdicts) if verdicts else "nothing wrong was found",
    ]
    return "\n\n".join(part for part in parts if part)


def _heading(run: Run) -> str:
    observations, losses = run.observations, run.losses()
    went = "" if not len(losses) else f", loss {losses[0]:.4g} -> {losses[-1]:.4g}"
    return f"{observations[-1].iteration + 1} iterations, {len(observations)} observed{went}"


def _parameter_rows(recent: Sequence[Observation]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, last in recent[-1].parameters.items():
        read = [p for o in recent if (p := o.parameters.get(name))]
        gradient = _middle([p.gradient for p in read if p.gradient is not None])
        update = _middle([p.update for p in read if p.update is not None])
        rows.append((name, f"{last.norm:.2e}", gradient, update))
    return rows


def _unit_rows(units: Mapping[str, UnitReading]) -> list[tuple[str, ...]]:
    return [
        (
            name or "(all)", str(u.units), _share(u.dead), _share(u.same), _share(u.saturated), f"{u.low:.3g}",
            f"{u.high:.3g}",
        )
        for name, u in units.items()
    ]  # fmt: skip


def _step_lines(steps: Mapping[str, StepReading], recurrent: Mapping[str, Recurrent]) -> list[str]:
    lines = []
    for name, step in steps.items():
        count = len(step.dh)
        line = f"{name or 'cell'}: dL/dh {step.dh[0]:.1e} at step 1, {step.dh[-1]:.1e} at step {count}"
        if step.dc is not None:
            line += f"; dL/dc {step.dc[0]:.1e}, {step.dc[-1]:.1e}"
        if step.forget is not None:
            line += (
                f"; forget gate {np.mean(step.forget):.2f} on average, product over the steps {_product(step.forget)}"
            )
        if step.saturated:
            line += "; saturated " + ", ".join(f"{g} {_share(float(np.mean(s)))}" for g, s in step.saturated.items())
        lines.append(line)
    lines += [f"{name}: {_spectrum(*found)}" for name, found in recurrent.items()]
    return lines


def _product(forget: Array) -> str:
    return f"{np.exp(np.sum(np.log(np.maximum(forget, 1e-30)))):.1e}"


def _spectrum(weight: Array, gates: int, image: tuple[int, ...] | None) -> str:
    values = largest_singular_value(weight, None if image is None else (image[0], image[1]), gates=gates)
    what = "matrix" if weight.ndim == 2 else "convolution"
    named = zip(_GATE, values, strict=True) if gates == len(_GATE) else (("", value) for value in values)
    said = ", ".join(f"{gate} {value:.3g}".strip() for gate, value in named)
    return f"largest singular value of the recurrent {what} {said}"


def _table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    left_out = len(rows) - _MOST_ROWS
    if left_out > 1:
        rows = [
            *rows[: _MOST_ROWS // 2],
            (f"... {left_out} more", *("",) * (len(heading) - 1)),
            *rows[-_MOST_ROWS // 2 :],
        ]
    widths = [max(len(row[k]) for row in (heading, *rows)) for k in range(len(heading))]
    lines = []
    for row in (heading, *rows):
        first, *others = (
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def _middle(values: Sequence[float]) -> str:
    return f"{np.median(values):.2e}" if values else "none"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
