"""Checkpoints: what goes in comes out, writing is all or nothing, foreign files are refused, nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecell import checkpoint

META = {"step": 3, "name": "größe", "nested": {"rate": 0.1, "list": [1, None, True]}}


def test_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = rng.standard_normal((4, 6))
    arrays = {
        "double": whole,
        "single": whole.astype(np.float32),
        "every other": whole[::2, ::-2],
        "turned": whole.T,
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3)),
        "flags": whole > 0,
        "count": np.array([2**62, -1]),
        "special": np.array([np.nan, np.inf, -0.0, 5e-324]),
    }
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, arrays, META)
    loaded, meta = checkpoint.load(path)
    assert meta == META
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape), name
        assert loaded[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
    assert os.listdir(tmp_path) == ["run.safetensors"]
    before = path.read_bytes()
    checkpoint.save(path, loaded, meta)
    assert path.read_bytes() == before, "equal checkpoints are equal files"


def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_VERSION", 2)
    checkpoint.save(tmp_path / "run.safetensors", {}, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="of version 1, got version 2"):
        checkpoint.load(tmp_path / "run.safetensors")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_writing_that_fails_leaves_the_old_file(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"a": np.zeros(3)}, {"step": 1})
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"a": np.ones(3)}, {"step": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_the_file_is_whole_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of renaming, all bytes are on the disk under another name: fsync first, then rename."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("fsync")
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        loaded, _ = checkpoint.load(source)
        events.append(f"replace with {loaded['a'].sum():g}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.save(tmp_path / "run.safetensors", {"a": np.ones(3)}, {})
    assert events == ["fsync", "replace with 3", "fsync"]


def write_cut_short(path: Path) -> None:
    checkpoint.save(path, {"a": np.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-1])


def write_foreign(path: Path) -> None:
    save_file({"a": np.zeros(3)}, path)


FOREIGN = {
    "empty": (lambda path: path.write_bytes(b""), "damaged or foreign"),
    "text": (lambda path: path.write_text("hello, this is no checkpoint at all"), "damaged or foreign"),
    "zeros": (lambda path: path.write_bytes(bytes(1000)), "damaged or foreign"),
    "cut short": (write_cut_short, "damaged or foreign"),
    "another program's": (write_foreign, "got a safetensors file of another program"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "damaged or foreign"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    write, words = FOREIGN[kind]
    write(path)
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "run.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="damaged or foreign"):
        checkpoint.load(path)
    assert not (tmp_path / "sprung").exists()


def test_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="found no file"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([object()]), np.zeros(2, complex), np.zeros(2, ">f8"), np.zeros(2, "M8[s]")]
)
def test_arrays_that_the_file_cannot_hold(array: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a: expected float, integer or bool"):
        checkpoint.save(tmp_path / "run.safetensors", {"a": array}, {})
    assert os.listdir(tmp_path) == []


def test_meta_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "run.safetensors", {}, {"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64])
def test_generators_go_on_where_they_were(kind: Any, tmp_path: Path) -> None:
    rng = np.random.Generator(kind(7))
    rng.standard_normal(5)
    rng.integers(0, 10, dtype=np.uint32)  # leaves half a word behind in some generators
    checkpoint.save(tmp_path / "run.safetensors", {}, {"rng": checkpoint.rng_state(rng)})
    expected = rng.integers(0, 2**32, 10, dtype=np.uint32)
    other = np.random.Generator(kind(0))
    _, meta = checkpoint.load(tmp_path / "run.safetensors")
    checkpoint.set_rng_state(other, meta["rng"])
    np.testing.assert_array_equal(other.integers(0, 2**32, 10, dtype=np.uint32), expected)


def test_a_generator_of_another_kind_is_refused() -> None:
    state = checkpoint.rng_state(np.random.default_rng(0))
    with pytest.raises(ValueError, match="rng state: expected one of MT19937, got PCG64"):
        checkpoint.set_rng_state(np.random.Generator(np.random.MT19937(0)), state)
