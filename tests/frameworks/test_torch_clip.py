"""clip_grad_norm_ and clip_grad_value_ against torch's own."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import utils  # noqa: E402

import fusecell.torch as ft  # noqa: E402
from fusecell.torch import clip  # noqa: E402


def parameters(dtype=torch.float32, scale=1.0):
    """Gradients as they come: of many shapes, channels last, a slice that is not dense, none at all."""
    generator = torch.Generator().manual_seed(3)

    def gradient(*shape):
        return scale * torch.randn(*shape, dtype=dtype, generator=generator)

    gradients = [
        gradient(5, 3),
        gradient(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        gradient(6, 8)[:, 1:7:2],
        gradient(7, 4).t(),
        gradient(1).reshape(()),
        gradient(0, 3),
        gradient(3001),
    ]
    made = []
    for g in gradients:
        made.append(nn.Parameter(torch.zeros(g.shape, dtype=dtype)))
        made[-1].grad = g
    return [*made, nn.Parameter(torch.zeros(2))]


def gradients_of(given):
    return [p.grad for p in given if p.grad is not None]


@pytest.fixture
def no_fallback(monkeypatch):
    """What is meant to be fused is."""

    def refuse(*args, **keywords):
        raise AssertionError("torch's own was called")

    monkeypatch.setattr(clip.utils, "clip_grad_norm_", refuse)
    monkeypatch.setattr(clip.utils, "clip_grad_value_", refuse)


theirs_norm, theirs_value = utils.clip_grad_norm_, utils.clip_grad_value_


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("norm_type", [1, 2.0, math.inf, "inf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_torchs_norm(norm_type, max_norm, dtype):
    mine, theirs = parameters(dtype), parameters(dtype)
    places = [g.data_ptr() for g in gradients_of(mine)]
    norm = ft.clip_grad_norm_(iter(mine), max_norm, norm_type)
    # torch's own takes no maximum of nothing
    expected = theirs_norm([p for p in theirs if p.numel()], max_norm, float(norm_type))
    assert (norm.shape, norm.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(gradients_of(mine), gradients_of(theirs))
    assert [g.data_ptr() for g in gradients_of(mine)] == places


@pytest.mark.usefixtures("no_fallback")
def test_as_torchs_value():
    mine, theirs = parameters(), parameters()
    mine[0].grad[0, 0] = theirs[0].grad[0, 0] = float("nan")
    assert ft.clip_grad_value_(mine, 0.3) is None
    theirs_value(theirs, 0.3)
    torch.testing.assert_close(gradients_of(mine), gradients_of(theirs), equal_nan=True)
    one = nn.Parameter(torch.zeros(3))
    one.grad = torch.tensor([-5.0, 0.1, 5.0])
    ft.clip_grad_value_(one, 1)
    assert one.grad.tolist() == pytest.approx([-1.0, 0.1, 1.0])


def test_nothing_to_clip():
    assert ft.clip_grad_norm_([], 1.0) == 0.0
    assert ft.clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0) == 0.0
    ft.clip_grad_value_([], 1.0)


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite(bad):
    mine, theirs = parameters(), parameters()
    mine[0].grad[1, 1] = theirs[0].grad[1, 1] = bad
    before = copy.deepcopy(gradients_of(mine))
    with pytest.raises(RuntimeError, match="expected a finite one; nothing was changed"):
        ft.clip_grad_norm_(mine, 1.0, error_if_nonfinite=True)
    torch.testing.assert_close(gradients_of(mine), before, equal_nan=True)
    ft.clip_grad_norm_(mine, 1.0)
    theirs_norm(theirs, 1.0)
    torch.testing.assert_close(gradients_of(mine), gradients_of(theirs), equal_nan=True)


@pytest.mark.usefixtures("no_fallback")
def test_squares_that_leave_float32():
    """torch's own norm of these is inf, and its clip then makes them 0."""
    mine = parameters(scale=1e30)
    norm = ft.clip_grad_norm_(mine, 1.0)
    assert norm.isfinite()
    assert norm > 1e30
    total = torch.cat([g.double().reshape(-1) for g in gradients_of(mine)]).norm()
    assert total.item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("norm_type", [3.0, 0.5])
def test_other_norms_are_torchs(norm_type):
    mine, theirs = parameters(), parameters()
    torch.testing.assert_close(ft.clip_grad_norm_(mine, 0.1, norm_type), theirs_norm(theirs, 0.1, norm_type))
    torch.testing.assert_close(gradients_of(mine), gradients_of(theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_on_a_cpu_are_torchs(dtype):
    mine, theirs = parameters(dtype), parameters(dtype)
    torch.testing.assert_close(ft.clip_grad_norm_(mine, 0.1), theirs_norm(theirs, 0.1))
    ft.clip_grad_value_(mine, 1e-3)
    theirs_value(theirs, 1e-3)
    torch.testing.assert_close(gradients_of(mine), gradients_of(theirs))


def test_in_a_training_step():
    module = ft.ConvLSTM2d(2, 3, 3)
    module(torch.randn(3, 2, 2, 4, 4))[0].square().sum().backward()
    twin = copy.deepcopy(module)
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    torch.testing.assert_close(ft.clip_grad_norm_(module.parameters(), 0.5), theirs_norm(twin.parameters(), 0.5))
    torch.testing.assert_close(gradients_of(module.parameters()), gradients_of(twin.parameters()))
