"""health.check_gradients on functions written with torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusecell import health

torch: Any = pytest.importorskip("torch")
torch.set_num_threads(1)


def convolution(x: np.ndarray, weight: np.ndarray, unflipped: bool) -> tuple[Any, dict[str, Any]]:
    """Half the sum of squares of a convolution, its gradients by hand or by autograd, as torch's tensors."""
    xt, wt = (torch.from_numpy(a).requires_grad_() for a in (x, weight))
    y = torch.nn.functional.conv2d(xt, wt, padding=1)
    loss = (y * y).sum() / 2
    dx, dweight = torch.autograd.grad(loss, [xt, wt])
    if unflipped:
        dx = torch.nn.functional.conv2d(y.detach(), wt.detach().transpose(0, 1), padding=1)
    return loss, {"x": dx, "weight": dweight}


def test_torch_s_tensors_come_back(rng: np.random.Generator) -> None:
    inputs = {"x": rng.standard_normal((2, 3, 5, 4)), "weight": rng.standard_normal((2, 3, 3, 3))}
    check = health.check_gradients(convolution, {**inputs, "unflipped": False})
    check.raise_if_wrong()
    assert max(check.errors.values()) < 1e-7
    wrong = health.check_gradients(convolution, {**inputs, "unflipped": True})
    assert wrong.errors["x"] > 0.5
    assert "needs the kernel flipped" in wrong.gradients["x"].cause
    assert wrong.gradients["weight"].right
