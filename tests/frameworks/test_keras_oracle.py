"""fusecell against Keras 3's ConvLSTM2D on its torch backend, values and gradients, with the weights mapped.

Keras knows no peepholes, zoneout or truncation; what it has must agree: gate order, "same" padding of even
kernels, strides and dilation on the input alone, hard_sigmoid, go_backwards, where recurrent dropout bites.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import numpy as np
import pytest

pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("these tests take gradients with Keras's torch backend", allow_module_level=True)
import torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")


@pytest.fixture(params=["reference", "ops-gates", "ops-recompute"])
def cell(request):
    """conv_lstm_forward and conv_lstm_backward."""
    name, _, save = request.param.partition("-")
    if importlib.util.find_spec(f"fusecell.{name}") is None:
        pytest.skip(f"fusecell.{name} is not there")
    module = importlib.import_module(f"fusecell.{name}")
    options = {"save": save} if save else {}
    return functools.partial(module.conv_lstm_forward, **options), module.conv_lstm_backward


# channels first <-> Keras's default, channels last
def channels_last(a):
    return np.moveaxis(a, -3, -1)


def channels_first(a):
    return np.moveaxis(a, -1, -3)


def from_keras_kernel(w):
    """[kh, kw, I, O] -> [O, I, kh, kw]; the blocks are i, f, c, o in both."""
    return np.transpose(w, (3, 2, 0, 1))


def hard_sigmoid_of_keras_2(x):
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


T, B, I, C = 4, 2, 3, 2

# name: (size of the input, size of the state, Keras's arguments, ours)
LAYERS = {
    "plain": ((5, 4), (5, 4), {"kernel_size": 3, "padding": "same"}, {}),
    "hard sigmoid": (
        (5, 4), (5, 4), {"kernel_size": 3, "recurrent_activation": "hard_sigmoid"},
        {"recurrent_activation": "hard_sigmoid"},
    ),
    "hard sigmoid of Keras 2": (
        (5, 4), (5, 4), {"kernel_size": 3, "recurrent_activation": hard_sigmoid_of_keras_2},
        {"recurrent_activation": "hard_sigmoid_keras2"},
    ),
    "relu": ((5, 4), (5, 4), {"kernel_size": 3, "activation": "relu"}, {"activation": "relu"}),
    "softsign": ((5, 4), (5, 4), {"kernel_size": 3, "activation": "softsign"}, {"activation": "softsign"}),
    "no bias": ((5, 4), (5, 4), {"kernel_size": 3, "use_bias": False}, {}),
    "even kernel": ((5, 4), (5, 4), {"kernel_size": (2, 4)}, {}),
    "valid": ((5, 6), (3, 3), {"kernel_size": (3, 4), "padding": "valid"}, {"padding": "valid"}),
    "strides": ((7, 6), (4, 3), {"kernel_size": 3, "strides": 2}, {"stride": 2}),
    "strides, even kernel": ((7, 6), (3, 3), {"kernel_size": (4, 2), "strides": (3, 2)}, {"stride": (3, 2)}),
    "strides, valid": (
        (7, 6), (2, 4), {"kernel_size": 3, "strides": (3, 1), "padding": "valid"},
        {"stride": (3, 1), "padding": "valid"},
    ),
    "dilation": ((5, 6), (5, 6), {"kernel_size": (3, 2), "dilation_rate": (2, 3)}, {"dilation": (2, 3)}),
    "dilation, valid": (
        (7, 6), (3, 4), {"kernel_size": (3, 2), "dilation_rate": 2, "padding": "valid"},
        {"dilation": 2, "padding": "valid"},
    ),
    "backwards": ((5, 4), (5, 4), {"kernel_size": 3, "go_backwards": True}, {"reverse": True}),
}  # fmt: skip


def run_keras(layer, x, h_0, c_0, cotangents, **call):
    """(y, h_n, c_n) and gradients of a built ConvLSTM2D, in fusecell's layouts."""
    tensors = {"x": np.swapaxes(channels_last(x), 0, 1), "h_0": channels_last(h_0), "c_0": channels_last(c_0)}
    tensors = {n: torch.tensor(a.copy(), requires_grad=True) for n, a in tensors.items()}
    y, h_n, c_n = layer(tensors["x"], initial_state=[tensors["h_0"], tensors["c_0"]], **call)
    if layer.go_backwards:
        y = torch.flip(y, (1,))  # Keras leaves the steps in the order in which they ran
    results = [y.permute(1, 0, 4, 2, 3), h_n.permute(0, 3, 1, 2), c_n.permute(0, 3, 1, 2)]
    for weight in layer.trainable_weights:
        weight.value.grad = None
    sum((torch.tensor(w) * r).sum() for w, r in zip(cotangents, results, strict=True)).backward()
    gradients = {n: channels_first(t.grad.numpy()) for n, t in tensors.items()}
    gradients["x"] = np.swapaxes(gradients["x"], 0, 1)
    names = ("weight_ih", "weight_hh", "bias")
    for name, weight in zip(names, layer.trainable_weights, strict=False):
        g = weight.value.grad.numpy()
        gradients[name] = g if name == "bias" else from_keras_kernel(g)
    return [r.detach().numpy() for r in results], gradients


def build(rng, size, **arguments):
    """A float64 layer with weights of our own, and these in fusecell's layout."""
    layer = keras.layers.ConvLSTM2D(
        C, return_sequences=True, return_state=True, dtype="float64", data_format="channels_last",
        **({"padding": "same"} | arguments),
    )  # fmt: skip
    layer.build((B, T, *size, I))
    layer.set_weights([0.5 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    kernel, recurrent_kernel, *bias = layer.get_weights()
    weights = [from_keras_kernel(kernel), from_keras_kernel(recurrent_kernel), bias[0] if bias else None]
    return layer, weights


def compare(cell, layer, weights, arrays, options, tolerance=1e-11, **call):
    forward, backward = cell
    x, h_0, c_0, *cotangents = arrays
    expected, expected_gradients = run_keras(layer, x, h_0, c_0, cotangents, **call)
    *results, saved = forward(x, *weights, None, h_0, c_0, **options)
    for r, e in zip(results, expected, strict=True):
        np.testing.assert_allclose(r, e, rtol=1e-11, atol=1e-12)
    gradients = backward(saved, *cotangents)
    assert set(gradients) == set(expected_gradients)
    for name, e in expected_gradients.items():
        np.testing.assert_allclose(gradients[name], e, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", LAYERS)
def test_conv_lstm_2d(cell, name):
    size, state, arguments, options = LAYERS[name]
    rng = np.random.default_rng(1)
    layer, weights = build(rng, size, **arguments)
    shapes = [(T, B, I, *size), *[(B, C, *state)] * 2, (T, B, C, *state), *[(B, C, *state)] * 2]
    # The derivative of torch's hardsigmoid is a float32's 1/6, in float64 too
    tolerance = 1e-6 if name == "hard sigmoid" else 1e-11
    compare(cell, layer, weights, [1.5 * rng.standard_normal(s) for s in shapes], options, tolerance)


def test_recurrent_dropout(cell):
    """Keras draws a mask for each gate; four times the same one must do what fusecell's single mask does."""
    rng = np.random.default_rng(2)
    layer, weights = build(rng, (5, 4), kernel_size=3, recurrent_dropout=0.5)
    mask = rng.integers(0, 2, (B, C, 5, 4)) * 2.0
    layer.cell._create_dropout_mask = lambda step_input, rate: [torch.tensor(channels_last(mask).copy())] * 4
    shapes = [(T, B, I, 5, 4), *[(B, C, 5, 4)] * 2, (T, B, C, 5, 4), *[(B, C, 5, 4)] * 2]
    arrays = [rng.standard_normal(s) for s in shapes]
    compare(cell, layer, weights, arrays, {"dropout_mask": mask}, training=True)
