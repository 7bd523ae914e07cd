"""The second set's runs that go wrong, each with its cured twin: built with fusecell's layers, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from study_second_healthy import OfLengths, films_of_lengths
from study_second_tasks import (
    ClassesFirst,
    MeanOverImage,
    Residual,
    by_hand,
    digits_again,
    film,
    fit,
    mlp,
    ordinal,
    rare,
    ridges,
    rising,
    rng_of,
    rnn,
    seen_first,
    sorting,
    spikes,
    sum_behind_padding,
    turning,
    which_way,
)
from study_tasks import Outcome, Runs, Task, only, table

from fusecell import layers, losses, optim

Array = Any
RUNS = Runs()


def changed(task: Task, inputs: Any = None, targets: Any = None) -> Task:
    """The same task with inputs, or targets, put through a function: in the test, too."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return x if inputs is None else inputs(x), t if targets is None else targets(t)

    return Task(draw, task.loss)


# -------------------------------------------------------------------------------------------------------- not a number
@RUNS.ill("not finite")
def constant_column_scaled(cured: bool, seed: int) -> Outcome:
    """Digits divided by each pixel's spread, which is 0 for those that are always empty: 0 / 0."""
    digits = table("digits", scaled=False)
    x, _ = digits.draw(np.random.default_rng(1), 1000, False)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    with np.errstate(all="ignore"):
        task = changed(digits, lambda x: (x - mean) / (spread + (1 if cured else 0)))
        net = mlp((64, 24, 10), "tanh", seed)
        return fit(net, task, optim.Adam(net.parameters(), 5e-3), steps=150, seed=seed)


@RUNS.ill("not finite")
def softmax_of_large_numbers(cured: bool, seed: int) -> Outcome:
    """A softmax by hand that does not take the largest away first, on inputs that nobody scaled: inf / inf."""

    def by_hand(y: Array, t: Array) -> tuple[float, Array]:
        p = np.exp(y - (y.max(axis=1, keepdims=True) if cured else 0))
        p = p / p.sum(axis=1, keepdims=True)
        wanted = np.eye(3, dtype=y.dtype)[t]
        return float(-np.log((p * wanted).sum(axis=1)).mean()), ((p - wanted) / len(t)).astype(y.dtype)

    net = layers.Sequential([layers.BatchNorm(13), *mlp((13, 24, 3), "elu", seed).layers])
    net.parameters()["3.weight"][...] *= 60
    optimizer = optim.Adam(net.parameters(), 2e-2)
    return fit(net, table("wine", scaled=False), optimizer, steps=300, seed=seed, loss=by_hand)


@RUNS.ill("not finite", seeds=2)
def one_missing_value(cured: bool, seed: int) -> Outcome:
    """One value in 5000 is missing, as NaN; the twin has zeros there."""
    net, rng = mlp((5, 24, 1), "relu", seed), rng_of(seed + 2)

    def spoil(step: int, x: Array, t: Array) -> Any:
        return np.where(rng.random(x.shape) < 2e-4, np.float32(0 if cured else np.nan), x), t

    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, spoil=spoil)


@RUNS.ill("not finite", "exploding gradient", "updates too large")
def rate_too_large_for_residuals(cured: bool, seed: int) -> Outcome:
    """Eight residual blocks by gradient descent with momentum, at a rate that a shallow net would bear."""
    rng = rng_of(seed)
    blocks = [Residual(24, 24, rng) for _ in range(8)]
    net = layers.Sequential([layers.Dense(5, 24, rng=rng), *blocks, layers.Dense(24, 1, rng=rng)])
    return fit(net, ridges(), optim.SGD(net.parameters(), 1e-3 if cured else 0.2, momentum=0.9), steps=150, seed=seed)


# ------------------------------------------------------------------------------------------------------ through depth
@RUNS.ill("vanishing gradient", seeds=2)
def fourteen_small_tanh_layers(cured: bool, seed: int) -> Outcome:
    """Fourteen tanh layers whose weights begin at a quarter of Glorot's."""
    net = mlp((5, *[20] * 14, 1), "tanh", seed, gain=1.0 if cured else 0.25)
    return fit(net, ridges(), optim.Adam(net.parameters(), 2e-3), steps=150, batch=32, seed=seed)


@RUNS.ill("vanishing gradient")
def softsign_descent(cured: bool, seed: int) -> Outcome:
    """Ten layers of small softsign units by plain gradient descent, sorting; the twin has two."""
    net = mlp((5, *[24] * (2 if cured else 10), 5), "softsign", seed, gain=1.0 if cured else 0.5)
    return fit(net, sorting(), optim.SGD(net.parameters(), 0.3, momentum=0.9), steps=300, seed=seed)


@RUNS.ill("exploding gradient", "updates too large", "not finite")
def twenty_layers_of_gain_two(cured: bool, seed: int) -> Outcome:
    """Twenty leaky layers whose weights begin at two and a half times Glorot's."""
    net = mlp((5, *[16] * 20, 1), "leaky_relu", seed, gain=1.3 if cured else 2.5)
    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-3), steps=120, batch=32, seed=seed)


# -------------------------------------------------------------------------------------------------- through the steps
@RUNS.ill("vanishing gradient")
def truncated_too_soon(cured: bool, seed: int) -> Outcome:
    """Which corner was lit 16 frames ago; the state is detached at every second frame."""
    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 8, 3, return_sequences=False, truncation=0 if cured else 2, rng=rng)
    cell.parameters()["bias_l0"][8:16] = 2
    cell.parameters()["weight_ih_l0"][...] *= 0.2
    net = layers.Sequential([cell, layers.Conv2D(8, 4, 5, padding="valid", rng=rng), MeanOverImage()])
    return fit(net, seen_first(16), optim.Adam(net.parameters(), 5e-3), steps=150, batch=12, seed=seed)


@RUNS.ill("vanishing gradient")
def length_ignored(cured: bool, seed: int) -> Outcome:
    """Films of 3 to 4 frames, padded to 40 with zeros: the last step's state is asked for, not the last frame's."""

    class Ignored(OfLengths):
        def forward(self, x: Array) -> Array:
            whole = x.copy()
            whole[:, :, 1] = 1
            return super().forward(x if cured else whole)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, label = films_of_lengths(4).draw(rng, n, test)
        return np.concatenate([x, np.zeros((36, *x.shape[1:]), np.float32)]), label

    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 6, 3, return_sequences=False, rng=rng)
    cell.parameters()["bias_l0"][6:12] = 0
    net = layers.Sequential([Ignored(cell), layers.Conv2D(6, 2, 7, padding="valid", rng=rng), MeanOverImage()])
    task = Task(draw, losses.softmax_cross_entropy)
    return fit(net, task, optim.Adam(net.parameters(), 1e-2), steps=150, batch=12, seed=seed)


@RUNS.ill("vanishing gradient", seeds=2)
def padded_behind(cured: bool, seed: int) -> Outcome:
    """A few numbers, then 50 steps of zeros, and the last output of a plain RNN; the twin has the zeros before."""
    task = sum_behind_padding(58)
    net = rnn(seed, 1, 16, 1)
    net.parameters()["0.weight_hh_l0"][...] *= 0.8
    turned = changed(task, lambda x: np.ascontiguousarray(x if cured else x[::-1]))
    return fit(net, turned, optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed)


@RUNS.ill("saturated gates", "vanishing gradient")
def weights_of_a_wide_normal(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM whose weights were drawn from N(0, 100)."""
    net = film(seed)
    if not cured:
        for name in ("0.weight_ih_l0", "0.weight_hh_l0"):
            a = net.parameters()[name]
            a[...] = 10 * rng_of(seed + 1).standard_normal(a.shape)
    return fit(net, turning(6), optim.Adam(net.parameters(), 5e-3), steps=150, batch=8, seed=seed)


@RUNS.ill("saturated gates", seeds=2)
def input_gate_shut(cured: bool, seed: int) -> Outcome:
    """Biases of -12 at the gate that lets frames into a two-layer ConvLSTM."""
    net = film(seed, 6, num_layers=2)
    net.parameters()["0.bias_l0"][:6] = 0 if cured else -12
    return fit(net, turning(6), optim.SGD(net.parameters(), 0.3, momentum=0.9), steps=120, batch=8, seed=seed)


@RUNS.ill("saturated gates", "saturated units")
def kelvin(cured: bool, seed: int) -> Outcome:
    """Frames in kelvin, around 290, into a ConvLSTM."""
    net = film(seed)
    task = turning(6) if cured else turning(6, size=5.0, shift=290.0)
    return fit(net, task, optim.AdamW(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


# -------------------------------------------------------------------------------------------------------------- units
@RUNS.ill("saturated units", seeds=2)
def proline_in_milligrams(cured: bool, seed: int) -> Outcome:
    """Wines as they are measured, up to 1700, into tanh units."""
    net = mlp((13, 16, 3), "tanh", seed)
    return fit(net, table("wine", scaled=cured), optim.SGD(net.parameters(), 0.05, momentum=0.9), steps=250, seed=seed)


@RUNS.ill("dead units", "constant output", "parameter gets no gradient")
def all_weights_negative(cured: bool, seed: int) -> Outcome:
    """Positive inputs into relu units whose weights all begin below zero."""
    net = mlp((64, 32, 10), "relu", seed)
    if not cured:
        weight = net.parameters()["0.weight"]
        weight[...] = -np.abs(weight)
    return fit(net, table("digits", scaled=False), optim.SGD(net.parameters(), 0.01), steps=250, seed=seed)


@RUNS.ill("dead units", "updates too large", "parameter gets no gradient", seeds=2)
def raw_regression_kills(cured: bool, seed: int) -> Outcome:
    """Targets of 0 to 400 that nobody scaled: the first steps throw every relu unit out of reach."""
    task = ridges() if cured else ridges(size=60.0, shift=150.0)
    net = mlp((5, 32, 32, 1), "relu", seed)
    return fit(net, task, optim.SGD(net.parameters(), 0.03, momentum=0.9), steps=300, seed=seed)


@RUNS.ill("dead units")
def convolutions_nearly_dead(cured: bool, seed: int) -> Outcome:
    """Biases of -4 in the only convolution of a film classifier's frames: mild, one channel of twelve still fires."""
    rng = rng_of(seed)
    first = layers.Conv2D(1, 12, 3, rng=rng)
    if not cured:
        first.parameters()["bias"][:11] = -4
    net = layers.Sequential(
        [first, layers.Activation("relu"), layers.Conv2D(12, 4, 5, stride=2, rng=rng), MeanOverImage()]
    )
    task = changed(seen_first(1), lambda x: np.ascontiguousarray(x[0]))
    return fit(net, task, optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed)


@RUNS.ill("symmetric units", seeds=2)
def ones_for_weights(cured: bool, seed: int) -> Outcome:
    """Every weight of two hidden layers is 1 over the layer's width."""
    net = mlp((7, 20, 20, 5), "softplus", seed)
    if not cured:
        for name, a in net.parameters().items():
            if name.endswith("weight"):
                a[...] = 1 / a.shape[1]
    return fit(net, ordinal(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("symmetric units", "parameter gets no gradient")
def recurrence_from_zero(cured: bool, seed: int) -> Outcome:
    """A plain RNN that begins with zeros everywhere labels rising numbers."""
    net = layers.Sequential([*rnn(seed, 1, 24, 2, sequences=True).layers, ClassesFirst()])
    if not cured:
        net.load_parameters({name: np.zeros_like(a) for name, a in net.parameters().items()})
    return fit(net, rising(15), optim.Adam(net.parameters(), 1e-2, clip_norm=1.0), steps=300, seed=seed)


@RUNS.ill("symmetric units")
def one_filter_tiled(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM in both directions; its filters were tiled from those of one channel, the readout's too."""
    net = film(seed, 4, bidirectional=True)
    if not cured:
        own = net.parameters()
        for name in (n for n in own if n.startswith("0.weight")):
            gates = own[name].reshape(4, 4, *own[name].shape[1:])
            gates[:] = gates[:, :1, :1]
        own["1.weight"][...] = own["1.weight"][:, :1]
    return fit(net, turning(5), optim.Adam(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


# --------------------------------------------------------------------------------------------------------- parameters
@RUNS.ill("parameter is not updated")
def head_replaced_afterwards(cured: bool, seed: int) -> Outcome:
    """The optimiser was made, and then the last layer replaced by a new one, twenty times smaller."""
    net = mlp((5, 8, 1), "tanh", seed)
    old = only(net.parameters(), "2.")
    net.layers[2] = layers.Dense(8, 1, rng=rng_of(seed + 1))
    net.layers[2].parameters()["weight"][...] *= 0.05
    own = net.parameters() if cured else only(net.parameters(), "0.") | old
    return fit(net, ridges(), optim.Adam(own, 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("parameter is not updated")
def frozen_and_forgotten(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM that was frozen, for the head to be trained first, and never freed again."""
    net = film(seed, 4)
    own = net.parameters() if cured else only(net.parameters(), "1.")
    return fit(net, turning(6), optim.Adam(own, 1e-2), steps=200, batch=8, seed=seed)


@RUNS.ill("parameter gets no gradient")
def backward_forgets_a_branch(cured: bool, seed: int) -> Outcome:
    """A residual block whose backward hands on the straight path alone: within it all gradients are 0."""

    class Forgets(Residual):
        def backward(self, dy: Array) -> Array:
            super().backward(dy if cured else np.zeros_like(dy))
            return dy

    rng = rng_of(seed)
    block = Forgets(24, 24, rng, scale=1.0 if cured else 0.3)
    net = layers.Sequential([layers.Dense(5, 24, rng=rng), block, layers.Dense(24, 1, rng=rng)])
    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


# ------------------------------------------------------------------------------------------------ outputs and the loss
@RUNS.ill("constant output", seeds=2)
def divided_twice(cured: bool, seed: int) -> Outcome:
    """Digits as whole numbers divided by 255 with //: every picture is black."""
    task = changed(table("digits", scaled=False), lambda x: x / np.float32(16) if cured else x // np.float32(255))
    net = mlp((64, 32, 10), "relu", seed)
    return fit(net, task, optim.Adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.ill("constant output")
def the_same_example(cured: bool, seed: int) -> Outcome:
    """A loader that gives the inputs of its first example all the time, with the others' targets."""
    net = mlp((5, 32, 1), "tanh", seed)
    first = ridges().draw(rng_of(seed), 1, False)[0]

    def spoil(step: int, x: Array, t: Array) -> Any:
        return x if cured else np.repeat(first, len(x), axis=0), t

    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, spoil=spoil)


@RUNS.ill("bounded output", "saturated units", seeds=2)
def tanh_for_prices(cured: bool, seed: int) -> Outcome:
    """A tanh at the end of a regression whose targets lie between 50 and 70."""
    task = ridges() if cured else ridges(size=3.0, shift=60.0)
    net = mlp((5, 32, 1), "relu", seed)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("tanh")])
    return fit(net, task, optim.Adam(net.parameters(), 5e-3), steps=300, batch=64, seed=seed)


@RUNS.ill("bounded output", "dead units")
def relu_for_signed_targets(cured: bool, seed: int) -> Outcome:
    """A relu at the end of a regression, of whose targets half lie below zero."""
    task = ridges(shift=-1.0)
    net = mlp((5, 32, 1), "tanh", seed)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("relu")])
    return fit(net, task, optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("bounded output")
def sigmoid_film(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM's own h, without a readout, as the forecast of frames of up to 5."""
    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 6, 3, rng=rng)
    last = layers.Conv2D(6, 1, 3, rng=rng) if cured else layers.ConvLSTM2D(6, 1, 3, rng=rng)
    task = changed(turning(5), targets=lambda t: 5 * t)
    net = layers.Sequential([cell, last])
    return fit(net, task, optim.Adam(net.parameters(), 2e-2), steps=200, batch=8, seed=seed)


@RUNS.ill("relu before softmax", seeds=2)
def relu_on_grades(cured: bool, seed: int) -> Outcome:
    """A relu on five grades' outputs, then a softmax; the biases begin at the logarithms of a fifth."""
    net = mlp((7, 24, 5), "tanh", seed)
    net.parameters()["2.bias"][...] = np.log(0.2)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("relu")])
    return fit(net, ordinal(), optim.SGD(net.parameters(), 0.3, momentum=0.9), steps=300, batch=64, seed=seed)


@RUNS.ill("sigmoid before softmax", seeds=2)
def sigmoid_on_grades(cured: bool, seed: int) -> Outcome:
    """A hard sigmoid on five grades' outputs, then a softmax."""
    net = mlp((7, 24, 5), "tanh", seed)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("hard_sigmoid")])
    return fit(net, ordinal(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("penalty drowns the loss", seeds=2)
def penalty_on_an_autoencoder(cured: bool, seed: int) -> Outcome:
    """An L2 penalty of 0.1 on a squared error that is a tenth at first."""
    net = mlp((64, 12, 64), "tanh", seed)
    optimizer = optim.Adam(net.parameters(), 1e-2)
    return fit(net, digits_again(), optimizer, steps=300, seed=seed, l2=1e-6 if cured else 0.1)


@RUNS.ill("penalty drowns the loss")
def penalty_on_rare_ones(cured: bool, seed: int) -> Outcome:
    """A penalty of 0.2 on a classifier with a rare class, whose loss is 0.1 by itself."""
    net = mlp((4, 16, 2), "tanh", seed)
    optimizer = optim.Adam(net.parameters(), 5e-3)
    return fit(net, rare(), optimizer, steps=400, batch=256, seed=seed, l2=1e-6 if cured else 0.2)


# ------------------------------------------------------------------------------------------------------------ updates
@RUNS.ill("updates too small", seeds=2)
def schedule_by_batches(cured: bool, seed: int) -> Outcome:
    """A schedule meant for epochs halves the rate at every batch: nothing moves after the fortieth."""
    net = mlp((5, 32, 1), "tanh", seed)

    def rate(step: int) -> float:
        return 5e-3 * 0.5 ** (step // 100 if cured else step)

    return fit(net, ridges(), optim.Adam(net.parameters(), 5e-3), steps=300, batch=64, seed=seed, rate=rate)


@RUNS.ill("updates too small")
def epsilon_of_a_million(cured: bool, seed: int) -> Outcome:
    """Adam with an epsilon of 1e6 in place of 1e-6."""
    net = film(seed)
    return fit(
        net, turning(5), optim.Adam(net.parameters(), 1e-2, eps=1e-6 if cured else 1e6), steps=120, batch=8, seed=seed
    )


@RUNS.ill("updates too small")
def loss_in_tiny_units(cured: bool, seed: int) -> Outcome:
    """Frames' targets in units that make them a hundred thousandth: squares of 1e-10, and plain gradient descent."""
    scale = np.float32(1.0 if cured else 1e-5)
    net = film(seed)

    def tiny(y: Array, t: Array) -> tuple[float, Array]:
        loss, dy = losses.mean_squared(y, t)
        return loss * float(scale) ** 2, dy * scale**2

    return fit(net, turning(5), optim.SGD(net.parameters(), 0.3), steps=150, batch=8, seed=seed, loss=tiny)


@RUNS.ill("updates too large", "not finite", "exploding gradient", seeds=2)
def sum_with_the_mean_s_rate(cured: bool, seed: int) -> Outcome:
    """The loss was made a sum over 64 examples of 5 numbers, and the rate stayed."""

    def total(y: Array, t: Array) -> tuple[float, Array]:
        loss, dy = losses.mean_squared(y, t)
        return (loss, dy) if cured else (loss * y.size, dy * np.float32(y.size))

    net = mlp((5, 48, 5), "tanh", seed)
    return fit(net, sorting(), optim.SGD(net.parameters(), 0.2), steps=200, batch=64, seed=seed, loss=total)


@RUNS.ill("updates too large", "dead units", "saturated units")
def adamw_of_a_half(cured: bool, seed: int) -> Outcome:
    """AdamW at 0.5 on spikes."""
    net = mlp((15, 64, 15), "relu", seed)
    optimizer = optim.AdamW(net.parameters(), 1e-2 if cured else 0.5)
    return fit(net, spikes(15), optimizer, steps=500, batch=128, seed=seed)


@RUNS.ill("updates too large", "not finite", "exploding gradient", "saturated units")
def momentum_too_near_one(cured: bool, seed: int) -> Outcome:
    """Momentum of 0.999 with the rate for 0.9: the steps are a hundred times as long."""
    net = rnn(seed, 1, 16, 1)
    optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9 if cured else 0.999)
    return fit(net, sum_behind_padding(10), optimizer, steps=300, seed=seed)


# ----------------------------------------------------------------------------------------------------- written by hand
@RUNS.ill("vanishing gradient", "parameter gets no gradient")
def loop_by_hand_hands_nothing_back(cured: bool, seed: int) -> Outcome:
    """The same loop by hand, which forgets what the next step sends back: exactly 0 from the last step but one."""
    return by_hand("" if cured else "cut", seed, rate=0.02)


@RUNS.ill("uninitialised memory")
def loop_by_hand_sums_from_empty(cured: bool, seed: int) -> Outcome:
    """The same loop by hand with sums over time that begin in memory that nobody wrote."""
    return by_hand("", seed, new=np.zeros if cured else lambda shape: np.empty(shape))


@RUNS.ill("updates too large", "not finite", "exploding gradient", "saturated units")
def loop_by_hand_ascends(cured: bool, seed: int) -> Outcome:
    """The same loop by hand with a plus before the learning rate."""
    return by_hand("" if cured else "sign", seed)


# --------------------------------------------------------------------------------------------------- no rule is made
@RUNS.ill(seeds=2)
def loop_by_hand_slope_of_another(cured: bool, seed: int) -> Outcome:
    """The same loop by hand with the sigmoid's slope, h (1 - h), for tanh's."""
    return by_hand("" if cured else "slope", seed)


@RUNS.ill()
def loop_by_hand_transpose_forgotten(cured: bool, seed: int) -> Outcome:
    """The same loop by hand, which sends back by the recurrent weights the wrong way round."""
    return by_hand("" if cured else "transpose", seed)


@RUNS.ill()
def batch_taken_for_time(cured: bool, seed: int) -> Outcome:
    """Sequences [B, T] into a layer that expects [T, B]: time runs over the examples."""
    net = layers.Sequential([*rnn(seed, 1, 24, 2, sequences=True).layers, ClassesFirst()])
    task, steps = rising(16), 16

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        if cured:
            return x, t
        return np.ascontiguousarray(x.transpose(1, 0, 2)), t.reshape(steps, n).T.ravel()

    optimizer = optim.Adam(net.parameters(), 1e-2, clip_norm=1.0)
    return fit(net, Task(draw, task.loss), optimizer, steps=300, seed=seed)


@RUNS.ill()
def softmax_over_the_batch(cured: bool, seed: int) -> Outcome:
    """The cross entropy's softmax runs over the examples and not over the classes."""

    def crossed(y: Array, t: Array) -> tuple[float, Array]:
        if cured:
            return losses.softmax_cross_entropy(y, t)
        p = np.exp(y - y.max(axis=0))
        p /= p.sum(axis=0)
        wanted = np.eye(y.shape[1], dtype=y.dtype)[t]
        return float(-(wanted * np.log(p)).sum() / len(t)), ((wanted.sum(axis=0) * p - wanted) / len(t)).astype(y.dtype)

    net = mlp((4, 16, 2), "tanh", seed)
    return fit(net, rare(0.2), optim.Adam(net.parameters(), 5e-3), steps=300, batch=64, seed=seed, loss=crossed)


@RUNS.ill()
def reshaped_for_transposed(cured: bool, seed: int) -> Outcome:
    """Films' pixels and steps were changed over by a reshape in place of a transpose."""
    task = which_way(7)

    def mix(x: Array) -> Array:
        return x if cured else np.ascontiguousarray(x.transpose(1, 0, 2, 3, 4)).reshape(x.shape)

    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 6, 3, return_sequences=False, rng=rng)
    net = layers.Sequential([cell, layers.Conv2D(6, 2, 7, padding="valid", rng=rng), MeanOverImage()])
    return fit(net, changed(task, mix), optim.Adam(net.parameters(), 1e-2), steps=100, batch=16, seed=seed)
