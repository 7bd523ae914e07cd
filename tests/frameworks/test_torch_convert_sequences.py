"""`convert` on modules that run over time: fused sequences where the loop is explained, else fused cells."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))

import models  # noqa: E402

from fusecell.torch.conversion import convert, to_plain  # noqa: E402
from fusecell.torch.conversion.calls import leaves  # noqa: E402

torch.set_num_threads(1)


def build(cls, dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = cls(**options).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def frames(steps=3, batch=2, dtype=torch.float64, seed=1, size=models.SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, batch, models.I, *size, generator=generator, dtype=torch.float64).to(dtype)


def arranged(cls, x):
    axis = {models.TimeFirstLast: 0, models.TimeOutside: 0, models.OwnLoopPeepholes: 0, models.TimeThird: 2}.get(cls, 1)
    return x.movedim(0, axis)


def results(model, *arguments):
    """The output, and the gradients of the inputs and parameters."""
    x, *others = arguments
    x = x.detach().clone().requires_grad_()
    output = model(x, *others)
    loss = sum((y * (1.0 + 0.1 * n)).square().sum() for n, y in enumerate(leaves(output)))
    inputs = [x, *model.parameters()]
    return output, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def form(tree):
    if isinstance(tree, dict):
        return type(tree), {key: form(child) for key, child in tree.items()}
    return (type(tree), [form(child) for child in tree]) if isinstance(tree, (tuple, list)) else tree.shape


def close(got, expected, tolerance=1e-10):
    (output, gradients), (wanted, wanted_gradients) = got, expected
    assert form(output) == form(wanted)
    for a, b in zip([*leaves(output), *gradients], [*leaves(wanted), *wanted_gradients], strict=True):
        assert a.dtype == b.dtype
        assert (a - b).detach().abs().max() <= tolerance * max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("cls", models.SEQUENCES, ids=lambda cls: cls.__name__)
def test_a_loop_becomes_sequences(cls, dtype, tolerance, fused_calls):
    original = build(cls, dtype)
    converted = copy.deepcopy(original)
    names = [name for name, _ in converted.named_parameters()]
    report = convert(converted, verbose=False)
    assert ("", cls.__name__, "sequence") in [(r.name, r.kind, r.how) for r in report.replaced]
    assert report.kept == []
    assert [name for name, _ in converted.named_parameters()] == names
    cells = max(2 if cls is models.OwnLayers else 1, sum(r.how == "cell" for r in report.replaced))
    for steps, batch in ((3, 2), (1, 3), (6, 1)):
        x = arranged(cls, frames(steps, batch, dtype))
        fused_calls.clear()
        got = results(converted, x)
        assert [shape[0] for shape in fused_calls] == [steps] * cells
        close(got, results(original, x), tolerance)


@pytest.mark.parametrize("cls", models.LOOPS_THAT_STAY, ids=lambda cls: cls.__name__)
def test_a_loop_that_cannot_be_explained_stays(cls, fused_calls):
    original = build(cls)
    converted = copy.deepcopy(original)
    report = convert(converted, verbose=False)
    assert {r.how for r in report.replaced} == {"cell"}
    (kept,) = report.kept
    assert kept.name == ""
    assert kept.reason == f"cells fused; the loop over time stays: {models.LOOPS_THAT_STAY[cls]}"
    x = frames().transpose(0, 1)
    fused_calls.clear()
    torch.manual_seed(3)
    got = results(converted, x)
    assert {shape[0] for shape in fused_calls} == {1}
    torch.manual_seed(3)
    close(got, results(original, x))


def test_a_state_that_is_given_takes_the_loop(fused_calls):
    original = build(models.StackOfCells)
    converted = copy.deepcopy(original)
    convert(converted, verbose=False)
    x = frames().transpose(0, 1)
    state = [tuple(torch.randn(2, models.C, *models.SIZE, dtype=torch.float64) for _ in "hc") for _ in range(2)]
    fused_calls.clear()
    got = results(converted, x, state)
    assert len(fused_calls) == 2 * 3
    close(got, results(original, x, state))
    fused_calls.clear()
    close(results(converted, x, None), results(original, x))
    assert len(fused_calls) == 2


def test_the_number_of_steps_as_an_argument(fused_calls):
    original = build(models.OwnLength)
    converted = copy.deepcopy(original)
    report = convert(converted, verbose=False)
    assert [r.how for r in report.replaced] == ["sequence"]
    x = frames(4)
    for arguments, fused_lengths in (((x, None, 4), [4]), ((x[:3],), [3]), ((x, None, 2), []), ((x,), [])):
        fused_calls.clear()
        close(results(converted, *arguments), results(original, *arguments))
        assert [shape[0] for shape in fused_calls] == fused_lengths
    output, _ = converted(None, original(x[:3])[1], seq_len=2)
    assert torch.equal(output, original(None, original(x[:3])[1], seq_len=2)[0])
    assert not fused_calls


def test_a_setting_that_changes_takes_the_loop(fused_calls):
    original = build(models.StackOfCells, torch.float32)
    converted = copy.deepcopy(original)
    convert(converted, verbose=False)
    original.return_all_layers = converted.return_all_layers = False
    original.batch_first = converted.batch_first = False
    x = frames(dtype=torch.float32)
    fused_calls.clear()
    close(results(converted, x), results(original, x), 2e-5)
    assert len(fused_calls) == 2 * 3


def test_hooks_on_a_cell_take_the_loop(fused_calls):
    model = build(models.StackOfCells)
    convert(model, verbose=False)
    seen = []
    model.cell_list[1].register_forward_hook(lambda module, args, output: seen.append(1))
    fused_calls.clear()
    model(frames().transpose(0, 1))
    assert len(seen) == 3


@pytest.mark.parametrize("cls", [models.StackOfCells, models.OwnLoop])
def test_copies_and_pickles(cls, fused_calls):
    model = build(cls)
    convert(model, verbose=False)
    x = frames().transpose(0, 1)
    expected = results(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        fused_calls.clear()
        close(results(twin, x), expected, 0.0)
        assert {shape[0] for shape in fused_calls} == {3}


def test_a_peephole_that_a_first_forward_makes(fused_calls):
    model = build(models.LateLoop)
    report = convert(model, verbose=False)
    notes = ("no parameters, so never trained: p", "not fused until a call has made: p")
    assert [(r.how, r.notes) for r in report.replaced] == [("sequence", notes)]
    x = frames().transpose(0, 1)
    assert not hasattr(model, "p")
    fused_calls.clear()
    model(x)
    assert not fused_calls  # its own forward makes the peephole
    model.p.normal_()  # as a checkpoint might
    original = to_plain(model)
    close(results(model, x), results(original, x))
    assert len(fused_calls) == 1


def test_random_numbers_are_not_drawn():
    model = build(models.DrawsNumbers)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert len(convert(model, verbose=False, example=(frames(dtype=torch.float64),)).replaced) == 1
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_one_reason_for_nested_loops():
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = models.FeedsBack()

        def forward(self, x):
            return self.inner(x)

    report = convert(Around(), verbose=False)
    assert [k.name for k in report.kept] == ["inner"]


def test_a_model_around_sequences(fused_calls):
    model = torch.nn.Sequential(build(models.OwnLoop), torch.nn.ReLU())
    model.append(build(models.BothWays))
    model[2].ahead.conv_x[0] = torch.nn.Conv2d(models.C, 4 * models.C, 3, padding=1)
    model[2].back.conv_x[0] = torch.nn.Conv2d(models.C, 4 * models.C, 3, padding=1)
    model.double()
    original = copy.deepcopy(model)
    report = convert(model, verbose=False)
    assert [r.name for r in report.replaced] == ["0", "2", "2.ahead", "2.back"]
    x = frames().transpose(0, 1)
    fused_calls.clear()
    close(results(model, x), results(original, x))
    assert len(fused_calls) == 3


def test_compiles_without_a_break():
    model = build(models.StackOfCells)
    x = frames().transpose(0, 1)
    expected = model(x)
    convert(model, verbose=False)
    torch._dynamo.reset()
    output = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    for got, want in zip(leaves(output), leaves(expected), strict=True):
        assert torch.allclose(got, want, atol=1e-12)


def test_an_empty_sequence_takes_the_loop():
    model = build(models.StackOfCells)
    convert(model, verbose=False)
    with pytest.raises(RuntimeError, match="non-empty"):
        model(frames(0).transpose(0, 1))
