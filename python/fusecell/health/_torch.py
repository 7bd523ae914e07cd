"""What the doctor reads from torch modules: fused ones through their probes, all others through hooks.

A module that is called several times in one forward pass is a cell in a loop over time: the gradient of each call's
outputs, h and c, is taken as it passes. torch.nn.RNN, GRU and LSTM run their loop inside: there the gradient of the
input at each step stands for that of h, which nobody sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusecell import ops
from fusecell.health import _arrays
from fusecell.health._readings import Bounds, StepReading, UnitReading, read_steps, read_units, unit_axis

_BOUNDS: dict[type[nn.Module], Bounds] = {
    nn.Sigmoid: (0.0, 1.0), nn.Hardsigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0), nn.Hardtanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0), nn.ReLU6: (0.0, 6.0),
}  # fmt: skip
_NO_UNITS = (nn.Dropout, nn.Flatten, nn.Identity, nn.Embedding, nn.RNNBase)


class TorchSource:
    """The parameters, units and time steps of a module."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._fused = {n: m for n, m in model.named_modules() if hasattr(m, "probes")}
        for module in self._fused.values():
            module.watched = True
        self._reads = True
        self._units: dict[str, UnitReading] = {}
        self._order: list[str] = []
        self._calls: Counter[str] = Counter()
        self._cells: set[str] = set()  # modules that a forward pass calls more than once
        self._norms: dict[str, dict[str, dict[int, Any]]] = {}  # cell: "dh" or "dc": call: norm
        self._images: dict[str, tuple[int, int]] = {}  # of fused modules: the state's (H, W)
        self._sequences: dict[str, Tensor] = {}  # torch's own recurrent modules: norms [T] of the input's gradient
        self._handles = [model.register_forward_pre_hook(self._begin)]
        inside = tuple(name for name in self._fused)
        for name, module in model.named_modules():
            if name in self._fused:
                self._handles.append(module.register_forward_hook(self._image_hook(name)))
            if name in self._fused or any(name.startswith(f"{f}.") for f in inside):
                continue
            if isinstance(module, nn.RNNBase):
                self._handles.append(module.register_forward_pre_hook(self._input_hook(name), with_kwargs=True))
            elif name:
                self._handles.append(module.register_forward_hook(self._output_hook(name)))

    def detach(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        for module in self._fused.values():
            module.watched = False

    def prepare(self, reads: bool) -> None:
        """Whether the next step is read; hooks do nothing in others."""
        self._reads = reads

    # ------------------------------------------------------------------------------------------------------- hooks
    def _begin(self, module: nn.Module, args: Any) -> None:
        repeated = {name for name, count in self._calls.items() if count > 1}
        self._cells |= {n for n in repeated if not any(n.startswith(f"{other}.") for other in repeated - {n})}
        self._calls.clear()
        if self._reads and module.training:
            self._norms, self._sequences = {}, {}

    def _output_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not (self._reads and self._model.training) or torch.compiler.is_compiling():
                return
            call = self._calls[name]
            self._calls[name] += 1
            if name in self._cells:
                self._watch_states(name, call, list(_tensors(output)))
            if next(module.children(), None) is None and isinstance(output, Tensor):
                self._read_units(name, module, output)

        return hook

    def _watch_states(self, name: str, call: int, states: list[Tensor]) -> None:
        for kind, tensor in zip(("dh", "dc"), states, strict=False):
            if tensor.requires_grad:
                kept = self._norms.setdefault(name, {}).setdefault(kind, {})
                tensor.register_hook(_note(kept, call))

    def _read_units(self, name: str, module: nn.Module, output: Tensor) -> None:
        if isinstance(module, _NO_UNITS) or output.dim() < 2 or not output.is_floating_point():
            return
        if self._calls[name] == 1:  # of a cell in a loop, the first step alone
            self._units[name] = read_units(output, unit_axis(output), _BOUNDS.get(type(module)))
        if name not in self._order:
            self._order.append(name)

    def _image_hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            height, width = next(_tensors(output)).shape[-2:]
            self._images[name] = int(height), int(width)

        return hook

    def _input_hook(self, name: str) -> Any:
        def hook(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else None
            watching = self._reads and self._model.training and torch.is_grad_enabled()
            if not watching or not isinstance(given, Tensor) or given.dim() != 3:
                return None
            x = given if given.requires_grad else given.detach().requires_grad_()
            batch_first = bool(module.batch_first)

            def keep(gradient: Tensor) -> None:
                steps = gradient.transpose(0, 1) if batch_first else gradient
                self._sequences[name] = torch.linalg.vector_norm(steps, dim=(1, 2), dtype=torch.float64)

            x.register_hook(keep)
            return (x, *args[1:]), kwargs

        return hook

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
            for cell, probe in module.probes.items():
                if probe.grad is not None:
                    sums = _arrays.to_numpy(probe.grad)
                    readings[f"{name}.{cell}".lstrip(".")] = read_steps(
                        sums, ops.STEP_STATISTICS, cell.endswith("_reverse")
                    )
        for name, kinds in self._norms.items():
            dh, dc = (_in_order(kinds.get(kind, {})) for kind in ("dh", "dc"))
            if dh is not None:
                readings[name] = StepReading(dh, dc if dc is not None and len(dc) == len(dh) else None)
        for name, norms in self._sequences.items():
            readings[name] = StepReading(_arrays.to_numpy(norms))
        return readings

    def recurrent(self) -> dict[str, Any]:
        """The recurrent weights of fused modules, that have run, on images, and of torch's own."""
        found: dict[str, Any] = {}
        for name, parameter in self._model.named_parameters():
            module, _, key = name.rpartition(".")
            if key.startswith("weight_hh") and (parameter.dim() == 2 or module in self._images):
                found[name] = _arrays.to_numpy(parameter), self._images.get(module)
        return found

    def reach(self) -> Bounds | None:
        """Not known: the order of modules is the forward method's."""
        return None

    def last_units(self) -> str:
        """The module that gave its output last."""
        return self._order[-1] if self._order else ""


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned, each once, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        seen: list[Tensor] = []
        for part in output:
            for tensor in _tensors(part):
                if not any(tensor is other for other in seen):
                    seen.append(tensor)
                    yield tensor


def _note(kept: dict[int, Any], call: int) -> Any:
    def keep(gradient: Tensor) -> None:
        kept[call] = _arrays.lazy_norm(gradient)

    return keep


def _in_order(norms: dict[int, Any]) -> Any:
    """[T] of the calls in their order, 0 where no gradient came."""
    if not norms:
        return None
    values = np.zeros(max(norms) + 1)
    for call, norm in norms.items():
        values[call] = float(norm)
    return values
