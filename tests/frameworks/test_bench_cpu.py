"""bench_cpu.py: every peer computes the same, in a process of its own; one that does not, or that dies, is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))
import bench_cpu  # noqa: E402
import cpu_peers  # noqa: E402
import cpu_worker  # noqa: E402
from array_peers import Numbers  # noqa: E402
from page import renew, tables  # noqa: E402
from processes import Refused  # noqa: E402
from shapes import Shape  # noqa: E402
from timing import median_ratio, take_turns  # noqa: E402

TINY = Shape(B=2, T=3, I=2, C=3, H=5, W=4, k=3)
COMPILED = [name for name in cpu_peers.PEERS if "compile" in name]  # take a minute each


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "numbers.npz"
    bench_cpu.numbers_of(TINY).write(path)
    return path


def worker(table, name, **options):
    if missing := getattr(cpu_peers, table)[name].missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return cpu_worker.Worker(table, name, 1, **options)


@pytest.mark.parametrize("name", [name for name in cpu_peers.PEERS if name not in COMPILED])
def test_a_peer_computes_what_all_compute(name, numbers):
    with worker("PEERS", name) as one:
        error = one.ask("peer", str(numbers))
        low, high = (1e-3, 4e-2) if cpu_peers.PEERS[name].bfloat16 else (1e-9, 1e-5)
        assert low < error < high
        assert 0 < one.ask("step") < 10
        assert 0 < one.ask("infer") < 10


@pytest.mark.parametrize("name", [name for name in cpu_peers.STREAMS if name != "compile"])
def test_a_stream_gives_what_the_sequence_gives(name, numbers):
    with worker("STREAMS", name) as one:
        assert one.ask("stream", str(numbers)) < 1e-5
        seconds = one.ask("frames", 7)  # more than there are: from the beginning again, the state carried on
        assert len(seconds) == 7
        assert min(seconds) > 0


def test_a_stream_carries_its_state(numbers):
    stream = cpu_peers.ops_stream(Numbers.read(numbers))
    first, second = stream.outputs(), stream.outputs()
    assert not np.allclose(first, second)


@pytest.mark.parametrize("result", ["y", "dx", "dweight_ih", "dweight_hh", "dbias"])
def test_a_wrong_result_is_refused_and_not_timed(result, numbers, tmp_path):
    wrong = Numbers.read(numbers)
    wrong.expected[result].flat[-1] += 1e-3 * np.abs(wrong.expected[result]).max()
    wrong.write(tmp_path / "wrong.npz")
    with worker("PEERS", "fusecell.ops") as one:
        with pytest.raises(Refused, match=f"fusecell.ops: {result} is off by"):
            one.ask("peer", str(tmp_path / "wrong.npz"))
        with pytest.raises(Refused, match="expected a peer that has been checked"):
            one.ask("step")
        assert one.ask("peer", str(numbers)) < 1e-5  # and goes on


def test_a_wrong_forward_pass_is_refused(numbers, monkeypatch):
    def make(given):
        made = cpu_peers.ops_peer(given)
        infer = made.infer
        made.infer = lambda: 1.001 * infer()
        return made

    monkeypatch.setitem(cpu_peers.PEERS, "fusecell.ops", cpu_peers.Entry(make, ()))
    monkeypatch.setattr(cpu_worker, "_use_threads", lambda *_: None)
    served = cpu_worker.Served("PEERS", "fusecell.ops", 1)
    with pytest.raises(AssertionError, match=r"fusecell\.ops, forward: y is off by 1\.0e-03"):
        served.peer(str(numbers))
    assert served.made is None


def test_the_gradients_of_flax_stand_in_our_order_of_gates(numbers):
    pytest.importorskip("flax")
    made = Numbers.read(numbers)
    swapped = {n: a.reshape(4, -1, *a.shape[1:])[[0, 2, 1, 3]].reshape(a.shape) for n, a in made.expected.items()
               if n.startswith(("dweight", "dbias"))}  # fmt: skip
    dataclasses.replace(made, expected={**made.expected, **swapped}).write(numbers.with_name("swapped.npz"))
    with worker("PEERS", "flax") as one, pytest.raises(Refused, match="dweight_ih is off"):
        one.ask("peer", str(numbers.with_name("swapped.npz")))


def test_a_worker_that_died_is_refused():
    with worker("PEERS", "fusecell.ops") as one:
        os.kill(one._process.pid, 9)
        with pytest.raises(Refused, match="its process ended with -9"):
            one.ask("step")


def test_what_a_peer_prints_is_no_answer():
    program = """
import os, cpu_worker
cpu_worker.Served.frames = lambda self, count: os.write(1, b"by the way\\n") and [0.5] * count
cpu_worker.main("STREAMS", "fusecell.ops", "1")
"""
    requests = '["frames", 2]\n["nothing"]\n'
    done = subprocess.run([sys.executable, "-c", program], input=requests, cwd=BENCH, capture_output=True, text=True)
    good, bad = map(json.loads, done.stdout.splitlines())
    assert good == {"value": [0.5, 0.5]}
    assert "'Served' object has no attribute 'nothing'" in bad["error"]
    assert done.stderr.count("by the way") == 1


@pytest.mark.parametrize(("name", "at_most"), [("fusecell.ops", 2), ("Keras on TensorFlow", 4)])
def test_the_peak_counts_what_a_step_needs(name, at_most, tmp_path):
    shape = Shape(B=4, T=4, I=8, C=16, H=64, W=64, k=3)
    path = tmp_path / "numbers.npz"
    bench_cpu.numbers_of(shape).write(path)
    saved = 4 * shape.T * shape.B * shape.H * shape.W * 6 * shape.C  # gates, c and y
    with worker("PEERS", name, measured=True) as one:
        assert saved < one.ask("peak", str(path)) < at_most * saved


def test_others_are_seen():
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        load = cpu_worker.Load([])
        time.sleep(1.0)
        assert load.cores()[1] > 0.3
    finally:
        spin.kill()
        spin.wait()


def test_slow_rivals_take_fewer_turns():
    order = []
    rivals = {name: lambda name=name: order.append(name) or len(order) for name in "ABC"}
    turns = take_turns(rivals, 3, fewer={"B": 1})
    assert order == list("ABCACAC")
    assert turns == {"A": [1, 4, 6], "B": [2], "C": [3, 5, 7]}
    assert median_ratio([2.0, 100.0, 100.0], [1.0]) == 2.0  # of the rounds in which both took part


def test_a_refused_peer_has_a_row_and_no_times(tmp_path, capsys):
    args = Namespace(threads=1, rounds=1, quick=True, absolute=True, peers=["fusecell.ops", "fusecell"])
    bench = bench_cpu.Bench(args, tmp_path)
    with bench.workers("PEERS", bench.peers) as workers:
        os.kill(workers["fusecell.ops"]._process.pid, 9)
        eager, dead, alive = bench_cpu.sequence(bench, "tiny", TINY, workers, bench_cpu.Roofline())
    assert bench.failed
    assert "ended with -9" in dead["refused"]
    assert "step_ratio" not in dead
    assert alive["step_ratio"] > 0
    bench_cpu.print_sequence(bench, [eager, dead, alive], TINY)
    assert "fusecell.ops              refused: fusecell.ops: its process ended with -9" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Refused("flax: its process ended with -9")])
def test_what_was_found_before_a_stop_remains(stop, tmp_path, monkeypatch):
    def sequence(bench, name, *_):
        if name == "M":
            raise stop
        return [{"shape": name, "peer": "eager", "refused": "for the test"}]

    monkeypatch.setattr(bench_cpu, "sequence", sequence)
    monkeypatch.setattr(bench_cpu, "print_sequence", lambda *_: None)
    monkeypatch.setattr(bench_cpu, "renew", lambda *_: pytest.fail("a page of half a run"))
    monkeypatch.setattr(bench_cpu, "confine", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda *_: None)
    monkeypatch.setattr(bench_cpu.fusecell, "set_num_threads", lambda *_: None)
    file = tmp_path / "found.json"
    options = ["--parts", "sequences", "--shapes", "S", "M", "--peers", "eager", "--threads", "1", "--plot"]
    monkeypatch.setattr(sys, "argv", ["bench_cpu.py", *options, "--json", str(file)])
    assert bench_cpu.main() == 1
    assert [row["shape"] for row in json.loads(file.read_text())["sequences"]] == ["S"]


def test_the_page_is_renewed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text((BENCH.parent / "docs" / "cpu.md").read_text())
    row = {"shape": "S", "peer": "eager", "peak_bytes": 8, "step_ratio": 1.0, "forward_ratio": 2.0, "others": 0.25}
    aim = {"aim": "an aim", "wanted": 2.0, "got": 1.5, "met": False, "most": False, "against": "eager"}
    aim |= {"best": 1.6, "ceiling": 3.0}
    refused = {"shape": "S", "peer": "flax", "refused": "dx is off"}
    found = {"kernels": "avx512", "torch": "9.9", "sequences": [row, refused], "streaming": [], "aims": [aim]}
    renew(page, tables(found))
    renew(page, tables(found))  # and again
    text = page.read_text()
    for line in (
        "kernels avx512, torch 9.9; others kept 0.25 CPUs busy meanwhile: NO FIGURE TO KEEP.\n",
        "|  | S |\n| --- | --- |\n| eager | 1.00, 2.00, 1.00 |\n| flax | refused |\n<!-- end -->",
        "| an aim | at least 2.00 | 1.50 | missed | 1.60 | 3.00 | eager |\n<!-- end -->",
    ):
        assert text.count(line) == 1
    page.write_text(text.replace("<!-- machine -->", ""))
    with pytest.raises(ValueError, match="expected <!-- machine --> and <!-- end --> once, got 0"):
        renew(page, tables(found))


def rows_of(step_seconds, bytes_of):
    shared = {"shape": "M", "bfloat16": False, "step_floor": 0.5, "forward_floor": 0.5}
    return [
        {**shared, "peer": peer, "peak_bytes": bytes_of[peer], "step_seconds": times, "forward_seconds": times}
        for peer, times in step_seconds.items()
    ]  # fmt: skip


def test_aims_are_held_against_the_fastest_rival():
    seconds = {"eager": [4.0, 4.0], "Keras on TensorFlow": [3.1, 2.9], "fusecell": [1.0, 1.0],
               "fusecell, recompute": [1.5, 1.5]}  # fmt: skip
    peaks = {"eager": 100, "Keras on TensorFlow": 10, "fusecell": 70, "fusecell, recompute": 30}
    result = {
        "sequences": rows_of(seconds, peaks),
        "pointwise": [{"what": "g", "rival": "a", "aim": 0.67, "ratio": 0.5}],
    }
    found = {row["aim"]: row for row in bench_cpu.aims(result)}
    assert list(found) == ["M, step", "M, forward", "M, memory, fusecell", "M, memory, fusecell, recompute", "g"]
    assert (found["M, step"]["got"], found["M, step"]["against"]) == (3.0, "Keras on TensorFlow")
    assert (found["M, step"]["best"], found["M, step"]["ceiling"]) == (2.9, 5.8)
    met = {name: bench_cpu.is_met(row) for name, row in found.items()}
    assert met == {"M, step": True, "M, forward": True, "M, memory, fusecell": False,
                   "M, memory, fusecell, recompute": True, "g": False}  # fmt: skip


def run(*options):
    command = [sys.executable, BENCH / "bench_cpu.py", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_program_writes_what_it_found(tmp_path):
    shape, peers = "2,3,2,3,5,4,3", ["eager, channels_last", "fusecell", "fusecell.ops", "fusecell, bf16"]
    options = ["--shapes", shape, "--rounds", "2", "--quick", "--json", str(tmp_path / "found.json")]
    done = run(*options, "--peers", *peers)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["peer"] for row in found["sequences"]] == ["eager", *peers]
    assert [row["peer"] for row in found["streaming"]] == ["eager", *peers[:-1]]
    assert all(0 < row[key] < math.inf for row in found["sequences"] for key in ("step_ratio", "forward_ratio"))
    assert all(row["step_ratio"] == 1.0 for row in found["sequences"] if row["peer"] == "eager")
    assert {row["what"] for row in found["pointwise"]} > {"gates forward", "gates backward", "global norm"}
    assert all(isinstance(row["met"], bool) for row in found["aims"])


@pytest.mark.parametrize("shape", ["3,4", "XL"])
def test_a_shape_that_is_none_is_said(shape):
    done = run("--shapes", "S", shape)
    assert done.returncode == 2
    assert f"--shapes: expected S, M, L, K5 or seven numbers B,T,I,C,H,W,k, got {shape}" in done.stderr
