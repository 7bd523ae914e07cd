"""The second set's runs with torch modules: healthy ones, and sick ones with their cured twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from study_second_tasks import (
    digits_again,
    next_letter,
    ordinal,
    rare,
    ridges,
    rising,
    seen_first,
    sorting,
    sum_behind_padding,
    turning,
    which_way,
)
from study_tasks import Outcome, Runs, Task, images, table
from torch import Tensor, nn
from torch.nn import functional as F

import fusecell.torch
from fusecell import health, losses

RUNS = Runs()
torch.set_num_threads(1)
_SEED = 40
adam, sgd = torch.optim.Adam, torch.optim.SGD


def fit(
    net: nn.Module,
    task: Task,
    optimizer: Any,
    *,
    seed: int,
    steps: int = 200,
    batch: int = 32,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    spoil: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    before: Callable[[int], bool] | None = None,
    score: Callable[[Tensor, Tensor], float] | None = None,
    shown: bool = True,
) -> Outcome:
    """As study_torch.fit. before(step), before the update: whether there is one, and a zeroing of gradients behind
    it. score: another one than the task's. spoil changes what is trained on."""
    rng, monitor = np.random.default_rng([13, seed + _SEED]), health.Monitor(net)
    loss = loss or (F.mse_loss if task.loss is losses.mean_squared else F.cross_entropy)
    for step in range(steps):
        x, t = (torch.from_numpy(np.ascontiguousarray(a)) for a in task.draw(rng, batch, False))
        if spoil is not None:
            x, t = spoil(step, x, t)
        y = net(x)
        value = loss(y, t)
        extra = None if penalty is None else penalty()
        value = value if extra is None else value + extra
        value.backward()
        given = {"outputs": y.detach(), "targets": t} if shown else {}
        monitor.observe(float(value.detach()), penalty=None if extra is None else float(extra.detach()), **given)
        if before is None or before(step):
            optimizer.step()
            optimizer.zero_grad()
    x, t = task.test()
    with torch.no_grad(), np.errstate(all="ignore"):
        y = net.eval()(torch.from_numpy(np.ascontiguousarray(x)))
        return Outcome(monitor, score(y, torch.from_numpy(t)) if score else task.score(y.numpy(), t))


def start(seed: int) -> None:
    """The first weights are drawn from here."""
    torch.manual_seed(seed + _SEED)


def dense(sizes: tuple[int, ...], activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Linear layers with activations between them."""
    start(seed)
    made: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        made += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*made[:-1])


class Gru(nn.Module):
    """A GRU written out with two linear layers, called at every step; a linear layer reads the last h, or each."""

    def __init__(self, inputs: int, hidden: int, out: int, *, every_step: bool = False, keep: float = 0.0) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(inputs + hidden, 2 * hidden), nn.Linear(inputs + hidden, hidden)
        self.head, self.every_step, self.hidden = nn.Linear(hidden, out), every_step, hidden
        self.gates.bias.data[:hidden] = keep

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[1], self.hidden), []
        for frame in x:
            z, r = torch.sigmoid(self.gates(torch.cat([frame, h], dim=1))).chunk(2, dim=1)
            h = z * h + (1 - z) * torch.tanh(self.new(torch.cat([frame, r * h], dim=1)))
            states.append(h)
        return self.head(torch.stack(states)).flatten(0, 1) if self.every_step else self.head(h)


class Tagger(nn.Module):
    """A recurrent module in both directions and a linear layer at every step: [T, B, F] -> [T * B, K]."""

    def __init__(self, cell: nn.RNNBase, out: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size * (2 if cell.bidirectional else 1), out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0]).flatten(0, 1)


class Film(nn.Module):
    """fusecell's ConvLSTM for torch, and a readout of each frame."""

    def __init__(self, hidden: int = 6, **options: Any) -> None:
        super().__init__()
        self.cell = fusecell.torch.ConvLSTM2d(1, hidden, 3, **options)
        self.head = nn.Conv2d(hidden * (2 if options.get("bidirectional") else 1), 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x)[0]
        return self.head(y.flatten(0, 1)).reshape(x.shape)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Attention(nn.Module):
    """One head over a few numbers, each a word with a place: [B, L] -> [B, L]."""

    def __init__(self, length: int, width: int = 16) -> None:
        super().__init__()
        self.into, self.place = nn.Linear(1, width), nn.Parameter(0.5 * torch.randn(length, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.mix = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x[..., None]) + self.place
        for _ in range(2):  # the same weights twice
            scores = self.query(h) @ self.key(h).transpose(1, 2) / h.shape[-1] ** 0.5
            h = h + torch.softmax(scores, dim=-1) @ self.value(h)
            h = h + self.mix(self.norm(h))
        return self.out(h)[..., 0]


# ------------------------------------------------------------------------------------------------------------ healthy
@RUNS.well(at_most=0.3, seeds=2)
def torch_gru_by_hand(seed: int) -> Outcome:
    """A GRU written out, called step by step, labels rising numbers."""
    start(seed)
    net = Gru(1, 20, 2, every_step=True)
    return fit(net, rising(10), adam(net.parameters(), 2e-2), steps=250, seed=seed)


@RUNS.well(at_most=0.3)
def torch_two_ways_padded(seed: int) -> Outcome:
    """nn.LSTM in both directions labels steps; half of the labels are padding (-100), which the loss leaves out."""
    start(seed)
    net = Tagger(nn.LSTM(1, 16, bidirectional=True), 2)

    def spoil(step: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.arange(12)[:, None] >= torch.randint(3, 13, (x.shape[1],))
        return x.masked_fill(padding[..., None], 0), t.masked_fill(padding.flatten(), -100)

    return fit(net, rising(12), adam(net.parameters(), 2e-2), steps=250, seed=seed, spoil=spoil)


@RUNS.well(at_most=0.3, seeds=2)
def torch_attention_sorts(seed: int) -> Outcome:
    """Attention with shared weights sorts; the key's bias changes nothing and has a gradient of rounding alone."""
    start(seed)
    net = Attention(5)
    return fit(net, sorting(), adam(net.parameters(), 3e-3), steps=300, batch=64, seed=seed)


@RUNS.well(at_most=0.4)
def torch_tied_autoencoder(seed: int) -> Outcome:
    """Digits through ten units and back with the same weights, transposed."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.bias = nn.Linear(64, 10), nn.Parameter(torch.zeros(64))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.into(x), self.into.weight.T, self.bias)

    start(seed)
    net = Tied()
    return fit(net, digits_again(), sgd(net.parameters(), 1.0, momentum=0.9), steps=300, seed=seed)


@RUNS.well(at_most=0.5, seeds=2)
def torch_accumulates_over_eight(seed: int) -> Outcome:
    """Gradients are summed over eight small batches, all shown to the doctor; seven in eight change nothing."""
    net = dense((7, 32, 5), nn.ReLU, seed)

    def mean(y: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(y, t) / 8

    return fit(
        net, ordinal(), adam(net.parameters(), 2e-2), steps=600, batch=16, seed=seed, loss=mean,
        before=lambda step: step % 8 == 7,
    )  # fmt: skip


@RUNS.well(at_most=1.3)
def torch_two_modes(seed: int) -> Outcome:
    """The density of a number with two modes: a mixture of two Gaussians by its likelihood; [B, 5] outputs."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        side = 2 * rng.integers(2, size=n) - 1
        return x, (side * (1 + x[:, 0]) + 0.1 * rng.standard_normal(n))[:, None].astype(np.float32)

    def likelihood(y: Tensor, t: Tensor) -> Tensor:
        log_share = F.log_softmax(torch.stack([y[:, 0], torch.zeros_like(y[:, 0])], dim=1), dim=1)
        spread = y[:, 3:].clamp(-4, 4)
        inside = -spread - 0.5 * ((t - y[:, 1:3]) / spread.exp()).square() - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(log_share + inside, dim=1).mean()

    net = dense((2, 32, 5), nn.Tanh, seed)
    return fit(
        net, Task(draw), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed, loss=likelihood, shown=False,
        score=lambda y, t: float(likelihood(y, t)),
    )  # fmt: skip


class Variational(nn.Module):
    """Digits through four random numbers; `divergence` is of the last forward."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)), nn.Linear(4, 64)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.into(x).chunk(2, dim=1)
        self.divergence = 0.5 * (mean**2 + (2 * spread).exp() - 1 - 2 * spread).sum(dim=1).mean()
        return self.out(mean + (spread.exp() * torch.randn_like(mean) if self.training else 0.0))


def variational(weight: float, seed: int) -> Outcome:
    """The squared error of a digit is about 0.07 for each pixel, and the divergence is shown as the penalty."""
    start(seed)
    net = Variational()
    return fit(
        net, digits_again(), adam(net.parameters(), 5e-3), steps=400, seed=seed,
        penalty=lambda: weight * net.divergence,
    )  # fmt: skip


@RUNS.well(at_most=0.85, seeds=2)
def torch_variational(seed: int) -> Outcome:
    """A variational autoencoder: the divergence grows from nothing while the loss falls."""
    return variational(2e-3, seed)


@RUNS.well(at_most=0.2)
def torch_log_softmax_first(seed: int) -> Outcome:
    """log_softmax and then cross_entropy: of no use, and of no harm."""
    net = nn.Sequential(*dense((30, 16, 2), nn.ReLU, seed), nn.LogSoftmax(dim=1))
    return fit(net, table("breast_cancer"), adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.well(at_most=0.3)
def torch_counts(seed: int) -> Outcome:
    """Poisson's likelihood of counts as whole numbers, most of them 0; the outputs are exponents."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x = rng.standard_normal((n, 4)).astype(np.float32)
        rate = np.exp(x[:, :1] - 0.5 * x[:, 1:2] - 1)
        return x, rate.astype(np.float32) if test else rng.poisson(rate)

    net = dense((4, 16, 1), nn.Tanh, seed)
    return fit(
        net, Task(draw), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed, loss=F.poisson_nll_loss,
        score=lambda y, t: float((y.exp() - t).square().mean() / t.var()),
    )  # fmt: skip


@RUNS.well(at_most=0.15, seeds=2)
def torch_bandit(seed: int) -> Outcome:
    """A policy's gradient: the loss is about 0 throughout and says nothing; the reward grows. Score: what is missed."""

    def learn(y: Tensor, t: Tensor) -> Tensor:
        chance = torch.distributions.Categorical(logits=y)
        taken = chance.sample()
        reward = (taken == t).float()
        return -((reward - reward.mean()) * chance.log_prob(taken)).mean()

    net = dense((4, 16, 2), nn.Tanh, seed)
    return fit(
        net, rare(0.5), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, loss=learn, shown=False,
        score=lambda y, t: float((y.argmax(dim=1) != t).float().mean()),
    )  # fmt: skip


@RUNS.well(at_most=0.5)
def torch_rare_words(seed: int) -> Outcome:
    """An embedding of 500 words of which most are never met: their rows have no gradient and stay."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        words = np.minimum(rng.geometric(0.05, (n, 6)), 499)
        return words, (words % 3 == 0).sum(axis=1) // 3

    start(seed)
    net = nn.Sequential(nn.Embedding(500, 12), nn.Flatten(), nn.Linear(72, 32), nn.ReLU(), nn.Linear(32, 3))
    task = Task(draw, losses.softmax_cross_entropy)
    return fit(net, task, adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.2)
def torch_residual_norm(seed: int) -> Outcome:
    """Ten residual blocks with LayerNorm and SiLU, AdamW with amsgrad, a schedule by steps."""
    start(seed)
    blocks = [
        Residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))) for _ in range(10)
    ]
    net = nn.Sequential(nn.Linear(5, 16), *blocks, nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, amsgrad=True)

    def schedule(step: int) -> bool:
        optimizer.param_groups[0]["lr"] = 3e-3 * 0.3 ** (step // 60)
        return True

    return fit(net, ridges(), optimizer, steps=200, batch=64, seed=seed, before=schedule)


@RUNS.well(at_most=0.35, seeds=2)
def torch_turning_bar(seed: int) -> Outcome:
    """fusecell's ConvLSTM for torch in both directions, zoneout and recomputed gates, RMSprop."""
    start(seed)
    net = Film(6, bidirectional=True, zoneout=(0.1, 0.1), recompute=True)
    return fit(net, turning(5), torch.optim.RMSprop(net.parameters(), 5e-3), steps=200, batch=8, seed=seed)


@RUNS.well(at_most=0.7)
def torch_one_picture_at_a_time(seed: int) -> Outcome:
    """Digits one by one through a convolution and GroupNorm."""
    start(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.Hardswish(), nn.Flatten(), nn.Linear(72, 10)
    )
    return fit(net, images(), sgd(net.parameters(), 0.01), steps=1000, batch=1, seed=seed)


@RUNS.well(at_most=1.3)
def torch_letters_long(seed: int) -> Outcome:
    """The next letter of a chain over 60 steps, two stacked nn.GRU layers with dropout between; one letter back is
    all that counts."""
    start(seed)
    net = Tagger(nn.GRU(8, 16, num_layers=2, dropout=0.3), 8)
    return fit(net, next_letter(2.0, 60), adam(net.parameters(), 1e-2), steps=80, batch=8, seed=seed)


@RUNS.well(at_most=0.2)
def torch_two_tasks_in_turn(seed: int) -> Outcome:
    """Two heads on one body, of which every batch trains one: the other has no gradient in that step."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = (
                nn.Sequential(nn.Linear(5, 32), nn.Tanh()),
                nn.ModuleList(nn.Linear(32, 1) for _ in range(2)),
            )
            self.turn = 0

        def forward(self, x: Tensor) -> Tensor:
            self.turn += self.training
            return self.heads[self.turn % 2 if self.training else 0](self.body(x))

    def spoil(step: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (x, t) if step % 2 else (x, t * x[:, :1])

    start(seed)
    net = Net()
    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=500, batch=64, seed=seed, spoil=spoil)


@RUNS.well(at_most=0.3)
def torch_thawed_later(seed: int) -> Outcome:
    """The first of two layers has requires_grad off for the first 150 steps, and on from there."""
    net = dense((5, 32, 1), nn.Tanh, seed)
    net[0].requires_grad_(False)

    def thaw(step: int) -> bool:
        if step == 150:
            net[0].requires_grad_(True)
        return True

    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed, before=thaw)


@RUNS.well(at_most=0.2)
def torch_follows_its_own_mean(seed: int) -> Outcome:
    """A student learns from half the truth, half a slow mean of itself: the targets move while it learns."""
    net = dense((5, 32, 1), nn.ReLU, seed)
    slow = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.95))

    def spoil(step: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        slow.update_parameters(net)
        with torch.no_grad():
            return x, 0.5 * t + 0.5 * slow(x)

    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=500, batch=64, seed=seed, spoil=spoil)


# --------------------------------------------------------------------------------------------------------------- sick
@RUNS.ill("not finite")
def torch_logarithm_of_a_softmax(cured: bool, seed: int) -> Outcome:
    """torch.log(torch.softmax(y)) of a last layer that begins too large: log 0; the twin has log_softmax."""
    net = nn.Sequential(nn.BatchNorm1d(13), *dense((13, 24, 3), nn.ReLU, seed))
    net[3].weight.data *= 60

    def likelihood(y: Tensor, t: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(y, dim=1) if cured else torch.log(torch.softmax(y, dim=1)), t)

    task = table("wine", scaled=False)
    return fit(net, task, adam(net.parameters(), 2e-2), steps=300, seed=seed, loss=likelihood)


@RUNS.ill("not finite")
def torch_mask_by_multiplication(cured: bool, seed: int) -> Outcome:
    """Padding of -inf, multiplied by a mask of 0: NaN; the twin fills in zeros."""
    start(seed)
    net = Gru(1, 16, 1)

    def spoil(step: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        empty = x == 0
        hidden = x.masked_fill(empty, -math.inf)
        return (hidden.masked_fill(empty, 0.0) if cured else hidden * ~empty), t

    return fit(net, sum_behind_padding(10), adam(net.parameters(), 1e-2), steps=200, seed=seed, spoil=spoil)


@RUNS.ill("not finite")
def torch_distance_of_twins(cured: bool, seed: int) -> Outcome:
    """A distance is learnt as the root of a sum of squares; one pair in 300 is twice the same, and the slope 0 / 0."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = dense((3, 24, 4), nn.Tanh, seed)

        def forward(self, x: Tensor) -> Tensor:
            apart = self.embed(x[:, :3]) - self.embed(x[:, 3:])
            return (apart.square().sum(dim=1, keepdim=True) + (1e-9 if cured else 0.0)).sqrt()

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x = rng.uniform(-1, 1, (n, 6)).astype(np.float32)
        x[:, 3:] = np.where(rng.random((n, 1)) < 1 / 300, x[:, :3], x[:, 3:])
        return x, np.abs(np.sin(2 * x[:, :1]) - np.sin(2 * x[:, 3:4]))

    net = Pair()
    return fit(net, Task(draw), adam(net.parameters(), 1e-2), steps=200, batch=64, seed=seed)


@RUNS.ill("parameter gets no gradient")
def torch_encoder_without_gradient(cured: bool, seed: int) -> Outcome:
    """The encoder runs within no_grad, left from a trial, and eight random features are too few."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(cured and torch.is_grad_enabled()):
                h = self.encoder(x)
            return self.head(h)

    start(seed)
    net = Net()
    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("parameter gets no gradient", seeds=2)
def torch_rounded_in_the_middle(cured: bool, seed: int) -> Outcome:
    """Hidden units are rounded, whose slope is 0; the twin hands the slope through."""

    class Round(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h + (h.round() - h).detach() if cured else h.round()

    start(seed)
    net = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), Round(), nn.Linear(12, 5))
    return fit(net, ordinal(), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.ill("parameter is not updated")
def torch_optimiser_before_the_head(cured: bool, seed: int) -> Outcome:
    """The optimiser was made before the head was put in; digits by sixteen features."""
    net = dense((64, 16, 10), nn.ReLU, seed)
    early = adam(net.parameters(), 5e-3)
    net[2] = nn.Linear(16, 10)
    nn.init.normal_(net[2].weight, std=0.01)
    late = adam(net.parameters(), 5e-3)
    return fit(net, table("digits"), late if cured else early, steps=200, seed=seed)


@RUNS.ill("parameter is not updated")
def torch_layers_in_a_list(cured: bool, seed: int) -> Outcome:
    """The optimiser has what a plain list of layers left of the parameters: the last one; the doctor sees them all."""
    net = dense((5, 10, 10, 1), nn.Tanh, seed)
    return fit(net, ridges(), sgd(net.parameters() if cured else net[4].parameters(), 0.1), steps=600, seed=seed)


@RUNS.ill("vanishing gradient", "saturated units")
def torch_twelve_sigmoids(cured: bool, seed: int) -> Outcome:
    """Twelve sigmoid layers on grades; in the twin they are branches beside a straight path."""
    start(seed)
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()) for _ in range(12)]
    middle = [Residual(block) if cured else block for block in blocks]
    net = nn.Sequential(nn.Linear(7, 16), *middle, nn.Linear(16, 5))
    return fit(net, ordinal(), adam(net.parameters(), 3e-3), steps=180, batch=64, seed=seed)


@RUNS.ill("vanishing gradient", seeds=2)
def torch_gru_overwrites(cured: bool, seed: int) -> Outcome:
    """A GRU written out whose update gate begins at 0.02: the first of 25 frames is gone."""
    task = seen_first(25, 3)

    def flat(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, label = task.draw(rng, n, test)
        return x.reshape(*x.shape[:2], -1), label

    start(seed)
    net = Gru(9, 16, 4, keep=4.0 if cured else -4.0)
    return fit(net, Task(flat, task.loss), adam(net.parameters(), 5e-3), steps=150, seed=seed)


@RUNS.ill("exploding gradient", "not finite", "updates too large")
def torch_residuals_without_norm(cured: bool, seed: int) -> Outcome:
    """Twelve relu branches with weights of He's rule times 1.5 and nothing to hold the sum; Adam."""
    start(seed)
    blocks = [nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)) for _ in range(12)]
    for block in blocks:
        for layer in (block[0], block[2]):
            nn.init.normal_(layer.weight, std=(0.05 if cured else 1.5 * (2 / 24) ** 0.5))
    net = nn.Sequential(nn.Linear(5, 24), *map(Residual, blocks), nn.Linear(24, 1))
    return fit(net, ridges(), adam(net.parameters(), 1e-3), steps=150, batch=64, seed=seed)


@RUNS.ill("symmetric units")
def torch_two_equal_halves(cured: bool, seed: int) -> Outcome:
    """Four units, copied four times over with their weights, in place of sixteen."""
    net = dense((5, 16, 1), nn.Tanh, seed)
    if not cured:
        with torch.no_grad():
            net[0].weight.copy_(net[0].weight[:4].repeat(4, 1))
            net[0].bias.copy_(net[0].bias[:4].repeat(4))
            net[2].weight.copy_(net[2].weight[:, :4].repeat(1, 4))
    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.ill("dead units", "parameter gets no gradient")
def torch_pixels_of_255(cured: bool, seed: int) -> Outcome:
    """Digits times 16 into a relu network, and a rate for digits of 0 to 1."""
    task = images()

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return (x if cured else 255 * x), t

    start(seed)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 32), nn.ReLU())
    net.append(nn.Linear(32, 10))
    return fit(net, Task(draw, task.loss), sgd(net.parameters(), 0.1, momentum=0.5), steps=200, seed=seed)


@RUNS.ill("saturated gates")
def torch_film_of_bytes(cured: bool, seed: int) -> Outcome:
    """Frames of 100 to 255 into fusecell's ConvLSTM for torch."""
    start(seed)
    net, task = Film(6), turning(5) if cured else turning(5, size=155.0, shift=100.0)
    return fit(net, task, adam(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


@RUNS.ill("constant output", "dead units")
def torch_averaged_away(cured: bool, seed: int) -> Outcome:
    """The features were averaged over the batch, for dim=0 in place of dim=1: one answer for all."""

    class Mean(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            h = h.unflatten(1, (4, 8))
            return h.mean(dim=1) if cured else h.mean(dim=1).mean(dim=0, keepdim=True).expand(len(h), 8)

    start(seed)
    net = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), Mean(), nn.Linear(8, 1))
    return fit(net, ridges(), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("bounded output")
def torch_sigmoid_for_years(cured: bool, seed: int) -> Outcome:
    """A sigmoid at the end, and targets from 1 to 10."""
    net = dense((5, 24, 1), nn.SiLU, seed)
    net = net if cured else nn.Sequential(*net, nn.Sigmoid())
    return fit(net, ridges(shift=3.0), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("sigmoid before softmax")
def torch_softmax_in_the_tagger(cured: bool, seed: int) -> Outcome:
    """The next letter by an nn.RNN, a softmax at every step, and cross_entropy behind it."""
    start(seed)
    net = nn.Sequential(Tagger(nn.RNN(8, 16), 8), nn.Identity() if cured else nn.Softmax(dim=1))
    return fit(net, next_letter(2.0), adam(net.parameters(), 1e-2), steps=200, seed=seed)


@RUNS.ill("penalty drowns the loss", seeds=2)
def torch_divergence_of_one(cured: bool, seed: int) -> Outcome:
    """A variational autoencoder whose divergence, a sum, has the weight of 1 beside a mean: nothing goes through."""
    return variational(2e-3 if cured else 1.0, seed)


@RUNS.ill("updates too small", "parameter is not updated")
def torch_gradient_underflows(cured: bool, seed: int) -> Outcome:
    """A loss scaled by 1e-14, for whom Adam's epsilon is larger than any gradient."""
    net = dense((7, 24, 5), nn.ReLU, seed)

    def scaled(y: Tensor, t: Tensor) -> Tensor:
        return (1.0 if cured else 1e-14) * F.cross_entropy(y, t)

    return fit(net, ordinal(), adam(net.parameters(), 1e-2), steps=200, seed=seed, loss=scaled)


@RUNS.ill("updates too large", "not finite", "exploding gradient", seeds=2)
def torch_never_divided(cured: bool, seed: int) -> Outcome:
    """Gradients summed over 16 batches and not divided, at the rate for one, with momentum."""
    net = dense((5, 24, 1), nn.ReLU, seed)

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(y, t) / (16 if cured else 1)

    optimizer = sgd(net.parameters(), 0.1, momentum=0.9)
    return fit(net, ridges(), optimizer, steps=640, seed=seed, loss=loss, before=lambda step: step % 16 == 15)


@RUNS.ill("updates too large", "dead units", "saturated units")
def torch_rmsprop_at_three_tenths(cured: bool, seed: int) -> Outcome:
    """RMSprop at 0.3 on a GRU written out."""
    start(seed)
    net = Gru(1, 20, 2, every_step=True)
    optimizer = torch.optim.RMSprop(net.parameters(), 3e-3 if cured else 0.3)
    return fit(net, rising(10), optimizer, steps=200, seed=seed)


# --------------------------------------------------------------------------------------------------- no rule is made
@RUNS.ill(seeds=2)
def torch_probabilities_as_likelihood(cured: bool, seed: int) -> Outcome:
    """nll_loss of probabilities, not of their logarithms; the softmax is within the loss."""
    net = dense((7, 24, 5), nn.ReLU, seed)

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(y, dim=1) if cured else F.softmax(y, dim=1), t)

    return fit(net, ordinal(), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, loss=loss)


@RUNS.ill()
def torch_dropout_on_the_answer(cured: bool, seed: int) -> Outcome:
    """A dropout of a half behind the last layer of a regression."""
    net = dense((5, 32, 1), nn.ReLU, seed)
    net = net if cured else nn.Sequential(*net, nn.Dropout(0.5))
    return fit(net, ridges(shift=4.0), adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill()
def torch_batch_norm_of_two(cured: bool, seed: int) -> Outcome:
    """BatchNorm in batches of two: each example is above or below the other, and that is all that is left."""
    start(seed)
    net = nn.Sequential(nn.Linear(5, 24), nn.Identity() if cured else nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 1))
    return fit(net, ridges(), adam(net.parameters(), 3e-3), steps=600, batch=2, seed=seed)


@RUNS.ill()
def torch_way_by_one_frame(cured: bool, seed: int) -> Outcome:
    """Which way a bar turns, asked of a network that was given the last frame alone: it cannot be known."""
    task = which_way(4)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, label = task.draw(rng, n, test)
        x = x if cured else np.repeat(x[-1:], 4, axis=0)
        return np.ascontiguousarray(x.transpose(1, 0, 2, 3, 4)).reshape(n, -1), label

    net = dense((196, 32, 2), nn.ReLU, seed)
    return fit(net, Task(draw, task.loss), adam(net.parameters(), 5e-3), steps=250, seed=seed)
