"""The same with torch modules: healthy runs, and sick ones with their cured twins."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from study_tasks import Outcome, Runs, Task, adding, images, plane, recall, recent, rows, spirals, surface, table
from study_tasks import waves as wave_task
from torch import Tensor, nn

from fusecell import health, losses

RUNS = Runs()
torch.set_num_threads(1)


def fit(
    net: nn.Module,
    task: Task,
    optimizer: Any,
    *,
    steps: int = 200,
    batch: int = 32,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    clip: float | None = None,
    zero: bool = True,
    shown: bool = True,
) -> Outcome:
    """As study_tasks.fit; shown: whether the monitor is given outputs and targets; zero: the gradients, each step."""
    rng, monitor = np.random.default_rng([13, seed]), health.Monitor(net)
    loss = loss or (nn.functional.mse_loss if task.loss is losses.mean_squared else nn.functional.cross_entropy)
    for _ in range(steps):
        x, t = (torch.from_numpy(a) for a in task.draw(rng, batch, False))
        if zero:
            optimizer.zero_grad()
        y = net(x)
        extra = None if penalty is None else penalty()
        value = loss(y, t) if extra is None else loss(y, t) + extra
        value.backward()
        given = {"outputs": y.detach(), "targets": t} if shown else {}
        monitor.observe(float(value.detach()), penalty=None if extra is None else float(extra.detach()), **given)
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    x, t = task.test()
    with torch.no_grad(), np.errstate(all="ignore"):
        return Outcome(monitor, task.score(net.eval()(torch.from_numpy(x)).numpy(), t))


class Last(nn.Module):
    """A recurrent module and a linear one, on its last output or on all."""

    def __init__(self, cell: nn.RNNBase, out: int, *, every_step: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.every_step = cell, nn.Linear(cell.hidden_size, out), every_step

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(x)
        return self.head(y if self.every_step else y[-1])


class Loop(nn.Module):
    """An LSTM cell, called once for each step."""

    def __init__(self, inputs: int, hidden: int, out: int, *, forget: float = 1.0, every_step: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.every_step = nn.LSTMCell(inputs, hidden), nn.Linear(hidden, out), every_step
        with torch.no_grad():
            self.cell.bias_ih[hidden : 2 * hidden] = forget

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], self.cell.hidden_size)
        outputs = []
        for frame in x:
            h, c = self.cell(frame, (h, c))
            outputs.append(h)
        return self.head(torch.stack(outputs) if self.every_step else h)


def pictures(seed: int) -> nn.Sequential:
    """A small convolutional network for digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


def dense(sizes: tuple[int, ...], activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Linear layers with activations between them."""
    torch.manual_seed(seed)
    made: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        made += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*made[:-1])


adam, sgd = torch.optim.Adam, torch.optim.SGD


# ------------------------------------------------------------------------------------------------------------ healthy
@RUNS.well(at_most=0.4)
def torch_digits(seed: int) -> Outcome:
    """A convolutional network with normalisation and pooling, Adam."""
    net = pictures(seed)
    return fit(net, images(), adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.well(at_most=0.2)
def torch_waves(seed: int) -> Outcome:
    """nn.LSTM forecasts sines."""
    torch.manual_seed(seed)
    net = Last(nn.LSTM(1, 16), 1, every_step=True)
    return fit(net, wave_task(30), adam(net.parameters(), 2e-2), steps=150, seed=seed)


@RUNS.well(at_most=0.1, seeds=2)
def torch_only_the_end_counts(seed: int) -> Outcome:
    """nn.LSTM over 100 steps of which the last three count."""
    torch.manual_seed(seed)
    net = Last(nn.LSTM(1, 12), 1)
    return fit(net, recent(100), adam(net.parameters(), 2e-2), steps=150, seed=seed, shown=False)


@RUNS.well(at_most=0.3)
def torch_cell_in_a_loop(seed: int) -> Outcome:
    """An LSTM cell called step by step recalls the first of 12 symbols."""
    torch.manual_seed(seed)
    net = Loop(4, 16, 3, forget=4.0)
    return fit(net, recall(12), adam(net.parameters(), 2e-2), steps=150, seed=seed)


@RUNS.well(at_most=0.6)
def torch_rows_gru(seed: int) -> Outcome:
    """nn.GRU reads digits row by row, clipped, AdamW."""
    torch.manual_seed(seed)
    net = Last(nn.GRU(8, 24), 10)
    return fit(net, rows(), torch.optim.AdamW(net.parameters(), 1e-2), steps=200, seed=seed, clip=1.0)


@RUNS.well(at_most=0.3)
def torch_frozen_features(seed: int) -> Outcome:
    """A first layer with requires_grad off, and a head that is trained."""
    net = dense((2, 200, 2), nn.ReLU, seed)
    net[0].requires_grad_(False)
    return fit(net, spirals(), adam(net[2].parameters(), 3e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.5)
def torch_likelihood_below_zero(seed: int) -> Outcome:
    """A Gaussian likelihood whose negative logarithm goes from above 0 to below it."""
    net = dense((6, 48, 1), nn.Tanh, seed)
    spread = nn.Parameter(torch.zeros(1))
    net.register_parameter("spread", spread)

    def likelihood(y: Tensor, t: Tensor) -> Tensor:
        return (spread + 0.5 * ((y - t) / spread.exp()).square()).mean()

    task = surface(0.02, size=0.3)
    return fit(net, task, adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed, loss=likelihood)


@RUNS.well(at_most=0.4)
def torch_dropout_on_wines(seed: int) -> Outcome:
    """Half of the hidden units dropped in every step."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    return fit(net, table("wine"), adam(net.parameters(), 1e-2), steps=200, seed=seed)


@RUNS.well(at_most=0.2)
def torch_ten_relu_layers(seed: int) -> Outcome:
    """Ten hidden layers by He's rule (2015)."""
    net = dense((6, *[32] * 10, 1), nn.ReLU, seed)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return fit(net, surface(), adam(net.parameters(), 1e-3), steps=500, batch=64, seed=seed)


@RUNS.well(at_most=0.75)
def torch_noise_and_a_wide_layer(seed: int) -> Outcome:
    """Two thirds of the variance are noise; early at its floor, batch of 16."""
    net = dense((8, 32, 1), nn.SiLU, seed)
    return fit(net, plane(2**0.5), sgd(net.parameters(), 0.02), steps=400, batch=16, seed=seed, shown=False)


# --------------------------------------------------------------------------------------------------------------- sick
@RUNS.ill("not finite")
def torch_root_of_zero(cured: bool, seed: int) -> Outcome:
    """A penalty on the distances between weights, the square root of those of a row to itself among them."""
    net = dense((6, 32, 1), nn.Tanh, seed)

    def apart() -> Tensor:
        w = net[0].weight
        squares = (w[:, None] - w[None]).square().sum(dim=-1)
        return -1e-4 * (squares + (1e-9 if cured else 0.0)).sqrt().mean()

    return fit(net, surface(), adam(net.parameters(), 1e-2), steps=100, batch=64, seed=seed, penalty=apart)


@RUNS.ill("parameter gets no gradient")
def torch_detached(cured: bool, seed: int) -> Outcome:
    """The features are detached before the head."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(2, 8), nn.Tanh()), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            features = self.body(x)
            return self.head(features if cured else features.detach())

    torch.manual_seed(seed)
    net = Net()
    return fit(net, spirals(), adam(net.parameters(), 3e-2), steps=500, batch=64, seed=seed)


@RUNS.ill("vanishing gradient")
def torch_state_detached(cured: bool, seed: int) -> Outcome:
    """The state is detached at every step of the loop: nothing is carried back. Mild: it learns, worse."""

    class Cut(Loop):
        def forward(self, x: Tensor) -> Tensor:
            h = c = x.new_zeros(x.shape[1], self.cell.hidden_size)
            for frame in x:
                h, c = self.cell(frame, (h, c) if cured else (h.detach(), c.detach()))
            return self.head(h)

    torch.manual_seed(seed)
    net = Cut(2, 16, 1, forget=0.0)
    return fit(net, adding(20), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.ill("parameter is not updated")
def torch_head_alone(cured: bool, seed: int) -> Outcome:
    """The optimiser has the head of an nn.GRU alone."""
    torch.manual_seed(seed)
    net = Last(nn.GRU(2, 12), 1)
    own = net.parameters() if cured else net.head.parameters()
    return fit(net, adding(10), adam(own, 1e-2), steps=400, batch=64, seed=seed)


@RUNS.ill("vanishing gradient", seeds=2)
def torch_cell_forgets(cured: bool, seed: int) -> Outcome:
    """An LSTM cell in a loop, forget biases of -4, the first of 15 symbols."""
    torch.manual_seed(seed)
    net = Loop(4, 16, 3, forget=4.0 if cured else -4.0)
    return fit(net, recall(15), adam(net.parameters(), 1e-2), steps=150, seed=seed)


@RUNS.ill("vanishing gradient")
def torch_lstm_of_60_steps(cured: bool, seed: int) -> Outcome:
    """nn.LSTM as it comes, the first of 60 symbols: mild, its usual forget gate of one half is too little."""
    torch.manual_seed(seed)
    net = Last(nn.LSTM(4, 16), 3)
    with torch.no_grad():
        net.cell.bias_ih_l0[16:32] = 6.0 if cured else 0.0
    return fit(net, recall(60), adam(net.parameters(), 1e-2), steps=150, seed=seed, shown=False)


@RUNS.ill("vanishing gradient", "saturated units")
def torch_eight_sigmoids(cured: bool, seed: int) -> Outcome:
    """Eight sigmoid layers as torch initialises them."""
    net = dense((6, *[16] * 8, 1), nn.Tanh if cured else nn.Sigmoid, seed)
    return fit(net, surface(), adam(net.parameters(), 3e-3), steps=300, batch=64, seed=seed)


@RUNS.ill("exploding gradient", "not finite", "updates too large")
def torch_relu_recurrence(cured: bool, seed: int) -> Outcome:
    """nn.RNN with relu and recurrent weights of 1.5 times the unit matrix, 30 steps."""
    torch.manual_seed(seed)
    net = Last(nn.RNN(2, 24, nonlinearity="relu"), 1)
    with torch.no_grad():
        net.cell.weight_hh_l0.copy_(torch.eye(24) * (1.0 if cured else 1.5))
    return fit(net, adding(30), adam(net.parameters(), 3e-3), steps=400, seed=seed, clip=1.0)


@RUNS.ill("dead units", "parameter gets no gradient", "updates too large", seeds=2)
def torch_relus_killed(cured: bool, seed: int) -> Outcome:
    """Plain gradient descent at a rate of 8 kills the relu units in the first steps."""
    net = dense((30, 32, 32, 2), nn.ReLU, seed)
    return fit(net, table("breast_cancer"), sgd(net.parameters(), 0.1 if cured else 8.0), steps=200, seed=seed)


@RUNS.ill("saturated units", "vanishing gradient")
def torch_tanh_of_large_weights(cured: bool, seed: int) -> Outcome:
    """Weights drawn from N(0, 25) before tanh."""
    net = dense((8, 32, 32, 1), nn.Tanh, seed)
    if not cured:
        for layer in (net[0], net[2]):
            nn.init.normal_(layer.weight, std=5.0)
    return fit(net, plane(0.1), adam(net.parameters(), 3e-3), steps=300, batch=64, seed=seed)


@RUNS.ill("symmetric units")
def torch_constant_start(cured: bool, seed: int) -> Outcome:
    """nn.init.constant_ on every weight and bias."""
    net = dense((2, 24, 2), nn.ReLU, seed)
    if not cured:
        for p in net.parameters():
            nn.init.constant_(p, 0.02)
    return fit(net, spirals(), adam(net.parameters(), 2e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("relu before softmax", seeds=2)
def torch_relu_last(cured: bool, seed: int) -> Outcome:
    """A relu on the outputs of a classifier, then cross_entropy."""
    net = dense((64, 24, 10), nn.ReLU, seed)
    net = net if cured else nn.Sequential(*net, nn.ReLU())
    return fit(net, table("digits"), sgd(net.parameters(), 0.1), steps=250, seed=seed)


@RUNS.ill("sigmoid before softmax")
def torch_softmax_twice(cured: bool, seed: int) -> Outcome:
    """A Softmax module, then cross_entropy, which has one of its own."""
    net = pictures(seed)
    net = net if cured else nn.Sequential(*net, nn.Softmax(dim=1))
    return fit(net, images(), adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.ill("penalty drowns the loss")
def torch_absolute_weights(cured: bool, seed: int) -> Outcome:
    """The sum of all absolute weights, times 0.1, as a penalty."""
    net = dense((30, 16, 2), nn.ReLU, seed)

    def absolute() -> Tensor:
        return (1e-5 if cured else 0.1) * sum(p.abs().sum() for p in net.parameters())

    return fit(net, table("breast_cancer"), adam(net.parameters(), 5e-3), steps=250, seed=seed, penalty=absolute)


@RUNS.ill("updates too small")
def torch_rate_of_a_billionth(cured: bool, seed: int) -> Outcome:
    """A learning rate of 1e-9."""
    net = pictures(seed)
    return fit(net, images(), adam(net.parameters(), 5e-3 if cured else 1e-9), steps=120, seed=seed)


@RUNS.ill("updates too large", "dead units")
def torch_rate_of_one(cured: bool, seed: int) -> Outcome:
    """Adam at 1 on an nn.LSTM."""
    torch.manual_seed(seed)
    net = Last(nn.LSTM(1, 16), 1, every_step=True)
    return fit(net, wave_task(20), adam(net.parameters(), 1e-2 if cured else 1.0), steps=150, seed=seed)


@RUNS.ill("bounded output")
def torch_ceiling(cured: bool, seed: int) -> Outcome:
    """Targets around 500 and a tanh layer before the linear one."""
    net = dense((6, 24, 1), nn.Tanh, seed)
    task = surface(0.1, size=1.0 if cured else 200.0, shift=0.0 if cured else 500.0)
    return fit(net, task, adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("constant output")
def torch_targets_spread_out(cured: bool, seed: int) -> Outcome:
    """Outputs [N, 1] against targets [N]: the difference is [N, N], and the mean is learnt."""
    net = dense((6, 32, 1), nn.ReLU, seed)

    def difference(y: Tensor, t: Tensor) -> Tensor:
        return (y - (t if cured else t[:, 0])).square().mean()

    return fit(net, surface(), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, loss=difference)


@RUNS.ill()
def torch_gradients_never_zeroed(cured: bool, seed: int) -> Outcome:
    """zero_grad is forgotten: each step follows the sum of all gradients so far."""
    net = dense((6, 32, 1), nn.ReLU, seed)
    return fit(net, surface(), sgd(net.parameters(), 0.05), steps=300, batch=64, seed=seed, zero=cured)


@RUNS.ill()
def torch_branch_forgotten(cured: bool, seed: int) -> Outcome:
    """A branch with the hidden layer is made and never called: a linear model is left."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.straight, self.deep = nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.straight(x) + self.deep(x) if cured else self.straight(x)

    torch.manual_seed(seed)
    net = Net()
    return fit(net, surface(), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)
