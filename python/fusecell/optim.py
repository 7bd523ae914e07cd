"""Optimisers that write into the live parameters, with gradient clipping built in.

    optimizer = Adam(layer.parameters(), lr=1e-3, clip_norm=1.0)
    layer.backward(dy)
    norm = optimizer.step(layer.gradients())

Clipping works on the gradient arrays themselves (in place): by value first, then by the norm over all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from fusecell import ops
from fusecell._typing import Array
from fusecell.layers.base import check_like


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

    def step(self, gradients: Mapping[str, Array]) -> float | None:
        """Update every parameter once. Returns the global 2-norm before clipping, or None if nothing clips.

        gradients: exactly the parameters' names, shapes and dtypes; clipped in place.
        Raises KeyError, ValueError or TypeError for a mismatch, and FloatingPointError for a norm that is not finite
        if error_if_nonfinite; then nothing has changed.
        """
        check_like(self.parameters, gradients, "gradients")
        norm = self._clip([gradients[name] for name in self.parameters])
        self.steps += 1
        for name, parameter in self.parameters.items():
            self._update(name, parameter, gradients[name])
        return norm

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
    def _update(self, name: str, parameter: Array, gradient: Array) -> None:
        """Write one parameter's new value into it. `steps` already counts this step."""

    def _new_slot(self) -> dict[str, Array]:
        return {name: np.zeros_like(array) for name, array in self.parameters.items()}

    def _clip(self, gradients: list[Array]) -> float | None:
        if self.clip_value is None and self.clip_norm is not None:
            strict = self.error_if_nonfinite
            return ops.clip_by_global_norm_(gradients, self.clip_norm, error_if_nonfinite=strict)
        if self.clip_value is None and not self.error_if_nonfinite:
            return None
        norm = ops.global_norm(gradients)
        if self.error_if_nonfinite and not np.isfinite(norm):
            raise FloatingPointError(f"gradients: expected a finite norm, got {norm}")
        if self.clip_value is None:
            return None
        ops.clip_by_value_(gradients, self.clip_value)
        if self.clip_norm is not None:
            ops.clip_by_global_norm_(gradients, self.clip_norm)
        return norm


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

    def _update(self, name: str, parameter: Array, gradient: Array) -> None:
        step = gradient + self.weight_decay * parameter if self.weight_decay else gradient
        if self.momentum > 0.0:
            velocity = self._slots["velocity"][name]
            velocity *= self.momentum
            velocity += step
            step = step + self.momentum * velocity if self.nesterov else velocity
        parameter -= self.lr * step


class Adam(Optimizer):
    """Kingma and Ba 2015, as torch.optim.Adam: p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps).

    weight_decay adds decay * p to g; with decoupled=True it shrinks p by 1 - lr decay instead (AdamW, Loshchilov and
    Hutter 2019).
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

    def _update(self, name: str, parameter: Array, gradient: Array) -> None:
        mean, square = self._slots["mean"][name], self._slots["square"][name]
        (first, second), t = self.betas, self.steps
        if self.weight_decay and self.decoupled:
            parameter *= 1.0 - self.lr * self.weight_decay
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        mean *= first
        mean += (1.0 - first) * gradient
        square *= second
        square += (1.0 - second) * np.square(gradient)
        root = np.sqrt(square / (1.0 - second**t)) + self.eps
        parameter -= self.lr / (1.0 - first**t) * mean / root
