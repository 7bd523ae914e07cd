"""Runs that go wrong, each with its cured twin: built with fusecell's layers, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from study_healthy import cnn, digit_reader, frames, rnn
from study_tasks import (
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
    rng_of,
    rows,
    spirals,
    surface,
    table,
    waves,
)

from fusecell import health, layers, losses, optim

Array = Any
RUNS = Runs()


# -------------------------------------------------------------------------------------------------------- not a number
@RUNS.ill("not finite")
def logarithm_of_zero(cured: bool, seed: int) -> Outcome:
    """Cross entropy by hand, log(p) and log(1 - p), on a table that nobody scaled: a sure sigmoid gives exactly 1."""
    net = mlp((30, 12, 1), "leaky_relu", seed)
    task = table("breast_cancer", scaled=cured)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return x, t.astype(np.float32)[:, None]

    def by_hand(y: Array, t: Array) -> tuple[float, Array]:
        p = (1 / (1 + np.exp(-y))).astype(np.float32)
        loss = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        return float(loss), ((-t / p + (1 - t) / (1 - p)) * p * (1 - p) / t.size).astype(np.float32)

    data = Task(draw, losses.binary_cross_entropy_with_logits)
    return fit(net, data, optim.SGD(net.parameters(), 0.1), steps=200, seed=seed, loss=by_hand)


@RUNS.ill("not finite", "exploding gradient", "updates too large")
def relu_state_overflows(cured: bool, seed: int) -> Outcome:
    """A plain RNN of relu units whose recurrent weights are twice as large as they may be, over 60 steps."""
    rng = rng_of(seed)
    cell = layers.SimpleRNN(2, 24, activation="relu", return_sequences=False, rng=rng)
    cell.parameters()["weight_hh_l0"][...] = np.eye(24) * (1.0 if cured else 2.0)
    net = layers.Sequential([cell, layers.Dense(24, 1, rng=rng)])
    return fit(net, adding(60), optim.Adam(net.parameters(), 1e-3, clip_norm=1.0), steps=300, seed=seed)


@RUNS.ill("not finite", "updates too large", "exploding gradient")
def picture_net_overflows(cured: bool, seed: int) -> Outcome:
    """Convolutions and a squared error, momentum 0.9 and a learning rate of 30: off to infinity in a few steps."""
    rng = rng_of(seed)
    net = layers.Sequential(
        [layers.Conv2D(1, 6, 3, rng=rng), layers.Activation("elu"), layers.Conv2D(6, 1, 3, rng=rng)]
    )
    task = blobs(3)
    return fit(
        net, task, optim.SGD(net.parameters(), 0.3 if cured else 30.0, momentum=0.9), steps=80, batch=8, seed=seed
    )


# ---------------------------------------------------------------------------------------------------- memory by hand
def by_hand(new: Callable[[Any], Array], seed: int, momentum: bool) -> Outcome:
    """A tanh layer and a linear one written out: sums over examples, or the momentum, begin with new(shape)."""
    rng, task = np.random.default_rng([11, seed]), surface(0.1)
    p = {"v": 0.5 * rng.standard_normal((24, 6)), "w": 0.2 * rng.standard_normal((1, 24))}
    monitor, velocity = health.Monitor(), {}
    with health.poisoned(), np.errstate(all="ignore"):
        for step in range(300):
            x, t = task.draw(rng, 16, False)
            h = np.tanh(x @ p["v"].T)
            error = h @ p["w"].T - t
            gradients = {name: (np.zeros if momentum else new)(a.shape) for name, a in p.items()}
            for n in range(16):
                gradients["w"] += np.outer(error[n], h[n]) / 8
                gradients["v"] += np.outer(error[n] @ p["w"] * (1 - h[n] ** 2), x[n]) / 8
                monitor.look("dw", gradients["w"], step=n)
            monitor.observe(
                float(np.mean(error**2)), parameters=p, gradients=gradients, outputs=h @ p["w"].T, targets=t
            )
            for name, a in p.items():
                if momentum and step == 0:
                    velocity[name] = new(a.shape)
                v = velocity.get(name, 0.0) * 0.8 + gradients[name]
                velocity[name] = v if momentum else 0.0
                monitor.look(f"velocity of {name}", np.asarray(v))
                a -= 0.05 * v
        x, t = task.test()
        return Outcome(monitor, task.score(np.tanh(x @ p["v"].T) @ p["w"].T, t))


@RUNS.ill("uninitialised memory")
def sums_from_empty(cured: bool, seed: int) -> Outcome:
    """A network by hand whose gradients are summed over the examples into memory that nobody wrote."""
    return by_hand(np.zeros if cured else lambda shape: np.empty(shape), seed, momentum=False)


@RUNS.ill("uninitialised memory")
def momentum_from_empty(cured: bool, seed: int) -> Outcome:
    """The same network, right but for the momentum, which begins as what the memory held."""
    return by_hand(np.zeros if cured else lambda shape: np.empty(shape), seed, momentum=True)


# ----------------------------------------------------------------------------------------------------- over the steps
@RUNS.ill("exploding gradient", seeds=2)
def recurrent_weights_too_large(cured: bool, seed: int) -> Outcome:
    """Which symbol came first of 40: a plain RNN whose orthogonal weights were multiplied by 3."""
    net = rnn(seed, 4, 32, 3)
    net.parameters()["0.weight_hh_l0"][...] *= 1 if cured else 3
    net.parameters()["0.weight_ih_l0"][...] *= 0.3
    return fit(net, recall(40), optim.Adam(net.parameters(), 2e-3), steps=300, seed=seed)


@RUNS.ill("exploding gradient", "updates too large", "not finite")
def linear_units_grow(cured: bool, seed: int) -> Outcome:
    """Leaky units, recurrent weights of 1.25 times an orthogonal matrix, 60 steps of an adding problem."""
    rng = rng_of(seed)
    cell = layers.SimpleRNN(2, 24, activation="leaky_relu", return_sequences=False, rng=rng)
    cell.parameters()["weight_hh_l0"][...] = np.eye(24) * (1.0 if cured else 1.25)
    net = layers.Sequential([cell, layers.Dense(24, 1, rng=rng)])
    return fit(net, adding(60), optim.Adam(net.parameters(), 1e-3, clip_norm=1.0), steps=300, seed=seed)


@RUNS.ill("exploding gradient", "updates too large", "not finite", seeds=2)
def one_bad_batch(cured: bool, seed: int) -> Outcome:
    """One batch with inputs 300 times too large, nothing clipped: the network does not come back from it."""
    net = mlp((6, 32, 1), "relu", seed)
    optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.5, clip_norm=1.0 if cured else None)

    def spoil(step: int, x: Array, t: Array) -> Any:
        return (300 * x, t) if step == 150 else (x, t)

    return fit(net, surface(), optimizer, steps=300, batch=64, seed=seed, spoil=spoil)


def small_recurrence(factor: float, steps: int, seed: int) -> Outcome:
    """Which symbol came first: a plain RNN whose orthogonal weights are multiplied by `factor`."""
    net = rnn(seed, 4, 24, 3)
    net.parameters()["0.weight_hh_l0"][...] *= factor
    return fit(net, recall(steps), optim.Adam(net.parameters(), 3e-3, clip_norm=1.0), steps=300, seed=seed)


@RUNS.ill("vanishing gradient", seeds=2)
def first_symbol_forgotten(cured: bool, seed: int) -> Outcome:
    """Which symbol came first of 30: recurrent weights a third of an orthogonal matrix."""
    return small_recurrence(1.0 if cured else 0.33, 30, seed)


@RUNS.ill("vanishing gradient", worse=5, seeds=2)
def first_symbol_nearly_kept(cured: bool, seed: int) -> Outcome:
    """Which symbol came first of 30: recurrent weights 0.65 of an orthogonal matrix, mild."""
    return small_recurrence(1.0 if cured else 0.65, 30, seed)


def keep_a_frame(forget: float, steps: int, seed: int) -> Outcome:
    """The first frame, asked for at the end, of a ConvLSTM with this forget bias."""
    rng = rng_of(seed)
    net = layers.Sequential(
        [layers.ConvLSTM2D(1, 6, 3, return_sequences=False, rng=rng), layers.Conv2D(6, 1, 1, rng=rng)]
    )
    net.parameters()["0.bias_l0"][6:12] = forget
    return fit(net, first_frame(steps), optim.Adam(net.parameters(), 1e-2), steps=200, batch=8, seed=seed)


@RUNS.ill("vanishing gradient")
def frame_forgotten(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM shall keep the first of 15 frames; forget biases of -3."""
    return keep_a_frame(4.0 if cured else -3.0, 15, seed)


@RUNS.ill("vanishing gradient")
def frame_half_forgotten(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM shall keep the first of 20 frames; forget biases of 0: mild."""
    return keep_a_frame(4.0 if cured else 0.0, 20, seed)


@RUNS.ill("vanishing gradient", "saturated units", seeds=2)
def nine_sigmoid_layers(cured: bool, seed: int) -> Outcome:
    """Nine hidden layers of sigmoids on wines; the twin has relu."""
    net = mlp((13, *[16] * 9, 3), "relu" if cured else "sigmoid", seed)
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.05, momentum=0.9), steps=300, seed=seed)


# --------------------------------------------------------------------------------------------------------- parameters
@RUNS.ill("parameter is not updated")
def hidden_layer_left_out(cured: bool, seed: int) -> Outcome:
    """The optimiser was given the last layer alone, of a network with eight hidden units."""
    net = mlp((2, 8, 2), "tanh", seed)
    own = net.parameters() if cured else only(net.parameters(), "2.")
    return fit(net, spirals(), optim.Adam(own, 3e-2), steps=600, batch=64, seed=seed)


@RUNS.ill("parameter is not updated", "updates too small")
def optimiser_of_copies(cured: bool, seed: int) -> Outcome:
    """The optimiser was given a state_dict, which is copies: it trains those."""
    net = digit_reader(seed)
    own = net.parameters() if cured else net.state_dict()
    return fit(net, rows(), optim.Adam(own, 5e-3), steps=150, seed=seed)


@RUNS.ill("parameter is not updated")
def recurrent_weights_left_out(cured: bool, seed: int) -> Outcome:
    """The recurrent weights are not among the optimiser's parameters: a reservoir with a trained rim."""
    net = rnn(seed, 2, 32, 1)
    own = {name: a for name, a in net.parameters().items() if cured or "weight_hh" not in name}
    return fit(net, adding(20), optim.Adam(own, 3e-3, clip_norm=1.0), steps=600, batch=64, seed=seed)


class Mask(layers.Layer):
    """Multiplies by a constant."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = np.float32(by)

    def forward(self, x: Array) -> Array:
        return x * self.by

    def backward(self, dy: Array) -> Array:
        return dy * self.by


@RUNS.ill("parameter gets no gradient")
def gate_left_shut(cured: bool, seed: int) -> Outcome:
    """A factor of 0 between two layers, left from a trial: what is before it learns nothing."""
    first, *rest = mlp((30, 12, 2), "tanh", seed).layers
    net = layers.Sequential([first, Mask(1.0 if cured else 0.0), *rest])
    return fit(net, table("breast_cancer"), optim.SGD(net.parameters(), 0.1), steps=150, seed=seed)


@RUNS.ill("symmetric units")
def all_weights_zero(cured: bool, seed: int) -> Outcome:
    """Tanh and zero weights everywhere: the last bias alone ever moves."""
    net = mlp((6, 20, 1), "tanh", seed)
    if not cured:
        net.load_parameters({name: np.zeros_like(a) for name, a in net.parameters().items()})
    return fit(net, surface(0.1), optim.Adam(net.parameters(), 1e-2), steps=200, seed=seed)


@RUNS.ill("symmetric units", seeds=2)
def recurrent_units_alike(cured: bool, seed: int) -> Outcome:
    """A plain RNN with every weight 0.05 reads digits row by row: it is one unit."""
    net = digit_reader(seed)
    if not cured:
        net.load_parameters({name: np.full_like(a, 0.05) for name, a in net.parameters().items()})
    return fit(net, rows(), optim.Adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.ill("symmetric units")
def channels_alike(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM whose channels all begin with the weights of the first."""
    net = frames(seed)
    if not cured:
        for name, a in net.parameters().items():
            if "weight" in name:
                a[...] = a[:1, :1].mean()
    return fit(net, blobs(6), optim.Adam(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


@RUNS.ill("symmetric units")
def three_quarters_alike(cured: bool, seed: int) -> Outcome:
    """One unit was copied until there were twelve of sixteen; four were drawn."""
    net = mlp((6, 16, 1), "tanh", seed)
    if not cured:
        for name, axis in (("0.weight", 0), ("2.weight", 1)):
            a = net.parameters()[name]
            a[...] = np.take(a, [0, 1, 2, 3, *[4] * 12], axis=axis)
    return fit(net, surface(), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


# -------------------------------------------------------------------------------------------------------------- units
@RUNS.ill("dead units", "parameter gets no gradient")
def biases_of_minus_ten(cured: bool, seed: int) -> Outcome:
    """Relu units with biases of -10: none ever fires."""
    net = mlp((13, 24, 3), "relu", seed)
    net.parameters()["0.bias"][...] = 0 if cured else -10
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.05), steps=200, seed=seed)


@RUNS.ill("dead units", "updates too large", "parameter gets no gradient", seeds=2)
def relus_killed_by_the_first_steps(cured: bool, seed: int) -> Outcome:
    """A learning rate that throws the relu units of a picture network out of reach in the first steps."""
    net = cnn(seed)
    return fit(net, images(), optim.SGD(net.parameters(), 0.05 if cured else 1.5, momentum=0.9), steps=200, seed=seed)


@RUNS.ill("dead units", seeds=2)
def most_units_dead(cured: bool, seed: int) -> Outcome:
    """Thirteen of sixteen relu units never fire; three are too few."""
    net = mlp((6, 16, 1), "relu", seed)
    net.parameters()["0.bias"][: 0 if cured else 13] = -30
    return fit(net, surface(), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.ill("saturated units")
def all_hidden_ones(cured: bool, seed: int) -> Outcome:
    """Digits as they are, 0 to 16, into positive weights and sigmoids: every hidden unit gives 1."""
    net = mlp((64, 20, 10), "sigmoid", seed)
    if not cured:
        np.abs(net.parameters()["0.weight"], out=net.parameters()["0.weight"])
    return fit(net, table("digits", scaled=cured), optim.SGD(net.parameters(), 0.1), steps=300, seed=seed)


@RUNS.ill("saturated units", "saturated gates", seeds=2)
def raw_numbers_into_a_recurrence(cured: bool, seed: int) -> Outcome:
    """Waves of height 100 with an offset of 200 into a plain RNN of tanh units."""
    task = waves(20)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return (x if cured else 100 * x + 200), t

    net = rnn(seed, 1, 16, 1, sequences=True)
    return fit(net, Task(draw), optim.Adam(net.parameters(), 5e-3), steps=200, seed=seed)


@RUNS.ill("saturated gates", "saturated units")
def frames_of_bytes(cured: bool, seed: int) -> Outcome:
    """Frames of 0 to 255 with a background of 60 into a ConvLSTM."""
    task = blobs(6)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return (x if cured else 60 + 195 * x), t

    net = frames(seed)
    return fit(net, Task(draw), optim.Adam(net.parameters(), 1e-2), steps=150, batch=8, seed=seed)


@RUNS.ill("saturated gates", "vanishing gradient")
def output_gate_shut(cured: bool, seed: int) -> Outcome:
    """Biases of -9 at the gate that lets a ConvLSTM's state out."""
    net = frames(seed)
    net.parameters()["0.bias_l0"][18:] = 0 if cured else -9
    return fit(net, blobs(6), optim.SGD(net.parameters(), 0.5, momentum=0.9), steps=150, batch=8, seed=seed)


# ------------------------------------------------------------------------------------------------ outputs and the loss
@RUNS.ill("constant output", "penalty drowns the loss", seeds=2)
def decayed_to_nothing(cured: bool, seed: int) -> Outcome:
    """AdamW with a weight decay of 30: the weights shrink faster than they learn."""
    net = mlp((6, 32, 1), "tanh", seed)
    optimizer = optim.AdamW(net.parameters(), 1e-2, weight_decay=0.01 if cured else 30.0)
    return fit(net, surface(0.1), optimizer, steps=300, seed=seed)


@RUNS.ill("constant output", "updates too small", "vanishing gradient")
def inputs_in_other_units(cured: bool, seed: int) -> Outcome:
    """Inputs a millionth of their usual size: the output is the bias."""
    task = surface(0.1)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return (x if cured else np.float32(1e-6) * x), t

    net = mlp((6, 32, 1), "tanh", seed)
    return fit(net, Task(draw), optim.SGD(net.parameters(), 0.1, momentum=0.5), steps=300, seed=seed)


@RUNS.ill("bounded output", seeds=2)
def ceiling_over_tanh(cured: bool, seed: int) -> Outcome:
    """Targets around 500 and tanh units before the last layer, which cannot grow that fast."""
    net, task = mlp((6, 24, 1), "tanh", seed), surface(0.1, size=1.0 if cured else 200.0, shift=0 if cured else 500)
    return fit(net, task, optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("bounded output")
def ceiling_over_a_recurrence(cured: bool, seed: int) -> Outcome:
    """The sum of two numbers in the thousands from 16 tanh units in a plain RNN."""
    task = adding(8)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return x, t if cured else 2000 * t

    net = rnn(seed, 2, 16, 1)
    return fit(net, Task(draw), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("bounded output", "saturated units")
def sigmoid_for_numbers(cured: bool, seed: int) -> Outcome:
    """A sigmoid as the last layer of a regression whose targets go from -3 to 3."""
    net = mlp((6, 32, 1), "tanh", seed)
    if not cured:
        net = layers.Sequential([*net.layers, layers.Activation("sigmoid")])
    return fit(net, surface(0.1), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill("relu before softmax", seeds=2)
def relu_behind_the_convolutions(cured: bool, seed: int) -> Outcome:
    """A picture network with a relu on its ten outputs, then a softmax."""
    net = cnn(seed)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("relu")])
    return fit(net, images(), optim.SGD(net.parameters(), 0.1), steps=250, seed=seed)


@RUNS.ill("sigmoid before softmax")
def sigmoid_behind_a_recurrence(cured: bool, seed: int) -> Outcome:
    """Digits row by row, a sigmoid on the outputs, then a softmax."""
    net = digit_reader(seed)
    net = net if cured else layers.Sequential([*net.layers, layers.Activation("sigmoid")])
    return fit(net, rows(), optim.Adam(net.parameters(), 5e-3), steps=250, seed=seed)


@RUNS.ill("penalty drowns the loss", seeds=2)
def penalty_of_one(cured: bool, seed: int) -> Outcome:
    """An L2 penalty of strength 1 on a classifier of wines."""
    net = mlp((13, 24, 3), "relu", seed)
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.05), steps=250, seed=seed, l2=1e-3 if cured else 1.0)


@RUNS.ill("penalty drowns the loss")
def penalty_on_a_recurrence(cured: bool, seed: int) -> Outcome:
    """An L2 penalty of 0.05 on a plain RNN that forecasts waves: mild."""
    net = rnn(seed, 1, 16, 1, sequences=True)
    return fit(net, waves(20), optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed, l2=1e-5 if cured else 0.05)


# ------------------------------------------------------------------------------------------------------------ updates
@RUNS.ill("updates too small")
def clipped_to_nothing(cured: bool, seed: int) -> Outcome:
    """Gradients clipped to a norm of 1e-6 before plain gradient descent."""
    net = mlp((13, 24, 3), "relu", seed)
    return fit(
        net, table("wine"), optim.SGD(net.parameters(), 0.1, clip_norm=1.0 if cured else 1e-6), steps=200, seed=seed
    )


@RUNS.ill("updates too large", "dead units", "saturated units", "not finite", seeds=2)
def adam_at_one(cured: bool, seed: int) -> Outcome:
    """Adam with a learning rate of 1."""
    net = mlp((6, 32, 32, 1), "tanh", seed)
    return fit(net, surface(0.1), optim.Adam(net.parameters(), 5e-3 if cured else 1.0), steps=300, batch=64, seed=seed)


@RUNS.ill("updates too large", "not finite", "exploding gradient")
def line_diverges(cured: bool, seed: int) -> Outcome:
    """Least squares on 20 numbers by gradient descent, a little beyond the rate at which it is stable."""
    net = layers.Sequential([layers.Dense(20, 1, rng=rng_of(seed))])
    return fit(net, plane(0.1, features=20), optim.SGD(net.parameters(), 0.1 if cured else 0.7), steps=150, seed=seed)


@RUNS.ill("updates too large", "saturated gates", "saturated units")
def rate_too_large_for_frames(cured: bool, seed: int) -> Outcome:
    """A ConvLSTM by Adam with a learning rate of 0.5."""
    net = frames(seed)
    return fit(net, blobs(6), optim.Adam(net.parameters(), 1e-2 if cured else 0.5), steps=150, batch=8, seed=seed)


# --------------------------------------------------------------------------------------------------- no rule is made
@RUNS.ill(seeds=2)
def labels_shuffled(cured: bool, seed: int) -> Outcome:
    """The labels of a batch were shuffled without its examples."""
    net, rng = mlp((13, 24, 3), "relu", seed), rng_of(seed + 7)

    def spoil(step: int, x: Array, t: Array) -> Any:
        return (x, t) if cured else (x, rng.permutation(t))

    return fit(net, table("wine"), optim.Adam(net.parameters(), 5e-3), steps=200, seed=seed, spoil=spoil)


@RUNS.ill("updates too large", "not finite", "exploding gradient")
def loss_of_the_wrong_sign(cured: bool, seed: int) -> Outcome:
    """Gradient ascent: the sign of the loss's gradient is wrong."""

    def turned(y: Array, t: Array) -> tuple[float, Array]:
        loss, dy = losses.mean_squared(y, t)
        return loss, dy if cured else -dy

    net = rnn(seed, 1, 16, 1, sequences=True)
    return fit(net, waves(20), optim.SGD(net.parameters(), 0.05), steps=200, seed=seed, loss=turned)


@RUNS.ill(seeds=2)
def rate_ten_times_too_small(cured: bool, seed: int) -> Outcome:
    """A learning rate ten times too small for the time that there is."""
    net = cnn(seed)
    return fit(net, images(), optim.SGD(net.parameters(), 0.1 if cured else 0.01), steps=200, seed=seed)


@RUNS.ill()
def targets_off_by_one(cured: bool, seed: int) -> Outcome:
    """Each example has the target of the one before it."""
    net = mlp((6, 32, 1), "relu", seed)

    def spoil(step: int, x: Array, t: Array) -> Any:
        return (x, t) if cured else (x, np.roll(t, 1, axis=0))

    return fit(net, surface(0.1), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed, spoil=spoil)


@RUNS.ill(seeds=2)
def sorted_by_class(cured: bool, seed: int) -> Outcome:
    """Each stretch of 40 batches holds one class alone."""
    net, task = cnn(seed), images()
    x, t = task.draw(np.random.default_rng(0), 4000, False)
    at = [np.flatnonzero(t == label) for label in range(10)]

    def spoil(step: int, given: Array, labels: Array) -> Any:
        own = at[step // 30 % 10]
        which = own[np.arange(32 * step, 32 * step + 32) % len(own)]
        return (given, labels) if cured else (x[which], t[which])

    return fit(net, task, optim.SGD(net.parameters(), 0.05), steps=300, seed=seed, spoil=spoil)


@RUNS.ill()
def target_among_the_inputs(cured: bool, seed: int) -> Outcome:
    """In training one of the inputs is the target; in use it is not there."""
    task = surface(0.1)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, t = task.draw(rng, n, test)
        return np.concatenate([x, np.zeros_like(t) if test or cured else t], axis=1), t

    net = mlp((7, 32, 1), "relu", seed)
    return fit(net, Task(draw), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.ill()
def running_statistics_never_move(cured: bool, seed: int) -> Outcome:
    """A normalisation with momentum 0: right in training, at its start's statistics in use."""
    norm = layers.BatchNorm(30, momentum=0.1 if cured else 0.0)
    net = layers.Sequential([norm, *mlp((30, 16, 2), "tanh", seed).layers])
    return fit(net, table("breast_cancer", scaled=False), optim.Adam(net.parameters(), 1e-2), steps=300, seed=seed)


@RUNS.ill()
def bias_of_the_wrong_sign(cured: bool, seed: int) -> Outcome:
    """A hidden layer's bias gradient by hand that has the wrong sign."""

    class Wrong(layers.Dense):
        def backward(self, dy: Array) -> Array:
            dx = super().backward(dy)
            self._gradients["bias"] *= 1 if cured else -1
            return dx

    _, *rest = mlp((2, 8, 2), "tanh", seed).layers
    net = layers.Sequential([Wrong(2, 8, rng=rng_of(seed)), *rest])
    return fit(net, spirals(), optim.SGD(net.parameters(), 0.3, momentum=0.9), steps=500, batch=64, seed=seed)
