"""`to_plain`: converted models and fusecell's own modules without fusecell, and the twins of the latter."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))

import models  # noqa: E402

from fusecell.torch import modules, plain  # noqa: E402
from fusecell.torch.conversion import convert, to_plain  # noqa: E402
from fusecell.torch.conversion.calls import leaves  # noqa: E402

torch.set_num_threads(1)
T, B, I, C, SIZE = 3, 2, 2, 3, (6, 5)


def close(got, expected, tolerance=1e-12):
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).detach().abs().max() <= tolerance


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


OPTIONS = {
    "one layer": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first, peepholes": {"batch_first": True, "peephole": "channel"},
    "all per pixel": {"bias": "pixel", "peephole": "pixel", "image_size": SIZE},
    "no bias, other activations": {"bias": False, "activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "stride, dilation, padding": {"input_kernel_size": (2, 4), "stride": (2, 1), "dilation": 2, "padding": 3},
    "zoneout, truncation, slope": {"zoneout": (0.2, 0.1), "truncation": 2, "activation": "leaky_relu", "slope": 0.3},
    "dropout": {"num_layers": 2, "dropout": 0.5, "recurrent_dropout": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stack_has_a_plain_twin(name):
    module = randomised(modules.ConvLSTM2d(I, C, 3, dtype=torch.float64, **OPTIONS[name])).eval()
    twin = to_plain(module)
    assert type(twin) is plain.ConvLSTM2d
    assert type(module) is modules.ConvLSTM2d
    own = plain.ConvLSTM2d(I, C, 3, dtype=torch.float64, **OPTIONS[name]).eval()
    own.load_state_dict(module.state_dict())
    x = torch.randn(B, T, I, *SIZE, dtype=torch.float64) if module.batch_first else torch.randn(T, B, I, *SIZE).double()
    lengths = torch.tensor([3, 1])
    expected = module(x)
    state = tuple(torch.randn_like(s) for s in expected[1])
    for other in (twin, own):
        close(other(x), expected)
        close(other(x, state, lengths), module(x, state, lengths))
        one = [s[:, 0] for s in state]
        close(other(x[0] if module.batch_first else x[:, 0], one), module(x[0] if module.batch_first else x[:, 0], one))


@pytest.mark.parametrize("options", [{}, {"peephole": "channel", "stride": 2}, {"padding": 1, "bidirectional": True}])
def test_rows_have_a_plain_twin(options):
    module = randomised(modules.ConvLSTM1d(I, C, 3, dtype=torch.float64, **options))
    x = torch.randn(T, B, I, 7, dtype=torch.float64)
    expected = module(x)
    close(to_plain(module)(x), expected)
    own = plain.ConvLSTM1d(I, C, 3, dtype=torch.float64, **options)
    own.load_state_dict(module.state_dict())
    close(own(x, expected[1]), module(x, expected[1]))


@pytest.mark.parametrize("options", [{}, {"peephole": "pixel", "image_size": SIZE, "bias": "pixel"}])
def test_a_cell_has_a_plain_twin(options):
    module = randomised(modules.ConvLSTMCell2d(I, C, 3, dtype=torch.float64, **options))
    x = torch.randn(B, I, *SIZE, dtype=torch.float64)
    expected = module(x)
    own = plain.ConvLSTMCell2d(I, C, 3, dtype=torch.float64, **options)
    own.load_state_dict(module.state_dict())
    for twin in (to_plain(module), own):
        close(twin(x), expected)
        close(twin(x, expected), module(x, expected))
        close(twin(x[0]), module(x[0]))


def test_the_twins_masks():
    x = torch.randn(T, B, I, *SIZE, dtype=torch.float64)
    state = tuple(torch.randn(1, B, C, *SIZE, dtype=torch.float64) for _ in "hc")
    kept = plain.ConvLSTM2d(I, C, 3, zoneout=(1.0, 1.0), dtype=torch.float64)
    close(kept(x, state)[1], state)
    dropped = randomised(plain.ConvLSTM2d(I, C, 3, recurrent_dropout=0.5, stride=2, dtype=torch.float64))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(dropped(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[0][0], outputs[2][0])  # the first h' is zero, dropped or not
    with pytest.raises(TypeError, match="unexpected arguments: zone_out"):
        plain.ConvLSTM2d(I, C, 3, zone_out=0.5)


def test_what_was_converted_is_itself_again():
    original = randomised(models.StackOfCells().double())
    model = copy.deepcopy(original)
    convert(model, verbose=False)
    back = to_plain(model)
    assert [type(m) for m in back.modules()] == [type(m) for m in original.modules()]
    assert b"fusecell" not in pickle.dumps(back)
    assert b"fusecell" in pickle.dumps(model)
    assert list(back.state_dict()) == list(original.state_dict())
    x = torch.randn(B, T, I, *SIZE, dtype=torch.float64)
    close(back(x), original(x), 0.0)
    with torch.no_grad():
        next(back.parameters()).zero_()  # a deep copy: nothing is shared
    close(model(x), original(x))


def test_a_subclass_is_refused():
    class Own(modules.ConvLSTM2d):
        pass

    with pytest.raises(TypeError, match=r"0: expected fusecell's own class, got its subclass Own"):
        to_plain(torch.nn.Sequential(Own(I, C, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_plain_models_export_and_trace():
    model = torch.nn.ModuleList([modules.ConvLSTM2d(I, C, 3, num_layers=2, peephole="channel", batch_first=True)])
    x = torch.randn(B, T, I, *SIZE)
    twin = to_plain(model)[0].eval()
    expected = model[0].eval()(x)
    exported = torch.export.export(twin, (x,))
    assert not any("fusecell" in str(node.target) for node in exported.graph.nodes)
    close(exported.module()(x), expected, 1e-5)
    traced = torch.jit.trace(to_plain(model)[0].eval(), (x,))
    close(traced(x), expected, 1e-5)
    stock = torch.export.export(to_plain(randomised(models.OwnLoop())), (x,))
    assert len(stock.graph.nodes) > 0
