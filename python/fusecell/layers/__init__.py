"""Layers: thin objects with `forward`, `backward`, `parameters`, `gradients` over `fusecell.ops`.

    layer = ConvLSTM2D(1, 16, 3, rng=np.random.default_rng(0))
    y = layer.forward(x)                       # x [T, B, 1, H, W] -> y [T, B, 16, H, W]
    dx = layer.backward(dy)
    layer.gradients()["weight_hh_l0"]

There is no hidden random state: every draw comes from the generator given as `rng`.
"""

from __future__ import annotations

from fusecell.layers.activation import Activation, bounds
from fusecell.layers.base import Composite, Layer
from fusecell.layers.batch_norm import BatchNorm
from fusecell.layers.conv import Conv2D
from fusecell.layers.conv_lstm import ConvLSTM2D
from fusecell.layers.dense import Dense
from fusecell.layers.sequential import Sequential
from fusecell.layers.simple_rnn import SimpleRNN

__all__ = [
    "Activation",
    "BatchNorm",
    "Composite",
    "Conv2D",
    "ConvLSTM2D",
    "Dense",
    "Layer",
    "Sequential",
    "SimpleRNN",
    "bounds",
]
