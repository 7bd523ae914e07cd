"""The fused operations on tensors: a sequence, a step, the gates alone. See docs/cell.md for what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusecell._typing import Algorithm, Padding, Pair
from fusecell.torch import _conv_lstm, _lstm_gates, _options
from fusecell.torch._operation import cell_dtype
from fusecell.torch._tensor_cores import algorithm_of_float32

_Masks = tuple[Tensor | None, Tensor | None, Tensor | None]
State = tuple[Tensor, Tensor]
"""(h, c), each [B, C, H, W]."""


def conv_lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    hx: State | None = None,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "same",
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    slope: float = 0.01,
    relu_at_zero: float = 0.0,
    lengths: Tensor | Sequence[int] | None = None,
    reverse: bool = False,
    truncation: int = 0,
    zoneout: tuple[float, float] = (0.0, 0.0),
    zoneout_mask_h: Tensor | None = None,
    zoneout_mask_c: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    dropout_mask: Tensor | None = None,
    training: bool = False,
    recompute: bool = False,
    batch_first: bool = False,
    state_dtype: str | None = None,
    algorithm: Algorithm = "auto",
    probe: Tensor | None = None,
) -> tuple[Tensor, State]:
    """A ConvLSTM over a whole sequence (Shi et al. 2015), in one operator.

    x [T, B, Cin, Hin, Win], or [B, T, ...] if batch_first; weight_ih [4C, Cin, kh, kw] and weight_hh [4C, C, kh', kw']
    with the gates in the order i, f, g, o; bias [4C] or [4C, H, W]; peephole [3C] or [3C, H, W] in the order i, f, o;
    hx: the (h, c) to start from, each [B, C, H, W], None for zeros. H, W: the size after the input convolution, which
    alone has stride, dilation and padding. lengths [B]: steps from a sample's length on are padding. zoneout: the rates
    of (h, c). recompute keeps no gates for backward and makes them again: the same bits, a third of the memory.

    Returns output [T, B, C, H, W] (or [B, T, ...]) and (h_n, c_n), each [B, C, H, W], lying in memory as x does (batch
    first, channels last). c_n is float32 where x is of 16 bits; state_dtype="input" gives it x's dtype. Under autocast
    everything but c is cast to autocast's dtype. Masks that are not given come from torch's generator, in training:
    zoneout_mask_h and zoneout_mask_c, uint8 [T, B, C, H, W], 1 keeps the old state; dropout_mask [B, C, H, W] of x's
    dtype, 0 and 1 / (1 - rate), one for all steps.

    algorithm, of both convolutions, forward and backward: "auto" is Winograd's for float32 and 3x3 or 5x5 kernels (the
    same for both) at stride 1 and dilation 1, on the CPU and where it pays; tensor cores for 16 bits, on GPUs from
    compute capability 8.0 on; for float32 on them TF32 if torch's own convolutions may take it
    (`torch.backends.cudnn.allow_tf32`, or `conv.fp32_precision` there) when forward is called, or traced: torch.compile
    and export keep what they saw, and backward does as its forward. Else the direct one. Winograd's errs by at most
    2e-5 of a convolution's largest output, gradients by 1e-4 after 20 steps, and a pixel that is infinite or NaN spoils
    the outputs of the 6x6 tiles it lies in. "direct" errs by rounding alone; "winograd" is taken wherever it is
    possible, in float64 too. "bfloat16", not yet run on real AMX, rounds what the convolutions read to bfloat16 and
    sums in float32: for float32, stride 1 and dilation 1, and processors with AMX. "tensor_cores" (16 bits) and "tf32"
    (float32, of which the convolutions read 10 bits of mantissa) sum in float32, on such GPUs. Second derivatives are
    torch's own and know none of them. See docs/cell.md.

    probe: a float64 tensor [T, 9] that requires a gradient and changes nothing. What backward gives as its gradient is
    what each step was like, the columns of `fusecell.ops.STEP_STATISTICS`: norms of dL/dh and dL/dc, what is not
    finite, saturated gates (see docs/cell.md). Without it nothing of that is computed.

    Raises ValueError, TypeError; NoCudaKernelsError for CUDA tensors if fusecell was built without CUDA.
    """
    if x.dim() != 5:
        order = "[B, T, Cin, H, W]" if batch_first else "[T, B, Cin, H, W]"
        raise ValueError(f"x: expected shape {order}, got {tuple(x.shape)}")
    if state_dtype not in (None, "input"):
        raise ValueError(f'state_dtype: expected None or "input", got {state_dtype!r}')
    if batch_first:
        x = x.transpose(0, 1)
    h_0, c_0 = (None, None) if hx is None else hx
    x, weight_ih, weight_hh, bias, peephole, h_0 = _cast(x, weight_ih, weight_hh, bias, peephole, h_0)
    if algorithm == "auto" and x.dtype == torch.float32:
        algorithm = algorithm_of_float32(x.device.type)
    options = {
        **_options.convolution(stride, dilation, padding, algorithm),
        **_options.cell(recurrent_activation, activation, slope, relu_at_zero, zoneout),
        "reverse": bool(reverse),
        "truncation": int(truncation),
    }
    if c_0 is not None:
        c_0 = c_0.to(cell_dtype(x.dtype))
    masks: _Masks = (dropout_mask, zoneout_mask_h, zoneout_mask_c)
    if training and (recurrent_dropout > 0 or zoneout[0] > 0 or zoneout[1] > 0):
        masks = _masks(x, weight_ih, weight_hh, options, (recurrent_dropout, *zoneout), masks)
    inputs = (x, weight_ih, weight_hh, bias, peephole, h_0, c_0)
    probes = _probes(probe, x)
    save = ("recompute" if recompute else "gates") if _needs_gradient((*inputs, *probes)) else "none"
    others = (_as_lengths(lengths, x), *masks, _options.as_text(options), save, *probes)
    y, h_n, c_n, _, _ = _conv_lstm.conv_lstm(*inputs, *others)
    if state_dtype == "input":
        c_n = c_n.to(x.dtype)
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


def conv_lstm_cell(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    hx: State | None = None,
    **options: Any,
) -> State:
    """One step: `conv_lstm` without the time axis, for loops that feed predictions back or stream frames.

    x [B, Cin, Hin, Win]. Returns the new (h, c), each [B, C, H, W]. Raises as `conv_lstm`.
    """
    for name in ("lengths", "reverse", "truncation", "batch_first"):
        if name in options:
            raise TypeError(f"{name}: expected only for whole sequences, got it for a single step")
    if x.dim() != 4:
        raise ValueError(f"x: expected shape [B, Cin, H, W], got {tuple(x.shape)}")
    # y and h_n are the same; y is what backward keeps, so that it is there once.
    y, (_, c) = conv_lstm(x.unsqueeze(0), weight_ih, weight_hh, bias, peephole, hx, **options)
    return y.squeeze(0), c


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
    zoneout: tuple[float, float] = (0.0, 0.0),
    zoneout_mask_h: Tensor | None = None,
    zoneout_mask_c: Tensor | None = None,
    training: bool = False,
    state_dtype: str | None = None,
) -> State:
    """The pointwise half of an LSTM step: bring your own convolution, of any number of spatial dimensions.

    z [B, 4C, ...]: the sum of the input's and the state's convolutions, the gates in the order i, f, g, o; c
    [B, C, ...]: the cell state before the step; h [B, C, ...]: the hidden state before it, read by zoneout alone; bias
    [4C] or [4C, ...]; peephole [3C] or [3C, ...]. Returns the new (h, c), each [B, C, ...], dtypes as `conv_lstm`'s.
    Raises ValueError, TypeError.
    """
    if state_dtype not in (None, "input"):
        raise ValueError(f'state_dtype: expected None or "input", got {state_dtype!r}')
    options = _options.as_text(_options.cell(recurrent_activation, activation, slope, relu_at_zero, zoneout))
    if zoneout[0] == 0 and zoneout_mask_h is None:
        h = None
    z, bias, peephole, h = _cast(z, bias, peephole, h)
    c = c.to(cell_dtype(z.dtype))
    masks = [
        _bernoulli(c.shape, rate, z) if mask is None and training and rate > 0 else mask
        for mask, rate in zip((zoneout_mask_h, zoneout_mask_c), zoneout, strict=True)
    ]
    inputs = (z, c, h, bias, peephole)
    save = "gates" if _needs_gradient(inputs) else "none"
    h_n, c_n, _ = _lstm_gates.lstm_gates(*inputs, *masks, options, save)
    return h_n, c_n.to(z.dtype) if state_dtype == "input" else c_n


# ------------------------------------------------------------------------------------------------------------- parts
def _cast(x: Tensor, *others: Tensor | None) -> Any:
    """Under autocast everything in its dtype; otherwise as it is. float64 stays, as in torch's own operators."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return (x, *others)
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others))


def _needs_gradient(inputs: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _probes(probe: Tensor | None, x: Tensor) -> tuple[Tensor, ...]:
    """The operator's last argument, which is left out where there is none."""
    if probe is None:
        return ()
    if probe.dtype != torch.float64:
        raise TypeError(f"probe: expected dtype float64, got {str(probe.dtype).removeprefix('torch.')}")
    if probe.shape != (x.shape[0], _conv_lstm.PROBE_COLUMNS):
        raise ValueError(f"probe: expected {(x.shape[0], _conv_lstm.PROBE_COLUMNS)}, got {tuple(probe.shape)}")
    if probe.device != x.device:
        raise ValueError(f"probe: expected a tensor on {x.device}, as x is, got one on {probe.device}")
    return (probe,)


def _as_lengths(lengths: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    if isinstance(lengths, Tensor) and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    return torch.as_tensor(lengths, dtype=torch.int64, device=x.device)


def _bernoulli(shape: Sequence[int], rate: float, like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.uint8, device=like.device).bernoulli_(rate)


def _masks(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    options: _options.Options,
    rates: tuple[float, float, float],
    given: _Masks,
) -> _Masks:
    """Draws what is not given of the masks of recurrent dropout (for all steps, inverted), zoneout of h and of c."""
    size = [_options.output_extent(x.shape[3 + axis], weight_ih.shape[2 + axis], axis, options) for axis in range(2)]
    state = (x.shape[1], weight_hh.shape[1], *size)
    dropout_mask, *zones = given
    if dropout_mask is None and rates[0] > 0:
        dropout_mask = (1 - _bernoulli(state, rates[0], x)).to(x.dtype) / (1 - rates[0])
    mask_h, mask_c = (
        _bernoulli((x.shape[0], *state), rate, x) if mask is None and rate > 0 else mask
        for mask, rate in zip(zones, rates[1:], strict=True)
    )
    return dropout_mask, mask_h, mask_c
