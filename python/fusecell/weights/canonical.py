"""The weights of one ConvLSTM cell as fusecell computes with them, wherever they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusecell._typing import Array

OPTIONS: dict[str, Any] = {
    "stride": 1,
    "dilation": 1,
    "padding": "same",
    "recurrent_activation": "sigmoid",
    "activation": "tanh",
    "slope": 0.01,
}
"""What a cell's numbers depend on besides its arrays: names and defaults of `fusecell.ops.conv_lstm_forward`."""

_NAMES = ("weight_ih", "weight_hh", "bias", "peephole")


@dataclass(frozen=True, eq=False, repr=False)
class ConvLSTMWeights:
    """One cell, gates in the order i, f, g, o. All arrays have one float dtype.

    weight_ih [4C, Cin, kh, kw], weight_hh [4C, C, kh', kw'], bias [4C] or [4C, H, W] or None, peephole [3C] or
    [3C, H, W] (i, f, o) or None. A dense cell has 1x1 kernels, a 1-D convolution has kh = 1 on images with H = 1.
    options: those of `OPTIONS` that are not at their default, as `fusecell.ops.conv_lstm_forward` takes them.
    name: where in the source the cell stood. unused: the source's keys beside it that nothing computes with.

    Raises TypeError for what is not an array of floats, an unknown option, or dtypes that differ; ValueError for a
    wrong shape.
    """

    weight_ih: Array
    weight_hh: Array
    bias: Array | None = None
    peephole: Array | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, array in self._arrays().items():
            _check_dtype(name, array, self.weight_ih)
        _check_shapes(self)
        if unknown := sorted(self.options.keys() - OPTIONS.keys()):
            raise TypeError(f"options: expected some of {', '.join(OPTIONS)}, got {', '.join(unknown)}")
        object.__setattr__(self, "options", self._without_defaults())

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Array], layer: int = 0, *, reverse: bool = False, **options: Any
    ) -> ConvLSTMWeights:
        """The cell that stands under `weight_ih_l0`, ... among a layer's or module's parameters; others are left.

        Raises KeyError for a missing weight, and what the class raises.
        """
        keys = {name: f"{name}_l{layer}{'_reverse' if reverse else ''}" for name in _NAMES}
        bias, peephole = parameters.get(keys["bias"]), parameters.get(keys["peephole"])
        return cls(parameters[keys["weight_ih"]], parameters[keys["weight_hh"]], bias, peephole, options)

    @property
    def hidden_channels(self) -> int:
        """C."""
        return int(self.weight_ih.shape[0]) // 4

    @property
    def in_channels(self) -> int:
        """Cin."""
        return int(self.weight_ih.shape[1])

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `fusecell.ops.conv_lstm_forward` with which it is the source's cell."""
        return {**self._arrays(), **self.options}

    def parameters(self, layer: int = 0, *, reverse: bool = False) -> dict[str, Array]:
        """The same arrays under the names of layers and modules: weight_ih_l0, ..., or ..._l0_reverse."""
        return {f"{name}_l{layer}{'_reverse' if reverse else ''}": array for name, array in self._arrays().items()}

    def __repr__(self) -> str:
        shapes = "".join(f", {name}={array.shape}" for name, array in self._arrays().items())
        return f"ConvLSTMWeights({self.name!r}{shapes}, options={self.options})"

    def _arrays(self) -> dict[str, Array]:
        arrays = {name: getattr(self, name) for name in _NAMES}
        return {name: array for name, array in arrays.items() if array is not None}

    def _without_defaults(self) -> dict[str, Any]:
        own = {name: value for name, value in self.options.items() if value != OPTIONS[name]}
        if "padding" in own and not {"stride", "dilation"} & own.keys() and _is_same(own["padding"], self.weight_ih):
            del own["padding"]
        return own


def _check_dtype(name: str, array: Any, first: Any) -> None:
    # bfloat16 is not one of NumPy's own, so its kind is V
    if not isinstance(array, np.ndarray) or (array.dtype.kind != "f" and array.dtype.name != "bfloat16"):
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected a NumPy array of floats, got {got}")
    if array.dtype != first.dtype:
        raise TypeError(f"{name}: expected {first.dtype}, as weight_ih, got {array.dtype}")


def _check_shapes(w: ConvLSTMWeights) -> None:
    for name in ("weight_ih", "weight_hh"):
        shape = getattr(w, name).shape
        if len(shape) != 4 or shape[0] % 4 or 0 in shape:
            channels = "Cin" if name == "weight_ih" else "C"
            raise ValueError(f"{name}: expected (4C, {channels}, kh, kw), got {shape}")
    c = w.hidden_channels
    expected = (4 * c, c, *w.weight_hh.shape[2:])
    if w.weight_hh.shape != expected:
        raise ValueError(f"weight_hh: expected {expected}, got {w.weight_hh.shape}")
    for name, rows in (("bias", 4 * c), ("peephole", 3 * c)):
        array = getattr(w, name)
        if array is not None and (array.ndim not in (1, 3) or array.shape[0] != rows):
            raise ValueError(f"{name}: expected ({rows},) or ({rows}, H, W), got {array.shape}")


def _is_same(padding: Any, weight: Array) -> bool:
    """Whether explicit padding is what "same" means for this kernel, at stride and dilation 1."""
    if isinstance(padding, str):
        return False
    both = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    sides = [tuple(p) if isinstance(p, (tuple, list)) else (p, p) for p in both]
    return sides == [((k - 1) // 2, k // 2) for k in weight.shape[2:]]
