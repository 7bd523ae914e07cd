"""SimpleRNN: a plain recurrent network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusecell import ops
from fusecell._typing import Array
from fusecell.initializers import glorot_uniform, orthogonal
from fusecell.layers.base import Layer, float_dtype, positive


class SimpleRNN(Layer):
    """h_t = φ(W_ih x_t + W_hh h_{t-1} + b) (Elman 1990): x [T, B, I] -> y [T, B, C].

    return_sequences=False gives the last h instead, [B, C]. activation: φ, as `fusecell.ops.rnn_forward` takes it. On
    the CPU alone: arrays on a GPU raise ValueError.

    Parameters: weight_ih_l0 [C, I], Glorot uniform; weight_hh_l0 [C, C], orthogonal; bias_l0 [C], 0 (bias=False: none).

    watched: while True, every backward leaves `step_statistics`, {"l0": float64 [T, 4]}, with the columns
    `fusecell.ops.RNN_STEP_STATISTICS`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        *,
        activation: str = "tanh",
        return_sequences: bool = True,
        bias: bool = True,
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.hidden = positive(in_features, "in_features"), positive(hidden, "hidden")
        self.activation, self.return_sequences = activation, return_sequences
        kind, shape = float_dtype(dtype), (self.hidden, self.in_features)
        self._parameters["weight_ih_l0"] = glorot_uniform(rng, shape, self.in_features, self.hidden, kind)
        self._parameters["weight_hh_l0"] = orthogonal(rng, self.hidden, self.hidden, dtype=kind)
        if bias:
            self._parameters["bias_l0"] = np.zeros(self.hidden, kind)
        self.watched = False
        self.step_statistics: dict[str, Array] = {}
        self.final_state: Array | None = None
        self.dstate: Array | None = None
        self._saved: ops.SavedRNN | None = None

    def forward(self, x: Array, state: Array | None = None) -> Array:
        """y [T, B, C] or, without return_sequences, [B, C]; the last h is in `final_state`.

        x [T, B, I]; state: the h before the first step, [B, C], None for zeros. Raises ValueError or TypeError (ops's
        own, with the argument's name, h_0 for the state) for what does not fit.
        """
        own = self._parameters
        y, h_n, self._saved = ops.rnn_forward(
            x, own["weight_ih_l0"], own["weight_hh_l0"], own.get("bias_l0"), state, activation=self.activation
        )
        self.final_state = h_n
        self._activity = {"": y}
        return y if self.return_sequences else h_n

    def backward(self, dy: Array | None, dfinal_state: Array | None = None) -> Array:
        """dx [T, B, I]; after it `dstate` holds the gradient of the state before the first step, [B, C].

        dy has the shape of forward's result (None: zero); dfinal_state [B, C] is the gradient of `final_state`, None
        for zero. Raises RuntimeError before a forward, ValueError or TypeError for a wrong shape or dtype.
        """
        if self._saved is None or self.final_state is None:
            raise RuntimeError("SimpleRNN.backward: call forward first")
        if not self.return_sequences and dy is not None:
            if dy.shape != self.final_state.shape:
                raise ValueError(f"dy: expected {self.final_state.shape}, got {dy.shape}")
            dy, dfinal_state = None, dy if dfinal_state is None else dy + dfinal_state
        found = ops.rnn_backward(self._saved, dy, dfinal_state, statistics=self.watched)
        self.step_statistics = {"l0": found["statistics"]} if self.watched else {}
        self.dstate = found["h_0"]
        self._keep_gradients({f"{name}_l0": gradient for name, gradient in found.items()})
        return found["x"]
