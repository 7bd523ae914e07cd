"""More than 2^31 elements: every index must be 64 bits wide. Needs about 20 GB."""

from __future__ import annotations

import numpy as np
import pytest

from fusecell import ops

pytestmark = pytest.mark.slow
N = 2**31 + 4099


def test_activations_and_clipping() -> None:
    x = np.zeros(N, np.float32)
    x[[0, 2**31 - 1, 2**31, -1]] = [3, -4, 12, -84]
    assert ops.global_norm([x]) == pytest.approx(np.sqrt(9 + 16 + 144 + 84**2), rel=1e-7)
    y = ops.activation_forward("relu", x)
    assert y[[0, 2**31 - 1, 2**31, -1]].tolist() == [3, 0, 12, 0]
    assert np.count_nonzero(y) == 2
    del y
    ops.clip_by_value_(x, 10.0)
    assert x[[0, 2**31 - 1, 2**31, -1]].tolist() == [3, -4, 10, -10]


def test_masks() -> None:
    mask = ops.bernoulli((N,), 0.5, seed=1)
    offset = 2**31 // 4
    assert np.array_equal(mask[2**31 :], ops.bernoulli((N - 2**31,), 0.5, seed=1, offset=offset))


def test_a_sequence_whose_gates_pass_two_to_the_31() -> None:
    """Samples are alike, so the last one, beyond 2^31 elements of y's gates, must equal the first."""
    rng = np.random.default_rng(0)
    batch, size = 131, 2048
    one = rng.standard_normal((1, 1, 1, size, size)).astype(np.float32)
    x = np.broadcast_to(one, (1, batch, 1, size, size))
    wi, wh = rng.standard_normal((4, 1, 1, 1)).astype(np.float32), rng.standard_normal((4, 1, 1, 1)).astype(np.float32)
    assert batch * 4 * size * size > 2**31
    x = np.ascontiguousarray(x)
    y, *_, saved = ops.conv_lstm_forward(x, wi, wh, save="gates")
    assert np.array_equal(y[0, -1], y[0, 0])
    assert saved is not None
    gates = saved.arrays["gates"]
    assert gates is not None
    assert np.array_equal(gates[0, -1], gates[0, 0])
