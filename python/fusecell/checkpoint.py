"""Checkpoints: arrays and JSON in one safetensors file, written atomically. Nothing is ever pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from fusecell._typing import Array

_KEY = "fusecell checkpoint"
_VERSION = 1


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write arrays (any shape; float, integer or bool) and meta (whatever JSON holds) to one file.

    Atomic: written beside it under another name, flushed to the disk, then renamed. Whoever reads the path, at any
    time and after any crash, finds the old file or the new one, whole.
    Raises TypeError for an array's dtype or a meta value that the file cannot hold, OSError where writing fails; the
    old file is then untouched.
    """
    target = Path(path)
    # One key, since the writer puts several in any order: equal checkpoints are equal files.
    header = {_KEY: json.dumps({"version": _VERSION, "meta": dict(meta)})}
    data = to_bytes({name: _plain(name, array) for name, array in arrays.items()}, metadata=header)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """(arrays, meta) as `save` was given them.

    Raises FileNotFoundError for no file, ValueError for a file that is damaged or is no fusecell checkpoint.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"{target}: expected a checkpoint, found no file")
    try:
        with safe_open(str(target), framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{target}: expected a safetensors file, got a damaged or foreign one ({error})") from None
    if _KEY not in header:
        raise ValueError(f"{target}: expected a {_KEY}, got a safetensors file of another program")
    content = json.loads(header[_KEY])
    if content["version"] != _VERSION:
        raise ValueError(f"{target}: expected a {_KEY} of version {_VERSION}, got version {content['version']}")
    return arrays, content["meta"]


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The generator's state as JSON can hold it."""
    state: dict[str, Any] = _to_json(rng.bit_generator.state)
    return state


def set_rng_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator back where `rng_state` found it. Raises ValueError for another kind of generator."""
    kind = type(rng.bit_generator).__name__
    if state.get("bit_generator") != kind:
        raise ValueError(f"rng state: expected one of {kind}, got {state.get('bit_generator')}")
    rng.bit_generator.state = _from_json(state)


def _plain(name: str, array: Array) -> Array:
    """C order (0-d stays 0-d). The writer stores memory as it lies."""
    kept = np.asarray(array, order="C")
    if kept.dtype.kind not in "fiub" or not kept.dtype.isnative or kept.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected float, integer or bool in native byte order, got {kept.dtype}")
    return kept


def _sync_directory(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"dtype", "values"}:
        return np.array(value["values"], value["dtype"])
    return {key: _from_json(item) for key, item in value.items()}
