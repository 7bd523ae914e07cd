"""What the runs of health_study.py are made of: tasks, a training loop, and the lists that runs put themselves on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn import datasets

from fusecell import health, layers, losses

Array = Any
Draw = Callable[[np.random.Generator, int, bool], tuple[Array, Array]]
"""(rng, examples, whether for the test) -> inputs, targets. Sequences are [T, B, ...]."""

_HELD_OUT = 300


@dataclass(frozen=True)
class Task:
    """Data and their loss. What is not drawn afresh keeps examples back for the test."""

    draw: Draw
    loss: Callable[[Array, Array], tuple[float, Array]] = losses.mean_squared

    def test(self) -> tuple[Array, Array]:
        """The same examples for every run."""
        return self.draw(np.random.default_rng(90210), _HELD_OUT, True)

    def score(self, y: Array, t: Array) -> float:
        """Lower is better: squared error as a share of the targets' variance, or the mean cross entropy."""
        if self.loss is losses.mean_squared:
            return float(np.mean(np.square(y.astype(np.float64) - t)) / np.var(t))
        return self.loss(y, t)[0]


@dataclass(frozen=True)
class Outcome:
    """A run that is over: what watched it, and how well it did on examples that it had not seen."""

    monitor: health.Monitor
    score: float


@dataclass(frozen=True)
class Healthy:
    """A run that trains well: `score` at most `at_most`, or the run is not what its name says."""

    name: str
    words: str
    run: Callable[[int], Outcome]
    at_most: float
    seeds: int = 1


@dataclass(frozen=True)
class Sick:
    """A run that fails, and its cured twin, run(cured, seed): sick is what scores `worse` times the twin's or more."""

    name: str
    words: str
    run: Callable[[bool, int], Outcome]
    right: frozenset[str]  # any one of these verdicts names the illness; none: no rule is made for it
    worse: float = 1.2
    seeds: int = 1


@dataclass
class Runs:
    """All that were written."""

    healthy: list[Healthy] = field(default_factory=list)
    sick: list[Sick] = field(default_factory=list)

    def well(self, *, at_most: float, seeds: int = 1) -> Callable[[Any], Any]:
        """Decorates run(seed)."""

        def keep(run: Any) -> Any:
            self.healthy.append(Healthy(run.__name__, _words(run), run, at_most, seeds))
            return run

        return keep

    def ill(self, *right: str, worse: float = 1.2, seeds: int = 1) -> Callable[[Any], Any]:
        """Decorates run(cured, seed)."""

        def keep(run: Any) -> Any:
            self.sick.append(Sick(run.__name__, _words(run), run, frozenset(right), worse, seeds))
            return run

        return keep


def _words(run: Any) -> str:
    return " ".join(run.__doc__.split())


# ---------------------------------------------------------------------------------------------------------- training
def fit(
    net: layers.Layer,
    task: Task,
    optimizer: Any,
    *,
    steps: int = 200,
    batch: int = 32,
    seed: int = 0,
    loss: Callable[[Array, Array], tuple[float, Array]] | None = None,
    spoil: Callable[[int, Array, Array], tuple[Array, Array]] | None = None,
    rate: Callable[[int], float] | None = None,
    l2: float = 0.0,
    after: Callable[[int], None] | None = None,
) -> Outcome:
    """Train a fusecell layer. spoil changes what is trained on, never the test; the optimiser may have some parameters
    alone. Numbers that are not finite are let through, as a script that does not look would."""
    rng, monitor = np.random.default_rng([11, seed]), health.Monitor(net)
    with np.errstate(all="ignore"):
        for step in range(steps):
            x, t = task.draw(rng, batch, False)
            if spoil is not None:
                x, t = spoil(step, x, t)
            if rate is not None:
                optimizer.lr = rate(step)
            y = net.forward(x)
            value, dy = (loss or task.loss)(y, t)
            net.backward(dy)
            penalty, more = losses.l2_penalty(net.parameters(), l2)
            gradients = losses.add_gradients(net.gradients(), more)
            monitor.observe(value + penalty, outputs=y, targets=t, penalty=penalty if l2 else None)
            optimizer.step({name: gradients[name] for name in optimizer.parameters})
            if after is not None:
                after(step)
        x, t = task.test()
        return Outcome(monitor, task.score(net.eval().forward(x), t))


def rng_of(seed: int) -> np.random.Generator:
    """For a network's first weights."""
    return np.random.default_rng([5, seed])


def only(parameters: Mapping[str, Array], *prefixes: str) -> dict[str, Array]:
    """Those whose names begin so."""
    return {name: array for name, array in parameters.items() if name.startswith(prefixes)}


class Flat(layers.Layer):
    """[N, ...] -> [N, features]."""

    def forward(self, x: Array) -> Array:
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self._shape)


def mlp(sizes: Sequence[int], activation: str, seed: int, *, norm: bool = False) -> layers.Sequential:
    """Dense layers with an activation, and normalisation before it, between them."""
    made: list[layers.Layer] = []
    rng = rng_of(seed)
    for fan_in, fan_out in pairwise(sizes[:-1]):
        made.append(layers.Dense(fan_in, fan_out, rng=rng))
        made += [layers.BatchNorm(fan_out)] if norm else []
        made.append(layers.Activation(activation))
    return layers.Sequential([*made, layers.Dense(sizes[-2], sizes[-1], rng=rng)])


# ------------------------------------------------------------------------------------------------------------- tables
@lru_cache(None)
def _table(name: str) -> tuple[Array, Array]:
    x, t = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(x))
    return x[order].astype(np.float32), t[order]


def table(name: str, *, scaled: bool = True) -> Task:
    """wine, breast_cancer, diabetes, digits: of scikit-learn, three quarters to train on."""
    x, t = _table(name)
    cut = 3 * len(x) // 4
    if scaled:
        x = (x - x[:cut].mean(axis=0)) / (x[:cut].std(axis=0) + 1e-3)
    numbers = t.dtype.kind == "f"
    t = ((t - t[:cut].mean()) / t[:cut].std()).astype(np.float32)[:, None] if numbers else t.astype(np.int64)

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        which = slice(cut, None) if test else rng.integers(cut, size=n)
        return x[which], t[which]

    return Task(draw, losses.mean_squared if numbers else losses.softmax_cross_entropy)


def images() -> Task:
    """Handwritten digits, [B, 1, 8, 8], and their labels."""
    plain = table("digits", scaled=False)

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x, t = plain.draw(rng, n, test)
        return x.reshape(-1, 1, 8, 8) / 16, t

    return Task(draw, losses.softmax_cross_entropy)


def rows() -> Task:
    """The same digits, read row by row: [8, B, 8]."""
    pictures = images()

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x, t = pictures.draw(rng, n, test)
        return np.ascontiguousarray(x[:, 0].transpose(1, 0, 2)), t

    return Task(draw, losses.softmax_cross_entropy)


# ---------------------------------------------------------------------------------------------------------- functions
def surface(noise: float = 0.0, size: float = 1.0, shift: float = 0.0) -> Task:
    """A smooth function of six numbers; size and shift are of the targets."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 6)).astype(np.float32)
        y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.7 * x[:, 3]
        y = y[:, None] + noise * rng.standard_normal((n, 1))
        return x, (size * y + shift).astype(np.float32)

    return Task(draw)


def plane(noise: float, features: int = 8) -> Task:
    """A linear function of variance 1, and noise of variance noise^2."""
    direction = np.random.default_rng(8).standard_normal(features)
    direction /= np.linalg.norm(direction)

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.standard_normal((n, features))
        y = x @ direction + noise * rng.standard_normal(n)
        return x.astype(np.float32), y[:, None].astype(np.float32)

    return Task(draw)


def spirals() -> Task:
    """Two arms, two classes."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        label, r = rng.integers(2, size=n), rng.uniform(0.1, 1, n)
        angle = 5 * r + np.pi * label
        x = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1) + 0.01 * rng.standard_normal((n, 2))
        return x.astype(np.float32), label

    return Task(draw, losses.softmax_cross_entropy)


# ---------------------------------------------------------------------------------------------------------- sequences
def recall(steps: int, symbols: int = 3) -> Task:
    """Which symbol came first? Noise follows it. [T, B, symbols + 1]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        label = rng.integers(symbols, size=n)
        x = np.zeros((steps, n, symbols + 1), np.float32)
        x[0, np.arange(n), label] = 1
        x[1:, :, symbols] = 0.3 * rng.standard_normal((steps - 1, n))
        return x, label

    return Task(draw, losses.softmax_cross_entropy)


def adding(steps: int) -> Task:
    """The sum of the two numbers that are marked, one in each half (Hochreiter and Schmidhuber 1997)."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = np.zeros((steps, n, 2), np.float32)
        x[..., 0] = rng.uniform(-1, 1, (steps, n))
        marked = np.stack([rng.integers(steps // 2, size=n), rng.integers(steps // 2, steps, size=n)])
        x[marked, np.arange(n), 1] = 1
        return x, (x[..., 0] * x[..., 1]).sum(axis=0)[:, None]

    return Task(draw)


def recent(steps: int, noise: float = 0.0) -> Task:
    """The sum of the last three numbers of many, and noise."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.uniform(-1, 1, (steps, n, 1)).astype(np.float32)
        return x, (x[-3:].sum(axis=0) + noise * rng.standard_normal((n, 1))).astype(np.float32)

    return Task(draw)


def waves(steps: int, ahead: int = 1) -> Task:
    """The next value of a sine, at every step."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        t = np.arange(steps + ahead)[:, None]
        wave = np.sin(t * rng.uniform(0.3, 1.0, n) + rng.uniform(0, 2 * np.pi, n)).astype(np.float32)[..., None]
        return wave[:-ahead], wave[ahead:]

    return Task(draw)


def _blobs(rng: np.random.Generator, frames: int, n: int, side: int) -> Array:
    """A soft spot that moves straight and comes in again on the other side: [T, B, 1, side, side]."""
    place, speed = rng.uniform(0, side, (n, 2)), rng.uniform(-1, 1, (n, 2))
    at = place + np.arange(frames)[:, None, None] * speed
    axis = np.arange(side)
    apart = np.abs((axis - at[..., None]) % side)
    apart = np.minimum(apart, side - apart)
    spot = np.exp(-np.square(apart) / 3)
    return (spot[:, :, 0, :, None] * spot[:, :, 1, None, :]).astype(np.float32)[:, :, None]


def blobs(steps: int, side: int = 8, size: float = 1.0) -> Task:
    """The next frame of a spot in motion; size: of the inputs."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        frames = _blobs(rng, steps + 1, n if not test else 64, side)
        return size * frames[:-1], frames[1:]

    return Task(draw)


def first_frame(steps: int, side: int = 6) -> Task:
    """The first frame, asked for after many of noise: [T, B, 1, side, side] -> [B, 1, side, side]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        n = n if not test else 64
        x = (0.3 * rng.standard_normal((steps, n, 1, side, side))).astype(np.float32)
        x[0] = 2 * _blobs(rng, 1, n, side)[0]
        return x, x[0].copy()

    return Task(draw)
