"""Optimisers that write into the live parameters (NumPy arrays, or a GPU's), with gradient clipping built in.

    optimizer = Adam(layer.parameters(), lr=1e-3, clip_norm=1.0)
    layer.backward(dy)
    norm = optimizer.step(layer.gradients())

Clipping is by value first (in place, in the gradient arrays), then by the norm over all of them, which happens as the
update reads them: their arrays stay as they are. On a GPU nothing waits for the norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusecell import ops
from fusecell._typing import Array
from fusecell.layers.base import check_like
from fusecell.ops.clipping import Number


class Optimizer(ABC):
    """What SGD and Adam share: parameters, clipping, the count of steps, the state as flat arrays."""

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float,
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        error_if_nonfinite: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0.0:
                raise ValueError(f"{name}: expected more than 0 or None, got {limit}")
        self.parameters = dict(parameters)
        self.lr, self.weight_decay = float(lr), float(weight_decay)
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.error_if_nonfinite = error_if_nonfinite
        self.steps = 0
        self._slots: dict[str, dict[str, Array]] = {}

    def step(self, gradients: Mapping[str, Array]) -> Number | None:
        """Update every parameter once. Returns the global 2-norm before clipping, or None if nothing clips.

        gradients: exactly the parameters' names, shapes and dtypes. The norm is a float, on a GPU an array there.
        Raises KeyError, ValueError or TypeError for a mismatch, and FloatingPointError for a norm that is not finite
        if error_if_nonfinite; then nothing has changed.
        """
        check_like(self.parameters, gradients, "gradients")
        listed = [gradients[name] for name in self.parameters]
        before, norm = self._clip(listed)
        self.steps += 1
        clipping = {} if norm is None else {"norm": norm, "max_norm": self.clip_norm}
        self._update(list(self.parameters.values()), listed, clipping)
        return before

    def state_dict(self) -> dict[str, Array]:
        """Copies of all that a resumed run needs: "steps", "lr" and the slots as "<slot>.<parameter>"."""
        state = {f"{s}.{n}": a.copy() for s, slot in self._slots.items() for n, a in slot.items()}
        return {"steps": np.array(self.steps, np.int64), "lr": np.array(self.lr, np.float64), **state}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` gave.

        Raises KeyError, ValueError or TypeError for a mismatch; then nothing has changed.
        """
        check_like(self.state_dict(), state, f"{type(self).__name__} state")
        for slot_name, slot in self._slots.items():
            for name, array in slot.items():
                array[...] = state[f"{slot_name}.{name}"]
        self.steps, self.lr = int(state["steps"]), float(state["lr"])

    @abstractmethod
    def _update(self, parameters: list[Array], gradients: list[Array], clipping: dict[str, Any]) -> None:
        """Write the parameters' new values into them. `steps` already counts this step."""

    def _new_slot(self) -> dict[str, Array]:
        """Zeros like the parameters, on a GPU where those are; float32 where they have 16 bits."""
        return {n: np.zeros_like(a, np.float32 if a.dtype.itemsize == 2 else None) for n, a in self.parameters.items()}

    def _slot(self, name: str) -> list[Array]:
        return list(self._slots.get(name, {}).values())

    def _clip(self, gradients: list[Array]) -> tuple[Number | None, Number | None]:
        """Clip by value. Returns the norm before that, to report, and the norm to clip by as the update reads."""
        reports = self.clip_value is not None or self.error_if_nonfinite
        before = ops.global_norm(gradients) if reports or self.clip_norm is not None else None
        if self.error_if_nonfinite and not np.isfinite(float(before)):  # type: ignore[arg-type]
            raise FloatingPointError(f"gradients: expected a finite norm, got {float(before)}")  # type: ignore[arg-type]
        norm = before
        if self.clip_value is not None:
            ops.clip_by_value_(gradients, self.clip_value)
            norm = None if self.clip_norm is None else ops.global_norm(gradients)
        elif self.clip_norm is None:
            return None, None
        return before, norm


class SGD(Optimizer):
    """p -= lr v, v = momentum v + g; with nesterov, p -= lr (g + momentum v). weight_decay adds decay * p to g.

    As torch.optim.SGD (Sutskever et al. 2013 with the rate outside the velocity).
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        error_if_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr, weight_decay=weight_decay, clip_norm=clip_norm, clip_value=clip_value,
            error_if_nonfinite=error_if_nonfinite,
        )  # fmt: skip
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum}")
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov: expected a momentum above 0, got 0")
        self.momentum, self.nesterov = float(momentum), nesterov
        if momentum > 0.0:
            self._slots["velocity"] = self._new_slot()

    def _update(self, parameters: list[Array], gradients: list[Array], clipping: dict[str, Any]) -> None:
        ops.sgd_update_(
            parameters, gradients, self._slot("velocity"), lr=self.lr, momentum=self.momentum,
            nesterov=self.nesterov, weight_decay=self.weight_decay, **clipping,
        )  # fmt: skip


class Adam(Optimizer):
    """Kingma and Ba 2015, as torch.optim.Adam: p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps).

    weight_decay adds decay * p to g; with decoupled=True it shrinks p by 1 - lr decay instead, as `AdamW` does.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        error_if_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr, weight_decay=weight_decay, clip_norm=clip_norm, clip_value=clip_value,
            error_if_nonfinite=error_if_nonfinite,
        )  # fmt: skip
        if not (0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}")
        if not eps >= 0.0:
            raise ValueError(f"eps: expected at least 0, got {eps}")
        self.betas, self.eps, self.decoupled = (float(betas[0]), float(betas[1])), float(eps), decoupled
        self._slots = {"mean": self._new_slot(), "square": self._new_slot()}

    def _update(self, parameters: list[Array], gradients: list[Array], clipping: dict[str, Any]) -> None:
        ops.adam_update_(
            parameters, gradients, self._slot("mean"), self._slot("square"), step=self.steps, lr=self.lr,
            betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, decoupled=self.decoupled, **clipping,
        )  # fmt: skip


class AdamW(Adam):
    """Adam whose decay is decoupled from the gradient: p shrinks by 1 - lr decay (Loshchilov and Hutter 2019).

    As torch.optim.AdamW, with its defaults.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        error_if_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr, betas, eps, weight_decay, decoupled=True, clip_norm=clip_norm, clip_value=clip_value,
            error_if_nonfinite=error_if_nonfinite,
        )  # fmt: skip
