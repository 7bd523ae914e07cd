"""A 2-D convolution, as the layers around a ConvLSTM need it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fusecell import _dispatch
from fusecell._typing import Algorithm, Array, Padding, Pair
from fusecell.ops._arguments import as_array, as_optional_array, convolution_options, wanted_names


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
    algorithm: Algorithm = "auto",
) -> Array:
    """A 2-D cross-correlation: x [B, I, H, W], weight [O, I, kh, kw], bias [O] -> y [B, O, H', W'].

    algorithm: as `conv_lstm_forward` has it. Raises TypeError, ValueError.
    """
    arrays: dict[str, Any] = {
        "x": as_array("x", x),
        "weight": as_array("weight", weight),
        "bias": as_optional_array("bias", bias),
    }
    options = convolution_options(stride, dilation, padding, algorithm)
    place, inputs = _dispatch.place_of(arrays), _dispatch.describe_all(arrays)
    plan = _dispatch.plan("conv2d", place, inputs, options)
    y = _dispatch.empty(tuple(plan["y"]), arrays["x"].dtype, place)
    _dispatch.run("conv2d_forward", place, {**inputs, "y": _dispatch.describe(y)}, options, plan)
    return y


def conv2d_backward(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
    algorithm: Algorithm = "auto",
    needs: Collection[str] | None = None,
) -> dict[str, Array]:
    """The gradients of `conv2d_forward`: dy [B, O, H', W'] -> a dict with x, weight and bias, or those in `needs`.

    algorithm: forward's. Raises TypeError, ValueError.
    """
    wanted = wanted_names(needs, ("x", "weight", "bias"))
    arrays = {"x": as_array("x", x), "weight": as_array("weight", weight)}
    options = convolution_options(stride, dilation, padding, algorithm)
    sent = {"dy": as_array("dy", dy)}
    place, inputs = _dispatch.place_of(arrays | sent), _dispatch.describe_all(arrays)
    plan = _dispatch.plan("conv2d", place, inputs, options, backward=True)
    shapes = {"x": arrays["x"].shape, "weight": arrays["weight"].shape, "bias": (weight.shape[0],)}
    dtype = arrays["x"].dtype
    outputs = {f"d{name}": _dispatch.empty(shape, dtype, place) for name, shape in shapes.items() if name in wanted}
    tensors = {**inputs, **_dispatch.describe_all(sent | outputs)}
    _dispatch.run("conv2d_backward", place, tensors, options, plan)
    return {name: outputs[f"d{name}"] for name in shapes if name in wanted}
