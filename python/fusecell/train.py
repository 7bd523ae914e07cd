"""`fusecell train`: frame prediction with a stacked ConvLSTM, from data to pictures.

A run is a function of its settings and its data: with the same ones it prints the same digits, however often it was
interrupted and resumed and with any number of threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fusecell
from fusecell import checkpoint, plots
from fusecell._extras import MissingExtraError, require_installed
from fusecell._typing import Array
from fusecell.baselines import Comparison, compare
from fusecell.data import Clips, Motion, MovingDigits, Source, load_clips
from fusecell.forecast import EncoderForecaster
from fusecell.health import Monitor
from fusecell.losses import mean_squared
from fusecell.optim import Adam

_WATCHED = 32  # held-out sequences looked at while training
_JUDGED = 256  # held-out sequences in the final table
_LOOKS = 25  # how often, over a run, the held-out error is taken
_SAVES = 10  # how often, over a run, a checkpoint is written
_BETAS = (0.9, 0.99)  # a short memory of squares: 0.999 forgets the first gradients too slowly for a short run
_WARM_UP = 20  # steps over which the learning rate rises
_LAST_RATE = 0.02  # the learning rate's last value, as part of its highest


class SettingsError(ValueError):
    """Settings that do not fit each other, the data or the run that is resumed."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers. `data` None: digits in motion."""

    data: str | None = None
    axes: str = "NTHW"
    max_side: int = 64
    digits: int = 1
    frame: int = 32
    input_frames: int = 8
    horizon: int = 8
    hidden: int = 32
    layers: int = 2
    kernel: int = 3
    patch: int = 4
    batch: int = 4
    steps: int = 2000
    lr: float = 5e-3
    clip_norm: float = 0.1
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("max_side", "digits", "frame", "input_frames", "horizon", "hidden", "layers", "kernel", "patch"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{_option(name)}: expected at least 1, got {getattr(self, name)}")
        if self.batch < 1 or self.steps < 0 or self.seed < 0:
            raise SettingsError("--batch must be at least 1, --steps and --seed at least 0")
        if not (self.lr > 0.0 and self.clip_norm > 0.0):
            raise SettingsError(f"--lr and --clip-norm must be above 0, got {self.lr} and {self.clip_norm}")

    @property
    def length(self) -> int:
        """Frames of a whole sequence."""
        return self.input_frames + self.horizon


def open_source(settings: Settings) -> Source:
    """The data that the settings name. Raises DataError, SettingsError or MissingExtraError."""
    if settings.data is not None:
        clips = load_clips(settings.data, settings.axes, settings.max_side, settings.patch)
        return Clips(clips, settings.length, settings.seed, Path(settings.data).name)
    if settings.frame % settings.patch:
        raise SettingsError(f"--frame: expected a multiple of --patch {settings.patch}, got {settings.frame}")
    motion = dataclasses.replace(Motion(), frame=(settings.frame, settings.frame), digits=settings.digits)
    return MovingDigits(settings.length, settings.seed, motion)


class Trainer:
    """A model, its optimiser and all that must be kept so that a run goes on bit for bit."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source
        self.mean_frame = source.mean_frame()
        self.rng = np.random.default_rng((settings.seed, 0))
        self.model = build_model(settings, self.rng, float(self.mean_frame.mean()))
        self.optimizer = Adam(
            self.model.parameters(), settings.lr, _BETAS, clip_norm=settings.clip_norm, error_if_nonfinite=True
        )
        self.step = 0
        self.losses: list[float] = []
        self.held_out: list[tuple[int, float]] = []  # (step, loss)
        self._watched = source.held_out(_WATCHED, settings.dtype)
        self.monitor: Monitor | None = None

    def train_step(self) -> float:
        """One batch forward, backward and into the parameters. Returns its loss, the mean squared error.

        Raises FloatingPointError where the gradient is no longer finite; the parameters are then as before.
        """
        settings = self.settings
        frames = self.source.training_batch(self.step, settings.batch, settings.dtype)
        inputs, target = frames[: settings.input_frames], frames[settings.input_frames :]
        loss, dforecast = mean_squared(self.model.forward(inputs), target)
        self.model.backward(dforecast)
        if self.monitor is not None:
            self.monitor.observe(loss)
        self.optimizer.lr = learning_rate(settings.lr, self.step, settings.steps)
        self.optimizer.step(self.model.gradients())
        self.step += 1
        self.losses.append(loss)
        return loss

    def watch(self) -> float:
        """Take the held-out loss on a few sequences, keep it and return it."""
        inputs, target = self._watched[: self.settings.input_frames], self._watched[self.settings.input_frames :]
        loss, _ = mean_squared(self.forecast(inputs), target)
        self.held_out.append((self.step, loss))
        return loss

    def forecast(self, inputs: Array) -> Array:
        """Frames [horizon, B, 1, H, W] that follow inputs [T, B, 1, H, W].

        A few sequences at a time: as much memory for many as for few.
        """
        pieces = [self.model.forward(inputs[:, n : n + 16]) for n in range(0, inputs.shape[1], 16)]
        return np.concatenate(pieces, axis=1)

    def judge(self) -> tuple[Comparison, Array, Array, Array]:
        """(comparison with the trivial forecasts, inputs, truth, forecast) on the held-out sequences."""
        frames = self.source.held_out(_JUDGED, self.settings.dtype)
        inputs, truth = frames[: self.settings.input_frames], frames[self.settings.input_frames :]
        forecast = self.forecast(inputs)
        return compare(forecast, inputs, truth, self.mean_frame), inputs, truth, forecast

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs."""
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        arrays.update({f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()})
        arrays["history.losses"] = np.array(self.losses, np.float64)
        arrays["history.held_out"] = np.array(self.held_out, np.float64).reshape(-1, 2)
        meta = {
            "program": f"fusecell {fusecell.__version__}",
            "settings": dataclasses.asdict(self.settings),
            "brightness": float(self.mean_frame.mean()),
            "data": self.source.fingerprint,
            "step": self.step,
            "rng": checkpoint.rng_state(self.rng),
        }
        checkpoint.save(path, arrays, meta)

    def restore(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Go back to where `save` was called. Raises SettingsError for other data than it was saved with."""
        if meta["data"] != self.source.fingerprint:
            raise SettingsError("--resume: expected the data that the run began with, got other data; start anew")
        _load_parameters(self.model, arrays)
        self.optimizer.load_state_dict(_part(arrays, "optimizer."))
        self.losses = arrays["history.losses"].tolist()
        self.held_out = [(int(step), loss) for step, loss in arrays["history.held_out"].tolist()]
        self.step = int(meta["step"])
        checkpoint.set_rng_state(self.rng, meta["rng"])


def build_model(settings: Settings, rng: np.random.Generator, brightness: float) -> EncoderForecaster:
    """The network of the settings, as it is before training."""
    return EncoderForecaster(
        (settings.hidden,) * settings.layers,
        horizon=settings.horizon,
        kernel_size=settings.kernel,
        patch=settings.patch,
        brightness=brightness,
        rng=rng,
        dtype=settings.dtype,
    )


def load_forecaster(path: str | os.PathLike[str]) -> EncoderForecaster:
    """The trained network of a run's checkpoint, ready for `forward`.

    Raises FileNotFoundError or ValueError for a file that is none.
    """
    arrays, meta = checkpoint.load(path)
    settings = _settings_of(meta, Path(path))
    model = build_model(settings, np.random.default_rng(0), meta["brightness"])
    _load_parameters(model, arrays)
    return model.eval()


def learning_rate(highest: float, step: int, steps: int) -> float:
    """A short linear rise, then half a cosine down to 2 % (Loshchilov and Hutter 2017, without restarts)."""
    rise = min(1.0, (step + 1) / _WARM_UP)
    fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return highest * rise * (_LAST_RATE + (1.0 - _LAST_RATE) * fall)


# ------------------------------------------------------------------------------------------------------ a whole run


@dataclass(frozen=True)
class Files:
    """Where a run writes."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Parameters, optimiser, history and settings."""
        return self.folder / "checkpoint.safetensors"

    @property
    def loss_curve(self) -> Path:
        """The error over the steps, PNG."""
        return self.folder / "loss_curve.png"

    @property
    def strip(self) -> Path:
        """Input, truth and prediction side by side, PNG."""
        return self.folder / "strip.png"

    @property
    def animation(self) -> Path:
        """The same in motion, GIF."""
        return self.folder / "animation.gif"

    @property
    def report(self) -> Path:
        """The final table."""
        return self.folder / "report.txt"

    @property
    def health(self) -> Path:
        """With --health: what the gradients and units did, and whether anything is wrong."""
        return self.folder / "health.txt"

    @property
    def health_map(self) -> Path:
        """With --health: the gradient's norm over time steps and training steps, PNG."""
        return self.folder / "health.png"


class Interrupted(Exception):
    """Somebody asked the run to stop; the checkpoint is written."""


def run_training(trainer: Trainer, files: Files, stop: Callable[[], bool] = lambda: False) -> None:
    """Train to the last step, with a progress bar; save now and then and at the end.

    `stop` is asked after every step: once it is true, the checkpoint is written and Interrupted raised.
    """
    steps = trainer.settings.steps
    look, keep = max(1, steps // _LOOKS), max(1, steps // _SAVES)
    if not trainer.held_out:
        trainer.watch()
    with _progress_bar(trainer.step, steps) as bar:
        while trainer.step < steps:
            trainer.train_step()
            if trainer.step % look == 0 or trainer.step == steps:
                trainer.watch()
            bar.set_postfix(loss=_recent(trainer.losses), held_out=f"{trainer.held_out[-1][1]:.4g}", refresh=False)
            bar.update()
            if stop():
                trainer.save(files.checkpoint)
                raise Interrupted
            if trainer.step % keep == 0:
                trainer.save(files.checkpoint)
    trainer.save(files.checkpoint)


def write_report(trainer: Trainer, files: Files) -> Comparison:
    """Judge on held-out sequences, draw, and print the table, the verdict and the paths."""
    comparison, inputs, truth, forecast = trainer.judge()
    count, ahead = truth.shape[1], truth.shape[0]
    heading = f"held-out error (mean squared) over {count} sequences, {ahead} steps ahead"
    text = f"{heading}\n\n{comparison.table()}\n\n{comparison.verdict()}"
    files.report.write_text(text + "\n", encoding="utf-8")
    levels = {name: float(errors.mean()) for name, errors in comparison.trivial.items()}
    held_out = np.array(trainer.held_out, np.float64).reshape(-1, 2)
    title = f"error over {ahead} frames ahead: {100 * comparison.ratio:.0f} % of the best trivial forecast's"
    plots.loss_curve(files.loss_curve, np.array(trainer.losses), held_out, levels, title)
    for draw, path, count in ((plots.strip, files.strip, 2), (plots.animation, files.animation, 6)):
        shown = spread_by_error(forecast, truth, count)
        draw(path, inputs[:, shown], truth[:, shown], forecast[:, shown])
    print(f"\n{text}\n")
    for name in ("loss_curve", "strip", "animation", "report", "checkpoint"):
        print(f"{name.replace('_', ' '):>11}: {getattr(files, name)}")
    return comparison


def write_health(monitor: Monitor, files: Files) -> None:
    """The doctor's report and heat map; the verdicts are printed."""
    if not monitor.observations:
        return
    files.health.write_text(monitor.report() + "\n", encoding="utf-8")
    monitor.plot(files.health_map)
    for verdict in monitor.verdicts():
        print(verdict)
    for name, path in (("health", files.health), ("gradients", files.health_map)):
        print(f"{name:>11}: {path}")


def spread_by_error(forecast: Array, truth: Array, count: int) -> Array:
    """Indices of at most `count` sequences whose errors spread evenly from low to high: no picking of the best.

    Of 2, those ranked at a quarter and three quarters of all; the lowest error first.
    """
    errors = np.mean(np.square(forecast - truth, dtype=np.float64), axis=(0, 2, 3, 4))
    count = min(count, len(errors))
    places = ((2 * np.arange(count) + 1) * len(errors)) // (2 * count)
    return np.argsort(errors, kind="stable")[places]


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C (or SIGTERM) came. A second one stops at once, as ever."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        for kind, handler in before.items():
            signal.signal(kind, handler)

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        for kind in before:
            signal.signal(kind, note)
        yield lambda: bool(asked)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def run(
    given: Mapping[str, Any], folder: str | None, *, resume: bool = False, overwrite: bool = False,
    epochs: float | None = None, health: bool = False,
) -> Comparison:  # fmt: skip
    """A whole run from the settings given (the others have their defaults, or, resumed, the run's own).

    Raises DataError, SettingsError, MissingExtraError, FileNotFoundError or ValueError for what cannot be run,
    FloatingPointError where the training diverges, Interrupted once a stop was asked for and saved.
    """
    _require_packages(given.get("data"))
    files = Files(Path(folder) if folder else _default_folder(given.get("data")))
    arrays, meta = checkpoint.load(files.checkpoint) if resume else ({}, {})
    settings = _resumed(given, meta, files) if resume else Settings(**given)
    source = open_source(settings)
    if epochs is not None:
        settings = dataclasses.replace(settings, steps=_steps_of_epochs(epochs, source, settings.batch))
    if not resume and not overwrite:
        _refuse_to_overwrite(files, settings, source)
    trainer = Trainer(settings, source)
    if resume:
        trainer.restore(arrays, meta)
    files.folder.mkdir(parents=True, exist_ok=True)
    _announce(trainer)
    trainer.monitor = Monitor(trainer.model) if health else None
    try:
        with stop_on_signal() as stop:
            run_training(trainer, files, stop)
    finally:  # a run that diverges is the one whose health is asked for
        if trainer.monitor is not None:
            trainer.monitor.detach()
            write_health(trainer.monitor, files)
    return write_report(trainer, files)


def main(args: argparse.Namespace) -> int:
    """`fusecell train`. 0: done; 1: --check, and the mark is not reached; 2: refused; 130: interrupted and saved."""
    names = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    try:
        if args.threads is not None:
            fusecell.set_num_threads(args.threads)
        result = run(given, args.out, resume=args.resume, overwrite=args.overwrite, epochs=args.epochs,
                     health=args.health)  # fmt: skip
    except Interrupted:
        again = f" --out {args.out}" if args.out else f" --data {args.data}" if "data" in given else ""
        print(f"stopped and saved; this goes on where it stopped: fusecell train{again} --resume")
        return 130
    except KeyboardInterrupt:
        print("fusecell train: interrupted while not training; nothing is lost", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"fusecell train: the training diverged ({error}); try a lower --lr", file=sys.stderr)
        return 2
    except (MissingExtraError, OSError, ValueError) as error:
        print(f"fusecell train: {error}", file=sys.stderr)
        return 2
    return 0 if result.reached or not args.check else 1


# --------------------------------------------------------------------------------------------------------- its parts


def _require_packages(data: str | None) -> None:
    """Say what is missing before the training, not after it."""
    plots.require_plotting()
    if data is None:
        require_installed("sklearn", "the default data (digits in motion)")


def _default_folder(data: str | None) -> Path:
    return Path("runs") / ("digits" if data is None else Path(data).stem)


def _settings_of(meta: Mapping[str, Any], path: Path) -> Settings:
    try:
        return Settings(**meta["settings"])
    except (KeyError, TypeError):
        raise SettingsError(f"{path}: expected a checkpoint of `fusecell train`, got another one") from None


def _load_parameters(model: EncoderForecaster, arrays: Mapping[str, Array]) -> None:
    try:
        model.load_state_dict(_part(arrays, "model."))
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"checkpoint: of another version of fusecell, whose network differs: {error}") from None


def _resumed(given: Mapping[str, Any], meta: Mapping[str, Any], files: Files) -> Settings:
    """The run's own settings; only --steps may be given anew."""
    settings = _settings_of(meta, files.checkpoint)
    for name, value in given.items():
        own = getattr(settings, name)
        if name != "steps" and value != own:
            raise SettingsError(f"--{_option(name)}: expected {own}, as the run began, got {value}; leave it out")
    return dataclasses.replace(settings, steps=given.get("steps", settings.steps))


def _refuse_to_overwrite(files: Files, settings: Settings, source: Source) -> None:
    """An old run may be replaced only by its own repetition, which gives the same bits."""
    if not files.checkpoint.exists():
        return
    try:
        _, meta = checkpoint.load(files.checkpoint)
        old, step = _settings_of(meta, files.checkpoint), int(meta["step"])
    except (ValueError, KeyError):
        raise SettingsError(f"{files.checkpoint}: damaged or of another program; --overwrite replaces it") from None
    if step < old.steps:
        raise SettingsError(
            f"{files.folder} holds a run that stopped at step {step} of {old.steps}: "
            f"--resume goes on with it, --overwrite starts anew, --out FOLDER leaves it alone"
        )
    if old != settings or meta["data"] != source.fingerprint:
        raise SettingsError(
            f"{files.folder} holds a run with other settings or data: --overwrite replaces it, "
            f"--out FOLDER leaves it alone"
        )


def _steps_of_epochs(epochs: float, source: Source, batch: int) -> int:
    if source.sequences is None:
        raise SettingsError("--epochs: the digits are drawn afresh for ever; give --steps")
    return math.ceil(epochs * source.sequences / batch)


def _announce(trainer: Trainer) -> None:
    s = trainer.settings
    count = sum(array.size for array in trainer.model.parameters().values())
    print(trainer.source.description)
    print(
        f"{s.input_frames} frames in, {s.horizon} predicted; {s.layers} + {s.layers} ConvLSTM layers of {s.hidden} "
        f"channels, {s.kernel}x{s.kernel}, {s.dtype}: {count} parameters"
    )
    print(f"{s.steps} steps of {s.batch} sequences" + (f", from step {trainer.step} on" if trainer.step else ""))


def _progress_bar(done: int, steps: int) -> Any:
    from tqdm import tqdm

    sys.stdout.flush()
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=steps, initial=done, unit="step", desc="training", mininterval=10.0 if quiet else 0.2,
        dynamic_ncols=not quiet,
    )  # fmt: skip


def _recent(losses: list[float]) -> str:
    last = losses[-50:]
    return f"{sum(last) / len(last):.4g}"


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _option(name: str) -> str:
    return name.replace("_", "-")
