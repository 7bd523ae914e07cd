"""The options of the cell, as keyword arguments: each tier adds its own to those of the tier below."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._check import Array, expect, f64, one_of, shaped
from ._convolution import Padding, Pair
from ._philox import bernoulli

SIGMA = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2")
PHI = ("tanh", "relu", "leaky_relu", "hard_tanh", "softsign", "identity")

# What bernoulli's ``stream`` is for each use
STREAM_DROPOUT, STREAM_ZONEOUT_H, STREAM_ZONEOUT_C = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """The keyword arguments of ``lstm_gates_forward``.

    recurrent_activation: sigma; sigmoid, hard_sigmoid or hard_sigmoid_keras2.
    activation: phi; tanh, relu, leaky_relu (with ``slope``), hard_tanh, softsign or identity.
    relu_at_zero: the derivative of relu at exactly 0: 0, 0.5 or 1.
    zoneout_h, zoneout_c: rates, 0 to 1. zoneout_mask_h, zoneout_mask_c: shaped as the state, 1 = keep the
        old one. The m of the formula is the mask, if given; else, in training, ``bernoulli`` with stream 1
        (h) or 2 (c); else its expectation, the rate.
    training, seed, offset: whether random numbers are drawn, and which.
    """

    recurrent_activation: str = "sigmoid"
    activation: str = "tanh"
    slope: float = 0.01
    relu_at_zero: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    zoneout_mask_h: ArrayLike | None = None
    zoneout_mask_c: ArrayLike | None = None
    training: bool = False
    seed: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        one_of("recurrent_activation", self.recurrent_activation, SIGMA)
        one_of("activation", self.activation, PHI)
        one_of("relu_at_zero", self.relu_at_zero, (0.0, 0.5, 1.0))
        for name, rate in (("zoneout_h", self.zoneout_h), ("zoneout_c", self.zoneout_c)):
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name}: expected 0 to 1, got {rate}")

    def m_h(self, shape: tuple[int, ...]) -> Array | None:
        """How much of the old h is kept, everywhere; None for a cell without zoneout."""
        return self._m("zoneout_mask_h", self.zoneout_mask_h, self.zoneout_h, STREAM_ZONEOUT_H, shape)

    def m_c(self, shape: tuple[int, ...]) -> Array | None:
        """How much of the old c is kept, everywhere; None for a cell without zoneout."""
        return self._m("zoneout_mask_c", self.zoneout_mask_c, self.zoneout_c, STREAM_ZONEOUT_C, shape)

    def _m(self, name: str, mask: ArrayLike | None, rate: float, stream: int, shape: tuple[int, ...]) -> Array | None:
        if mask is not None:
            return shaped(name, mask, shape)
        if rate == 0.0:
            return None
        if self.training:
            return f64(bernoulli(shape, rate, seed=self.seed, offset=self.offset, stream=stream))
        return np.full(shape, rate)


@dataclass(frozen=True, kw_only=True)
class StepOptions(GateOptions):
    """The keyword arguments of ``conv_lstm_step_forward``: those of ``GateOptions`` and

    stride, dilation, padding: of the input convolution, as in ``conv2d_forward``. The recurrent
        convolution is always "same", with stride 1 and undilated.
    recurrent_dropout: rate, 0 to below 1. dropout_mask [B, C, H, W] multiplies h' in the recurrent
        convolution alone. Without a mask it is, in training, (1 - ``bernoulli`` with stream 0) / (1 - rate);
        else nothing is dropped.
    algorithm: how a backend computes; the definition knows but one.
    """

    stride: int | Pair = 1
    dilation: int | Pair = 1
    padding: Padding = "same"
    recurrent_dropout: float = 0.0
    dropout_mask: ArrayLike | None = None
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recurrent_dropout < 1.0:
            raise ValueError(f"recurrent_dropout: expected 0 to below 1, got {self.recurrent_dropout}")

    def dropout(self, shape: tuple[int, ...]) -> Array | None:
        """The factors of h' in the recurrent convolution; None for no dropout."""
        if self.dropout_mask is not None:
            return shaped("dropout_mask", self.dropout_mask, shape)
        if self.recurrent_dropout == 0.0 or not self.training:
            return None
        rate = self.recurrent_dropout
        dropped = bernoulli(shape, rate, seed=self.seed, offset=self.offset, stream=STREAM_DROPOUT)
        return (1.0 - f64(dropped)) / (1.0 - rate)


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(StepOptions):
    """The keyword arguments of ``conv_lstm_forward``: those of ``StepOptions``, with zoneout masks
    [T, B, C, H, W], and

    lengths: [B] integers, 0 to T. Step t of sample b is active while t < lengths[b]. An inactive step gives
        y = 0 and dx = 0 and passes state and gradients on as they are; what stands in its x, dy and zoneout
        masks is never read.
    reverse: runs from t = T - 1 down to 0. y stays in the order of x; h_n is the state after t = 0.
    truncation: k > 0 detaches the state that enters the steps k, 2k, ... counted from the direction's first,
        for the samples that are active in that step.
    """

    lengths: ArrayLike | None = None
    reverse: bool = False
    truncation: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncation < 0:
            raise ValueError(f"truncation: expected 0 or more, got {self.truncation}")

    def active(self, steps: int, batch: int) -> NDArray[np.bool_]:
        """[T, B]: which samples take part in which step."""
        lengths = np.full(batch, steps) if self.lengths is None else np.asarray(self.lengths)
        expect("lengths", lengths, (batch,))
        if batch and lengths.dtype.kind not in "iu":
            raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
        if np.any(lengths < 0) or np.any(lengths > steps):
            raise ValueError(f"lengths: expected 0 to {steps}, got {lengths}")
        return np.asarray(np.arange(steps)[:, None] < lengths)

    def detaches(self, step: int) -> bool:
        """Whether the state that enters ``step``, counted from the direction's first, is detached."""
        return self.truncation > 0 and step > 0 and step % self.truncation == 0


Tier = TypeVar("Tier", bound=GateOptions)


def options_for(tier: type[Tier], options: Tier) -> dict[str, Any]:
    """Those of ``options`` that ``tier`` knows, as keyword arguments."""
    return {field.name: getattr(options, field.name) for field in fields(tier)}
