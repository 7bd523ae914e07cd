"""Training: data, the model's gradients, trivial forecasts, and whole runs that are interrupted and go on."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusecell import checkpoint, cli, train
from fusecell._extras import MissingExtraError, require
from fusecell.baselines import Comparison, compare, horizon_errors, trivial_forecasts
from fusecell.data import Clips, DataError, Motion, MovingDigits, bounce, load_clips, moving_digits, shrink
from fusecell.forecast import EncoderForecaster, depth_to_space, logit, space_to_depth
from fusecell.plots import smooth

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
imageio = pytest.importorskip("imageio.v3")

Array = np.ndarray[Any, Any]

TINY = {
    "--digits": 1, "--frame": 20, "--input-frames": 3, "--horizon": 2, "--hidden": 4, "--layers": 2, "--batch": 2,
}  # fmt: skip


def command(out: Path, steps: int, *more: str) -> list[str]:
    tiny = [str(part) for pair in TINY.items() for part in pair]
    return ["train", *tiny, "--steps", str(steps), "--out", str(out), *more]


def tiny_settings(**changes: Any) -> train.Settings:
    values = {name[2:].replace("-", "_"): value for name, value in TINY.items()}
    return train.Settings(**{**values, **changes})


def assert_same_run(one: Path, other: Path) -> None:
    """Every array of the two checkpoints, parameters and optimiser and history, has the same bits."""
    (arrays, meta), (expected, wanted) = (checkpoint.load(p / "checkpoint.safetensors") for p in (one, other))
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert meta == wanted


# -------------------------------------------------------------------------------------------------- digits in motion


def test_digits_of_training_and_held_out_are_different_scans() -> None:
    from sklearn.datasets import load_digits

    digits = MovingDigits(5, 0)
    whole = np.concatenate([digits._training, digits._held_out])
    np.testing.assert_array_equal(whole, load_digits().images / 16.0)
    assert (len(digits._training), len(digits._held_out)) == (1438, 359)


def test_batches_are_functions_of_seed_and_step() -> None:
    one, same, other = MovingDigits(5, 0), MovingDigits(5, 0), MovingDigits(5, 1)
    batch = one.training_batch(7, 2, np.float32)
    assert (batch.shape, batch.dtype) == ((5, 2, 1, 32, 32), np.float32)
    assert batch.min() == 0.0
    assert 0.5 < batch.max() <= 1.0
    same.training_batch(3, 2, np.float32)
    np.testing.assert_array_equal(same.training_batch(7, 2, np.float32), batch)
    assert not np.array_equal(one.training_batch(8, 2, np.float32), batch)
    assert not np.array_equal(other.training_batch(7, 2, np.float32), batch)
    np.testing.assert_array_equal(one.held_out(3, np.float64), other.held_out(3, np.float64))


def test_a_digit_moves_smoothly_and_stays_inside(rng: np.random.Generator) -> None:
    scan = np.zeros((1, 8, 8))
    scan[0, 3:5, 3:5] = 1.0
    motion = Motion(frame=(32, 24), digits=1, scale=1.5, speed=(1.3, 1.3))
    frames = moving_digits(rng, scan, 4, 60, motion)[:, :, 0].astype(np.float64)
    weight = frames.sum(axis=(2, 3))
    np.testing.assert_allclose(weight, weight[0, 0], rtol=0.02, err_msg="nothing leaves the frame")
    y = (frames.sum(axis=3) * np.arange(32)).sum(axis=2) / weight
    x = (frames.sum(axis=2) * np.arange(24)).sum(axis=2) / weight
    speed = np.hypot(np.diff(y, axis=0), np.diff(x, axis=0))
    assert speed.max() < 1.5, "no jumps"
    np.testing.assert_allclose(np.median(speed), 1.3, rtol=0.05)
    assert np.abs(y - np.round(y)).max() > 0.4, "places in fractions of a pixel"


def test_two_digits_overlap_by_the_brighter(rng: np.random.Generator) -> None:
    scan = np.ones((1, 8, 8))
    frames = moving_digits(rng, scan, 8, 10, Motion(frame=(20, 20), digits=3))
    assert frames.max() == 255
    assert frames.dtype == np.uint8


def test_bounce_by_hand() -> None:
    path = bounce(np.array([0.0, 3.0, 4.0, 5.0, 8.0, 9.0, -1.0, -5.0]), 4.0)
    np.testing.assert_allclose(path, [0.0, 3.0, 4.0, 3.0, 0.0, 1.0, 1.0, 3.0])


def test_a_frame_too_small_for_a_digit_is_refused() -> None:
    with pytest.raises(ValueError, match="frame: expected sides above 16"):
        Motion(frame=(16, 32))


# --------------------------------------------------------------------------------------------------- the user's own


def gradient_clip(time_steps: int, height: int = 8, width: int = 8) -> Array:
    """uint8 [T, H, W], every frame its own."""
    return np.arange(time_steps * height * width).reshape(time_steps, height, width).astype(np.uint8)


def test_every_window_once_an_epoch_and_none_held_out() -> None:
    frames = np.arange(20, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    clips = Clips(frames, 4, seed=0)
    assert clips.sequences == 13
    starts = np.concatenate([clips.training_batch(k, 13, np.float64)[0, :, 0, 0, 0] for k in range(2)]) * 255
    np.testing.assert_array_equal(np.sort(starts[:13].round()), np.arange(13))
    np.testing.assert_array_equal(np.sort(starts[13:].round()), np.arange(13))
    assert not np.array_equal(starts[:13], starts[13:])
    odd = [clips.training_batch(k, 5, np.float64)[0, :, 0, 0, 0] * 255 for k in range(6)]
    np.testing.assert_array_equal(np.concatenate(odd)[:26], starts, "batches run over the end of an epoch")
    held = clips.held_out(100, np.float64) * 255
    np.testing.assert_allclose(held[:, 0, 0, 0, 0], np.arange(16, 20), err_msg="time that training never sees")
    assert held.shape[1] == 1


def test_sequences_are_held_out_whole() -> None:
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((10, 5, 2, 2), np.uint8)
    clips = Clips(frames, 4, seed=0)
    trained = np.unique((clips.training_batch(0, 16, np.float64) * 255).round())
    held = np.unique((clips.held_out(100, np.float64) * 255).round())
    np.testing.assert_array_equal(trained, np.arange(8))
    np.testing.assert_array_equal(held, [8, 9])
    np.testing.assert_allclose(clips.mean_frame(), np.full((2, 2), 3.5 / 255))


def write_npy(array: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "frames.npy", array)
        return folder / "frames.npy"

    return write


def write_npz(**arrays: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "frames.npz", **arrays)
        return folder / "frames.npz"

    return write


CLIP = gradient_clip(6)
GOOD: dict[str, tuple[Callable[[Path], Path], Array]] = {
    "[T, H, W]": (write_npy(CLIP), CLIP[None]),
    "[N, T, H, W]": (write_npy(CLIP.reshape(2, 3, 8, 8)), CLIP.reshape(2, 3, 8, 8)),
    "npz": (write_npz(mine=CLIP), CLIP[None]),
    "channel first": (write_npy(CLIP[None, :, None]), CLIP[None]),
    "channel last": (write_npy(CLIP[None, ..., None]), CLIP[None]),
    "bool": (write_npy(CLIP > 99), (CLIP > 99)[None] * np.uint8(255)),
    "unit floats": (write_npy(CLIP / 255), CLIP[None]),
    "any floats": (write_npy(CLIP * 3.0 - 700), CLIP[None]),
    "16 bits": (write_npy(CLIP.astype(np.uint16) * 257), CLIP[None]),
    "big endian": (write_npy(CLIP.astype(">f4")), CLIP[None]),
}


@pytest.mark.parametrize("name", GOOD)
def test_arrays_are_read(name: str, tmp_path: Path) -> None:
    write, expected = GOOD[name]
    frames = load_clips(write(tmp_path))
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, expected)


def test_axes_of_moving_mnist(tmp_path: Path) -> None:
    frames = load_clips(write_npy(CLIP.reshape(3, 2, 8, 8))(tmp_path), axes="TNHW")
    np.testing.assert_array_equal(frames, CLIP.reshape(3, 2, 8, 8).swapaxes(0, 1))


@pytest.mark.parametrize("colour", [False, True])
def test_a_gif_is_read_grey(colour: bool, tmp_path: Path) -> None:
    levels = np.array([0, 50, 100, 150, 200, 250], np.uint8)
    frames = np.broadcast_to(levels[:, None, None], (6, 8, 8))
    frames = np.stack([frames, frames, frames], axis=-1) if colour else frames
    imageio.imwrite(tmp_path / "film.gif", frames, loop=0)
    read = load_clips(tmp_path / "film.gif")
    assert read.shape == (1, 6, 8, 8)
    np.testing.assert_allclose(read[0, :, 0, 0], levels, atol=3)


def test_large_frames_are_averaged_down_and_cut() -> None:
    frames = np.arange(10 * 13, dtype=np.float64).reshape(1, 1, 10, 13)
    small = shrink(frames, 7, 2)
    assert small.shape == (1, 1, 4, 6)
    assert small[0, 0, 0, 0] == np.round(frames[0, 0, :2, :2].mean())
    assert shrink(frames, 13, 1) is not None
    np.testing.assert_array_equal(shrink(frames, 13, 4), frames[..., :8, :12])


def write_text(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "none.npy", "expected a file, found none"),
    "text as npy": (write_text("a.npy", b"hello"), "expected an array of numbers as np.save"),
    "empty npy": (write_text("a.npy", b""), "expected an array of numbers as np.save"),
    "text as npz": (write_text("a.npz", b"PK\x03\x04 no"), "expected an array of numbers as np.save"),
    "pickle": (write_text("a.npy", pickle.dumps([1])), "pickled files are never opened"),
    "objects": (write_npy(np.array([{}], object)), "pickled files are never opened"),
    "objects in npz": (write_npz(a=np.array([{}], object)), "expected an array of numbers"),
    "two arrays": (write_npz(a=CLIP, b=CLIP), r"expected one array, got \['a', 'b'\]"),
    "flat": (write_npy(np.zeros(5)), r"expected \[N, T, H, W\] or \[T, H, W\] .* got \[5\]"),
    "colour": (write_npy(np.zeros((6, 8, 8, 3))), "looks like colour"),
    "text inside": (write_npy(np.full((6, 8, 8), "x")), "expected numbers, got <U1"),
    "nan": (write_npy(np.full((6, 8, 8), np.nan)), r"got NaN or infinity; mend with np.nan_to_num"),
    "constant": (write_npy(np.full((6, 8, 8), 7.5)), "expected a picture that changes, got 7.5"),
    "no frames": (write_npy(np.zeros((0, 8, 8))), "got an empty array"),
    "tiny frames": (write_npy(gradient_clip(6, 3, 8)), "leave nothing when shrunk"),
    "text as gif": (write_text("a.gif", b"hello"), "a GIF or a video that imageio reads"),
    "text as mp4": (write_text("a.mp4", b"hello"), r"pip install 'imageio\[ffmpeg\]'"),
    "no suffix": (write_text("frames", b"hello"), "a GIF or a video that imageio reads"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # these three are imageio's, on its way to refusing
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_data_is_refused(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    with pytest.raises(DataError, match=words):
        load_clips(write(tmp_path), multiple=4)
    gc.collect()  # so that the warnings come while they are ignored


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least 8 frames \(4 to train on and 4 held out\), got 7"):
        Clips(gradient_clip(7)[None], 4, 0)
    with pytest.raises(DataError, match=r"sequences of at least 4 frames \(input \+ horizon\), got 3"):
        Clips(CLIP.reshape(2, 3, 8, 8), 4, 0)
    assert Clips(gradient_clip(8)[None], 4, 0).sequences == 1


# -------------------------------------------------------------------------------------------------------- the model


def test_model_gradients(rng: np.random.Generator) -> None:
    """Finite differences along random directions, in double."""
    model = EncoderForecaster((3, 2), horizon=3, kernel_size=3, patch=2, rng=rng, dtype=np.float64)
    x = rng.standard_normal((4, 2, 1, 6, 4))
    weight = rng.standard_normal(model.forward(x).shape)
    assert weight.shape == (3, 2, 1, 6, 4)
    dx = model.backward(weight)
    arrays, gradients = {"x": x, **model.parameters()}, {"x": dx, **model.gradients()}
    assert arrays.keys() == gradients.keys()
    for name, array in arrays.items():
        direction, values = rng.standard_normal(array.shape), []
        for step in (1e-5, -1e-5):
            array += step * direction
            values.append(float(np.sum(model.forward(x) * weight)))
            array -= step * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float(np.sum(gradients[name] * direction)), rel=1e-6, abs=1e-8), name


def test_patches_become_channels_and_come_back(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 1, 6, 4))
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 3, 4, 3, 2)
    np.testing.assert_array_equal(deep[0, 0, :, 1, 0], x[0, 0, 0, 2:4, 0:2].ravel())
    np.testing.assert_array_equal(depth_to_space(deep, 2), x)


def test_an_untrained_model_forecasts_the_mean_grey(rng: np.random.Generator) -> None:
    model = EncoderForecaster((4,), horizon=2, patch=2, brightness=0.2, rng=rng)
    assert np.abs(model.forward(np.zeros((2, 1, 1, 4, 4), np.float32)) - 0.2).max() < 0.1
    assert logit(0.5) == 0.0
    assert logit(0.0) == pytest.approx(-np.log(99))


# ----------------------------------------------------------------------------------------------- trivial forecasts


def test_trivial_forecasts_by_hand() -> None:
    inputs = np.array([9.0, 9.0, 1.0, 2.0]).reshape(2, 1, 1, 1, 2)  # the last frame is (1, 2)
    target = np.array([2.0, 4.0, 1.0, 0.0]).reshape(2, 1, 1, 1, 2)
    trivial = trivial_forecasts(inputs, target, np.array([[1.0, 1.0]]))
    errors = {name: horizon_errors(forecast, target).tolist() for name, forecast in trivial.items()}
    assert errors["last"] == [2.5, 2.0]
    assert errors["black"] == [10.0, 0.5]
    assert errors["mean"] == [5.0, 0.5]
    assert errors["scaled"] == pytest.approx([0.0, 0.4])  # by 2 and by 1/5
    comparison = compare(target, inputs, target, np.array([[1.0, 1.0]]))
    assert (comparison.best, comparison.ratio, comparison.reached) == ("scaled", 0.0, True)


def test_a_black_last_frame_has_no_best_scale() -> None:
    zeros, ones = np.zeros((1, 1, 1, 2, 2)), np.ones((2, 1, 1, 2, 2))
    assert not trivial_forecasts(zeros, ones, np.zeros((2, 2)))["scaled"].any()


def test_scaled_last_frame_is_the_best_of_all_scales(rng: np.random.Generator) -> None:
    inputs, target = rng.uniform(size=(3, 4, 1, 5, 5)), rng.uniform(size=(2, 4, 1, 5, 5))
    best = horizon_errors(trivial_forecasts(inputs, target, np.zeros((5, 5)))["scaled"], target)
    for scale in np.linspace(0, 1.5, 31):
        assert (best <= horizon_errors(scale * inputs[-1:], target) + 1e-12).all()


def test_what_is_shown_is_not_picked() -> None:
    truth = np.zeros((2, 8, 1, 3, 3))
    forecast = truth + np.array([5, 0, 7, 2, 1, 3, 6, 4.0])[None, :, None, None, None]
    assert train.spread_by_error(forecast, truth, 2).tolist() == [3, 6], "ranks 2 and 6 of 0 to 7"
    assert train.spread_by_error(forecast, truth, 1).tolist() == [7]
    assert sorted(train.spread_by_error(forecast, truth, 99).tolist()) == list(range(8))


def test_the_mark() -> None:
    trivial = {"last": np.array([0.1, 0.3]), "black": np.array([0.2, 0.4])}
    at = Comparison(np.array([0.09, 0.15]), trivial)
    assert at.best == "last"
    assert at.ratio == pytest.approx(0.6)
    good, bad = Comparison(np.array([0.1, 0.1]), trivial), Comparison(np.array([0.1, 0.2]), trivial)
    assert good.verdict() == (
        "held-out error: 50.0 % of the best trivial forecast's (last); the mark of 60 % is reached"
    )
    assert bad.verdict().endswith("the mark of 60 % is NOT reached")
    assert not Comparison(np.array([np.nan, 0.1]), trivial).reached
    assert [line.split()[0] for line in good.table().splitlines()] == ["steps", "1", "2", "all"]
    assert "50.0 %" in good.table().splitlines()[-1]


def test_an_untrained_network_fails_the_mark() -> None:
    settings = train.Settings(steps=0)
    comparison, *_ = train.Trainer(settings, train.open_source(settings)).judge()
    assert comparison.ratio > 0.9


# -------------------------------------------------------------------------------------------------------- whole runs


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(command(out, 6)) == 0
    printed = capsys.readouterr()
    for name, magic in (
        ("loss_curve.png", b"\x89PNG"), ("strip.png", b"\x89PNG"), ("animation.gif", b"GIF8"),
        ("checkpoint.safetensors", b""), ("report.txt", b"held-out error"),
    ):  # fmt: skip
        assert (out / name).read_bytes().startswith(magic)
        assert str(out / name) in printed.out
    assert "the mark of 60 % is NOT reached" in printed.out
    assert "loss" in printed.err
    assert "held_out" in printed.err
    assert len(imageio.imread(out / "animation.gif", index=None)) == 5, "all 3 + 2 frames"
    first = printed.out
    assert cli.main(command(out, 6)) == 0, "the same run again may take its place"
    assert capsys.readouterr().out == first, "and prints the same digits"
    assert cli.main(command(out, 6, "--check")) == 1


def test_health_is_written_and_changes_no_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for name, options in (("plain", ()), ("watched", ("--health",))):
        assert cli.main(command(tmp_path / name, 6, *options)) == 0
        printed.append(capsys.readouterr().out)
    for name, magic in (("health.txt", b"6 iterations, 6 observed"), ("health.png", b"\x89PNG")):
        assert (tmp_path / "watched" / name).read_bytes().startswith(magic)
        assert str(tmp_path / "watched" / name) in printed[1]
        assert not (tmp_path / "plain" / name).exists()
    plain, watched = ((tmp_path / name / "report.txt").read_text() for name in ("plain", "watched"))
    assert plain == watched
    assert "forget gate" in (tmp_path / "watched" / "health.txt").read_text()


def test_one_and_two_threads_give_the_same_bits(tmp_path: Path) -> None:
    for threads in ("1", "2"):
        cli.main(command(tmp_path / threads, 3, "--threads", threads))
    assert_same_run(tmp_path / "1", tmp_path / "2")


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train.Trainer.train_step

    def interrupted(self: train.Trainer) -> float:
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(train.Trainer, "train_step", interrupted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_interrupted_and_resumed_is_bit_for_bit_the_same(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(command(whole, 9, "--dtype", dtype)) == 0
    table = capsys.readouterr().out.partition("held-out")[2].partition("loss curve")[0]
    handler = signal.getsignal(signal.SIGINT)
    for step in (2, 7):
        with monkeypatch.context() as patch:
            interrupt_at(step, patch)
            more = ["--resume"] if step == 7 else []
            assert cli.main(command(broken, 9, "--dtype", dtype, *more)) == 130
        assert f"--out {broken} --resume" in capsys.readouterr().out
        assert checkpoint.load(broken / "checkpoint.safetensors")[1]["step"] == step + 1
        assert signal.getsignal(signal.SIGINT) is handler, "Ctrl-C means again what it meant"
    assert cli.main(["train", "--out", str(broken), "--resume"]) == 0
    assert capsys.readouterr().out.partition("held-out")[2].partition("loss curve")[0] == table
    assert_same_run(broken, whole)


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with train.stop_on_signal() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    """A process that gets SIGINT saves, says how to go on, and ends with 130."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [sys.executable, "-m", "fusecell.cli", *command(broken, 400, "--threads", "1")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (broken / "checkpoint.safetensors").exists() and time.monotonic() < limit:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopped and saved" in out
    step = checkpoint.load(broken / "checkpoint.safetensors")[1]["step"]
    assert 40 <= step < 400
    assert cli.main(["train", "--out", str(broken), "--resume"]) == 0
    assert cli.main(command(whole, 400)) == 0
    assert_same_run(broken, whole)


def test_a_finished_run_resumed_is_judged_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(tmp_path, 2)) == 0
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert cli.main(["train", "--out", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert cli.main(["train", "--out", str(tmp_path), "--resume", "--steps", "4"]) == 0
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["step"] == 4


def moving_bar(sequences: int = 12, time_steps: int = 12) -> Array:
    """uint8 [N, T, 8, 8]: a bright column that goes round and round; only its start differs."""
    column = (np.arange(time_steps) + np.arange(sequences)[:, None]) % 8
    bright = column[:, :, None, None] == np.arange(8)
    return np.broadcast_to(bright, (sequences, time_steps, 8, 8)) * np.uint8(255)


def test_own_data_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "bar.npy", moving_bar())
    options = [
        "--input-frames",
        "4",
        "--horizon",
        "4",
        "--hidden",
        "8",
        "--layers",
        "1",
        "--patch",
        "2",
        "--batch",
        "4",
        "--lr",
        "0.02",
    ]
    given = ["train", "--data", str(tmp_path / "bar.npy"), "--out", str(tmp_path / "run"), *options]
    assert cli.main([*given, "--epochs", "7", "--check"]) == 0
    out = capsys.readouterr().out
    assert "bar.npy: 8x8 pixels, 50 windows to train on, 10 held out, 8 frames each" in out
    assert "88 steps of 4 sequences" in out
    assert "the mark of 60 % is reached" in out
    np.save(tmp_path / "bar.npy", moving_bar()[:, ::-1])
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "expected the data that the run began with" in capsys.readouterr().err


def test_own_gif_runs(tmp_path: Path) -> None:
    imageio.imwrite(tmp_path / "bar.gif", moving_bar(1, 20)[0], loop=0)
    options = ["--input-frames", "3", "--horizon", "2", "--hidden", "4", "--layers", "1", "--steps", "2"]
    assert cli.main(["train", "--data", str(tmp_path / "bar.gif"), "--out", str(tmp_path / "run"), *options]) == 0


def test_a_trained_network_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(command(tmp_path, 2))
    model = train.load_forecaster(tmp_path / "checkpoint.safetensors")
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.safetensors")
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, arrays[f"model.{name}"])
    assert model.forward(np.zeros((3, 1, 1, 20, 20), np.float32)).shape == (2, 1, 1, 20, 20)
    checkpoint.save(tmp_path / "other.safetensors", {}, {})
    with pytest.raises(ValueError, match="expected a checkpoint of `fusecell train`"):
        train.load_forecaster(tmp_path / "other.safetensors")
    arrays.pop("model.encoder.0.weight_ih_l0")
    checkpoint.save(tmp_path / "other.safetensors", arrays, meta)
    with pytest.raises(ValueError, match=r"another version of fusecell.*missing \['encoder.0.weight_ih_l0'\]"):
        train.load_forecaster(tmp_path / "other.safetensors")


def test_the_checkpoint_holds_what_a_step_changes() -> None:
    """Saved, changed by further steps and restored: all that `save` writes is as it was."""
    settings = tiny_settings(steps=4)
    trainer = train.Trainer(settings, train.open_source(settings))
    trainer.train_step()
    saved: list[tuple[dict[str, Array], dict[str, Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda path, arrays, meta: saved.append((arrays, meta)))
        trainer.save(Path("nowhere"))
        kept = {name: np.copy(array) for name, array in saved[0][0].items()}
        trainer.train_step()
        trainer.watch()
        trainer.rng.random()
        trainer.restore(kept, saved[0][1])
        trainer.save(Path("nowhere"))
    assert saved[1][1] == saved[0][1]
    assert saved[1][0].keys() == kept.keys()
    for name, array in saved[1][0].items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)


def test_diverging_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.errstate(all="ignore"):
        assert cli.main(command(tmp_path, 5, "--lr", "1e39")) == 2
    assert "the training diverged" in capsys.readouterr().err


REFUSED: dict[str, tuple[list[str], str]] = {
    "resume of nothing": (["--resume"], "found no file"),
    "patch": (["--patch", "3"], "--frame: expected a multiple of --patch 3, got 20"),
    "zero": (["--hidden", "0"], "--hidden: expected at least 1, got 0"),
    "rate": (["--lr", "0"], "--lr and --clip-norm must be above 0"),
    "epochs of digits": (["--epochs", "3"], "give --steps"),
    "data": (["--data", "none.npy"], "--data: expected a file, found none at none.npy"),
    "frame": (["--frame", "16"], "frame: expected sides above 16"),
    "threads": (["--threads", "0"], "hread"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, words = REFUSED[name]
    given = command(tmp_path / "run", 2, *more)
    if "--epochs" in more:
        place = given.index("--steps")
        del given[place : place + 2]
    assert cli.main(given) == 2
    err = capsys.readouterr().err
    assert err.startswith("fusecell train: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(command(tmp_path, 2)) == 0
    assert cli.main(command(tmp_path, 2, "--seed", "1")) == 2
    assert "holds a run with other settings or data: --overwrite" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(tmp_path), "--resume", "--seed", "1"]) == 2
    assert "--seed: expected 0, as the run began, got 1" in capsys.readouterr().err
    assert cli.main(command(tmp_path, 2, "--seed", "1", "--overwrite")) == 0
    with monkeypatch.context() as patch:
        interrupt_at(0, patch)
        assert cli.main(command(tmp_path, 3, "--overwrite")) == 130
    assert cli.main(command(tmp_path, 3)) == 2
    assert "stopped at step 1 of 3: --resume goes on" in capsys.readouterr().err
    (tmp_path / "checkpoint.safetensors").write_bytes(b"garbage")
    assert cli.main(command(tmp_path, 3)) == 2
    assert "damaged or of another program" in capsys.readouterr().err
    assert cli.main(command(tmp_path, 3, "--resume")) == 2
    assert "expected a safetensors file, got a damaged or foreign one" in capsys.readouterr().err


def test_missing_extras_are_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.util.find_spec
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("PIL", "pillow")):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name, m=module: None if name == m else plain(name))
            assert cli.main(command(tmp_path / "run", 2)) == 2
        err = capsys.readouterr().err
        assert f"needs {package}: pip install {package}" in err
        assert "fusecell[demo]" in err
    with pytest.raises(MissingExtraError, match="reading it needs no_such_package: pip install no_such_package"):
        require("no_such_package", "reading it")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    for field in dataclasses.fields(train.Settings):
        assert f"--{field.name.replace('_', '-')}" in out, "every setting has its option"
    parser = cli.build_parser()
    assert parser.parse_args(["info"]).command == "info"
    assert parser.parse_args(["selftest"]).command == "selftest"


def test_learning_rate() -> None:
    rates = [train.learning_rate(1.0, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05, rel=1e-3)
    assert max(rates) > 0.99
    assert rates[-1] == pytest.approx(0.02, rel=1e-2)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_smooth() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2), [1.0, 2.0, 4.0, 6.0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGTERM as here")
def test_sigterm_saves_too() -> None:
    with train.stop_on_signal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop()
