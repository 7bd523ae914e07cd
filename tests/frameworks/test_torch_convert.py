"""`convert`: hand-written ConvLSTMs compute as before, on the same parameters; what is something else is left alone."""

from __future__ import annotations

import copy
import pickle
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))

import models  # noqa: E402

from fusecell.torch.conversion import convert  # noqa: E402

torch.set_num_threads(1)
T, B = 3, 2


def build(cls, dtype=torch.float64, seed=0):
    """An instance with random parameters, and tensors that are no parameters random, too."""
    torch.manual_seed(seed)
    model = cls().to(dtype)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):
                setattr(module, name, torch.randn_like(value, dtype=dtype))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def image(cls):
    return (7,) if cls is models.OneDimension else models.SIZE


def inputs(cls, dtype=torch.float64, seed=1):
    """x [T, B, I, ...], h and c [B, C, ...]."""
    size = image(cls)
    state = tuple((n + 1) // 2 for n in size) if cls is models.Strided else size
    generator = torch.Generator().manual_seed(seed)
    shapes = (T, B, models.I, *size), (B, models.C, *state), (B, models.C, *state)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def unroll(cell, x, h, c):
    outputs = []
    for x_t in x:
        h, c = cell.step(x_t, h, c)
        outputs += [h, c]
    return outputs


def results(cell, arguments):
    """Outputs and gradients: of the inputs, and of each parameter by name."""
    arguments = [a.detach().clone().requires_grad_() for a in arguments]
    outputs = unroll(cell, *arguments)
    loss = sum((y * (1.0 + 0.1 * n)).square().sum() for n, y in enumerate(outputs))
    parameters = dict(cell.named_parameters())
    gradients = torch.autograd.grad(loss, [*arguments, *parameters.values()], allow_unused=True)
    names = ["x", "h", "c", *parameters]
    return [y.detach() for y in outputs], {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.fixture(params=models.CELLS, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


# ------------------------------------------------------------------------------------------------------ cells
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_cell_computes_as_before(cls, dtype, tolerance, fused_calls):
    original = build(cls, dtype)
    converted = copy.deepcopy(original)
    before = dict(converted.named_parameters())
    report = convert(converted, verbose=False)
    assert [(r.name, r.kind, r.how) for r in report.replaced] == [("", cls.__name__, "cell")]
    assert report.kept == []
    fused_calls.clear()
    outputs, gradients = results(converted, inputs(cls, dtype))
    assert len(fused_calls) == T
    expected, expected_gradients = results(original, inputs(cls, dtype))
    for got, want in zip(outputs, expected, strict=True):
        close(got, want, tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, want in expected_gradients.items():
        # torch's derivative of F.hardsigmoid, which Named calls, is right to 3e-8 only, in float64 too.
        close(gradients[name], want, max(10 * tolerance, 1e-7 * (cls is models.Named)))
    after = dict(converted.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_training_goes_on_as_before(cls):
    original = build(cls)
    converted = copy.deepcopy(original)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (original, converted)]
    convert(converted, verbose=False)  # after the optimizer was made: it holds the parameters
    for _ in range(3):
        for model, optimizer in zip((original, converted), optimizers, strict=True):
            optimizer.zero_grad()
            sum(y.square().sum() for y in unroll(model, *inputs(cls))).backward()
            optimizer.step()
    for want, got in zip(original.parameters(), converted.parameters(), strict=True):
        close(got.detach(), want.detach(), 1e-8)


def test_checkpoints_go_both_ways(cls):
    original, other = build(cls), build(cls, seed=1)
    converted = build(cls, seed=2)
    convert(converted, verbose=False)
    assert list(converted.state_dict()) == list(original.state_dict())
    for source, target in ((original, converted), (converted, other)):
        target.load_state_dict(source.state_dict())
        for name, value in vars(source).items():  # what no state_dict holds
            if isinstance(value, torch.Tensor):
                setattr(target, name, value)
        for got, want in zip(unroll(target, *inputs(cls)), unroll(source, *inputs(cls)), strict=True):
            close(got.detach(), want.detach(), 1e-12)


def test_copies_and_pickles_are_converted_too(cls, fused_calls):
    model = build(cls)
    convert(model, verbose=False)
    expected = unroll(model, *inputs(cls))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert type(twin).__name__ == cls.__name__
        assert isinstance(twin, cls)
        fused_calls.clear()
        for got, want in zip(unroll(twin, *inputs(cls)), expected, strict=True):
            assert torch.equal(got, want)
        assert len(fused_calls) == T


def test_a_copy_has_parameters_of_its_own():
    model = build(models.ChunkIFGO)
    convert(model, verbose=False)
    twin = copy.deepcopy(model)
    before = unroll(model, *inputs(models.ChunkIFGO))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(unroll(model, *inputs(models.ChunkIFGO)), before, strict=True))
    x, h, c = inputs(models.ChunkIFGO)
    assert torch.allclose(twin.step(x[0], h, c)[1], 0.5 * c)  # without weights half of c is kept


@pytest.mark.parametrize("cls", models.REFUSED, ids=lambda cls: cls.__name__)
def test_what_is_something_else_is_left_alone(cls):
    model = build(cls)
    expected = copy.deepcopy(model)
    report = convert(model, verbose=False)
    assert report.replaced == []
    (kept,) = report.kept
    assert (kept.name, kept.kind) == ("", cls.__name__)
    assert re.search(models.REFUSED[cls], kept.reason), kept.reason
    assert type(model) is cls
    for mode in (model, expected):
        torch.manual_seed(0)
        mode.result = results(mode, inputs(cls))
    assert all(torch.equal(a, b) for a, b in zip(model.result[0], expected.result[0], strict=True))


@pytest.mark.parametrize("cls", [*models.CELLS, *models.REFUSED], ids=lambda cls: cls.__name__)
def test_converting_leaves_everything_else_as_it_was(cls):
    model = build(cls, torch.float32)
    model.register_buffer("counter", torch.arange(3))
    model.eval()
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_().grad = torch.ones_like(next(model.parameters()))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    convert(model, verbose=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions
    assert not any(m.training for m in model.modules())
    first, *others = model.parameters()
    assert first.requires_grad
    assert (first.grad == 1).all()
    assert not any(p.requires_grad or p.grad is not None for p in others)


def test_other_calls_take_the_modules_own_forward(fused_calls):
    model = build(models.HiddenFirst)
    expected = copy.deepcopy(model)
    convert(model, verbose=False)
    x, h, c = inputs(models.HiddenFirst)
    fused_calls.clear()
    assert torch.allclose(model(x[0])[0], expected(x[0])[0], atol=1e-12)  # no state: zeros
    assert torch.allclose(model(x[0], prev_state=[h, c])[0], expected(x[0], [h, c])[0], atol=1e-12)
    assert len(fused_calls) == 2
    one = h[:1], c[:1]  # a state that is broadcast
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model(x[0], one)
    with pytest.raises(TypeError, match="unexpected keyword"):
        model(x[0], states=(h, c))
    assert len(fused_calls) == 2


def test_a_state_of_its_own_making_is_kept():
    class OnesAtFirst(models.HiddenFirst):
        def forward(self, x, prev_state=None):
            if prev_state is None:
                prev_state = (torch.ones(x.shape[0], models.C, *x.shape[2:], dtype=x.dtype),) * 2
            return super().forward(x, prev_state)

    model = build(OnesAtFirst)
    expected = copy.deepcopy(model)
    assert convert(model, verbose=False).replaced
    x = inputs(models.HiddenFirst)[0][0]
    assert torch.allclose(model(x)[0], expected(x)[0], atol=1e-12)


def test_hooks_run():
    model = build(models.ChunkIFGO)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(len(args)))
    model.register_full_backward_hook(lambda module, dinput, doutput: seen.append("backward"))
    convert(model, verbose=False)
    x, h, c = inputs(models.ChunkIFGO)
    model(x[0].requires_grad_(), (h, c))[0].sum().backward()
    assert seen == [2, "backward"]


def test_functional_call_sees_other_parameters():
    model = build(models.TwoConvolutions)
    convert(model, verbose=False)
    x, h, c = inputs(models.TwoConvolutions)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    got = torch.func.functional_call(model, zeros, (x[0], h, c))
    assert torch.allclose(got[1], 0.5 * c)


def test_parametrizations_made_later_are_seen():
    model = build(models.ChunkIFGO)
    expected = copy.deepcopy(model)
    convert(model, verbose=False)
    for m in (model, expected):
        torch.nn.utils.parametrizations.weight_norm(m.gates)
        with torch.no_grad():
            m.gates.parametrizations.weight.original0.mul_(2.0)
    for got, want in zip(*(unroll(m, *inputs(models.ChunkIFGO)) for m in (model, expected)), strict=True):
        close(got.detach(), want.detach(), 1e-12)


def test_weights_changed_in_place_are_seen():
    model = build(models.ChunkIFGO)
    convert(model, verbose=False)
    arguments = inputs(models.ChunkIFGO)
    with torch.no_grad():
        first = unroll(model, *arguments)[0]
        model.gates.weight.data.mul_(2.0)  # no version counter counts this
        assert not torch.equal(unroll(model, *arguments)[0], first)


@pytest.mark.parametrize("cls", [models.JointSigmoid, models.PerGate])
def test_compiles_without_a_break(cls):
    model = build(cls)
    convert(model, verbose=False)
    expected = unroll(model, *inputs(cls))[:2]
    x, h, c = inputs(cls)
    torch._dynamo.reset()
    step = torch.compile(cls.step, fullgraph=True, backend="aot_eager")
    for got, want in zip(step(model, x[0], h, c), expected, strict=True):
        close(got.detach(), want.detach(), 1e-12)


@pytest.mark.parametrize("example", [None, (torch.randn(B, models.I, 6, 7),)], ids=["guessed", "example"])
def test_peepholes_that_a_first_forward_makes(example, fused_calls):
    model = models.SameFrame()
    original = copy.deepcopy(model)
    report = convert(model, example=example, verbose=False)
    assert [(r.name, r.how) for r in report.replaced] == [("late", "cell")]
    names = "Wcf, Wci, Wco"
    assert report.replaced[0].notes == (
        f"no parameters, so never trained: {names}",
        f"not fused until a call has made: {names}",
    )
    assert model.late.Wci is None  # it was a copy that ran
    with pytest.raises(TypeError, match="NoneType"):
        model.late(torch.randn(B, models.I, 6, 7), *(torch.randn(B, models.C, 6, 7) for _ in "hc"))
    x = torch.randn(B, models.I, 5, 4)
    fused_calls.clear()
    assert torch.allclose(model(x), original(x), atol=1e-6)
    assert len(fused_calls) == 3


def test_an_example_tells_the_sizes():
    class TwoImages(models.Variation):
        """Takes images of 8 x 8 alone."""

        def forward(self, x, state):
            assert x.shape[2:] == (8, 8)
            return super().forward(x, state)

    model = torch.nn.Sequential(build(TwoImages, torch.float32))
    x, h, c = torch.randn(1, models.I, 8, 8), *(torch.randn(1, models.C, 8, 8) for _ in "hc")
    model.forward = lambda x, state: model[0](x, state)
    assert convert(copy.deepcopy(model[0]), verbose=False).replaced == []
    state = torch.get_rng_state()
    report = convert(model[0], example=(x, (h, c)), verbose=False)
    assert [r.how for r in report.replaced] == ["cell"]
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError, match="example: expected a tuple of the model's arguments, got Tensor"):
        convert(model, example=x)


def test_what_cannot_be_probed_says_why():
    class ConvLSTM3d(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv3d(5, 12, 3)

    class LockedLSTM(models.Variation):
        def __init__(self):
            super().__init__()
            self.frames = iter([])
            self.lock = __import__("threading").Lock()

    reasons = [convert(cls(), verbose=False).kept[0].reason for cls in (ConvLSTM3d, LockedLSTM)]
    assert reasons[0] == "its convolutions have three dimensions, expected 1 or 2"
    assert reasons[1].startswith("it cannot be copied: cannot pickle")


def test_what_is_no_lstm_is_not_named():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x, skip=None):
            return torch.relu(self.conv(x) + (x if skip is None else skip))

    report = convert(torch.nn.Sequential(Block(), torch.nn.Conv2d(8, 4, 1)), verbose=False)
    assert (report.replaced, report.kept) == ([], [])
    assert str(report) == "fusecell: no ConvLSTM was found"


def test_replicas_compute_on_their_own_tensors():
    model = build(models.PerGate)
    convert(model, verbose=False)
    replica = model._replicate_for_data_parallel()  # as DataParallel makes them, one for each device
    for name, child in model.named_children():
        twin = child._replicate_for_data_parallel()
        for key, value in child.named_parameters():
            setattr(twin, key, torch.zeros_like(value))
        replica._modules[name] = twin
    for key, value in model.named_parameters(recurse=False):
        setattr(replica, key, torch.zeros_like(value))
    _, h, c = inputs(models.PerGate)
    assert torch.allclose(replica(inputs(models.PerGate)[0][0], h, c)[1], 0.5 * c)


@pytest.mark.filterwarnings("ignore:on the CPU fusecell computes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, fused_calls):
    model = build(models.SplitIFOG, torch.float32)
    convert(model, verbose=False)
    wide = unroll(model, *inputs(models.SplitIFOG, torch.float32))
    fused_calls.clear()
    narrow = unroll(model.to(dtype), *inputs(models.SplitIFOG, dtype))
    assert len(fused_calls) == T
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == dtype
        assert torch.allclose(a.float(), b, atol=0.1)


@pytest.mark.filterwarnings("ignore:on the CPU fusecell computes")
def test_autocast(fused_calls):
    model = build(models.SplitIFOG, torch.float32)
    convert(model, verbose=False)
    expected = unroll(model, *inputs(models.SplitIFOG, torch.float32))
    fused_calls.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = unroll(model, *inputs(models.SplitIFOG, torch.float32))
    assert len(fused_calls) == T
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.float(), b, atol=0.1)


def test_twice_is_once():
    model = torch.nn.ModuleList([build(models.ChunkIFGO), build(models.PlainPeepholes), torch.nn.Conv2d(1, 4, 3)])
    first = convert(model, verbose=False)
    plans = [m.__dict__.get("_fusecell") for m in model]
    second = convert(model, verbose=False)
    assert [r.name for r in first.replaced] == ["0", "1"]
    assert second.replaced == []
    assert [(k.name, k.reason) for k in second.kept] == [(n, "computed by fusecell already") for n in ("0", "1")]
    assert [m.__dict__.get("_fusecell") for m in model] == plans


def test_the_report_names_what_never_trains(capsys):
    model = torch.nn.ModuleDict(
        {"a": build(models.PlainPeepholes), "b": build(models.SplitApart), "c": build(models.Normed)}
    )
    report = convert(model)
    assert [r.notes for r in report.replaced] == [
        ("no parameters, so never trained: Wcf, Wci, Wco",),
        ("never used: conv_o.weight, conv_o.bias",),
    ]
    assert capsys.readouterr().out == f"{report}\n"
    assert str(report).splitlines()[2].split()[:3] == ["c", "Normed", "kept"]
