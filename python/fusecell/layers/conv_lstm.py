"""ConvLSTM2D: cells over time, stacked, in one direction or two.

Source of the cell: Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning Approach for Precipitation
Nowcasting"; of the exact operation: `fusecell.ops.conv_lstm_forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fusecell import ops
from fusecell._typing import Algorithm, Array, Padding, Pair
from fusecell.initializers import gate_bias, input_kernel, recurrent_kernel
from fusecell.layers.base import Layer, float_dtype, pair, positive, rate, seed_from

State = tuple[Array, Array]
"""(h, c), each [B, C, H, W]."""

Form = Literal["channel", "pixel"]

_WEIGHTS = ("weight_ih", "weight_hh", "bias", "peephole")
_INPUT_DROPOUT_STREAM = 3  # 0, 1 and 2 are the cell's own masks


class ConvLSTM2D(Layer):
    """A stack of ConvLSTM layers: x [T, B, Cin, H, W] -> y [T, B, D * C, H', W'], D = 2 if bidirectional, else 1.

    return_sequences=False gives the last state instead, [B, D * C, H', W']: the forward direction's h after its
    last step and the reverse direction's after t = 0, as `torch.nn.LSTM`'s h_n holds them.
    stride, dilation and padding are those of layer 0's input convolution; all others are "same".
    image_size, the (H', W') of the state, is needed only where bias or peephole is per "pixel".
    dropout: inverted, on each layer's input, one mask for all steps (as Keras) and for both directions;
    recurrent_dropout: on h inside the recurrent convolution, one mask for all steps; zoneout: rates of (h, c).
    truncation k > 0 detaches the state that enters each k-th step. recompute keeps no gates for the backward pass
    and computes them again: the same bits, less memory. algorithm: as `fusecell.ops.conv_lstm_forward` takes it.
    stateful=True hands the final state, detached, to the next forward that is given none, until `reset_state()`.
    watched (an attribute, False at first): whether a backward leaves in `step_statistics`, under "l0", "l0_reverse",
    "l1" and so on, what `fusecell.ops.conv_lstm_backward` says of each time step: arrays [T, 9].

    Parameters: weight_ih_l0, weight_hh_l0, bias_l0, peephole_l0 and so on, `..._l0_reverse` for the other direction.
    weight_ih is Glorot uniform over the fans of one gate, weight_hh orthogonal per gate, bias 0 but 1 for the forget
    gate, peepholes 0. rng draws these and later, at every training forward, the seeds of what drops.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Pair,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        return_sequences: bool = True,
        stateful: bool = False,
        input_kernel_size: Pair | None = None,
        stride: Pair = 1,
        dilation: Pair = 1,
        padding: Padding = "same",
        bias: Form | None = "channel",
        peephole: Form | None = None,
        image_size: tuple[int, int] | None = None,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        slope: float = 0.01,
        relu_at_zero: float = 0.0,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: tuple[float, float] = (0.0, 0.0),
        truncation: int = 0,
        recompute: bool = False,
        algorithm: Algorithm = "auto",
        rng: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_channels = positive(in_channels, "in_channels")
        self.hidden_channels = positive(hidden_channels, "hidden_channels")
        self.num_layers = positive(num_layers, "num_layers")
        self.return_sequences, self.stateful = return_sequences, stateful
        self.dropout = rate(dropout, "dropout")
        self._suffixes = ("", "_reverse") if bidirectional else ("",)
        self._first_convolution = {"stride": stride, "dilation": dilation, "padding": padding}
        self._options: dict[str, Any] = {
            "activation": activation,
            "recurrent_activation": recurrent_activation,
            "slope": slope,
            "relu_at_zero": relu_at_zero,
            "recurrent_dropout": rate(recurrent_dropout, "recurrent_dropout"),
            "zoneout_h": rate(zoneout[0], "zoneout[0]"),
            "zoneout_c": rate(zoneout[1], "zoneout[1]"),
            "truncation": truncation,
            "save": "recompute" if recompute else "gates",
            "algorithm": algorithm,
        }
        self._draws = max(self._options[k] for k in ("recurrent_dropout", "zoneout_h", "zoneout_c")) > 0.0
        self._rng = rng
        kernel = pair(kernel_size, "kernel_size")
        kernel_ih = kernel if input_kernel_size is None else pair(input_kernel_size, "input_kernel_size")
        spatial = _spatial_sizes(bias, peephole, image_size)
        for l in range(self.num_layers):
            for suffix in self._suffixes:
                self._initialise(l, suffix, kernel_ih, kernel, spatial, float_dtype(dtype))
        self.final_state: list[State] = []
        self.dstate: list[State] = []
        self.watched = False
        self.step_statistics: dict[str, Array] = {}
        self._carried: list[State] | None = None
        self._saved: list[Any] = []
        self._masks: list[Array | None] = []

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return len(self._suffixes)

    def reset_state(self) -> None:
        """Forget the state that a stateful layer carries: the next sequence starts from zero."""
        self._carried = None

    def forward(self, x: Array, state: Sequence[State | None] | None = None, lengths: Array | None = None) -> Array:
        """Run the whole stack.

        x [T, B, Cin, H, W]; state: one (h, c) per layer and direction, layer major, or None for zeros; lengths [B],
        integers: steps from a sample's length on are padding. The state after the last step is in `final_state`.
        Raises ValueError or TypeError (ops's own, with the argument's name) for what does not fit.
        """
        start = self._start(x, state)
        self._saved, self._masks, self._activity = [], [], {}
        final: list[State] = []
        for l in range(self.num_layers):
            self._masks.append(self._input_mask(x))
            if self._masks[l] is not None:
                x = x * self._masks[l]
            outputs = []
            for d in range(self.num_directions):
                y, h, c, saved = self._run_cell(l, d, x, start[len(final)], lengths)
                outputs.append(y)
                self._activity[f"l{l}{self._suffixes[d]}"] = y
                final.append((h, c))
                self._saved.append(saved)
            x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=2)
        self.final_state = final
        if self.stateful:
            self._carried = [(h.copy(), c.copy()) for h, c in final]
        return x if self.return_sequences else self._last_output(final)

    def backward(
        self, dy: Array | None, dfinal_state: Sequence[tuple[Array | None, Array | None] | None] | None = None
    ) -> Array:
        """dx [T, B, Cin, H, W]; after it `dstate` holds (dh_0, dc_0) per layer and direction.

        dy has the shape of forward's result (None: zero); dfinal_state may give (dh_n, dc_n) for each entry of
        `final_state`, None for zero. Raises RuntimeError before a forward, ValueError for a wrong shape or count.
        """
        if not self._saved:
            raise RuntimeError("ConvLSTM2D.backward: call forward first")
        dfinal = self._final_gradients(dy, dfinal_state)
        sequence = dy if self.return_sequences else None
        dstate: list[State] = []
        gradients: dict[str, Array] = {}
        statistics: dict[str, Array] = {}
        for l in reversed(range(self.num_layers)):
            pieces = self._split(sequence)
            found = [self._cell_backward(l, d, pieces[d], dfinal) for d in range(self.num_directions)]
            for suffix, grads in zip(self._suffixes, found, strict=True):
                gradients.update({f"{w}_l{l}{suffix}": grads[w] for w in _WEIGHTS if w in grads})
            dstate = [(g["h_0"], g["c_0"]) for g in found] + dstate
            if self.watched:
                of_layer = {f"l{l}{s}": g["statistics"] for s, g in zip(self._suffixes, found, strict=True)}
                statistics = of_layer | statistics
            sequence = found[0]["x"] if len(found) == 1 else found[0]["x"] + found[1]["x"]
            mask = self._masks[l]
            if mask is not None:
                sequence = sequence * mask
        self.dstate = dstate
        self.step_statistics = statistics
        self._keep_gradients(gradients)
        assert sequence is not None
        return sequence

    # ------------------------------------------------------------------------------------------- forward's parts

    def _initialise(
        self,
        l: int,
        suffix: str,
        kernel_ih: tuple[int, int],
        kernel_hh: tuple[int, int],
        spatial: dict[str, tuple[int, ...] | None],
        dtype: npt.DTypeLike,
    ) -> None:
        cell, channels = f"l{l}{suffix}", self.hidden_channels
        inputs = self.in_channels if l == 0 else self.num_directions * channels
        own = self._parameters
        own[f"weight_ih_{cell}"] = input_kernel(self._rng, channels, inputs, kernel_ih, dtype)
        own[f"weight_hh_{cell}"] = recurrent_kernel(self._rng, channels, kernel_hh, dtype)
        if (size := spatial["bias"]) is not None:
            own[f"bias_{cell}"] = gate_bias(channels, size, dtype)
        if (size := spatial["peephole"]) is not None:
            own[f"peephole_{cell}"] = np.zeros((3 * channels, *size), dtype)

    def _start(self, x: Array, state: Sequence[State | None] | None) -> list[State | None]:
        cells = self.num_layers * self.num_directions
        if state is None and self.stateful and self._carried is not None:
            kept = self._carried[0][0].shape[0]
            if x.ndim == 5 and kept != x.shape[1]:
                raise ValueError(f"x: expected batch {kept}, as before, got {x.shape[1]}; or call reset_state()")
            return list(self._carried)
        if state is None:
            return [None] * cells
        if len(state) != cells:
            raise ValueError(f"state: expected {cells} pairs (layers x directions), got {len(state)}")
        return list(state)

    def _input_mask(self, x: Array) -> Array | None:
        """[B, C, H, W] of 0 and 1 / (1 - rate) in x's dtype, or None."""
        if not self.training or self.dropout == 0.0:
            return None
        dropped = ops.bernoulli(x.shape[1:], self.dropout, seed=seed_from(self._rng), stream=_INPUT_DROPOUT_STREAM)
        scale: Array = np.asarray(1.0 / (1.0 - self.dropout), x.dtype)
        return (1 - dropped).astype(x.dtype) * scale

    def _run_cell(
        self, l: int, d: int, x: Array, start: State | None, lengths: Array | None
    ) -> tuple[Array, Array, Array, Any]:
        cell = f"l{l}{self._suffixes[d]}"
        own = self._parameters
        h, c = (None, None) if start is None else start
        options = dict(self._options, **(self._first_convolution if l == 0 else {}))
        return ops.conv_lstm_forward(
            x,
            own[f"weight_ih_{cell}"],
            own[f"weight_hh_{cell}"],
            own.get(f"bias_{cell}"),
            own.get(f"peephole_{cell}"),
            h,
            c,
            lengths=lengths,
            reverse=d == 1,
            training=self.training,
            seed=seed_from(self._rng) if self.training and self._draws else 0,
            **options,
        )

    def _last_output(self, final: list[State]) -> Array:
        last = [h for h, _ in final[-self.num_directions :]]
        return last[0] if len(last) == 1 else np.concatenate(last, axis=1)

    # ------------------------------------------------------------------------------------------ backward's parts

    def _final_gradients(
        self, dy: Array | None, given: Sequence[tuple[Array | None, Array | None] | None] | None
    ) -> list[tuple[Array | None, Array | None]]:
        cells = self.num_layers * self.num_directions
        if given is not None and len(given) != cells:
            raise ValueError(f"dfinal_state: expected {cells} pairs (layers x directions), got {len(given)}")
        result = [(None, None) if pair_ is None else pair_ for pair_ in given or [None] * cells]
        if self.return_sequences or dy is None:
            return result
        for d, piece in enumerate(self._split(dy)):
            dh, dc = result[d - self.num_directions]
            result[d - self.num_directions] = (piece if dh is None else piece + dh, dc)
        return result

    def _split(self, dy: Array | None) -> list[Array | None]:
        """The channels of each direction: the third axis from the end."""
        if dy is None:
            return [None] * self.num_directions
        channels = self.hidden_channels * self.num_directions
        if dy.ndim < 4 or dy.shape[-3] != channels:
            raise ValueError(f"dy: expected [..., B, {channels}, H, W], got {list(dy.shape)}")
        return list(np.split(dy, self.num_directions, axis=-3))

    def _cell_backward(
        self, l: int, d: int, dy: Array | None, dfinal: list[tuple[Array | None, Array | None]]
    ) -> dict[str, Array]:
        index = l * self.num_directions + d
        dh_n, dc_n = dfinal[index]
        return ops.conv_lstm_backward(self._saved[index], dy, dh_n, dc_n, statistics=self.watched)


def _spatial_sizes(
    bias: Form | None, peephole: Form | None, image_size: tuple[int, int] | None
) -> dict[str, tuple[int, ...] | None]:
    """The axes after the channels of bias and peephole: () per channel, (H, W) per pixel, None for none."""
    sizes: dict[str, tuple[int, ...] | None] = {}
    for name, form in (("bias", bias), ("peephole", peephole)):
        if form not in (None, "channel", "pixel"):
            raise ValueError(f'{name}: expected "channel", "pixel" or None, got {form!r}')
        if form == "pixel" and image_size is None:
            raise ValueError(f'image_size: expected the (H, W) of the state, as {name}="pixel" needs, got None')
        sizes[name] = None if form is None else () if form == "channel" else image_size
    return sizes
