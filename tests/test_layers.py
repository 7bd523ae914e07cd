"""Layers: gradients against finite differences, stacks against the reference, state, masks, initial values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fusecell import checkpoint, ops, reference
from fusecell.initializers import glorot_uniform, gram_schmidt, orthogonal
from fusecell.layers import Activation, BatchNorm, Conv2D, ConvLSTM2D, Dense, Layer, Sequential, SimpleRNN, bounds

Array = np.ndarray[Any, Any]
Loss = Callable[[], float]

T, B, CIN, C, H, W = 4, 3, 2, 3, 5, 4


def directional(loss: Loss, array: Array, direction: Array, step: float = 1e-5) -> float:
    """Central difference of the loss along a direction in `array`, which is left as it was."""
    before = array.copy()
    array[...] = before + step * direction
    high = loss()
    array[...] = before - step * direction
    low = loss()
    array[...] = before
    return (high - low) / (2 * step)


def assert_gradients(
    loss: Loss, arrays: dict[str, Array], gradients: dict[str, Array], rng: np.random.Generator
) -> None:
    """Each gradient against the loss's slope along two random directions."""
    assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, name
        for _ in range(2):
            direction = rng.standard_normal(array.shape)
            slope = directional(loss, array, direction)
            expected = float(np.sum(gradients[name] * direction))
            assert slope == pytest.approx(expected, rel=2e-6, abs=1e-8), name


def check_layer(layer: Layer, x: Array, rng: np.random.Generator, seeded: np.random.Generator) -> None:
    """Finite differences for the input and every parameter, `seeded` (the layer's own) rewound for every forward."""
    state = seeded.bit_generator.state

    def forward() -> Array:
        seeded.bit_generator.state = state
        return layer.forward(x)

    weight = rng.standard_normal(forward().shape)
    dx = layer.backward(weight)
    arrays = {"x": x, **layer.parameters()}
    assert_gradients(lambda: float(np.sum(forward() * weight)), arrays, {"x": dx, **layer.gradients()}, rng)


def spread(layer: Layer, rng: np.random.Generator) -> None:
    """Biases and peepholes away from their constants, so that no gradient is checked at a special place."""
    for array in layer.parameters().values():
        array += 0.3 * rng.standard_normal(array.shape)


# ------------------------------------------------------------------------------------------------------- ConvLSTM2D

PIXEL = {"image_size": (H, W)}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": None},
    "bias per pixel": {"bias": "pixel", **PIXEL},
    "peephole per channel": {"peephole": "channel"},
    "peephole per pixel": {"peephole": "pixel", "bias": "pixel", **PIXEL},
    "stacked": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "stacked bidirectional": {"num_layers": 2, "bidirectional": True, "peephole": "channel"},
    "last output": {"return_sequences": False},
    "last output, both ways": {"return_sequences": False, "bidirectional": True, "num_layers": 2},
    "even and odd kernels": {"kernel_size": (2, 3), "input_kernel_size": (4, 1), "num_layers": 2},
    "stride": {"stride": 2, "num_layers": 2},
    "dilation and padding": {"dilation": (1, 2), "padding": ((2, 0), (1, 2)), "num_layers": 2},
    "valid": {"padding": "valid"},
    "hard sigmoid": {"recurrent_activation": "hard_sigmoid"},
    "hard sigmoid of Keras 2": {"recurrent_activation": "hard_sigmoid_keras2"},
    "leaky relu": {"activation": "leaky_relu", "slope": 0.2},
    "relu": {"activation": "relu"},
    "hard tanh": {"activation": "hard_tanh"},
    "softsign": {"activation": "softsign"},
    "identity": {"activation": "identity"},
    "dropout": {"dropout": 0.4, "num_layers": 2, "bidirectional": True},
    "recurrent dropout": {"recurrent_dropout": 0.4, "num_layers": 2},
    "zoneout": {"zoneout": (0.3, 0.5), "bidirectional": True},
    "everything that drops": {"dropout": 0.2, "recurrent_dropout": 0.3, "zoneout": (0.2, 0.1), "num_layers": 2},
    "recompute": {"recompute": True, "num_layers": 2, "peephole": "channel"},
}


def build(seed: int = 5, dtype: Any = np.float64, **options: Any) -> tuple[ConvLSTM2D, np.random.Generator]:
    own = np.random.default_rng(seed)
    return ConvLSTM2D(CIN, C, options.pop("kernel_size", 3), rng=own, dtype=dtype, **options), own


@pytest.mark.parametrize("name", CASES)
def test_conv_lstm_gradients(name: str, rng: np.random.Generator) -> None:
    layer, own = build(**CASES[name])
    spread(layer, rng)
    check_layer(layer, rng.standard_normal((T, B, CIN, H, W)), rng, own)


@pytest.mark.parametrize("name", ["zoneout", "everything that drops"])
def test_conv_lstm_gradients_in_eval_mode(name: str, rng: np.random.Generator) -> None:
    layer, own = build(**CASES[name])
    check_layer(layer.eval(), rng.standard_normal((T, B, CIN, H, W)), rng, own)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_conv_lstm_gradients_with_state_and_lengths(
    bidirectional: bool, return_sequences: bool, rng: np.random.Generator
) -> None:
    layer, _ = build(num_layers=2, bidirectional=bidirectional, return_sequences=return_sequences)
    cells = layer.num_layers * layer.num_directions
    x = rng.standard_normal((T, B, CIN, H, W))
    lengths = np.array([T, 0, 2])
    state = [tuple(rng.standard_normal((2, B, C, H, W))) for _ in range(cells)]
    weight = rng.standard_normal(layer.forward(x, state, lengths).shape)
    dfinal = [tuple(rng.standard_normal((2, B, C, H, W))) for _ in range(cells)]

    def loss() -> float:
        y = layer.forward(x, state, lengths)
        final = sum(np.sum(a * da) for s, ds in zip(layer.final_state, dfinal, strict=True) for a, da in zip(s, ds))  # noqa: B905
        return float(np.sum(y * weight) + final)

    loss()
    arrays, gradients = {"x": x}, {"x": layer.backward(weight, dfinal)}
    for k in range(cells):
        arrays.update({f"h{k}": state[k][0], f"c{k}": state[k][1]})
        gradients.update({f"h{k}": layer.dstate[k][0], f"c{k}": layer.dstate[k][1]})
    arrays.update(layer.parameters())
    gradients.update(layer.gradients())
    assert_gradients(loss, arrays, gradients, rng)
    assert not gradients["x"][:, 1].any(), "a sample of length 0 has no input"


def by_reference(layer: ConvLSTM2D, x: Array, **options: Any) -> tuple[Array, list[tuple[Array, Array]]]:
    """The stack written out, each cell by the reference."""
    own, final = layer.parameters(), []
    for l in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: layer.num_directions]:
            weights = [own.get(f"{w}_l{l}{suffix}") for w in ("weight_ih", "weight_hh", "bias", "peephole")]
            y, h, c, *_ = reference.conv_lstm_forward(x, *weights, reverse=suffix != "", **options)
            outputs.append(y)
            final.append((h, c))
        x = np.concatenate(outputs, axis=2)
    return x, final


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stack_is_the_reference_layer_by_layer(bidirectional: bool, rng: np.random.Generator) -> None:
    layer, _ = build(num_layers=2, bidirectional=bidirectional, peephole="channel")
    spread(layer, rng)
    x, lengths = rng.standard_normal((T, B, CIN, H, W)), np.array([1, T, 3])
    y = layer.forward(x, lengths=lengths)
    expected, final = by_reference(layer, x, lengths=lengths)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    for got, wanted in zip(layer.final_state, final, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_stride_dilation_and_padding_are_the_first_layers_alone(rng: np.random.Generator) -> None:
    options = {"stride": 2, "padding": ((2, 0), (1, 2))}
    layer, _ = build(num_layers=2, **options)
    x = rng.standard_normal((T, B, CIN, H, W))
    assert layer.forward(x).shape == (T, B, C, 3, 3), "(5 + 2 - 3) / 2 + 1 and (4 + 3 - 3) / 2 + 1"
    own = layer.parameters()
    below, *_ = reference.conv_lstm_forward(x, own["weight_ih_l0"], own["weight_hh_l0"], own["bias_l0"], **options)
    above, *_ = reference.conv_lstm_forward(below, own["weight_ih_l1"], own["weight_hh_l1"], own["bias_l1"])
    np.testing.assert_allclose(layer.forward(x), above, rtol=1e-10, atol=1e-12)


def test_last_output_is_the_final_state_of_the_top_layer(rng: np.random.Generator) -> None:
    layer, _ = build(num_layers=2, bidirectional=True, return_sequences=False)
    last = layer.forward(rng.standard_normal((T, B, CIN, H, W)))
    assert last.shape == (B, 2 * C, H, W)
    np.testing.assert_array_equal(last, np.concatenate([h for h, _ in layer.final_state[-2:]], axis=1))


def test_stateful_halves_are_the_whole(rng: np.random.Generator) -> None:
    options = {"num_layers": 2, "dtype": np.float32}
    whole, _ = build(**options)
    halves, _ = build(stateful=True, **options)
    x = rng.standard_normal((T, B, CIN, H, W)).astype(np.float32)
    expected = whole.forward(x)
    for _ in range(2):
        got = np.concatenate([halves.forward(x[:2]), halves.forward(x[2:])])
        np.testing.assert_array_equal(got, expected)
        halves.reset_state()
    halves.forward(x)
    halves.final_state[0][0][...] = np.nan
    assert np.isfinite(halves.forward(x)).all(), "what is carried is the layer's own"
    with pytest.raises(ValueError, match=r"x: expected batch 3, as before, got 2; or call reset_state\(\)"):
        halves.forward(x[:, :2])


def test_truncation_is_running_in_pieces(rng: np.random.Generator) -> None:
    """Detaching every 3 steps of 7 gives the gradients of three runs that hand their state on as a constant."""
    truncated, _ = build(num_layers=2, truncation=3)
    pieces, _ = build(num_layers=2, stateful=True)
    x = rng.standard_normal((7, B, CIN, H, W))
    dy = rng.standard_normal(truncated.forward(x).shape)
    dx = truncated.backward(dy)
    sums = {name: np.zeros_like(array) for name, array in pieces.parameters().items()}
    for a, b in ((0, 3), (3, 6), (6, 7)):
        pieces.forward(x[a:b])
        np.testing.assert_allclose(pieces.backward(dy[a:b]), dx[a:b], rtol=1e-10, atol=1e-12)
        for name, gradient in pieces.gradients().items():
            sums[name] += gradient
    for name, gradient in truncated.gradients().items():
        np.testing.assert_allclose(sums[name], gradient, rtol=1e-9, atol=1e-11, err_msg=name)


def test_recompute_gives_the_same_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((T, B, CIN, H, W)).astype(np.float32)
    results = []
    for recompute in (False, True):
        layer, _ = build(recompute=recompute, dtype=np.float32, num_layers=2, bidirectional=True)
        y = layer.forward(x)
        results.append([y, layer.backward(np.cos(y)), *layer.gradients().values()])
    for kept, again in zip(*results, strict=True):
        np.testing.assert_array_equal(kept, again)


def test_backward_twice_gives_the_same_bits(rng: np.random.Generator) -> None:
    layer, _ = build(num_layers=2, dtype=np.float32)
    y = layer.forward(rng.standard_normal((T, B, CIN, H, W)).astype(np.float32))
    first, kept = layer.backward(y), layer.gradients()
    np.testing.assert_array_equal(layer.backward(y), first)
    for name, gradient in layer.gradients().items():
        np.testing.assert_array_equal(gradient, kept[name])


DROPPING = {"dropout": 0.5, "recurrent_dropout": 0.5, "zoneout": (0.5, 0.5)}


@pytest.mark.parametrize("name", DROPPING)
def test_masks_come_from_the_generator_given(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((T, B, CIN, H, W))
    layer, _ = build(**{name: DROPPING[name]})
    plain, _ = build()
    first, second = layer.forward(x), layer.forward(x)
    assert not np.array_equal(first, second), "each forward draws anew"
    again, _ = build(**{name: DROPPING[name]})
    np.testing.assert_array_equal(again.forward(x), first)
    layer.eval()
    np.testing.assert_array_equal(layer.forward(x), layer.forward(x))
    if name != "zoneout":  # whose evaluation mixes old and new states
        np.testing.assert_array_equal(layer.forward(x), plain.forward(x))
    before = again._rng.bit_generator.state
    again.eval().forward(x)
    assert again._rng.bit_generator.state == before, "evaluation draws nothing"


def test_input_dropout_is_one_inverted_mask_for_all_steps() -> None:
    layer, own = build(dropout=0.25, activation="identity", dtype=np.float32)
    x = np.ones((T, B, CIN, H, W), np.float32)
    dx = layer.backward(np.ones_like(layer.forward(x)))
    gone = dx == 0.0
    assert (gone == gone[0]).all()
    assert gone.any()
    assert not gone.all()
    copy = np.random.default_rng(5)
    plain = ConvLSTM2D(CIN, C, 3, activation="identity", rng=copy)
    mask = (1 - gone[:1]).astype(np.float32) / np.float32(0.75)
    own.bit_generator.state = copy.bit_generator.state
    np.testing.assert_allclose(plain.forward(x * mask), layer.forward(x), rtol=1e-5, atol=1e-6)


def test_names_and_shapes_of_parameters() -> None:
    layer, _ = build(num_layers=2, bidirectional=True, bias="pixel", peephole="pixel", **PIXEL)
    shapes = {name: array.shape for name, array in layer.parameters().items()}
    assert list(shapes) == [
        f"{w}_l{l}{suffix}"
        for l in (0, 1)
        for suffix in ("", "_reverse")
        for w in ("weight_ih", "weight_hh", "bias", "peephole")
    ]
    assert shapes["weight_ih_l0_reverse"] == (4 * C, CIN, 3, 3)
    assert shapes["weight_ih_l1"] == (4 * C, 2 * C, 3, 3)
    assert shapes["weight_hh_l1_reverse"] == (4 * C, C, 3, 3)
    assert shapes["bias_l0"] == (4 * C, H, W)
    assert shapes["peephole_l1"] == (3 * C, H, W)


def test_initial_values() -> None:
    layer, _ = build(num_layers=2, peephole="channel", input_kernel_size=5)
    own = layer.parameters()
    for block in np.split(own["weight_hh_l1"], 4):
        rows = block.reshape(C, -1)
        np.testing.assert_allclose(rows @ rows.T, np.eye(C), atol=1e-12)
    limit = np.sqrt(6 / ((CIN + C) * 25))
    assert 0.9 * limit < np.abs(own["weight_ih_l0"]).max() <= limit
    np.testing.assert_array_equal(own["bias_l0"], np.repeat([0.0, 1.0, 0.0, 0.0], C))
    assert not own["peephole_l0"].any()
    single, _ = build(num_layers=2, peephole="channel", input_kernel_size=5, dtype=np.float32)
    for name, array in single.parameters().items():
        np.testing.assert_array_equal(array, own[name].astype(np.float32))


def test_initialisers(rng: np.random.Generator) -> None:
    tall = orthogonal(rng, 7, 4, gain=2.0, dtype=np.float64)
    np.testing.assert_allclose(tall.T @ tall, 4.0 * np.eye(4), atol=1e-12)
    uniform = glorot_uniform(rng, (100, 100), 100, 100, np.float64)
    assert np.abs(uniform).max() <= np.sqrt(6 / 200)
    assert abs(uniform.std() - np.sqrt(2 / 200)) < 2e-3
    nearly = np.ones((2, 3)) + 1e-9 * rng.standard_normal((2, 3))
    basis = gram_schmidt(nearly)
    assert abs(float(np.sum(basis[0] * basis[1]))) < 1e-12
    with pytest.raises(ValueError, match="row 1 depends on the rows before it"):
        gram_schmidt(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="fan_in"):
        glorot_uniform(rng, (0,), 0, 0)
    with pytest.raises(ValueError, match="at least 1 row"):
        orthogonal(rng, 0, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bias": "image"}, ValueError, 'bias: expected "channel", "pixel" or None, got \'image\''),
        ({"peephole": "pixel"}, ValueError, "image_size: expected the"),
        ({"dropout": 1.0}, ValueError, "dropout: expected 0 <= rate < 1, got 1.0"),
        ({"zoneout": (0.0, -0.1)}, ValueError, r"zoneout\[1\]"),
        ({"num_layers": 0}, ValueError, "num_layers: expected at least 1, got 0"),
        ({"num_layers": 1.5}, TypeError, "num_layers: expected an integer"),
        ({"kernel_size": (3, 3, 3)}, TypeError, "kernel_size: expected an integer or two"),
        ({"kernel_size": 0}, ValueError, "kernel_size: expected at least 1"),
        ({"kernel_size": 2.5}, TypeError, "kernel_size: expected an integer"),
        ({"dtype": np.int32}, TypeError, "dtype: expected float32 or float64, got int32"),
    ],
)
def test_conv_lstm_refuses(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(**options)


def test_conv_lstm_refuses_what_does_not_fit() -> None:
    layer, _ = build(num_layers=2)
    x = np.zeros((T, B, CIN, H, W))
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(x)
    with pytest.raises(RuntimeError, match="call backward first"):
        layer.gradients()
    with pytest.raises(ValueError, match="state: expected 2 pairs"):
        layer.forward(x, state=[None])
    with pytest.raises((TypeError, ValueError), match="x"):
        layer.forward(x.astype(np.float32))
    with pytest.raises(ValueError, match="lengths"):
        layer.forward(x, lengths=np.array([T + 1, 0, 0]))
    y = layer.forward(x)
    with pytest.raises(ValueError, match="dy: expected"):
        layer.backward(y[:, :, :1])
    with pytest.raises(ValueError, match="dfinal_state: expected 2 pairs"):
        layer.backward(y, [None])


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_conv_lstm_of_nothing(shape: tuple[int, int]) -> None:
    layer, _ = build(num_layers=2, bidirectional=True)
    x = np.zeros((*shape, CIN, H, W))
    y = layer.forward(x)
    assert y.shape == (*shape, 2 * C, H, W)
    assert layer.backward(y).shape == x.shape
    assert all(np.all(gradient == 0.0) for gradient in layer.gradients().values())


# ------------------------------------------------------------------------------------------------- the other layers


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2, "padding": "valid", "kernel_size": 2}],
)
def test_conv2d_gradients(lead: tuple[int, ...], options: dict[str, Any], rng: np.random.Generator) -> None:
    chosen = {"kernel_size": (3, 2), **options}
    layer = Conv2D(CIN, C, rng=rng, dtype=np.float64, **chosen)
    check_layer(layer, rng.standard_normal((*lead, CIN, H, W)), rng, rng)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_gradients(lead: tuple[int, ...], bias: bool, rng: np.random.Generator) -> None:
    layer = Dense(4, 3, bias=bias, rng=rng, dtype=np.float64)
    spread(layer, rng)
    x = rng.standard_normal((*lead, 4))
    check_layer(layer, x, rng, rng)
    expected = x @ layer.parameters()["weight"].T + layer.parameters().get("bias", 0.0)
    np.testing.assert_allclose(layer.forward(x), expected, rtol=1e-12)


def test_dense_runs_its_products_on_one_thread(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    plain = np.matmul

    def counted(*args: Any) -> Array:
        seen.append(threads())
        return plain(*args)

    layer = Dense(64, 64, rng=rng)
    x = rng.standard_normal((512, 64)).astype(np.float32)
    results = []
    for limit in (1, 2):
        with threadpool_limits(limit), monkeypatch.context() as patch:
            patch.setattr(np, "matmul", counted)
            before = threads()
            y = layer.forward(x)
            results.append((y, layer.backward(y), layer.gradients()["weight"]))
            assert threads() == before, "the caller's number is put back"
    assert seen == [{1}] * 6
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


NAMES = [
    "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "hard_sigmoid", "hard_sigmoid_keras2", "hard_tanh",
    "softsign", "identity",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_activation_gradients(name: str, rng: np.random.Generator) -> None:
    layer = Activation(name, slope=0.3, alpha=0.7)
    x = rng.standard_normal((3, 4, 5))
    check_layer(layer, x, rng, rng)
    assert layer.parameters() == layer.gradients() == {}


def test_activation_options_reach_the_op() -> None:
    x, dy = np.array([-2.0, 0.0]), np.ones(2)
    layer = Activation("relu", at_zero=0.5)
    layer.forward(x)
    np.testing.assert_array_equal(layer.backward(dy), [0.0, 0.5])
    assert Activation("leaky_relu", slope=0.3).forward(x)[0] == pytest.approx(-0.6)


def test_sequential(rng: np.random.Generator) -> None:
    own = np.random.default_rng(3)
    lstm = ConvLSTM2D(CIN, C, 3, dropout=0.3, rng=own, dtype=np.float64)
    net = Sequential(
        [lstm, Conv2D(C, 2, 1, rng=own, dtype=np.float64), Activation("tanh"), Dense(W, 2, rng=own, dtype=np.float64)]
    )
    check_layer(net, rng.standard_normal((T, B, CIN, H, W)), rng, own)
    assert "0.weight_hh_l0" in net.parameters()
    assert "3.bias" in net.parameters()
    assert net.parameters()["1.weight"] is net.layers[1].parameters()["weight"], "live arrays"
    net.eval()
    assert not lstm.training
    net.train()
    assert lstm.training


@pytest.mark.parametrize(
    "make", [lambda r: Conv2D(1, 1, 1, rng=r), lambda r: Dense(1, 1, rng=r), lambda r: Activation("relu")]
)
def test_backward_needs_a_forward(make: Callable[[np.random.Generator], Layer], rng: np.random.Generator) -> None:
    with pytest.raises(RuntimeError, match="call forward first"):
        make(rng).backward(np.zeros((1, 1, 1), np.float32))


def test_other_layers_refuse_what_does_not_fit(rng: np.random.Generator) -> None:
    dense, conv = Dense(4, 3, rng=rng), Conv2D(2, 3, 3, rng=rng)
    with pytest.raises(ValueError, match=r"x: expected \[\.\.\., 4\], got \[2, 3\]"):
        dense.forward(np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        dense.forward(np.zeros((2, 4)))
    dense.forward(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"dy: expected \(2, 3\), got \(2, 4\)"):
        dense.backward(np.zeros((2, 4), np.float32))
    with pytest.raises(TypeError, match="dy: expected float32, got float64"):
        dense.backward(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"x: expected \[\.\.\., 2, H, W\], got \[3, 5, 5\]"):
        conv.forward(np.zeros((3, 5, 5), np.float32))
    with pytest.raises(ValueError, match="out_channels: expected at least 1"):
        Conv2D(1, 0, 3, rng=rng)
    with pytest.raises(ValueError, match="swish"):
        Activation("swish").forward(np.zeros(1))


def test_load_parameters_is_all_or_nothing(rng: np.random.Generator) -> None:
    layer, other = Dense(4, 3, rng=rng), Dense(4, 3, rng=rng)
    before = {name: array.copy() for name, array in layer.parameters().items()}
    good = other.parameters()
    for bad, error in (
        ({"weight": good["weight"]}, KeyError),
        ({**good, "more": good["bias"]}, KeyError),
        ({**good, "bias": np.zeros(4, np.float32)}, ValueError),
        ({**good, "bias": np.zeros(3)}, TypeError),
    ):
        with pytest.raises(error):
            layer.load_parameters(bad)
        for name, array in layer.parameters().items():
            np.testing.assert_array_equal(array, before[name])
    layer.load_parameters(good)
    np.testing.assert_array_equal(layer.parameters()["weight"], good["weight"])


def test_layers_use_no_global_random_state(rng: np.random.Generator) -> None:
    legacy = np.random.get_state()  # noqa: NPY002
    layer, _ = build(**CASES["everything that drops"])
    layer.forward(rng.standard_normal((T, B, CIN, H, W)))
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(legacy[1], after[1])


def test_input_dropout_stream_is_not_the_cells() -> None:
    """The input's mask and the cell's recurrent mask of one seed differ."""
    masks = [ops.bernoulli((64,), 0.5, seed=1, stream=stream) for stream in range(4)]
    assert len({mask.tobytes() for mask in masks}) == 4


# ---------------------------------------------------------------------------------------------------- SimpleRNN


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"return_sequences": False}])
def test_simple_rnn_gradients(activation: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    layer = SimpleRNN(CIN, C, activation=activation, rng=rng, dtype=np.float64, **options)
    spread(layer, rng)
    check_layer(layer, rng.standard_normal((T, B, CIN)), rng, rng)


@pytest.mark.parametrize("return_sequences", [False, True])
def test_simple_rnn_gradients_with_state(return_sequences: bool, rng: np.random.Generator) -> None:
    layer = SimpleRNN(CIN, C, return_sequences=return_sequences, rng=rng, dtype=np.float64)
    x, state, dfinal = rng.standard_normal((T, B, CIN)), rng.standard_normal((B, C)), rng.standard_normal((B, C))
    weight = rng.standard_normal(layer.forward(x, state).shape)

    def loss() -> float:
        return float(np.sum(layer.forward(x, state) * weight) + np.sum(layer.final_state * dfinal))

    loss()
    dx = layer.backward(weight, dfinal)
    arrays = {"x": x, "state": state, **layer.parameters()}
    assert_gradients(loss, arrays, {"x": dx, "state": layer.dstate, **layer.gradients()}, rng)
    np.testing.assert_array_equal(layer.backward(None, dfinal), layer.backward(np.zeros_like(weight), dfinal))


def test_simple_rnn_is_the_reference(rng: np.random.Generator) -> None:
    layer = SimpleRNN(CIN, C, activation="sigmoid", rng=rng, dtype=np.float64)
    spread(layer, rng)
    x, state = rng.standard_normal((T, B, CIN)), rng.standard_normal((B, C))
    y, h_n, _ = reference.rnn_forward(x, *layer.parameters().values(), state, activation="sigmoid")
    np.testing.assert_allclose(layer.forward(x, state), y, rtol=1e-12)
    np.testing.assert_allclose(layer.final_state, h_n, rtol=1e-12)


def test_simple_rnn_initial_values_and_names(rng: np.random.Generator) -> None:
    own = SimpleRNN(50, 40, rng=rng, dtype=np.float64).parameters()
    assert {name: array.shape for name, array in own.items()} == {
        "weight_ih_l0": (40, 50), "weight_hh_l0": (40, 40), "bias_l0": (40,)
    }  # fmt: skip
    limit = np.sqrt(6 / 90)
    assert 0.95 * limit < np.abs(own["weight_ih_l0"]).max() <= limit
    np.testing.assert_allclose(own["weight_hh_l0"] @ own["weight_hh_l0"].T, np.eye(40), atol=1e-12)
    assert not own["bias_l0"].any()


def test_simple_rnn_watched(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    original = ops.rnn_backward

    def counted(*arguments: Any, statistics: bool) -> dict[str, Array]:
        asked.append(statistics)
        return original(*arguments, statistics=statistics)

    monkeypatch.setattr(ops, "rnn_backward", counted)
    layer = SimpleRNN(CIN, C, return_sequences=False, rng=rng)
    x = rng.standard_normal((T, B, CIN)).astype(np.float32)
    dy = np.ones_like(layer.forward(x))
    dx, gradients = layer.backward(dy), layer.gradients()
    assert layer.step_statistics == {}
    layer.watched = True
    np.testing.assert_array_equal(layer.backward(dy), dx)
    assert layer.gradients().keys() == gradients.keys(), "the statistics are no gradient"
    table = dict(zip(ops.RNN_STEP_STATISTICS, layer.step_statistics["l0"].T, strict=True))
    assert table["count"].tolist() == [B * C] * T
    assert table["dh_squared"][-1] == B * C, "dy of ones reaches the last step as it is"
    layer.watched = False
    layer.backward(dy)
    assert layer.step_statistics == {}
    assert asked == [False, True, False]


def test_simple_rnn_refuses_what_does_not_fit(rng: np.random.Generator) -> None:
    layer = SimpleRNN(CIN, C, return_sequences=False, rng=rng)
    with pytest.raises(RuntimeError, match=r"SimpleRNN\.backward: call forward first"):
        layer.backward(np.zeros((B, C), np.float32))
    x = np.zeros((T, B, CIN), np.float32)
    with pytest.raises(ValueError, match=r"weight_ih: expected \(3, 5\), got \(3, 2\)"):
        layer.forward(np.zeros((T, B, 5), np.float32))
    with pytest.raises(ValueError, match=r"h_0: expected \(3, 3\), got \(2, 3\)"):
        layer.forward(x, np.zeros((2, C), np.float32))
    layer.forward(x)
    with pytest.raises(ValueError, match=r"dy: expected \(3, 3\), got \(4, 3, 3\)"):
        layer.backward(np.zeros((T, B, C), np.float32))
    with pytest.raises(ValueError, match="hidden: expected at least 1"):
        SimpleRNN(1, 0, rng=rng)


# ---------------------------------------------------------------------------------------------------- BatchNorm

NORMALISED = [(-1, (7, 3)), (-1, (4, 5, 3)), (-3, (4, 3, 2, 5)), (-3, (2, 4, 3, 2, 5)), (1, (6, 3))]


@pytest.mark.parametrize(("axis", "shape"), NORMALISED)
def test_batch_norm_gradients(axis: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    layer = BatchNorm(3, axis=axis, dtype=np.float64)
    spread(layer, rng)
    check_layer(layer, 2.0 + 3.0 * rng.standard_normal(shape), rng, rng)
    check_layer(layer.eval(), rng.standard_normal(shape), rng, rng)


@pytest.mark.parametrize(("axis", "shape"), NORMALISED)
def test_batch_norm_by_hand(axis: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    layer = BatchNorm(3, axis=axis, momentum=0.25, dtype=np.float64)
    x = 2.0 + 3.0 * rng.standard_normal(shape)
    rows = np.moveaxis(x, axis, -1).reshape(-1, 3)
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    got = np.moveaxis(layer.forward(x), axis, -1).reshape(-1, 3)
    np.testing.assert_allclose(got, (rows - mean) / np.sqrt(variance + 1e-5), rtol=1e-12)
    own = layer.buffers()
    np.testing.assert_allclose(own["running_mean"], 0.25 * mean, rtol=1e-12)
    np.testing.assert_allclose(own["running_variance"], 0.75 + 0.25 * rows.var(axis=0, ddof=1), rtol=1e-12)
    kept = {name: array.copy() for name, array in own.items()}
    got = np.moveaxis(layer.eval().forward(x), axis, -1).reshape(-1, 3)
    expected = (rows - kept["running_mean"]) / np.sqrt(kept["running_variance"] + 1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    for name, array in layer.buffers().items():
        np.testing.assert_array_equal(array, kept[name], err_msg="evaluation changes nothing")


def test_batch_norm_in_float32_keeps_its_digits_far_from_zero(rng: np.random.Generator) -> None:
    x = (1000.0 + rng.standard_normal((500, 3))).astype(np.float32)
    y = BatchNorm(3).forward(x)
    assert y.dtype == np.float32
    exact = (x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=2e-6)


def test_batch_norm_refuses_what_does_not_fit() -> None:
    layer = BatchNorm(3, axis=-3)
    with pytest.raises(ValueError, match=r"x: expected 3 features along axis -3, got \[4, 3\]"):
        layer.forward(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"x: expected 3 features along axis -1, got \[3, 4\]"):
        BatchNorm(3).forward(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"x: expected at least 2 values of each feature in training, got 1; or call"):
        BatchNorm(3).forward(np.zeros((1, 3), np.float32))
    BatchNorm(3).eval().forward(np.zeros((1, 3), np.float32))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        layer.forward(np.zeros((1, 3, 2, 2)))
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(np.zeros((1, 3, 2, 2), np.float32))
    layer.forward(np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"dy: expected \(1, 3, 2, 2\), got \(1, 3, 2\)"):
        layer.backward(np.zeros((1, 3, 2), np.float32))
    with pytest.raises(TypeError, match="dy: expected float32, got float64"):
        layer.backward(np.zeros((1, 3, 2, 2)))
    for options, words in (({"momentum": 1.5}, "momentum: expected"), ({"eps": -1.0}, "eps: expected at least 0")):
        with pytest.raises(ValueError, match=words):
            BatchNorm(3, **options)


def test_a_checkpoint_restores_running_statistics(tmp_path: Path, rng: np.random.Generator) -> None:
    def make() -> Sequential:
        own = np.random.default_rng(1)
        return Sequential([Dense(4, 3, rng=own), Sequential([BatchNorm(3)]), Activation("relu")])

    x = rng.standard_normal((6, 4)).astype(np.float32)
    trained, fresh = make(), make()
    trained.forward(x)
    state = trained.state_dict()
    assert list(state) == ["0.weight", "0.bias", "1.0.scale", "1.0.shift", "1.0.running_mean", "1.0.running_variance"]
    checkpoint.save(tmp_path / "net", state, {})
    expected = trained.eval().forward(x)
    trained.train().forward(x)
    np.testing.assert_array_equal(state["1.0.running_mean"], checkpoint.load(tmp_path / "net")[0]["1.0.running_mean"])
    assert not np.array_equal(fresh.eval().forward(x), expected)
    with pytest.raises(KeyError, match=r"Sequential state: missing \['1\.0\.running_mean', '1\.0\.running_variance'\]"):
        fresh.load_state_dict(fresh.parameters())
    fresh.load_state_dict(checkpoint.load(tmp_path / "net")[0])
    np.testing.assert_array_equal(fresh.forward(x), expected)


# ----------------------------------------------------------------------------------------- what units gave


def test_activity(rng: np.random.Generator) -> None:
    lstm = ConvLSTM2D(CIN, C, 3, num_layers=2, bidirectional=True, rng=rng)
    net = Sequential([lstm, Conv2D(2 * C, 2, 1, rng=rng), BatchNorm(2, axis=-3),
                      Sequential([Activation("tanh"), Dense(W, 2, rng=rng)])])  # fmt: skip
    assert net.activity() == {}
    y = net.forward(rng.standard_normal((T, B, CIN, H, W)).astype(np.float32))
    found = net.activity()
    assert list(found) == ["0.l0", "0.l0_reverse", "0.l1", "0.l1_reverse", "1", "2", "3.0", "3.1"]
    assert np.shares_memory(found["3.1"], y)
    assert found["1"].shape == (T, B, 2, H, W)
    np.testing.assert_allclose(found["3.0"], np.tanh(found["2"]), rtol=1e-5)
    assert found["0.l1_reverse"].shape == (T, B, C, H, W)
    rnn = SimpleRNN(CIN, C, return_sequences=False, rng=rng)
    last = rnn.forward(rng.standard_normal((T, B, CIN)).astype(np.float32))
    np.testing.assert_array_equal(rnn.activity()[""][-1], last)


@pytest.mark.parametrize("name", NAMES)
def test_bounds(name: str) -> None:
    ends = ops.activation_forward(name, np.array([-1e6, -3.0, 0.0, 3.0, 1e6]))
    limits = bounds(name)
    bounded = np.abs(ends).max() <= 1.0
    assert (limits is not None) == bounded
    if limits is not None:
        assert (ends.min(), ends.max()) == pytest.approx(limits)


def test_bounds_of_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of identity, .*, got 'gelu'"):
        bounds("gelu")
