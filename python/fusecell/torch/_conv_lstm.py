"""The operators `torch.ops.fusecell.conv_lstm` and `conv_lstm_backward`: a whole sequence, a step being one of T = 1.

x [T, B, Cin, Hin, Win], y [T, B, C, H, W], states [B, C, H, W]; outputs lie in memory as x does. What the arguments
mean is in docs/cell.md. `save`: "gates", "recompute" or "none", as `fusecell.ops.conv_lstm_forward` has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusecell.torch import _memory, plain
from fusecell.torch._layout import addressable, empty_frames, empty_sequence, follows, is_batch_first
from fusecell.torch._library import (
    AutogradKernel,
    Given,
    Tensors,
    cell_dtype,
    define,
    named,
    nothing,
    second_order,
    widened,
    widens,
)
from fusecell.torch._options import output_extent, parsed

_INPUTS = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")
_NAMES = (*_INPUTS, "lengths", "dropout_mask", "zoneout_mask_h", "zoneout_mask_c")
_COUNT = len(_NAMES)
_SENT = ("dy", "dh_n", "dc_n")
_SAVED = ("y", "c", "gates")
_FRAMES = {"x", "h_0", "c_0", "y", *_SENT}  # taken as they lie; the others are contiguous


def _placed(given: Given) -> Given:
    return {
        name: t if t is None else addressable(t) if name in _FRAMES else t.contiguous() for name, t in given.items()
    }


# ----------------------------------------------------------------------------------------------------------- forward
def _forward(*args: Any) -> Tensors:
    given, options, save = named(_NAMES, args[:_COUNT]), args[_COUNT], args[_COUNT + 1]
    x: Tensor = args[0]
    if not widens(x):
        return _run_forward(given, options, save)
    y, h_n, c_n, c, gates = _run_forward(widened(given), options, save)
    return y.to(x.dtype), h_n.to(x.dtype), c_n, c, gates.to(x.dtype)


def _outputs(
    x: Tensor, frames_last: bool, sequence: tuple[Any, ...], gates: tuple[Any, ...], save: str
) -> tuple[Tensor, ...]:
    cell = cell_dtype(x.dtype)
    y = empty_sequence(sequence, frames_last, is_batch_first(x), x, x.dtype)
    h_n = empty_frames(sequence[1:], frames_last, x, x.dtype)
    c_n = empty_frames(sequence[1:], frames_last, x, cell)
    c = nothing(x, cell) if save == "none" else torch.empty(sequence, dtype=cell, device=x.device)
    kept = torch.empty(gates, dtype=x.dtype, device=x.device) if save == "gates" else nothing(x)
    return y, h_n, c_n, c, kept


def _run_forward(given: Given, options: str, save: str) -> Tensors:
    x, weight_hh = given["x"], given["weight_hh"]
    assert x is not None
    assert weight_hh is not None
    frames_last, given, core = follows(x, weight_hh), _placed(given), parsed(options)
    described = _memory.describe_all(given, x.device)
    plan = _memory.plan("conv_lstm", x.device, described, core, options)
    outputs = _outputs(x, frames_last, tuple(plan["y"]), tuple(plan["gates"]), save)
    count = {"none": 3, "recompute": 4, "gates": 5}[save]
    wanted = dict(zip(("y", "h_n", "c_n", "c", "gates"), outputs[:count], strict=False))
    _memory.run("conv_lstm", x.device, described, core, options, _memory.describe_outputs(wanted))
    return outputs


def _fake_forward(*args: Any) -> Tensors:
    x, weight_ih, weight_hh, options, save = *args[:3], parsed(args[_COUNT]), args[_COUNT + 1]
    size = [output_extent(x.shape[3 + axis], weight_ih.shape[2 + axis], axis, options) for axis in range(2)]
    rows = weight_hh.shape[0]
    sequence, gates = (*x.shape[:2], rows // 4, *size), (*x.shape[:2], rows, *size)
    return _outputs(x, follows(x, weight_hh), sequence, gates, save)


class _ConvLSTM(AutogradKernel):
    @staticmethod
    def forward(ctx: Any, keyset: Any, below: Any, *args: Any) -> Tensors:
        outputs: Tensors = below(keyset, *args)
        y, _, _, c, gates = outputs
        ctx.options, ctx.save = args[_COUNT:]
        ctx.save_for_backward(*args[:_COUNT], y, c, gates)
        ctx.mark_non_differentiable(c, gates)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *sent: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2 : 2 + len(_INPUTS)]
        none = (None,) * (4 + _COUNT)
        if all(d is None for d in sent[:3]):
            return none
        if ctx.save == "none":
            raise RuntimeError('conv_lstm: expected save="gates" or "recompute" where a gradient is needed, got "none"')
        found = conv_lstm_backward(*sent[:3], *ctx.saved_tensors, ctx.options, needs)
        gradients = (d if needed else None for d, needed in zip(found, needs, strict=True))
        return (None, None, *gradients, *none[2 + len(_INPUTS) :])


conv_lstm = define(
    "conv_lstm(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor? peephole, Tensor? h_0, Tensor? c_0,"
    " Tensor? lengths, Tensor? dropout_mask, Tensor? zoneout_mask_h, Tensor? zoneout_mask_c, str options, str save)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)",
    _forward,
    _fake_forward,
    _ConvLSTM,
)


# ---------------------------------------------------------------------------------------------------------- backward
_BACKWARD_NAMES = (*_SENT, *_NAMES, *_SAVED)
_BACKWARD_COUNT = len(_BACKWARD_NAMES)


def _gradients(given: Given, needs: list[bool]) -> Tensors:
    """Uninitialised gradients of the inputs, each lying as its input does; nothing where none is needed."""
    y = given["y"]
    assert y is not None
    likes = (given[name] if needed else None for name, needed in zip(_INPUTS, needs, strict=True))
    return tuple(nothing(y) if like is None else torch.empty_like(like) for like in likes)


def _backward(*args: Any) -> Tensors:
    given, options, needs = named(_BACKWARD_NAMES, args[:_BACKWARD_COUNT]), args[-2], args[-1]
    x: Tensor = args[len(_SENT)]
    if not widens(x):
        return _run_backward(given, options, needs)
    *found, dc_0 = _run_backward(widened(given), options, needs)
    return (*(d.to(x.dtype) for d in found), dc_0 if needs[-1] else dc_0.to(x.dtype))


def _run_backward(given: Given, options: str, needs: list[bool]) -> Tensors:
    gates = given["gates"]
    if gates is not None and gates.numel() == 0:
        given = {**given, "gates": None}
    given = _placed(given)
    gradients, core = _gradients(given, needs), parsed(options)
    x = given["x"]
    assert x is not None
    wanted = {f"d{name}": d for name, d, needed in zip(_INPUTS, gradients, needs, strict=True) if needed}
    inputs = _memory.describe_all({name: given[name] for name in (*_NAMES, *_SAVED)}, x.device)
    others = _memory.describe_all({name: given[name] for name in _SENT}, x.device)
    others |= _memory.describe_outputs(wanted)
    _memory.run("conv_lstm", x.device, inputs, core, options, others, backward=True)
    return gradients


def _fake_backward(*args: Any) -> Tensors:
    return _gradients(_placed(named(_BACKWARD_NAMES, args[:_BACKWARD_COUNT])), args[-1])


class _ConvLSTMBackward(AutogradKernel):
    """The second derivative, and all that follow, are those of the composition of torch's own operators."""

    @staticmethod
    def forward(ctx: Any, keyset: Any, below: Any, *args: Any) -> Tensors:
        gradients: Tensors = below(keyset, *args)
        ctx.options, needs = args[_BACKWARD_COUNT:]
        ctx.save_for_backward(*args[: len(_SENT) + _COUNT])
        ctx.mark_non_differentiable(*(d for d, needed in zip(gradients, needs, strict=True) if not needed))
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    def backward(ctx: Any, *sent: Tensor | None) -> tuple[Tensor | None, ...]:
        names = (*_SENT, *_INPUTS)
        saved = named((*_SENT, *_NAMES), ctx.saved_tensors)
        wanted = [name for name, needed in zip(names, ctx.needs_input_grad[2:], strict=False) if needed]
        first = {name: d for name, d in zip(_INPUTS, sent, strict=True) if d is not None}

        def composition(own: Given) -> Tensors:
            given: dict[str, Any] = {**own, **_plain_options(ctx.options)}
            return plain.conv_lstm(**{name: value for name, value in given.items() if name not in _SENT})

        gradients = second_order(composition, saved, _SENT, first, wanted)
        return (None, None, *(gradients.get(name) for name in (*_BACKWARD_NAMES, "options", "needs")))


def _plain_options(options: str) -> dict[str, Any]:
    core = dict(parsed(options))
    if core["padding"] == "explicit":
        core["padding"] = (core.pop("pad_h"), core.pop("pad_w"))
    return core


conv_lstm_backward = define(
    "conv_lstm_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor weight_ih, Tensor weight_hh,"
    " Tensor? bias, Tensor? peephole, Tensor? h_0, Tensor? c_0, Tensor? lengths, Tensor? dropout_mask,"
    " Tensor? zoneout_mask_h, Tensor? zoneout_mask_c, Tensor y, Tensor c, Tensor gates, str options, bool[] needs)"
    " -> (Tensor dx, Tensor dweight_ih, Tensor dweight_hh, Tensor dbias, Tensor dpeephole, Tensor dh_0, Tensor dc_0)",
    _backward,
    _fake_backward,
    _ConvLSTMBackward,
)
