"""An operation of the core as two operators of torch: forward, and its gradients. What differs between operations is
their tensors' names, how outputs are allocated, and the composition that second derivatives go through."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusecell import _dispatch
from fusecell.torch import _memory
from fusecell.torch._layout import addressable
from fusecell.torch._library import AutogradKernel, Given, Tensors, define, second_order
from fusecell.torch._options import parsed


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of c: float32 where h is of 16 bits."""
    return torch.float32 if dtype in _memory.HALF else dtype


def nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands for an output that nobody asked for."""
    return torch.empty((0,), dtype=dtype, device=device)


class Operation(ABC):
    """The operators fusecell::<name>(inputs, masks, options, save) -> outputs, and
    fusecell::<name>_backward(sent, inputs, masks, saved, options, needs) -> a gradient for each input.

    A watched operation takes one more argument, `probe` [T, probe_columns] float64, which changes nothing and whose
    gradient is what backward says of each step. needs has one more entry where that is wanted: without a probe both
    operators are called as if there were none, as older exports call them.

    sent: gradients of the first outputs. saved: the outputs that backward reads; those after the first `len(sent)` are
    for backward alone. save: "none", or what the outputs for backward are to hold; an output that is not made is empty.
    """

    name: str
    inputs: tuple[str, ...]
    required: tuple[str, ...]  # of the inputs
    masks: tuple[str, ...]
    outputs: tuple[str, ...]
    sent: tuple[str, ...]
    saved: tuple[str, ...]
    saves: tuple[str, ...]  # the values of save
    wide: frozenset[str]  # what is float32 where the others are of 16 bits
    as_they_lie: frozenset[str] = frozenset()  # the others are taken contiguous
    always: frozenset[str] = frozenset()  # the inputs whose gradients the core makes whether they are wanted or not
    core_names: Mapping[str, str] = {}  # of gradients, where the core calls them otherwise
    probe_columns: int = 0  # 0: there is no probe

    # ------------------------------------------------------------------------------------------- what differs
    @abstractmethod
    def shapes(self, given: Given, plan: Mapping[str, Any]) -> tuple[Any, ...]:
        """What `allocate` needs to know, from the core's plan."""

    @abstractmethod
    def fake_shapes(self, given: Given, options: Mapping[str, Any]) -> tuple[Any, ...]:
        """The same from the tensors' own shapes, which may be symbolic."""

    @abstractmethod
    def allocate(self, given: Given, shapes: tuple[Any, ...], save: str) -> Tensors:
        """Uninitialised outputs."""

    @abstractmethod
    def compose(self, given: Given, options: Mapping[str, Any]) -> Tensors:
        """The outputs that have gradients, by torch's own operators."""

    def to_save(self, outputs: dict[str, Tensor]) -> Tensors:
        """What backward gets as `saved`."""
        return tuple(outputs[name] for name in self.saved)

    # ------------------------------------------------------------------------------------------------ operators
    def __init__(self) -> None:
        self.names = (*self.inputs, *self.masks)
        self.backward_names = (*self.sent, *self.names, *self.saved)
        gradients = [f"d{name}" for name in (*self.inputs, *("probe",) * bool(self.probe_columns))]
        self.backward_operator = define(
            self._schema("_backward", self.backward_names, "bool[] needs", gradients),
            self._backward,
            self._fake_backward,
            _backward_kernel(self),
        )
        last = "str save, Tensor? probe=None" if self.probe_columns else "str save"
        self.operator = define(
            self._schema("", self.names, last, self.outputs), self._forward, self._fake, _forward_kernel(self)
        )

    def _schema(self, suffix: str, names: Sequence[str], last: str, results: Sequence[str]) -> str:
        there = {*self.required, *(self.saved if suffix else ())}
        arguments = ", ".join(f"Tensor{'' if name in there else '?'} {name}" for name in names)
        outputs = ", ".join(f"Tensor {name}" for name in results)
        return f"{self.name}{suffix}({arguments}, str options, {last}) -> ({outputs})"

    def _placed(self, given: Given, options: Mapping[str, Any]) -> Given:
        """The tensors as the core takes them: copies of those that do not lie so."""
        del options
        return {
            name: t if t is None else addressable(t) if name in self.as_they_lie else t.contiguous()
            for name, t in given.items()
        }

    def _device(self, given: Given) -> torch.device:
        first = given[self.inputs[0]]
        assert first is not None
        return first.device

    # -------------------------------------------------------------------------------------------------- forward
    def forward_arguments(self, args: Sequence[Any]) -> tuple[Given, str, str]:
        """The tensors, options and save of a call; its probe is autograd's alone."""
        count = len(self.names)
        return dict(zip(self.names, args[:count], strict=True)), args[count], args[count + 1]

    def _forward(self, *args: Any) -> Tensors:
        given, options, save = self.forward_arguments(args)
        first: Tensor = args[0]
        if save not in self.saves:
            raise ValueError(f"save: expected one of {', '.join(self.saves)}, got {save}")
        if not _widens(first):
            return self._run(given, options, save)
        results = zip(self.outputs, self._run(_widened(given), options, save), strict=True)
        return tuple(t if name in self.wide else t.to(first.dtype) for name, t in results)

    def _run(self, given: Given, options: str, save: str) -> Tensors:
        core, device = parsed(options), self._device(given)
        placed = self._placed(given, core)
        described = _memory.describe_all(placed, device)
        plan = _dispatch.plan(self.name, _memory.place_of(device), described, core, options)
        outputs = self.allocate(given, self.shapes(given, plan), save)
        wanted = {name: t for name, t in zip(self.outputs, outputs, strict=True) if not _is_nothing(t)}
        tensors = {**described, **_memory.describe_outputs(wanted)}
        _memory.run(f"{self.name}_forward", device, tensors, core, plan)
        return outputs

    def _fake(self, *args: Any) -> Tensors:
        given, options, save = self.forward_arguments(args)
        return self.allocate(given, self.fake_shapes(given, parsed(options)), save)

    # ------------------------------------------------------------------------------------------------- backward
    def _backward(self, *args: Any) -> Tensors:
        given, (options, needs) = dict(zip(self.backward_names, args[:-2], strict=True)), args[-2:]
        first: Tensor = args[len(self.sent)]
        if not _widens(first):
            return self._run_backward(given, options, needs)
        found = self._run_backward(_widened(given), options, needs)
        count = len(self.inputs)
        results = zip(self.inputs, needs[:count], found[:count], strict=True)
        gradients = (d if needed and name in self.wide else d.to(first.dtype) for name, needed, d in results)
        return (*gradients, *found[count:])

    def _run_backward(self, given: Given, options: str, needs: list[bool]) -> Tensors:
        device, core = self._device(given), parsed(options)
        there = {name: None if name in self.saved and _is_nothing(t) else t for name, t in given.items()}
        given = self._placed(there, core)
        gradients = self._gradients(given, needs)
        # Without strict: the probe's, the last of both, is made below.
        results = {f"d{name}": d for name, d, needed in zip(self.inputs, gradients, needs, strict=False) if needed}
        for name in self.always:
            results.setdefault(f"d{name}", torch.empty_like(given[name]))
        inputs = _memory.describe_all({name: given[name] for name in (*self.names, *self.saved)}, device)
        others = _memory.describe_all({name: given[name] for name in self.sent}, device)
        plan = _dispatch.plan(self.name, _memory.place_of(device), inputs, core, options, backward=True)
        if self._watched(needs):
            shape = (gradients[-1].shape[0], plan["statistics_parts"], self.probe_columns)
            results["statistics"] = torch.empty(shape, dtype=torch.float64, device=device)
        others |= _memory.describe_outputs(results)
        tensors = {**inputs, **{self.core_names.get(name, name): described for name, described in others.items()}}
        _memory.run(f"{self.name}_backward", device, tensors, core, plan)
        return (*gradients[:-1], results["statistics"].sum(1)) if self._watched(needs) else gradients

    def _watched(self, needs: Sequence[bool]) -> bool:
        return len(needs) > len(self.inputs) and needs[-1]

    def _gradients(self, given: Given, needs: list[bool]) -> Tensors:
        """Uninitialised gradients of the inputs, each lying as its input does; nothing where none is needed."""
        first = given[self.inputs[0]]
        assert first is not None
        likes = [given[name] if needed else None for name, needed in zip(self.inputs, needs, strict=False)]
        made = tuple(nothing(first.dtype, first.device) if t is None else torch.empty_like(t) for t in likes)
        if not self.probe_columns:
            return made
        steps = (first.shape[0], self.probe_columns) if self._watched(needs) else (0,)
        return (*made, torch.empty(steps, dtype=torch.float64, device=first.device))

    def _fake_backward(self, *args: Any) -> Tensors:
        given = dict(zip(self.backward_names, args[:-2], strict=True))
        return self._gradients(self._placed({name: given[name] for name in self.inputs}, parsed(args[-2])), args[-1])


# ------------------------------------------------------------------------------------------------------------ autograd
def _forward_kernel(op: Operation) -> type[AutogradKernel]:
    class Forward(AutogradKernel):
        @staticmethod
        def forward(ctx: Any, keyset: Any, below: Any, *args: Any) -> Tensors:
            outputs: Tensors = below(keyset, *args)
            given, ctx.options, ctx.save = op.forward_arguments(args)
            ctx.save_for_backward(*given.values(), *op.to_save(dict(zip(op.outputs, outputs, strict=True))))
            ctx.mark_non_differentiable(*outputs[len(op.sent) :])
            ctx.set_materialize_grads(False)
            return outputs

        @staticmethod
        def backward(ctx: Any, *sent: Tensor | None) -> tuple[Tensor | None, ...]:
            sent, count, before_probe = sent[: len(op.sent)], len(op.inputs), len(op.names) + 2
            all_needs = ctx.needs_input_grad[2:]
            needs, probes = all_needs[:count], all_needs[before_probe:]
            if all(d is None for d in sent):
                return (None,) * (2 + len(all_needs))
            if ctx.save == "none":
                raise RuntimeError(f'{op.name}: expected another save than "none" where a gradient is needed')
            watched = (True,) * any(probes)
            found = op.backward_operator(*sent, *ctx.saved_tensors, ctx.options, (*needs, *watched))
            gradients = [d if needed else None for d, needed in zip(found, needs, strict=False)]
            gradients += [None] * (before_probe - count) + [found[-1] if watched else None for _ in probes]
            return (None, None, *gradients)

    return Forward


def _backward_kernel(op: Operation) -> type[AutogradKernel]:
    class Backward(AutogradKernel):
        """The second derivative, and all that follow, are those of the composition of torch's own operators."""

        @staticmethod
        def forward(ctx: Any, keyset: Any, below: Any, *args: Any) -> Tensors:
            gradients: Tensors = below(keyset, *args)
            ctx.options, needs = args[-2:]
            ctx.save_for_backward(*args[: len(op.sent) + len(op.names)])
            differentiable = (*needs[: len(op.inputs)], *(False,) * bool(op.probe_columns))
            ctx.mark_non_differentiable(*(d for d, can in zip(gradients, differentiable, strict=True) if not can))
            ctx.set_materialize_grads(False)
            return gradients

        @staticmethod
        def backward(ctx: Any, *sent: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = dict(zip((*op.sent, *op.names), ctx.saved_tensors, strict=True))
            names = (*op.sent, *op.inputs)
            wanted = [name for name, needed in zip(names, ctx.needs_input_grad[2:], strict=False) if needed]
            first = {name: d for name, d in zip(op.inputs, sent, strict=False) if d is not None}
            found = second_order(lambda own: op.compose(own, parsed(ctx.options)), saved, op.sent, first, wanted)
            return (None, None, *(found.get(name) for name in (*op.backward_names, "options", "needs")))

    return Backward


# ------------------------------------------------------------------------------- 16 bits on a CPU are computed in 32
_said_so = False


def _widens(first: Tensor) -> bool:
    """Whether a dtype has no kernels on its device, so that the call is computed in float32. Says so once."""
    global _said_so
    if first.dtype not in _memory.HALF or _memory.place_of(first.device).backend != "cpu":
        return False
    if not _said_so:
        _said_so = True
        name = str(first.dtype).removeprefix("torch.")
        message = f"on the CPU fusecell computes {name} in float32, which is no faster than float32"
        warnings.warn(message, stacklevel=_level_of_the_caller())
    return True


def _level_of_the_caller() -> int:
    """How far up the first frame stands that is neither fusecell's nor torch's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("fusecell", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def _widened(given: Given) -> Given:
    return {name: t.float() if t is not None and t.dtype in _memory.HALF else t for name, t in given.items()}


def _is_nothing(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.shape == (0,)
