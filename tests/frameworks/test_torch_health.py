"""fusecell.health.Monitor on torch modules: fused ones, cells in a loop, torch's own recurrent modules, plain ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fusecell.torch as ft
from fusecell import health


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Loop(nn.Module):
    """A cell in a loop over time."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, 1)

    def forward(self, x):
        state = None
        for frame in x:
            state = self.cell(frame, state) if state is not None else self.cell(frame)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(h)


def train(model, make, steps=3, lr=0.01, **options):
    monitor = health.Monitor(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for n in range(steps):
        x, target = make(n)
        loss = nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        monitor.observe(float(loss.detach()))
        optimizer.step()
    return monitor


def sequences(length=12, batch=4, features=3):
    def make(n):
        g = torch.Generator().manual_seed(n)
        return torch.randn(length, batch, features, generator=g), torch.randn(batch, 1, generator=g)

    return make


# ----------------------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_gradients_of_a_cell_in_a_loop(kind):
    """What the hooks see is what autograd says of the states."""
    model = Loop(kind(3, 5))
    make = sequences()
    monitor = train(model, make, steps=2, lr=0.0)
    (step,) = monitor.observations[-1].steps.values()
    states, state = [], None
    for frame in make(1)[0]:
        state = model.cell(frame, state) if state is not None else model.cell(frame)
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            part.retain_grad()
        states.append(parts)
    nn.functional.mse_loss(model.head(states[-1][0]), make(1)[1]).backward()
    for k, norms in enumerate([step.dh, step.dc] if kind is nn.LSTMCell else [step.dh]):
        expected = [0.0 if s[k].grad is None else float(s[k].grad.norm()) for s in states]
        np.testing.assert_allclose(norms, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_torchs_own_lstm(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=batch_first), nn.Linear(5, 1)

        def forward(self, x):
            y, _ = self.rnn(x.transpose(0, 1) if batch_first else x)
            return self.head(y[:, -1] if batch_first else y[-1])

    model, make = Net(), sequences()
    monitor = train(model, make, steps=1)
    (step,) = monitor.observations[-1].steps.values()
    assert len(step.dh) == 12
    assert step.dh[0] < step.dh[-1]
    assert step.dh.min() > 0


def test_a_model_is_as_it_was_after_detach():
    model = Loop(nn.LSTMCell(3, 5))
    monitor = train(model, sequences())
    monitor.detach()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_watching_changes_no_number():
    losses = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Loop(nn.LSTMCell(3, 5))
        if watched:
            health.Monitor(model)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for n in range(4):
            x, target = sequences()(n)
            loss = nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------------------ verdicts
def names(monitor):
    return [v.name for v in monitor.verdicts()]


def recall(n, length=60):
    """The sign of the first frame: only memory over all steps can tell."""
    x = torch.randn(length, 16, 3, generator=torch.Generator().manual_seed(n))
    return x, x[0, :, :1].sign()


def test_a_plain_cell_forgets_over_sixty_steps():
    cell = nn.RNNCell(3, 5)
    with torch.no_grad():
        cell.weight_hh.mul_(0.3)
    monitor = train(Loop(cell), recall, steps=40)
    assert "vanishing gradient" in names(monitor)


def test_symmetric_and_dead_units():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)

    def make(n):
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(n))
        return x, x.sum(1, keepdim=True)

    found = names(train(model, make, steps=20))
    assert "symmetric units" in found
    assert "dead units" in found


def test_a_healthy_network():
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    def make(n):
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(n))
        return x, x.sum(1, keepdim=True)

    monitor = train(model, make, steps=60, lr=0.1)
    assert names(monitor) == []
    assert "1" in monitor.observations[-1].units


def test_evaluation_is_not_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    monitor = health.Monitor(model)
    model.eval()(torch.randn(5, 3))
    monitor.observe(1.0)
    assert monitor.observations[-1].units == {}


# --------------------------------------------------------------------------------------------------------------- fused
def test_a_fused_module_tells_its_steps():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ft.ConvLSTM2d(1, 4, 3, num_layers=2)

        def forward(self, x):
            y, _ = self.rnn(x)
            return y[-1]

    model = Net()

    def make(n):
        return torch.randn(6, 2, 1, 8, 8), torch.randn(2, 4, 8, 8)

    monitor = train(model, make)
    steps = monitor.observations[-1].steps
    assert list(steps) == ["rnn.l0", "rnn.l1"]
    assert steps["rnn.l1"].dh.shape == (6,)
    assert steps["rnn.l1"].dh.min() > 0
    assert 0.3 < steps["rnn.l1"].forget.mean() < 0.95
    assert set(steps["rnn.l0"].saturated) == set("ifgo")
    assert "forget gate" in monitor.report()
    monitor.detach()
    assert not model.rnn.watched


# -------------------------------------------------------------------------------------------- models of many kinds
class ConvLoop(nn.Module):
    """The ConvLSTM that people write, which `convert` finds."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x, state):
            h, c = state
            i, f, o, g = torch.split(self.conv(torch.cat([x, h], 1)), 2, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

    def __init__(self):
        super().__init__()
        self.cell = self.Cell()

    def forward(self, x):
        h = c = torch.zeros(x.shape[1], 2, *x.shape[3:])
        for frame in x:
            h, c = self.cell(frame, (h, c))
        return h


def frames(n):
    g = torch.Generator().manual_seed(n)
    return torch.randn(6, 2, 1, 5, 5, generator=g), torch.randn(2, 2, 5, 5, generator=g)


def operators(model, x):
    with torch.profiler.profile() as profile:
        model(x)
    return {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_converted_model_stays_fused(wrapped):
    model = nn.Sequential(ConvLoop()) if wrapped else ConvLoop()
    assert ft.convert(model, verbose=False).replaced
    monitor = train(model, frames)
    fused = {name for name in operators(model, frames(0)[0]) if name.startswith("fusecell::")}
    monitor.detach()
    assert fused == {name for name in operators(model, frames(0)[0]) if name.startswith("fusecell::")} != set()


def test_a_loop_written_by_hand_is_seen():
    monitor = train(ConvLoop(), frames)
    assert list(monitor.observations[-1].steps) == ["cell"]
    assert monitor.observations[-1].steps["cell"].dh.shape == (6,)


@pytest.mark.parametrize("module", [ft.ConvLSTMCell2d(1, 2, 3), ft.ConvLSTM1d(1, 2, 3)], ids=["cell", "rows"])
def test_fusecells_other_modules(module):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            if isinstance(module, ft.ConvLSTM1d):
                return self.inner(x[..., 0])[0][-1]
            state = None
            for frame in x:
                state = self.inner(frame, state)
            return state[0]

    def make(n):
        x, target = frames(n)
        return x, target[..., 0] if isinstance(module, ft.ConvLSTM1d) else target

    monitor = train(Net(), make)
    (step,) = monitor.observations[-1].steps.values()
    assert step.dh.shape == (6,)
    assert step.dh.min() > 0
    assert ("largest singular value" in monitor.report()) is isinstance(module, ft.ConvLSTM1d)
    monitor.detach()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_report_knows_the_gates_of_torchs_modules(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(3, 5)

        def forward(self, x):
            return self.rnn(x)[0][-1, :, :1]

    text = train(Net(), sequences()).report()
    line = next(line for line in text.splitlines() if line.startswith("rnn.weight_hh_l0: largest"))
    assert len(line.split("matrix ")[1].split(", ")) == {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]


def test_one_activation_module_for_many_layers_is_no_loop():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.act = nn.ModuleList(nn.Linear(3, 3) for _ in range(5)), nn.Tanh()

        def forward(self, x):
            for layer in self.layers:
                x = self.act(layer(x))
            return x

    assert train(Net(), lambda n: (torch.randn(8, 3), torch.randn(8, 3))).observations[-1].steps == {}


def test_a_copy_of_the_model_brings_no_readings():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    monitor = health.Monitor(model)
    other = copy.deepcopy(model)
    model(torch.zeros(5, 3)).sum().backward()
    other(torch.full((5, 3), 100.0)).sum().backward()
    monitor.observe(1.0)
    assert abs(monitor.observations[-1].units["1"].high) < 0.9


def test_parts_that_are_called_without_the_whole():
    model = nn.Module()
    model.enc = nn.Linear(1, 2)
    monitor = health.Monitor(model)
    highs = []
    for n in range(3):
        model.enc(torch.full((4, 1), 10.0**n)).sum().backward()
        monitor.observe(1.0)
        highs.append(monitor.observations[-1].units["enc"].high)
    assert len(set(highs)) == 3


def test_other_steps_are_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = ft.ConvLSTM2d(1, 2, 3)

        def forward(self, x):
            return self.rnn(x)[0][-1]

    model = Net()
    monitor, probed = health.Monitor(model, every=3), []
    for n in range(6):
        x, target = frames(n)
        nn.functional.mse_loss(model(x), target).backward()
        probed.append(bool(model.rnn.probes))
        monitor.observe(1.0)
    assert probed == [True, False, False] * 2
    assert [list(o.steps) for o in monitor.observations] == [["rnn.l0"], ["rnn.l0"]]


def test_what_people_pass():
    embedding = nn.Embedding(10, 3, sparse=True)
    monitor = health.Monitor(embedding)
    loss = embedding(torch.tensor([1, 2])).square().sum()
    loss.backward()
    monitor.observe(loss, penalty=loss * 0.1)
    observation = monitor.observations[-1]
    assert observation.loss == pytest.approx(float(loss.detach()))
    assert isinstance(observation.penalty, float)
    assert observation.parameters["weight"].gradient > 0
    with pytest.raises(
        ValueError, match=r"targets: expected the outputs' shape \(16,\), or class numbers, got \(16, 1\)"
    ):
        monitor.observe(1.0, outputs=torch.zeros(16), targets=torch.zeros(16, 1))


def test_empty_batches_are_let_through():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    monitor = health.Monitor(model)
    model(torch.zeros(0, 3)).sum().backward()
    monitor.observe(1.0, outputs=torch.zeros(0, 4), targets=torch.zeros(0, 4))
    assert monitor.report()


def test_a_parameter_that_the_graph_does_not_reach():
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "left": nn.Linear(3, 1), "frozen": nn.Linear(3, 1)})
    model["frozen"].requires_grad_(False)
    monitor, optimizer = health.Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    for n in range(8):
        loss = (model["used"](torch.randn(9, 3)) - 1).square().mean() / (1 + n)
        optimizer.zero_grad()
        loss.backward()
        monitor.observe(loss)
        optimizer.step()
    (verdict,) = monitor.verdicts()
    assert (verdict.name, verdict.where) == ("parameter gets no gradient", "left.weight, left.bias")


def test_a_step_that_a_scaler_leaves_out_is_no_illness():
    model = nn.Linear(3, 1)
    monitor = health.Monitor(model)
    for n in range(4):
        model.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        if n == 0:
            model.weight.grad[...] = float("inf")
        monitor.observe(1.0)
    assert names(monitor) == []


def test_a_compiled_model_says_that_it_shows_no_units():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    monitor = health.Monitor(compiled)
    for _ in range(2):
        compiled(torch.randn(5, 3)).sum().backward()
        monitor.observe(1.0)
    assert "a compiled model shows none" in monitor.report() or monitor.observations[-1].units


def test_it_cannot_go_on_after_detach():
    monitor = health.Monitor(nn.Linear(3, 1))
    monitor.detach()
    monitor.detach()
    with pytest.raises(RuntimeError, match="after detach"):
        monitor.observe(1.0)
