"""fusecell against PyTorch: an eager composition of torch's own operators, differentiated by autograd.

The composition is written from the formula of the cell and knows nothing of fusecell's code. It runs in
float64, and the reference and float64 ops must agree with it to rounding. For float32 ops it runs in float32
too and sets the mark: at most twice the composition's own error, plus four roundings of the largest value. A bias
per channel is a sum over every pixel whose terms may cancel, so there the roundings are of the terms' magnitudes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

ARGUMENTS = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")


# -------------------------------------------------------------------------------------------- the composition


def sigma_and_phi(recurrent_activation="sigmoid", activation="tanh", slope=0.01):
    sigma = {
        "sigmoid": torch.sigmoid,
        "hard_sigmoid": lambda a: F.relu6(a + 3) / 6,
        "hard_sigmoid_keras2": lambda a: torch.clamp(0.2 * a + 0.5, 0, 1),
    }[recurrent_activation]
    phi = {
        "tanh": torch.tanh,
        "relu": F.relu,
        "leaky_relu": lambda a: F.leaky_relu(a, slope),
        "hard_tanh": F.hardtanh,
        "softsign": F.softsign,
        "identity": lambda a: a,
    }[activation]
    return sigma, phi


def per_channel_or_pixel(p, like):
    return p.view(-1, *[1] * (like.dim() - 2)) if p.dim() == 1 else p


def gates(z, h, c, bias=None, peephole=None, *, m_h=0.0, m_c=0.0, **names):
    """(z, h', c') -> (h, c)."""
    sigma, phi = sigma_and_phi(**names)
    if bias is not None:
        z = z + per_channel_or_pixel(bias, z)
    z_i, z_f, z_g, z_o = torch.chunk(z, 4, dim=1)
    if peephole is None:
        p_i = p_f = p_o = torch.zeros((), dtype=z.dtype)
    else:
        p_i, p_f, p_o = torch.chunk(per_channel_or_pixel(peephole, z), 3, dim=0)
    i = sigma(z_i + p_i * c)
    f = sigma(z_f + p_f * c)
    g = phi(z_g)
    new_c = f * c + i * g
    o = sigma(z_o + p_o * new_c)
    new_h = o * phi(new_c)
    return m_h * h + (1 - m_h) * new_h, m_c * c + (1 - m_c) * new_c


def both(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def keras_same(size, kernel, stride, dilation):
    """((h_lo, h_hi), (w_lo, w_hi))."""
    sides = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        out = math.ceil(n / s)
        total = max((out - 1) * s + d * (k - 1) + 1 - n, 0)
        sides.append((total // 2, total - total // 2))
    return sides


def convolution(x, weight, *, stride=1, dilation=1, padding="same"):
    stride, dilation = both(stride), both(dilation)
    if padding == "same":
        (top, bottom), (left, right) = keras_same(x.shape[2:], weight.shape[2:], stride, dilation)
    elif padding == "valid":
        top = bottom = left = right = 0
    else:
        (top, bottom), (left, right) = (both(side) for side in both(padding))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=stride, dilation=dilation)


def composition(
    x, weight_ih, weight_hh, bias, peephole, h, c, *, lengths=None, reverse=False, truncation=0,
    zoneout_h=0.0, zoneout_c=0.0, zoneout_mask_h=None, zoneout_mask_c=None, dropout_mask=None,
    stride=1, dilation=1, padding="same", **names,
):  # fmt: skip
    """conv_lstm_forward -> (y, h_n, c_n); a rate of zoneout without a mask is its expectation."""
    T, B = x.shape[:2]
    kh, kw = weight_hh.shape[2:]
    recurrent = ((kh - 1) // 2, kh - 1 - (kh - 1) // 2), ((kw - 1) // 2, kw - 1 - (kw - 1) // 2)
    lengths = torch.full((B,), T) if lengths is None else torch.as_tensor(lengths)
    outputs = [torch.zeros_like(h)] * T
    for s in range(T):
        t = T - 1 - s if reverse else s
        active = (t < lengths)[:, None, None, None]
        if truncation and s and s % truncation == 0:
            h, c = (torch.where(active, state.detach(), state) for state in (h, c))
        x_t = torch.where(active, x[t], torch.zeros((), dtype=x.dtype))
        seen = h if dropout_mask is None else dropout_mask * h
        z = convolution(x_t, weight_ih, stride=stride, dilation=dilation, padding=padding)
        z = z + convolution(seen, weight_hh, padding=recurrent)
        m_h = zoneout_h if zoneout_mask_h is None else zoneout_mask_h[t]
        m_c = zoneout_c if zoneout_mask_c is None else zoneout_mask_c[t]
        new_h, new_c = gates(z, h, c, bias, peephole, m_h=m_h, m_c=m_c, **names)
        outputs[t] = torch.where(active, new_h, torch.zeros_like(h))
        h, c = torch.where(active, new_h, h), torch.where(active, new_c, c)
    return torch.stack(outputs), h, c


def through_torch(function, arguments, options, cotangents, dtype=torch.float64):
    """Results and gradients, as float64 arrays, of a function of torch tensors."""
    tensors = {n: None if a is None else torch.tensor(a, dtype=dtype).requires_grad_() for n, a in arguments.items()}
    options = {n: torch.as_tensor(o, dtype=dtype) if "mask" in n else o for n, o in options.items()}
    results = function(*tensors.values(), **options)
    results = results if isinstance(results, tuple) else (results,)
    loss = sum((torch.tensor(w, dtype=dtype) * r).sum() for w, r in zip(cotangents, results, strict=True))
    loss.backward()
    gradients = {
        n: np.zeros(t.shape) if t.grad is None else t.grad.double().numpy() for n, t in tensors.items() if t is not None
    }
    return [r.detach().double().numpy() for r in results], gradients


# ----------------------------------------------------------------------------------------------- the backends


def load(name):
    if importlib.util.find_spec(f"fusecell.{name}") is None:
        pytest.skip(f"fusecell.{name} is not there")
    return importlib.import_module(f"fusecell.{name}")


@pytest.fixture(params=["reference", "ops"])
def module(request):
    """The functions that take float64."""
    return load(request.param)


@pytest.fixture(params=["reference", "ops-gates", "ops-recompute", "ops-float32"])
def cell(request):
    """The two tiers of the cell, forward and backward, with the dtype they are to be given."""
    name, _, kind = request.param.partition("-")
    ops = load(name)
    dtype = np.float32 if kind == "float32" else np.float64
    options = {"algorithm": "direct"}  # "auto" is held to bounds of its own
    if kind:
        options["save"] = "recompute" if kind == "recompute" else "gates"
    return SimpleNamespace(
        dtype=dtype,
        forward=functools.partial(ops.conv_lstm_forward, **options),
        backward=ops.conv_lstm_backward,
        step_forward=functools.partial(ops.conv_lstm_step_forward, algorithm="direct"),
        step_backward=ops.conv_lstm_step_backward,
        gates_forward=ops.lstm_gates_forward,
        gates_backward=ops.lstm_gates_backward,
        bernoulli=ops.bernoulli,
    )


def cast(value, dtype):
    """Floating arrays as ``dtype``; everything else as it is."""
    if isinstance(value, dict):
        return {n: cast(v, dtype) for n, v in value.items()}
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def terms_of_bias(function, arguments, options, cotangents):
    """The sum of the magnitudes of the pixels' terms in the gradient of a bias per channel."""
    pixels = cotangents[0].shape[-2:]
    per_pixel = arguments["bias"][:, None, None] * np.ones(pixels, arguments["bias"].dtype)
    _, gradients = through_torch(function, {**arguments, "bias": per_pixel}, options, cotangents)
    return np.max(np.abs(gradients["bias"]).sum((1, 2)))


def close(name, got, expected, in_float32=None, terms=0.0):
    """Equal to rounding; or, where float32 has been measured too, by the rule at the head of this file."""
    assert got.shape == expected.shape, name
    assert np.isfinite(expected).all(), name
    scale = max(terms, np.max(np.abs(expected), initial=0.0))
    error = np.max(np.abs(got - expected), initial=0.0)
    if got.dtype == np.float32:
        of_torch = np.max(np.abs(in_float32 - expected), initial=0.0)
        assert error <= 2 * of_torch + 4 * np.finfo(np.float32).eps * scale, name
    else:
        assert got.dtype == np.float64, name
        assert error <= 1e-13 * (1 + scale), name


def compare(run, dtype, function, arguments, options, cotangents):
    """Holds results and gradients of ``run(arguments, options, cotangents)`` against those of torch."""
    arguments, options = cast(arguments, dtype), cast(options, dtype)
    cotangents = [cast(w, dtype) for w in cotangents]
    results, gradients = run(arguments, options, cotangents)
    expected, expected_gradients = through_torch(function, arguments, options, cotangents)
    narrow, narrow_gradients = [None] * len(expected), {}
    if dtype == np.float32:
        narrow, narrow_gradients = through_torch(function, arguments, options, cotangents, torch.float32)
    for n, (r, e) in enumerate(zip(results, expected, strict=True)):
        close(f"result {n}", r, e, narrow[n])
    assert set(gradients) == set(expected_gradients)
    for name, e in expected_gradients.items():
        sums = dtype == np.float32 and name == "bias" and e.ndim == 1 and function is composition
        terms = terms_of_bias(function, arguments, options, cotangents) if sums else 0.0
        close(name, gradients[name], e, narrow_gradients.get(name), terms)


# --------------------------------------------------------------------------------------------------- the cell


def problem(
    seed, *, T=4, B=3, Cin=3, C=2, size=(5, 4), state=None, k_ih=(3, 3), k_hh=(3, 3), bias="channel",
    peephole=None, gain=1.0,
):  # fmt: skip
    """Arguments of conv_lstm_forward, exact in float32, and cotangents of its results."""
    rng = np.random.default_rng(seed)
    state = state or size

    def normal(*shape, gain=gain):
        return gain * rng.standard_normal(shape, dtype=np.float32).astype(np.float64)

    kinds = {None: lambda n: None, "channel": lambda n: normal(n), "pixel": lambda n: normal(n, *state)}
    arguments = {
        "x": normal(T, B, Cin, *size),
        "weight_ih": normal(4 * C, Cin, *k_ih, gain=0.25 * gain),
        "weight_hh": normal(4 * C, C, *k_hh, gain=0.25 * gain),
        "bias": kinds[bias](4 * C),
        "peephole": kinds[peephole](3 * C),
        "h_0": normal(B, C, *state),
        "c_0": normal(B, C, *state),
    }
    cotangents = [normal(T, B, C, *state), normal(B, C, *state), normal(B, C, *state)]
    return arguments, cotangents


COINS = np.random.default_rng(42).integers(0, 2, (9, 3, 2, 5, 4), dtype=np.uint8)
ZONEOUT = {"zoneout_mask_h": COINS[:4], "zoneout_mask_c": COINS[4:8]}
DROPOUT = {"dropout_mask": COINS[8] * 2.0}
DILATED = {"stride": 2, "dilation": 2}
PEEPHOLE = {"peephole": "channel"}
STEEP = {"peephole": "channel", "gain": 2.0}

# name: (what differs from problem()'s defaults, options of the cell)
CELLS = {
    "plain": ({}, {}),
    "no bias": ({"bias": None}, {}),
    "bias per pixel": ({"bias": "pixel"}, {}),
    "peephole per channel": (PEEPHOLE, {}),
    "peephole per pixel": ({"peephole": "pixel", "bias": "pixel"}, {}),
    "one pixel": ({"T": 1, "B": 1, "Cin": 1, "C": 1, "size": (1, 1), "k_ih": (1, 1), "k_hh": (1, 1)}, {}),
    "one row": ({"size": (1, 7), "k_ih": (1, 5), "k_hh": (1, 3)}, {}),
    "one column": ({"size": (6, 1), "k_ih": (3, 3), "k_hh": (5, 1)}, {}),
    "kernels of 1 and 11": ({"k_ih": (11, 1), "k_hh": (1, 11)}, {}),
    "even kernels": ({"k_ih": (2, 4), "k_hh": (4, 2)}, {}),
    "many channels": ({"Cin": 17, "C": 9, "T": 2}, {}),
    "long": ({"T": 20, "B": 1}, {}),
    "stride": ({"size": (9, 8), "state": (5, 4)}, {"stride": 2}),
    "strides, even kernel": ({"size": (9, 8), "state": (3, 4), "k_ih": (4, 2)}, {"stride": (3, 2)}),
    "dilation": ({}, {"dilation": (2, 3)}),
    "stride and dilation": ({"size": (9, 8), "state": (5, 3)}, {"stride": (2, 3), "dilation": (1, 2)}),
    "valid": ({"state": (3, 2)}, {"padding": "valid"}),
    "valid, stride, dilation": ({"size": (9, 8), "state": (3, 2)}, DILATED | {"padding": "valid"}),
    "padding": ({"state": (9, 8)}, {"padding": 3}),
    "padding h, w": ({"state": (3, 6)}, {"padding": (0, 2)}),
    "padding four": ({"state": (6, 5)}, {"padding": ((1, 2), (0, 3))}),
    "lengths": ({}, {"lengths": [2, 4, 0]}),
    "reverse": (PEEPHOLE, {"reverse": True}),
    "reverse, lengths": (PEEPHOLE, {"reverse": True, "lengths": [3, 0, 4]}),
    "truncation 1": ({}, {"truncation": 1}),
    "truncation 2": (PEEPHOLE, {"truncation": 2}),
    "truncation 3, reverse": ({}, {"truncation": 3, "reverse": True}),
    "truncation, lengths": ({}, {"truncation": 2, "lengths": [4, 3, 2]}),
    "truncation, lengths, reverse": ({}, {"truncation": 2, "lengths": [4, 2, 1], "reverse": True}),
    "truncation at T": ({}, {"truncation": 4}),
    "zoneout masks": (PEEPHOLE, ZONEOUT),
    "zoneout mask of h": ({}, {"zoneout_mask_h": ZONEOUT["zoneout_mask_h"]}),
    "zoneout mask of c": ({}, {"zoneout_mask_c": ZONEOUT["zoneout_mask_c"]}),
    "zoneout expected": (PEEPHOLE, {"zoneout_h": 0.25, "zoneout_c": 0.5}),
    "zoneout expected of c": ({}, {"zoneout_c": 0.125}),
    "dropout mask": ({}, DROPOUT),
    "dropout, zoneout": ({}, DROPOUT | ZONEOUT),
    "everything": (
        {"peephole": "pixel", "bias": "pixel"},
        DROPOUT | ZONEOUT | {"lengths": [4, 1, 3], "reverse": True, "truncation": 2},
    ),
    "hard sigmoid": (STEEP, {"recurrent_activation": "hard_sigmoid"}),
    "hard sigmoid of Keras 2": (STEEP, {"recurrent_activation": "hard_sigmoid_keras2"}),
    "relu": (PEEPHOLE, {"activation": "relu"}),
    "leaky relu": (PEEPHOLE, {"activation": "leaky_relu"}),
    "leaky relu, slope": (PEEPHOLE, {"activation": "leaky_relu", "slope": 0.3}),
    "hard tanh": (PEEPHOLE, {"activation": "hard_tanh"}),
    "softsign": (PEEPHOLE, {"activation": "softsign"}),
    "identity": (PEEPHOLE, {"activation": "identity", "recurrent_activation": "hard_sigmoid"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_conv_lstm(cell, name):
    different, options = CELLS[name]
    arguments, cotangents = problem(1, **different)

    def run(arguments, options, cotangents):
        *results, saved = cell.forward(**arguments, **options)
        return results, cell.backward(saved, *cotangents)

    compare(run, cell.dtype, composition, arguments, options, cotangents)


def test_nan_in_the_padding(cell):
    """Torch's gradients are those without the NaN: there 0 * NaN would spread."""
    arguments, cotangents = problem(2, peephole="channel")
    lengths = [2, 0, 4]
    padding = np.arange(4)[:, None] >= np.asarray(lengths)

    def run(arguments, options, cotangents):
        arguments["x"][padding] = np.nan
        cotangents[0][padding] = np.nan
        *results, saved = cell.forward(**arguments, **options)
        gradients = cell.backward(saved, *cotangents)
        arguments["x"][padding] = cotangents[0][padding] = 0.0
        return results, gradients

    compare(run, cell.dtype, composition, arguments, {"lengths": lengths}, cotangents)


@pytest.mark.parametrize("wanted", [("dy",), ("dh_n",), ("dc_n",)])
def test_one_cotangent_and_no_state(cell, wanted):
    arguments, cotangents = problem(3)
    names = ("dy", "dh_n", "dc_n")
    given = dict(zip(names, cotangents, strict=True))
    cotangents = [given[n] if n in wanted else np.zeros_like(given[n]) for n in names]
    arguments["h_0"], arguments["c_0"] = np.zeros_like(arguments["h_0"]), np.zeros_like(arguments["c_0"])

    def run(arguments, options, cotangents):
        left_out = {n: a for n, a in arguments.items() if n not in ("h_0", "c_0")}
        *results, saved = cell.forward(**left_out)
        return results, cell.backward(saved, **{n: w for n, w in zip(names, cotangents, strict=True) if n in wanted})

    compare(run, cell.dtype, composition, arguments, {}, cotangents)


def test_drawn_masks(cell):
    """In training the rates draw from Philox, streams 0, 1 and 2."""
    arguments, cotangents = problem(4)
    rates = {"recurrent_dropout": 0.25, "zoneout_h": 0.3, "zoneout_c": 0.45}
    where = {"seed": 2**50 + 3, "offset": 2**33 + 1}
    state = arguments["h_0"].shape
    masks = {
        "dropout_mask": (1 - cell.bernoulli(state, 0.25, stream=0, **where).astype(np.float64)) / 0.75,
        "zoneout_mask_h": cell.bernoulli((4, *state), 0.3, stream=1, **where),
        "zoneout_mask_c": cell.bernoulli((4, *state), 0.45, stream=2, **where),
    }

    def run(arguments, options, cotangents):
        *results, saved = cell.forward(**arguments, **rates, **where, training=True)
        return results, cell.backward(saved, *cotangents)

    compare(run, cell.dtype, composition, arguments, masks, cotangents)


@pytest.mark.parametrize("name", ["plain", "stride", "everything", "dropout, zoneout", "zoneout expected", "relu"])
def test_step(cell, name):
    different, options = CELLS[name]
    options = {n: o for n, o in options.items() if n not in ("lengths", "reverse", "truncation")}
    arguments, (_, *cotangents) = problem(5, **(different | {"T": 1}))

    def run(arguments, options, cotangents):
        options = {n: o[0] if n.startswith("zoneout_mask") else o for n, o in options.items()}
        a = dict(arguments, x=arguments["x"][0], h=arguments["h_0"], c=arguments["c_0"])
        del a["h_0"], a["c_0"]
        *results, saved = cell.step_forward(**a, **options)
        gradients = cell.step_backward(saved, *cotangents)
        gradients["h_0"], gradients["c_0"] = gradients.pop("h"), gradients.pop("c")
        gradients["x"] = gradients["x"][None]
        return results, gradients

    def one_step(*tensors, **options):
        return composition(*tensors, **options)[1:]

    compare(run, cell.dtype, one_step, arguments, options, cotangents)


@pytest.mark.parametrize("spatial", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("kind", [None, "channel", "pixel"])
@pytest.mark.parametrize("names", [{}, {"recurrent_activation": "hard_sigmoid", "activation": "leaky_relu"}])
@pytest.mark.parametrize("zoneout", [False, True])
def test_gates(cell, spatial, kind, names, zoneout):
    rng = np.random.default_rng(6)
    B, C = 3, 4

    def normal(*shape):
        return 2 * rng.standard_normal(shape, dtype=np.float32).astype(np.float64)

    pixels = spatial if kind == "pixel" else ()
    arguments = {
        "z": normal(B, 4 * C, *spatial),
        "h": normal(B, C, *spatial) if zoneout else None,
        "c": normal(B, C, *spatial),
        "bias": normal(4 * C, *pixels) if kind else None,
        "peephole": normal(3 * C, *pixels) if kind else None,
    }
    cotangents = [normal(B, C, *spatial) for _ in range(2)]
    masks = {f"zoneout_mask_{s}": rng.integers(0, 2, (B, C, *spatial), dtype=np.uint8) for s in "hc"}

    def run(arguments, options, cotangents):
        *results, saved = cell.gates_forward(**arguments, **options)
        return results, cell.gates_backward(saved, *cotangents)

    def torch_gates(z, h, c, bias, peephole, zoneout_mask_h=0.0, zoneout_mask_c=0.0, **names):
        h = torch.zeros_like(c) if h is None else h
        return gates(z, h, c, bias, peephole, m_h=zoneout_mask_h, m_c=zoneout_mask_c, **names)

    compare(run, cell.dtype, torch_gates, arguments, names | (masks if zoneout else {}), cotangents)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_against_packed_nn_lstm(cell, bidirectional):
    """At H = W = kernel = 1 a ConvLSTM is nn.LSTM, whose packed sequences are the authority on lengths."""
    T, B, I, C = 5, 4, 3, 2
    lengths = np.array([2, 5, 1, 4])
    torch.manual_seed(7)
    lstm = torch.nn.LSTM(I, C, bidirectional=bidirectional).double()
    directions = 1 + bidirectional
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h_0, c_0 = (torch.randn(directions, B, C, dtype=torch.float64, requires_grad=True) for _ in "hc")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, (h_n, c_n) = lstm(packed, (h_0, c_0))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    dy, dh_n, dc_n = (torch.randn_like(r) for r in (y, h_n, c_n))
    ((y * dy).sum() + (h_n * dh_n).sum() + (c_n * dc_n).sum()).backward()

    def pixels(tensor):
        return tensor.detach().numpy()[..., None, None].astype(cell.dtype)

    tolerance = {"rtol": 1e-5, "atol": 1e-5} if cell.dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-12}
    dx = 0
    for d, suffix in enumerate(["", "_reverse"][:directions]):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_ih, w_hh, b_ih, b_hh = (getattr(lstm, f"{n}_l0{suffix}") for n in names)
        channels = slice(d * C, (d + 1) * C)
        *results, saved = cell.forward(
            pixels(x), pixels(w_ih), pixels(w_hh), (b_ih + b_hh).detach().numpy().astype(cell.dtype), None,
            pixels(h_0[d]), pixels(c_0[d]), lengths=lengths, reverse=bool(d),
        )  # fmt: skip
        for r, e in zip(results, (y[..., channels], h_n[d], c_n[d]), strict=True):
            np.testing.assert_allclose(r[..., 0, 0], e.detach(), **tolerance)
        gradients = cell.backward(saved, pixels(dy[..., channels]), pixels(dh_n[d]), pixels(dc_n[d]))
        expected = {"weight_ih": w_ih.grad, "weight_hh": w_hh.grad, "h_0": h_0.grad[d], "c_0": c_0.grad[d]}
        for name, e in expected.items():
            np.testing.assert_allclose(gradients[name][..., 0, 0], e, err_msg=name, **tolerance)
        np.testing.assert_allclose(gradients["bias"], b_ih.grad, **tolerance)
        dx = dx + gradients["x"][..., 0, 0]
    np.testing.assert_allclose(dx, x.grad, **tolerance)


def test_gates_against_nn_lstm_cell(module):
    torch.manual_seed(8)
    lstm = torch.nn.LSTMCell(3, 4).double()
    x, h, c = (torch.randn(5, n, dtype=torch.float64) for n in (3, 4, 4))
    z = F.linear(x, lstm.weight_ih, lstm.bias_ih) + F.linear(h, lstm.weight_hh)
    got = module.lstm_gates_forward(z.detach().numpy(), c.numpy(), bias=lstm.bias_hh.detach().numpy())[:2]
    for g, e in zip(got, lstm(x, (h, c)), strict=True):
        np.testing.assert_allclose(g, e.detach(), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ convolution


CONVOLUTIONS = [
    {"kernel": (3, 3)},
    {"kernel": (1, 1), "bias": False},
    {"kernel": (2, 4)},
    {"kernel": (3, 2), "stride": 2},
    {"kernel": (4, 3), "stride": (3, 2)},
    {"kernel": (3, 3), "dilation": (2, 3)},
    {"kernel": (3, 2), "stride": (2, 1), "dilation": 2},
    {"kernel": (3, 2), "padding": "valid"},
    {"kernel": (2, 3), "padding": "valid", "stride": (2, 3)},
    {"kernel": (5, 3), "padding": 2},
    {"kernel": (3, 3), "padding": (0, 3), "stride": 2},
    {"kernel": (3, 3), "padding": ((2, 0), (1, 3)), "dilation": 2, "stride": (1, 2)},
    {"kernel": (11, 9)},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_conv2d(module, options):
    options = dict(options)
    kernel, with_bias = options.pop("kernel"), options.pop("bias", True)
    rng = np.random.default_rng(9)
    arguments = {
        "x": rng.standard_normal((2, 3, 8, 9)),
        "weight": rng.standard_normal((4, 3, *kernel)),
        "bias": rng.standard_normal(4) if with_bias else None,
    }

    def function(x, weight, bias, **options):
        y = convolution(x, weight, **options)
        return y if bias is None else y + bias[:, None, None]

    y = module.conv2d_forward(**arguments, **options)
    dy = rng.standard_normal(y.shape)
    gradients = module.conv2d_backward(dy, arguments["x"], arguments["weight"], **options)
    (expected,), expected_gradients = through_torch(function, arguments, options, [dy])
    close("y", y, expected)
    for name, e in expected_gradients.items():
        close(name, gradients[name], e)
    np.testing.assert_allclose(gradients["bias"], dy.sum(axis=(0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 4), (5, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_is_torchs_same_at_stride_1(module, kernel, dilation):
    rng = np.random.default_rng(10)
    x, weight = rng.standard_normal((1, 2, 6, 7)), rng.standard_normal((3, 2, *kernel))
    expected = F.conv2d(torch.tensor(x), torch.tensor(weight), padding="same", dilation=dilation)
    close("y", module.conv2d_forward(x, weight, padding="same", dilation=dilation), expected.numpy())


# ------------------------------------------------------------------------------------------------ activations


ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 1.7),
    "softplus": lambda x: -F.logsigmoid(-x),  # torch's softplus returns x itself above its threshold of 20
    "hard_sigmoid": lambda x: F.relu6(x + 3) / 6,
    "hard_sigmoid_keras2": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "hard_tanh": F.hardtanh,
    "softsign": F.softsign,
    "identity": lambda x: x.clone(),
}
SHAPE = {"slope": 0.2, "alpha": 1.7}
CORNERS = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 3.0, -3.0, 20.0, -20.0, 1e4, -1e4, math.inf, -math.inf]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(module, name):
    corners = [x for x in CORNERS if not (name == "softsign" and math.isinf(x))]  # NaN in torch
    x = np.concatenate([np.linspace(-8, 8, 1001), corners])
    dy = np.random.default_rng(11).standard_normal(x.shape)
    tensor = torch.tensor(x, requires_grad=True)
    expected = ACTIVATIONS[name](tensor)
    expected.backward(torch.tensor(dy))
    y = module.activation_forward(name, x, **SHAPE)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-14, atol=1e-16)
    dx = module.activation_backward(name, x, y, dy, **SHAPE)
    # The derivative of sigmoid and tanh is made of y: 4 eps of the terms in dy (1 - y) and dy (1 - y^2).
    np.testing.assert_allclose(dx, tensor.grad, rtol=1e-14, atol=8 * np.finfo(float).eps * np.max(np.abs(dy)))


def test_hard_sigmoid_is_torchs_own(module):
    x = np.concatenate([np.linspace(-4, 4, 101), CORNERS])
    tensor = torch.tensor(x, requires_grad=True)
    expected = F.hardsigmoid(tensor)
    expected.sum().backward()
    y = module.activation_forward("hard_sigmoid", x)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-14, atol=1e-16)
    dx = module.activation_backward("hard_sigmoid", x, y, np.ones_like(x))
    np.testing.assert_allclose(dx, tensor.grad, rtol=3e-8)  # torch's 1/6 is a float32, in float64 too


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_nan(module, name):
    assert torch.isnan(ACTIVATIONS[name](torch.tensor([math.nan]))).all()
    assert np.isnan(module.activation_forward(name, np.array([math.nan]))).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(module, axis):
    rng = np.random.default_rng(12)
    x, dy = 20 * rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
    (expected,), gradients = through_torch(lambda x: torch.softmax(x, axis), {"x": x}, {}, [dy])
    y = module.softmax_forward(x, axis)
    np.testing.assert_allclose(y, expected, rtol=1e-13)
    np.testing.assert_allclose(module.softmax_backward(y, dy, axis), gradients["x"], rtol=1e-11, atol=1e-15)


# --------------------------------------------------------------------------------------------------- clipping


def clipped(module, name, arrays, *arguments, **options):
    """(new arrays, what the function returns besides): the reference is pure, ops work in place."""
    copies = [a.copy() for a in arrays]
    result = getattr(module, name)(copies, *arguments, **options)
    if module.__name__ != "fusecell.reference":
        return copies, result
    return result if isinstance(result, tuple) else (result, None)


def gradients_like(arrays):
    parameters = [torch.zeros(a.shape, dtype=torch.float64, requires_grad=True) for a in arrays]
    for p, a in zip(parameters, arrays, strict=True):
        p.grad = torch.tensor(a)
    return parameters


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
def test_clip_by_norm(module, norm_type, max_norm, size):
    rng = np.random.default_rng(13)
    arrays = [size * rng.standard_normal(s) for s in ((3, 4), (5,), (1, 1, 2))]
    parameters = gradients_like(arrays)
    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type).item()
    got, norm = clipped(module, "clip_by_global_norm_", arrays, max_norm, norm_type)
    assert norm == pytest.approx(expected_norm, rel=1e-13, abs=0)
    assert module.global_norm(arrays, norm_type) == pytest.approx(expected_norm, rel=1e-13, abs=0)
    for g, p in zip(got, parameters, strict=True):
        np.testing.assert_allclose(g, p.grad, rtol=1e-13)

    parameters = gradients_like(arrays)
    expected_norms = [torch.nn.utils.clip_grad_norm_([p], max_norm, norm_type).item() for p in parameters]
    got, norms = clipped(module, "clip_by_norm_", arrays, max_norm, norm_type)
    assert list(norms) == pytest.approx(expected_norms, rel=1e-13, abs=0)
    for g, p in zip(got, parameters, strict=True):
        np.testing.assert_allclose(g, p.grad, rtol=1e-13)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_clip_of_what_is_not_finite(module, norm_type, bad):
    arrays = [np.array([1.0, bad]), np.array([2.0])]
    parameters = gradients_like(arrays)
    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0, norm_type).item()
    got, norm = clipped(module, "clip_by_global_norm_", arrays, 1.0, norm_type)
    np.testing.assert_array_equal(norm, expected_norm)
    for g, p in zip(got, parameters, strict=True):
        np.testing.assert_array_equal(g, p.grad)
    with pytest.raises(FloatingPointError):
        module.clip_by_global_norm_(arrays, 1.0, norm_type, error_if_nonfinite=True)
    np.testing.assert_array_equal(arrays[0], [1.0, bad])


def test_clip_by_value(module):
    arrays = [np.array([-3.0, -1.0, 0.2, math.inf, math.nan]), np.array([[7.0]])]
    parameters = gradients_like(arrays)
    torch.nn.utils.clip_grad_value_(parameters, 1.0)
    got, _ = clipped(module, "clip_by_value_", arrays, 1.0)
    for g, p in zip(got, parameters, strict=True):
        np.testing.assert_array_equal(g, p.grad)
