"""fusecell.torch as a citizen of PyTorch: its checkers, compilers, transforms, dtypes, modes and module protocol."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import fusecell.torch as ft  # noqa: E402
from fusecell import ops, weights  # noqa: E402
from fusecell._typing import Algorithm  # noqa: E402
from fusecell.torch import _conv_lstm, _lstm_gates, _memory, _operation, _options, plain  # noqa: E402

T, B, I, C, H, W = 3, 2, 2, 3, 4, 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(7)


def lay(x, batch_first, channels_last):
    """The sequence [T, B, C, H, W] with another order in memory."""
    order = (1, 0) if batch_first else (0, 1)
    order += (3, 4, 2) if channels_last else (2, 3, 4)
    back = sorted(range(5), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


def draw(*shape, dtype=torch.float64, grad=True):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def cell_arguments(dtype=torch.float64, peephole="pixel", **more):
    """The tensors of a small conv_lstm."""
    rows = {"pixel": (3 * C, H, W), "channel": (3 * C,), None: None}[peephole]
    state = (B, C, H, W)
    return {
        "x": draw(T, B, I, H, W, dtype=dtype),
        "weight_ih": draw(4 * C, I, 3, 3, dtype=dtype),
        "weight_hh": draw(4 * C, C, 3, 3, dtype=dtype),
        "bias": draw(4 * C, dtype=dtype),
        "peephole": None if rows is None else draw(*rows, dtype=dtype),
        "h_0": draw(*state, dtype=dtype),
        "c_0": draw(*state, dtype=dtype),
        **more,
    }


def options(**more):
    zoneout = more.pop("zoneout", (0.0, 0.0))
    return _options.as_text(
        {
            **_options.convolution(1, 1, "same", "auto"),
            **_options.cell("sigmoid", "tanh", 0.01, 0.0, zoneout),
            "reverse": False,
            "truncation": 0,
            **more,
        }
    )


# --------------------------------------------------------------------------------------------- the operators' checkers
MASKS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([2, 3])},
    "zoneout": {"zoneout_mask_h": torch.ones(T, B, C, H, W, dtype=torch.uint8)},
    "dropout": {"dropout_mask": torch.full((B, C, H, W), 2.0)},
}
NAMES = ("lengths", "dropout_mask", "zoneout_mask_h", "zoneout_mask_c")


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("masks", MASKS)
def test_opcheck_conv_lstm(masks, save):
    inputs = list(cell_arguments(torch.float32).values())
    others = [MASKS[masks].get(name) for name in NAMES]
    torch.library.opcheck(_conv_lstm.conv_lstm, (*inputs, *others, options(), save))
    with torch.no_grad():
        y, h_n, _, c, gates = _conv_lstm.conv_lstm(*inputs, *others, options(), save)
    given = [t.detach() for t in inputs]
    sent = (torch.randn_like(y), None, torch.randn_like(h_n))
    for needs in ([True] * 7, [False, True, False, False, True, False, False]):
        arguments = (*sent, *given, *others, y, c, gates, options(), needs)
        torch.library.opcheck(torch.ops.fusecell.conv_lstm_backward.default, arguments)


def test_opcheck_without_what_may_be_absent():
    x, weight_ih, weight_hh, *_ = cell_arguments(torch.float32).values()
    with torch.no_grad():
        for save in ("none", "gates"):
            arguments = (x.detach(), weight_ih.detach(), weight_hh.detach(), *[None] * 8, options(), save)
            torch.library.opcheck(_conv_lstm.conv_lstm, arguments)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_layouts(batch_first, channels_last):
    """The fake kernels know how the outputs lie in memory."""
    inputs = cell_arguments(torch.float32)
    inputs["x"] = lay(inputs["x"].detach(), batch_first, channels_last).requires_grad_()
    arguments = (*inputs.values(), *[None] * 4, options(), "gates")
    torch.library.opcheck(_conv_lstm.conv_lstm, arguments)


@pytest.mark.parametrize("spatial", [(), (4,), (2, 3, 2)], ids=str)
def test_opcheck_lstm_gates(spatial):
    inputs = [draw(B, 4 * C, *spatial), draw(B, C, *spatial), draw(B, C, *spatial), draw(4 * C), draw(3 * C, *spatial)]
    text = _options.as_text(_options.cell("sigmoid", "tanh", 0.01, 0.0, (0.1, 0.2)))
    torch.library.opcheck(_lstm_gates.lstm_gates, (*inputs, None, None, text, "gates"))
    given = [t.detach() for t in inputs]
    h, c, gates = _lstm_gates.lstm_gates(*given, None, None, text, "gates")
    for needs in ([True] * 5, [False, False, True, False, True]):
        arguments = (torch.randn_like(h), torch.randn_like(c), *given, None, None, gates, text, needs)
        torch.library.opcheck(torch.ops.fusecell.lstm_gates_backward.default, arguments)


def function_of(arguments, **keywords):
    """conv_lstm as a function of its tensors alone, and these."""
    names = [name for name, t in arguments.items() if t is not None]

    def run(*given):
        named = dict(zip(names, given, strict=True))
        hx = (named.pop("h_0"), named.pop("c_0"))
        y, state = ft.conv_lstm(**named, hx=hx, **keywords)
        return y, *state

    return run, tuple(arguments[name] for name in names)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"lengths": [3, 1], "reverse": True},
        {"padding": ((0, 2), (1, 1)), "recompute": True},
        {"zoneout": (0.2, 0.1), "recurrent_activation": "hard_sigmoid", "activation": "softsign"},
    ],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(keywords):
    small = {name: t[..., :2, :3] if t is not None and t.dim() == 5 else t for name, t in cell_arguments().items()}
    small = {name: t[..., :2, :3] if name in ("peephole", "h_0", "c_0") else t for name, t in small.items()}
    small = {name: t.detach().requires_grad_() for name, t in small.items()}
    run, inputs = function_of(small, **keywords)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_gradcheck_and_gradgradcheck_of_a_module_whole():
    module = ft.ConvLSTM2d(2, 2, (3, 1), num_layers=2, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))[0]

    inputs = (draw(2, 1, 2, 2, 2), *module.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_gradcheck_and_gradgradcheck_of_the_gates():
    def run(z, c, h, bias, peephole):
        return ft.lstm_gates(z, c, h, bias, peephole, zoneout=(0.2, 0.1))

    inputs = (draw(B, 4 * C, 3), draw(B, C, 3), draw(B, C, 3), draw(4 * C, 3), draw(3 * C))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_third_derivative():
    run, inputs = function_of(cell_arguments(peephole="channel"))
    composed = lambda *given: plain.conv_lstm(*given)  # noqa: E731

    def third(function):
        value = function(*inputs)[0].square().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, inputs[0], create_graph=True)
            value = gradient.square().sum()
        return gradient.detach()

    torch.testing.assert_close(third(run), third(composed), rtol=1e-9, atol=1e-9)


def test_a_second_backward_gives_the_same_bits():
    run, inputs = function_of(cell_arguments(torch.float32))
    loss = sum(o.square().sum() for o in run(*inputs))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs, retain_graph=True)
    other_graph = torch.autograd.grad(loss, inputs, create_graph=True)
    for a, b, c in zip(first, again, other_graph, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_changed_input_is_noticed():
    run, inputs = function_of(cell_arguments(torch.float32))
    y, *_ = run(*inputs)
    with torch.no_grad():
        inputs[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_only_what_is_needed_is_computed(monkeypatch):
    asked = []
    original = _memory.run

    def record(function, device, tensors, *rest):
        if function == "conv_lstm_backward":
            gradients = {name for name in tensors if name.startswith("d")}
            asked.append(gradients - {"dy", "dh_n", "dc_n", "dropout_mask"})
        original(function, device, tensors, *rest)

    monkeypatch.setattr(_memory, "run", record)
    arguments = cell_arguments()
    run, inputs = function_of(arguments)
    for name in ("x", "weight_hh", "peephole", "c_0"):
        torch.autograd.grad(run(*inputs)[0].sum(), arguments[name])
    # A frozen input projection, as in a fine-tuned network.
    for name in ("x", "weight_ih", "h_0", "c_0"):
        arguments[name].requires_grad_(False)
    run(*inputs)[0].sum().backward()
    assert asked[-1] == {"dweight_hh", "dbias", "dpeephole"}
    assert arguments["x"].grad is None


# ------------------------------------------------------------------------------------------------------------ layouts
def pixels_of_channels_last(frames):
    return frames.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layouts_come_out_as_they_went_in(batch_first, channels_last, num_layers, bidirectional):
    module = ft.ConvLSTM2d(I, C, 3, num_layers, batch_first=batch_first, bidirectional=bidirectional)
    plain_one = copy.deepcopy(module)
    plain_one.batch_first = False
    cells = num_layers * (1 + bidirectional)
    x, hx = torch.randn(T, B, I, H, W), (torch.randn(cells, B, C, H, W), torch.randn(cells, B, C, H, W))
    given = lay(x, batch_first, channels_last)
    turned = (given.transpose(0, 1) if batch_first else given).requires_grad_()
    y, (h_n, c_n) = module(turned, hx)
    x.requires_grad_()
    expected, states = plain_one(x, hx)
    for mine, theirs in zip((y.transpose(0, 1) if batch_first else y, h_n, c_n), (expected, *states), strict=True):
        assert torch.equal(mine, theirs)
    for frames in (y, h_n, c_n):
        assert pixels_of_channels_last(frames) if channels_last else frames.is_contiguous()
    sent = torch.randn_like(expected)
    expected.backward(sent)
    y.backward(
        lay(sent, batch_first, channels_last).transpose(0, 1) if batch_first else lay(sent, False, channels_last)
    )
    assert torch.equal(turned.grad.transpose(0, 1) if batch_first else turned.grad, x.grad)
    assert turned.grad.stride() == turned.stride()
    for p, q in zip(module.parameters(), plain_one.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_kernels_read_and_write_the_callers_memory(monkeypatch, batch_first, channels_last):
    """No copy on the way in or out."""
    places = {}
    original = _memory.run

    def record(function, device, tensors, *rest):
        places.update({name: described[0] for name, described in tensors.items()})
        original(function, device, tensors, *rest)

    monkeypatch.setattr(_memory, "run", record)
    module = ft.ConvLSTM2d(I, C, 3, batch_first=batch_first)
    x, state = lay(torch.randn(T, B, I, H, W), batch_first, channels_last), torch.randn(1, B, C, H, W)
    x = (x.transpose(0, 1) if batch_first else x).requires_grad_()
    y, (h_n, c_n) = module(x, (state, state))
    sent = torch.randn_like(y)
    (dx,) = torch.autograd.grad([y, c_n], x, [sent, torch.ones(()).expand(c_n.shape)])
    for name, tensor in {"x": x, "y": y, "h_n": h_n, "c_n": c_n, "dx": dx, "dy": sent, "h_0": state}.items():
        assert places[name] == tensor.data_ptr(), name


def test_channels_last_of_one_input_channel_is_told_by_the_weights():
    """[B, 1, H, W] lies the same either way; `module.to(memory_format=torch.channels_last)` says what is meant."""
    cell = ft.ConvLSTMCell2d(1, 3, 3)
    x = torch.randn(B, 1, H, W)
    h, c = cell(x)
    assert h.is_contiguous()
    turned = copy.deepcopy(cell).to(memory_format=torch.channels_last)
    h_2, c_2 = turned(x)
    assert torch.equal(h, h_2)
    assert torch.equal(c, c_2)
    for state in (h_2, c_2):
        assert state.is_contiguous(memory_format=torch.channels_last)
    h_2.sum().backward()
    h.sum().backward()
    assert torch.equal(turned.weight_hh.grad, cell.weight_hh.grad)


def test_odd_strides():
    """Transposed images, every second frame, some of the channels, expanded: the same numbers."""
    module = ft.ConvLSTM2d(I, C, 3)
    whole = torch.randn(2 * T, B, I + 2, W, H)
    for x in (
        whole[:T, :, :I].transpose(-1, -2),
        whole[::2, :, 1 : I + 1],
        whole[:T, :1, :I].expand(T, B, I, W, H),
        whole[:T, :, :I, ::2, ::2],
    ):
        views, copies = x.requires_grad_(), x.detach().contiguous().requires_grad_()
        y, expected = module(views)[0], module(copies)[0]
        assert torch.equal(y, expected)
        gradients = [torch.autograd.grad(o.square().sum(), i)[0] for o, i in ((y, views), (expected, copies))]
        assert torch.equal(*gradients)
        torch.library.opcheck(
            _conv_lstm.conv_lstm,
            (views.detach(), module.weight_ih_l0, module.weight_hh_l0, *[None] * 8, options(), "gates"),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


# ---------------------------------------------------------------------------------------------------- compile, export
@pytest.fixture
def stack():
    return ft.ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, batch_first=True)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_with_dynamic_batch_time_and_size(stack):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(stack, fullgraph=True, backend=counter)
    for b, t, h in ((2, 3, 4), (3, 3, 4), (3, 4, 6), (4, 5, 7), (2, 6, 5), (5, 7, 9)):
        x = torch.randn(b, t, 2, h, h + 1, requires_grad=True)
        results = compiled(x)[0], stack(x)[0]
        assert torch.equal(*results)
        gradients = (torch.autograd.grad(y.square().sum(), (x, *stack.parameters())) for y in results)
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert counter.frame_count <= 3  # all static, one dimension dynamic, all dynamic


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_by_inductor():
    module = ft.ConvLSTM2d(2, 3, 3, zoneout=(0.1, 0.1), recurrent_dropout=0.2)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(T, B, 2, H, W, requires_grad=True)
    hx = torch.randn(1, B, 3, H, W), torch.randn(1, B, 3, H, W)
    lengths = torch.tensor([3, 2])
    compiled(x, hx, lengths)[0].sum().backward()  # random masks: only that it runs
    assert x.grad.isfinite().all()
    module.eval()
    mine, theirs = compiled(x, hx, lengths), module(x, hx, lengths)
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad(y[0].sum() + y[1][1].sum(), (x, *module.parameters())) for y in (mine, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_double_backward_under_compile_raises_torchs_own_error():
    module = ft.ConvLSTM2d(2, 3, 3)
    x = torch.randn(T, B, 2, H, W, requires_grad=True)
    y, _ = torch.compile(module, backend="aot_eager")(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_with_dynamic_shapes(stack):
    stack.eval()
    dim = torch.export.Dim
    shapes = {"input": {0: dim("batch"), 1: dim("time"), 3: dim("height"), 4: dim("width")}}
    program = torch.export.export(stack, (torch.randn(3, 4, 2, 5, 6),), dynamic_shapes=shapes)
    for size in ((3, 4, 2, 5, 6), (1, 9, 2, 7, 4), (5, 1, 2, 3, 3)):
        x = torch.randn(*size)
        torch.testing.assert_close(program.module()(x), stack(x))


# -------------------------------------------------------------------------------------------------------- transforms
def test_functional_call_and_torch_func(stack):
    parameters = dict(stack.named_parameters())
    x = torch.randn(B, T, 2, H, W)

    def loss(given, x):
        return functional_call(stack, given, (x,))[0].square().sum()

    found = torch.func.grad(loss)(parameters, x)
    loss(parameters, x).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_for_each_sample(stack):
    parameters = dict(stack.named_parameters())
    x = torch.randn(3, T, 2, H, W)

    def loss(given, x):
        return functional_call(stack, given, (x.unsqueeze(0),))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        expected = torch.func.grad(loss)(parameters, sample)
        for name in parameters:
            torch.testing.assert_close(found[name][i], expected[name])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first jvp
def test_forward_mode_is_refused_and_not_zero(stack):
    x = torch.randn(B, T, 2, H, W)
    with pytest.raises(NotImplementedError, match=r"forward-mode.*to_plain"):
        torch.func.jvp(lambda x: stack(x)[0], (x,), (x,))


# ------------------------------------------------------------------------------------------------------------- dtypes
@pytest.fixture
def _widening_is_said():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "on the CPU fusecell computes")
        yield


def test_sixteen_bits_on_a_cpu_say_so_once(monkeypatch):
    monkeypatch.setattr(_operation, "_said_so", False)
    module = ft.ConvLSTM2d(2, 3, 3, dtype=torch.bfloat16)
    x = torch.randn(T, B, 2, H, W, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="computes bfloat16 in float32") as said:
        module(x)
    assert said[0].filename == __file__
    module(x)  # and not again: warnings are errors here


@pytest.mark.usefixtures("_widening_is_said")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_to_another_dtype(stack, dtype):
    x = torch.randn(B, T, 2, H, W, requires_grad=True)
    expected, _ = stack(x)
    turned = copy.deepcopy(stack).to(dtype)
    y, (h_n, c_n) = turned(x.to(dtype))
    assert (y.dtype, h_n.dtype) == (dtype, dtype)
    assert c_n.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bound = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=bound)
    y.float().square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.dtype == dtype for p in turned.parameters())


@pytest.mark.usefixtures("_widening_is_said")
def test_the_cell_state_stays_float32():
    cell = ft.ConvLSTMCell2d(2, 3, 3, dtype=torch.bfloat16)
    x, h = torch.randn(B, 2, H, W, dtype=torch.bfloat16), torch.randn(B, 3, H, W, dtype=torch.bfloat16)
    exact = torch.randn(B, 3, H, W)
    c_1 = cell(x, (h, exact))[1]
    assert c_1.dtype == torch.float32
    rounded = cell(x, (h, exact.bfloat16()))[1]  # either dtype is taken
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, c_1)
    torch.testing.assert_close(rounded, c_1, rtol=2**-7, atol=2**-7)
    opted_out = ft.ConvLSTMCell2d(2, 3, 3, dtype=torch.bfloat16, state_dtype="input")
    opted_out.load_state_dict(cell.state_dict())
    assert torch.equal(opted_out(x, (h, exact))[1], c_1.bfloat16())
    with pytest.raises(ValueError, match='state_dtype: expected None or "input"'):
        ft.ConvLSTMCell2d(2, 3, 3, state_dtype="bf16")(x.float())


@pytest.mark.usefixtures("_widening_is_said")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(stack, dtype):
    x = torch.randn(B, T, 2, H, W)
    hx = torch.randn(4, B, 3, H, W), torch.randn(4, B, 3, H, W)
    expected, (_, c_expected) = stack(x, hx)
    with torch.autocast("cpu", dtype=dtype):
        y, (h_n, c_n) = stack(x, hx)
    assert (y.dtype, h_n.dtype, c_n.dtype) == (dtype, dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=4 * eps)
    torch.testing.assert_close(c_n, c_expected, rtol=4 * eps, atol=4 * eps)
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in stack.parameters())
    double = copy.deepcopy(stack).double()
    with torch.autocast("cpu", dtype=dtype):  # as torch's own operators, which leave float64 alone
        assert double(x.double())[0].dtype == torch.float64


@pytest.mark.usefixtures("_widening_is_said")
def test_autocast_of_the_gates():
    z, c = torch.randn(B, 4 * C, 3), torch.randn(B, C, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, c_n = ft.lstm_gates(z, c)
    assert (h.dtype, c_n.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(c_n, ft.lstm_gates(z, c)[1], rtol=2**-6, atol=2**-6)


@pytest.mark.usefixtures("_widening_is_said")
def test_grad_scaler():
    module = ft.ConvLSTM2d(2, 3, 3)
    before = copy.deepcopy(module.state_dict())
    optimizer, scaler = torch.optim.SGD(module.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(T, B, 2, H, W)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = module(x)[0].float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    ft.clip_grad_norm_(module.parameters(), 1e-2)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**10
    moved = [(module.state_dict()[name] - value).norm() for name, value in before.items()]
    assert 0 < torch.stack(moved).norm() <= 1.001e-3
    # An overflow skips the step.
    module.zero_grad()
    scaler.scale(module(x)[0].square().mean() * float("inf")).backward()
    held = copy.deepcopy(module.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    assert all(torch.equal(held[name], value) for name, value in module.state_dict().items())


# -------------------------------------------------------------------------------------------------------------- modes
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_draws_the_same_masks(reentrant):
    module = ft.ConvLSTM2d(2, 3, 3, recurrent_dropout=0.5, zoneout=(0.3, 0.3))
    x = torch.randn(T, B, 2, H, W, requires_grad=True)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(module(x)[0].square().sum(), x)
    torch.manual_seed(1)
    checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected)


def test_inference_mode(stack):
    x = torch.randn(B, T, 2, H, W)
    expected = stack(x)[0].detach()
    with torch.inference_mode():
        y, _ = stack(x)
    assert y.is_inference()
    assert torch.equal(y, expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_hooks_and_anomaly_mode(stack):
    seen = []
    stack.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    stack.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_input[0].shape))
    stack.weight_hh_l0.register_hook(lambda g: 2 * g)
    x = torch.randn(B, T, 2, H, W, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        stack(x)[0].sum().backward()
    assert seen == [(B, T, 6, H, W), x.shape]
    doubled = stack.weight_hh_l0.grad.clone()
    stack.weight_hh_l0._backward_hooks.clear()
    stack.zero_grad()
    stack(x)[0].sum().backward()
    assert torch.equal(doubled, 2 * stack.weight_hh_l0.grad)


def test_training_and_eval():
    module = ft.ConvLSTM2d(2, 3, 3, num_layers=2, dropout=0.5, recurrent_dropout=0.5, zoneout=(0.4, 0.4))
    x = torch.randn(T, B, 2, H, W)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


# ------------------------------------------------------------------------------------------------------------- module
def lstm_twin(**keywords):
    """An nn.LSTM, and the ConvLSTM2d of 1x1 images that must compute the same."""
    lstm = nn.LSTM(4, 3, **keywords)
    twin = ft.ConvLSTM2d(4, 3, 1, **keywords)
    images = {name: w[..., None, None] if w.dim() == 2 else w for name, w in lstm.state_dict().items()}
    twin.load_state_dict(images)
    return lstm, twin


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_as_nn_lstm(batch_first, bidirectional, bias):
    """Shapes, the order of layers and directions, two biases in a checkpoint."""
    lstm, twin = lstm_twin(num_layers=2, batch_first=batch_first, bidirectional=bidirectional, bias=bias)
    x, cells = torch.randn(5, 2, 4), 4 if bidirectional else 2
    b = 5 if batch_first else 2
    hx = torch.randn(cells, b, 3), torch.randn(cells, b, 3)
    for state in (None, hx):
        y, (h, c) = lstm(x, state)
        images = None if state is None else tuple(s[..., None, None] for s in state)
        mine, (my_h, my_c) = twin(x[..., None, None], images)
        torch.testing.assert_close(mine, y[..., None, None])
        torch.testing.assert_close(my_h, h[..., None, None])
        torch.testing.assert_close(my_c, c[..., None, None])
    y, (h, c) = lstm(x[0])  # unbatched: [T, I]
    mine, (my_h, my_c) = twin(x[0][..., None, None])
    torch.testing.assert_close(mine, y[..., None, None])
    torch.testing.assert_close(my_h, h[..., None, None])
    torch.testing.assert_close(my_c, c[..., None, None])


def test_as_nn_lstm_with_a_packed_sequence():
    lstm, twin = lstm_twin(bidirectional=True)
    padded, lengths = torch.randn(5, 3, 4), torch.tensor([5, 2, 3])
    packed = nn.utils.rnn.pack_padded_sequence(padded, lengths, enforce_sorted=False)
    output, (h, _) = lstm(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(output)
    y, (my_h, _) = twin(padded[..., None, None], lengths=lengths)
    torch.testing.assert_close(y[..., 0, 0], expected)
    torch.testing.assert_close(my_h[..., 0, 0], h)


def test_as_nn_lstm_cell():
    lstm, cell = nn.LSTMCell(4, 3), ft.ConvLSTMCell2d(4, 3, 1)
    cell.load_state_dict({n: w[..., None, None] if w.dim() == 2 else w for n, w in lstm.state_dict().items()})
    x, hx = torch.randn(2, 4), (torch.randn(2, 3), torch.randn(2, 3))
    for state in (None, hx):
        mine = cell(x[..., None, None], None if state is None else tuple(s[..., None, None] for s in state))
        for a, b in zip(mine, lstm(x, state), strict=True):
            torch.testing.assert_close(a[..., 0, 0], b)
    assert cell(x[0][..., None, None])[0].shape == (3, 1, 1)


def test_one_dimension():
    row = ft.ConvLSTM1d(2, 3, 5, num_layers=2, peephole="pixel", image_size=7, stride=2, input_kernel_size=3)
    image = ft.ConvLSTM2d(
        2, 3, (1, 5), num_layers=2, peephole="pixel", image_size=(1, 7), stride=(1, 2), input_kernel_size=(1, 3)
    )
    with torch.no_grad():
        for name, parameter in row.named_parameters():
            if name.startswith("peephole"):
                parameter.normal_()
            target = image.get_parameter(name)
            target.copy_(parameter.reshape(target.shape))
    x, hx = torch.randn(T, B, 2, 14), (torch.randn(2, B, 3, 7), torch.randn(2, B, 3, 7))
    y, (h, c) = row(x, hx)
    expected, (h_2, c_2) = image(x.unsqueeze(-2), tuple(s.unsqueeze(-2) for s in hx))
    assert torch.equal(y, expected.squeeze(-2))
    assert torch.equal(h, h_2.squeeze(-2))
    assert torch.equal(c, c_2.squeeze(-2))
    assert row(x[:, 0])[0].shape == (T, 3, 7)


def test_copies_and_checkpoints(stack, tmp_path):
    x = torch.randn(B, T, 2, H, W)
    expected, _ = stack(x)
    other = ft.ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, batch_first=True)
    assert not torch.equal(other(x)[0], expected)
    torch.save(stack.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for twin in (other, copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert torch.equal(twin(x)[0], expected)
    assert "2, 3, kernel_size=3, num_layers=2, batch_first=True, bidirectional=True" in repr(stack)


def test_two_biases_beside_other_modules():
    """The addition happens for the cells alone, under any prefix, and leaves the caller's dict as it was."""
    model = nn.ModuleDict({"a": ft.ConvLSTM2d(2, 3, 3), "b": nn.LSTM(2, 3), "c": ft.ConvLSTMCell2d(2, 3, 3)})
    given = {name: torch.randn_like(w) for name, w in model.state_dict().items() if not name.endswith("bias_l0")}
    given |= {f"a.bias_{which}_l0": torch.randn(12) for which in ("ih", "hh")}
    given |= {f"c.bias_{which}": torch.randn(12) for which in ("ih", "hh")}
    given = {name: w for name, w in given.items() if name != "c.bias"}
    given |= {f"b.bias_{which}_l0": torch.randn(12) for which in ("ih", "hh")}
    names = set(given)
    model.load_state_dict(given)
    assert set(given) == names
    assert torch.equal(model["a"].bias_l0, given["a.bias_ih_l0"] + given["a.bias_hh_l0"])
    assert torch.equal(model["c"].bias, given["c.bias_ih"] + given["c.bias_hh"])
    assert torch.equal(model["b"].bias_ih_l0, given["b.bias_ih_l0"])


def test_initial_weights():
    module = ft.ConvLSTM2d(2, 3, 3, num_layers=2, peephole="channel", dtype=torch.float64)
    assert module.bias_l1.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6
    assert not module.peephole_l0.any()
    for gate in module.weight_hh_l0.chunk(4):
        rows = gate.flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    limit = (6 / (9 * (2 + 3))) ** 0.5
    assert 0.8 * limit < module.weight_ih_l0.abs().max() <= limit
    assert ft.ConvLSTM2d(2, 3, 3, dtype=torch.bfloat16).weight_hh_l0.dtype == torch.bfloat16
    on_meta = ft.ConvLSTM2d(2, 3, 3, device="meta").to_empty(device="cpu")
    on_meta.reset_parameters()
    assert on_meta.weight_hh_l0.isfinite().all()


X = torch.zeros(T, B, I, H, W)
BAD = {
    "rank": (lambda m: m(X[0, 0]), r"input: expected shape \[T, B, 2, H, W\], got \(2, 4, 5\)"),
    "channels": (lambda m: m(X[:, :, :1]), r"input: expected 2 channels, got 1"),
    "state": (lambda m: m(X, (X, X)), r"hx\[0\]: expected shape \[1, B, 3, H, W\], got \(3, 2, 2, 4, 5\)"),
    "state size": (lambda m: m(X, (X[:1, :, :1].expand(1, 2, 3, 4, 5)[..., :4],) * 2), r"h_0: expected \(2, 3, 4, 5\)"),
    "lengths": (lambda m: m(X, lengths=[4, 1]), "lengths: expected values from 0 to 3, got 4"),
    "lengths of floats": (lambda m: m(X, lengths=torch.ones(2)), "lengths: expected integers"),
    "too few lengths": (lambda m: m(X, lengths=[1]), r"lengths: expected \(2,?\), got \(1,?\)"),
    "dtype": (lambda m: m(X.double()), "weight_ih: expected dtype float64"),
    "complex": (lambda m: m(X.to(torch.complex64)), "x: expected dtype float32 or float64"),
    "kernel": (lambda m: ft.ConvLSTM2d(2, 3, 0), "kernel_size: expected positive numbers, got 0"),
    "channels of 0": (lambda m: ft.ConvLSTM2d(0, 3, 3), "in_channels: expected a positive number, got 0"),
    "rate": (lambda m: ft.ConvLSTM2d(2, 3, 3, recurrent_dropout=1.0), "recurrent_dropout: expected a rate from 0"),
    "form": (lambda m: ft.ConvLSTM2d(2, 3, 3, peephole="full"), 'peephole: expected True, False, "channel"'),
    "size": (lambda m: ft.ConvLSTM2d(2, 3, 3, peephole="pixel"), "image_size: expected the size of the state"),
    "activation": (lambda m: ft.ConvLSTM2d(2, 3, 3, activation="gelu")(X), "activation: expected"),
    "padding": (lambda m: ft.ConvLSTM2d(2, 3, 3, padding="full")(X), 'padding: expected "same", "valid" or numbers'),
    "algorithm": (
        lambda m: ft.ConvLSTM2d(2, 3, 3, algorithm="fast")(X),
        'algorithm: expected "auto", "direct", "winograd", "bfloat16", "tensor_cores" or "tf32"',
    ),
    "winograd": (lambda m: ft.ConvLSTM2d(2, 3, 7, algorithm="winograd")(X), 'got "winograd" with kernels 7x7 and 7x7'),
    "algorithm of a model": (lambda m: ft.convert(m, algorithm="winograd"), 'algorithm: expected "auto" or "direct"'),
    "save": (
        lambda m: (
            _conv_lstm.conv_lstm(X.requires_grad_(), *m._weights("_l0").values(), *[None] * 6, options(), "none")[0]
            .sum()
            .backward()
        ),
        'expected another save than "none"',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(ft.ConvLSTM2d(2, 3, 3))
    X.requires_grad_(False)


# ------------------------------------------------------------------------------------------------------- algorithms
def usual_cell():
    """A cell as people write it, for `convert`."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2 + 4, 4 * 4, 3, padding=1)

        def forward(self, x, state):
            h, c = state
            i, f, o, g = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

    return Cell()


def converted(algorithm):
    model = usual_cell()
    assert ft.convert(model, algorithm=algorithm, verbose=False).replaced
    return lambda x: model(x[0], (torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)))[0]


def from_weights(algorithm):
    made = ft.ConvLSTM2d(2, 4, 3).state_dict()
    cell = weights.ConvLSTMWeights.from_parameters({name: p.numpy() for name, p in made.items()})
    return ft.ConvLSTM2d.from_weights([cell], algorithm=algorithm)


WAYS = {
    "conv_lstm": lambda a: lambda x: ft.conv_lstm(x, torch.ones(16, 2, 3, 3), torch.ones(16, 4, 3, 3), algorithm=a),
    "ConvLSTM2d": lambda a: ft.ConvLSTM2d(2, 4, 5, num_layers=2, bidirectional=True, algorithm=a),
    "ConvLSTMCell2d": lambda a: lambda x: ft.ConvLSTMCell2d(2, 4, 3, algorithm=a)(x[0]),
    "from_weights": from_weights,
    "convert": converted,
}


ON_THE_CPU = [a for a in get_args(Algorithm) if a not in ("tensor_cores", "tf32")]  # they: test_torch_tensor_cores.py


@pytest.mark.parametrize(
    ("way", "algorithm"), [(w, a) for w in WAYS for a in ON_THE_CPU if w != "convert" or a in ("auto", "direct")]
)
def test_the_algorithm_reaches_the_core_forward_and_backward(way, algorithm, monkeypatch):
    seen = {}
    original = _memory.run

    def record(function, device, tensors, options, *rest):
        seen.setdefault(function, set()).add(options["algorithm"])
        original(function, device, tensors, options, *rest)

    compute = WAYS[way](algorithm)  # before: `convert` proves its doing in "auto"
    monkeypatch.setattr(_memory, "run", record)
    x = torch.randn(3, 2, 2, 8, 8, requires_grad=True)
    y = compute(x)
    (y if isinstance(y, torch.Tensor) else y[0]).sum().backward()
    assert seen == {"conv_lstm_forward": {algorithm}, "conv_lstm_backward": {algorithm}}


def test_an_algorithm_that_is_not_the_usual_one_is_shown():
    assert "algorithm='direct'" in repr(ft.ConvLSTM2d(2, 4, 3, algorithm="direct"))
    assert "algorithm" not in repr(ft.ConvLSTM2d(2, 4, 3))


# ------------------------------------------------------------------------------------------- weights from elsewhere
def ndrplz(layers, rng, kernel=3):
    """A stack's checkpoint with one convolution for each cell, gates i, f, o, g."""
    tensors = {}
    for l in range(layers):
        channels = (2 if l == 0 else 3) + 3
        tensors[f"cell_list.{l}.conv.weight"] = rng.standard_normal((12, channels, kernel, kernel)).astype(np.float32)
        tensors[f"cell_list.{l}.conv.bias"] = rng.standard_normal(12).astype(np.float32)
    return tensors


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_module_from_weights(rng, bidirectional):
    cells = [cell for _ in range(2 if bidirectional else 1) for cell in weights.load(ndrplz(1, rng), "ndrplz")]
    module = ft.ConvLSTM2d.from_weights(cells, bidirectional=bidirectional, batch_first=True)
    x = torch.randn(B, T, 2, H, W)
    y, _ = module(x)
    arrays = x.transpose(0, 1).contiguous().numpy()
    for d, cell in enumerate(cells):
        expected, *_ = ops.conv_lstm_forward(arrays, **cell.arguments(), reverse=d == 1)
        np.testing.assert_array_equal(y.detach().transpose(0, 1).numpy()[:, :, 3 * d : 3 * d + 3], expected)
    back = weights.ConvLSTMWeights.from_parameters({n: p.numpy() for n, p in module.state_dict().items()})
    assert (weights.dump(back, "ndrplz")["conv.weight"] == weights.dump(cells[0], "ndrplz")["conv.weight"]).all()


def test_a_module_from_weights_with_options(rng):
    kernels = [rng.standard_normal(s).astype(np.float64) for s in ((3, 2, 2, 12), (2, 4, 3, 12), (12,))]
    (cell,) = weights.load(kernels, "keras2", stride=2, padding="valid")
    module = ft.ConvLSTM2d.from_weights([cell])
    assert (module.recurrent_activation, module.kernel_size) == ("hard_sigmoid_keras2", (2, 4))
    x = torch.randn(T, B, 2, 7, 8, dtype=torch.float64)
    expected, *_ = ops.conv_lstm_forward(x.numpy(), **cell.arguments())
    np.testing.assert_array_equal(module(x)[0].detach().numpy(), expected)


def test_weights_that_make_no_stack(rng):
    cells = weights.load(ndrplz(2, rng), "ndrplz")
    with pytest.raises(ValueError, match="cells: expected two for each layer, got 1"):
        ft.ConvLSTM2d.from_weights(cells[:1], bidirectional=True)
    with pytest.raises(ValueError, match=r"weight_ih_l1: expected \(12, 3, 3, 3\).*got \(12, 2, 3, 3\)"):
        ft.ConvLSTM2d.from_weights([cells[0], cells[0]])
    other = weights.ConvLSTMWeights(**{**cells[1].arguments(), "options": {"activation": "relu"}})
    with pytest.raises(ValueError, match=r"cells: expected options \{\} for l1, got"):
        ft.ConvLSTM2d.from_weights([cells[0], other])
