"""Losses: each returns (loss, gradient of the prediction), means over every element or example; and the L2 penalty.

Sums are taken in float64 whatever the dtype; the gradient has the prediction's dtype. All are stable: no overflow
for logits of any finite size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fusecell import ops
from fusecell._typing import Array


def mean_squared(pred: Array, target: Array) -> tuple[float, Array]:
    """Mean of (pred - target)^2 and its gradient 2 (pred - target) / size. Any shape, the same for both.

    Raises ValueError for different shapes or no elements, TypeError for different dtypes.
    """
    _check_pair("pred", pred, target)
    difference = pred - target
    loss = float(np.mean(np.square(difference, dtype=np.float64)))
    difference *= np.asarray(2.0 / pred.size, pred.dtype)
    return loss, difference


def binary_cross_entropy_with_logits(logits: Array, target: Array) -> tuple[float, Array]:
    """Mean of -target log s - (1 - target) log(1 - s), s = sigmoid(logits), and its gradient (s - target) / size.

    target: probabilities in [0, 1], the shape and dtype of logits. Computed as
    max(x, 0) - x target + softplus(-|x|), which neither overflows nor cancels.
    Raises ValueError for different shapes or no elements, TypeError for different dtypes.
    """
    _check_pair("logits", logits, target)
    tail = ops.activation_forward("softplus", -np.abs(logits))
    terms = np.maximum(logits, 0) - logits * target + tail
    gradient = ops.activation_forward("sigmoid", logits) - target
    gradient *= np.asarray(1.0 / logits.size, logits.dtype)
    return float(np.mean(terms, dtype=np.float64)), gradient


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[label] over all labels, and its gradient.

    logits [N, K, ...], labels [N, ...] integers in [0, K).
    Raises ValueError for shapes that do not fit, no labels or a label out of range, TypeError for labels that are
    not integers.
    """
    if logits.ndim < 2 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        expected = [*logits.shape[:1], *logits.shape[2:]]
        raise ValueError(f"labels: expected {expected} for logits {list(logits.shape)}, got {list(labels.shape)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if labels.size == 0:
        raise ValueError("labels: expected at least one, got none")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    index = np.expand_dims(labels, 1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.sum(np.exp(shifted, dtype=np.float64), axis=1, keepdims=True)
    losses = np.log(total) - np.take_along_axis(shifted, index, axis=1)
    gradient: Array = (np.exp(shifted, dtype=np.float64) / total).astype(logits.dtype)
    picked = np.take_along_axis(gradient, index, axis=1)
    np.put_along_axis(gradient, index, picked - 1, axis=1)
    gradient *= np.asarray(1.0 / labels.size, logits.dtype)
    return float(np.mean(losses, dtype=np.float64)), gradient


def is_weight(name: str) -> bool:
    """Whether a parameter's own name, the part behind the last dot, starts or ends with "weight"."""
    own = name.rpartition(".")[2]
    return own.startswith("weight") or own.endswith("weight")


def l2_penalty(
    parameters: Mapping[str, Array], strength: float, only: Callable[[str], bool] = is_weight
) -> tuple[float, dict[str, Array]]:
    """strength * sum of w^2 over the parameters that `only` chooses by name, and its gradients 2 strength w.

    By default weights alone, no biases. This is Keras's regularizers.L2(strength); torch's weight_decay of d is
    strength d / 2. The value belongs to the loss, the gradients to its gradients: `add_gradients`.
    Raises ValueError for a strength that is negative or not finite.
    """
    if not 0.0 <= strength < np.inf:
        raise ValueError(f"strength: expected a finite number of at least 0, got {strength}")
    chosen = {name: array for name, array in parameters.items() if only(name)}
    total = sum(float(np.sum(np.square(array, dtype=np.float64))) for array in chosen.values())
    gradients = {name: array * np.asarray(2.0 * strength, array.dtype) for name, array in chosen.items()}
    return strength * total, gradients


def add_gradients(gradients: Mapping[str, Array], more: Mapping[str, Array]) -> dict[str, Array]:
    """All of `gradients`, those that `more` has too as new arrays with both added up.

    Raises KeyError for a name that only `more` has, ValueError or TypeError for a shape or dtype that differs.
    """
    unknown = sorted(more.keys() - gradients.keys())
    if unknown:
        raise KeyError(f"more: expected names among {', '.join(gradients)}, got {', '.join(unknown)}")
    for name, array in more.items():
        if array.shape != gradients[name].shape:
            raise ValueError(f"{name}: expected {gradients[name].shape}, got {array.shape}")
        if array.dtype != gradients[name].dtype:
            raise TypeError(f"{name}: expected {gradients[name].dtype}, got {array.dtype}")
    return {name: array + more[name] if name in more else array for name, array in gradients.items()}


def _check_pair(name: str, pred: Array, target: Array) -> None:
    if target.shape != pred.shape:
        raise ValueError(f"target: expected {name}'s shape {list(pred.shape)}, got {list(target.shape)}")
    if target.dtype != pred.dtype:
        raise TypeError(f"target: expected {name}'s dtype {pred.dtype}, got {target.dtype}")
    if pred.size == 0:
        raise ValueError(f"{name}: expected at least one element, got {list(pred.shape)}")
