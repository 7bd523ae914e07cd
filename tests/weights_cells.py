"""A ConvLSTM step as each framework or repository computes it, from its own arrays, in plain NumPy.

Each is written from the convention's description and shares nothing with `fusecell.weights`: the order in which a cell
splits its gates, what it adds and what it concatenates stand in its body. `p` are the source's arrays by key; x, h and
c are [B, C, H, W] for `first`, [B, H, W, C] for `last` and [B, C] for `dense`. Each returns the new (h, c).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

CIN, C, H, W = 3, 2, 5, 4


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def correlate(x, w, low, high):
    """x [B, I, H, W], w [O, I, kh, kw]."""
    x = np.pad(x, [(0, 0), (0, 0), (low[0], high[0]), (low[1], high[1])])
    kh, kw = w.shape[2:]
    rows, columns = x.shape[2] - kh + 1, x.shape[3] - kw + 1
    taps = [(a, b) for a in range(kh) for b in range(kw)]
    return sum(np.einsum("bihw,oi->bohw", x[:, :, a : a + rows, b : b + columns], w[:, :, a, b]) for a, b in taps)


def both_sides(x, w):
    """torch's Conv2d with padding k // 2."""
    half = [k // 2 for k in w.shape[2:]]
    return correlate(x, w, half, half)


def same(x, w):
    """TensorFlow's and XLA's SAME at stride 1, channels last, w [kh, kw, I, O]: the odd zero behind."""
    low = [(k - 1) // 2 for k in w.shape[:2]]
    high = [k - 1 - l for k, l in zip(w.shape[:2], low, strict=True)]
    return np.moveaxis(correlate(np.moveaxis(x, 3, 1), np.transpose(w, (3, 2, 0, 1)), low, high), 1, 3)


def valid(x, w):
    return np.moveaxis(correlate(np.moveaxis(x, 3, 1), np.transpose(w, (3, 2, 0, 1)), (0, 0), (0, 0)), 1, 3)


def b1(bias):
    return bias[:, None, None]


def ndrplz(p, x, h, c):
    z = both_sides(np.concatenate([x, h], axis=1), p["conv.weight"]) + b1(p["conv.bias"])
    i, f, o, g = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def automan000(p, x, h, c):
    def gate(name):
        of_x = both_sides(x, p[f"Wx{name}.weight"]) + b1(p[f"Wx{name}.bias"])
        return of_x + both_sides(h, p[f"Wh{name}.weight"])

    i = sigmoid(gate("i") + c * p["Wci"])
    f = sigmoid(gate("f") + c * p["Wcf"])
    c = f * c + i * np.tanh(gate("c"))
    return sigmoid(gate("o") + c * p["Wco"]) * np.tanh(c), c


def jhhuang96(p, x, h, c):
    z = both_sides(np.concatenate([x, h], axis=1), p["conv.0.weight"]) + b1(p["conv.0.bias"])
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def hzzone(p, x, h, c):
    z = both_sides(np.concatenate([x, h], axis=1), p["_conv.weight"]) + b1(p["_conv.bias"])
    i, f, tmp, o = np.split(z, 4, axis=1)
    i, f = sigmoid(i + p["Wci"] * c), sigmoid(f + p["Wcf"] * c)
    c = f * c + i * np.tanh(tmp)
    return sigmoid(o + p["Wco"] * c) * np.tanh(c), c


def openstl(p, x, h, c):
    i_x, f_x, g_x, o_x = np.split(both_sides(x, p["conv_x.0.weight"]), 4, axis=1)
    i_h, f_h, g_h, o_h = np.split(both_sides(h, p["conv_h.0.weight"]), 4, axis=1)
    c = sigmoid(f_x + f_h) * c + sigmoid(i_x + i_h) * np.tanh(g_x + g_h)
    return sigmoid(o_x + o_h) * np.tanh(c), c


def keras(p, x, h, c, *, hard=sigmoid):
    of_x = [valid(x, k) + b for k, b in zip(np.split(p["kernel"], 4, 3), np.split(p["bias"], 4), strict=True)]
    i, f, g, o = [a + same(h, k) for a, k in zip(of_x, np.split(p["recurrent_kernel"], 4, 3), strict=True)]
    c = hard(f) * c + hard(i) * np.tanh(g)
    return hard(o) * np.tanh(c), c


def keras2(p, x, h, c):
    return keras(p, x, h, c, hard=lambda z: np.clip(0.2 * z + 0.5, 0.0, 1.0))


def flax(p, x, h, c):
    z = same(x, p["ih/kernel"]) + p["ih/bias"] + same(h, p["hh/kernel"]) + p["hh/bias"]
    i, g, f, o = np.split(z, 4, axis=3)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def haiku(p, x, h, c):
    z = same(x, p["input_to_hidden/w"]) + p["input_to_hidden/b"]
    z = z + same(h, p["hidden_to_hidden/w"]) + p["hidden_to_hidden/b"]
    i, g, f, o = np.split(z, 4, axis=3)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def mxnet(p, x, h, c):
    z = correlate(x, p["i2h_weight"], (0, 0), (0, 0)) + b1(p["i2h_bias"])
    i, f, g, o = np.split(z + both_sides(h, p["h2h_weight"]) + b1(p["h2h_bias"]), 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def mxnet_nhwc(p, x, h, c):
    z = valid(x, np.transpose(p["i2h_weight"], (1, 2, 3, 0))) + p["i2h_bias"]
    z = z + same(h, np.transpose(p["h2h_weight"], (1, 2, 3, 0))) + p["h2h_bias"]
    i, f, g, o = np.split(z, 4, axis=3)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def tf1(p, x, h, c):
    z = same(np.concatenate([x, h], axis=3), p["kernel"]) + p["biases"]
    input_gate, new_input, forget_gate, output_gate = np.split(z, 4, axis=3)
    c = sigmoid(forget_gate + 1.0) * c + sigmoid(input_gate) * np.tanh(new_input)
    return np.tanh(c) * sigmoid(output_gate), c


def carlthome(p, x, h, c):
    z = same(np.concatenate([x, h], axis=3), p["kernel"]) + p["bias"]
    j, i, f, o = np.split(z, 4, axis=3)
    i, f = i + p["W_ci"] * c, f + p["W_cf"] * c
    c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    return sigmoid(o + p["W_co"] * c) * np.tanh(c), c


def haste(p, x, h, c):
    i, g, f, o = np.split(x @ p["kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def flashrnn(p, x, h, c):
    wx = (x @ p["W"].T).reshape(len(x), 4, 1, C)  # what the caller's linear layer gives: [B, G, N, D]
    raw = wx + np.einsum("gndp,bnp->bgnd", p["R"], h[:, None]) + p["b"]
    i, f, z, o = raw[:, 0, 0], raw[:, 1, 0], raw[:, 2, 0], raw[:, 3, 0]
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
    return sigmoid(o) * np.tanh(c), c


def torch(p, x, h, c):
    z = x @ p["weight_ih"].T + p["bias_ih"] + h @ p["weight_hh"].T + p["bias_hh"]
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def chainer(p, x, h, c):
    z = both_sides(x, p["upward/W"]) + b1(p["upward/b"]) + both_sides(h, p["lateral/W"])
    a, i, f, o = (z.reshape(len(x), C, 4, H, W)[:, :, gate] for gate in range(4))

    def s(v):
        return np.tanh(v * 0.5) * 0.5 + 0.5

    c = np.tanh(a) * s(i) + s(f) * c
    return s(o) * np.tanh(c), c


def blocks(p, x, h, c):
    i, f, g, o = np.split(both_sides(x, p["W_x"]) + both_sides(h, p["W_h"]) + p["b"], 4, axis=1)
    p_i, p_f, p_o = np.split(p["W_c"], 3)
    i, f = sigmoid(i + p_i * c), sigmoid(f + p_f * c)
    c = f * c + i * np.tanh(g)
    return sigmoid(o + p_o * c) * np.tanh(c), c


class Cell(NamedTuple):
    step: Callable[..., Any]
    layout: str  # of x, h and c
    shapes: Callable[[tuple[int, int]], dict[str, tuple[int, ...]]]  # of its arrays, given the kernel
    even: bool = False  # whether it runs with even kernels
    shrinks: bool = False  # whether the image is smaller behind its input convolution


def _automan000(k):
    shapes = {}
    for gate in "ifco":
        shapes |= {f"Wx{gate}.weight": (C, CIN, *k), f"Wx{gate}.bias": (C,), f"Wh{gate}.weight": (C, C, *k)}
    return shapes | {f"Wc{gate}": (1, C, H, W) for gate in "ifo"}


def _ndrplz(k):
    return {"conv.weight": (4 * C, CIN + C, *k), "conv.bias": (4 * C,)}


def _jhhuang96(k):
    return {"conv.0.weight": (4 * C, CIN + C, *k), "conv.0.bias": (4 * C,)}


def _hzzone(k):
    own = {"_conv.weight": (4 * C, CIN + C, *k), "_conv.bias": (4 * C,)}
    return own | {f"Wc{gate}": (1, C, H, W) for gate in "ifo"}


def _openstl(k):
    return {"conv_x.0.weight": (4 * C, CIN, *k), "conv_h.0.weight": (4 * C, C, *k)}


def _keras(k):
    return {"kernel": (*k, CIN, 4 * C), "recurrent_kernel": (*k, C, 4 * C), "bias": (4 * C,)}


def _flax(k):
    x = {"ih/kernel": (*k, CIN, 4 * C), "ih/bias": (4 * C,)}
    return x | {"hh/kernel": (*k, C, 4 * C), "hh/bias": (4 * C,)}


def _haiku(k):
    x = {"input_to_hidden/w": (*k, CIN, 4 * C), "input_to_hidden/b": (4 * C,)}
    return x | {"hidden_to_hidden/w": (*k, C, 4 * C), "hidden_to_hidden/b": (4 * C,)}


def _mxnet(k):
    kernels = {"i2h_weight": (4 * C, CIN, *k), "h2h_weight": (4 * C, C, *k)}
    return kernels | {"i2h_bias": (4 * C,), "h2h_bias": (4 * C,)}


def _mxnet_nhwc(k):
    kernels = {"i2h_weight": (4 * C, *k, CIN), "h2h_weight": (4 * C, *k, C)}
    return kernels | {"i2h_bias": (4 * C,), "h2h_bias": (4 * C,)}


def _tf1(k):
    return {"kernel": (*k, CIN + C, 4 * C), "biases": (4 * C,)}


def _carlthome(k):
    return {"kernel": (*k, CIN + C, 4 * C), "bias": (4 * C,)} | {f"W_c{gate}": (H, W, C) for gate in "ifo"}


def _haste(k):
    return {"kernel": (CIN, 4 * C), "recurrent_kernel": (C, 4 * C), "bias": (4 * C,)}


def _flashrnn(k):
    return {"W": (4 * C, CIN), "R": (4, 1, C, C), "b": (4, 1, C)}


def _torch(k):
    return {"weight_ih": (4 * C, CIN), "weight_hh": (4 * C, C), "bias_ih": (4 * C,), "bias_hh": (4 * C,)}


def _chainer(k):
    return {"upward/W": (4 * C, CIN, *k), "upward/b": (4 * C,), "lateral/W": (4 * C, C, *k)}


def _blocks(k):
    return {"W_x": (4 * C, CIN, *k), "W_h": (4 * C, C, *k), "b": (4 * C, H, W), "W_c": (3 * C, H, W)}


CELLS = {
    "ndrplz": Cell(ndrplz, "first", _ndrplz),
    "torchgeo": Cell(ndrplz, "first", _ndrplz),
    "metnet": Cell(ndrplz, "first", _ndrplz),
    "automan000": Cell(automan000, "first", _automan000),
    "jhhuang96": Cell(jhhuang96, "first", _jhhuang96),
    "hzzone": Cell(hzzone, "first", _hzzone),
    "openstl": Cell(openstl, "first", _openstl),
    "keras": Cell(keras, "last", _keras, even=True, shrinks=True),
    "keras2": Cell(keras2, "last", _keras, even=True, shrinks=True),
    "flax": Cell(flax, "last", _flax, even=True),
    "haiku": Cell(haiku, "last", _haiku, even=True),
    "mxnet": Cell(mxnet, "first", _mxnet, shrinks=True),
    "mxnet_nhwc": Cell(mxnet_nhwc, "last", _mxnet_nhwc, shrinks=True),
    "tf1": Cell(tf1, "last", _tf1, even=True),
    "carlthome": Cell(carlthome, "last", _carlthome, even=True),
    "haste": Cell(haste, "dense", _haste),
    "flashrnn": Cell(flashrnn, "dense", _flashrnn),
    "torch": Cell(torch, "dense", _torch),
    "chainer": Cell(chainer, "first", _chainer),
    "blocks": Cell(blocks, "first", _blocks),
}
