"""The benchmark compares before it times: its peers compute the same, and one that does not is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))
import torch_peers as peers  # noqa: E402

TINY = peers.Shape(B=2, T=3, I=2, C=3, H=5, W=4, k=3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "torch.compile"])  # which takes a minute
def test_a_peer_computes_what_all_compute(name):
    if name.startswith("Keras"):
        os.environ.setdefault("KERAS_BACKEND", "torch")
        if pytest.importorskip("keras").backend.backend() != "torch":
            pytest.skip("Keras runs on another backend")
    made = peers.PEERS[name](peers.Problem(TINY, "cpu"))
    assert peers.check(name, made, peers.truth(TINY, "cpu")) < 1e-5


@pytest.mark.parametrize("result", ["y", "dx", "dweight_ih", "dweight_hh", "dbias"])
def test_a_wrong_result_is_not_timed(result):
    expected = peers.truth(TINY, "cpu")
    expected[result] = expected[result].clone()
    expected[result].view(-1)[-1] += 1e-3 * expected[result].abs().max()
    with pytest.raises(AssertionError, match=f"fusecell: {result} is off by"):
        peers.check("fusecell", peers.fusecell_peer(peers.Problem(TINY, "cpu")), expected)


def test_the_program_writes_what_it_found(tmp_path):
    options = ["--cases", "--overhead", "--rounds", "1", "--device", "cpu", "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, BENCH / "bench_torch.py", *options], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["what"] for row in found["overhead"]] == ["forward, with grad", "forward, no_grad", "training step"]
    assert len(found["cases"]) > 50
    assert all(0 < row["step_ratio"] < math.inf and row["error"] < 1e-4 for row in found["cases"])
    assert all(0.1 < row["ratio"] < 10 for row in found["overhead"])
