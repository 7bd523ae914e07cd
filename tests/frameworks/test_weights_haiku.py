"""fusecell.weights against Haiku's Conv2DLSTM and Conv1DLSTM: gates i, g, f, o, two biases, +1 on f."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
hk = pytest.importorskip("haiku")

from fusecell import ops, weights  # noqa: E402

T, B, CIN, C, H, W = 3, 2, 3, 2, 5, 6
KERNELS = [(3, 5), (2, 4), (4, 2)]


@pytest.fixture(autouse=True)
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def network(kernel, image):
    """One step as a transformed function of (params, x, h, c)."""
    kind = hk.Conv2DLSTM if len(image) == 2 else hk.Conv1DLSTM

    def step(x, h, c):
        return kind(image, C, kernel)(x, hk.LSTMState(h, c))

    return hk.without_apply_rng(hk.transform(step))


def run(net, params, x, h, c):
    """y, h_n and c_n in fusecell's layout."""
    h, c, y = np.moveaxis(h, 1, -1), np.moveaxis(c, 1, -1), []
    for x_t in np.moveaxis(x, 2, -1):
        out, (h, c) = net.apply(params, x_t, h, c)
        y.append(np.moveaxis(np.asarray(out), -1, 1))
    return np.stack(y), np.moveaxis(np.asarray(h), -1, 1), np.moveaxis(np.asarray(c), -1, 1)


def draw(rng, *image):
    return [rng.standard_normal(s) for s in ((T, B, CIN, *image), (B, C, *image), (B, C, *image))]


def own_params(rng, net, *image):
    """Haiku's names and shapes, with random biases too, which it starts at 0."""
    x, h, c = (np.zeros((B, *image, n)) for n in (CIN, C, C))
    params = net.init(jax.random.key(0), x, h, c)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape), params)


def assert_close(found, expected):
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_into_fusecell(kernel, rng):
    net, (x, h, c) = network(kernel, (H, W)), draw(rng, H, W)
    params = own_params(rng, net, H, W)
    [found] = weights.load(params, "haiku")
    assert found.name == "conv2_dlstm/"
    assert_close(ops.conv_lstm_forward(x, **found.arguments(), h_0=h, c_0=c)[:3], run(net, params, x, h, c))


@pytest.mark.parametrize("kernel", KERNELS)
def test_into_haiku(kernel, rng):
    net, (x, h, c) = network(kernel, (H, W)), draw(rng, H, W)
    own = weights.ConvLSTMWeights(
        rng.standard_normal((4 * C, CIN, *kernel)), rng.standard_normal((4 * C, C, *kernel)), rng.standard_normal(4 * C)
    )
    params = weights.dump(own, "haiku", prefix="conv2_dlstm/")
    assert jax.tree.structure(params) == jax.tree.structure(own_params(rng, net, H, W))
    assert_close(ops.conv_lstm_forward(x, **own.arguments(), h_0=h, c_0=c)[:3], run(net, params, x, h, c))


@pytest.mark.parametrize("size", [3, 4])
def test_one_dimension(size, rng):
    net, (x, h, c) = network((size,), (W,)), draw(rng, W)
    params = own_params(rng, net, W)
    [found] = weights.load(params, "haiku")
    y, h_n, c_n, _ = ops.conv_lstm_forward(
        x[..., None, :], **found.arguments(), h_0=h[..., None, :], c_0=c[..., None, :]
    )
    expected = run(net, params, x, h, c)
    assert_close([y[..., 0, :], h_n[..., 0, :], c_n[..., 0, :]], expected)
    back = weights.dump(found, "haiku", prefix=found.name, dims=1)
    assert_close(run(net, back, x, h, c), expected)
