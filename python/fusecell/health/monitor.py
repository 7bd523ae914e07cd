"""The doctor: reads a training run step by step, and says what is wrong with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from fusecell._typing import Array
from fusecell.health import _arrays, _report
from fusecell.health._poison import is_poisoned
from fusecell.health._readings import (
    Bounds,
    Observation,
    OutputReading,
    ParameterReading,
    StepReading,
    UnitReading,
    read_outputs,
    read_parameter,
    read_units,
    unit_axis,
)
from fusecell.health._verdicts import Run, Verdict, verdicts_of
from fusecell.layers.base import Layer


class Source(Protocol):
    """Where readings come from: a model of fusecell's or of torch's."""

    def prepare(self, reads: bool) -> None:
        """Whether the next training step will be read."""

    def detach(self) -> None:
        """Leave the model as it was."""

    def parameters(self) -> Mapping[str, Any]:
        """Live."""

    def gradients(self) -> Mapping[str, Any]:
        """None where there is none."""

    def units(self) -> dict[str, UnitReading]:
        """Of every layer, in the order of computation."""

    def steps(self) -> dict[str, StepReading]:
        """Of every recurrent layer and direction."""

    def recurrent(self) -> dict[str, Any]:
        """(weight, image size or None) of every recurrent layer and direction."""

    def reach(self) -> Bounds | None:
        """What the last layer can give at all, if that is known."""

    def last_units(self) -> str:
        """The name of the layer that is the output."""


_unbounded = np.errstate(over="ignore", invalid="ignore")
"""What is observed may be of any size: a run that overflows is to be read and named, not to warn in the doctor."""


class Monitor:
    """Watches a training run; `verdicts()` says what is wrong, `report()` shows why, `plot()` draws it.

        monitor = health.Monitor(model)
        for x, target in data:
            loss, dy = losses.mean_squared(model.forward(x), target)
            model.backward(dy)
            monitor.observe(loss)             # after backward, before the update
            optimizer.step(model.gradients())
        print(monitor.report())

    model: a `fusecell.layers.Layer`; a `torch.nn.Module` (call observe after `loss.backward()`, before
    `optimizer.step()`); or None for code written by hand, which names its arrays itself:

        monitor.observe(loss, parameters={"w": w}, gradients={"w": dw}, units={"hidden": h}, steps={"rnn": dh_norms})

    every: reads every n-th step alone; the others cost nothing but a comparison. keep: the most observations that are
    held; once there are more, every second of the older half is dropped. frozen: the beginnings of names of parameters
    that are left as they are on purpose.

    Of fused layers (ConvLSTM2D, SimpleRNN, fusecell.torch's) the gradients of h and c at every time step are summed by
    the backward kernels themselves. docs/health.md has the costs, the thresholds, and how often they err.
    """

    def __init__(self, model: Any = None, *, every: int = 1, keep: int = 4096, frozen: Collection[str] = ()) -> None:
        if every < 1 or keep < 16:
            raise ValueError(f"every, keep: expected at least 1 and 16, got {every} and {keep}")
        self._source: Source | None = None if model is None else _source_of(model)
        self._every, self._keep, self._frozen = every, keep, tuple(frozen)
        self._before: dict[str, Any] = {}  # copies of the parameters at the last observation
        self._found: Verdict | None = None  # by look
        self._detached = False
        self.observations: list[Observation] = []
        self.iteration = 0

    # ----------------------------------------------------------------------------------------------------- watching
    @_unbounded
    def observe(
        self,
        loss: float | None = None,
        *,
        outputs: Any = None,
        targets: Any = None,
        penalty: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        gradients: Mapping[str, Any] | None = None,
        units: Mapping[str, Any] | None = None,
        steps: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> None:
        """Read one training step: call it once in each, between backward and update.

        loss: the whole of it, penalty: the part that is a penalty on weights. outputs: what goes into the loss, with
        targets of the same shape, or of class numbers. parameters, gradients: arrays by name, in place of a model's or
        beside them. units: outputs of layers, [..., units] or [..., C, H, W]; bounds: of theirs that have some, as
        {"hidden": (0, 1)}. steps: dL/dh_t of all steps of a recurrent layer, [T, ...], or its norms, [T].

        Raises ValueError for names and shapes that do not fit each other, RuntimeError after `detach` and, of a
        fusecell layer, before the first backward.
        """
        if self._detached:
            raise RuntimeError("observe: expected a monitor that is attached, got one after detach()")
        here = self.iteration
        self.iteration += 1
        self._note_updates(parameters)
        if here % self._every == 0:
            observation = self._read(here, parameters, gradients)
            observation.loss, observation.penalty = _arrays.as_number(loss), _arrays.as_number(penalty)
            for name, y in _present(units):
                observation.units[name] = read_units(y, unit_axis(y), (bounds or {}).get(name))
            for name, dh in _present(steps):
                observation.steps[name] = StepReading(_norms(dh))
            observation.outputs = self._outputs(outputs, targets)
            self._append(observation)
        if self._source is not None:
            self._source.prepare(self.iteration % self._every == 0)

    def look(self, name: str, array: Any, step: int | None = None) -> None:
        """Note the first value that is not finite: call it anywhere in code written by hand, as often as is useful.

        step: the time step, if it is within a loop over time. Within `health.poisoned()` what is found is memory that
        was read before it was written.
        """
        array = _arrays.as_array(array)
        bad = None if self._found or np.isfinite(_arrays.norm(array)) else _arrays.not_finite(array)
        if bad is not None:
            self._found = _verdict_of_look(self.iteration, name, step, *bad)

    def detach(self) -> None:
        """Leave the model as it was before; what was observed stays."""
        if self._source is not None and not self._detached:
            self._source.detach()
        self._detached = True

    @contextmanager
    def watching(self) -> Iterator[Monitor]:
        """`with health.Monitor(model).watching() as monitor:` detaches at the end."""
        try:
            yield self
        finally:
            self.detach()

    # ------------------------------------------------------------------------------------------------------- saying
    @_unbounded
    def verdicts(self) -> list[Verdict]:
        """What is wrong, likeliest first cause first; empty for a healthy run."""
        return ([] if self._found is None else [self._found]) + verdicts_of(self._run())

    @_unbounded
    def report(self) -> str:
        """A table of parameters, layers and time steps, and the verdicts."""
        recurrent = {} if self._source is None else self._source.recurrent()
        return _report.text(self._run(), self.verdicts(), recurrent, self._source is not None)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """PNG: the norm of the gradient over time steps (or parameters) and training iterations, with the loss.

        Raises MissingExtraError without matplotlib, ValueError before the first observation.
        """
        from fusecell.health import _plot

        if not self.observations:
            raise ValueError("plot: expected at least one observation; call observe in every training step")
        _plot.heat_map(path, self.observations)

    # ------------------------------------------------------------------------------------------------------- pieces
    def _run(self) -> Run:
        return Run(self.observations, "" if self._source is None else self._source.last_units(), self._frozen)

    def _read(
        self, here: int, parameters: Mapping[str, Any] | None, gradients: Mapping[str, Any] | None
    ) -> Observation:
        observation = Observation(here)
        values, slopes = self._parameters(parameters, gradients)
        twins = len(self.observations) < 8 or len(self.observations) % 16 == 0  # sorts the rows: not every time
        for name, value in values.items():
            observation.parameters[name] = read_parameter(value, slopes.get(name), look_for_twins=twins)
        self._before = {name: _arrays.copied(value) for name, value in values.items()}
        if self._source is not None:
            observation.units = self._source.units()
            observation.steps = self._source.steps()
        return observation

    def _parameters(
        self, parameters: Mapping[str, Any] | None, gradients: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        values = {} if self._source is None else dict(self._source.parameters())
        slopes = {} if self._source is None else dict(self._source.gradients())
        values.update({name: _arrays.as_array(value) for name, value in (parameters or {}).items()})
        slopes.update({name: _arrays.as_array(slope) for name, slope in (gradients or {}).items()})
        for name in (gradients or {}).keys() - values.keys():
            raise ValueError(f"gradients: {name}: expected one of the parameters {sorted(values)}")
        for name, slope in slopes.items():
            if slope is not None and tuple(slope.shape) != tuple(values[name].shape):
                raise ValueError(f"gradients: {name}: expected {tuple(values[name].shape)}, got {tuple(slope.shape)}")
        return values, slopes

    def _note_updates(self, parameters: Mapping[str, Any] | None) -> None:
        """By how much the step after the last observation changed each parameter."""
        if not self._before:
            return
        now = {**({} if self._source is None else self._source.parameters()), **(parameters or {})}
        known: dict[str, ParameterReading] = self.observations[-1].parameters
        for name, before in self._before.items():
            if name in now and name in known:
                value = _arrays.as_array(now[name])
                if value.shape != before.shape:
                    continue
                change, size = _arrays.distance(value, before), known[name].norm
                known[name].update = change / size if size > 0 else (np.inf if change > 0 else 0.0)
        self._before = {}

    def _outputs(self, outputs: Any, targets: Any) -> OutputReading | None:
        if outputs is None or not np.prod(outputs.shape if hasattr(outputs, "shape") else np.shape(outputs)):
            return None
        return read_outputs(outputs, targets, None if self._source is None else self._source.reach())

    def _append(self, observation: Observation) -> None:
        self.observations.append(observation)
        if len(self.observations) > self._keep:
            half = self._keep // 2
            self.observations[1:half] = self.observations[1:half:2]


def _source_of(model: Any) -> Source:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(model, Layer):
        from fusecell.health._layers import LayerSource

        return LayerSource(model)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from fusecell.health._torch import TorchSource

        return TorchSource(model)
    raise TypeError(f"model: expected a fusecell Layer, a torch.nn.Module or None, got {type(model).__name__}")


def _verdict_of_look(iteration: int, name: str, step: int | None, count: int, place: tuple[int, ...]) -> Verdict:
    at_step = "" if step is None else f" at time step {step}"
    words = f"first in iteration {iteration}{at_step}: {count} values are NaN or infinite, the first at {list(place)}"
    if is_poisoned():
        remedy = "it was read before it was written: make the array with zeros, not empty"
        return Verdict("uninitialised memory", name, words, remedy)
    return Verdict("not finite", name, words, "look at what this array is computed from, one step earlier")


def _present(arrays: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Those that have any element: an empty batch is no reason to stop."""
    for name, array in (arrays or {}).items():
        given = _arrays.as_array(array)
        if np.prod(given.shape):
            yield name, given


def _norms(dh: Any) -> Array:
    """[T] from [T] or [T, ...]."""
    values = np.asarray(_arrays.to_numpy(dh), np.float64)
    return values if values.ndim == 1 else np.array([_arrays.norm(step) for step in values])
