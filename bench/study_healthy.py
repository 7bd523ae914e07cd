"""Runs that train well, many of them near misses: built with fusecell's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from study_tasks import (
    Flat,
    Outcome,
    Runs,
    Task,
    adding,
    blobs,
    first_frame,
    fit,
    images,
    mlp,
    only,
    plane,
    recall,
    recent,
    rng_of,
    rows,
    spirals,
    surface,
    table,
    waves,
)

from fusecell import layers, losses, optim

RUNS = Runs()


def digit_reader(seed: int, hidden: int = 24, out: int = 10) -> layers.Sequential:
    """Rows of digits in, classes out."""
    rng = rng_of(seed)
    rnn = layers.SimpleRNN(8, hidden, return_sequences=False, rng=rng)
    return layers.Sequential([rnn, layers.Dense(hidden, out, rng=rng)])


def rnn(seed: int, inputs: int, hidden: int, out: int, *, sequences: bool = False) -> layers.Sequential:
    """A plain recurrent layer and a linear one."""
    rng = rng_of(seed)
    return layers.Sequential(
        [layers.SimpleRNN(inputs, hidden, return_sequences=sequences, rng=rng), layers.Dense(hidden, out, rng=rng)]
    )


def frames(seed: int, hidden: int = 6, **options: Any) -> layers.Sequential:
    """A ConvLSTM and a 1x1 readout."""
    rng = rng_of(seed)
    directions = 2 if options.get("bidirectional") else 1
    return layers.Sequential(
        [layers.ConvLSTM2D(1, hidden, 3, rng=rng, **options), layers.Conv2D(hidden * directions, 1, 1, rng=rng)]
    )


def cnn(seed: int) -> layers.Sequential:
    """For pictures of digits."""
    rng = rng_of(seed)
    first, second = layers.Conv2D(1, 6, 3, stride=2, rng=rng), layers.Conv2D(6, 12, 3, stride=2, rng=rng)
    relu = layers.Activation
    return layers.Sequential([first, relu("relu"), second, relu("relu"), Flat(), layers.Dense(48, 10, rng=rng)])


# --------------------------------------------------------------------------------------------------------- plain good
@RUNS.well(at_most=0.4, seeds=2)
def digits_cnn(seed: int) -> Outcome:
    """Two strided convolutions on digits, AdamW."""
    net = cnn(seed)
    return fit(net, images(), optim.AdamW(net.parameters(), 5e-3), steps=250, seed=seed)


@RUNS.well(at_most=0.6, seeds=2)
def digits_row_by_row(seed: int) -> Outcome:
    """A plain RNN reads digits row by row, SGD with momentum."""
    net = digit_reader(seed)
    return fit(net, rows(), optim.SGD(net.parameters(), 0.03, momentum=0.9), steps=300, seed=seed)


@RUNS.well(at_most=0.1)
def spirals_tanh(seed: int) -> Outcome:
    """Two spirals, three layers of tanh, Adam."""
    net = mlp((2, 32, 32, 2), "tanh", seed)
    return fit(net, spirals(), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.2, seeds=2)
def adding_20(seed: int) -> Outcome:
    """The adding problem over 20 steps, a plain RNN with a clipped gradient."""
    net = rnn(seed, 2, 32, 1)
    return fit(net, adding(20), optim.Adam(net.parameters(), 3e-3, clip_norm=1.0), steps=600, batch=64, seed=seed)


@RUNS.well(at_most=0.3, seeds=2)
def moving_spots(seed: int) -> Outcome:
    """A ConvLSTM forecasts a spot in motion, Adam."""
    net = frames(seed)
    return fit(net, blobs(6), optim.Adam(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


@RUNS.well(at_most=0.4)
def moving_spots_two_ways(seed: int) -> Outcome:
    """Two bidirectional ConvLSTM layers with peepholes, SGD with momentum."""
    net = frames(seed, 4, num_layers=2, bidirectional=True, peephole="channel")
    optimizer = optim.SGD(net.parameters(), 0.5, momentum=0.9, clip_norm=1.0)
    return fit(net, blobs(5), optimizer, steps=150, batch=8, seed=seed)


# ------------------------------------------------------------------------------------------------------- slow or flat
@RUNS.well(at_most=0.9, seeds=2)
def loss_falls_slowly(seed: int) -> Outcome:
    """A small learning rate: the loss falls by a quarter in the whole run, and still does at its end."""
    net = mlp((10, 16, 1), "tanh", seed)
    return fit(net, table("diabetes"), optim.SGD(net.parameters(), 8e-4), steps=300, batch=128, seed=seed)


@RUNS.well(at_most=0.75, seeds=2)
def noise_of_twice_the_signal(seed: int) -> Outcome:
    """Two thirds of the targets' variance are noise: flat at that floor after a few dozen steps."""
    net = mlp((8, 12, 1), "relu", seed)
    return fit(net, plane(2**0.5), optim.Adam(net.parameters(), 1e-2), steps=400, seed=seed)


@RUNS.well(at_most=0.99, seeds=2)
def noise_of_twenty_times_the_signal(seed: int) -> Outcome:
    """95 % of the variance are noise; the rest is learnt early, and flat from then on."""
    net = mlp((8, 8, 1), "tanh", seed)
    return fit(net, plane(4.4), optim.Adam(net.parameters(), 3e-3), steps=500, batch=128, seed=seed)


@RUNS.well(at_most=0.99)
def noisy_and_only_the_end_counts(seed: int) -> Outcome:
    """80 steps of which the last three count, under noise of ten times the signal: all that can be learnt is."""
    net = rnn(seed, 1, 12, 1)
    net.parameters()["0.weight_hh_l0"][...] *= 0.7
    return fit(net, recent(80, 3.0), optim.Adam(net.parameters(), 3e-3), steps=300, batch=128, seed=seed)


@RUNS.well(at_most=0.75)
def cosine_to_nothing(seed: int) -> Outcome:
    """At the noise floor, with a learning rate that goes down to 1e-9 by a cosine."""
    net = mlp((8, 12, 1), "relu", seed)
    return fit(
        net, plane(2**0.5), optim.SGD(net.parameters(), 0.05, momentum=0.9), steps=300, seed=seed,
        rate=lambda step: 1e-9 + 0.025 * (1 + np.cos(np.pi * min(1.0, step / 250))),
    )  # fmt: skip


@RUNS.well(at_most=0.05)
def gone_on_with(seed: int) -> Outcome:
    """Training is resumed on a network that has converged: the loss is flat from its first step, and the last three
    of 60 steps count."""
    net, task = rnn(seed, 1, 16, 1), recent(60)
    net.parameters()["0.weight_hh_l0"][...] *= 0.6
    fit(net, task, optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed + 50)
    return fit(net, task, optim.Adam(net.parameters(), 1e-4), steps=150, batch=64, seed=seed)


@RUNS.well(at_most=0.25, seeds=2)
def fine_tuned(seed: int) -> Outcome:
    """Trained weights on a task that has changed a little: the loss is small at first and falls little."""
    net = mlp((6, 32, 1), "relu", seed)
    fit(net, surface(0.3), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed + 50)
    return fit(net, surface(0.3, shift=0.1), optim.Adam(net.parameters(), 3e-4), steps=200, batch=64, seed=seed)


@RUNS.well(at_most=0.4)
def warm_up_from_zero(seed: int) -> Outcome:
    """A learning rate of exactly 0 at first, then a long climb."""
    net = cnn(seed)
    optimizer = optim.SGD(net.parameters(), 0.0, momentum=0.9)
    return fit(net, images(), optimizer, steps=300, seed=seed, rate=lambda step: 0.05 * min(1, max(0, step - 20) / 150))


@RUNS.well(at_most=0.4)
def harder_and_harder(seed: int) -> Outcome:
    """A curriculum: the targets' size grows tenfold during the run, and the loss with it."""
    net = mlp((6, 48, 1), "relu", seed)
    return fit(
        net, surface(0.2, size=5.0), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed,
        spoil=lambda step, x, t: (x, (t * min(1.0, 0.1 + step / 300)).astype(np.float32)),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- odd weights
@RUNS.well(at_most=0.3, seeds=2)
def last_layer_from_zero(seed: int) -> Outcome:
    """The last layer's weights start at 0, all others at random."""
    net = mlp((13, 20, 3), "tanh", seed)
    net.parameters()["2.weight"][...] = 0
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.1), steps=200, seed=seed)


@RUNS.well(at_most=0.3)
def all_from_zero_without_hidden_units(seed: int) -> Outcome:
    """Logistic regression from zero weights, which is convex."""
    net = layers.Sequential([layers.Dense(13, 3, rng=rng_of(seed))])
    net.parameters()["0.weight"][...] = 0
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.1), steps=200, seed=seed)


@RUNS.well(at_most=0.3)
def classes_held_for_later(seed: int) -> Outcome:
    """Eight outputs of which three occur, from zero: the five others stay one and the same, and harm nothing."""
    net = layers.Sequential([layers.Dense(13, 8, rng=rng_of(seed))])
    net.parameters()["0.weight"][...] = 0
    return fit(net, table("wine"), optim.Adam(net.parameters(), 2e-2), steps=200, seed=seed)


@RUNS.well(at_most=0.5)
def first_layer_frozen(seed: int) -> Outcome:
    """Two hundred random features, left so on purpose: the optimiser has the last layer alone."""
    net = mlp((2, 200, 2), "relu", seed)
    net.parameters()["0.bias"][...] = rng_of(seed + 9).uniform(-0.2, 0.2, 200)
    return fit(net, spirals(), optim.Adam(only(net.parameters(), "2."), 3e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.3, seeds=2)
def biases_before_normalisation(seed: int) -> Outcome:
    """Dense layers with biases that the normalisation behind them takes away again: gradients of rounding alone."""
    net = mlp((6, 32, 32, 1), "relu", seed, norm=True)
    return fit(net, surface(0.1), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.55, seeds=2)
def strong_and_right_penalty(seed: int) -> Outcome:
    """Forty features and a little data: a penalty of twice the rest is right, and the error falls."""
    task, net = plane(0.3, features=40), layers.Sequential([layers.Dense(40, 1, rng=rng_of(seed))])
    x, t = task.draw(rng_of(seed + 20), 44, False)
    few = Task(lambda rng, n, test: task.draw(rng, n, True) if test else (x, t))
    return fit(net, few, optim.SGD(net.parameters(), 0.05), steps=300, seed=seed, l2=0.15)


# ------------------------------------------------------------------------------------------------------------- units
@RUNS.well(at_most=0.25, seeds=2)
def sure_sigmoids(seed: int) -> Outcome:
    """Hidden sigmoids that are nearly 0 or 1 for most examples, and each of them both."""
    net = mlp((2, 24, 2), "sigmoid", seed)
    net.parameters()["0.weight"][...] *= 60
    net.parameters()["0.bias"][...] = rng_of(seed + 9).uniform(-20, 20, 24)
    return fit(net, spirals(), optim.Adam(net.parameters(), 0.1), steps=500, batch=64, seed=seed)


@RUNS.well(at_most=0.25)
def sure_outputs(seed: int) -> Outcome:
    """A sigmoid as the last layer, squared error on labels of 0 and 1: nearly all outputs are at a bound."""
    task = table("breast_cancer")

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return x, t.astype(np.float32)[:, None]

    net = layers.Sequential([*mlp((30, 8, 1), "leaky_relu", seed).layers, layers.Activation("sigmoid")])
    return fit(net, Task(draw), optim.Adam(net.parameters(), 2e-2), steps=400, seed=seed)


@RUNS.well(at_most=0.3, seeds=2)
def a_few_dead_relus(seed: int) -> Outcome:
    """A third of 64 hidden units never fires; the others are enough."""
    net = mlp((6, 64, 1), "relu", seed)
    net.parameters()["0.bias"][:21] = -30
    return fit(net, surface(), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.well(at_most=0.4)
def sparse_units_one_by_one(seed: int) -> Outcome:
    """One example at a time and biases of -1: most units rest in any one step, and take turns."""
    net = mlp((13, 60, 3), "relu", seed)
    net.parameters()["0.bias"][...] = -1
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.05), steps=600, batch=1, seed=seed)


@RUNS.well(at_most=0.3)
def spots_one_by_one(seed: int) -> Outcome:
    """A ConvLSTM with batches of a single sequence."""
    net = frames(seed)
    return fit(net, blobs(8), optim.Adam(net.parameters(), 5e-3), steps=300, batch=1, seed=seed)


@RUNS.well(at_most=0.4, seeds=2)
def table_one_by_one(seed: int) -> Outcome:
    """Plain stochastic gradient descent, a batch of 1, on noisy targets."""
    net = mlp((8, 10, 1), "tanh", seed)
    return fit(net, plane(0.4), optim.SGD(net.parameters(), 0.01), steps=800, batch=1, seed=seed)


@RUNS.well(at_most=0.3)
def huge_inputs_normalised(seed: int) -> Outcome:
    """Inputs in the thousands, behind a normalisation that takes their size away."""
    net = layers.Sequential([layers.BatchNorm(30), *mlp((30, 16, 2), "tanh", seed).layers])
    return fit(net, table("breast_cancer", scaled=False), optim.Adam(net.parameters(), 1e-2), steps=300, seed=seed)


@RUNS.well(at_most=0.2)
def targets_at_the_rim(seed: int) -> Outcome:
    """Tanh units and targets of four times their range: out of reach at first, within it soon."""
    net = mlp((6, 32, 1), "tanh", seed)
    return fit(net, surface(size=3.0), optim.Adam(net.parameters(), 2e-2), steps=600, batch=64, seed=seed)


@RUNS.well(at_most=0.35)
def positive_logits(seed: int) -> Outcome:
    """Biases of 6 in the last layer: no logit below 0 at first, which a softmax does not see."""
    net = digit_reader(seed + 3)
    net.parameters()["1.bias"][...] = 6
    return fit(net, rows(), optim.Adam(net.parameters(), 5e-3), steps=400, seed=seed)


# --------------------------------------------------------------------------------------------------------- over time
@RUNS.well(at_most=0.2, seeds=2)
def one_spike(seed: int) -> Outcome:
    """One batch with inputs a thousand times too large; clipping holds, and the loss comes back."""
    net = mlp((6, 32, 1), "relu", seed)
    optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.5, clip_norm=1.0)

    def spoil(step: int, x: Any, t: Any) -> Any:
        return (1000 * x, t) if step == 150 else (x, t)

    return fit(net, surface(), optimizer, steps=500, batch=64, seed=seed, spoil=spoil)


@RUNS.well(at_most=0.1, seeds=2)
def only_the_end_counts(seed: int) -> Outcome:
    """80 steps of which the last three count: the gradient vanishes on its way to the first, as it may."""
    net = rnn(seed, 1, 16, 1)
    net.parameters()["0.weight_hh_l0"][...] *= 0.6
    return fit(net, recent(80), optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed)


@RUNS.well(at_most=0.3)
def forget_gate_wide_open(seed: int) -> Outcome:
    """Forget biases of 6: the gate is at its bound all the time, which is what it takes to keep a picture."""
    net = layers.Sequential(
        [layers.ConvLSTM2D(1, 6, 3, return_sequences=False, rng=rng_of(seed)), layers.Conv2D(6, 1, 1, rng=rng_of(9))]
    )
    net.parameters()["0.bias_l0"][6:12] = 6
    return fit(net, first_frame(12), optim.Adam(net.parameters(), 2e-2), steps=250, batch=8, seed=seed)


@RUNS.well(at_most=0.1)
def waves_long(seed: int) -> Outcome:
    """The next value of a sine at each of 100 steps."""
    net = rnn(seed, 1, 16, 1, sequences=True)
    return fit(net, waves(100), optim.AdamW(net.parameters(), 5e-3), steps=200, batch=8, seed=seed)


@RUNS.well(at_most=0.3)
def first_symbol_of_20(seed: int) -> Outcome:
    """Which symbol came first, 20 steps ago: a plain RNN with an orthogonal start."""
    net = rnn(seed, 4, 24, 3)
    return fit(net, recall(20), optim.Adam(net.parameters(), 3e-3, clip_norm=1.0), steps=300, seed=seed)


@RUNS.well(at_most=0.5)
def two_losses(seed: int) -> Outcome:
    """A squared error on labels as +-1, whose floor is far above 0 since one label in six is wrong."""
    task = table("breast_cancer")

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        wrong = 0.0 if test else 1 / 6
        return x, np.where(rng.random(len(t)) < wrong, 1 - 2 * t, 2 * t - 1).astype(np.float32)[:, None]

    net = mlp((30, 16, 1), "relu", seed)
    return fit(net, Task(draw, losses.mean_squared), optim.Adam(net.parameters(), 3e-3), steps=300, seed=seed)
