"""Probes: tensors that change nothing, and whose gradients say what each step of a sequence was like."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.func import functional_call  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

import models  # noqa: E402

import fusecell.torch as ft  # noqa: E402
from fusecell import ops  # noqa: E402
from fusecell.torch import _conv_lstm, _memory, _options  # noqa: E402

torch.set_num_threads(1)
T, B, I, C, H, W = 4, 2, 2, 3, 5, 6
COLUMNS = len(ops.STEP_STATISTICS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def probe_of(steps=T):
    return torch.zeros(steps, COLUMNS, dtype=torch.float64, requires_grad=True)


def arguments(dtype=torch.float64):
    return {
        "x": draw(T, B, I, H, W, dtype=dtype),
        "weight_ih": draw(4 * C, I, 3, 3, dtype=dtype),
        "weight_hh": draw(4 * C, C, 3, 3, dtype=dtype),
        "bias": draw(4 * C, dtype=dtype),
        "peephole": draw(3 * C, dtype=dtype),
    }


def through_ops(given, dy, **options):
    """What fusecell.ops says of the same call."""
    arrays = {name: t.detach().numpy() for name, t in given.items()}
    *_, saved = ops.conv_lstm_forward(**arrays, **options)
    return ops.conv_lstm_backward(saved, dy.numpy(), statistics=True)["statistics"]


# -------------------------------------------------------------------------------------------------------- the function
@pytest.mark.parametrize("options", [{}, {"lengths": [4, 2]}, {"reverse": True, "truncation": 2}], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_gradient_is_what_ops_says(options, recompute, dtype):
    given, probe, dy = arguments(dtype), probe_of(), torch.randn(T, B, C, H, W, dtype=dtype)
    plain, _ = ft.conv_lstm(**given, **options, recompute=recompute)
    y, _ = ft.conv_lstm(**given, **options, recompute=recompute, probe=probe)
    assert torch.equal(y, plain)
    expected = torch.autograd.grad(plain, list(given.values()), dy)
    *gradients, statistics = torch.autograd.grad(y, [*given.values(), probe], dy)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert statistics.dtype == torch.float64
    assert np.array_equal(statistics.numpy(), through_ops(given, dy, **options))


def test_batch_first():
    given, probe, dy = arguments(), probe_of(), torch.randn(T, B, C, H, W, dtype=torch.float64)
    x = given["x"].detach().transpose(0, 1).contiguous()
    y, _ = ft.conv_lstm(**{**given, "x": x}, batch_first=True, probe=probe)
    y.backward(dy.transpose(0, 1))
    assert np.array_equal(probe.grad.numpy(), through_ops(given, dy))


def test_a_probe_alone_makes_a_backward():
    given, probe = {name: t.detach() for name, t in arguments().items()}, probe_of()
    y, _ = ft.conv_lstm(**given, probe=probe)
    y.sum().backward()
    assert np.array_equal(probe.grad.numpy(), through_ops(given, torch.ones_like(y).detach()))


@pytest.mark.filterwarnings("ignore:on the CPU fusecell computes")
def test_16_bits_on_the_cpu():
    given, probe = arguments(torch.bfloat16), probe_of()
    y, _ = ft.conv_lstm(**given, probe=probe)
    dy = torch.randn_like(y).detach()
    *_, dpeephole, statistics = torch.autograd.grad(y, [*given.values(), probe], dy)
    assert dpeephole.dtype == torch.bfloat16
    wide = {name: t.detach().float() for name, t in given.items()}
    expected = through_ops(wide, dy.float())
    assert np.allclose(statistics.numpy()[:, :3], expected[:, :3], rtol=0.1)


@pytest.mark.parametrize("wanted", [None, "a probe", "a probe without a gradient"])
def test_only_a_probe_that_wants_a_gradient_is_computed(monkeypatch, wanted):
    asked = []
    original = _memory.run

    def record(function, device, tensors, *rest):
        asked.append((function, "statistics" in tensors))
        original(function, device, tensors, *rest)

    monkeypatch.setattr(_memory, "run", record)
    probe = None if wanted is None else probe_of().requires_grad_(wanted == "a probe")
    ft.conv_lstm(**arguments(), probe=probe)[0].sum().backward()
    assert asked == [("conv_lstm_forward", False), ("conv_lstm_backward", wanted == "a probe")]


def test_without_a_probe_the_operators_are_called_as_before():
    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "fusecell" in str(function):
                found.append((str(function), len(args), args[-1]))
            return function(*args, **(kwargs or {}))

    for probe, added in ((None, 0), (probe_of(), 1)):
        found = []
        with Calls():
            ft.conv_lstm(**arguments(), probe=probe)[0].sum().backward()
        (_, forward, _), (_, _, needs) = found
        assert forward == 13 + added
        assert len(needs) == 7 + added


def test_opcheck():
    inputs = [*arguments(torch.float32).values(), None, None]
    options = _options.as_text(
        {
            **_options.convolution(1, 1, "same", "auto"),
            **_options.cell("sigmoid", "tanh", 0.01, 0.0, (0.0, 0.0)),
            "reverse": False,
            "truncation": 0,
        }
    )
    torch.library.opcheck(_conv_lstm.conv_lstm, (*inputs, *[None] * 4, options, "gates", probe_of()))
    given = [None if t is None else t.detach() for t in inputs]
    with torch.no_grad():
        y, _, _, c, gates = _conv_lstm.conv_lstm(*given, *[None] * 4, options, "gates")
    sent = (torch.randn_like(y), None, None)
    for needs in ([*[True] * 5, False, False, True], [False] * 7 + [True], [*[True] * 5, False, False, False]):
        call = (*sent, *given, *[None] * 4, y, c, gates, options, needs)
        torch.library.opcheck(torch.ops.fusecell.conv_lstm_backward.default, call)


def test_second_derivatives_are_as_without():
    given, probe = arguments(), probe_of()
    found = []
    for more in ({}, {"probe": probe}):
        y, _ = ft.conv_lstm(**given, **more)
        inputs = [*given.values(), *more.values()]
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in gradients[: len(given)])
        found.append(torch.autograd.grad(penalty, list(given.values())))
        assert not more or not gradients[-1].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_torch_func():
    given, dy = {n: t.detach() for n, t in arguments().items()}, torch.randn(T, B, C, H, W, dtype=torch.float64)

    def loss(probe, weight_hh):
        return (ft.conv_lstm(**{**given, "weight_hh": weight_hh}, probe=probe)[0] * dy).sum()

    statistics, dweight = torch.func.grad(loss, argnums=(0, 1))(probe_of().detach(), given["weight_hh"])
    assert np.array_equal(statistics.numpy(), through_ops(given, dy))
    assert dweight.abs().sum() > 0


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile(compiler):
    given, dy = arguments(torch.float32), torch.randn(T, B, C, H, W)

    def run(x, probe):
        return ft.conv_lstm(**{**given, "x": x}, probe=probe)[0] * 2.0

    compiled = torch.compile(run, fullgraph=True, backend=compiler)
    for steps in (T, T - 1, T - 2):  # static, then dynamic
        x, probe = given["x"].detach()[:steps], probe_of(steps)
        compiled(x, probe).backward(dy[:steps])
        expected = through_ops({**given, "x": x}, 2.0 * dy[:steps])
        assert np.array_equal(probe.grad.numpy(), expected)


BAD_PROBES = {
    "dtype": (lambda: torch.zeros(T, 9), TypeError, "probe: expected dtype float64, got float32"),
    "steps": (lambda: probe_of(T + 1), ValueError, r"probe: expected \(4, 9\), got \(5, 9\)"),
    "columns": (lambda: probe_of()[:, 1:], ValueError, r"probe: expected \(4, 9\), got \(4, 8\)"),
    "device": (lambda: probe_of().to("meta"), ValueError, "probe: expected a tensor on cpu, as x is, got one on meta"),
}


@pytest.mark.parametrize("name", BAD_PROBES)
def test_bad_probes(name):
    make, error, message = BAD_PROBES[name]
    with pytest.raises(error, match=message):
        ft.conv_lstm(**arguments(), probe=make())


def test_a_single_step_has_no_probe_of_its_own():
    given = arguments()
    x = given.pop("x")[0]
    probe = probe_of(1)
    ft.conv_lstm_cell(x, **given, probe=probe)[0].sum().backward()
    assert probe.grad[0, 0] == B * C * H * W


# --------------------------------------------------------------------------------------------------------- the modules
NAMES = ["l0", "l0_reverse", "l1", "l1_reverse"]


def module_of(**more):
    return ft.ConvLSTM2d(I, C, 3, num_layers=2, bidirectional=True, batch_first=True, **more).double()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_watched_module(recompute):
    module = module_of(recompute=recompute)
    x = torch.randn(B, T, I, H, W, dtype=torch.float64)
    assert module.watched is False
    module(x)
    assert module.probes == {}
    module.watched = True
    for _ in range(2):  # new ones each time: nothing adds up
        module(x, lengths=[T, 2])[0].square().sum().backward()
        assert list(module.probes) == NAMES
        for probe in module.probes.values():
            assert probe.grad[:, 0].tolist() == [n * C * H * W for n in (2, 2, 1, 1)]
            assert (probe.grad[:, 1] > 0).all()
    upper = module.probes["l1"].grad
    module.probes["l1"].grad = None
    module.zero_grad()
    y = module(x, lengths=[T, 2])[0]
    (again,) = torch.autograd.grad(y.square().sum(), module.probes["l1"])
    assert torch.equal(again, upper)


def test_a_row_of_numbers_is_watched_too():
    module = ft.ConvLSTM1d(I, C, 3)
    module.watched = True
    module(torch.randn(T, B, I, W))[0].sum().backward()
    assert module.probes["l0"].grad[:, 0].tolist() == [B * C * W] * T


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_nothing_is_watched_outside_of_training(mode):
    module, x = module_of(), torch.randn(B, T, I, H, W, dtype=torch.float64)
    module.watched = True
    module.train(mode != "eval")
    with torch.set_grad_enabled(mode != "no_grad"):
        module(x)
    assert module.probes == {}


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    module, x = module_of(), torch.randn(B, T, I, H, W, dtype=torch.float64, requires_grad=True)
    module.watched = True
    module(x)[0].square().sum().backward()
    expected = {name: probe.grad for name, probe in module.probes.items()}
    for _ in range(2):
        checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant).square().sum().backward()
        assert list(module.probes) == NAMES
        assert all(torch.equal(probe.grad, expected[name]) for name, probe in module.probes.items())


def test_it_is_no_part_of_the_state_and_is_copied():
    module = module_of()
    names = list(module.state_dict())
    module.watched = True
    module(torch.randn(B, T, I, H, W, dtype=torch.float64))[0].sum().backward()
    assert list(module.state_dict()) == names
    assert len(list(module.parameters())) == len(names)
    copied = copy.deepcopy(module)
    copied(torch.randn(B, 1, I, H, W, dtype=torch.float64))
    assert [p.shape[0] for p in (*module.probes.values(), *copied.probes.values())] == [T] * 4 + [1] * 4


def test_functional_call():
    module, x = module_of(), torch.randn(B, T, I, H, W, dtype=torch.float64)
    module.watched = True
    parameters = dict(module.named_parameters())
    functional_call(module, parameters, (x,))[0].square().sum().backward()
    assert all((probe.grad[:, 1] > 0).all() for probe in module.probes.values())


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_watched_module_under_compile():
    module, x = module_of(), torch.randn(B, T, I, H, W, dtype=torch.float64)
    module.watched = True
    module(x)[0].square().sum().backward()
    expected = {name: probe.grad for name, probe in module.probes.items()}
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(3):
        compiled(x)[0].square().sum().backward()
        assert list(module.probes) == NAMES
        for name, probe in module.probes.items():
            torch.testing.assert_close(probe.grad, expected[name])


# ---------------------------------------------------------------------------------------------------- what is converted
@pytest.mark.parametrize("cls", models.SEQUENCES, ids=lambda cls: cls.__name__)
def test_a_converted_loop_is_watched(cls):
    model = cls().double()
    ft.convert(model, verbose=False)
    assert model.watched is False
    axis = {models.TimeFirstLast: 0, models.TimeOutside: 0, models.OwnLoopPeepholes: 0, models.TimeThird: 2}.get(cls, 1)
    x = torch.randn(T, B, models.I, *models.SIZE, dtype=torch.float64).movedim(0, axis)
    model.watched = True
    output = model(x)
    leaves = [t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    sum(y.square().sum() for y in leaves).backward()
    assert next(iter(model.probes)).startswith("l0")
    for probe in model.probes.values():
        assert probe.shape == (T, COLUMNS)
        assert (probe.grad[:, 0] > 0).all()


def test_a_module_with_its_own_use_of_the_name_keeps_it():
    class Own(models.SEQUENCES[0]):
        def __init__(self):
            super().__init__()
            self.watched = True

    model = Own().double()
    report = ft.convert(model, verbose=False)
    assert "sequence" in [r.how for r in report.replaced]
    x = torch.randn(B, T, models.I, *models.SIZE, dtype=torch.float64)
    model(x)
    assert not hasattr(model, "probes")
