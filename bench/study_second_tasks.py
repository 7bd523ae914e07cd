"""Tasks, layers and losses of the second set's runs (study_second_*.py): other ones than the first set's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import study_tasks
from study_tasks import Outcome, Task, table

from fusecell import health, layers, losses

Array = Any
_SEED = 40  # what is added to a run's seed: the first set's are below it


def rng_of(seed: int) -> np.random.Generator:
    """For a network's first weights."""
    return study_tasks.rng_of(seed + _SEED)


def fit(net: layers.Layer, task: Task, optimizer: Any, *, seed: int, **options: Any) -> Outcome:
    """study_tasks.fit with seeds of this set's own."""
    return study_tasks.fit(net, task, optimizer, seed=seed + _SEED, **options)


def mlp(sizes: Sequence[int], activation: str, seed: int, *, gain: float = 1.0) -> layers.Sequential:
    """Dense layers with activations between them; gain: of the weights before an activation."""
    made: list[layers.Layer] = []
    rng = rng_of(seed)
    for fan_in, fan_out in pairwise(sizes[:-1]):
        made += [layers.Dense(fan_in, fan_out, rng=rng), layers.Activation(activation)]
        made[-2].parameters()["weight"][...] *= gain
    return layers.Sequential([*made, layers.Dense(sizes[-2], sizes[-1], rng=rng)])


def rnn(seed: int, inputs: int, hidden: int, out: int, *, sequences: bool = False) -> layers.Sequential:
    """A plain recurrent layer and a linear one."""
    rng = rng_of(seed)
    cell = layers.SimpleRNN(inputs, hidden, return_sequences=sequences, rng=rng)
    return layers.Sequential([cell, layers.Dense(hidden, out, rng=rng)])


def film(seed: int, hidden: int = 6, **options: Any) -> layers.Sequential:
    """A ConvLSTM and a 3x3 readout."""
    rng = rng_of(seed)
    width = hidden * (2 if options.get("bidirectional") else 1)
    return layers.Sequential([layers.ConvLSTM2D(1, hidden, 3, rng=rng, **options), layers.Conv2D(width, 1, 3, rng=rng)])


class Residual(layers.Composite):
    """x + out(tanh(into(x))); scale: of the first weights of `out`, 0 for a block that begins as nothing."""

    def __init__(self, width: int, hidden: int, rng: np.random.Generator, scale: float = 1.0) -> None:
        super().__init__()
        self.into, self.bend = layers.Dense(width, hidden, rng=rng), layers.Activation("tanh")
        self.out = layers.Dense(hidden, width, rng=rng)
        self.out.parameters()["weight"][...] *= scale

    def children(self) -> dict[str, layers.Layer]:
        return {"into": self.into, "bend": self.bend, "out": self.out}

    def forward(self, x: Array) -> Array:
        return x + self.out.forward(self.bend.forward(self.into.forward(x)))

    def backward(self, dy: Array) -> Array:
        return dy + self.into.backward(self.bend.backward(self.out.backward(dy)))


class Dropout(layers.Layer):
    """In training each value is 0 with this probability, and the others are as much larger."""

    def __init__(self, probability: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.kept, self._rng = 1.0 - probability, rng

    def forward(self, x: Array) -> Array:
        self._mask = np.ones_like(x)
        if self.training:
            self._mask = ((self._rng.random(x.shape) < self.kept) / self.kept).astype(x.dtype)
        return x * self._mask

    def backward(self, dy: Array) -> Array:
        return dy * self._mask


class MeanOverImage(layers.Layer):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: Array) -> Array:
        self._shape = x.shape
        return x.mean(axis=(2, 3))

    def backward(self, dy: Array) -> Array:
        share = dy / np.float32(self._shape[2] * self._shape[3])
        return np.ascontiguousarray(np.broadcast_to(share[:, :, None, None], self._shape))


class ClassesFirst(layers.Layer):
    """[T, B, K] -> [T * B, K]: each step is an example of its own."""

    def forward(self, x: Array) -> Array:
        self._shape = x.shape
        return x.reshape(-1, x.shape[-1])

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self._shape)


# ------------------------------------------------------------------------------------------------------------- losses
def huber(y: Array, t: Array) -> tuple[float, Array]:
    """Squared up to 1, absolute from there."""
    d = y - t
    terms = np.where(np.abs(d) < 1, 0.5 * d * d, np.abs(d) - 0.5)
    return float(terms.mean()), (np.clip(d, -1, 1) / d.size).astype(y.dtype)


def quantile(q: float) -> Callable[[Array, Array], tuple[float, Array]]:
    """The loss whose least value is at that quantile."""

    def loss(y: Array, t: Array) -> tuple[float, Array]:
        d = t - y
        return float(np.maximum(q * d, (q - 1) * d).mean()), (np.where(d > 0, -q, 1 - q) / d.size).astype(y.dtype)

    return loss


def smoothed(share: float) -> Callable[[Array, Array], tuple[float, Array]]:
    """Cross entropy with that share of every label spread over all classes."""

    def loss(y: Array, t: Array) -> tuple[float, Array]:
        p = np.exp(y - y.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        wanted = np.full_like(p, share / p.shape[1])
        wanted[np.arange(len(t)), t] += 1 - share
        return float(-(wanted * np.log(p + 1e-30)).sum(axis=1).mean()), ((p - wanted) / len(t)).astype(y.dtype)

    return loss


# ------------------------------------------------------------------------------------------------------------ numbers
def ridges(tail: float | None = None, size: float = 1.0, shift: float = 0.0) -> Task:
    """A sum of bends over five numbers; the noise, of Student's t with `tail` degrees, is in training alone."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.uniform(-2, 2, (n, 5)).astype(np.float32)
        y = np.abs(x[:, 0]) + np.tanh(3 * x[:, 1]) - 0.5 * x[:, 2] + 0.3 * x[:, 3] * x[:, 4]
        if tail is not None and not test:
            y = y + 0.5 * rng.standard_t(tail, n)
        return x, (size * y[:, None] + shift).astype(np.float32)

    return Task(draw)


def sorting(length: int = 5) -> Task:
    """The same numbers in order."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.uniform(-1, 1, (n, length)).astype(np.float32)
        return x, np.sort(x, axis=1)

    return Task(draw)


def spikes(outputs: int = 30, share: float = 0.02) -> Task:
    """Targets that are 0 but for one in fifty: where an input of the same place is far out."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.uniform(-1, 1, (n, outputs)).astype(np.float32)
        return x, np.where(x > 1 - 2 * share, 1.0, 0.0).astype(np.float32)

    return Task(draw)


def digits_again() -> Task:
    """Digits as inputs and as targets, 0 to 1."""
    digits = table("digits", scaled=False)

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x, _ = digits.draw(rng, n, test)
        return x / 16, x / 16

    return Task(draw)


# ------------------------------------------------------------------------------------------------------------ classes
def ordinal(noise: float = 0.3) -> Task:
    """Five grades of a noisy score."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.standard_normal((n, 7)).astype(np.float32)
        score = x[:, 0] + x[:, 1] - x[:, 2] + noise * rng.standard_normal(n)
        return x, np.digitize(score, [-2.2, -0.7, 0.7, 2.2])

    return Task(draw, losses.softmax_cross_entropy)


def rare(share: float = 0.03) -> Task:
    """Two classes, the second of which is rare and lies in a corner, with some overlap."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        label = (rng.random(n) < share).astype(np.int64)
        return (rng.standard_normal((n, 4)) + 1.8 * label[:, None]).astype(np.float32), label

    return Task(draw, losses.softmax_cross_entropy)


def parity(bits: int = 4, of: int = 6) -> Task:
    """Whether an odd number of the first bits is set: nothing is to be gained until they are seen together."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.integers(2, size=(n, of))
        return (2 * x - 1).astype(np.float32), x[:, :bits].sum(axis=1) % 2

    return Task(draw, losses.softmax_cross_entropy)


def next_letter(strength: float, steps: int = 12, letters: int = 8) -> Task:
    """The next letter of a random chain: the stronger, the surer. [T, B, K] -> [T * B]."""
    logits = strength * np.random.default_rng(77).standard_normal((letters, letters))
    chain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        at = np.zeros((steps + 1, n), np.int64)
        at[0] = rng.integers(letters, size=n)
        for k in range(steps):
            at[k + 1] = (rng.random(n)[:, None] > chain[at[k]].cumsum(axis=1)[:, :-1]).sum(axis=1)
        return np.eye(letters, dtype=np.float32)[at[:-1]], at[1:].ravel()

    return Task(draw, losses.softmax_cross_entropy)


# ---------------------------------------------------------------------------------------------------------- sequences
def rising(steps: int, lag: int = 2) -> Task:
    """At each step, whether the number is larger than the one `lag` steps ago: [T, B, 1] -> [T * B]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        x = rng.uniform(-1, 1, (steps, n, 1)).astype(np.float32)
        before = np.concatenate([np.zeros((lag, n)), x[:-lag, :, 0]])
        return x, (x[..., 0] > before).astype(np.int64).ravel()

    return Task(draw, losses.softmax_cross_entropy)


def sum_behind_padding(steps: int, longest: int = 8) -> Task:
    """The mean of a few numbers at the end, with zeros before them: [T, B, 1] -> [B, 1]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        length = rng.integers(3, longest + 1, size=n)
        there = np.arange(steps)[:, None] >= steps - length
        x = np.where(there, rng.uniform(-1, 1, (steps, n)), 0).astype(np.float32)
        return x[..., None], (x.sum(axis=0) / 2)[:, None].astype(np.float32)

    return Task(draw)


def bar(rng: np.random.Generator, frames: int, n: int, side: int, speed: Array) -> Array:
    """A bar, longer to one side, that turns about the middle: [T, B, 1, side, side]."""
    angle = rng.uniform(0, 2 * np.pi, n) + np.arange(frames)[:, None] * speed
    axis = np.arange(side) - (side - 1) / 2
    along = np.cos(angle)[..., None, None] * axis + np.sin(angle)[..., None, None] * axis[:, None]
    across = -np.sin(angle)[..., None, None] * axis + np.cos(angle)[..., None, None] * axis[:, None]
    return np.exp(-np.square(across) - np.square((along - 1.5) / 2)).astype(np.float32)[:, :, None]


def turning(steps: int, side: int = 7, size: float = 1.0, shift: float = 0.0) -> Task:
    """The next frame of the bar, which turns at a speed of its own; size and shift are of the inputs."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        n = n if not test else 64
        seen = bar(rng, steps + 1, n, side, rng.choice([-1, 1], n) * rng.uniform(0.3, 0.7, n))
        return size * seen[:-1] + np.float32(shift), seen[1:]

    return Task(draw)


def which_way(steps: int, side: int = 7) -> Task:
    """Whether the bar turns left or right: [T, B, 1, side, side] -> [B]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        label = rng.integers(2, size=n)
        return bar(rng, steps, n, side, (2 * label - 1) * rng.uniform(0.4, 0.8, n)), label

    return Task(draw, losses.softmax_cross_entropy)


def seen_first(steps: int, side: int = 5) -> Task:
    """Which of four corners was lit in the first frame; noise follows: [T, B, 1, side, side] -> [B]."""

    def draw(rng: np.random.Generator, n: int, test: bool) -> tuple[Array, Array]:
        label = rng.integers(4, size=n)
        x = (0.2 * rng.standard_normal((steps, n, 1, side, side))).astype(np.float32)
        for k, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
            x[0, label == k, 0, row, column] = 2
        return x, label

    return Task(draw, losses.softmax_cross_entropy)


# ----------------------------------------------------------------------------------------------------- written by hand
def by_hand(fault: str, seed: int, *, rate: float = 0.1, new: Any = np.zeros) -> Outcome:
    """A plain RNN in NumPy that adds up five numbers; `fault`: what is wrong with its backward pass."""
    rng, task = np.random.default_rng([17, seed]), sum_behind_padding(8)
    p = {"u": 0.4 * rng.standard_normal((12, 1)), "w": np.linalg.qr(rng.standard_normal((12, 12)))[0] * 0.9}
    p |= {"b": np.zeros(12), "v": 0.3 * rng.standard_normal((1, 12))}

    def forward(x: Array) -> list[Array]:
        h = [np.zeros((x.shape[1], 12))]
        for frame in x:
            h.append(np.tanh(frame @ p["u"].T + h[-1] @ p["w"].T + p["b"]))
        return h

    monitor = health.Monitor()
    with health.poisoned(), np.errstate(all="ignore"):
        for _ in range(300):
            x, t = task.draw(rng, 32, False)
            h = forward(x)
            error = h[-1] @ p["v"].T - t
            g = {name: new(a.shape) for name, a in p.items()}
            g["v"] = 2 * error.T @ h[-1] / len(t)
            dh, norms = 2 * error @ p["v"] / len(t), np.zeros(len(x))
            for k in reversed(range(len(x))):
                norms[k] = np.linalg.norm(dh)
                da = dh * (1 - h[k + 1] ** 2) if fault != "slope" else dh * h[k + 1] * (1 - h[k + 1])
                g["u"] += da.T @ x[k]
                g["w"] += da.T @ h[k]
                g["b"] += da.sum(axis=0)
                monitor.look("dw", g["w"], step=k)
                dh = da @ (p["w"].T if fault == "transpose" else p["w"]) * (0.0 if fault == "cut" else 1.0)
            loss = float(np.mean(error**2))
            monitor.observe(
                loss, parameters=p, gradients=g, outputs=h[-1] @ p["v"].T, targets=t, units={"h": np.stack(h[1:])},
                bounds={"h": (-1, 1)}, steps={"h": norms},
            )  # fmt: skip
            for name, a in p.items():
                a -= (-rate if fault == "sign" else rate) * g[name]
        x, t = task.test()
        return Outcome(monitor, task.score(forward(x)[-1] @ p["v"].T, t))
