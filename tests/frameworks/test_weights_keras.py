"""fusecell.weights against Keras 3 on its torch backend: layers of all kinds, files, and the way back."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("torch")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "torch":
    pytest.skip("these tests run Keras on torch", allow_module_level=True)
import torch  # noqa: E402

from fusecell import ops, weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")

T, B, CIN, C, H, W = 3, 2, 3, 2, 5, 6

# name: (Keras's arguments, ours)
LAYERS = {
    "odd": ({"kernel_size": (3, 5), "padding": "same"}, {"padding": "same"}),
    "even": ({"kernel_size": (2, 4), "padding": "same"}, {"padding": "same"}),
    "default": ({"kernel_size": (2, 3)}, {}),
    "strides": (
        {"kernel_size": 3, "padding": "same", "strides": (2, 3), "activation": "relu"},
        {"padding": "same", "stride": (2, 3), "activation": "relu"},
    ),
    "hard sigmoid": (
        {"kernel_size": 3, "dilation_rate": 2, "recurrent_activation": "hard_sigmoid"},
        {"dilation": 2, "recurrent_activation": "hard_sigmoid"},
    ),
    "no bias": ({"kernel_size": 3, "use_bias": False}, {}),
}


def build(rng, **arguments):
    layer = keras.layers.ConvLSTM2D(C, return_sequences=True, return_state=True, dtype="float64", **arguments)
    layer.build((B, T, H, W, CIN))
    layer.set_weights([0.5 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    return layer


def run(layer, x, h_0, c_0):
    """Keras's y, h_n and c_n in fusecell's layout, [T, B, C, H, W] and [B, C, H, W]."""
    sequence = torch.tensor(np.ascontiguousarray(np.moveaxis(np.swapaxes(x, 0, 1), 2, -1)))
    state = [torch.tensor(np.ascontiguousarray(np.moveaxis(a, 1, -1))) for a in (h_0, c_0)]
    y, *final = [np.moveaxis(a.detach().numpy(), -1, -3) for a in layer(sequence, initial_state=state)]
    return [np.swapaxes(y, 0, 1), *final]


def arrays(rng, layer):
    _, rows, columns, _ = layer.compute_output_shape((B, T, H, W, CIN))[1]
    return [rng.standard_normal(s) for s in ((T, B, CIN, H, W), *[(B, C, rows, columns)] * 2)]


def compare(layer, cell, x, h_0, c_0):
    expected = run(layer, x, h_0, c_0)
    for found, e in zip(ops.conv_lstm_forward(x, **cell.arguments(), h_0=h_0, c_0=c_0)[:3], expected, strict=True):
        np.testing.assert_allclose(found, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_into_fusecell_and_back(name, rng):
    arguments, options = LAYERS[name]
    layer = build(rng, **arguments)
    [cell] = weights.load(layer.get_weights(), "keras", **options)
    compare(layer, cell, *arrays(rng, layer))
    back = weights.dump(cell, "keras")
    for found, own in zip(back.values(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("name", LAYERS)
def test_into_keras(name, rng):
    arguments, options = LAYERS[name]
    layer = build(rng, **arguments)
    kernel = layer.kernel_size
    cell = weights.ConvLSTMWeights(
        0.5 * rng.standard_normal((4 * C, CIN, *kernel)),
        0.5 * rng.standard_normal((4 * C, C, *kernel)),
        rng.standard_normal(4 * C) if layer.use_bias else None,
        options={"padding": "valid", **options},
    )
    layer.set_weights(list(weights.dump(cell, "keras").values()))
    compare(layer, cell, *arrays(rng, layer))


def test_hard_sigmoid_of_keras_2(rng):
    """What tf_keras computes by default, in a Keras 3 layer that is given its function."""
    hard = lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)  # noqa: E731
    layer = build(rng, kernel_size=3, recurrent_activation=hard)
    [cell] = weights.load(layer.get_weights(), "keras2")
    assert cell.options == {"padding": "valid", "recurrent_activation": "hard_sigmoid_keras2"}
    compare(layer, cell, *arrays(rng, layer))


def test_saved_file(rng, tmp_path):
    """A model's .weights.h5, straight from h5py: nested groups, numbered arrays."""
    h5py = pytest.importorskip("h5py")
    stack = [
        keras.layers.ConvLSTM2D(C, 3, padding="same", return_sequences=True, recurrent_dropout=0.5, dtype="float64")
        for _ in range(3)
    ]
    others = [keras.layers.BatchNormalization(dtype="float64"), keras.layers.Conv3D(1, 1, dtype="float64")]
    model = keras.Sequential([keras.layers.Input((T, H, W, CIN)), *stack, *others])
    for layer in stack:
        layer.set_weights([rng.standard_normal(w.shape) for w in layer.get_weights()])
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    with h5py.File(path) as file:
        cells = weights.load(file, "keras", prefix="layers/conv_lstm2d", padding="same")
    assert [cell.name.removeprefix("layers/conv_lstm2d") for cell in cells] == ["/cell/", "_1/cell/", "_2/cell/"]
    for cell, layer in zip(cells, stack, strict=True):
        for found, own in zip(weights.dump(cell, "keras").values(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(found, own)


def test_variables_by_path(rng):
    """The layer's variables as they are, under the paths that Keras gives them."""
    layer = build(rng, kernel_size=3)
    [cell] = weights.load({variable.path: variable for variable in layer.weights}, "keras")
    compare(layer, cell, *arrays(rng, layer))


def test_bidirectional(rng):
    layer = keras.layers.Bidirectional(
        keras.layers.ConvLSTM2D(C, 3, padding="same", return_sequences=True, dtype="float64"), dtype="float64"
    )
    layer.build((B, T, H, W, CIN))
    layer.set_weights([0.5 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    given = layer.get_weights()
    cells = weights.load([given[:3], given[3:]], "keras", padding="same")
    x = rng.standard_normal((T, B, CIN, H, W))
    y = [ops.conv_lstm_forward(x, **cell.arguments(), reverse=d == 1)[0] for d, cell in enumerate(cells)]
    sequence = torch.tensor(np.ascontiguousarray(np.moveaxis(np.swapaxes(x, 0, 1), 2, -1)))
    expected = np.swapaxes(np.moveaxis(layer(sequence).detach().numpy(), -1, -3), 0, 1)
    np.testing.assert_allclose(np.concatenate(y, axis=2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 4])
def test_one_dimension(size, rng):
    """ConvLSTM1D is fusecell on images with H = 1."""
    layer = keras.layers.ConvLSTM1D(C, size, padding="same", return_sequences=True, dtype="float64")
    layer.build((B, T, W, CIN))
    layer.set_weights([0.5 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    [cell] = weights.load(layer.get_weights(), "keras", padding="same")
    x = rng.standard_normal((T, B, CIN, 1, W))
    y = ops.conv_lstm_forward(x, **cell.arguments())[0]
    sequence = torch.tensor(np.ascontiguousarray(np.moveaxis(np.swapaxes(x[..., 0, :], 0, 1), 2, -1)))
    expected = np.swapaxes(np.moveaxis(layer(sequence).detach().numpy(), -1, -2), 0, 1)
    np.testing.assert_allclose(y[..., 0, :], expected, rtol=0, atol=1e-12)
    for found, own in zip(weights.dump(cell, "keras", dims=1).values(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(found, own)
