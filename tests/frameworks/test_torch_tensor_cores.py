"""What a GPU's tensor cores compute, through autograd: 16 bits, and float32 where torch's own switch allows TF32.

On the emulated kernels, which take tensors of the host's memory.
"""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusecell.torch as ft  # noqa: E402
from fusecell import _dispatch  # noqa: E402
from fusecell._cases import CASES  # noqa: E402
from fusecell.selftest import backends  # noqa: E402
from fusecell.torch import _conv_lstm, _memory, _options, _tensor_cores, plain  # noqa: E402

if "emulated" not in backends() or not _dispatch.tensor_cores("emulated"):
    pytest.skip("needs emulated kernels that take tensor cores", allow_module_level=True)

torch.set_num_threads(1)
EPSILON = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-10}  # float32: of TF32
HALF = [torch.bfloat16, torch.float16]
NAMES = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")
CELL_STATE = ("c_0", "c_n", "c")
DRAWN = ("training", "seed", "offset", "algorithm")  # masks stand in place of what is drawn


@pytest.fixture(autouse=True)
def _emulated():
    with _dispatch.using("emulated"):
        yield


@pytest.fixture
def switch():
    """Sets torch's switch, by the newer name where there is one; as it was afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32

    def turn(on):
        if hasattr(cudnn, "conv"):
            cudnn.conv.fp32_precision = "tf32" if on else "ieee"
        else:
            cudnn.allow_tf32 = on

    yield turn
    if hasattr(cudnn, "conv"):
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "none"
    cudnn.allow_tf32 = before


def channels_last(t):
    return t.movedim(-3, -1).contiguous().movedim(-1, -3)


def tensors_of(case, dtype, rng):
    """A case's tensors, rounded to the dtype, and its options, with masks in place of what is drawn."""
    given = {
        name: None if a is None else torch.from_numpy(a).to(torch.float32 if name in CELL_STATE else dtype)
        for name, a in case.arguments(rng).items()
    }
    options = {name: value for name, value in case.options.items() if name not in DRAWN}
    dropout = options.pop("recurrent_dropout", 0.0)
    if case.options.get("training"):
        convolution = {name: options[name] for name in ("stride", "dilation", "padding") if name in options}
        y, h, _ = plain.conv_lstm(**in_float64(given), **convolution)  # for the shapes
        for name, rate in ((name, options.get(f"zoneout_{name}", 0.0)) for name in "hc"):
            if rate:
                options[f"zoneout_mask_{name}"] = torch.from_numpy((rng.random(y.shape) < rate).astype(np.uint8))
        if dropout:
            options["dropout_mask"] = torch.from_numpy((rng.random(h.shape) >= dropout) / (1 - dropout)).to(dtype)
    return given, options


def in_float64(given):
    return {name: None if t is None else t.detach().double().requires_grad_() for name, t in given.items()}


def leaves_of(named):
    return {name: t for name, t in named.items() if t is not None}


def fused(given, options):
    named = {name: None if t is None else t.detach().requires_grad_() for name, t in given.items()}
    leaves, options = leaves_of(named), dict(options)
    h_0, c_0 = named.pop("h_0"), named.pop("c_0")
    options["zoneout"] = options.pop("zoneout_h", 0.0), options.pop("zoneout_c", 0.0)
    y, (h, c) = ft.conv_lstm(**named, hx=None if h_0 is None else (h_0, c_0), **options)
    return gradients_too({"y": y, "h_n": h, "c_n": c}, leaves)


def expected_of(given, options):
    named = in_float64(given)
    turned = {"dropout_mask": torch.Tensor.double, "lengths": torch.tensor}
    options = {name: turned[name](value) if name in turned else value for name, value in options.items()}
    outputs = plain.conv_lstm(**named, **options)
    return gradients_too(dict(zip(("y", "h_n", "c_n"), outputs, strict=True)), leaves_of(named))


def gradients_too(outputs, leaves):
    generator = torch.Generator().manual_seed(1)
    sent = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs.values()]
    sent = [d.bfloat16().to(o.dtype) for d, o in zip(sent, outputs.values(), strict=True)]  # the same in every dtype
    found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), sent)
    return {**outputs, **{f"d{name}": d for name, d in zip(leaves, found, strict=True)}}


def assert_near(got, expected, dtype, smooth):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].dtype == (torch.float32 if name.removeprefix("d") in CELL_STATE else dtype), name
        if want.numel() and (smooth or name in ("y", "h_n", "c_n")):
            error = (got[name].double() - want).abs().max() / want.abs().max().clamp(min=1e-30)
            assert error < (4 if name.startswith("d") else 1) * EPSILON[dtype], (name, float(error))


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].dtype == want.dtype
        assert got[name].shape == want.shape
        assert torch.equal(got[name], want), name


# Where there is no step, the composition has no graph that autograd could go back through.
TABLE = [case for case in CASES if case.op == "conv_lstm" and case.shape.get("T") != 0]


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_against_torchs_own_operators(case, dtype, rng):
    """In float64, on the same rounded numbers."""
    given, options = tensors_of(case, dtype, rng)
    assert_near(fused(given, options), expected_of(given, options), dtype, case.smooth)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("case", TABLE[::6], ids=str)
def test_layouts_and_gates_made_again_give_the_same_bits(case, dtype, rng):
    given, options = tensors_of(case, dtype, rng)
    got = fused(given, options)
    turned = {**given, "x": channels_last(given["x"])}
    assert_same_bits(fused(turned, options), got)
    assert_same_bits(fused(turned, {**options, "recompute": True}), got)


def a_call(dtype=torch.bfloat16, T=3, channels=8, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (T, 2, 4, 5, 6), "weight_ih": (4 * channels, 4, 3, 3), "weight_hh": (4 * channels, channels, 3, 3)}
    drawn = {n: (0.3 * torch.randn(s, generator=generator)).to(dtype).requires_grad_() for n, s in shapes.items()}
    return ft.conv_lstm(**drawn, **options), drawn


# --------------------------------------------------------------------------------------------------- what is kept
def kept_of(output):
    """c, gates as they are saved for backward."""
    return output.grad_fn.saved_tensors[-2:]


def is_last(t):
    return t.movedim(-3, -1).is_contiguous() and not t.is_contiguous()


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_kept_lies_channels_last(dtype, images, monkeypatch):
    """And reaches the kernels of backward as it lies."""
    (_, _), weights = a_call(dtype)
    x = weights.pop("x").detach()
    y, _ = ft.conv_lstm(channels_last(x) if images else x, **weights)
    c, gates = kept_of(y)
    assert is_last(c)
    assert is_last(gates)
    run, seen = _memory.run, {}

    def spied(function, device, tensors, *rest):
        seen.update(tensors)
        run(function, device, tensors, *rest)

    monkeypatch.setattr(_memory, "run", spied)
    y.sum().backward()
    assert seen["c"][0] == c.data_ptr()
    assert seen["gates"][0] == gates.data_ptr()


def test_a_single_steps_state_is_kept_once():
    for images in (False, True):
        (_, _), given = a_call()
        x = given["x"].detach()[:1]
        y, (_, c_n) = ft.conv_lstm(channels_last(x) if images else x, given["weight_ih"], given["weight_hh"])
        c, gates = kept_of(y)
        assert c.data_ptr() == c_n.data_ptr()
        assert is_last(gates)
        y.sum().backward()


def test_elsewhere_what_is_kept_is_contiguous():
    for options in ({"dtype": torch.bfloat16, "algorithm": "direct"}, {"dtype": torch.float64}):
        (y, _), _ = a_call(**options)
        assert all(t.is_contiguous() for t in kept_of(y))
    with _dispatch.using("cpu"):
        (y, _), _ = a_call(torch.float32)
    assert all(t.is_contiguous() for t in kept_of(y))


def test_what_was_saved_may_come_back_otherwise():
    """As saved_tensors_hooks may give it: it is put right."""
    (y, _), given = a_call()
    expected = torch.autograd.grad(y.sum(), list(given.values()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        (y, _), given = a_call()
        got = torch.autograd.grad(y.sum(), list(given.values()))
    assert all(map(torch.equal, got, expected))


# ------------------------------------------------------------------------------------------------- without memory
@pytest.mark.parametrize("algorithm", ["auto", "direct", "tensor_cores", "tf32"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_fake_outputs_lie_as_real_ones(steps, dtype, algorithm):
    """What torch.compile and export are told."""
    (_, _), given = a_call(dtype, T=steps)
    cell = _options.cell("sigmoid", "tanh", 0.01, 0.0, (0.0, 0.0))
    options = {**_options.convolution(1, 1, "same", algorithm), **cell, "reverse": False, "truncation": 0}
    arguments = [*(t.detach() for t in given.values()), *(None,) * 8, _options.as_text(options), "gates"]
    try:
        real = _conv_lstm.conv_lstm(*arguments)
    except ValueError as error:
        assert f'got "{algorithm}" with ' in str(error)  # noqa: PT017
        return
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        fake = _conv_lstm.conv_lstm(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    assert [t.stride() for t in fake] == [t.stride() for t in real]
    assert [t.dtype for t in fake] == [t.dtype for t in real]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_compiled(dtype, dynamo):
    def run(x, weight_ih, weight_hh):
        y, (_, c) = ft.conv_lstm(x, weight_ih, weight_hh)
        return y.sum() + c.sum()

    (_, _), given = a_call(dtype)
    results = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        results.append(torch.autograd.grad(function(*given.values()), list(given.values())))
    assert all(map(torch.equal, *results))


# ------------------------------------------------------------------------------------------------- torch's switch
def algorithm_of(output):
    return _options.parsed(output.grad_fn.options)["algorithm"]


def test_float32_follows_torchs_switch(switch):
    for on, algorithm in ((True, "tf32"), (False, "direct")):
        switch(on)
        (y, _), given = a_call(torch.float32)
        (named, _), of_named = a_call(torch.float32, algorithm=algorithm)
        switch(not on)  # backward does as its forward
        assert algorithm_of(y) == algorithm
        assert torch.equal(y, named)
        got, expected = (torch.autograd.grad(o.sum(), list(g.values())) for o, g in ((y, given), (named, of_named)))
        assert all(map(torch.equal, got, expected))


def test_the_modes_differ(switch):
    """That the switch has an effect at all, and TF32 the error that it may have."""
    switch(True)
    (rounded, _), _ = a_call(torch.float32)
    switch(False)
    (exact, _), _ = a_call(torch.float32)
    assert 1e-5 < (rounded - exact).abs().max() < 2e-3


def test_torchs_older_name_and_a_mixture_of_both(switch):
    """Reading the older one raises where both were used."""
    del switch  # which puts things right afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
        assert not _tensor_cores.torch_allows_tf32()
        torch.backends.cudnn.allow_tf32 = True
        assert _tensor_cores.torch_allows_tf32()
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        assert not _tensor_cores.torch_allows_tf32()
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        assert _tensor_cores.torch_allows_tf32()


def test_before_the_newer_name(monkeypatch, switch):
    switch(False)
    monkeypatch.setattr(_tensor_cores.torch.backends, "cudnn", types.SimpleNamespace(allow_tf32=True))
    assert _tensor_cores.torch_allows_tf32()


WAYS = {
    "tensor_cores": (torch.bfloat16, {"algorithm": "tensor_cores"}),
    "auto of 16 bits": (torch.bfloat16, {}),
    "tf32": (torch.float32, {"algorithm": "tf32"}),
    "auto of float32": (torch.float32, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_modules_take_them(way, switch, monkeypatch):
    switch(True)
    run, seen = _memory.run, set()

    def spied(function, device, tensors, options, plan):
        seen.add((function, plan["algorithm"]))
        run(function, device, tensors, options, plan)

    monkeypatch.setattr(_memory, "run", spied)
    dtype, options = WAYS[way]
    stack = ft.ConvLSTM2d(2, 4, 3, num_layers=2, bidirectional=True, dtype=dtype, **options)
    cell = ft.ConvLSTMCell2d(8, 4, 3, **options).to(dtype)
    y, _ = stack(torch.randn(3, 2, 2, 5, 6, dtype=dtype))
    cell(y[-1])[0].sum().backward()
    name = "tf32" if dtype == torch.float32 else "tensor_cores"
    assert seen == {("conv_lstm_forward", name), ("conv_lstm_backward", name)}


def test_gpus_without_tensor_cores_compute_directly(switch, monkeypatch):
    switch(True)
    monkeypatch.setattr(_dispatch, "tensor_cores", lambda backend: False)
    assert _tensor_cores.algorithm_of_float32("cpu") == "direct"
    assert not _tensor_cores.on_tensor_cores(torch.zeros(1, dtype=torch.bfloat16), "auto")


def test_on_the_cpu_the_switch_says_nothing(switch):
    switch(True)
    with _dispatch.using("cpu"):
        (y, _), _ = a_call(torch.float32)
        assert algorithm_of(y) == "auto"
    for dtype in (torch.float64, torch.bfloat16):
        (y, _), _ = a_call(dtype)
        assert algorithm_of(y) == "auto"


def test_a_compiled_function_keeps_what_was_decided_when_it_was_traced(switch, dynamo):
    def run(x, weight_ih, weight_hh):
        return ft.conv_lstm(x, weight_ih, weight_hh)[0]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    (_, _), given = a_call(torch.float32)
    switch(True)
    first = compiled(*given.values())
    assert torch.equal(first, run(*given.values()))
    switch(False)
    assert torch.equal(compiled(*given.values()), first)
    assert not torch.equal(run(*given.values()), first)
    torch._dynamo.reset()
    assert torch.equal(compiled(*given.values()), run(*given.values()))
