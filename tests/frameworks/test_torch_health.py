"""fusecell.health.Monitor on torch modules: fused ones, cells in a loop, torch's own recurrent modules, plain ones."""

from __future__ import annotations

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
