"""The second set's runs that train well, near misses among them: built with fusecell's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from study_second_tasks import (
    ClassesFirst,
    Dropout,
    MeanOverImage,
    Residual,
    by_hand,
    digits_again,
    film,
    fit,
    huber,
    mlp,
    next_letter,
    ordinal,
    parity,
    quantile,
    rare,
    ridges,
    rising,
    rng_of,
    rnn,
    seen_first,
    smoothed,
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


# ------------------------------------------------------------------------------------------------------------- numbers
@RUNS.well(at_most=0.15, seeds=2)
def heavy_tails(seed: int) -> Outcome:
    """Noise of Student's t with 1.5 degrees, whose variance is infinite, and Huber's loss."""
    net = mlp((5, 32, 1), "softplus", seed)
    optimizer = optim.Adam(net.parameters(), 1e-2, clip_norm=1.0)
    return fit(net, ridges(1.5), optimizer, steps=400, batch=64, seed=seed, loss=huber)


@RUNS.well(at_most=0.3)
def heavy_tails_squared(seed: int) -> Outcome:
    """Noise of Student's t with 2.2 degrees and a squared error, which now and then leaps; nothing is clipped."""
    net = mlp((5, 16, 1), "tanh", seed)
    return fit(net, ridges(2.2), optim.Adam(net.parameters(), 5e-3), steps=500, batch=128, seed=seed)


@RUNS.well(at_most=1.8)
def ninth_decile(seed: int) -> Outcome:
    """The loss of a quantile, 0.9, under noise: the outputs shall lie above most targets."""
    net = mlp((5, 24, 1), "elu", seed)
    optimizer = optim.SGD(net.parameters(), 0.2, momentum=0.8, nesterov=True)
    return fit(net, ridges(4.0), optimizer, steps=400, batch=64, seed=seed, loss=quantile(0.9))


@RUNS.well(at_most=0.15, seeds=2)
def sorts_five_numbers(seed: int) -> Outcome:
    """Five numbers in, the same in order out."""
    net = mlp((5, 48, 48, 5), "relu", seed)
    return fit(net, sorting(), optim.AdamW(net.parameters(), 4e-3), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.5, seeds=2)
def autoencoder(seed: int) -> Outcome:
    """Digits through twelve units and back, a sigmoid at the end: many pixels are 0 in all, and their outputs too."""
    net = layers.Sequential([*mlp((64, 12, 64), "tanh", seed).layers, layers.Activation("sigmoid")])
    return fit(net, digits_again(), optim.Adam(net.parameters(), 2e-2), steps=400, seed=seed)


@RUNS.well(at_most=0.75)
def one_target_in_fifty(seed: int) -> Outcome:
    """Fifteen outputs that are 0 but for one target in fifty."""
    net = mlp((15, 64, 15), "relu", seed)
    return fit(net, spikes(15), optim.Adam(net.parameters(), 1e-2), steps=600, batch=128, seed=seed)


@RUNS.well(at_most=0.2, seeds=2)
def residual_blocks_from_nothing(seed: int) -> Outcome:
    """Eight blocks whose last weights start at 0: at the first step nothing within them has a gradient."""
    rng = rng_of(seed)
    blocks = [Residual(24, 24, rng, scale=0.0) for _ in range(8)]
    net = layers.Sequential([layers.Dense(5, 24, rng=rng), *blocks, layers.Dense(24, 1, rng=rng)])
    return fit(net, ridges(), optim.Adam(net.parameters(), 3e-3), steps=200, batch=64, seed=seed)


@RUNS.well(at_most=0.3)
def bias_knows_the_mean(seed: int) -> Outcome:
    """Targets around 1000 with a spread of 1; the last bias begins at 1000."""
    net = mlp((5, 32, 1), "tanh", seed)
    net.parameters()["2.bias"][...] = 1000
    return fit(net, ridges(shift=1000), optim.Adam(net.parameters(), 1e-2), steps=400, batch=64, seed=seed)


@RUNS.well(at_most=0.3)
def sum_of_squares(seed: int) -> Outcome:
    """The loss is a sum and not a mean, over 512 examples: in the hundreds to the end, and the rate is as small."""

    def total(y: Array, t: Array) -> tuple[float, Array]:
        loss, dy = losses.mean_squared(y, t)
        return loss * y.size, dy * np.float32(y.size)

    net = mlp((5, 32, 1), "tanh", seed)
    return fit(net, ridges(6.0), optim.SGD(net.parameters(), 1e-4), steps=400, batch=512, seed=seed, loss=total)


@RUNS.well(at_most=0.1)
def seven_eighths_pruned(seed: int) -> Outcome:
    """Of 128 relu units 112 are held at zero weights on purpose; sixteen are enough."""
    net = mlp((5, 128, 1), "relu", seed)
    weight, bias, out = (net.parameters()[name] for name in ("0.weight", "0.bias", "2.weight"))

    def prune(step: int) -> None:
        weight[16:], bias[16:], out[:, 16:] = 0, 0, 0

    weight[:16] *= 2
    prune(-1)
    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-2), steps=500, batch=64, seed=seed, after=prune)


@RUNS.well(at_most=0.02)
def twelve_examples_by_heart(seed: int) -> Outcome:
    """Twelve examples, learnt by heart on purpose to see that the network can; the loss goes to nothing."""
    x, t = ridges().draw(rng_of(seed + 3), 12, False)
    net = mlp((5, 64, 1), "relu", seed)
    task = Task(lambda rng, n, test: (x, t))
    return fit(net, task, optim.Adam(net.parameters(), 1e-2), steps=500, seed=seed)


@RUNS.well(at_most=0.15)
def warm_restarts(seed: int) -> Outcome:
    """Three cosines of the learning rate: at each restart the loss goes up for a while."""
    net = mlp((5, 32, 32, 1), "tanh", seed)
    return fit(
        net, ridges(), optim.SGD(net.parameters(), 0.1, momentum=0.9), steps=450, batch=32, seed=seed,
        rate=lambda step: 0.0501 + 0.05 * np.cos(np.pi * (step % 150) / 150),
    )  # fmt: skip


@RUNS.well(at_most=0.3)
def one_cycle(seed: int) -> Outcome:
    """A learning rate from 1e-5 up to where it hurts, and down to 1e-6 again."""
    net = mlp((5, 32, 1), "relu", seed)

    def rate(step: int) -> float:
        return float(np.interp(step, [0, 120, 300, 360], [1e-5, 0.15, 1e-3, 1e-6]))

    return fit(net, ridges(6.0), optim.SGD(net.parameters(), 0.1, momentum=0.9), steps=360, seed=seed, rate=rate)


@RUNS.well(at_most=0.3, seeds=2)
def at_the_edge_of_stability(seed: int) -> Outcome:
    """The whole data in each step, and a rate at which the loss swings up and down, and falls."""
    x, t = ridges(6.0).draw(rng_of(seed + 3), 200, False)
    net = mlp((5, 32, 1), "tanh", seed)
    task = Task(lambda rng, n, test: ridges().draw(rng, n, True) if test else (x, t))
    return fit(net, task, optim.SGD(net.parameters(), 0.35), steps=500, seed=seed)


@RUNS.well(at_most=0.3)
def four_thousand_at_once(seed: int) -> Outcome:
    """A batch of 4096, and thirty steps."""
    net = mlp((5, 48, 1), "tanh", seed)
    return fit(net, ridges(6.0), optim.Adam(net.parameters(), 4e-2), steps=30, batch=4096, seed=seed)


@RUNS.well(at_most=0.1)
def fine_tuned_gently(seed: int) -> Outcome:
    """A trained network goes on with a tenth of a thousandth of its rate: hardly a weight moves, nor need it."""
    net = mlp((5, 48, 1), "tanh", seed)
    fit(net, ridges(), optim.Adam(net.parameters(), 1e-2), steps=500, batch=64, seed=seed + 1)
    return fit(net, ridges(), optim.Adam(net.parameters(), 1e-6), steps=150, batch=64, seed=seed)


# ------------------------------------------------------------------------------------------------------------- classes
@RUNS.well(at_most=0.8)
def five_grades(seed: int) -> Outcome:
    """Five ordered classes of a noisy score."""
    net = mlp((7, 24, 5), "leaky_relu", seed)
    return fit(net, ordinal(), optim.SGD(net.parameters(), 0.2, momentum=0.5), steps=300, batch=64, seed=seed)


@RUNS.well(at_most=0.1, seeds=2)
def three_in_a_hundred(seed: int) -> Outcome:
    """A rare class, and a last bias that begins at its odds: the loss is 0.13 at first, and a third less at last."""
    net = mlp((4, 16, 2), "tanh", seed)
    net.parameters()["2.bias"][...] = np.log([0.97, 0.03])
    return fit(net, rare(), optim.Adam(net.parameters(), 5e-3), steps=400, batch=256, seed=seed)


@RUNS.well(at_most=0.3, seeds=2)
def parity_after_a_plateau(seed: int) -> Outcome:
    """The parity of four bits by plain gradient descent: level at log 2 for long, and then it falls."""
    net = mlp((6, 48, 2), "tanh", seed)
    return fit(net, parity(), optim.SGD(net.parameters(), 0.15), steps=1500, batch=64, seed=seed)


@RUNS.well(at_most=1.99, seeds=2)
def letters_nearly_at_random(seed: int) -> Outcome:
    """A chain of eight letters of whose entropy of log 8 six parts in a hundred can be learnt, and are."""
    net = rnn(seed, 8, 12, 8, sequences=True)
    net = layers.Sequential([*net.layers, ClassesFirst()])
    return fit(net, next_letter(0.5), optim.Adam(net.parameters(), 1e-2), steps=300, batch=48, seed=seed)


@RUNS.well(at_most=0.5)
def labels_smoothed(seed: int) -> Outcome:
    """Three tenths of every label are spread over all classes: the loss can hardly halve."""
    net = mlp((13, 24, 3), "relu", seed)
    optimizer = optim.Adam(net.parameters(), 5e-3)
    return fit(net, table("wine"), optimizer, steps=250, seed=seed, loss=smoothed(0.3))


@RUNS.well(at_most=0.5)
def four_fifths_dropped(seed: int) -> Outcome:
    """Digits with four fifths of the hidden units dropped in each step: the training loss stays high."""
    first, *rest = mlp((64, 128, 10), "relu", seed).layers
    net = layers.Sequential([first, rest[0], Dropout(0.8, rng_of(seed + 5)), rest[1]])
    return fit(net, table("digits"), optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed)


@RUNS.well(at_most=0.4)
def constant_inputs_among_others(seed: int) -> Outcome:
    """Digits with their always empty pixels: their weights never have a gradient, and their rows never move."""
    net = layers.Sequential([layers.Dense(64, 10, rng=rng_of(seed))])
    return fit(net, table("digits"), optim.SGD(net.parameters(), 0.1), steps=300, seed=seed)


# ----------------------------------------------------------------------------------------------------------- sequences
@RUNS.well(at_most=0.3, seeds=2)
def rising_or_falling(seed: int) -> Outcome:
    """A label at each of 15 steps: is the number larger than the one before the last?"""
    net = layers.Sequential([*rnn(seed, 1, 24, 2, sequences=True).layers, ClassesFirst()])
    return fit(net, rising(15), optim.Adam(net.parameters(), 1e-2, clip_norm=1.0), steps=350, seed=seed)


@RUNS.well(at_most=0.1)
def zeros_before_the_sequence(seed: int) -> Outcome:
    """Three to eight numbers behind 60 steps of padding: no gradient is left, or needed, where the zeros are."""
    net = rnn(seed, 1, 16, 1)
    net.parameters()["0.weight_hh_l0"][...] *= 0.8
    return fit(net, sum_behind_padding(68), optim.Adam(net.parameters(), 5e-3), steps=350, seed=seed)


@RUNS.well(at_most=0.3)
def turning_bar(seed: int) -> Outcome:
    """The next frame of a turning bar, gates recomputed, hard sigmoids."""
    net = film(seed, recurrent_activation="hard_sigmoid", recompute=True)
    return fit(net, turning(6), optim.Adam(net.parameters(), 1e-2), steps=200, batch=8, seed=seed)


@RUNS.well(at_most=0.35)
def turning_bar_zoneout(seed: int) -> Outcome:
    """Zoneout of half of the state, and a quarter of h dropped."""
    net = film(seed, 8, zoneout=(0.1, 0.5), recurrent_dropout=0.25)
    return fit(net, turning(6), optim.AdamW(net.parameters(), 1e-2), steps=200, batch=8, seed=seed)


@RUNS.well(at_most=0.3, seeds=2)
def which_way_it_turns(seed: int) -> Outcome:
    """A classifier of films: two ConvLSTM layers, the last step's state, one filter as large as the image."""
    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 6, 3, num_layers=2, return_sequences=False, rng=rng)
    net = layers.Sequential([cell, layers.Conv2D(6, 2, 7, padding="valid", rng=rng), MeanOverImage()])
    return fit(net, which_way(5), optim.Adam(net.parameters(), 1e-2), steps=200, batch=16, seed=seed)


@RUNS.well(at_most=0.3)
def both_ways_and_softsign(seed: int) -> Outcome:
    """A bidirectional ConvLSTM of softsign units removes noise from the turning bar."""
    plain = turning(5)

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, _ = plain.draw(rng, n, test)
        return x + np.float32(0.3) * rng.standard_normal(x.shape).astype(np.float32), x

    net = film(seed, 6, bidirectional=True, activation="softsign")
    return fit(net, Task(draw), optim.SGD(net.parameters(), 0.5, momentum=0.9), steps=200, batch=8, seed=seed)


class OfLengths(layers.Composite):
    """A ConvLSTM that is told each sequence's length, in the second half of the channel axis."""

    def __init__(self, cell: layers.ConvLSTM2D) -> None:
        super().__init__()
        self.cell = cell

    def children(self) -> dict[str, layers.Layer]:
        return {"cell": self.cell}

    def forward(self, x: Array) -> Array:
        self._shape = x.shape
        lengths = (x[:, :, 1, 0, 0] > 0).sum(axis=0)
        return self.cell.forward(np.ascontiguousarray(x[:, :, :1]), lengths=lengths)

    def backward(self, dy: Array) -> Array:
        dx = self.cell.backward(dy)
        return np.concatenate([dx, np.zeros_like(dx)], axis=2)


def films_of_lengths(steps: int) -> Task:
    """which_way, of films of 3 to `steps` frames, black where there is no frame; channel 1: where there is."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        x, label = which_way(steps).draw(rng, n, test)
        there = np.arange(steps)[:, None] < rng.integers(3, steps + 1, size=n)
        mask = np.broadcast_to(there[:, :, None, None, None], x.shape).astype(np.float32)
        return np.concatenate([x * mask, mask], axis=2), label

    return Task(draw, losses.softmax_cross_entropy)


@RUNS.well(at_most=0.4)
def films_of_all_lengths(seed: int) -> Outcome:
    """Films of 3 to 12 frames in one batch, with lengths: most steps are padding for most films."""
    rng = rng_of(seed)
    cell = OfLengths(layers.ConvLSTM2D(1, 6, 3, return_sequences=False, rng=rng))
    net = layers.Sequential([cell, MeanOverImage(), layers.Dense(6, 2, rng=rng)])
    return fit(net, films_of_lengths(12), optim.Adam(net.parameters(), 2e-2), steps=250, batch=12, seed=seed)


@RUNS.well(at_most=0.3)
def corner_lit_at_first(seed: int) -> Outcome:
    """Which corner was lit ten frames ago, forget biases of 3, one film at a time."""
    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 8, 3, return_sequences=False, rng=rng)
    cell.parameters()["bias_l0"][8:16] = 3
    shrink = layers.Conv2D(8, 4, 5, padding="valid", rng=rng)
    net = layers.Sequential([cell, shrink, MeanOverImage()])
    return fit(net, seen_first(10), optim.Adam(net.parameters(), 3e-3), steps=400, batch=1, seed=seed)


@RUNS.well(at_most=0.3)
def empty_film_at_times(seed: int) -> Outcome:
    """Every fifth batch is black, and so is its target: there is nothing to be learnt from it."""
    net = film(seed)

    def spoil(step: int, x: Array, t: Array) -> Any:
        return (0 * x, 0 * t) if step % 5 == 4 else (x, t)

    return fit(net, turning(5), optim.Adam(net.parameters(), 2e-2), steps=250, batch=8, seed=seed, spoil=spoil)


@RUNS.well(at_most=0.3, seeds=2)
def loop_by_hand(seed: int) -> Outcome:
    """A plain RNN in NumPy that adds up numbers, shown to the doctor with its units and steps."""
    return by_hand("", seed)


# ------------------------------------------------------------------------------------------------------ not everything
@RUNS.well(at_most=0.3)
def one_half_and_then_the_other(seed: int) -> Outcome:
    """The two layers are trained in turns of twenty steps: while one moves the other stands still."""

    class Turns(optim.SGD):
        def step(self, gradients: Any) -> None:
            first = self.steps % 40 < 20
            super().step({n: g if n.startswith("0.") == first else np.zeros_like(g) for n, g in gradients.items()})

    net = mlp((5, 32, 1), "tanh", seed)
    return fit(net, ridges(), Turns(net.parameters(), 0.1), steps=500, batch=64, seed=seed)


@RUNS.well(at_most=0.5)
def head_first(seed: int) -> Outcome:
    """For a third of the run the head alone is trained, and then all."""
    net = film(seed, 4)
    own, frozen = net.parameters(), only(net.parameters(), "0.")
    kept = {name: a.copy() for name, a in frozen.items()}

    def hold(step: int) -> None:
        for name in frozen if step < 100 else ():
            own[name][...] = kept[name]

    return fit(net, turning(5), optim.SGD(own, 0.2, momentum=0.9), steps=300, batch=8, seed=seed, after=hold)


@RUNS.well(at_most=0.05)
def hinge_to_nothing(seed: int) -> Outcome:
    """A hinge loss on what can be told apart: it reaches exactly 0, and so does every gradient."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> Any:
        t = 2 * rng.integers(2, size=(n, 1)) - 1
        return (rng.uniform(-1, 1, (n, 6)) + 1.5 * t).astype(np.float32), t.astype(np.float32)

    def hinge(y: Array, t: Array) -> tuple[float, Array]:
        left = np.maximum(1 - y * t, 0)
        return float(left.mean()), (-t * (left > 0) / t.size).astype(y.dtype)

    net = mlp((6, 16, 1), "relu", seed)
    return fit(net, Task(draw, hinge), optim.SGD(net.parameters(), 0.2), steps=300, seed=seed)


@RUNS.well(at_most=0.45)
def grey_pixels_as_chances(seed: int) -> Outcome:
    """Cross entropy of grey pixels: its floor is their own entropy, and the loss can hardly halve."""
    net = mlp((64, 16, 64), "elu", seed)
    task = Task(digits_again().draw, losses.binary_cross_entropy_with_logits)
    return fit(net, task, optim.Adam(net.parameters(), 5e-3), steps=300, seed=seed)


@RUNS.well(at_most=0.3)
def targets_of_a_ten_thousandth(seed: int) -> Outcome:
    """Targets in units that make them 1e-4; Adam at 3e-5 with a small epsilon, and a last layer to suit."""
    net = mlp((5, 200, 1), "tanh", seed)
    net.parameters()["2.weight"][...] *= 1e-4
    net.parameters()["0.bias"][...] = rng_of(seed + 9).uniform(-2, 2, 200)
    net.parameters()["0.weight"][...] *= 5
    return fit(net, ridges(size=1e-4), optim.Adam(net.parameters(), 3e-5, eps=1e-12), steps=600, batch=64, seed=seed)


@RUNS.well(at_most=0.2, seeds=2)
def switches(seed: int) -> Outcome:
    """Hidden hard tanh units whose inputs are -1 and 1: most are at a bound for most examples, and each at both."""
    net = mlp((6, 32, 2), "hard_tanh", seed, gain=4.0)
    return fit(net, parity(2), optim.Adam(net.parameters(), 1e-2), steps=300, batch=64, seed=seed)


@RUNS.well(at_most=0.3)
def corner_lit_thirty_frames_ago(seed: int) -> Outcome:
    """Forget biases of 5, input biases of -1 and thirty frames of noise: the gates are nearly shut, and shall be."""
    rng = rng_of(seed)
    cell = layers.ConvLSTM2D(1, 8, 3, return_sequences=False, rng=rng)
    cell.parameters()["bias_l0"][:8], cell.parameters()["bias_l0"][8:16] = -1, 5
    net = layers.Sequential([cell, layers.Conv2D(8, 4, 5, padding="valid", rng=rng), MeanOverImage()])
    return fit(net, seen_first(30), optim.Adam(net.parameters(), 1e-2), steps=150, batch=12, seed=seed)


@RUNS.well(at_most=0.6)
def a_dozen_steps(seed: int) -> Outcome:
    """Logistic regression on wines, twelve steps of the whole table."""
    net = layers.Sequential([layers.Dense(13, 3, rng=rng_of(seed))])
    return fit(net, table("wine"), optim.SGD(net.parameters(), 0.5), steps=12, batch=133, seed=seed)
