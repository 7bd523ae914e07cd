"""The ConvLSTMs that are compared outside PyTorch: flax, Keras on JAX and on TensorFlow, and fusecell's NumPy ops.

Each has the weights and the sequence of a `Numbers`, laid out beforehand as it likes them best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Shape

from fusecell import ops, weights

WEIGHTS = ("weight_ih", "weight_hh", "bias")


@dataclass
class Numbers:
    """A shape's weights, sequence x [T, B, I, H, W] and upstream gradient dy [T, B, C, H, W], float32; and the truth.

    expected: y, dx, dweight_ih, dweight_hh, dbias in float64.
    """

    shape: Shape
    given: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        expected = {f"expected {name}": array for name, array in self.expected.items()}
        np.savez(path, shape=list(vars(self.shape).values()), **self.given, **expected)

    @classmethod
    def read(cls, path: Path) -> Numbers:
        with np.load(path) as file:
            arrays = dict(file)
        shape = Shape(*arrays.pop("shape").tolist())
        expected = {name.split()[1]: arrays.pop(name) for name in list(arrays) if name.startswith("expected ")}
        return cls(shape, arrays, expected)

    def weights(self, convention: str) -> dict[str, Any]:
        return weights.dump(weights.ConvLSTMWeights(*(self.given[name] for name in WEIGHTS)), convention)


@dataclass
class ArrayPeer:
    """A network that keeps the gradients of its last step, as those of PyTorch do."""

    train: Callable[[], tuple[Any, Any]]
    """y and the gradients."""
    infer: Callable[[], Any]
    """y."""
    named: Callable[[Any, Any], dict[str, Any]]
    """Of both: all results in fusecell's layout."""
    gradients: Any = None

    def step(self) -> Any:
        y, self.gradients = self.train()
        return y

    def forget(self) -> None:
        self.gradients = None

    def results(self, y: Any) -> dict[str, Any]:
        return self.named(y, self.gradients)


def ops_peer(numbers: Numbers, **options: Any) -> ArrayPeer:
    """fusecell.ops on NumPy arrays."""
    x, dy, *given = (numbers.given[name] for name in ("x", "dy", *WEIGHTS))

    def train() -> tuple[Any, dict[str, Any]]:
        y, _, _, saved = ops.conv_lstm_forward(x, *given, **options)
        return y, ops.conv_lstm_backward(saved, dy, needs=("x", *WEIGHTS))

    def infer() -> Any:
        return ops.conv_lstm_forward(x, *given, **{**options, "save": None})[0]

    return ArrayPeer(train, infer, lambda y, gradients: {"y": y, **{f"d{name}": d for name, d in gradients.items()}})


# ------------------------------------------------------------------------------------------------------ flax and Keras
def flax_peer(numbers: Numbers) -> ArrayPeer:
    """nn.RNN of nn.ConvLSTMCell under jax.jit."""
    import flax.linen as nn
    import jax

    shape = numbers.shape
    net = nn.RNN(nn.ConvLSTMCell(shape.C, (shape.k, shape.k)), time_major=True)
    parameters = jax.device_put({"cell": numbers.weights("flax")})
    x, dy = (jax.device_put(np.moveaxis(numbers.given[name], 2, -1)) for name in ("x", "dy"))
    train, infer = _jitted(lambda parameters, x: net.apply({"params": parameters}, x))

    def named(y: Any, made: Any) -> dict[str, Any]:
        gradients, dx = made
        ih, hh = gradients["cell"]["ih"], gradients["cell"]["hh"]
        kernels, bias = (from_hwio(part["kernel"]) for part in (ih, hh)), np.asarray(ih["bias"])
        # Its order of the gates is i, g, f, o.
        found = [d.reshape(4, shape.C, *d.shape[1:])[[0, 2, 1, 3]].reshape(d.shape) for d in (*kernels, bias)]
        gradients_of_weights = dict(zip(("dweight_ih", "dweight_hh", "dbias"), found, strict=True))
        return {"y": np.moveaxis(y, -1, 2), "dx": np.moveaxis(dx, -1, 2), **gradients_of_weights}

    return ArrayPeer(lambda: train(parameters, x, dy), lambda: infer(parameters, x), named)


def keras_on_jax(numbers: Numbers) -> ArrayPeer:
    layer, x, dy = _keras(numbers, "jax")
    others = [variable.value for variable in layer.non_trainable_variables]
    parameters = [variable.value for variable in layer.trainable_variables]
    train, infer = _jitted(lambda parameters, x: layer.stateless_call(parameters, others, x, training=True)[0])

    def named(y: Any, made: Any) -> dict[str, Any]:
        gradients, dx = made
        return _from_keras(y, dx, *gradients)

    return ArrayPeer(lambda: train(parameters, x, dy), lambda: infer(parameters, x), named)


def keras_on_tensorflow(numbers: Numbers) -> ArrayPeer:
    """Under tf.function."""
    import tensorflow as tf

    layer, x, dy = _keras(numbers, "tensorflow")

    @tf.function
    def train(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], output_gradients=dy)

    infer = tf.function(lambda x: layer(x, training=False))
    return ArrayPeer(lambda: train(x, dy), lambda: infer(x), lambda y, gradients: _from_keras(y, *gradients))


def _jitted(forward: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of forward(parameters, x): (y, (gradients of the parameters, dx)) of (parameters, x, dy), and y. Both wait."""
    import jax

    @jax.jit
    def train(parameters: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(forward, parameters, x)
        return y, pull(dy)

    infer = jax.jit(forward)
    return lambda *given: jax.block_until_ready(train(*given)), lambda *given: jax.block_until_ready(infer(*given))


def _keras(numbers: Numbers, backend: str) -> tuple[Any, Any, Any]:
    """A layer with the weights, x and dy; channels last, the one order in which TensorFlow has it on a CPU."""
    import keras

    if keras.backend.backend() != backend:
        raise RuntimeError(f"KERAS_BACKEND: expected {backend}, got {keras.backend.backend()}")
    shape = numbers.shape
    layer = keras.layers.ConvLSTM2D(shape.C, shape.k, padding="same", return_sequences=True)
    x, dy = (keras.ops.convert_to_tensor(numbers.given[name].transpose(1, 0, 3, 4, 2)) for name in ("x", "dy"))
    layer.build(x.shape)
    layer.set_weights(list(numbers.weights("keras").values()))
    return layer, x, dy


def _from_keras(y: Any, dx: Any, dkernel: Any, drecurrent: Any, dbias: Any) -> dict[str, Any]:
    """All of it batch first, channels last; gates in fusecell's order."""
    y, dx = (np.transpose(np.asarray(array), (1, 0, 4, 2, 3)) for array in (y, dx))
    return {"y": y, "dx": dx, "dweight_ih": from_hwio(dkernel), "dweight_hh": from_hwio(drecurrent), "dbias": dbias}


def from_hwio(kernel: Any) -> np.ndarray:
    return np.asarray(kernel).transpose(3, 2, 0, 1)
