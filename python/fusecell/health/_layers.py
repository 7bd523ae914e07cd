"""What the doctor reads from fusecell's own layers: no hooks, since a layer keeps what its backward needs."""

from __future__ import annotations

from collections.abc import Iterator

from fusecell import ops
from fusecell._typing import Array
from fusecell.health._reach import output_bounds
from fusecell.health._readings import Bounds, Recurrent, StepReading, UnitReading, read_steps, read_units, unit_axis
from fusecell.layers import Activation, ConvLSTM2D, Dense, SimpleRNN
from fusecell.layers.activation import bounds
from fusecell.layers.base import Composite, Layer


class LayerSource:
    """The parameters, units and time steps of a layer and all that it is made of."""

    def __init__(self, model: Layer) -> None:
        self._model = model
        self._leaves = dict(_leaves("", model))
        self._recurrent = {n: l for n, l in self._leaves.items() if isinstance(l, (ConvLSTM2D, SimpleRNN))}
        self._watched_before = {name: layer.watched for name, layer in self._recurrent.items()}
        self.prepare(True)

    def detach(self) -> None:
        """The backward kernels sum, or not, as before."""
        for name, layer in self._recurrent.items():
            layer.watched = self._watched_before[name]

    def prepare(self, reads: bool) -> None:
        """Whether the backward kernels sum; all else is kept by the layers and read after their backward."""
        for layer in self._recurrent.values():
            layer.watched = reads

    def parameters(self) -> dict[str, Array]:
        """The live arrays."""
        return self._model.parameters()

    def gradients(self) -> dict[str, Array | None]:
        """Of the last backward. Raises RuntimeError before it."""
        return dict(self._model.gradients())

    def units(self) -> dict[str, UnitReading]:
        """Of every layer's last output."""
        readings = {}
        for name, layer in self._leaves.items():
            for part, y in layer.activity().items():
                if y.size:
                    readings[_join(name, part)] = read_units(y, unit_axis(y), _bounds(layer))
        return readings

    def steps(self) -> dict[str, StepReading]:
        """Of every recurrent layer and direction, from the last backward."""
        readings = {}
        for name, layer in self._recurrent.items():
            columns = ops.STEP_STATISTICS if isinstance(layer, ConvLSTM2D) else ops.RNN_STEP_STATISTICS
            for cell, sums in layer.step_statistics.items():
                readings[_join(name, cell)] = read_steps(sums, columns, cell.endswith("_reverse"))
        return {name: step for name, step in readings.items() if len(step.dh)}

    def recurrent(self) -> dict[str, Recurrent]:
        """The recurrent weights of every layer and direction."""
        found: dict[str, Recurrent] = {}
        for name, layer in self._recurrent.items():
            image = next((y.shape[-2:] for y in layer.activity().values() if y.ndim >= 4), None)
            for key, weight in layer.parameters().items():
                if key.startswith("weight_hh"):
                    found[_join(name, key.removeprefix("weight_hh_"))] = weight, 1 if image is None else 4, image
        return found

    def reach(self) -> Bounds | None:
        """Within what outputs must lie: of a bounded last activation, or of a linear layer on bounded units."""
        *_, before, last = [None, None, *self._leaves.values()]
        if isinstance(last, Activation):
            return bounds(last.name)
        known = None if before is None else _bounds(before)
        if not isinstance(last, Dense) or known is None:
            return None
        own = last.parameters()
        return output_bounds(own["weight"], own.get("bias"), known)

    def last_units(self) -> str:
        """The name under which the last layer's units are read: the network's output."""
        return list(self._leaves)[-1]


def _leaves(name: str, layer: Layer) -> Iterator[tuple[str, Layer]]:
    if not isinstance(layer, Composite):
        yield name, layer
        return
    for child, inner in layer.children().items():
        yield from _leaves(_join(name, child), inner)


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name and part else name or part


def _bounds(layer: Layer) -> Bounds | None:
    if isinstance(layer, Activation):
        return bounds(layer.name)
    return bounds(layer.activation) if isinstance(layer, SimpleRNN) else None
