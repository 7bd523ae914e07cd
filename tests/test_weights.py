"""fusecell.weights: the numbers of every convention, both ways through it, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecell import layers, ops, reference, weights
from fusecell.weights import CONVENTIONS, Convention, ConvLSTMWeights, Tensor
from weights_cells import CELLS, CIN, C, H, W

T, B = 3, 2
NAMES = ("weight_ih", "weight_hh", "bias", "peephole")
# One bias, and +1 in forward: f's bias - 1 has no room for the bits that the subtraction rounds off
ONE_BIAS_AND_FORGET = {"tf1", "carlthome"}


def source_arrays(name, rng, kernel=(3, 5)):
    return {key: rng.standard_normal(shape) for key, shape in CELLS[name].shapes(kernel).items()}


def canonical(rng, name, kernel=(3, 5), dtype=np.float64):
    """Random weights that this convention can hold."""
    holds = {tensor.holds for tensor in CONVENTIONS[name].tensors}
    dense = all("*" not in tensor.axes for tensor in CONVENTIONS[name].tensors)
    kernel = (1, 1) if dense else kernel
    return ConvLSTMWeights(
        rng.standard_normal((4 * C, CIN, *kernel)).astype(dtype),
        rng.standard_normal((4 * C, C, *kernel)).astype(dtype),
        rng.standard_normal(4 * C).astype(dtype) if "bias" in holds else None,
        rng.standard_normal((3 * C, H, W)).astype(dtype) if "peephole" in holds else None,
    )


def assert_same(a, b):
    for name in NAMES:
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right, err_msg=name)


def flat(tensors, prefix=""):
    found = {}
    for key, value in tensors.items():
        found.update(flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value})
    return found


# ---------------------------------------------------------------------------------------------------- the numbers
def from_first(a, layout):
    """[..., C, H, W] to the layout in which a cell runs."""
    return a if layout == "first" else np.moveaxis(a, -3, -1) if layout == "last" else a[..., 0, 0]


def to_first(a, layout):
    return a if layout == "first" else np.moveaxis(a, -1, -3) if layout == "last" else a[..., None, None]


def test_every_convention_has_a_cell():
    assert CELLS.keys() | {"fusecell"} == CONVENTIONS.keys()


CASES = [(name, kernel) for name, cell in CELLS.items() for kernel in [(3, 5), *([(2, 4)] if cell.even else [])]]


@pytest.mark.parametrize("module", ["reference", "ops"])
@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_numbers(name, kernel, module, rng):
    """Three steps of the framework's own cell, and of fusecell with the weights imported."""
    cell, p = CELLS[name], source_arrays(name, rng, kernel)
    size = (1, 1) if cell.layout == "dense" else (H, W)
    wide = (H + kernel[0] - 1, W + kernel[1] - 1) if cell.shrinks else size
    x, h_0, c_0 = (rng.standard_normal(s) for s in ((T, B, CIN, *wide), (B, C, *size), (B, C, *size)))

    h, c = from_first(h_0, cell.layout), from_first(c_0, cell.layout)
    expected = []
    for x_t in from_first(x, cell.layout):
        h, c = cell.step(p, x_t, h, c)
        expected.append(to_first(h, cell.layout))

    [found] = weights.load(p, name)
    run = importlib.import_module(f"fusecell.{module}").conv_lstm_forward
    y, h_n, c_n, _ = run(x, **found.arguments(), h_0=h_0, c_0=c_0)
    np.testing.assert_allclose(y, np.stack(expected), rtol=0, atol=1e-12)
    np.testing.assert_allclose(h_n, to_first(h, cell.layout), rtol=0, atol=1e-12)
    np.testing.assert_allclose(c_n, to_first(c, cell.layout), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_exported_numbers(name, rng):
    """fusecell's weights, exported, and run by the framework's own cell."""
    cell, own = CELLS[name], canonical(rng, name, (3, 5))
    if name == "blocks":
        own = dataclasses.replace(own, bias=rng.standard_normal((4 * C, H, W)))
    own = dataclasses.replace(own, options=CONVENTIONS[name].options)
    size = (1, 1) if cell.layout == "dense" else (H, W)
    wide = (H + 2, W + 4) if cell.shrinks else size
    x, h_0, c_0 = (rng.standard_normal(s) for s in ((T, B, CIN, *wide), (B, C, *size), (B, C, *size)))
    p = flat(weights.dump(own, name))
    h, c = from_first(h_0, cell.layout), from_first(c_0, cell.layout)
    for x_t in from_first(x, cell.layout):
        h, c = cell.step(p, x_t, h, c)
    _, h_n, c_n, _ = reference.conv_lstm_forward(x, **own.arguments(), h_0=h_0, c_0=c_0)
    np.testing.assert_allclose(to_first(h, cell.layout), h_n, rtol=0, atol=1e-12)
    np.testing.assert_allclose(to_first(c, cell.layout), c_n, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ndrplz", "automan000", "openstl", "mxnet", "keras", "flax", "tf1", "chainer"])
def test_one_dimension(name, rng):
    """A kernel of a 1-D convolution is one with kh = 1, on images with H = 1."""
    own = canonical(rng, name, (1, 3))
    own = dataclasses.replace(own, peephole=None)
    source = flat(weights.dump(own, name, dims=1))
    assert {array.ndim for key, array in source.items() if "bias" not in key and not key.endswith("/b")} == {3}
    [found] = weights.load(source, name)
    for part in ("weight_ih", "weight_hh"):
        np.testing.assert_array_equal(getattr(found, part), getattr(own, part))
    # And from the framework's side: the kernel's one axis is the image's width
    two = flat(weights.dump(own, name))
    for key, array in source.items():
        np.testing.assert_array_equal(array, np.squeeze(two[key]))


def test_one_dimension_of_images(rng):
    own = dataclasses.replace(canonical(rng, "automan000", (1, 3)), peephole=rng.standard_normal((3 * C, 1, W)))
    source = weights.dump(own, "automan000", dims=1)
    assert source["Wci"].shape == (1, C, W)
    assert_same(weights.load(source, "automan000")[0], own)


# ------------------------------------------------------------------------------------------------------- both ways
@pytest.mark.parametrize("name", CELLS)
def test_import_then_export(name, rng):
    """The same arrays under the same keys; of two biases and a forget bias, the sum."""
    p = source_arrays(name, rng)
    back = flat(weights.dump(weights.load(p, name)[0], name))
    assert back.keys() == p.keys()
    biases = [t.key.replace("{layer}", "") for t in CONVENTIONS[name].tensors if t.holds == "bias"]
    forget = CONVENTIONS[name].forget_bias
    split = len(biases) > 1 or forget
    for key in p.keys() - set(biases if split else ()):
        np.testing.assert_array_equal(back[key], p[key], err_msg=key)
    if split:
        np.testing.assert_allclose(sum(back[key] for key in biases), sum(p[key] for key in biases), rtol=0, atol=1e-15)
    for key in biases[1:]:
        # All of it stands in the first, but half a unit in the last place of numbers below 8
        assert np.abs(back[key]).max() <= 2**-51


@given(
    name=st.sampled_from(sorted(CONVENTIONS)),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2)),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 30.0]),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_export_then_import(name, dtype, sizes, scale, bias, seed):
    """Bit for bit, for every shape; but f's bias where one bias has a forget bias taken out of it."""
    rng = np.random.default_rng(seed)
    cin, c, a, b = sizes
    convention = CONVENTIONS[name]
    holds = {tensor.holds for tensor in convention.tensors}
    dense = all("*" not in tensor.axes for tensor in convention.tensors)
    kernel = (1, 1) if dense else (2 * a + 1, 2 * b + 1) if convention.odd else (a + 1, b + 1)
    own = ConvLSTMWeights(
        rng.standard_normal((4 * c, cin, *kernel)).astype(dtype),
        rng.standard_normal((4 * c, c, *kernel)).astype(dtype),
        (scale * rng.standard_normal(4 * c)).astype(dtype) if "bias" in holds and bias else None,
        rng.standard_normal((3 * c, 3, 4)).astype(dtype) if "peephole" in holds and not bias else None,
    )
    [back] = weights.load(weights.dump(own, convention), convention)
    if own.bias is None and convention.forget_bias:
        own = dataclasses.replace(own, bias=np.zeros(4 * c, dtype))
    if name in ONE_BIAS_AND_FORGET:
        unit = np.finfo(dtype).eps * np.maximum(1, np.abs(own.bias))
        assert np.all(np.abs(own.bias.astype(np.float64) - back.bias) <= unit)
        back = dataclasses.replace(back, bias=own.bias)
    assert_same(back, own)


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 0.0, 3e38])
def test_special_biases_survive_two_halves(special, rng):
    own = canonical(rng, "flax", dtype=np.float32)
    own.bias[2] = special
    assert_same(weights.load(weights.dump(own, "flax"), "flax")[0], own)


def test_one_bias_is_exact_where_training_leaves_it(rng):
    """b - 1 is exact for b from 0.5 to 2 (Sterbenz), and forget gates start at 1."""
    own = canonical(rng, "tf1", dtype=np.float32)
    own.bias[...] = rng.uniform(0.5, 2.0, own.bias.shape)
    assert_same(weights.load(weights.dump(own, "tf1"), "tf1")[0], own)


def test_without_the_forget_bias_one_bias_is_exact(rng):
    plain = dataclasses.replace(CONVENTIONS["tf1"], forget_bias=0.0)
    own = canonical(rng, "tf1")
    assert_same(weights.load(weights.dump(own, plain), plain)[0], own)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_several_layers(name, rng):
    """Eleven cells: found, told apart, and in the order of their numbers, whatever the order of the keys."""
    cells = [canonical(rng, name, dtype=np.float32) for _ in range(11)]
    if name in ONE_BIAS_AND_FORGET:
        for cell in cells:
            cell.bias[...] = rng.uniform(0.5, 2.0, cell.bias.shape)  # where b - 1 is exact
    source = flat(weights.dump(cells, name))
    shuffled = {key: source[key] for key in rng.permutation(list(source))}
    for before in ("", "model.encoder/"):
        found = weights.load({before + key: a for key, a in shuffled.items()}, name, prefix=before)
        assert len(found) == 11
        for cell, own in zip(found, cells, strict=True):
            assert_same(cell, own)


@pytest.mark.parametrize("name", ["torch", "fusecell"])
def test_two_directions(name, rng):
    cells = [canonical(rng, name) for _ in range(4)]
    source = weights.dump(cells, name, bidirectional=True)
    assert [key for key in source if "weight_ih" in key] == [
        f"weight_ih_l{l}{suffix}" for l in (0, 1) for suffix in ("", "_reverse")
    ]
    for cell, own in zip(weights.load(source, name), cells, strict=True):
        assert_same(cell, own)


def test_backward_layer_of_keras_follows_forward_layer(rng):
    p = source_arrays("keras", rng)
    source = {
        f"layers/bidirectional/{d}_layer/cell/vars/{i}": a
        for d in ("backward", "forward")
        for i, a in enumerate(p.values())
    }
    names = [cell.name for cell in weights.load(source, "keras")]
    assert names == [f"layers/bidirectional/{d}_layer/cell/" for d in ("forward", "backward")]


# ----------------------------------------------------------------------------------------------- what is handed out
def test_containers(rng):
    p = source_arrays("keras", rng)
    [expected] = weights.load(p, "keras")
    h5 = {"layers": {"conv_lstm2d": {"cell": {"vars": {str(i): a for i, a in enumerate(p.values())}}}}}
    h5["layers"]["conv_lstm2d"]["cell"]["seed_generator"] = {"vars": {"0": np.zeros(2, np.uint32)}}
    tensorflow = {f"conv_lst_m2d/{key}:0": a for key, a in p.items()}
    for source in (list(p.values()), tuple(p.values()), tensorflow):
        [found] = weights.load(source, "keras")
        assert_same(found, expected)
    with pytest.warns(UserWarning, match="layers/conv_lstm2d/cell/seed_generator/vars/0: not used"):
        [found] = weights.load(h5, "keras")
    assert_same(found, expected)
    assert found.name == "layers/conv_lstm2d/cell/"
    assert_same(weights.load(h5, "keras", prefix="layers/conv_lstm2d/cell/vars/")[0], expected)
    assert len(weights.load([list(p.values())] * 3, "keras")) == 3
    assert list(weights.dump(expected, "keras")) == ["kernel", "recurrent_kernel", "bias"]  # set_weights' order


def test_names_of_mxnet(rng):
    """collect_params() joins a block's prefix and the name by an underscore."""
    p = source_arrays("mxnet", rng)
    source = {f"convlstm{n}_{key}": a for n in (0, 1) for key, a in p.items()}
    assert [cell.name for cell in weights.load(source, "mxnet")] == ["convlstm0_", "convlstm1_"]


@pytest.mark.parametrize(
    ("name", "prefix", "expected"),
    [
        ("jhhuang96", None, ["rnn0.conv.0.weight", "rnn1.conv.0.weight"]),
        ("jhhuang96", "encoder.rnn_{l}.", ["encoder.rnn_0.conv.0.weight", "encoder.rnn_1.conv.0.weight"]),
        ("torch", "lstm.", ["lstm.weight_ih_l0", "lstm.weight_ih_l1"]),
    ],
)
def test_names_of_layers(name, prefix, expected, rng):
    source = weights.dump([canonical(rng, name)] * 2, name, prefix=prefix)
    assert [key for key in source if "weight" in key and "hh" not in key] == expected


def test_the_table_in_the_documentation():
    """Every convention has a row, with its order of the gates."""
    text = (Path(__file__).parent.parent / "docs" / "weights.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \| ([a-z ]+) \|", text, re.MULTILINE)
    orders = {name: order.replace(" ", "") for names, order in rows for name in re.findall(r"`(\w+)`", names)}
    assert orders == {name: convention.order for name, convention in CONVENTIONS.items()}


def test_nesting(rng):
    own = canonical(rng, "flax")
    assert {key: set(value) for key, value in weights.dump(own, "flax").items()} == {
        "ih": {"kernel", "bias"},
        "hh": {"kernel", "bias"},
    }
    named = weights.dump(own, "haiku", prefix="net/~/conv2_dlstm/")
    assert set(named) == {"net/~/conv2_dlstm/input_to_hidden", "net/~/conv2_dlstm/hidden_to_hidden"}
    assert set(named["net/~/conv2_dlstm/hidden_to_hidden"]) == {"w", "b"}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_arrays_are_new(name, rng):
    """Training the source on does not change what was imported, nor the other way round."""
    own = canonical(rng, name)
    source = flat(weights.dump(own, name))
    [found] = weights.load(source, name)
    for array in source.values():
        assert array.flags.c_contiguous
        for part in NAMES:
            for other in (getattr(own, part), getattr(found, part)):
                assert other is None or not np.shares_memory(array, other)
    assert all(getattr(found, part).flags.c_contiguous for part in NAMES if getattr(found, part) is not None)


@pytest.mark.parametrize("name", ["keras", "flax", "chainer"])
def test_bfloat16(name, rng):
    own = canonical(rng, name, dtype=pytest.importorskip("ml_dtypes").bfloat16)
    assert_same(weights.load(weights.dump(own, name), name)[0], own)


def test_foreign_byte_order(rng):
    own = canonical(rng, "keras")
    swapped = {key: a.astype(">f8") for key, a in weights.dump(own, "keras").items()}
    assert_same(weights.load(swapped, "keras")[0], own)


def test_unused_keys_are_named(rng):
    """The real layout of OpenSTL's cell: two convolutions that its forward never calls."""
    p = {f"cell_list.0.{key}": a for key, a in source_arrays("openstl", rng).items()}
    dead = {f"cell_list.0.{key}": np.zeros((C, 2 * C, 1, 1)) for key in ("conv_o.0.weight", "conv_last.weight")}
    with pytest.warns(UserWarning, match=re.escape(f"{', '.join(dead)}: not used, as openstl itself")):
        [found] = weights.load(p | dead, "openstl")
    assert found.unused == tuple(dead)
    # The model's own last convolution is alive, and not a cell's
    with pytest.raises(ValueError, match=r"got also conv_last.weight; prefix="):
        weights.load(p | {"conv_last.weight": np.zeros((1, C, 1, 1))}, "openstl")
    assert len(weights.load(p | {"conv_last.weight": np.zeros((1, C, 1, 1))}, "openstl", prefix="cell_list.")) == 1


# --------------------------------------------------------------------------------------------------------- options
def test_options():
    assert {name: dict(c.options) for name, c in CONVENTIONS.items() if c.options} == {
        "keras": {"padding": "valid"},
        "keras2": {"padding": "valid", "recurrent_activation": "hard_sigmoid_keras2"},
        "mxnet": {"padding": 0},
        "mxnet_nhwc": {"padding": 0},
    }
    assert {name for name, c in CONVENTIONS.items() if c.state == "ch"} == {"flax", "tf1", "carlthome", "chainer"}


def test_options_of_the_cell(rng):
    p = source_arrays("keras", rng)
    [cell] = weights.load(p, "keras", padding="same", activation="relu", stride=1)
    assert cell.options == {"activation": "relu"}
    [cell] = weights.load(source_arrays("mxnet", rng), "mxnet", padding=(1, 2))
    assert cell.options == {}  # which is "same" for 3x5
    assert weights.dump(cell, "ndrplz").keys() == {"conv.weight", "conv.bias"}
    [cell] = weights.load(source_arrays("keras", rng), "keras", padding=(1, 2), stride=2)
    assert cell.options == {"padding": (1, 2), "stride": 2}  # "same" would depend on the image's size
    [cell] = weights.load(source_arrays("mxnet", rng), "mxnet", padding=1)
    assert cell.options == {"padding": 1}
    with pytest.raises(ValueError, match="padding: expected 'same', which ndrplz always has, got 1"):
        weights.dump(cell, "ndrplz")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ndrplz", {"activation": "relu"}, "activation: expected 'tanh', which ndrplz always has, got 'relu'"),
        ("flax", {"padding": "valid"}, "padding: expected 'same', which flax always has, got 'valid'"),
        ("mxnet", {"stride": 2}, "stride: expected 1, which mxnet always has, got 2"),
    ],
)
def test_options_that_the_source_has_not(name, options, message, rng):
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.load(source_arrays(name, rng), name, **options)


def test_unknown_option(rng):
    with pytest.raises(TypeError, match=r"options: expected some of stride, .*, got paddding"):
        weights.load(source_arrays("keras", rng), "keras", paddding="same")


# ---------------------------------------------------------------------------------------------- what cannot be read
def change(name, rng, **changes):
    """The arrays of a convention with some replaced (a shape stands for zeros) or, for None, left out."""
    p = source_arrays(name, rng) | {k: np.zeros(v) if isinstance(v, tuple) else v for k, v in changes.items()}
    return {key: a for key, a in p.items() if a is not None}


BAD_SOURCES = [
    ("ndrplz", {"conv.weight": (7, 5, 3, 3)}, "conv.weight: expected 4C rows, C for each of ifog, got 7 in (7, "),
    (
        "ndrplz",
        {"conv.weight": (8, 2, 3, 3)},
        "conv.weight: expected more than 2 input channels, those of x and 2 of h, got (8, 2, 3, 3)",
    ),
    ("ndrplz", {"conv.bias": (9,)}, "conv.bias: expected (8,), got (9,)"),
    ("ndrplz", {"conv.weight": (8, 5, 3, 3, 3)}, "conv.weight: expected the axes [GO, I, *], got (8, 5, 3, 3, 3)"),
    (
        "ndrplz",
        {"conv.weight": (8, 5, 2, 3)},
        "weight_ih: expected odd kernel sizes, since ndrplz pads both sides alike and an even one changes the size of "
        "its state, got (2, 3)",
    ),
    ("ndrplz", {"conv.weight": None}, "tensors: expected conv.weight beside conv.bias, got none"),
    (
        "ndrplz",
        {"norm.weight": (8,)},
        "tensors: expected conv.weight, conv.bias of ndrplz, got also norm.weight; prefix= chooses a part of a model",
    ),
    ("keras", {"recurrent_kernel": (3, 5, 3, 8)}, "recurrent_kernel: expected (3, 5, 2, 8), got (3, 5, 3, 8)"),
    ("keras", {"recurrent_kernel": (3, 5, 2, 9)}, "recurrent_kernel: expected (3, 5, 2, 8), got (3, 5, 2, 9)"),
    ("keras", {"recurrent_kernel": None}, "tensors: expected recurrent_kernel beside kernel, bias, got none"),
    ("automan000", {"Whf.weight": None}, "tensors: expected Whf.weight beside"),
    ("automan000", {"Wxo.bias": None}, "tensors: expected Wxo.bias beside"),
    ("automan000", {"Wco": None}, "tensors: expected Wco beside"),
    (
        "automan000",
        {"Wxf.weight": (2, 3, 3, 3)},
        "Wxi.weight, Wxf.weight, Wxc.weight, Wxo.weight: expected one shape, got [(2, 3, 3, 5), (2, 3, 3, 3), (2,",
    ),
    ("hzzone", {"Wci": (2, 5, 4)}, "Wci: expected (1, 2, 4), got (2, 5, 4)"),
    ("hzzone", {"Wci": (1, 2)}, "Wci: expected the axes [1, O, +], got (1, 2)"),
    ("hzzone", {"Wci": (1, 3, 5, 4)}, "Wci: expected (1, 2, 5, 4), got (1, 3, 5, 4)"),
    (
        "jhhuang96",
        {"conv.1.weight": (8,), "conv.1.bias": (8,)},
        "conv.1.weight, conv.1.bias: expected none, since a norm",
    ),
    ("openstl", {"conv_x.1.weight": (8, 5, 4)}, "conv_x.1.weight: expected none, since a norm"),
    (
        "carlthome",
        {"LayerNorm/gamma": (2,), "LayerNorm_1/beta": (2,)},
        "LayerNorm/gamma, LayerNorm_1/beta: expected none, since a norm between convolution and gates depends on the "
        "data, and fusecell's cell has none, got 2",
    ),
    ("torch", {"weight_hr": (1, 2)}, "weight_hr: expected none, since fusecell's cell has no projection"),
    ("flashrnn", {"R": (4, 2, 2, 2)}, "R: expected (4, 1, 2, 2), got (4, 2, 2, 2)"),
    ("mxnet", {"h2h_weight": (8, 2, 2, 2)}, "weight_hh: expected odd kernel sizes, since mxnet pads"),
    ("keras", {"kernel": np.zeros((3, 5, 3, 8), int)}, "kernel: expected an array of floats, got ndarray of int64"),
    ("keras", {"kernel": "text"}, "kernel: expected an array of floats, got str of <U4"),
    ("keras", {"bias": np.zeros(8, np.float32)}, "bias: expected float64, as kernel, got float32"),
    ("keras", {"kernel": np.zeros((3, 5, 3, 8), np.float32)}, "recurrent_kernel: expected float32, as kernel, got"),
    ("keras", {"0": (3, 5, 3, 8)}, "tensors: expected one of kernel and 0, got both"),
    ("keras", {"bias:0": (8,)}, "tensors: expected every key once, got bias twice"),
    (
        "keras",
        {f"n{i}": (8,) for i in range(10)},
        "tensors: expected kernel, recurrent_kernel, bias of keras, got also n0, n1, n2, n3, n4, n5, n6, n7 and 2 more",
    ),
    ("tf1", {"kernel": None, "biases": None}, "tensors: expected kernel, biases of tf1, got none"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD_SOURCES)
def test_bad_sources(name, changes, message, rng):
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        weights.load(change(name, rng, **changes), name)


def test_what_numpy_cannot_read():
    class OnGpu:
        def __array__(self, *_, **__):
            raise RuntimeError("use .cpu() first")

    with pytest.raises(TypeError, match=r"kernel: expected what np.asarray takes, got OnGpu \(use .cpu\(\) first\)"):
        weights.load({"kernel": OnGpu()}, "keras")


def test_unknown_convention():
    with pytest.raises(ValueError, match=r"convention: expected one of fusecell, ndrplz, .*, got 'kears'"):
        weights.load({}, "kears")


# ------------------------------------------------------------------------------------------- what cannot be written
@pytest.mark.parametrize(
    ("name", "changes", "arguments", "message"),
    [
        ("keras", {"peephole": np.zeros(6)}, {}, "peephole: expected None, since keras has none, got (6,)"),
        ("openstl", {}, {}, "bias: expected None, since openstl has none, got (8,)"),
        ("keras", {"bias": np.zeros((8, 5, 4))}, {}, "bias: expected (8), as keras holds it (dims=2), got (8, 5, 4)"),
        ("hzzone", {"peephole": np.zeros(6)}, {}, "peephole: expected (6, W), as hzzone holds it (dims=2), got (6,)"),
        ("torch", {}, {}, "weight_ih: expected (8, 3), as torch holds it (dims=2), got (8, 3, 3, 5)"),
        ("keras", {}, {"dims": 1}, "weight_ih: expected (8, 3, W), as keras holds it (dims=1), got (8, 3, 3, 5)"),
        ("keras", {}, {"dims": 3}, "dims: expected 0, 1 or 2, got 3"),
        (
            "tf1",
            {"weight_hh": np.zeros((8, 2, 3, 3))},
            {},
            "weight_hh: expected the kernel size (3, 5) of weight_ih, since tf1 keeps both in one array, got (3, 3)",
        ),
        ("hzzone", {"weight_hh": np.zeros((8, 2, 2, 2))}, {}, "weight_hh: expected odd kernel sizes, since hzzone"),
        ("ndrplz", {"options": {"stride": 2}}, {}, "stride: expected 1, which ndrplz always has, got 2"),
        ("keras", {}, {"bidirectional": True}, "bidirectional: expected a list of cells, got one"),
    ],
)
def test_bad_exports(name, changes, arguments, message, rng):
    own = dataclasses.replace(canonical(rng, "keras"), **changes)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        weights.dump(own, name, **arguments)


def test_bad_lists(rng):
    own = canonical(rng, "keras")
    with pytest.raises(ValueError, match=r"bidirectional: expected an even number of cells .*, got 2 and keras"):
        weights.dump([own, own], "keras", bidirectional=True)
    with pytest.raises(ValueError, match=r"prefix: expected \{l\} in it, to tell 2 layers apart, got 'rnn'"):
        weights.dump([own, own], "keras", prefix="rnn")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight_hh": np.zeros((8, 3, 3, 5))}, ValueError, "weight_hh: expected (8, 2, 3, 5), got (8, 3, 3, 5)"),
        ({"weight_ih": np.zeros((9, 3, 3, 5))}, ValueError, "weight_ih: expected (4C, Cin, kh, kw), got (9, 3, 3, 5)"),
        ({"bias": np.zeros(6)}, ValueError, "bias: expected (8,) or (8, H, W), got (6,)"),
        ({"bias": np.zeros((8, 5))}, ValueError, "bias: expected (8,) or (8, H, W), got (8, 5)"),
        ({"peephole": np.zeros(8)}, ValueError, "peephole: expected (6,) or (6, H, W), got (8,)"),
        ({"bias": np.zeros(8, np.float32)}, TypeError, "bias: expected float64, as weight_ih, got float32"),
        ({"bias": [0.0] * 8}, TypeError, "bias: expected a NumPy array of floats, got list"),
        ({"bias": np.zeros(8, int)}, TypeError, "bias: expected a NumPy array of floats, got int64"),
        ({"options": {"lengths": [1]}}, TypeError, "options: expected some of stride, dilation"),
    ],
)
def test_bad_canonical_weights(changes, error, message, rng):
    with pytest.raises(error, match="^" + re.escape(message)):
        dataclasses.replace(canonical(rng, "keras"), **changes)


# ------------------------------------------------------------------------------------------------- in and out of here
def test_parameters(rng):
    own = canonical(rng, "fusecell")
    for layer, reverse in ((0, False), (3, True)):
        named = own.parameters(layer, reverse=reverse)
        assert set(named) == {f"{n}_l{layer}{'_reverse' if reverse else ''}" for n in NAMES}
        assert_same(ConvLSTMWeights.from_parameters(named, layer, reverse=reverse), own)
    assert_same(weights.load(own.parameters())[0], own)
    with pytest.raises(KeyError, match="weight_ih_l1"):
        ConvLSTMWeights.from_parameters(own.parameters(), 1)


def test_into_a_layer_and_out_again(rng):
    """ConvLSTM2D's parameters have fusecell's own names, both directions of both layers."""
    net = layers.ConvLSTM2D(CIN, C, 3, num_layers=2, bidirectional=True, peephole="channel", rng=rng)
    cells = weights.load(net.parameters())
    assert [cell.name for cell in cells] == ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    other = layers.ConvLSTM2D(CIN, C, 3, num_layers=2, bidirectional=True, peephole="channel", rng=rng)
    other.load_parameters(weights.dump(cells, bidirectional=True))
    x = rng.standard_normal((T, B, CIN, H, W)).astype(np.float32)
    np.testing.assert_array_equal(net.forward(x), other.forward(x))


def test_a_convention_of_ones_own(rng):
    """f, o, i, c interleaved in one kernel, x and h concatenated, h's kernel axes first."""
    mine = Convention(
        name="mine", order="foic", tensors=(Tensor("K", "weight", "* OG I"), Tensor("b", "bias", "OG")), forget_bias=2.0
    )
    p = {"K": rng.standard_normal((3, 3, 4 * C, CIN + C)), "b": rng.standard_normal(4 * C)}
    [found] = weights.load(p, mine)
    f, o, i, g = (p["K"][:, :, gate::4] for gate in range(4))
    expected = np.moveaxis(np.concatenate([i, f, g, o], axis=2), (0, 1), (2, 3))
    np.testing.assert_array_equal(found.weight_ih, expected[:, :CIN])
    np.testing.assert_array_equal(found.weight_hh, expected[:, CIN:])
    np.testing.assert_allclose(found.bias[C : 2 * C], p["b"][0::4] + 2.0, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found.bias[2 * C : 3 * C], p["b"][3::4])
    np.testing.assert_array_equal(weights.dump(found, mine)["K"], p["K"])


@pytest.mark.parametrize("order", ["ifo", "ifgg", "ifgc", "xfgo", ""])
def test_bad_order(order):
    with pytest.raises(ValueError, match="order: expected i, f, o and one of gcjza, once each, got"):
        Convention(name="mine", order=order, tensors=())


@pytest.mark.parametrize("axes", ["GO *", "O I *", "G I", "GO I * *", "GO OG I", "GO I X", "I G"])
def test_bad_axes(axes):
    with pytest.raises(ValueError, match=re.escape("K: expected axes of O, G, I and at most one * or +, got " + axes)):
        Tensor("K", "weight", axes)


@pytest.mark.parametrize("holds", [[], ["weight_ih"], ["weight", "weight_hh"], ["weight", "weight"]])
def test_bad_tensors(holds):
    tensors = tuple(Tensor(f"K{n}", part, "GO I") for n, part in enumerate(holds))
    with pytest.raises(ValueError, match="tensors: expected one weight, or one weight_ih and one weight_hh, got"):
        Convention(name="mine", order="ifgo", tensors=tensors)


def test_no_bias_under_a_forget_bias(rng):
    """Flax with use_bias=False still adds 1 to f."""
    p = {key: a for key, a in source_arrays("flax", rng).items() if "kernel" in key}
    [found] = weights.load(p, "flax")
    np.testing.assert_array_equal(found.bias, np.repeat([0.0, 1.0, 0.0, 0.0], C))
    bare = dataclasses.replace(found, bias=None)
    np.testing.assert_array_equal(flat(weights.dump(bare, "flax"))["ih/bias"], np.repeat([0.0, 0.0, -1.0, 0.0], C))


def test_forget_bias_of_a_bias_per_pixel(rng):
    mine = dataclasses.replace(CONVENTIONS["blocks"], name="mine", forget_bias=1.0)
    p = source_arrays("blocks", rng)
    [found] = weights.load(p, mine)
    np.testing.assert_array_equal(found.bias[C : 2 * C], p["b"][C : 2 * C] + 1.0)
    np.testing.assert_array_equal(found.bias[:C], p["b"][:C])
    np.testing.assert_allclose(weights.dump(found, mine)["b"], p["b"], rtol=0, atol=1e-15)


def test_ops_take_what_comes_out(rng):
    """float32, straight into the compiled op."""
    p = {key: a.astype(np.float32) for key, a in source_arrays("flax", rng).items()}
    [found] = weights.load(p, "flax")
    y, *_ = ops.conv_lstm_forward(rng.standard_normal((T, B, CIN, H, W)).astype(np.float32), **found.arguments())
    assert y.shape == (T, B, C, H, W)
