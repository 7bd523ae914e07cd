"""More than 2^31 elements: every index must be 64 bits wide. Needs about 18 GB."""

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
    """The last step, beyond 2^31 elements of the gates, is that of a sequence of one, to the bit."""
    rng = np.random.default_rng(0)
    steps, channels, size = 17, 8, 2048
    x = rng.standard_normal((steps, 1, 1, size, size), dtype=np.float32)
    wi, wh = (rng.standard_normal((4 * channels, n, 1, 1), dtype=np.float32) for n in (1, channels))
    y, h_n, c_n, saved = ops.conv_lstm_forward(x, wi, wh)
    assert saved is not None
    gates, c = saved.arrays["gates"], saved.arrays["c"]
    assert gates is not None
    assert c is not None
    assert gates.size > 2**31
    one, _, c_one, saved_one = ops.conv_lstm_forward(x[-1:], wi, wh, h_0=y[-2], c_0=c[-2])
    assert saved_one is not None
    assert np.array_equal(one[0], y[-1])
    assert np.array_equal(h_n, y[-1])
    assert np.array_equal(c_one, c_n)
    assert np.array_equal(saved_one.arrays["gates"][0], gates[-1])  # type: ignore[index]
