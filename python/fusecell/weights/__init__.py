"""Weights of other frameworks' ConvLSTM cells, in and out.

    cells = weights.load(layer.get_weights(), "keras", padding="same")
    y, h_n, c_n, saved = ops.conv_lstm_forward(x, **cells[0].arguments())
    state_dict = weights.dump(cells, "ndrplz")

NumPy in, NumPy out: no framework is imported. `CONVENTIONS` is the table of what is known, `Convention` and `Tensor`
describe what is not.
"""

from __future__ import annotations

from fusecell.weights._dump import dump
from fusecell.weights._load import load
from fusecell.weights.canonical import ConvLSTMWeights
from fusecell.weights.convention import Convention, Tensor
from fusecell.weights.conventions import CONVENTIONS

__all__ = ["CONVENTIONS", "ConvLSTMWeights", "Convention", "Tensor", "dump", "load"]
