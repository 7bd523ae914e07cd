"""Layers one after another."""

from __future__ import annotations

from collections.abc import Sequence

from fusecell._typing import Array
from fusecell.layers.base import Composite, Layer


class Sequential(Composite):
    """y = layers[-1](... layers[0](x)). Parameters are named `<index>.<name>`, as `0.weight_ih_l0`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = list(layers)

    def forward(self, x: Array) -> Array:
        """The last layer's output."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy: Array) -> Array:
        """The first layer's input gradient."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def children(self) -> dict[str, Layer]:
        """The layers, named "0", "1" and so on."""
        return {str(k): layer for k, layer in enumerate(self.layers)}
