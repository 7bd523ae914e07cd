"""`convert` leaves alone what computes as a ConvLSTM on most numbers, and as something else on some."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent))

import torch.nn.functional as F  # noqa: E402
from models import SIZE, C, I, Pair  # noqa: E402
from torch import nn  # noqa: E402

from fusecell.torch.conversion import cells, convert, fused  # noqa: E402

torch.set_num_threads(1)
B = 2


class Cell(Pair):
    """The plain cell, with a place for a change at each stage."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, 3, padding=1)

    def sigma(self, z):
        return torch.sigmoid(z)

    def phi(self, z):
        return torch.tanh(z)

    def gates(self, z):
        return z

    def kept(self, c):
        return c

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.gates(self.conv(torch.cat([x, h], 1))).chunk(4, 1)
        c = self.kept(self.sigma(f) * c + self.sigma(i) * self.phi(g))
        return self.sigma(o) * self.phi(c), c


class Hard(Cell):
    def sigma(self, z):
        return torch.clamp(0.2 * z + 0.5, 0, 1)


def changed(base=Cell, **methods):
    """A subclass of a cell with other methods."""
    return type("Changed", (base,), {name: (lambda self, z, f=f: f(z)) for name, f in methods.items()})


class SkipsEmpty(Cell):
    def forward(self, x, state):
        if x.abs().sum() == 0:
            return state
        return super().forward(x, state)


class Masks(Cell):
    def forward(self, x, state):
        h, c = super().forward(x, state)
        there = (x.abs().sum((1, 2, 3), keepdim=True) > 0).to(x.dtype)
        return there * h + (1 - there) * state[0], there * c + (1 - there) * state[1]


class Counts(Cell):
    def __init__(self):
        super().__init__()
        self._calls = 0

    def forward(self, x, state):
        self._calls += 1
        h, c = super().forward(x, state)
        return (h, c) if self._calls < 1000 else (0 * h, c)


class ClipsGradient(Cell):
    def kept(self, c):
        if c.requires_grad:
            c.register_hook(lambda gradient: gradient.clamp(-100, 100))
        return c


class Clip(torch.autograd.Function):
    """The identity, whose gradient is clipped."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1e6, 1e6)


class MendsNaN(Cell):
    def forward(self, x, state):
        if torch.isnan(x).any():
            return state
        return super().forward(x, state)


class SkipsBlack(Cell):
    def forward(self, x, state):
        return state if float(x.max()) == float(x.min()) else super().forward(x, state)


class ZeroesNaN(Cell):
    def kept(self, c):
        c = c.clone()
        c[torch.isnan(c)] = 0.0
        return c


NOT_CELLS = {
    "black frames skipped": (SkipsBlack, "calls float"),
    "NaN zeroed": (ZeroesNaN, "calls isnan"),
    "steps rounded": (changed(kept=lambda c: c + torch.div(c, 1e4, rounding_mode="trunc")), "calls div"),
    "c clamped at 6": (changed(kept=lambda c: c.clamp(-6, 6)), "calls clamp"),
    "c clamped at 50": (changed(kept=lambda c: torch.clip(c, -50, 50)), "calls clip"),
    "gates clamped": (changed(gates=lambda z: z.clamp(-20, 20)), "calls clamp"),
    "c clamped, hard sigmoid": (changed(Hard, kept=lambda c: c.clamp(-50, 50)), "calls clamp"),
    "c clamped at a corner of the hard sigmoid": (
        changed(sigma=F.hardsigmoid, kept=lambda c: c.clamp(max=6)),
        "differ by .* on large",
    ),
    "relu6": (changed(phi=nn.ReLU6()), "calls hardtanh"),
    "relu6, as a function": (changed(phi=F.relu6), "calls relu6"),
    "NaN replaced": (changed(kept=torch.nan_to_num), "calls nan_to_num"),
    "large values replaced": (changed(kept=lambda c: torch.where(c > 99, 99.0, c)), "calls gt, where"),
    "empty frames skipped": (SkipsEmpty, "calls eq, bool"),
    "empty frames masked": (Masks, "calls gt, to"),
    "gradient clipped by a hook": (ClipsGradient, "calls register_hook"),
    "gradient clipped by a function": (changed(kept=Clip.apply), "calls Clip"),
    "a counter of calls": (Counts, "writes _calls"),
    "NaN handled": (MendsNaN, "mends NaN"),
}


@pytest.mark.parametrize("name", NOT_CELLS)
def test_a_cell_with_a_corner_is_left_alone(name):
    cls, reason = NOT_CELLS[name]
    torch.manual_seed(0)
    model = cls()
    report = convert(model, verbose=False)
    assert report.replaced == []
    (kept,) = report.kept
    assert re.search(reason, kept.reason), kept.reason
    assert type(model) is cls


def limited(c: torch.Tensor) -> torch.Tensor:
    return c.clamp(-5000.0, 5000.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_code_is_seen_in_autograds_graph():
    report = convert(changed(kept=torch.jit.script(limited))(), verbose=False)
    assert [k.reason for k in report.kept] == ["its forward calls clamp, which a ConvLSTM does not"]


# ------------------------------------------------------------------------------------------ what explains itself
class Threshold(Hard):
    def sigma(self, z):
        return F.threshold(-F.threshold(-0.2 * z - 0.5, -1, -1), 0, 0)


class Careful(Cell):
    """Asserts on values, sizes read from x.data, and something that is computed and thrown away."""

    def forward(self, x, state):
        assert not torch.any(torch.isnan(x))
        assert torch.isfinite(state[0]).all()
        assert state[0].size(0) == x.data.size()[0]
        torch.relu(state[1])
        return super().forward(x, state)


EXPLAINED = {
    "relu": changed(phi=F.relu),
    "relu as a clamp": changed(phi=lambda z: z.clamp(min=0)),
    "hard tanh": changed(phi=nn.Hardtanh()),
    "softsign": changed(phi=lambda z: z / (1 + z.abs())),
    "leaky relu": changed(phi=nn.LeakyReLU(0.3)),
    "hard sigmoid by relu6": changed(sigma=lambda z: F.relu6(z + 3) / 6),
    "hard sigmoid by thresholds": Threshold,
    "asserts": Careful,
    "dropout of rate 0": changed(kept=nn.Dropout(0.0)),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_the_activations_explain_is_converted(name):
    torch.manual_seed(0)
    original = EXPLAINED[name]().double()
    converted = copy.deepcopy(original)
    report = convert(converted, verbose=False)
    assert [r.how for r in report.replaced] == ["cell"], report.kept
    x, h, c = (torch.randn(B, n, *SIZE, dtype=torch.float64) for n in (I, C, C))
    for got, want in zip(converted(x, (h, c)), original(x, (h, c)), strict=True):
        assert torch.allclose(got, want, atol=1e-12)


# --------------------------------------------------------------------------------------------------------- loops
class Loop(nn.Module):
    """[B, T, I, H, W] in, [B, T, C, H, W] out."""

    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def before(self, t, h, c):
        return h, c

    def ends(self, t, x):
        return False

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], C, *x.shape[3:])
        ys = []
        for t in range(x.shape[1]):
            if self.ends(t, x[:, t]):
                break
            h, c = self.cell(x[:, t], self.before(t, h, c))
            ys.append(h)
        return torch.stack(ys, 1)


class DetachesEvery8th(Loop):
    def before(self, t, h, c):
        return (h.detach(), c.detach()) if t and t % 8 == 0 else (h, c)


class ResetsEvery8th(Loop):
    def before(self, t, h, c):
        return (torch.zeros_like(h), torch.zeros_like(c)) if t % 8 == 0 else (h, c)


class EndsAt6(Loop):
    def ends(self, t, x):
        return t >= 6


class EndsAtBlank(Loop):
    def ends(self, t, x):
        return x.abs().max() == 0


class LastFive(Loop):
    def forward(self, x):
        return super().forward(x)[:, -5:]


class ClampsBetween(Loop):
    def before(self, t, h, c):
        return h, c.clamp(-30, 30)


class OwnDetaches(nn.Module):
    """A loop over convolutions of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(I + C, 4 * C, 3, padding=1)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], C, *x.shape[3:])
        ys = []
        for t, frame in enumerate(x.unbind(1)):
            if t and t % 8 == 0:
                h, c = h.detach(), c.detach()
            i, f, g, o = self.conv(torch.cat([frame, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        return torch.stack(ys, 1)


NOT_LOOPS = {
    DetachesEvery8th: "calls detach",
    ResetsEvery8th: "outputs differ by .* over 37 frames",
    EndsAt6: "outputs differ by inf .* over 37 frames",
    EndsAtBlank: "calls eq, bool",
    LastFive: "outputs differ by inf",
    ClampsBetween: "calls clamp",
    OwnDetaches: "calls detach",
}


@pytest.mark.parametrize("cls", NOT_LOOPS, ids=lambda cls: cls.__name__)
def test_a_loop_that_changes_its_ways_stays(cls):
    torch.manual_seed(0)
    model = cls()
    report = convert(model, verbose=False)
    assert [r.name for r in report.replaced] == ([] if cls is OwnDetaches else ["cell"])
    (kept,) = report.kept
    assert re.search(NOT_LOOPS[cls], kept.reason), kept.reason


# ------------------------------------------------------------------------------------------ peepholes made on call
class Lazy(Cell):
    """Peepholes for the size of the first image, and new ones, zero, for every other size."""

    def __init__(self):
        super().__init__()
        self.peephole = None

    def kept(self, c):
        return c

    def forward(self, x, state):
        h, c = state
        if self.peephole is None or self.peephole.shape[-2:] != x.shape[-2:]:
            self.peephole = nn.Parameter(torch.zeros(1, C, *x.shape[-2:], dtype=x.dtype))
        i, f, g, o = self.conv(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f + self.peephole * c) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def test_peepholes_made_on_call_are_no_crash(monkeypatch):
    calls = []
    step = fused._conv_lstm
    monkeypatch.setattr(fused, "_conv_lstm", lambda x, *a, **k: calls.append(x.shape) or step(x, *a, **k))
    torch.manual_seed(0)
    model = Lazy()
    assert "first forward makes" in convert(model, verbose=False).kept[0].reason
    model.peephole = nn.Parameter(torch.randn(1, C, *SIZE))
    original = copy.deepcopy(model)
    assert [r.how for r in convert(model, verbose=False).replaced] == ["cell"]
    for size, count in ((SIZE, 1), ((3, 7), 0)):
        x, h, c = (torch.randn(B, n, *size) for n in (I, C, C))
        calls.clear()
        for got, want in zip(model(x, (h, c)), original(x, (h, c)), strict=True):
            assert torch.allclose(got, want, atol=1e-6)
        assert len(calls) == count


def test_whatever_a_converted_copy_raises_is_a_reason(monkeypatch):
    def fails(*args, **kwargs):
        raise ArithmeticError("no luck")

    monkeypatch.setattr(fused, "_conv_lstm", fails)
    assert convert(Cell(), verbose=False).kept[0].reason == "a converted copy raised ArithmeticError: no luck"


def test_a_copy_that_falls_back_to_its_own_forward_proves_nothing(monkeypatch):
    monkeypatch.setattr(cells, "hooked", lambda module: True)
    (kept,) = convert(Cell(), verbose=False).kept
    assert kept.reason.startswith("its fused form does not take the call")


def test_a_state_that_is_none_on_purpose(monkeypatch):
    class NoDefault(Cell):
        def forward(self, x, state):
            if state is None:
                state = (torch.zeros(x.shape[0], C, *x.shape[2:], dtype=x.dtype),) * 2
            return super().forward(x, state)

    calls = []
    step = fused._conv_lstm
    monkeypatch.setattr(fused, "_conv_lstm", lambda x, *a, **k: calls.append(x.shape) or step(x, *a, **k))
    model = NoDefault()
    original = copy.deepcopy(model)
    assert [r.how for r in convert(model, verbose=False).replaced] == ["cell"]
    x = torch.randn(B, I, *SIZE)
    calls.clear()
    assert torch.allclose(model(x, None)[0], original(x, None)[0], atol=1e-6)
    assert len(calls) == 1


# ----------------------------------------------------------------------------------------------------- the report
class DictState(Cell):
    def forward(self, x, state):
        h, c = super().forward(x, (state["hidden"], state["cell"]))
        return torch.sigmoid(h), {"hidden": h, "cell": c}


class Optional(nn.Module):
    """Frames, states and the number of steps may all be absent."""

    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def forward(self, x=None, state=None, steps=4):
        h, c = state or (x.new_zeros(x.shape[1], C, *x.shape[3:]),) * 2
        ys = []
        for t in range(steps):
            h, c = self.cell(torch.zeros(h.shape[0], I, *SIZE) if x is None else x[t], (h, c))
            ys.append(h)
        return torch.stack(ys)


class RandomStart(Cell):
    def forward(self, x, state=None):
        return super().forward(x, state or (torch.randn(x.shape[0], C, *x.shape[2:]),) * 2)


def test_the_report_says_which_calls_are_not_fused():
    report = convert(nn.ModuleList([DictState(), Optional(), RandomStart()]), verbose=False)
    assert [(k.name, k.reason) for k in report.kept] == [
        ("0", "its state is a dict: expected a tuple, a list, or two tensors")
    ]
    assert {r.name: r.notes for r in report.replaced} == {
        "1": (
            "calls with state or with another steps than the number of frames or without x take the loop over "
            "fused cells",
        ),
        "1.cell": (),
        "2": ("calls without a state take its own forward",),
    }


def test_an_example_of_any_size_is_proven_on_small_images(monkeypatch):
    pixels = []
    step = fused._conv_lstm
    monkeypatch.setattr(fused, "_conv_lstm", lambda x, *a, **k: pixels.append(x[0, 0, 0].numel()) or step(x, *a, **k))
    model = Loop()
    report = convert(model, example=(torch.randn(1, 2, I, 40, 50),), verbose=False)
    assert [(r.name, r.how) for r in report.replaced] == [("", "sequence"), ("cell", "cell")]
    assert 0 < sum(n == 2000 for n in pixels) < 8
    assert sum(n < 100 for n in pixels) > 20


def test_what_differs_at_the_examples_size_is_noticed():
    class Large(Cell):
        def forward(self, x, state):
            h, c = super().forward(x, state)
            return (h, c) if x.shape[-1] < 30 else (-h, c)

    example = (torch.randn(1, I, 20, 30), (torch.randn(1, C, 20, 30), torch.randn(1, C, 20, 30)))
    report = convert(Large(), example=example, verbose=False)
    assert report.replaced == []
    assert len(report.kept) == 1
