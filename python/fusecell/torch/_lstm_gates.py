"""The operators `torch.ops.fusecell.lstm_gates` and `lstm_gates_backward`: the pointwise tier alone.

z [B, 4C, ...], c and h [B, C, ...], contiguous; what the arguments mean is in docs/cell.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusecell.torch import _memory, plain
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
from fusecell.torch._options import parsed

_INPUTS = ("z", "c", "h", "bias", "peephole")
_NAMES = (*_INPUTS, "zoneout_mask_h", "zoneout_mask_c")
_COUNT = len(_NAMES)
_SENT = ("dh", "dc")
_GRADIENTS = ("dz", "dc_before", "dh_before", "dbias", "dpeephole")


def _contiguous(given: Given) -> Given:
    return {name: None if t is None else t.contiguous() for name, t in given.items()}


# ----------------------------------------------------------------------------------------------------------- forward
def _outputs(z: Tensor, c: Tensor, save: bool) -> Tensors:
    def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty(like.shape, dtype=dtype, device=z.device)

    return empty(c, z.dtype), empty(c, cell_dtype(z.dtype)), empty(z, z.dtype) if save else nothing(z)


def _forward(*args: Any) -> Tensors:
    given, options, save = named(_NAMES, args[:_COUNT]), args[_COUNT], args[_COUNT + 1]
    z: Tensor = args[0]
    if not widens(z):
        return _run_forward(given, options, save)
    h, c, gates = _run_forward(widened(given), options, save)
    return h.to(z.dtype), c, gates.to(z.dtype)


def _run_forward(given: Given, options: str, save: bool) -> Tensors:
    given = _contiguous(given)
    z, c = given["z"], given["c"]
    assert z is not None
    assert c is not None
    inputs, core = _memory.describe_all(given, z.device), parsed(options)
    _memory.plan("lstm_gates", z.device, inputs, core, options)  # before anything is allocated from wrong shapes
    outputs = _outputs(z, c, save)
    wanted = dict(zip(("h_out", "c_out", "gates"), outputs[: 3 if save else 2], strict=False))
    _memory.run("lstm_gates", z.device, inputs, core, options, _memory.describe_outputs(wanted))
    return outputs


def _fake_forward(*args: Any) -> Tensors:
    return _outputs(args[0], args[1], args[_COUNT + 1])


class _LSTMGates(AutogradKernel):
    @staticmethod
    def forward(ctx: Any, keyset: Any, below: Any, *args: Any) -> Tensors:
        outputs: Tensors = below(keyset, *args)
        ctx.options, ctx.save = args[_COUNT:]
        ctx.save_for_backward(*args[:_COUNT], outputs[2])
        ctx.mark_non_differentiable(outputs[2])
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *sent: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2 : 2 + len(_INPUTS)]
        none = (None,) * (4 + _COUNT)
        if sent[0] is None and sent[1] is None:
            return none
        if not ctx.save:
            raise RuntimeError("lstm_gates: expected save=True where a gradient is needed, got False")
        found = lstm_gates_backward(*sent[:2], *ctx.saved_tensors, ctx.options, needs)
        gradients = (d if needed else None for d, needed in zip(found, needs, strict=True))
        return (None, None, *gradients, *none[2 + len(_INPUTS) :])


lstm_gates = define(
    "lstm_gates(Tensor z, Tensor c, Tensor? h, Tensor? bias, Tensor? peephole, Tensor? zoneout_mask_h,"
    " Tensor? zoneout_mask_c, str options, bool save) -> (Tensor h_out, Tensor c_out, Tensor gates)",
    _forward,
    _fake_forward,
    _LSTMGates,
)


# ---------------------------------------------------------------------------------------------------------- backward
_BACKWARD_NAMES = (*_SENT, *_NAMES, "gates")
_BACKWARD_COUNT = len(_BACKWARD_NAMES)


def _gradients(given: Given, needs: list[bool]) -> Tensors:
    """Uninitialised gradients of the inputs; nothing where none is needed."""
    z = given["z"]
    assert z is not None
    likes = (given[name] if needed else None for name, needed in zip(_INPUTS, needs, strict=True))
    return tuple(
        nothing(z) if like is None else torch.empty(like.shape, dtype=like.dtype, device=z.device) for like in likes
    )


def _backward(*args: Any) -> Tensors:
    given, options, needs = named(_BACKWARD_NAMES, args[:_BACKWARD_COUNT]), args[-2], args[-1]
    z: Tensor = args[len(_SENT)]
    if not widens(z):
        return _run_backward(given, options, needs)
    dz, dc, *found = _run_backward(widened(given), options, needs)
    return (dz.to(z.dtype), dc if needs[1] else dc.to(z.dtype), *(d.to(z.dtype) for d in found))


def _run_backward(given: Given, options: str, needs: list[bool]) -> Tensors:
    given = _contiguous(given)
    z, c = given["z"], given["c"]
    assert z is not None
    assert c is not None
    gradients = _gradients(given, needs)
    wanted = {name: d for name, d, needed in zip(_GRADIENTS, gradients, needs, strict=True) if needed}
    for name, like in (("dz", z), ("dc_before", c)):  # the core always makes these two
        wanted.setdefault(name, torch.empty(like.shape, dtype=like.dtype, device=z.device))
    inputs = _memory.describe_all({name: given[name] for name in _NAMES}, z.device)
    others = _memory.describe_all({name: given[name] for name in (*_SENT, "gates")}, z.device)
    others |= _memory.describe_outputs(wanted)
    _memory.run("lstm_gates", z.device, inputs, parsed(options), options, others, backward=True)
    return gradients


def _fake_backward(*args: Any) -> Tensors:
    return _gradients(named(_BACKWARD_NAMES, args[:_BACKWARD_COUNT]), args[-1])


class _LSTMGatesBackward(AutogradKernel):
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
            given: dict[str, Any] = {**own, **parsed(ctx.options)}
            return plain.lstm_gates(**{name: value for name, value in given.items() if name not in _SENT})

        gradients = second_order(composition, saved, _SENT, first, wanted)
        return (None, None, *(gradients.get(name) for name in (*_BACKWARD_NAMES, "options", "needs")))


lstm_gates_backward = define(
    "lstm_gates_backward(Tensor? dh, Tensor? dc, Tensor z, Tensor c, Tensor? h, Tensor? bias, Tensor? peephole,"
    " Tensor? zoneout_mask_h, Tensor? zoneout_mask_c, Tensor gates, str options, bool[] needs)"
    " -> (Tensor dz, Tensor dc_before, Tensor dh_before, Tensor dbias, Tensor dpeephole)",
    _backward,
    _fake_backward,
    _LSTMGatesBackward,
)
