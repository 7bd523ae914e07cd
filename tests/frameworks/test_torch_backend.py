"""fusecell.torch against the reference: every case of the table, through autograd, on the CPU and the emulated kernels.

What PyTorch asks of an operator besides (opcheck, gradcheck, compile, export, ...) is in test_torch_citizen.py.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusecell.reference  # noqa: E402
import fusecell.torch as ft  # noqa: E402
from fusecell import _dispatch  # noqa: E402
from fusecell._cases import CASES, TOLERANCE, WINOGRAD_CASES, largest_error, output_extent, run_case, upstream_of  # noqa: E402
from fusecell.ops import bernoulli  # noqa: E402
from fusecell.selftest import backends  # noqa: E402

CONV_LSTM = ("x", "weight_ih", "weight_hh", "bias", "peephole", "h_0", "c_0")
GATES = ("z", "c", "h", "bias", "peephole")


@pytest.fixture(params=[name for name in backends() if name != "cuda"])
def kernels(request):
    """Tensors in host memory are computed by each backend that takes it."""
    with _dispatch.using(request.param):
        yield request.param


class Torch:
    """fusecell.torch with the functions of fusecell.ops, on NumPy arrays. Masks are drawn as there."""

    def __init__(self, *, batch_first=False, **more):
        self.batch_first, self.more = batch_first, more

    def conv_lstm_forward(self, *arrays, **options):
        inputs = tensors(CONV_LSTM, arrays)
        x, weight_ih, weight_hh = arrays[:3]
        pairs = [options.get(name, 1) for name in ("stride", "dilation")]
        stride, dilation = (value if isinstance(value, tuple) else (value, value) for value in pairs)
        padding = options.get("padding", "same")
        size = [
            output_extent(x.shape[3 + a], weight_ih.shape[2 + a], stride[a], dilation[a], padding, a) for a in (0, 1)
        ]
        state = (x.shape[1], weight_hh.shape[1], *size)
        options = with_masks(options, (x.shape[0], *state), state, x.dtype)
        h_0, c_0 = inputs.pop("h_0"), inputs.pop("c_0")
        given = {**inputs, "hx": None if h_0 is None else (h_0, c_0), **options, **self.more}
        if self.batch_first:
            given |= {"x": inputs["x"].transpose(0, 1).contiguous(), "batch_first": True}
        y, (h_n, c_n) = ft.conv_lstm(**given)
        outputs = (y.transpose(0, 1) if self.batch_first else y, h_n, c_n)
        return *(o.detach().numpy() for o in outputs), (outputs, {**inputs, "h_0": h_0, "c_0": c_0})

    def lstm_gates_forward(self, *arrays, **options):
        inputs = tensors(GATES, arrays)
        outputs = ft.lstm_gates(**inputs, **with_masks(options, arrays[1].shape, None, arrays[0].dtype))
        return *(o.detach().numpy() for o in outputs), (outputs, inputs)

    def conv_lstm_backward(self, saved, *sent):
        outputs, inputs = saved
        given = {name: t for name, t in inputs.items() if t is not None}
        found = torch.autograd.grad(outputs, list(given.values()), [torch.from_numpy(d) for d in sent])
        return {name: d.numpy() for name, d in zip(given, found, strict=True)}

    lstm_gates_backward = conv_lstm_backward


def tensors(names, arrays):
    pairs = zip(names, arrays, strict=True)
    return {name: None if a is None else torch.tensor(a, requires_grad=True) for name, a in pairs}


def with_masks(options, sequence, state, dtype):
    """The keywords of fusecell.torch from those of fusecell.ops."""
    options = dict(options)
    seed, offset = options.pop("seed", 0), options.pop("offset", 0)
    rates = options.pop("zoneout_h", 0.0), options.pop("zoneout_c", 0.0)
    options["zoneout"] = rates

    def mask(shape, rate, stream):
        return torch.from_numpy(bernoulli(shape, rate, seed=seed, offset=offset, stream=stream))

    if options.get("training"):
        for name, rate, stream in (("h", rates[0], 1), ("c", rates[1], 2)):
            if rate > 0:
                options[f"zoneout_mask_{name}"] = mask(sequence, rate, stream)
        if rate := options.get("recurrent_dropout", 0.0):
            kept = 1 - mask(state, rate, 0).numpy()
            options["dropout_mask"] = torch.from_numpy((kept / (1 - rate)).astype(dtype))
    return options


def without_absent_states(case, gradients):
    """The reference gives gradients of zero states that nobody passed, too."""
    absent = case.op == "conv_lstm" and not case.shape.get("start", True)
    return {name: g for name, g in gradients.items() if not (absent and name in ("h_0", "c_0"))}


TABLE = [case for case in CASES if case.op in ("conv_lstm", "lstm_gates")]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_case(kernels, case, dtype, rng):
    check_case(case, dtype, rng)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", [case for case in WINOGRAD_CASES if case.op == "conv_lstm"], ids=str)
def test_case_by_winograd(case, dtype, rng):
    check_case(case, dtype, rng)


def check_case(case, dtype, rng):
    arguments = case.arguments(rng, dtype)
    expected = run_case(fusecell.reference, case, arguments, None)
    sent = upstream_of([o.astype(dtype) for o in expected.outputs.values()])
    expected = run_case(fusecell.reference, case, arguments, sent)
    got = run_case(Torch(), case, arguments, sent)
    allowed = TOLERANCE[case.algorithm][dtype]
    assert largest_error(got.outputs, expected.outputs) <= allowed.outputs
    gradients = without_absent_states(case, expected.gradients)
    assert largest_error(got.gradients, gradients) <= allowed.gradients


@pytest.mark.parametrize("case", [c for c in TABLE if c.op == "conv_lstm"][::6], ids=str)
def test_recompute_and_batch_first_give_the_same_bits(kernels, case, rng):
    arguments = case.arguments(rng, "float32")
    expected = run_case(Torch(), case, arguments, None)
    for turned in (Torch(recompute=True), Torch(batch_first=True)):
        assert_same(run_case(turned, case, arguments, None), expected)


def assert_same(got, expected):
    for mine, theirs in ((got.outputs, expected.outputs), (got.gradients, expected.gradients)):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
