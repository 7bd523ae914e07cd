"""bench/gpu_peers.py on the CPU: every peer computes the same, and what does not is not timed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))
import gpu_peers  # noqa: E402
import gpu_results  # noqa: E402
from processes import Process, Refused  # noqa: E402
from shapes import Shape  # noqa: E402

TINY = (2, 3, 2, 3, 5, 4, 3)
IN_TORCH = [name for name, peer in gpu_results.PEERS.items() if not peer.needs and peer.stage == 0]

pytestmark = pytest.mark.filterwarnings("ignore:on the CPU fusecell computes bfloat16 in float32:UserWarning")


@pytest.fixture(autouse=True)
def switches():
    """Served sets them for its whole process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("truth") / "tiny.pt")
    gpu_peers.Served("eager", "float32", "cpu").truth(TINY, path)
    return path


def test_the_peers_are_those_of_the_plan():
    assert list(gpu_peers.MAKERS) == list(gpu_results.PEERS)
    assert set(gpu_peers.TOLERANCE) == set(gpu_results.PRECISIONS)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("peer", IN_TORCH)
def test_a_peer_computes_what_all_compute(peer, precision, truth):
    served = gpu_peers.Served(peer, precision, "cpu")
    for mode, names in (("training", {"weight_ih", "weight_hh", "bias"}), ("inference", {"y"})):
        found = served.hold(TINY, mode, False, truth)
        assert set(found["errors"]) == names
        low, high = (1e-4, 2e-2) if precision == "bf16" else (1e-9, 1e-6)
        assert all(low < error < high for error in found["errors"].values())
        assert 0 < found["once_ms"] < 1e3
        times = served.series(4)
        assert len(times) == 4
        assert min(times) > 0


@pytest.mark.parametrize(
    ("peer", "calls", "mode"),
    [("compile, step", 1, None), ("compile", 2, None), ("max-autotune", 2, "max-autotune-no-cudagraphs")],
)
def test_what_is_compiled(peer, calls, mode, truth, monkeypatch):
    """Compiling itself takes a minute."""
    asked, ran = [], []

    def compiled(function, **options):
        asked.append(options)
        return lambda *args: ran.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    served = gpu_peers.Served(peer, "bf16", "cpu")
    for kind in gpu_results.MODES:
        served.hold(TINY, kind, False, truth)
    assert asked == [{"dynamic": False, "mode": mode}] * calls
    assert set(ran) == ({"usual_step"} if calls == 1 else {"run", "loss"})


@pytest.mark.parametrize("peer", ["JAX", "Keras"])
def test_a_peer_on_jax_computes_the_same(peer, truth):
    if importlib.util.find_spec(gpu_results.PEERS[peer].needs) is None:
        pytest.skip(f"{peer} is not installed")
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    for precision, (low, high) in {"float32": (1e-9, 1e-6), "bf16": (1e-4, 2e-2)}.items():
        command = [sys.executable, str(BENCH / "gpu_peers.py"), peer, precision, "cpu"]
        with Process(peer, command, environment) as one:
            for mode in gpu_results.MODES:
                errors = one.ask("hold", TINY, mode, False, truth)["errors"]
                assert all(low < error < high for error in errors.values())
                assert len(one.ask("series", 10)) == 5
            with pytest.raises(Refused, match="XLA makes CUDA graphs"):
                one.ask("hold", TINY, "training", True, truth)


@pytest.mark.parametrize("value", [1e-3, float("nan")])
@pytest.mark.parametrize("result", ["y", "weight_ih", "weight_hh", "bias"])
def test_what_is_wrong_is_not_timed(result, value, truth, tmp_path):
    wrong = torch.load(truth)
    wrong[result].view(-1)[-1] += value * wrong[result].abs().max()
    torch.save(wrong, tmp_path / "wrong.pt")
    served = gpu_peers.Served("fusecell", "float32", "cpu")
    mode = "inference" if result == "y" else "training"
    served.hold(TINY, mode, False, truth)
    with pytest.raises(AssertionError, match=f"fusecell: {result} is off by .*, allowed 1e-04: not timed"):
        served.hold(TINY, mode, False, str(tmp_path / "wrong.pt"))
    with pytest.raises(RuntimeError, match="expected a run that has been checked, got none"):
        served.series(1)


def test_nan_in_a_result_is_seen():
    expected = torch.ones(3, 2, dtype=torch.float64)
    assert gpu_peers.largest_error(torch.tensor([[1.0, 1.0], [1.0, 1.5], [1.0, 1.0]]), expected) == 0.5
    for position in range(3):
        got = torch.ones(3, 2)
        got[position, 0] = float("nan")
        assert math.isnan(gpu_peers.largest_error(got, expected))


def test_a_training_step_has_no_gradient_of_x_and_parameters_stay_float32(truth):
    for peer in IN_TORCH:
        served = gpu_peers.Served(peer, "bf16", "cpu")
        served.hold(TINY, "training", False, truth)
        made = served.made
        assert not made.x.requires_grad
        assert made.x.dtype == torch.float32
        assert {p.dtype for p in made.parameters} == {torch.float32}
        assert {p.grad.dtype for p in made.parameters} == {torch.float32}


@pytest.mark.parametrize("peer", ["fusecell", "channels_last"])
def test_what_is_channels_last_stays_it(peer):
    made = gpu_peers.MAKERS[peer](gpu_peers.Numbers(Shape(*TINY), "cpu"), "float32")
    for sequence in (made.x, made.infer()):
        assert sequence.movedim(2, -1).is_contiguous()


def test_a_precision_sets_its_switches():
    for precision in gpu_results.PRECISIONS:
        gpu_peers.Served("eager", precision, "cpu")
        assert torch.backends.cudnn.allow_tf32 is (precision == "TF32")
        assert torch.backends.cuda.matmul.allow_tf32 is (precision == "TF32")


def test_what_rests_gives_its_gradients_back_and_stays(truth):
    served = gpu_peers.Served("eager", "float32", "cpu")
    served.hold(TINY, "training", False, truth)
    made = served.made
    served.rest()
    assert served.made is made
    assert all(p.grad is None for p in made.parameters)
    with pytest.raises(RuntimeError, match="got none"):
        served.series(1)
    served.hold(TINY, "inference", False, truth)
    assert served.made is made
    served.drop()
    assert served.made is None


def test_another_shape_is_made_anew(truth):
    served = gpu_peers.Served("eager", "float32", "cpu")
    served.hold(TINY, "inference", False, truth)
    served.hold((1, 1, 1, 1, 2, 2, 1), "inference", False, None)
    assert served.made.x.shape == (1, 1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="a CUDA graph needs a GPU"):
        served.hold(TINY, "training", True, truth)


class Event:
    """A CUDA event on the host's clock."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.seconds = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.seconds - self.seconds)


class Graph:
    """What is captured has run; a replay does nothing, or runs it again."""

    def __init__(self):
        self.replayed = 0

    def replay(self):
        self.replayed += 1


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda as the peers use it, without a GPU."""
    for name in ("synchronize", "current_stream", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5000)


def on_gpu(peer):
    """As if it were there."""
    made = gpu_peers.MAKERS[peer](gpu_peers.Numbers(Shape(*TINY), "cpu"), "float32")
    made.on_gpu = True
    served = gpu_peers.Served(peer, "float32", "cpu")
    served.made, served.shape = made, Shape(*TINY)
    return served


def test_times_by_events_and_the_peak(cuda, truth):
    served = on_gpu("eager")
    found = served.hold(TINY, "training", False, truth)
    assert found["peak_bytes"] == 4000
    assert served.hold(TINY, "inference", False, truth)["peak_bytes"] is None
    times = served.series(7)
    assert len(times) == 7
    assert 0 < min(times) < 1e3


@pytest.mark.parametrize("mode", gpu_results.MODES)
@pytest.mark.parametrize("peer", ["fusecell", "eager"])
def test_a_graph_that_does_nothing_when_it_is_replayed_is_wrong(peer, mode, cuda, truth):
    served = on_gpu(peer)
    served.hold(TINY, mode, False, truth)
    with pytest.raises(AssertionError, match=f"{peer}: .* is off by nan"):
        served.hold(TINY, mode, True, truth)


@pytest.mark.parametrize("mode", gpu_results.MODES)
def test_a_graph_is_replayed_and_compared(mode, cuda, truth, monkeypatch):
    served = on_gpu("eager")
    made, graphs = served.made, []

    class Replayed(Graph):
        """Writes where the captured run wrote."""

        def replay(self):
            super().replay()
            graphs.append(self)
            written = [p.grad for p in made.parameters] if mode == "training" else [output]
            if mode == "training":
                made.step()
                fresh = [p.grad for p in made.parameters]
            else:
                fresh = [infer()]
            with torch.no_grad():
                for target, source in zip(written, fresh, strict=True):
                    target.copy_(source)
            if mode == "training":
                for parameter, grad in zip(made.parameters, written, strict=True):
                    parameter.grad = grad

    infer, output = made.infer, made.infer()
    monkeypatch.setattr(made, "infer", lambda: output)  # the memory of the capture
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Replayed)
    assert max(served.hold(TINY, mode, True, truth)["errors"].values()) < 1e-6
    served.series(5)
    assert graphs[-1].replayed == 1 + (1 + gpu_peers.WARM) + (1 + 5)


def test_a_series_of_jax_is_five_means():
    peer, ran, waited = object.__new__(gpu_peers.JaxPeer), [], []
    peer.wait = waited.append
    times = peer.series(lambda: ran.append(time.sleep(2e-3)), 10)
    assert (len(times), len(waited), len(ran)) == (5, 6, 6 * 2)
    assert all(2 <= ms < 50 for ms in times)


def test_ceilings():
    found = gpu_peers.Served("eager", "bf16", "cpu").ceilings(64, 1000)
    assert 1e6 < found["operations"] < 1e14
    assert 1e6 < found["bytes"] < 1e13


PROGRAM = f"""
import sys
sys.path.append({str(BENCH)!r})
import gpu_training
from shapes import Shape
gpu_training.SHAPES["small"] = Shape{TINY}
sys.exit(gpu_training.main(sys.argv[1:]))
"""


def test_the_program_goes_on_where_it_ended(tmp_path):
    file = tmp_path / "found.json"

    def run(*peers):
        options = ["--device", "cpu", "--shapes", "small", "--precisions", "float32", "--json", str(file), "--resume"]
        command = [sys.executable, "-c", PROGRAM, *options, "--peers", *peers]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(file.read_text())

    _, first = run("eager")
    assert set(first["cells"]) == {"small|float32|eager|training|call", "small|float32|eager|inference|call"}
    printed, both = run("eager", "fusecell")
    assert first["cells"].items() <= both["cells"].items()
    assert len(both["cells"]) == 4
    assert set(both["rematches"]) == {"small|float32|training", "small|float32|inference"}
    assert all(len(turns) == 5 for match in both["rematches"].values() for turns in match.values())
    assert [run["peers"] for run in both["runs"]] == [["eager"], ["eager", "fusecell"]]
    assert "| small | float32   | training  | fusecell |" in printed
    assert not [line for line in printed.splitlines() if line.startswith("| small") and "*" in line]  # by turns
