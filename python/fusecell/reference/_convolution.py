"""Cross-correlation in two dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._check import Array, expect, expect_axes, f64, wanted

Pair = tuple[int, int]
Padding = str | int | Pair | tuple[Pair, Pair]


@dataclass(frozen=True)
class Axis:
    """Where the taps of a kernel fall along one axis."""

    size: int
    stride: int
    dilation: int
    low: int  # zeros before the first pixel
    high: int  # and after the last
    out: int

    def tap(self, r: int) -> slice:
        """The pixels of the padded image that tap r of the kernel meets, one for each output."""
        first = r * self.dilation
        return slice(first, first + (self.out - 1) * self.stride + 1, self.stride)

    @property
    def inside(self) -> slice:
        """The image in the padded image."""
        return slice(self.low, self.low + self.size)


def axis_of(size: int, kernel: int, stride: int, dilation: int, padding: Pair | None) -> Axis:
    """``padding`` None: "same" as Keras means it, ceil(size / stride) outputs, the odd zero behind."""
    extent = dilation * (kernel - 1) + 1  # pixels from the first tap to the last
    if padding is None:
        last = (size - 1) // stride * stride  # where the last window begins, counted without padding
        total = max(last + extent - size, 0)
        padding = (total // 2, total - total // 2)
    out = (size + sum(padding) - extent) // stride + 1
    if min(size, kernel, out) < 1:
        raise ValueError(f"x: {size} pixels padded by {padding} do not hold a kernel of {extent}")
    return Axis(size, stride, dilation, *padding, out)


def pair(name: str, value: int | Pair, least: int) -> Pair:
    h, w = (value, value) if isinstance(value, (int, np.integer)) else value
    if min(h, w) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(h), int(w)


def axes_of(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: int | Pair, dilation: int | Pair, padding: Padding
) -> tuple[Axis, Axis]:
    """The axes H and W of an image of ``size`` under a kernel [kh, kw]."""
    stride, dilation = pair("stride", stride, least=1), pair("dilation", dilation, least=1)
    sides: tuple[Pair | None, Pair | None]
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
        sides = (None, None) if padding == "same" else ((0, 0), (0, 0))
    else:
        h, w = (padding, padding) if isinstance(padding, (int, np.integer)) else padding
        sides = (pair("padding", h, least=0), pair("padding", w, least=0))
    rows, columns = (axis_of(size[a], kernel[a], stride[a], dilation[a], sides[a]) for a in (0, 1))
    return rows, columns


def pad(x: Array, rows: Axis, columns: Axis) -> Array:
    return np.pad(x, [(0, 0), (0, 0), (rows.low, rows.high), (columns.low, columns.high)])


def conv2d_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    padding: Padding = "same",
    algorithm: str = "auto",
) -> Array:
    """Cross-correlation of x [B, I, H_in, W_in] with weight [O, I, kh, kw], plus bias [O]: y [B, O, H, W].

    ``stride`` and ``dilation``: int or (h, w). ``padding``: "valid", int, (h, w), ((h_lo, h_hi), (w_lo,
    w_hi)), or "same" as Keras means it: H = ceil(H_in / stride), and the zeros this takes, the odd one
    behind. ``algorithm``: how a backend computes; the definition knows but one.
    """
    x, weight = f64(x), f64(weight)
    expect_axes("x", x, "B I H W")
    expect_axes("weight", weight, "O I kh kw")
    expect("weight", weight, (weight.shape[0], x.shape[1], *weight.shape[2:]))
    kh, kw = weight.shape[2:]
    rows, columns = axes_of(x.shape[2:], (kh, kw), stride, dilation, padding)
    padded = pad(x, rows, columns)
    y = np.zeros((x.shape[0], weight.shape[0], rows.out, columns.out))
    for r in range(kh):
        for s in range(kw):
            y += np.einsum("oi,bihw->bohw", weight[:, :, r, s], padded[:, :, rows.tap(r), columns.tap(s)])
    if bias is not None:
        bias = f64(bias)
        expect("bias", bias, weight.shape[:1])
        y += bias[:, None, None]
    return y


def conv2d_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    padding: Padding = "same",
    algorithm: str = "auto",
    needs: Iterable[str] | None = None,
) -> dict[str, Array]:
    """The gradients of ``conv2d_forward``: a dict of x, weight and bias, or of those named in ``needs``."""
    dy, x, weight = f64(dy), f64(x), f64(weight)
    kh, kw = weight.shape[2:]
    rows, columns = axes_of(x.shape[2:], (kh, kw), stride, dilation, padding)
    expect("dy", dy, (x.shape[0], weight.shape[0], rows.out, columns.out))
    padded = pad(x, rows, columns)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for r in range(kh):
        for s in range(kw):
            window = (slice(None), slice(None), rows.tap(r), columns.tap(s))
            dpadded[window] += np.einsum("oi,bohw->bihw", weight[:, :, r, s], dy)
            dweight[:, :, r, s] = np.einsum("bohw,bihw->oi", dy, padded[window])
    dx = dpadded[:, :, rows.inside, columns.inside]
    return wanted({"x": dx, "weight": dweight, "bias": dy.sum(axis=(0, 2, 3))}, needs)
