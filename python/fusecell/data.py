"""Sequences of frames to train on: digits in motion made from real scans, or the user's own file.

Frames are uint8 in memory and float32 or float64 in [0, 1] in a batch. Every batch is a function of (seed, step)
alone, so a run that was stopped and goes on sees exactly the batches it would have seen.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusecell._extras import require
from fusecell._typing import Array

_HELD_OUT = 0.2  # of the scans, sequences or time
_MEAN_OF = 512  # sequences of digits that give their mean frame
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class DataError(ValueError):
    """What was expected of the user's data, what came, and how to mend it."""


class Source(Protocol):
    """Where sequences come from. Frames are [T, B, 1, H, W] in [0, 1]."""

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    def description(self) -> str:
        """One line for the person who trains."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data: a resumed run compares it."""

    @property
    def sequences(self) -> int | None:
        """How many training sequences there are; None: as many as one draws."""

    def training_batch(self, step: int, batch: int, dtype: npt.DTypeLike) -> Array:
        """The batch of this step: a function of the seed and the step alone."""

    def held_out(self, count: int, dtype: npt.DTypeLike) -> Array:
        """At most `count` sequences, always the same, of material that training never sees."""

    def mean_frame(self) -> Array:
        """[H, W] float64: the mean of the training frames."""


# ------------------------------------------------------------------------------------------------- digits in motion


@dataclass(frozen=True)
class Motion:
    """How digits move: frame size in pixels, digits per sequence, pixels per pixel of the scan, pixels per step."""

    frame: tuple[int, int] = (32, 32)
    digits: int = 1
    scale: float = 2.0
    speed: tuple[float, float] = (0.8, 2.0)

    def __post_init__(self) -> None:
        if min(self.frame) <= self.scale * 8:
            raise ValueError(f"frame: expected sides above {self.scale * 8:g} (a scan's own), got {self.frame}")


class MovingDigits:
    """Handwritten digits that cross a frame and bounce off its walls (as Moving MNIST, Srivastava et al. 2015).

    The digits are the 1797 real 8 x 8 scans that scikit-learn ships (Alpaydin and Kaynak 1998, UCI). The first 80 %
    are for training and the last 20 % held out; the file is in the order of its writers, so most held-out hands are
    new ones. Motion is smooth (sub-pixel): a scan is drawn by linear interpolation at its true position.
    """

    sequences = None

    def __init__(self, length: int, seed: int, motion: Motion | None = None) -> None:
        self.length, self.seed, self.motion = length, seed, motion or Motion()
        scans = load_scans()
        first_held_out = round(len(scans) * (1.0 - _HELD_OUT))
        self._training, self._held_out = scans[:first_held_out], scans[first_held_out:]

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.motion.frame

    @property
    def description(self) -> str:
        """One line for the person who trains."""
        m, (height, width) = self.motion, self.motion.frame
        what = "1 digit" if m.digits == 1 else f"{m.digits} digits"
        scans = f"{len(self._training)} scans to train on, {len(self._held_out)} others held out"
        return f"{what} in motion, {height}x{width} pixels; {scans}"

    @property
    def fingerprint(self) -> str:
        """Equal for equal data."""
        return fingerprint(self._training, self._held_out) + f" {self.motion}"

    def training_batch(self, step: int, batch: int, dtype: npt.DTypeLike) -> Array:
        """[T, B, 1, H, W], drawn afresh for every step."""
        rng = np.random.default_rng((self.seed, 1, step))
        return unit_interval(moving_digits(rng, self._training, batch, self.length, self.motion), dtype)

    def held_out(self, count: int, dtype: npt.DTypeLike) -> Array:
        """[T, count, 1, H, W] from the held-out scans; the same for every seed, so that runs compare."""
        rng = np.random.default_rng((2, count))
        return unit_interval(moving_digits(rng, self._held_out, count, self.length, self.motion), dtype)

    def mean_frame(self) -> Array:
        """[H, W] float64: the mean over `_MEAN_OF` sequences of the training scans."""
        rng = np.random.default_rng(3)
        sample = moving_digits(rng, self._training, _MEAN_OF, self.length, self.motion)
        return _mean_frame(sample[:, :, 0])


def load_scans() -> Array:
    """The scans of scikit-learn's `load_digits`, [1797, 8, 8], float64 in [0, 1]."""
    datasets = require("sklearn.datasets", "the default data (digits in motion)")
    scans: Array = datasets.load_digits().images / 16.0
    return scans


def moving_digits(rng: np.random.Generator, scans: Array, batch: int, frames: int, motion: Motion) -> Array:
    """uint8 [T, B, 1, H, W]: `motion.digits` scans [n, n] per sequence, brightest on top where they overlap.

    Places are uniform over the frame, directions over the circle, speeds over `motion.speed`.
    """
    count = (batch, motion.digits)
    chosen = scans[rng.integers(0, len(scans), count)]
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    speed = rng.uniform(*motion.speed, count)
    time = np.arange(frames)[:, None, None]
    weights = []
    for size, velocity in zip(motion.frame, (speed * np.sin(angle), speed * np.cos(angle)), strict=True):
        room = size - motion.scale * scans.shape[-1]
        start = rng.uniform(0.0, room, count)
        weights.append(_tents(bounce(start + velocity * time, room), size, scans.shape[-1], motion.scale))
    rows, columns = weights
    # einsum's own loops, not a BLAS: the same bits with any number of threads.
    drawn = np.einsum("tbdyj,tbdjx->tbdyx", rows, np.einsum("bdij,tbdxj->tbdix", chosen, columns))
    image = drawn.max(axis=2)[:, :, None]
    pixels: Array = np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    return pixels


def bounce(position: Array, room: float) -> Array:
    """A free path folded into [0, room]: what walls do to it. Any shape."""
    folded: Array = np.abs((position + room) % (2.0 * room) - room)
    return folded


def _tents(corner: Array, size: int, taps: int, scale: float) -> Array:
    """[..., size, taps]: linear interpolation weights of a scan's pixels on the frame's, the scan at `corner`."""
    pixel = np.arange(size)[:, None] + 0.5
    centre = corner[..., None, None] + scale * (np.arange(taps) + 0.5)
    weights: Array = np.maximum(0.0, 1.0 - np.abs(pixel - centre) / scale)
    return weights


# -------------------------------------------------------------------------------------------------- the user's own


class Clips:
    """Windows of `length` frames cut from the user's own frames, uint8 [N, T, H, W].

    Held out: the last fifth of the sequences, or, where there is only one, the last fifth of its time. No frame is
    in both parts.
    """

    def __init__(self, frames: Array, length: int, seed: int, name: str = "data") -> None:
        self.length, self.seed, self.name = length, seed, name
        self._training, self._held_out = split_clips(frames, length)
        self._windows = window_starts(self._training, length)
        self._held_out_windows = window_starts(self._held_out, length)

    @property
    def sequences(self) -> int | None:
        """How many training windows there are."""
        return len(self._windows)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self._training.shape[2], self._training.shape[3]

    @property
    def description(self) -> str:
        """One line for the person who trains."""
        height, width = self.frame_shape
        counts = f"{len(self._windows)} windows to train on, {len(self._held_out_windows)} held out"
        return f"{self.name}: {height}x{width} pixels, {counts}, {self.length} frames each"

    @property
    def fingerprint(self) -> str:
        """Equal for equal data."""
        return fingerprint(self._training, self._held_out)

    def training_batch(self, step: int, batch: int, dtype: npt.DTypeLike) -> Array:
        """[T, B, 1, H, W]: each window once an epoch, in an order shuffled by (seed, epoch)."""
        places = range(step * batch, (step + 1) * batch)
        orders: dict[int, Array] = {}
        picked = []
        for epoch, place in (divmod(p, len(self._windows)) for p in places):
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self.seed, 1, epoch)).permutation(len(self._windows))
            picked.append(int(orders[epoch][place]))
        return self._cut(self._training, self._windows[picked], dtype)

    def held_out(self, count: int, dtype: npt.DTypeLike) -> Array:
        """[T, at most count, 1, H, W], spread evenly over the held-out windows."""
        total = len(self._held_out_windows)
        picked = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
        return self._cut(self._held_out, self._held_out_windows[picked], dtype)

    def mean_frame(self) -> Array:
        """[H, W] float64: the mean over all training frames."""
        return _mean_frame(self._training)

    def _cut(self, frames: Array, starts: Array, dtype: npt.DTypeLike) -> Array:
        clips = np.stack([frames[n, t : t + self.length] for n, t in starts], axis=1)
        return unit_interval(clips[:, :, None], dtype)


def split_clips(frames: Array, length: int) -> tuple[Array, Array]:
    """(training, held out) of [N, T, H, W]. Raises DataError if either would hold no window of `length` frames."""
    count, time = frames.shape[:2]
    if count > 1:
        if time < length:
            raise DataError(
                f"data: expected sequences of at least {length} frames (input + horizon), got {time}; "
                f"ask for fewer with --input-frames and --horizon"
            )
        kept = max(1, count - max(1, round(count * _HELD_OUT)))
        return frames[:kept], frames[kept:]
    held = max(length, round(time * _HELD_OUT))
    if time - held < length:
        raise DataError(
            f"data: expected at least {2 * length} frames ({length} to train on and {length} held out), got {time}; "
            f"ask for shorter windows with --input-frames and --horizon"
        )
    return frames[:, : time - held], frames[:, time - held :]


def window_starts(frames: Array, length: int) -> Array:
    """[K, 2] of (sequence, first frame): every window of `length` frames."""
    count, time = frames.shape[:2]
    grid = np.meshgrid(np.arange(count), np.arange(time - length + 1), indexing="ij")
    return np.stack([axis.ravel() for axis in grid], axis=1)


def load_clips(path: str | os.PathLike[str], axes: str = "NTHW", max_side: int = 64, multiple: int = 1) -> Array:
    """uint8 [N, T, H, W] from the user's file.

    .npy or .npz (never unpickled): [N, T, H, W], or [T, H, W] for one sequence; axes="TNHW" for files like Moving
    MNIST's own. Anything else is read through imageio: a GIF or a video, made grey. Frames whose longer side
    exceeds `max_side` are averaged down by a whole number; the edges are cut to a `multiple`.
    Raises DataError for a file that cannot be used, with what was expected, what came and how to mend it.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"--data: expected a file, found none at {file}")
    if file.suffix.lower() in (".npy", ".npz"):
        frames = _as_sequences(_read_array(file), axes, file)
        return shrink(_to_bytes(frames, file), max_side, multiple)
    small = [shrink(frame[None, None], max_side, multiple)[0, 0] for frame in _read_video(file)]
    if not small:
        raise DataError(f"{file}: expected a GIF or a video, got a file without frames")
    if len({frame.shape for frame in small}) > 1:
        raise DataError(f"{file}: expected frames of one size, got {sorted({f.shape for f in small})}")
    return np.stack(small)[None]


def shrink(frames: Array, max_side: int, multiple: int) -> Array:
    """[..., H, W] averaged over k x k pixels so that no side exceeds `max_side`, then cut to a `multiple`."""
    height, width = frames.shape[-2:]
    k = -(-max(height, width) // max_side)
    new = [side // k // multiple * multiple for side in (height, width)]
    if min(new) == 0:
        raise DataError(
            f"data: frames of {height}x{width} pixels leave nothing when shrunk {k} times and cut to a multiple of "
            f"{multiple}; raise --max-side or lower --patch"
        )
    cut = frames[..., : new[0] * k, : new[1] * k]
    if k == 1:
        return cut
    blocks = cut.reshape(*cut.shape[:-2], new[0], k, new[1], k)
    small: Array = np.round(blocks.mean(axis=(-3, -1))).astype(frames.dtype)
    return small


def _read_array(file: Path) -> Array:
    try:
        with open(file, "rb") as opened:  # np.load leaves a file open that it refuses
            loaded: Any = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if len(names) == 1:
                return np.asarray(loaded[names[0]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}: expected an array of numbers as np.save or np.savez writes it, got something else ({error}); "
            f"pickled files are never opened: save with np.save(path, array)"
        ) from None
    raise DataError(f"{file}: expected one array, got {names}; save with np.savez(path, frames=array)")


def _as_sequences(array: Array, axes: str, file: Path) -> Array:
    """[N, T, H, W]; a channel axis of one is dropped."""
    if array.ndim == 5 and 1 in (array.shape[2], array.shape[4]):
        array = array[:, :, 0] if array.shape[2] == 1 else array[..., 0]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise DataError(
            f"{file}: expected [N, T, H, W] or [T, H, W] (grey frames), got {list(array.shape)}; "
            f"make colour grey with array.mean(axis=-1)"
        )
    if array.size == 0:
        raise DataError(f"{file}: expected frames, got an empty array {list(array.shape)}")
    if array.shape[3] in (3, 4) and min(array.shape[1:3]) > 4:
        raise DataError(
            f"{file}: {list(array.shape)} looks like colour, [T, H, W, 3]; expected grey: array.mean(axis=-1)"
        )
    ordered: Array = array if axes == "NTHW" else array.swapaxes(0, 1)
    return ordered


def _to_bytes(array: Array, file: Path) -> Array:
    """uint8: bool as 0 and 255, bytes as they are, anything else scaled from its own least and greatest value."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{file}: expected numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise DataError(f"{file}: expected finite numbers, got NaN or infinity; mend with np.nan_to_num(array)")
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    if low == high:
        raise DataError(f"{file}: expected a picture that changes, got {low} in every pixel")
    scaled: Array = np.round((array.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.uint8)
    return scaled


def _read_video(file: Path) -> Iterator[Array]:
    """Grey uint8 [H, W] frames through imageio."""
    imageio = require("imageio.v3", f"reading {file.name}")
    try:
        for frame in imageio.imiter(file):
            yield _grey(np.asarray(frame))
    except DataError:
        raise
    except Exception as error:  # imageio's plugins raise whatever theirs do
        first_line = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{file}: expected .npy, .npz, a GIF or a video that imageio reads, got a file it refuses "
            f"({type(error).__name__}: {first_line}); for video: pip install 'imageio[ffmpeg]'"
        ) from None


def _grey(frame: Array) -> Array:
    if frame.dtype == np.uint16:
        frame = frame / 257.0
    if frame.ndim == 3 and frame.shape[2] >= 3:
        frame = np.einsum("hwc,c->hw", frame[..., :3].astype(np.float64), np.array(_LUMA))
    elif frame.ndim == 3:
        frame = frame[..., 0]
    pixels: Array = np.round(frame).astype(np.uint8)
    return pixels


def unit_interval(frames: Array, dtype: npt.DTypeLike) -> Array:
    """uint8 to dtype, 0 to 255 becoming 0 to 1."""
    scaled: Array = frames.astype(dtype) / np.asarray(255.0, dtype)
    return scaled


def _mean_frame(frames: Array) -> Array:
    """The mean of [*, *, H, W] bytes, scaled to [0, 1]. Whole numbers are summed: exact in any order."""
    total = frames.sum(axis=(0, 1), dtype=np.int64)
    mean: Array = total / (255.0 * frames.shape[0] * frames.shape[1])
    return mean


def fingerprint(*arrays: Array) -> str:
    """A SHA-256 over shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
