"""ConvLSTM modules, used as `torch.nn.LSTM` and `torch.nn.LSTMCell` are, with [C, H, W] in place of the feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusecell._typing import Algorithm, Padding, Pair
from fusecell.torch import _options, _probes
from fusecell.torch._layout import joined
from fusecell.torch.functional import State, conv_lstm, conv_lstm_cell

if TYPE_CHECKING:
    from typing_extensions import Self

    from fusecell.weights import ConvLSTMWeights

Form = bool | str | None
"""Of a bias or peephole: "channel" or True, "pixel", None or False for none."""


# Stride, dilation and padding are those of layer 0 alone.
_OF_EVERY_CELL = {"activation", "recurrent_activation", "slope"}


class _Cells(nn.Module):
    """What all modules share: the options of the cell, and the parameters of each of their cells."""

    spatial = 2

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Any,
        *,
        input_kernel_size: Any,
        stride: Any,
        dilation: Any,
        padding: Any,
        bias: Form,
        peephole: Form,
        image_size: Any,
        activation: str,
        recurrent_activation: str,
        slope: float,
        relu_at_zero: float,
        recurrent_dropout: float,
        zoneout: tuple[float, float],
        recompute: bool,
        state_dtype: str | None,
        algorithm: Algorithm,
    ) -> None:
        super().__init__()
        self.in_channels = _positive("in_channels", in_channels)
        self.hidden_channels = _positive("hidden_channels", hidden_channels)
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        given = kernel_size if input_kernel_size is None else input_kernel_size
        self.input_kernel_size = self._sizes("input_kernel_size", given)
        self.stride, self.dilation, self.padding = stride, dilation, padding
        self.bias_form, self.peephole_form = _form("bias", bias), _form("peephole", peephole)
        self.image_size = None if image_size is None else self._sizes("image_size", image_size)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.slope, self.relu_at_zero = slope, relu_at_zero
        self.recurrent_dropout = _rate("recurrent_dropout", recurrent_dropout, below=1.0)
        self.zoneout = (_rate("zoneout[0]", zoneout[0]), _rate("zoneout[1]", zoneout[1]))
        self.recompute, self.state_dtype, self.algorithm = recompute, state_dtype, algorithm

    def _sizes(self, name: str, value: Any) -> tuple[int, ...]:
        if self.spatial == 1 and isinstance(value, (tuple, list)):
            if len(value) != 1:
                raise ValueError(f"{name}: expected one number, got {len(value)}")
            value = value[0]
        sizes = _options.pair(name, value)[: self.spatial]
        if min(sizes) < 1:
            raise ValueError(f"{name}: expected positive numbers, got {value}")
        return sizes

    def _add_cell(self, suffix: str, in_channels: int, kernel_ih: tuple[int, ...], factory: Mapping[str, Any]) -> None:
        c = self.hidden_channels
        shapes = {
            "weight_ih": (4 * c, in_channels, *kernel_ih),
            "weight_hh": (4 * c, c, *self.kernel_size),
            "bias": self._parameter_shape("bias", self.bias_form, 4 * c),
            "peephole": self._parameter_shape("peephole", self.peephole_form, 3 * c),
        }
        for name, shape in shapes.items():
            made = None if shape is None else nn.Parameter(torch.empty(shape, **factory))
            self.register_parameter(f"{name}{suffix}", made)

    def _parameter_shape(self, name: str, form: str | None, rows: int) -> tuple[int, ...] | None:
        if form != "pixel":
            return None if form is None else (rows,)
        if self.image_size is None:
            raise ValueError(f'image_size: expected the size of the state, as {name}="pixel" needs, got None')
        return (rows, *self.image_size)

    def reset_parameters(self) -> None:
        """Draw anew: weight_ih Glorot uniform over a gate's fans, weight_hh orthogonal for each gate, bias 0 but 1 for
        the forget gate, peepholes 0; from torch's generator."""
        for name, parameter in self.named_parameters(recurse=False):
            with torch.no_grad():
                if name.startswith("weight"):
                    for gate in parameter.chunk(4):
                        _initialise_gate(gate, orthogonal=name.startswith("weight_hh"))
                else:
                    parameter.zero_()
                if name.startswith("bias"):
                    parameter.chunk(4)[1].fill_(1.0)

    def _cell_options(self) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "recurrent_activation": self.recurrent_activation,
            "slope": self.slope,
            "relu_at_zero": self.relu_at_zero,
            "zoneout": self.zoneout,
            "recurrent_dropout": self.recurrent_dropout,
            "training": self.training,
            "recompute": self.recompute,
            "state_dtype": self.state_dtype,
            "algorithm": self.algorithm,
        }

    def _convolution_options(self) -> dict[str, Any]:
        """Of the input convolution of layer 0."""
        if self.spatial == 2:
            return {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}
        stride, dilation = self._sizes("stride", self.stride)[0], self._sizes("dilation", self.dilation)[0]
        padding = self.padding if isinstance(self.padding, str) else (0, self.padding)
        return {"stride": (1, stride), "dilation": (1, dilation), "padding": padding}

    def _weights(self, suffix: str) -> dict[str, Any]:
        """A cell's parameters for images: a row is an image of height 1."""
        found = {name: getattr(self, f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias", "peephole")}
        if self.spatial == 1:
            return {name: w if w is None or w.dim() == 1 else w.unsqueeze(-2) for name, w in found.items()}
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A checkpoint with two biases for each cell, as torch.nn.LSTM's, has them added."""
        for key in [k for k in state_dict if k.startswith(f"{prefix}bias_ih")]:
            suffix = key.removeprefix(f"{prefix}bias_ih")
            other = f"{prefix}bias_hh{suffix}"
            if other in state_dict and f"{prefix}bias{suffix}" not in state_dict:
                state_dict[f"{prefix}bias{suffix}"] = state_dict.pop(key) + state_dict.pop(other)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments that are not the usual ones."""
        text = f"{self.in_channels}, {self.hidden_channels}, kernel_size={_short(self.kernel_size)}"
        usual = {
            "input_kernel_size": self.kernel_size, "stride": 1, "dilation": 1, "padding": "same",
            "bias_form": "channel", "peephole_form": None, "activation": "tanh", "recurrent_activation": "sigmoid",
            "recurrent_dropout": 0.0, "zoneout": (0.0, 0.0), "recompute": False, "state_dtype": None,
            "algorithm": "auto",
            "num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False, "truncation": 0,
        }  # fmt: skip
        for name, value in usual.items():
            own = getattr(self, name, value)
            if own != value:
                text += f", {name.removesuffix('_form')}={own!r}"
        return text


class ConvLSTM2d(_Cells):
    """A stack of ConvLSTM layers over a sequence, in one direction or two; the ConvLSTM as `torch.nn.LSTM` would be.

    hidden_channels: C. kernel_size: of the state's convolution, and of the input's unless input_kernel_size says
    otherwise. stride, dilation and padding are those of layer 0's input convolution; all others are "same".
    bias, peephole: "channel" (or True), "pixel" (then image_size, the state's (H, W), is needed), None or False.
    dropout: on the outputs of every layer but the last. recurrent_dropout: on h inside the state's convolution, one
    mask for all steps. zoneout: the rates of (h, c). truncation k > 0 detaches the state that enters every k-th step.
    recompute keeps no gates for backward and makes them again: the same bits, a third of the memory. state_dtype:
    "input" gives c the input's dtype where that is of 16 bits; by default c stays float32. algorithm: "auto", "direct",
    "winograd", "bfloat16", "tensor_cores" or "tf32", of all convolutions, as `fusecell.torch.conv_lstm` has it.

    Parameters: weight_ih_l0 [4C, Cin, kh, kw], weight_hh_l0 [4C, C, kh, kw], bias_l0, peephole_l0, and so on;
    `_reverse` is appended for the other direction. One bias: a state_dict's bias_ih_l0 and bias_hh_l0 are added.
    Gates in the order i, f, g, o; the exact operation is in docs/cell.md.

    watched (an attribute, False at first): whether each forward in training makes new `probes`, by the names "l0",
    "l0_reverse", "l1" and so on: tensors [T, 9] whose `.grad`, after backward, says what each step was like
    (`conv_lstm` has the columns). Under torch.compile it breaks the graph, where the probes are made.

    Raises ValueError, TypeError for what does not fit.
    """

    watched = False  # of the class: older pickles have none of their own

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Pair,
        num_layers: int = 1,
        bias: Form = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        input_kernel_size: Pair | None = None,
        stride: Pair = 1,
        dilation: Pair = 1,
        padding: Padding = "same",
        peephole: Form = None,
        image_size: Pair | None = None,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        slope: float = 0.01,
        relu_at_zero: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: tuple[float, float] = (0.0, 0.0),
        truncation: int = 0,
        recompute: bool = False,
        state_dtype: str | None = None,
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            kernel_size,
            input_kernel_size=input_kernel_size,
            stride=stride,
            dilation=dilation,
            padding=padding,
            bias=bias,
            peephole=peephole,
            image_size=image_size,
            activation=activation,
            recurrent_activation=recurrent_activation,
            slope=slope,
            relu_at_zero=relu_at_zero,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            recompute=recompute,
            state_dtype=state_dtype,
            algorithm=algorithm,
        )
        self.num_layers = _positive("num_layers", num_layers)
        self.batch_first, self.bidirectional, self.truncation = batch_first, bidirectional, truncation
        self.dropout = _rate("dropout", dropout)
        self.probes: dict[str, Tensor] = {}
        directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [[f"_l{layer}{direction}" for direction in directions] for layer in range(self.num_layers)]
        for layer, suffixes in enumerate(self._suffixes):
            channels = self.in_channels if layer == 0 else len(directions) * self.hidden_channels
            kernel = self.input_kernel_size if layer == 0 else self.kernel_size
            for suffix in suffixes:
                self._add_cell(suffix, channels, kernel, {"device": device, "dtype": dtype})
        self.reset_parameters()

    @classmethod
    def from_weights(cls, cells: Sequence[ConvLSTMWeights], *, bidirectional: bool = False, **keywords: Any) -> Self:
        """A module with the weights that `fusecell.weights.load` found, computing what their source computes.

        cells: layer by layer, each forward and then, if bidirectional, in reverse; as they are in their dtype.
        keywords: those of the class that weights do not tell (batch_first, dropout, device, ...).
        Raises ValueError for cells that make no stack.
        """
        first, directions = cells[0], 2 if bidirectional else 1
        if len(cells) % directions:
            raise ValueError(f"cells: expected two for each layer, got {len(cells)}")
        forms = {name: _form_of(getattr(first, name)) for name in ("bias", "peephole")}
        sizes = [a.shape[1:] for a in (first.bias, first.peephole) if a is not None and a.ndim == 3]
        arguments: dict[str, Any] = {
            "num_layers": len(cells) // directions,
            "bidirectional": bidirectional,
            "input_kernel_size": first.weight_ih.shape[2:],
            "dtype": torch.from_numpy(first.weight_ih[:0]).dtype,
            **forms,
            **({"image_size": sizes[0]} if sizes else {}),
            **first.options,
            **keywords,
        }
        module = cls(first.in_channels, first.hidden_channels, first.weight_hh.shape[2:], **arguments)
        suffixes = [(layer, suffix) for layer, suffixes in enumerate(module._suffixes) for suffix in suffixes]
        for cell, (layer, suffix) in zip(cells, suffixes, strict=True):
            expected = {k: v for k, v in first.options.items() if layer == 0 or k in _OF_EVERY_CELL}
            if dict(cell.options) != expected:
                where = cell.name or suffix.removeprefix("_")
                raise ValueError(f"cells: expected options {expected} for {where}, got {dict(cell.options)}")
            for name in ("weight_ih", "weight_hh", "bias", "peephole"):
                module._fill(f"{name}{suffix}", getattr(cell, name))
        return module

    @torch.no_grad()
    def _fill(self, name: str, array: Any) -> None:
        parameter = getattr(self, name)
        expected, got = (None if a is None else tuple(a.shape) for a in (parameter, array))
        if expected != got:
            raise ValueError(f"{name}: expected {expected}, as the first cell tells, got {got}")
        if parameter is not None:
            parameter.copy_(torch.from_numpy(array))

    def forward(
        self, input: Tensor, hx: State | None = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """Run the stack over a sequence.

        input [T, B, Cin, H, W], or [B, T, Cin, H, W] if batch_first, or unbatched [T, Cin, H, W]; hx: (h_0, c_0), each
        [num_layers * D, B, C, H', W'] (D = 2 if bidirectional, else 1), None for zeros; lengths [B]: steps from a
        sample's length on are padding: the output is 0 there and the state stays as it was.

        Returns output [T, B, D * C, H', W'] (or batch first) and (h_n, c_n), shaped as hx.
        Raises ValueError, TypeError.
        """
        frames = 2 + self.spatial
        if input.dim() == frames:
            batch = 0 if self.batch_first else 1
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
            output, (h, c) = self.forward(input.unsqueeze(batch), hx, lengths)
            return output.squeeze(batch), (h.squeeze(1), c.squeeze(1))
        if input.dim() != frames + 1:
            order = "B, T" if self.batch_first else "T, B"
            size = "H, W" if self.spatial == 2 else "L"
            raise ValueError(f"input: expected shape [{order}, {self.in_channels}, {size}], got {tuple(input.shape)}")
        if input.shape[2] != self.in_channels:
            raise ValueError(f"input: expected {self.in_channels} channels, got {input.shape[2]}: {tuple(input.shape)}")
        start = self._start(hx)
        if self.spatial == 1:
            input, start = input.unsqueeze(-2), [_as_images(state) for state in start]
        output, final = self._run(input, start, lengths)
        h_n, c_n = _stacked([h for h, _ in final]), _stacked([c for _, c in final])
        if self.spatial == 1:
            return output.squeeze(-2), (h_n.squeeze(-2), c_n.squeeze(-2))
        return output, (h_n, c_n)

    def _start(self, hx: State | None) -> list[State | None]:
        cells = sum(map(len, self._suffixes))
        if hx is None:
            return [None] * cells
        for name, state in zip(("hx[0]", "hx[1]"), hx, strict=True):
            if state.dim() != 3 + self.spatial or state.shape[0] != cells:
                size = "H, W" if self.spatial == 2 else "L"
                expected = f"[{cells}, B, {self.hidden_channels}, {size}]"
                raise ValueError(f"{name}: expected shape {expected}, got {tuple(state.shape)}")
        return list(zip(hx[0].unbind(0), hx[1].unbind(0), strict=True))

    def _names(self) -> list[str]:
        return [suffix.removeprefix("_") for suffixes in self._suffixes for suffix in suffixes]

    def _run(
        self, x: Tensor, start: list[State | None], lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, list[State]]:
        options = {**self._cell_options(), "truncation": self.truncation, "batch_first": self.batch_first}
        final: list[State] = []
        probes = _probes.of_forward(self, self._names(), x, int(self.batch_first)) if self.watched else {}
        for layer, suffixes in enumerate(self._suffixes):
            if layer > 0 and self.dropout > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
            convolution = self._convolution_options() if layer == 0 else {}
            outputs = []
            for direction, suffix in enumerate(suffixes):
                y, state = conv_lstm(
                    x,
                    **self._weights(suffix),
                    hx=start[len(final)],
                    lengths=lengths,
                    reverse=direction == 1,
                    probe=probes.get(suffix.removeprefix("_")),
                    **convolution,
                    **options,
                )
                outputs.append(y)
                final.append(state)
            x = outputs[0] if len(outputs) == 1 else joined(outputs, -3)
        return x, final


class ConvLSTM1d(ConvLSTM2d):
    """`ConvLSTM2d` over rows of numbers: input [T, B, Cin, L], weight_ih_l0 [4C, Cin, k], states [.., B, C, L].

    Sizes, kernels and strides are one number each; padding is "same", "valid", a number, or (low, high).
    """

    spatial = 1


class ConvLSTMCell2d(_Cells):
    """One step of a ConvLSTM, as `torch.nn.LSTMCell`: (input, (h, c)) -> (h, c).

    The arguments are those of `ConvLSTM2d` that concern a cell. Parameters: weight_ih, weight_hh, bias, peephole.
    With recurrent_dropout every call draws its own mask. Raises ValueError, TypeError for what does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Pair,
        bias: Form = True,
        *,
        input_kernel_size: Pair | None = None,
        stride: Pair = 1,
        dilation: Pair = 1,
        padding: Padding = "same",
        peephole: Form = None,
        image_size: Pair | None = None,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        slope: float = 0.01,
        relu_at_zero: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: tuple[float, float] = (0.0, 0.0),
        recompute: bool = False,
        state_dtype: str | None = None,
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            kernel_size,
            input_kernel_size=input_kernel_size,
            stride=stride,
            dilation=dilation,
            padding=padding,
            bias=bias,
            peephole=peephole,
            image_size=image_size,
            activation=activation,
            recurrent_activation=recurrent_activation,
            slope=slope,
            relu_at_zero=relu_at_zero,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            recompute=recompute,
            state_dtype=state_dtype,
            algorithm=algorithm,
        )
        self._add_cell("", self.in_channels, self.input_kernel_size, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """One step.

        input [B, Cin, H, W] or unbatched [Cin, H, W]; hx: (h, c), each [B, C, H', W'], None for zeros. Returns the new
        (h, c). Raises ValueError, TypeError.
        """
        if input.dim() == 3:
            h, c = self.forward(input.unsqueeze(0), None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0)))
            return h.squeeze(0), c.squeeze(0)
        if input.dim() != 4:
            raise ValueError(f"input: expected shape [B, {self.in_channels}, H, W], got {tuple(input.shape)}")
        return conv_lstm_cell(input, **self._weights(""), hx=hx, **self._convolution_options(), **self._cell_options())


# ------------------------------------------------------------------------------------------------------------- parts
def _as_images(state: State | None) -> State | None:
    return None if state is None else (state[0].unsqueeze(-2), state[1].unsqueeze(-2))


def _stacked(states: list[Tensor]) -> Tensor:
    return states[0].unsqueeze(0) if len(states) == 1 else joined(states, 0)


def _initialise_gate(gate: Tensor, *, orthogonal: bool) -> None:
    if orthogonal:  # by a QR decomposition, which 16 bits have not
        gate.copy_(nn.init.orthogonal_(torch.empty_like(gate, dtype=torch.promote_types(gate.dtype, torch.float32))))
        return
    taps = math.prod(gate.shape[2:])
    limit = math.sqrt(6.0 / (taps * (gate.shape[0] + gate.shape[1])))
    gate.uniform_(-limit, limit)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return value


def _rate(name: str, value: float, below: float = math.inf) -> float:
    if not (0.0 <= value <= 1.0 and value < below):
        raise ValueError(f"{name}: expected a rate from 0 to {'below ' if below == 1.0 else ''}1, got {value}")
    return float(value)


def _form(name: str, value: Form) -> str | None:
    forms = {True: "channel", False: None, None: None, "channel": "channel", "pixel": "pixel"}
    if value not in forms:
        raise ValueError(f'{name}: expected True, False, "channel", "pixel" or None, got {value!r}')
    return forms[value]


def _form_of(array: Any) -> str | None:
    return None if array is None else "channel" if array.ndim == 1 else "pixel"


def _short(sizes: tuple[int, ...]) -> Any:
    return sizes[0] if len(set(sizes)) == 1 else sizes
