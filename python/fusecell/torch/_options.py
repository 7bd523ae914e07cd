"""The options of an op: the core's dict, and the short text by which it travels through graphs and exports."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any, get_args

from fusecell._typing import Algorithm

Options = dict[str, Any]

_ALGORITHMS = get_args(Algorithm)


def pair(name: str, value: Any) -> tuple[int, int]:
    """(h, w) from one integer or two. Raises TypeError, ValueError."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one number or two, got {len(value)}")
        return operator.index(value[0]), operator.index(value[1])
    return operator.index(value), operator.index(value)


def convolution(stride: Any, dilation: Any, padding: Any, algorithm: Any) -> Options:
    """How the input is convolved, and by which algorithm the state is, too. Raises TypeError, ValueError."""
    if algorithm not in _ALGORITHMS:
        names = ", ".join(f'"{name}"' for name in _ALGORITHMS[:-1])
        raise ValueError(f'algorithm: expected {names} or "{_ALGORITHMS[-1]}", got {algorithm!r}')
    options: Options = {
        "stride": pair("stride", stride), "dilation": pair("dilation", dilation), "algorithm": algorithm
    }  # fmt: skip
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f'padding: expected "same", "valid" or numbers, got {padding!r}')
        options["padding"] = padding
        return options
    axes = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    if len(axes) != 2:
        raise ValueError(f"padding: expected one number, two, or two pairs, got {len(axes)}")
    options["padding"] = "explicit"
    options["pad_h"], options["pad_w"] = pair("padding", axes[0]), pair("padding", axes[1])
    return options


def cell(
    recurrent_activation: str, activation: str, slope: float, relu_at_zero: float, zoneout: tuple[float, float]
) -> Options:
    """The cell."""
    return {
        "recurrent_activation": recurrent_activation,
        "activation": activation,
        "slope": float(slope),
        "relu_at_zero": float(relu_at_zero),
        "zoneout_h": float(zoneout[0]),
        "zoneout_c": float(zoneout[1]),
    }


def output_extent(extent: Any, kernel: int, axis: int, options: Mapping[str, Any]) -> Any:
    """The size of the input convolution's output along one axis (0: height); symbolic where `extent` is."""
    stride, reach = options["stride"][axis], options["dilation"][axis] * (kernel - 1) + 1
    if options["padding"] == "same":
        return (extent + stride - 1) // stride
    low, high = options[("pad_h", "pad_w")[axis]] if options["padding"] == "explicit" else (0, 0)
    return (extent + low + high - reach) // stride + 1


# ------------------------------------------------------------------------------------------------------ text and back
# To be counted up when outputs come to lie otherwise in memory: torch.compile keeps graphs on disk, knows them by their
# operators' arguments, and would take one that an older fusecell made.
_LAYOUT = "layout=2"
_PAIRS = {"stride", "dilation", "pad_h", "pad_w"}
_NUMBERS = {"slope", "relu_at_zero", "zoneout_h", "zoneout_c"}


def as_text(options: Options) -> str:
    """All options in one line: name=value name=first,second"""
    items = (
        f"{name}={value[0]},{value[1]}" if isinstance(value, tuple) else f"{name}={value}"
        for name, value in options.items()
    )
    return " ".join((*items, _LAYOUT))


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> Options:
    """The options that `as_text` wrote. Not to be changed: the same dict comes back for the same text."""
    return dict(_item(*item.split("=", 1)) for item in text.split(" ") if not item.startswith("layout="))


def _item(name: str, value: str) -> tuple[str, Any]:
    if name in _PAIRS:
        first, second = value.split(",")
        return name, (int(first), int(second))
    if name == "truncation":
        return name, int(value)
    if name == "reverse":
        return name, value == "True"
    return name, float(value) if name in _NUMBERS else value
