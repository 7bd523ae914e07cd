"""The composition of stock torch operators: against the reference on the shared table, and what only torch can ask."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fusecell import reference  # noqa: E402
from fusecell._cases import CASES, run_case, upstream_of  # noqa: E402
from fusecell.torch import plain  # noqa: E402

torch.set_num_threads(1)
CELLS = [case for case in CASES if case.op in ("conv_lstm", "lstm_gates")]


def with_drawn_masks(options, state, steps):
    """The options without seeds and algorithm: the masks that the reference draws from seeds, as tensors."""
    left_out = ("training", "seed", "offset", "recurrent_dropout", "algorithm")
    drawn = {n: o for n, o in options.items() if n not in left_out}
    if not options.get("training"):
        return drawn
    where = {"seed": options.get("seed", 0), "offset": options.get("offset", 0)}
    for stream, name in ((1, "h"), (2, "c")):
        if rate := options.get(f"zoneout_{name}"):
            mask = reference.bernoulli((*steps, *state), rate, stream=stream, **where)
            drawn[f"zoneout_mask_{name}"] = torch.tensor(np.asarray(mask))
    if rate := options.get("recurrent_dropout"):
        kept = 1.0 - np.asarray(reference.bernoulli(state, rate, stream=0, **where), np.float64)
        drawn["dropout_mask"] = torch.tensor(kept / (1.0 - rate))
    return drawn


def run(case, arguments, upstream):
    """Outputs and gradients of the composition, as arrays."""
    tensors = {n: None if a is None else torch.tensor(a).requires_grad_() for n, a in arguments.items()}
    function = getattr(plain, case.op)
    leading = (len(arguments["x"]),) if case.op == "conv_lstm" else ()
    outputs = function(*tensors.values(), **with_drawn_masks(case.options, upstream[-1].shape, leading))
    given = {n: t for n, t in tensors.items() if t is not None}
    loss = sum((torch.tensor(u) * y).sum() for u, y in zip(upstream, outputs, strict=True))
    gradients = torch.autograd.grad(loss, list(given.values()), materialize_grads=True, allow_unused=True)
    return [y.detach().numpy() for y in outputs], dict(zip(given, (g.numpy() for g in gradients), strict=True))


def close(got, expected, name):
    assert got.shape == expected.shape, name
    error = np.max(np.abs(got - expected), initial=0.0)
    assert error <= 1e-12 * max(1.0, np.max(np.abs(expected), initial=0.0)), name


@pytest.mark.parametrize("case", CELLS, ids=str)
def test_against_the_reference(case):
    arguments = case.arguments(np.random.default_rng(zlib.crc32(str(case).encode())))
    expected = run_case(reference, case, arguments, None)
    outputs, gradients = run(case, arguments, upstream_of(list(expected.outputs.values())))
    for got, (name, want) in zip(outputs, expected.outputs.items(), strict=True):
        close(got, want, name)
    assert set(gradients) <= set(expected.gradients)
    for name, got in gradients.items():
        close(got, expected.gradients[name], name)


def problem(T=3, B=2, I=2, C=2, size=(4, 3), dtype=torch.float64, seed=0):
    """x, weight_ih, weight_hh, bias, peephole, h_0, c_0."""
    shapes = (T, B, I, *size), (4 * C, I, 3, 3), (4 * C, C, 3, 3), (4 * C,), (3 * C,), (B, C, *size), (B, C, *size)
    generator = torch.Generator().manual_seed(seed)
    return [(0.5 * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]


def test_what_stands_in_the_padding_affects_nothing():
    arguments = [a.requires_grad_() for a in problem(T=4, B=3)]
    lengths = [2, 0, 4]
    padding = torch.arange(4)[:, None] >= torch.tensor(lengths)
    masks = torch.randint(0, 2, (4, *arguments[-1].shape), generator=torch.Generator().manual_seed(1)).double()

    def gradients(stray):
        x = torch.where(padding[:, :, None, None, None], stray, arguments[0].detach()).requires_grad_()
        mask = torch.where(padding[:, :, None, None, None], stray, masks)
        y, h, c = plain.conv_lstm(x, *arguments[1:], lengths=lengths, zoneout_mask_h=mask, zoneout_mask_c=mask)
        dy = torch.where(padding[:, :, None, None, None], stray, torch.ones_like(y))
        loss = (y, h.sum() + c.sum()), (dy, torch.ones_like(h.sum()))
        return [y.detach(), h.detach(), c.detach(), *torch.autograd.grad(loss[0], (x, *arguments[1:]), loss[1])]

    for clean, stray in zip(gradients(0.0), gradients(torch.nan), strict=True):
        assert torch.equal(clean, stray)


def test_the_state_of_a_sample_that_has_ended_is_left_alone():
    arguments = problem(T=2)
    arguments[-1][1] = torch.inf
    c_0 = arguments[-1].requires_grad_()
    *_, c_n = plain.conv_lstm(*arguments, lengths=torch.tensor([2, 0]))
    (gradient,) = torch.autograd.grad(c_n.sum(), c_0)
    assert torch.equal(c_n[1], c_0[1])
    assert torch.equal(gradient[1], torch.ones_like(gradient[1]))


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "hard_tanh", "softsign", "identity"])
def test_second_derivatives(activation):
    arguments = [a.requires_grad_() for a in problem(T=2, B=1, I=1, C=1, size=(2, 2))]
    assert torch.autograd.gradgradcheck(lambda *a: plain.conv_lstm(*a, activation=activation), arguments)


def slope_at(point, **names):
    """dc/dz_g with z_i = 0 and phi at the point, or dc/dz_i where a sigma is asked."""
    z = torch.zeros(1, 4, dtype=torch.float64)
    gate = 0 if "recurrent_activation" in names else 2
    z[0, gate] = point
    if gate == 0:
        z[0, 2] = 1.0
    z.requires_grad_()
    _, c = plain.lstm_gates(z, torch.zeros(1, 1, dtype=torch.float64), **names)
    (gradient,) = torch.autograd.grad(c.sum(), z)
    return gradient[0, gate].item()


def test_derivatives_at_corners():
    for corner in (-1.0, 1.0):
        assert slope_at(corner, activation="hard_tanh") == 0.0
    for corner in (-3.0, 3.0):
        assert slope_at(corner, recurrent_activation="hard_sigmoid", activation="identity") == 0.0
    for corner in (-2.5, 2.5):
        assert slope_at(corner, recurrent_activation="hard_sigmoid_keras2", activation="identity") == 0.2
    assert slope_at(0.0, activation="leaky_relu", slope=0.3) == pytest.approx(0.15)
    for at_zero in (0.0, 0.5, 1.0):
        assert slope_at(0.0, activation="relu", relu_at_zero=at_zero) == 0.5 * at_zero
    assert slope_at(torch.inf, activation="softsign") == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_keep_the_cell_state_in_float32(dtype):
    y, h, c = plain.conv_lstm(*problem(dtype=dtype))
    assert (y.dtype, h.dtype, c.dtype) == (dtype, dtype, torch.float32)
    wide, _, wide_c = plain.conv_lstm(*(a.float() for a in problem(dtype=dtype)))
    assert torch.allclose(y.float(), wide, atol=0.02)
    assert torch.allclose(c, wide_c, atol=0.02)
    assert plain.conv_lstm(*problem(dtype=dtype), state_dtype="input")[2].dtype == dtype


def test_unknown_names_are_refused():
    for names in ({"activation": "gelu"}, {"recurrent_activation": "tanh"}, {"padding": "full"}):
        with pytest.raises(ValueError, match=f"{next(iter(names))}: expected"):
            plain.conv_lstm(*problem(), **names)
    with pytest.raises(ValueError, match="h: expected"):
        plain.lstm_gates(torch.zeros(1, 4), torch.zeros(1, 1), zoneout_h=0.5)
