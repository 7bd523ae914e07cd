"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusecell._typing import Array
from fusecell.layers.base import Layer, float_dtype, positive


class BatchNorm(Layer):
    """y = scale (x - mean) / sqrt(variance + eps) + shift, for each feature (Ioffe and Szegedy 2015).

    features lie along `axis`: -1 for x [..., F], -3 for images [..., C, H, W]; mean and (biased) variance are taken
    over all other axes. In training they are the batch's, and `running_mean` and `running_variance` go towards them:
    r = (1 - momentum) r + momentum s, s the mean or the unbiased variance, as in torch. In evaluation those are used.

    Parameters: scale [F], 1, and shift [F], 0; not named as weights, so that an L2 penalty leaves them alone. The
    running statistics are in `buffers()` and `state_dict()`.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        axis: int = -1,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.features, self.axis, self.momentum, self.eps = positive(features, "features"), axis, momentum, eps
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum: expected 0 <= momentum <= 1, got {momentum}")
        if not eps >= 0.0:
            raise ValueError(f"eps: expected at least 0, got {eps}")
        kind = float_dtype(dtype)
        self._parameters = {"scale": np.ones(features, kind), "shift": np.zeros(features, kind)}
        self._buffers = {"running_mean": np.zeros(features, kind), "running_variance": np.ones(features, kind)}
        self._saved: tuple[Array, Array, bool] | None = None

    def forward(self, x: Array) -> Array:
        """y of x's shape and dtype.

        Raises ValueError for another number of features or, in training, fewer than two values of each; TypeError for
        another dtype.
        """
        self._expect(x)
        count = x.size // self.features
        if self.training and count < 2:
            raise ValueError(f"x: expected at least 2 values of each feature in training, got {count}; or call eval()")
        mean, variance = self._batch_statistics(x, count) if self.training else self._running_statistics()
        inverse = 1.0 / np.sqrt(variance + self.eps)
        normalised = ((x - self._along(mean, x)) * self._along(inverse, x)).astype(x.dtype)
        y: Array = normalised * self._along(self._parameters["scale"], x) + self._along(self._parameters["shift"], x)
        self._saved = normalised, inverse.astype(x.dtype), self.training
        self._activity = {"": y}
        return y

    def backward(self, dy: Array) -> Array:
        """dx of x's shape, through the batch's statistics if the last forward was in training.

        Raises ValueError or TypeError unless dy has y's shape and dtype.
        """
        if self._saved is None:
            raise RuntimeError("BatchNorm.backward: call forward first")
        normalised, inverse, by_batch = self._saved
        if dy.shape != normalised.shape:
            raise ValueError(f"dy: expected {normalised.shape}, got {dy.shape}")
        if dy.dtype != normalised.dtype:
            raise TypeError(f"dy: expected {normalised.dtype}, got {dy.dtype}")
        dshift, dscale = self._sum(dy), self._sum(dy * normalised)
        self._keep_gradients({"scale": dscale.astype(dy.dtype), "shift": dshift.astype(dy.dtype)})
        factor = self._along(inverse * self._parameters["scale"], dy)
        if not by_batch:
            return np.asarray(dy * factor)
        count = dy.size // self.features
        mean_dy, mean_product = ((total / count).astype(dy.dtype) for total in (dshift, dscale))
        return np.asarray((dy - self._along(mean_dy, dy) - normalised * self._along(mean_product, dy)) * factor)

    def _expect(self, x: Array) -> None:
        kind = self._parameters["scale"].dtype
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != self.features:
            raise ValueError(f"x: expected {self.features} features along axis {self.axis}, got {list(x.shape)}")
        if x.dtype != kind:
            raise TypeError(f"x: expected {kind}, got {x.dtype}")

    def _batch_statistics(self, x: Array, count: int) -> tuple[Array, Array]:
        """(mean, biased variance) of each feature, float64; the running ones take their part of them."""
        mean = self._sum(x) / count
        variance = self._sum(np.square(x - self._along(mean, x))) / count
        for running, seen in zip(self._buffers.values(), (mean, variance * count / (count - 1)), strict=True):
            running += self.momentum * (seen - running)
        return mean, variance

    def _running_statistics(self) -> tuple[Array, Array]:
        mean, variance = (running.astype(np.float64) for running in self._buffers.values())
        return mean, variance

    def _sum(self, x: Array) -> Array:
        """The sum over all axes but the features', float64 [F]."""
        others = tuple(a for a in range(x.ndim) if a != self.axis % x.ndim)
        return np.asarray(np.sum(x, axis=others, dtype=np.float64))

    def _along(self, values: Array, x: Array) -> Array:
        """[F], shaped so that it lies along x's features."""
        shape: list[Any] = [1] * x.ndim
        shape[self.axis] = self.features
        return values.reshape(shape)
