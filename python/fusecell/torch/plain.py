"""The ConvLSTM as a composition of stock torch operators: this file needs torch alone and can be copied as it is.

It computes what fusecell's kernels compute (fusecell's docs/cell.md defines it), slower, but on every device that
torch knows, differentiable any number of times, and fit for torch.export. `fusecell.torch.to_plain` puts these
modules in the place of fusecell's.

One step, `*` a cross-correlation, every other product elementwise, (h', c') the state before:

    z = W_ih * x + W_hh * h' + b                four blocks of C channels, in the order i, f, g, o
    i = sigma(z_i + p_i c')    f = sigma(z_f + p_f c')    g = phi(z_g)
    C = f c' + i g             o = sigma(z_o + p_o C)     H = o phi(C)
    c = m_c c' + (1 - m_c) C   h = m_h h' + (1 - m_h) H

Source: Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = int | tuple[int, int]
Padding = str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
State = tuple[Tensor, Tensor]
Sides = tuple[tuple[int, int], tuple[int, int]]


# ------------------------------------------------------------------------------------------------ activations
def sigma(x: Tensor, name: str) -> Tensor:
    """The gates' activation: sigmoid, hard_sigmoid (torch, Keras 3) or hard_sigmoid_keras2. Raises ValueError."""
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "hard_sigmoid":
        return F.relu6(x + 3.0) / 6.0
    if name == "hard_sigmoid_keras2":
        return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)
    raise ValueError(f"recurrent_activation: expected sigmoid, hard_sigmoid or hard_sigmoid_keras2, got {name!r}")


def _softsign(x: Tensor) -> Tensor:
    infinite = x.isinf()  # inf / inf would be NaN
    return torch.where(infinite, x.sign(), F.softsign(x.masked_fill(infinite, 0.0)))


def phi(x: Tensor, name: str, slope: float = 0.01, relu_at_zero: float = 0.0) -> Tensor:
    """The activation of g and c; relu_at_zero is relu's derivative at exactly 0. Raises ValueError."""
    if name == "tanh":
        return torch.tanh(x)
    if name == "relu":
        return F.relu(x) if relu_at_zero == 0.0 else torch.where(x == 0.0, relu_at_zero * x, F.relu(x))
    if name == "leaky_relu":
        return F.leaky_relu(x, slope)
    if name == "hard_tanh":
        return F.hardtanh(x)
    if name == "softsign":
        return _softsign(x)
    if name == "identity":
        return x
    raise ValueError(f"activation: expected tanh, relu, leaky_relu, hard_tanh, softsign or identity, got {name!r}")


# ------------------------------------------------------------------------------------------------------ gates
def _blocks(p: Tensor | None, count: int, like: Tensor) -> list[Tensor | None]:
    """The blocks of a bias or peephole, to be broadcast over `like` [B, C, ...]; Nones for None."""
    if p is None:
        return [None] * count
    return list(torch.chunk(p.reshape(-1, *[1] * (like.dim() - 2)) if p.dim() == 1 else p, count, dim=0))


def _add(a: Tensor, *factors: Tensor | None) -> Tensor:
    """a plus the product of the factors; a itself if the first is absent."""
    first, *rest = factors
    if first is None:
        return a
    for factor in rest:
        first = first * cast(Tensor, factor)
    return a + first


def _keep(old: Tensor | None, new: Tensor, rate: float, mask: Tensor | None) -> Tensor:
    if mask is None and rate == 0.0:
        return new
    if old is None:
        raise ValueError("h: expected the state before the step, which zoneout keeps a part of, got None")
    m = rate if mask is None else mask.to(new.dtype)
    return m * old + (1.0 - m) * new


def lstm_gates(
    z: Tensor,
    c: Tensor,
    h: Tensor | None = None,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    *,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    slope: float = 0.01,
    relu_at_zero: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    zoneout_mask_h: Tensor | None = None,
    zoneout_mask_c: Tensor | None = None,
) -> State:
    """The gates alone, for any convolution: (z, c') -> (h, c).

    z [B, 4C, ...] in the order i, f, g, o, with any number of spatial dimensions; c and h [B, C, ...], the state
    before, of which h is read by zoneout alone; bias [4C] or [4C, ...]; peephole [3C] or [3C, ...], in the order
    i, f, o; zoneout masks [B, C, ...], 1 = keep the old, in place of the rates. The arithmetic is in c's dtype (float32
    beside a bfloat16 z); h comes in z's. Raises ValueError for unknown activations.
    """
    z_i, z_f, z_g, z_o = torch.chunk(z.to(c.dtype), 4, dim=1)
    b_i, b_f, b_g, b_o = _blocks(bias, 4, z)
    p_i, p_f, p_o = _blocks(peephole, 3, z)
    i = sigma(_add(_add(z_i, b_i), p_i, c), recurrent_activation)
    f = sigma(_add(_add(z_f, b_f), p_f, c), recurrent_activation)
    g = phi(_add(z_g, b_g), activation, slope, relu_at_zero)
    new_c = f * c + i * g
    o = sigma(_add(_add(z_o, b_o), p_o, new_c), recurrent_activation)
    new_h = o * phi(new_c, activation, slope, relu_at_zero)
    new_h = _keep(h, new_h, zoneout_h, zoneout_mask_h)
    return new_h.to(z.dtype), _keep(c, new_c, zoneout_c, zoneout_mask_c)


# ------------------------------------------------------------------------------------------------ convolutions
def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _sides(
    size: Sequence[int], kernel: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int], padding: Padding
) -> Sides:
    """The zeros before and after each axis; "same" as Keras: ceil(size / stride) outputs, the odd zero behind."""
    if padding == "same":
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        # Without a stride the size does not matter: a trace or an export then holds for any.
        totals = [
            r - 1 if s == 1 else max((n - 1) // s * s + r - n, 0) for n, s, r in zip(size, stride, reach, strict=True)
        ]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, str):
        raise ValueError(f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
    rows, columns = _pair(padding)
    return _pair(rows), _pair(columns)


def _size(
    size: Sequence[int], kernel: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int], sides: Sides
) -> list[int]:
    """The size of a convolution's output."""
    axes = zip(size, kernel, stride, dilation, sides, strict=True)
    return [(n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, d, (low, high) in axes]


def _conv(
    x: Tensor, weight: Tensor, sides: Sides, stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    (top, bottom), (left, right) = sides
    if top == bottom and left == right:  # saves a padded copy
        return F.conv2d(x, weight, None, stride, (top, left), dilation)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation)


def conv_lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: Padding = "same",
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    slope: float = 0.01,
    relu_at_zero: float = 0.0,
    lengths: Tensor | Sequence[int] | None = None,
    reverse: bool = False,
    truncation: int = 0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    zoneout_mask_h: Tensor | None = None,
    zoneout_mask_c: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    state_dtype: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A ConvLSTM over a sequence, from the state (h_0, c_0), zero where absent.

    x [T, B, Cin, Hin, Win]; weight_ih [4C, Cin, kh, kw], weight_hh [4C, C, kh', kw'], gates in the order i, f, g, o;
    bias [4C] or [4C, H, W]; peephole [3C] or [3C, H, W], in the order i, f, o; h_0, c_0 [B, C, H, W].
    stride, dilation, padding ("same" as Keras, "valid", or numbers up to ((top, bottom), (left, right))) are the input
    convolution's; the state's is always "same".
    lengths [B], 0 to T: step t of sample b takes place iff t < lengths[b]. reverse runs from t = T - 1 down to 0.
    truncation k > 0 detaches the state that enters the direction's steps k, 2k, ...
    zoneout keeps the rates' share of the old state, or what masks [T, B, C, H, W] say; dropout_mask [B, C, H, W]
    multiplies h' in the recurrent convolution alone.
    state_dtype: "input" for c in x's dtype; by default it is float32 beside an x of 16 bits.

    Returns y [T, B, C, H, W], 0 where no step takes place, and h_n, c_n [B, C, H, W]. Raises ValueError.
    """
    T, B = x.shape[:2]
    stride, dilation = _pair(stride), _pair(dilation)
    kernel, recurrent_kernel = weight_ih.shape[2:], weight_hh.shape[2:]
    sides = _sides(x.shape[3:], kernel, stride, dilation, padding)
    around = _sides(recurrent_kernel, recurrent_kernel, (1, 1), (1, 1), "same")
    size = _size(x.shape[3:], kernel, stride, dilation, sides)
    wide = x.dtype if state_dtype == "input" else torch.promote_types(x.dtype, torch.float32)
    h = x.new_zeros(B, weight_hh.shape[1], *size) if h_0 is None else h_0
    c = torch.zeros_like(h, dtype=wide) if c_0 is None else c_0.to(wide)
    if lengths is not None:
        counts = torch.as_tensor(lengths, device=x.device).view(B, 1, 1, 1)

    outputs = [torch.zeros_like(h)] * T
    for s in range(T):
        t = T - 1 - s if reverse else s
        active = None if lengths is None else t < counts
        if truncation and s and s % truncation == 0:
            h, c = _where(active, h.detach(), h), _where(active, c.detach(), c)
        # Where no step takes place zeros go in: even a NaN there must not reach a gradient, and 0 * NaN would be NaN.
        x_t, h_t, c_t = _or_zeros(active, x[t]), _or_zeros(active, h), _or_zeros(active, c)
        z = _conv(x_t, weight_ih, sides, stride, dilation)
        z = z + _conv(h_t if dropout_mask is None else dropout_mask * h_t, weight_hh, around)
        new_h, new_c = lstm_gates(
            z, c_t, h_t, bias, peephole, recurrent_activation=recurrent_activation, activation=activation, slope=slope,
            relu_at_zero=relu_at_zero, zoneout_h=zoneout_h, zoneout_c=zoneout_c,
            zoneout_mask_h=None if zoneout_mask_h is None else _or_zeros(active, zoneout_mask_h[t]),
            zoneout_mask_c=None if zoneout_mask_c is None else _or_zeros(active, zoneout_mask_c[t]),
        )  # fmt: skip
        outputs[t] = _or_zeros(active, new_h)
        h, c = _where(active, new_h, h), _where(active, new_c, c)
    return torch.stack(outputs) if T else x.new_zeros(0, *h.shape), h, c


def _where(active: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a if active is None else torch.where(active, a, b)


def _or_zeros(active: Tensor | None, a: Tensor) -> Tensor:
    return a if active is None else torch.where(active, a, torch.zeros_like(a))


# ---------------------------------------------------------------------------------------------------- modules
class _Cells(nn.Module):
    """The options of the cell, under the names that fusecell.torch's modules have, and each cell's parameters."""

    spatial = 2
    stride: Any
    dilation: Any
    padding: Any
    recurrent_dropout: float
    zoneout: tuple[float, float]
    usual: ClassVar[dict[str, Any]] = {
        "input_kernel_size": None, "stride": 1, "dilation": 1, "padding": "same", "bias": True, "peephole": None,
        "image_size": None, "activation": "tanh", "recurrent_activation": "sigmoid", "slope": 0.01,
        "relu_at_zero": 0.0, "recurrent_dropout": 0.0, "zoneout": (0.0, 0.0), "recompute": False, "state_dtype": None,
        "algorithm": "auto",
    }  # fmt: skip

    def __init__(self, in_channels: int, hidden_channels: int, kernel_size: Any, options: dict[str, Any]) -> None:
        super().__init__()
        if unknown := sorted(set(options) - set(self.usual)):
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
        options = {**self.usual, **options}
        forms = {True: "channel", False: None, None: None, "channel": "channel", "pixel": "pixel"}
        self.bias_form, self.peephole_form = forms[options.pop("bias")], forms[options.pop("peephole")]
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.kernel_size = self._sizes(kernel_size)
        self.input_kernel_size = self._sizes(options.pop("input_kernel_size") or kernel_size)
        self.image_size = None if options["image_size"] is None else self._sizes(options["image_size"])
        del options["image_size"]
        for name, value in options.items():
            setattr(self, name, value)

    def _sizes(self, value: Any) -> tuple[int, ...]:
        return (value,) * self.spatial if isinstance(value, int) else tuple(value)

    def _add_cell(self, suffix: str, in_channels: int, kernel: tuple[int, ...], factory: dict[str, Any]) -> None:
        rows, channels, size = 4 * self.hidden_channels, self.hidden_channels, self.image_size or ()
        per = {None: None, "channel": (), "pixel": size}
        bias, peephole = per[self.bias_form], per[self.peephole_form]
        shapes = {
            "weight_ih": (rows, in_channels, *kernel),
            "weight_hh": (rows, channels, *self.kernel_size),
            "bias": None if bias is None else (rows, *bias),
            "peephole": None if peephole is None else (3 * channels, *peephole),
        }
        bound = (channels * max(1, self.kernel_size[0] * self.kernel_size[-1])) ** -0.5
        for name, shape in shapes.items():
            values = None if shape is None else nn.Parameter(torch.empty(shape, **factory))
            self.register_parameter(f"{name}{suffix}", values)
            if values is not None and name.startswith("weight"):
                nn.init.uniform_(values, -bound, bound)
            elif values is not None:
                nn.init.zeros_(values)

    def _cell(self, suffix: str, x: Tensor, hx: State | None, first: bool, **options: Any) -> tuple[Tensor, State]:
        """One cell over x [T, B, Cin, H, W]; first: with the module's stride, dilation, padding."""
        own = (getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "bias", "peephole"))
        rows = self.spatial == 1  # as images of height 1
        own = (w.unsqueeze(-2) if rows and w is not None and w.dim() > 1 else w for w in own)
        weight_ih, weight_hh, bias, peephole = own
        named = ("activation", "recurrent_activation", "slope", "relu_at_zero", "state_dtype")
        options |= {name: getattr(self, name) for name in named}
        options |= self._convolution() if first else {}
        h, c = (None, None) if hx is None else hx
        if self.training:
            options |= self._masks(x, weight_ih.shape[2:], options)
        elif any(self.zoneout):
            options |= {"zoneout_h": self.zoneout[0], "zoneout_c": self.zoneout[1]}
        y, h_n, c_n = conv_lstm(x, weight_ih, weight_hh, bias, peephole, h, c, **options)
        return y, (h_n, c_n)

    def _convolution(self) -> dict[str, Any]:
        if self.spatial == 2:
            return {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}
        stride, dilation = self._sizes(self.stride)[0], self._sizes(self.dilation)[0]
        padding = self.padding if isinstance(self.padding, str) else (0, self.padding)
        return {"stride": (1, stride), "dilation": (1, dilation), "padding": padding}

    def _masks(self, x: Tensor, kernel: Sequence[int], options: dict[str, Any]) -> dict[str, Tensor]:
        """Drawn from torch's generator: recurrent dropout, one for all steps, and zoneout of h and c."""
        stride, dilation = _pair(options.get("stride", 1)), _pair(options.get("dilation", 1))
        sides = _sides(x.shape[3:], kernel, stride, dilation, options.get("padding", "same"))
        state = (x.shape[1], self.hidden_channels, *_size(x.shape[3:], kernel, stride, dilation, sides))
        drawn = {}
        if self.recurrent_dropout:
            kept = 1.0 - self.recurrent_dropout
            drawn["dropout_mask"] = torch.bernoulli(x.new_full(state, kept)) / kept
        for name, rate in zip("hc", self.zoneout, strict=True):
            if rate:
                drawn[f"zoneout_mask_{name}"] = torch.bernoulli(x.new_full((x.shape[0], *state), rate))
        return drawn


class ConvLSTM2d(_Cells):
    """`fusecell.torch.ConvLSTM2d` without fusecell: the same arguments, parameters and state_dict.

    forward(input [T, B, Cin, H, W], hx=None, lengths=None) -> output [T, B, D * C, H', W'], (h_n, c_n), each
    [num_layers * D, B, C, H', W'], D = 2 if bidirectional, else 1; batch before time if batch_first; without the
    batch if input has none. dropout: on the outputs of every layer but the last, each element of its own.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Any,
        num_layers: int = 1,
        bias: bool | str | None = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        truncation: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden_channels, kernel_size, {"bias": bias, **options})
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bidirectional, self.truncation = bidirectional, truncation
        directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [[f"_l{layer}{direction}" for direction in directions] for layer in range(num_layers)]
        for layer, suffixes in enumerate(self._suffixes):
            channels = len(directions) * hidden_channels if layer else in_channels
            for suffix in suffixes:
                kernel = self.kernel_size if layer else self.input_kernel_size
                self._add_cell(suffix, channels, kernel, {"device": device, "dtype": dtype})

    def forward(
        self, input: Tensor, hx: State | None = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """Run the stack; see the class."""
        time, batch = (1, 0) if self.batch_first else (0, 1)
        if input.dim() == self.spatial + 2:
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
            y, (h, c) = self.forward(input.unsqueeze(batch), hx, lengths)
            return y.squeeze(batch), (h.squeeze(1), c.squeeze(1))
        x = input.movedim(time, 0)
        if self.spatial == 1:  # a row is an image of height 1
            x = x.unsqueeze(-2)
            hx = None if hx is None else (hx[0].unsqueeze(-2), hx[1].unsqueeze(-2))
        states: list[State] = []
        for layer, suffixes in enumerate(self._suffixes):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for reverse, suffix in enumerate(suffixes):
                start = None if hx is None else (hx[0][len(states)], hx[1][len(states)])
                y, state = self._cell(
                    suffix, x, start, layer == 0, lengths=lengths, reverse=bool(reverse), truncation=self.truncation
                )
                outputs.append(y)
                states.append(state)
            x = torch.cat(outputs, 2)
        x, h_n, c_n = x.movedim(0, time), torch.stack([h for h, _ in states]), torch.stack([c for _, c in states])
        return (x, (h_n, c_n)) if self.spatial == 2 else (x.squeeze(-2), (h_n.squeeze(-2), c_n.squeeze(-2)))


class ConvLSTM1d(ConvLSTM2d):
    """`fusecell.torch.ConvLSTM1d` without fusecell: input [T, B, Cin, L], weight_ih_l0 [4C, Cin, k]."""

    spatial = 1


class ConvLSTMCell2d(_Cells):
    """`fusecell.torch.ConvLSTMCell2d` without fusecell: forward(input [B, Cin, H, W], (h, c)) -> (h, c)."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Any,
        bias: bool | str | None = True,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden_channels, kernel_size, {"bias": bias, **options})
        self._add_cell("", in_channels, self.input_kernel_size, {"device": device, "dtype": dtype})

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """One step; input and state may both be without the batch."""
        if input.dim() == 3:
            h, c = self.forward(input.unsqueeze(0), None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0)))
            return h.squeeze(0), c.squeeze(0)
        return self._cell("", input.unsqueeze(0), hx, True)[1]
