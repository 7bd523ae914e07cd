"""How a framework stores the weights of a ConvLSTM cell, as data that `load` and `dump` walk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fusecell.weights._layout import axes_in
from fusecell.weights.canonical import OPTIONS

Part = Literal["weight", "weight_ih", "weight_hh", "bias", "peephole"]

_LETTERS_OF_G = "gcjza"
_ALL = frozenset(OPTIONS)


@dataclass(frozen=True)
class Tensor:
    """One array of a cell.

    key: its name, the last part of its path. "{gate}" stands for a gate's letter, one array for each; "{layer}" for
        nothing or for `_l0`, `_l0_reverse` and so on, where the layer's number stands behind the name.
    holds: "weight" is one kernel for x and h, x's channels first. Several that hold "bias" are added. Weights must be
        there; biases and peepholes are there or not.
    axes: the layout, in the words of `fusecell.weights._layout`: "GO I *" is [4C, Cin, kh, kw].
    position: its place, where the framework hands out a list.

    Raises ValueError for axes that lack the gates (unless the key has them), O or (in a weight) I, or have more.
    """

    key: str
    holds: Part
    axes: str
    position: int | None = None

    def __post_init__(self) -> None:
        expected = ["O"] + ["G"] * ("{gate}" not in self.key) + ["I"] * self.is_kernel
        found = axes_in(self.axes.split())
        image = [axis for axis in found if axis in "*+"]
        if sorted(found) != sorted(expected + image[:1]):
            needed = ", ".join(expected)
            raise ValueError(f"{self.key}: expected axes of {needed} and at most one * or +, got {self.axes}")

    @property
    def is_kernel(self) -> bool:
        """Whether it holds a weight, which has input channels and kernel axes."""
        return self.holds not in ("bias", "peephole")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How one framework stores a cell.

    order: of the gates, in the source's own letters; c, j, z and a are g.
    forget_bias: what its forward adds to f. It becomes part of the bias on import and leaves it on export.
    state: the order of its state, "hc" or "ch". fusecell's is (h, c).
    options: its defaults, where they are not `fusecell.ops.conv_lstm_forward`'s.
    choices: the options that its user can set; the others are fixed.
    odd: the kernels that must be odd, because the source pads both sides alike.
    refused: patterns of keys that cannot be represented, with the reason. unused: patterns of keys in a cell that
        its own forward never reads. `*` stands for anything.
    layers: what stands before the keys of layer l. separators: what a key may follow.
    nested: whether the framework wants dicts in dicts ("all"), a dict per module ("last"), or a flat one ("").

    Raises ValueError for an order that does not name i, f, g and o once each, and for tensors that are not one weight,
    or one weight_ih and one weight_hh, with any biases and at most one peephole; TypeError for an unknown option.
    """

    name: str
    order: str
    tensors: tuple[Tensor, ...]
    forget_bias: float = 0.0
    state: Literal["hc", "ch"] = "hc"
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: frozenset[str] = _ALL
    odd: tuple[Literal["weight_ih", "weight_hh"], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    layers: str = "{l}."
    separators: str = "./"
    nested: Literal["", "all", "last"] = ""

    def __post_init__(self) -> None:
        if sorted(self.gates) != sorted("ifgo"):
            raise ValueError(f"order: expected i, f, o and one of {_LETTERS_OF_G}, once each, got {self.order!r}")
        kernels = sorted(tensor.holds for tensor in self.tensors if tensor.holds != "bias")
        if kernels not in [[*p, *k] for p in ([], ["peephole"]) for k in (["weight"], ["weight_hh", "weight_ih"])]:
            raise ValueError(f"tensors: expected one weight, or one weight_ih and one weight_hh, got {kernels}")
        if unknown := sorted((self.options.keys() | self.choices) - OPTIONS.keys()):
            raise TypeError(f"options: expected some of {', '.join(OPTIONS)}, got {', '.join(unknown)}")

    @property
    def gates(self) -> str:
        """The order, with g for its other letters."""
        return "".join("g" if letter in _LETTERS_OF_G else letter for letter in self.order)
