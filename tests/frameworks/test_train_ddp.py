"""examples/train_ddp.py with two processes: it learns, and goes on after an interruption to the very same result."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_ddp.py"
STEPS = 60


def start(checkpoint):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, EXAMPLE, "--steps", str(STEPS), "--checkpoint", checkpoint]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What it says, and the progress that it showed."""
    try:
        said, progress = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return said, progress


def interrupted(checkpoint):
    """Run it until it has left a checkpoint, and send the signal that a cluster's scheduler sends."""
    process = start(checkpoint)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    said, progress = finish(process)
    assert checkpoint.exists(), progress
    return said


def test_it_learns_and_goes_on_where_it_was_interrupted(tmp_path):
    whole = start(tmp_path / "whole.pt")
    said, progress = finish(whole)
    assert whole.returncode == 0, progress
    before, after = map(float, re.fullmatch(rf"loss before (\S+), after {STEPS} steps (\S+)\n", said).groups())
    assert after < before / 2

    checkpoint = tmp_path / "cut.pt"
    assert interrupted(checkpoint) == ""
    done = torch.load(checkpoint)["done"]
    assert 0 < done < STEPS
    resumed = start(checkpoint)
    again, progress = finish(resumed)
    assert resumed.returncode == 0, progress
    assert f"| {done}/{STEPS} [" in progress
    assert f"| 0/{STEPS} [" not in progress
    assert again == said
