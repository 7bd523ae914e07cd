"""What the doctor reads from torch modules: fused ones through their probes, all others through hooks.

A module with parameters that takes its own last output is a cell in a loop over time: the gradient of each call's
outputs, h and c, is taken as it passes. torch.nn.RNN, GRU and LSTM run their loop inside: there the gradient of the
input at each step stands for that of h, which nobody sees.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusecell import ops
from fusecell.health import _arrays
from fusecell.health._readings import Bounds, Recurrent, StepReading, UnitReading, read_steps, read_units, unit_axis

_BOUNDS: dict[type[nn.Module], Bounds] = {
    nn.Sigmoid: (0.0, 1.0), nn.Hardsigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0), nn.Hardtanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0), nn.ReLU6: (0.0, 6.0),
}  # fmt: skip
_NO_UNITS = (nn.modules.dropout._DropoutNd, nn.Flatten, nn.Identity, nn.Embedding, nn.RNNBase)
_CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_GATES: dict[type[nn.Module], int] = {
    nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1,
}  # fmt: skip


class TorchSource:
    """The parameters, units and time steps of a module."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._reads = True
        self._units: dict[str, UnitReading] = {}
        self._order: list[str] = []
        self._calls: Counter[str] = Counter()
        self._outputs: dict[str, list[Tensor]] = {}  # of the last call
        self._found: set[str] = set()  # modules that have taken their own last output
        self._cells: set[str] = set()  # those of them that are watched: from the forward pass after that on
        self._norms: dict[str, dict[str, dict[int, Any]]] = {}  # cell: "dh" or "dc": call: norm
        self._images: dict[str, tuple[int, ...]] = {}  # of fused modules: the state's size
        self._sequences: dict[str, Tensor] = {}  # torch's own recurrent modules: norms [T] of the input's gradient
        self._modules = dict(_outermost("", model))
        self._fused = {name: module for name, module in self._modules.items() if _is_fused_sequence(module)}
        self._watched_before = {name: module.__dict__.get("watched") for name, module in self._fused.items()}
        self._handles = [model.register_forward_pre_hook(self._begin)]
        for name, module in self._modules.items():
            if isinstance(module, nn.RNNBase):
                own = functools.partial(self._before_sequence, name)
                self._handles.append(module.register_forward_pre_hook(own, with_kwargs=True))
            elif name in self._fused:
                self._handles.append(module.register_forward_hook(functools.partial(self._after_fused, name)))
            elif name:
                own = functools.partial(self._after_module, name)
                self._handles.append(module.register_forward_hook(own, with_kwargs=True))
        self.prepare(True)

    def detach(self) -> None:
        """Takes the hooks away; fused modules are watched, or not, as they were before."""
        for handle in self._handles:
            handle.remove()
        for name, before in self._watched_before.items():
            if before is None:
                self._fused[name].__dict__.pop("watched", None)
            else:
                self._fused[name].__dict__["watched"] = before

    def prepare(self, reads: bool) -> None:
        """Whether the next step is read; hooks do nothing in others, and fused modules sum nothing."""
        self._reads = reads
        self._start_pass()
        for module in self._fused.values():
            module.__dict__["watched"] = reads
            module.__dict__["probes"] = {}

    # ------------------------------------------------------------------------------------------------------- hooks
    def _ignores(self, name: str, module: nn.Module) -> bool:
        """A copy of the model brings its hooks along; a compiler and torch.func run modules with no numbers in them."""
        if module is not (self._modules[name] if name else self._model) or not (self._reads and self._model.training):
            return True
        return torch.compiler.is_compiling() or bool(torch._C._are_functorch_transforms_active())

    def _start_pass(self) -> None:
        inside = tuple(f"{name}." for name in self._found)
        self._cells = {name for name in self._found if not name.startswith(inside)}
        self._calls.clear()
        self._outputs.clear()
        if self._reads:
            self._norms, self._sequences = {}, {}

    def _begin(self, module: nn.Module, args: Any) -> None:
        if not self._ignores("", module):
            self._start_pass()

    def _after_module(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._ignores(name, module):
            return
        call, states = self._calls[name], list(_tensors(output))
        self._calls[name] += 1
        if any(given is last for given in _tensors([*args, *kwargs.values()]) for last in self._outputs.get(name, ())):
            self._found.add(name)
        if next(module.parameters(), None) is not None:
            self._outputs[name] = states
        if name in self._cells:
            self._watch_states(name, call, states)
        is_leaf = next(module.children(), None) is None
        if is_leaf and isinstance(output, Tensor) and call == 0:  # of a cell in a loop, the first step alone
            self._read_units(name, module, output)

    def _watch_states(self, name: str, call: int, states: list[Tensor]) -> None:
        for kind, tensor in zip(("dh", "dc"), states, strict=False):
            if tensor.requires_grad:
                kept = self._norms.setdefault(name, {}).setdefault(kind, {})
                tensor.register_hook(functools.partial(_keep_norm, kept, call))

    def _read_units(self, name: str, module: nn.Module, output: Tensor) -> None:
        if isinstance(module, _NO_UNITS) or output.dim() < 2 or not output.is_floating_point() or not output.numel():
            return
        axis = 1 if isinstance(module, _CHANNELS_SECOND) else unit_axis(output)
        self._units[name] = read_units(output, axis, _BOUNDS.get(type(module)))
        if name not in self._order:
            self._order.append(name)

    def _after_fused(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self._ignores(name, module):
            return
        y, axes = next(_tensors(output)), getattr(module, "spatial", 2)
        self._images[name] = tuple(y.shape[-axes:])
        if y.numel():
            self._units[name] = read_units(y, -1 - axes, None)
            self._order += [name] if name not in self._order else []

    def _before_sequence(self, name: str, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else None
        if self._ignores(name, module) or not isinstance(given, Tensor) or given.dim() != 3:
            return None
        if not torch.is_grad_enabled():
            return None
        x = given if given.requires_grad else given.detach().requires_grad_()
        batch_first = bool(module.batch_first)

        def keep(gradient: Tensor | None) -> None:
            if gradient is not None:
                steps = gradient.transpose(0, 1) if batch_first else gradient
                self._sequences[name] = torch.linalg.vector_norm(steps, dim=(1, 2), dtype=torch.float64)

        x.register_hook(keep)
        return (x, *args[1:]), kwargs

    # ----------------------------------------------------------------------------------------------------- reading
    def parameters(self) -> dict[str, Tensor]:
        """The live parameters."""
        return dict(self._model.named_parameters())

    def gradients(self) -> dict[str, Tensor | None]:
        """Their .grad: zeros where one is asked for and none has come, None where none is asked for."""
        return {
            name: torch.zeros_like(p) if p.grad is None and p.requires_grad else p.grad
            for name, p in self._model.named_parameters()
        }

    def units(self) -> dict[str, UnitReading]:
        """Of every leaf module's last output."""
        return {name: self._units[name] for name in self._order}

    def steps(self) -> dict[str, StepReading]:
        """Of fused modules, cells in a loop, and torch's own recurrent modules."""
        readings = {}
        for name, module in self._fused.items():
            for cell, probe in module.__dict__.get("probes", {}).items():
                if probe.grad is not None:
                    sums, full = _arrays.to_numpy(probe.grad), f"{name}.{cell}".lstrip(".")
                    readings[full] = read_steps(sums, ops.STEP_STATISTICS, cell.endswith("_reverse"))
        for name, kinds in self._norms.items():
            dh, dc = (_in_order(kinds.get(kind, {})) for kind in ("dh", "dc"))
            if dh is not None:
                readings[name] = StepReading(dh, dc if dc is not None and len(dc) == len(dh) else None)
        for name, norms in self._sequences.items():
            readings[name] = StepReading(_arrays.to_numpy(norms))
        return {name: step for name, step in readings.items() if len(step.dh)}

    def recurrent(self) -> dict[str, Recurrent]:
        """The recurrent weights of fused modules that have run, on their images, and of torch's own."""
        found: dict[str, Recurrent] = {}
        for name, module in self._modules.items():
            gates, image = _GATES.get(type(module)), self._images.get(name)
            for key, parameter in module.named_parameters(recurse=False):
                full, weight = f"{name}.{key}".lstrip("."), _arrays.to_numpy(parameter)
                if not key.startswith("weight_hh"):
                    continue
                if gates is not None and weight.shape[0] == gates * weight.shape[1]:  # not so with proj_size
                    found[full] = weight, gates, None
                elif image is not None and weight.ndim == 3:  # a row is an image of height 1
                    found[full] = weight[:, :, None, :], 4, (1, *image)
                elif image is not None:
                    found[full] = weight, 4, image
        return found

    def reach(self) -> Bounds | None:
        """Not known: the order of modules is the forward method's."""
        return None

    def last_units(self) -> str:
        """The module that gave its output last."""
        return self._order[-1] if self._order else ""


def _outermost(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules by name, but for those within fused ones: a hook there would keep the fused forward from running."""
    yield name, module
    if _is_fused(module):
        return
    for child, inner in module.named_children():
        yield from _outermost(f"{name}.{child}" if name else child, inner)


def _is_fused(module: nn.Module) -> bool:
    from fusecell.torch.conversion.swapped import is_swapped

    return is_swapped(module) or _is_fused_sequence(module)


def _is_fused_sequence(module: nn.Module) -> bool:
    """Fusecell's own, or a loop that was converted: each can make probes."""
    from fusecell.torch import ConvLSTM2d
    from fusecell.torch.conversion.sequences import SequencePlan
    from fusecell.torch.conversion.swapped import PLAN

    return isinstance(module, ConvLSTM2d) or isinstance(module.__dict__.get(PLAN), SequencePlan)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns, each once, in order."""
    seen: list[Tensor] = []
    for tensor in _leaves(output):
        if not any(tensor is other for other in seen):
            seen.append(tensor)
            yield tensor


def _leaves(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _leaves(part)


def _keep_norm(kept: dict[int, Any], call: int, gradient: Tensor | None) -> None:
    if gradient is not None:  # where an operator leaves it undefined
        kept[call] = _arrays.lazy_norm(gradient)


def _in_order(norms: dict[int, Any]) -> Any:
    """[T] of the calls in their order, 0 where no gradient came."""
    if not norms:
        return None
    values = np.zeros(max(norms) + 1)
    for call, norm in norms.items():
        values[call] = float(norm)
    return values
