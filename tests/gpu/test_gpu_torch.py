"""fusecell.torch on a GPU: the numbers, torch's streams, autocast, layouts, captured graphs, clipping."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("fusecell._cuda") is None:
    pytest.skip("needs fusecell's CUDA kernels: `fusecell info` says why they are missing", allow_module_level=True)

import fusecell.torch as ft  # noqa: E402
from fusecell.torch import plain  # noqa: E402

T, B, I, C, S = 4, 3, 5, 20, 18  # no round extents
GPU = torch.device("cuda", 0)
# Of the largest value of each result. 16 bits are held against float64 on the same rounded numbers.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _strict() -> None:
    torch.manual_seed(5)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def arguments(dtype: Any) -> dict[str, Any]:
    shapes = {
        "x": (T, B, I, S, S),
        "weight_ih": (4 * C, I, 3, 3),
        "weight_hh": (4 * C, C, 3, 3),
        "bias": (4 * C,),
        "peephole": (3 * C, S, S),
        "h_0": (B, C, S, S),
        "c_0": (B, C, S, S),
    }
    scale = {"weight_ih": 0.2, "weight_hh": 0.1}
    drawn = {name: scale.get(name, 1.0) * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: a.to(dtype) for name, a in drawn.items()}


def outputs_and_gradients(function: Callable[..., Any], given: dict[str, Any], **options: Any) -> list[Any]:
    inputs = {name: t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for name, t in given.items()}
    outputs = function(*inputs.values(), **options)
    weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype, device=o.device).reshape(o.shape) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), weights)]


def fused(*inputs: Any, **options: Any) -> tuple[Any, ...]:
    y, state = ft.conv_lstm(*inputs[:5], inputs[5:], **options)
    return y, *state


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("options", [{}, {"lengths": [4, 0, 2]}, {"reverse": True, "recompute": True}], ids=str)
def test_the_numbers(dtype: Any, options: dict[str, Any]) -> None:
    given = arguments(dtype)
    twin = {k: torch.tensor(v) if k == "lengths" else v for k, v in options.items() if k != "recompute"}
    expected = outputs_and_gradients(plain.conv_lstm, {name: t.double() for name, t in given.items()}, **twin)
    got = outputs_and_gradients(fused, {name: t.to(GPU) for name, t in given.items()}, **options)
    for mine, theirs in zip(got, expected, strict=True):
        error = (mine.double().cpu() - theirs).abs().max() / theirs.abs().max()
        assert error <= TOLERANCE[dtype]


def test_float32_follows_torchs_switch_for_tf32() -> None:
    if torch.cuda.get_device_capability(GPU) < (8, 0):
        pytest.skip("needs a GPU with tensor cores that take TF32")
    given = {name: t.to(GPU) for name, t in arguments(torch.float32).items()}
    found = []
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        expected = outputs_and_gradients(fused, given, algorithm="tf32" if allowed else "direct")
        found.append(outputs_and_gradients(fused, given))
        assert all(map(torch.equal, found[-1], expected))
    for exact, rounded in zip(*found, strict=True):
        error = (rounded - exact).abs().max() / exact.abs().max()
        assert 0 < error < 2.0**-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_tensor_cores_keep_lies_channels_last(dtype: Any) -> None:
    given = {name: t.to(GPU).requires_grad_() for name, t in arguments(dtype).items()}
    y, *_ = fused(*given.values())
    c, gates = y.grad_fn.saved_tensors[-2:]
    with torch._subclasses.FakeTensorMode() as mode:
        fake, *_ = fused(*(mode.from_tensor(t) for t in given.values()))
    fake_c, fake_gates = fake.grad_fn.saved_tensors[-2:]
    assert (c.stride(), gates.stride()) == (fake_c.stride(), fake_gates.stride())
    assert (gates.stride(-3) == 1) == (torch.cuda.get_device_capability(GPU) >= (8, 0))


def test_the_same_bits_in_every_layout() -> None:
    given = {name: t.to(GPU) for name, t in arguments(torch.float32).items()}
    expected = outputs_and_gradients(fused, given)
    images = given["x"].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    turned = given["x"].transpose(0, 1).contiguous().transpose(0, 1)
    for x in (images, turned):
        got = outputs_and_gradients(fused, {**given, "x": x})
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine, theirs)
        assert got[3].stride() == x.stride()
    assert fused(*{**given, "x": images}.values())[0].stride(2) == 1


def test_torchs_current_stream_and_allocator() -> None:
    given = {name: t.to(GPU) for name, t in arguments(torch.float32).items()}
    expected = outputs_and_gradients(fused, given)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for stream in streams * 3:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            results.append(outputs_and_gradients(fused, given))
    torch.cuda.synchronize()
    for result in results:
        assert all(map(torch.equal, result, expected))


def test_nobody_waits_for_the_gpu() -> None:
    module = ft.ConvLSTM2d(I, C, 3, num_layers=2, bidirectional=True, device=GPU)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    x, lengths = torch.randn(T, B, I, S, S, device=GPU), torch.tensor([4, 2, 3], device=GPU)

    def step() -> None:
        module(x, lengths=lengths)[0].square().mean().backward()
        ft.clip_grad_norm_(module.parameters(), 1e-3)
        ft.clip_grad_value_(module.parameters(), 1e-4)
        optimizer.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_grad_scaler(dtype: Any) -> None:
    module = ft.ConvLSTM2d(I, C, 3, device=GPU)
    x = torch.randn(T, B, I, S, S, device=GPU)
    expected, _ = module(x)
    scaler, optimizer = torch.amp.GradScaler("cuda"), torch.optim.SGD(module.parameters(), lr=0.1)
    with torch.autocast("cuda", dtype=dtype):
        y, (h, c) = module(x)
    assert (y.dtype, h.dtype, c.dtype) == (dtype, dtype, torch.float32)
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    scaler.scale(y.float().square().mean()).backward()
    scaler.unscale_(optimizer)
    norm = ft.clip_grad_norm_(module.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert norm.isfinite()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


def test_a_captured_training_step() -> None:
    module = ft.ConvLSTM2d(I, C, 3, device=GPU)
    twin = copy.deepcopy(module)
    x = torch.randn(T, B, I, S, S, device=GPU)

    def gradients(of: Any) -> list[Any]:
        of.zero_grad(set_to_none=True)
        of(x)[0].square().mean().backward()
        return [p.grad for p in of.parameters()]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(module)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(module)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert all(map(torch.equal, captured, gradients(twin)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile() -> None:
    module = ft.ConvLSTM2d(I, C, 3, device=GPU)
    x = torch.randn(T, B, I, S, S, device=GPU, requires_grad=True)
    results = [torch.compile(module, fullgraph=True)(x)[0], module(x)[0]]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_clipping(dtype: Any) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(n, 7, dtype=dtype, device=GPU)) for n in (3, 1001, 64)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    twins = [p.grad.double() for p in parameters]
    expected = torch.cat([g.reshape(-1) for g in twins]).norm()
    norm = ft.clip_grad_norm_(parameters, 2.0)
    assert (norm.dtype, norm.device) == (torch.float32, GPU)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    for p, g in zip(parameters, twins, strict=True):
        torch.testing.assert_close(p.grad.double(), g * (2.0 / expected), rtol=torch.finfo(dtype).eps, atol=1e-8)


def test_a_tensor_elsewhere_is_named() -> None:
    given = {name: t.to(GPU) for name, t in arguments(torch.float32).items()}
    with pytest.raises(ValueError, match="weight_hh: expected a tensor on cuda:0, as the input is, got one on cpu"):
        fused(*{**given, "weight_hh": given["weight_hh"].cpu()}.values())
