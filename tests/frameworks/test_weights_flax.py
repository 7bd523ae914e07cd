"""fusecell.weights against Flax linen's ConvLSTMCell: its gates i, g, f, o, two biases, +1 on f, carry (c, h)."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nn = pytest.importorskip("flax.linen")

from fusecell import ops, weights  # noqa: E402

T, B, CIN, C, H, W = 3, 2, 3, 2, 5, 6
KERNELS = [(3, 5), (2, 4), (4, 2), (1, 1)]


@pytest.fixture(autouse=True)
def float64():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def cell_of(kernel, **arguments):
    return nn.ConvLSTMCell(features=C, kernel_size=kernel, param_dtype=np.float64, **arguments)


def run(cell, params, x, h, c):
    """y, h_n and c_n in fusecell's layout; x [T, B, Cin, H, W], or without H for a 1-D cell."""
    carry, y = tuple(np.moveaxis(a, 1, -1) for a in (c, h)), []
    for x_t in np.moveaxis(x, 2, -1):
        carry, out = cell.apply({"params": params}, carry, x_t)
        y.append(np.moveaxis(np.asarray(out), -1, 1))
    c, h = (np.moveaxis(np.asarray(a), -1, 1) for a in carry)
    return np.stack(y), h, c


def random_params(rng, kernel, bias=True):
    """Drawn by hand, since Flax starts every bias at 0; the shapes are Flax's own, or it refuses them."""
    params = {"ih": {"kernel": rng.standard_normal((*kernel, CIN, 4 * C))}}
    params["hh"] = {"kernel": rng.standard_normal((*kernel, C, 4 * C))}
    for part in params.values():
        part.update({"bias": rng.standard_normal(4 * C)} if bias else {})
    return params


def draw(rng, *image):
    return [rng.standard_normal(s) for s in ((T, B, CIN, *image), (B, C, *image), (B, C, *image))]


def assert_close(found, expected):
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_into_fusecell(kernel, bias, rng):
    params, (x, h, c) = random_params(rng, kernel, bias), draw(rng, H, W)
    [found] = weights.load(params, "flax")
    expected = run(cell_of(kernel, use_bias=bias), params, x, h, c)
    assert_close(ops.conv_lstm_forward(x, **found.arguments(), h_0=h, c_0=c)[:3], expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_into_flax(kernel, rng):
    x, h, c = draw(rng, H, W)
    own = weights.ConvLSTMWeights(
        rng.standard_normal((4 * C, CIN, *kernel)), rng.standard_normal((4 * C, C, *kernel)), rng.standard_normal(4 * C)
    )
    expected = run(cell_of(kernel), weights.dump(own, "flax"), x, h, c)
    assert_close(ops.conv_lstm_forward(x, **own.arguments(), h_0=h, c_0=c)[:3], expected)


def test_under_an_rnn(rng):
    """The dict that nn.RNN hands out, jax arrays in it, and the same structure back."""
    x = rng.standard_normal((T, B, CIN, H, W))
    sequence = np.moveaxis(np.swapaxes(x, 0, 1), 2, -1)
    net = nn.RNN(cell_of((3, 3)))
    variables = net.init(jax.random.key(0), sequence)
    [found] = weights.load(variables["params"], "flax")
    assert found.name == "cell/"
    expected = np.swapaxes(np.moveaxis(np.asarray(net.apply(variables, sequence)), -1, 2), 0, 1)
    np.testing.assert_allclose(ops.conv_lstm_forward(x, **found.arguments())[0], expected, rtol=0, atol=1e-12)
    back = weights.dump(found, "flax", prefix="cell/")
    assert jax.tree.structure(back) == jax.tree.structure(variables["params"])
    assert_close([np.swapaxes(np.moveaxis(np.asarray(net.apply({"params": back}, sequence)), -1, 2), 0, 1)], [expected])


@pytest.mark.parametrize("size", [3, 4])
def test_one_dimension(size, rng):
    params, (x, h, c) = random_params(rng, (size,)), draw(rng, W)
    [found] = weights.load(params, "flax")
    y, h_n, c_n, _ = ops.conv_lstm_forward(
        x[..., None, :], **found.arguments(), h_0=h[..., None, :], c_0=c[..., None, :]
    )
    assert_close([y[..., 0, :], h_n[..., 0, :], c_n[..., 0, :]], run(cell_of((size,)), params, x, h, c))
    assert weights.dump(found, "flax", dims=1)["hh"]["kernel"].shape == (size, C, 4 * C)
