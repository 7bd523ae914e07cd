"""A plain convolution as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusecell import ops
from fusecell._typing import Algorithm, Array, Padding, Pair
from fusecell.initializers import glorot_uniform
from fusecell.layers.base import Layer, float_dtype, pair, positive


class Conv2D(Layer):
    """Cross-correlation over the last two axes: x [..., Cin, H, W] -> y [..., Cout, H', W'].

    weight [Cout, Cin, kh, kw] is Glorot uniform, bias [Cout] zero (bias=False: none). Leading axes (time and batch,
    say) are folded into one. stride, dilation, padding and algorithm as `fusecell.ops.conv2d_forward` takes them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        dilation: Pair = 1,
        padding: Padding = "same",
        bias: bool = True,
        algorithm: Algorithm = "auto",
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        inputs, outputs = positive(in_channels, "in_channels"), positive(out_channels, "out_channels")
        kernel = pair(kernel_size, "kernel_size")
        self._options: dict[str, Any] = {
            "stride": stride, "dilation": dilation, "padding": padding, "algorithm": algorithm
        }  # fmt: skip
        taps, kind = kernel[0] * kernel[1], float_dtype(dtype)
        shape = (outputs, inputs, *kernel)
        self._parameters["weight"] = glorot_uniform(rng, shape, inputs * taps, outputs * taps, kind)
        if bias:
            self._parameters["bias"] = np.zeros(outputs, kind)
        self._x: Array | None = None
        self._lead: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """y [..., Cout, H', W']. Raises ValueError for fewer than three axes or another number of channels."""
        weight = self._parameters["weight"]
        if x.ndim < 3 or x.shape[-3] != weight.shape[1]:
            raise ValueError(f"x: expected [..., {weight.shape[1]}, H, W], got {list(x.shape)}")
        self._lead = x.shape[:-3]
        self._x = _fold(x)
        y = ops.conv2d_forward(self._x, weight, self._parameters.get("bias"), **self._options)
        y = y.reshape(*self._lead, *y.shape[-3:])
        self._activity = {"": y}
        return y

    def backward(self, dy: Array) -> Array:
        """dx of x's shape, given dy of y's."""
        if self._x is None:
            raise RuntimeError("Conv2D.backward: call forward first")
        grads = ops.conv2d_backward(
            _fold(dy), self._x, self._parameters["weight"], needs=("x", *self._parameters), **self._options
        )
        self._keep_gradients(grads)
        return grads["x"].reshape(*self._lead, *self._x.shape[1:])


def _fold(x: Array) -> Array:
    """[..., C, H, W] -> [N, C, H, W]; not by -1, which an empty axis would leave undecided."""
    return x.reshape(int(np.prod(x.shape[:-3])), *x.shape[-3:])
