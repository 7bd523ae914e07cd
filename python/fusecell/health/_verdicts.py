"""From readings to verdicts: one function each, over all that was observed.

A verdict needs a measured effect and, where the effect alone may be harmless, a loss that does not fall: a gradient
that vanishes over 100 steps is no illness where two steps are enough to predict by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusecell._typing import Array
from fusecell.health import _thresholds as at
from fusecell.health._readings import Bad, Observation, OutputReading, StepReading, UnitReading


@dataclass(frozen=True)
class Verdict:
    """What is wrong, where, in words with the figures, and what to try."""

    name: str
    where: str
    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name.upper()} in {self.where}: {self.words}; {self.remedy}"


@dataclass(frozen=True)
class Run:
    """All observations, and what of the network does not change."""

    observations: Sequence[Observation]
    last_units: str = ""  # the layer whose units are the output
    frozen: Sequence[str] = ()  # how the names of parameters begin that are not to be updated

    @property
    def recent(self) -> Sequence[Observation]:
        """The last ones: what statements about now are made of."""
        return self.observations[-max(at.FEW, int(at.RECENT * len(self.observations))) :]

    @property
    def enough(self) -> bool:
        """Whether the loss has been seen often enough to say where it goes."""
        return len(self.losses()) >= at.ENOUGH

    def losses(self) -> Array:
        """Those that were given, finite ones."""
        given = np.array([o.loss for o in self.observations if o.loss is not None], np.float64)
        return given[np.isfinite(given)]

    def ends(self) -> tuple[float, float, float]:
        """The loss at first, half-way, and of late: medians."""
        losses = self.losses()
        tenth, fifth, middle = max(5, len(losses) // 10), max(5, len(losses) // 5), len(losses) // 2
        start = max(0, middle - fifth // 2)
        return (
            float(np.median(losses[: min(tenth, 10)])),
            float(np.median(losses[start : start + fifth])),
            float(np.median(losses[-fifth:])),
        )

    def stuck(self) -> bool:
        """Enough was seen, and the loss has not fallen; or it has stopped, and nothing but the mean is predicted.

        A first update that ruins everything leaves one loss below all others, the very first.
        """
        if not self.enough:
            return False
        losses = self.losses()
        first, middle, last = self.ends()
        if (first > 0 and last > at.FALLEN * first) or 0 < losses[0] < at.RUINED * losses[-(len(losses) // 5) :].min():
            return True
        flat = middle > 0 and last > at.FLAT * middle
        unexplained = self.unexplained()
        return flat and unexplained is not None and unexplained > at.UNEXPLAINED

    def falls(self) -> bool:
        """Enough was seen, and the loss is well below what it was at first."""
        if not self.enough:
            return False
        first, _, last = self.ends()
        return first > 0 and last < at.FALLEN * first

    def unexplained(self) -> float | None:
        """Of late, the squared error over the targets' variance. None: targets that are no numbers, or not given."""
        read = [o.outputs for o in self.recent if o.outputs is not None and len(o.outputs.target_mean)]
        if not read:
            return None
        weight = np.array([r.examples for r in read], np.float64)
        mean = np.average([r.target_mean for r in read], axis=0, weights=weight)
        square = np.average([r.target_square for r in read], axis=0, weights=weight)
        variance = float(np.mean(square - mean**2))
        return float(np.average([r.error for r in read], weights=weight)) / variance if variance > 0 else None


def verdicts_of(run: Run) -> list[Verdict]:
    """All that is wrong, the likeliest first cause first."""
    if not run.observations:
        return []
    rules = (
        not_finite, exploding, vanishing, vanishing_by_layer, symmetric, no_gradient, softmax_of_activations,
        bounded_output, saturated_gates, penalty, units, constant_output, updates, diverging,
    )  # fmt: skip
    found = [verdict for rule in rules for verdict in rule(run)]
    if any(v.name == "not finite" for v in found):  # all else follows from it
        found = [v for v in found if v.name in ("not finite", "exploding gradient", "updates too large")]
    return found


# ------------------------------------------------------------------------------------------------ what is not a number
def not_finite(run: Run) -> Iterator[Verdict]:
    """The first NaN or infinity in the order of computation: units, loss, steps from the last, parameters."""
    for n, observation in enumerate(run.observations):
        found = next(_bad_places(observation), None)
        later = run.observations[n + 1 :]
        if found is None or any(next(_bad_places(o), None) is None for o in later):  # a step that was left out, as by
            continue  # torch's GradScaler, and did no harm
        where, bad = found
        of_step = "" if bad.step is None else f" at time step {bad.step}"
        place = "" if bad.place is None else f", the first at {list(bad.place)}"
        values = "a value is" if bad.count == 1 else f"{bad.count} values are"
        words = f"first in iteration {observation.iteration}{of_step}: {values} NaN or infinite{place}"
        yield Verdict("not finite", where, words, _before(run, observation))
        return


def _bad_places(observation: Observation) -> Iterator[tuple[str, Bad]]:
    for name, unit in observation.units.items():
        if unit.bad:
            yield f"the output of {name or 'the network'}", unit.bad
    if observation.loss is not None and not np.isfinite(observation.loss):
        yield "the loss", Bad(1)
    for name, step in reversed(observation.steps.items()):  # backward: from the last layer to the first
        bad = np.zeros(0) if step.bad is None else np.asarray(step.bad)
        if bad.any():  # backward goes from the last step of the direction to its first
            order = range(len(bad)) if step.reverse else range(len(bad) - 1, -1, -1)
            t = next(t for t in order if bad[t])
            yield f"the gradient of {name or 'the state'}", Bad(int(bad[t]), None, t)
    for name, parameter in observation.parameters.items():
        if parameter.bad and not np.isfinite(parameter.norm):
            yield name, parameter.bad
    for name, parameter in reversed(observation.parameters.items()):
        if parameter.bad:
            yield f"the gradient of {name}", parameter.bad


def _before(run: Run, bad: Observation) -> str:
    """What the observations before it say of the way there."""
    past = [o for o in run.observations if o.iteration < bad.iteration][-5:]
    grown = [max((u.high - u.low for u in o.units.values()), default=0.0) for o in past]
    if past and max(grown, default=0.0) > 1e6:
        return f"outputs had grown to {max(grown):.1e}: lower the learning rate, clip gradients, normalise the inputs"
    if past and max(o.gradient for o in past) > 1e6:
        return f"gradients had grown to {max(o.gradient for o in past):.1e}: clip them, lower the learning rate"
    return "look for a logarithm or a division that can meet 0, memory that is read before it is written, or bad inputs"


# ------------------------------------------------------------------------------------------------ over the time steps
def exploding(run: Run) -> Iterator[Verdict]:
    """The gradient grows from the last step to the first, or jumps and leaves the loss higher."""
    for name in _cells(run):
        growth = _median(_of_steps(run, name, _growth))
        if growth is None or growth <= at.GROWS:
            continue
        yield Verdict(
            "exploding gradient", name, f"it grows {growth:.0e}-fold {_last(run, name).span}",
            "clip by norm, initialise the recurrent weights orthogonally, or truncate",
        )  # fmt: skip
        return
    norms = np.array([o.gradient for o in run.observations])
    finite = norms[np.isfinite(norms)]
    if len(finite) < at.ENOUGH or not run.enough:
        return
    usual, largest = float(np.median(finite)), float(finite.max())
    first, _, last = run.ends()
    if usual > 0 and largest > at.JUMPS * usual and last > at.DIVERGED * max(first, 0.0):
        when = run.observations[int(np.nanargmax(np.where(np.isfinite(norms), norms, -1)))].iteration
        yield Verdict(
            "exploding gradient", "all parameters",
            f"the norm jumps to {largest:.1e} in iteration {when}, {largest / usual:.0e} times its median, and the "
            f"loss does not come back ({first:.3g} -> {last:.3g})", "clip by norm, lower the learning rate",
        )  # fmt: skip


def vanishing(run: Run) -> Iterator[Verdict]:
    """The gradient shrinks from the last step to the first, and the loss does not fall."""
    if not run.stuck():
        return
    for name in _cells(run):
        shrunk = _median(_of_steps(run, name, _shrinking))
        if shrunk is None or shrunk > at.SHRINKS:
            continue
        last = _last(run, name)
        said = "" if last.forget is None else f", mean forget gate {float(np.mean(last.forget)):.2f}"
        factor = "to nothing" if shrunk == 0 else f"{1 / shrunk:.0e}-fold"
        remedy = "orthogonal recurrent weights, a gated cell (LSTM), or a loss at more steps"
        if last.forget is not None:
            remedy = "a forget bias of 1 or more, orthogonal initialisation, or a loss at more steps"
        yield Verdict("vanishing gradient", name, f"it shrinks {factor} {last.span}{said}", f"try {remedy}")


def _growth(step: StepReading) -> float | None:
    state = step.state
    if len(state) < 3 or not np.isfinite(state).all() or state[-1] == 0:
        return None
    return float(state[0] / state[-1])


def _shrinking(step: StepReading) -> float | None:
    state = step.state
    if len(state) < 3 or not np.isfinite(state).all() or state.max() == 0:
        return None
    return float(state[0] / state.max())


# ---------------------------------------------------------------------------------------------------- over the layers
def vanishing_by_layer(run: Run) -> Iterator[Verdict]:
    """Without time: the first matrix gets a vanishing share of what the last one gets."""
    if not run.stuck() or _cells(run):
        return
    ratios = []
    for observation in run.recent:
        relative = [
            p.gradient / p.norm for p in observation.parameters.values()
            if p.matrix and p.gradient is not None and p.norm > 0
        ]  # fmt: skip
        if len(relative) >= 3 and max(relative) > 0:
            ratios.append(relative[0] / max(relative))
    share = _median(ratios)
    if share is not None and 0 < share < at.LAYER_SHRINKS:
        name = next(n for n, p in run.observations[-1].parameters.items() if p.matrix)
        yield Verdict(
            "vanishing gradient", name, f"its relative gradient is {share:.0e} of the largest layer's",
            "use activations that do not saturate (relu), Glorot or He initialisation, or batch normalisation",
        )  # fmt: skip


def no_gradient(run: Run) -> Iterator[Verdict]:
    """A gradient that is exactly 0 all the time."""
    if len(run.observations) < at.FEW:
        return
    steps = [len(step.dh) for step in run.observations[-1].steps.values()]
    silent = [
        name for name, p in run.observations[-1].parameters.items()
        if p.gradient == 0 and all(_gradient(o, name) == 0 for o in run.recent)
        and not (steps and max(steps) == 1 and "weight_hh" in name)  # one step from a state of 0
    ]  # fmt: skip
    if silent:
        others = [n for n in run.observations[-1].parameters if n not in silent]
        what = "every parameter" if not others else _listed(silent)
        yield Verdict(
            "parameter gets no gradient", what, f"exactly 0 in the last {len(run.recent)} observations",
            "is it used, is something detached or dead behind it, does its gradient leave out the error signal?",
        )  # fmt: skip


def symmetric(run: Run) -> Iterator[Verdict]:
    """Units whose incoming weights are the same and so learn the same."""
    if len(run.observations) < at.FEW:
        return
    for name, parameter in run.observations[-1].parameters.items():
        looked = [p.twins for o in run.observations if (p := o.parameters.get(name)) and p.twins is not None]
        if parameter.gradient is None or parameter.rows < 2 or len(looked) < 2 or min(looked[-2:]) < at.TWINS:
            continue
        if name == _last_matrix(run) and run.falls():  # outputs that never occur stay equal and harm nothing
            continue
        zero = " (all are 0)" if parameter.norm == 0 else ""
        yield Verdict(
            "symmetric units", name, f"{100 * looked[-1]:.0f} % of its {parameter.rows} rows equal another{zero}: "
            "units with the same weights get the same gradient and stay one unit", "draw the initial weights at random",
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------- units and gates
def units(run: Run) -> Iterator[Verdict]:
    """Dead and saturated units of hidden layers."""
    if len(run.observations) < at.FEW:
        return
    stuck = run.stuck()
    for name in run.observations[-1].units:
        if name == run.last_units:
            continue
        dead = _dead(run, name)
        if dead >= at.DEAD or (stuck and dead >= at.DEAD_AND_STUCK):
            yield Verdict(
                "dead units", name, f"{100 * dead:.0f} % of its units give 0 for every example and get no gradient",
                "lower the learning rate, use leaky_relu, or start with smaller weights and a small positive bias",
            )  # fmt: skip
        saturated, same = (_median(_of_units(run, name, what)) for what in ("saturated", "same"))
        if saturated is None or same is None:
            continue
        if saturated >= at.SATURATED and (same >= at.SAME_FOR_ALL or stuck):
            last = run.observations[-1].units[name]
            yield Verdict(
                "saturated units", name, f"{100 * saturated:.0f} % of its values are at a bound (from {last.low:.3g} "
                f"to {last.high:.3g}), {100 * same:.0f} % of its units the same for every example: no gradient passes",
                "smaller initial weights of both signs, inputs about 0, or an activation that does not saturate",
            )  # fmt: skip


def saturated_gates(run: Run) -> Iterator[Verdict]:
    """Gates at their bounds in a network that does not learn."""
    if not run.stuck():
        return
    for name in _cells(run):
        for gate in _last(run, name).saturated:
            share = _median([float(np.mean(s.saturated[gate])) for o in run.recent if (s := o.steps.get(name))])
            if share is not None and share >= at.SATURATED:
                yield Verdict(
                    "saturated gates", name, f"{100 * share:.0f} % of {gate} are at a bound",
                    "smaller weights or inputs, a bias nearer 0, peepholes off",
                )  # fmt: skip


# ------------------------------------------------------------------------------------------------ outputs and the loss
def softmax_of_activations(run: Run) -> Iterator[Verdict]:
    """What goes into a softmax has been through an activation."""
    read = [o.outputs for o in run.observations if o.outputs is not None and o.outputs.classes]
    if len(read) < at.FEW:
        return
    low, high = min(r.low for r in read), max(r.high for r in read)
    if low >= 0 and float(np.median([r.zeros for r in read[-len(run.recent) :]])) >= at.ZEROS:
        yield Verdict(
            "relu before softmax", "the output", "nothing below 0 and many exact zeros go into a softmax: a class "
            "below 0 gets no gradient", "leave the last layer linear",
        )  # fmt: skip
    elif low >= 0 and high <= 1 and not _below_floor(run, read[-1].classes):
        twice = all(r.sums_to_one for r in read)
        yield Verdict(
            "sigmoid before softmax", "the output", f"all values lie from {low:.2g} to {high:.2g}"
            f"{' and add up to 1: a softmax of a softmax' if twice else ''}: the loss stays above "
            f"{_floor(read[-1].classes):.2f}",
            "leave the last layer linear, or use binary_cross_entropy_with_logits",
        )  # fmt: skip


def bounded_output(run: Run) -> Iterator[Verdict]:
    """Targets that no input of the last layer could reach."""
    read = [o.outputs for o in run.recent if o.outputs is not None and o.outputs.reach is not None]
    if not run.enough or len(read) < at.FEW:
        return
    beyond, reach = float(np.mean([r.beyond for r in read])), read[-1].reach
    if beyond >= at.BEYOND and reach is not None:
        yield Verdict(
            "bounded output", "the last layer", f"{100 * beyond:.0f} % of the targets lie outside {reach[0]:.3g} to "
            f"{reach[1]:.3g}, which its weights on bounded units allow (bias ± sum |w|)",
            "scale the targets, train longer or faster, or put an unbounded activation before it",
        )  # fmt: skip


def constant_output(run: Run) -> Iterator[Verdict]:
    """The same prediction for every input."""
    read = [o.outputs for o in run.recent if o.outputs is not None and len(o.outputs.target_mean)]
    if not run.stuck() or not read:
        return
    spreads = [_spread(read, *names) for names in (("mean", "square"), ("target_mean", "target_square"))]
    if spreads[1] > 0 and spreads[0] <= at.CONSTANT * spreads[1]:
        yield Verdict(
            "constant output", "the output", f"its spread over examples is {spreads[0]:.1e}, that of the targets "
            f"{spreads[1]:.1e}", "look for dead units, too strong a penalty, or inputs of very different sizes",
        )  # fmt: skip


def _spread(read: Sequence[OutputReading], mean: str, square: str) -> float:
    """The standard deviation over the examples of one step: a constant moves from step to step as its bias learns.

    Over all steps where each has a single example.
    """
    means, squares = (np.array([getattr(r, name) for r in read]) for name in (mean, square))
    if all(r.examples == 1 for r in read):
        means, squares = means.mean(axis=0), squares.mean(axis=0)
    return float(np.sqrt(np.mean(np.maximum(squares - means**2, 0))))


def penalty(run: Run) -> Iterator[Verdict]:
    """A penalty that is most of the loss, now or at first, while the rest of it does not fall.

    At first: one that has pressed the weights to nothing is small afterwards.
    """
    given = [o for o in run.observations if o.loss is not None and o.penalty is not None]
    if len(given) < at.ENOUGH:
        return
    own = np.array([(o.loss or 0.0) - (o.penalty or 0.0) for o in given])
    shares = np.array([o.penalty or 0.0 for o in given]) / np.maximum(own, 1e-300)
    share = max(float(np.median(part)) for part in (shares[: at.FEW], shares, shares[-len(run.recent) :]))
    first, last = float(np.median(own[:3])), float(np.median(own[-max(3, len(own) // 5) :]))
    if share >= at.DROWNS and last >= at.FALLEN * first:
        yield Verdict(
            "penalty drowns the loss", "the loss", f"the penalty is {share:.1f} times the rest, which does not fall "
            f"({first:.3g} -> {last:.3g})", "lower its strength tenfold until the rest falls",
        )  # fmt: skip


def _floor(classes: int) -> float:
    """The least cross entropy of a softmax of values in 0 to 1: ln(1 + (K - 1) / e)."""
    return float(np.log(1 + (classes - 1) / np.e))


def _below_floor(run: Run, classes: int) -> bool:
    """The loss is lower than a softmax of these outputs could be: they are probabilities, and no softmax follows."""
    losses = run.losses()
    return bool(len(losses)) and float(np.median(losses[-at.FEW :])) < _floor(classes)


# ------------------------------------------------------------------------------------------------------------ updates
def updates(run: Run) -> Iterator[Verdict]:
    """Parameters that are left out, and steps that are far too small or too large."""
    known = [o for o in run.observations if any(p.update is not None for p in o.parameters.values())]
    if len(known) < at.FEW:
        return
    recent = known[-len(run.recent) :]
    moved = {name: _usual_update(recent, name) for name in recent[-1].parameters}
    still = [
        n for n in moved
        if not n.startswith(tuple(run.frozen))
        and all((p := o.parameters.get(n)) and p.update == 0 and (p.gradient or 0) > 0 for o in recent)
    ]  # fmt: skip
    if still and any(moved.values()):
        yield Verdict(
            "parameter is not updated", _listed(still), "it has a gradient and does not change, while others do",
            "is it among the optimiser's parameters? Where it is frozen on purpose: Monitor(frozen=[...])",
        )  # fmt: skip
    matrices = [m for n, m in moved.items() if m is not None and recent[-1].parameters[n].matrix]
    size = _median([m for m in matrices if 0 < m < np.inf] or [m for m in matrices if m == 0])  # 0: gradients add up
    if size is None or not run.stuck():
        return
    said = f"a step changes the weights by {size:.0e} of their size (median), and the loss does not fall"
    if size < at.SMALL_UPDATE:
        yield Verdict("updates too small", "all parameters", said, "raise the learning rate")
    elif size > at.LARGE_UPDATE:
        yield Verdict("updates too large", "all parameters", said, "lower the learning rate")


def diverging(run: Run) -> Iterator[Verdict]:
    """A loss that ends far above where it began."""
    if not run.enough:
        return
    first, _, last = run.ends()
    unexplained = run.unexplained()
    if unexplained is not None and unexplained < at.EXPLAINED:
        return
    low = float(np.quantile(run.losses()[-max(5, len(run.losses()) // 5) :], 0.25))
    if first > 0 and low > at.DIVERGED * first:  # not one large loss of a single example
        yield Verdict(
            "updates too large", "all parameters", f"the loss went up, {first:.3g} -> {last:.3g}",
            "lower the learning rate; is the gradient's sign right (check_gradients)?",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- pieces
def _cells(run: Run) -> list[str]:
    return list(run.observations[-1].steps)


def _last(run: Run, name: str) -> StepReading:
    return run.observations[-1].steps[name]


def _of_steps(run: Run, name: str, read: Any) -> list[float]:
    found = (read(o.steps[name]) for o in run.recent if name in o.steps)
    return [value for value in found if value is not None]


def _of_units(run: Run, name: str, what: str) -> list[float]:
    readings: list[UnitReading] = [o.units[name] for o in run.recent if name in o.units]
    return [value for r in readings if (value := getattr(r, what)) is not None]


def _dead(run: Run, name: str) -> float:
    """Share of the units that gave 0 for every example of every recent step."""
    zeros = [o.units[name].zero for o in run.recent if name in o.units]
    return float(np.mean(np.logical_and.reduce(zeros))) if len({len(z) for z in zeros}) == 1 else 0.0


def _last_matrix(run: Run) -> str:
    return ["", *(name for name, p in run.observations[-1].parameters.items() if p.matrix)][-1]


def _usual_update(recent: Sequence[Observation], name: str) -> float | None:
    """The median of those that are not 0: where gradients add up over several steps, most are."""
    known = [p.update for o in recent if (p := o.parameters.get(name)) and p.update is not None]
    return _median([update for update in known if update > 0] or known)


def _gradient(observation: Observation, name: str) -> float | None:
    parameter = observation.parameters.get(name)
    return None if parameter is None else parameter.gradient


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
