"""bench/gpu_training.py without a GPU: the order, the budget, what breaks and goes on, and what the tables say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.append(str(BENCH))
import gpu_results  # noqa: E402
import gpu_training  # noqa: E402
from gpu_results import Cell, Rematch, Results, plan, row  # noqa: E402
from processes import Gone, Process, Refused, Silent  # noqa: E402

SHAPES, PRECISIONS, PEERS = list(gpu_results.SHAPES), gpu_results.PRECISIONS, list(gpu_results.PEERS)


class FakeWorkers:
    """Answers at once; each answer takes a second of the fake clock, and `slow` ones longer.

    ms: by (peer, graph), else 10. broken: what a cell's hold raises.
    """

    def __init__(self, ms=None, broken=None, slow=None):
        self.ms, self.broken, self.slow = ms or {}, broken or {}, slow or {}
        self.now, self.asked, self.held, self.before_each = 0.0, [], {}, lambda: None

    def ask(self, peer, precision, method, *arguments, patience):
        self.before_each()
        self.asked.append((peer, precision, method))
        self.now += min(self.slow.get(peer, 1.0) if method == "hold" else 1.0, patience)
        if method == "truth":
            Path(arguments[1]).touch()
            return None
        if method == "hold":
            _, _, graph, truth = arguments
            assert Path(truth).exists()
            if self.slow.get(peer, 0) > patience:
                raise Silent(f"no answer in {patience} s")
            if reason := self.broken.get((peer, graph)):
                raise reason
            self.held[peer, precision] = graph
            return {"errors": {"y": 0.25}, "once_ms": self.time(peer, graph), "peak_bytes": 100}
        assert method == "series"
        return [self.time(peer, self.held[peer, precision])] * arguments[0]

    def time(self, peer, graph):
        return self.ms.get((peer, graph), 10.0)

    def leave(self, peer, precision):
        self.asked.append((peer, precision, "leave"))


def measured(tmp_path, workers, tasks, seconds=1e6, results=None):
    results = results or Results(tmp_path / "found.json")
    budget = gpu_training.Budget(seconds, lambda: workers.now)
    gpu_training.Measuring(workers, results, budget, tmp_path).run(tasks)
    return results


def found_with(tmp_path, times, shape="reference", precision="bf16", mode="training", peaks=None):
    """times: by (peer, graph)."""
    results = Results(tmp_path / "found.json")
    for (peer, graph), ms in times.items():
        timing = {"ms": ms, "errors": {"y": 1e-3}, "peak_bytes": (peaks or {}).get(peer)}
        results.found["cells"][Cell(shape, precision, peer, mode, graph).key] = timing
    return results


# ------------------------------------------------------------------------------------------------------------ the plan
def test_the_plan_has_every_cell_once():
    cells = [task for task in plan(SHAPES, PRECISIONS, PEERS) if isinstance(task, Cell)]
    assert len(cells) == len(set(cells)) == 5 * 3 * (6 * 4 + 1 + 2 * 2)
    assert len({cell.key for cell in cells}) == len(cells)
    recompute = {(c.mode, c.graph) for c in cells if c.peer == "fusecell, recompute"}
    assert recompute == {("training", False)}


def test_the_most_important_comes_first():
    tasks = plan(SHAPES, PRECISIONS, PEERS)
    cells = [task for task in tasks if isinstance(task, Cell)]
    first = [c.peer for c in cells if (c.shape, c.precision) == ("reference", "bf16")]
    assert list(dict.fromkeys(first)) == PEERS
    assert [c.key for c in cells[:4]] == [
        "reference|bf16|fusecell|training|call", "reference|bf16|fusecell|inference|call",
        "reference|bf16|fusecell|training|graph", "reference|bf16|fusecell|inference|graph",
    ]  # fmt: skip
    order = list(dict.fromkeys((c.precision, gpu_results.PEERS[c.peer].stage) for c in cells))
    assert order == [
        ("bf16", 0), ("bf16", 1), ("TF32", 0), ("float32", 0), ("bf16", 2),
        ("TF32", 1), ("float32", 1), ("TF32", 2), ("float32", 2),
    ]  # fmt: skip
    quick = [c.shape for c in cells if c.precision == "bf16" and c.peer == "eager"]
    assert list(dict.fromkeys(quick)) == ["reference", "small", "small, k5", "wide", "large"]


@pytest.mark.parametrize("peers", [PEERS, ["fusecell", "eager"]])
def test_a_rematch_follows_its_cells(peers):
    tasks = plan(SHAPES, PRECISIONS, peers)
    for shape, precision, mode in {(t.shape, t.precision, t.mode) for t in tasks}:
        match = Rematch(shape, precision, mode)
        after = tasks[len(tasks) - tasks[::-1].index(match) :]
        assert not [t for t in after if isinstance(t, Cell) and (t.shape, t.precision) == (shape, precision)]


def test_the_shapes_are_those_of_the_issue():
    assert [tuple(vars(shape).values()) for shape in gpu_results.SHAPES.values()] == [
        (16, 20, 64, 64, 64, 64, 3), (4, 10, 1, 16, 64, 64, 3), (4, 10, 8, 32, 32, 32, 5),
        (8, 20, 32, 64, 128, 128, 3), (2, 12, 128, 128, 256, 256, 3),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- measuring
def test_each_cell_is_written_when_it_is_there(tmp_path):
    tasks = plan(["reference"], ["bf16"], ["fusecell", "eager"])
    workers, written = FakeWorkers(), []

    def look():
        if (tmp_path / "found.json").exists():
            written.append(len(json.loads((tmp_path / "found.json").read_text())["cells"]))

    workers.before_each = look
    results = measured(tmp_path, workers, tasks)
    assert sorted(set(written)) == list(range(1, 9))
    assert Results.read(results.path).found == results.found
    assert results.found["cells"]["reference|bf16|eager|training|graph"] == {
        "ms": 10.0, "min_ms": 10.0, "repetitions": 60, "errors": {"y": 0.25}, "once_ms": 10.0, "peak_bytes": 100,
    }  # fmt: skip


def test_what_fails_says_why_and_ends_nothing(tmp_path):
    reasons = {
        ("eager", True): Refused("RuntimeError: operation not permitted\nmore of it"),
        ("channels_last", False): AssertionFailed,
    }
    tasks = plan(["small"], ["bf16"], ["fusecell", "eager", "channels_last"])
    results = measured(tmp_path, FakeWorkers(broken=reasons), tasks)
    cells = results.found["cells"]
    assert len(cells) == 12
    assert cells["small|bf16|eager|training|graph"] == {"failed": "RuntimeError: operation not permitted"}
    assert "off by" in cells["small|bf16|channels_last|inference|call"]["failed"]
    assert cells["small|bf16|channels_last|inference|graph"]["ms"] == 10
    assert not gpu_results.of_fusecell_failed(results)
    text = gpu_results.tables(results, ["small"], ["bf16"])
    assert "small|bf16|eager|inference|graph: RuntimeError: operation not permitted" in text


AssertionFailed = Refused("channels_last: y is off by 3.0e-01, allowed 5e-02: not timed")


def test_a_peer_that_hangs_is_given_up_and_the_next_goes_on(tmp_path):
    tasks = plan(["small"], ["bf16"], ["eager", "fusecell"])
    results = measured(tmp_path, FakeWorkers(slow={"fusecell": 1e4}), tasks)
    assert "no answer in 90 s" in results.found["cells"]["small|bf16|fusecell|training|call"]["failed"]
    assert gpu_results.of_fusecell_failed(results)
    assert row(results, "small", "bf16", "training").failed == "no answer in 90 s"
    assert results.timing(Cell("small", "bf16", "eager", "training"))


def test_the_budget_is_kept_and_what_is_missing_is_made_up_for(tmp_path):
    tasks = plan(["reference"], ["bf16"], ["fusecell", "eager", "channels_last"])
    workers = FakeWorkers()
    results = measured(tmp_path, workers, tasks, seconds=25)
    assert workers.now <= 25
    done = dict(results.found["cells"])
    assert 2 < len(done) < 12
    again = FakeWorkers()
    results = measured(tmp_path, again, tasks, results=Results.read(results.path))
    assert len(results.found["cells"]) == 12
    assert done.items() <= results.found["cells"].items()
    holds = [peer for peer, _, method in again.asked if method == "hold"]
    assert len(holds) == 12 - len(done) + 2 * 3  # and two rematches
    third = FakeWorkers()
    measured(tmp_path, third, tasks, results=results)
    assert third.asked == []


def test_a_cell_that_the_budget_cut_short_is_missing_and_not_failed(tmp_path):
    tasks = plan(["small"], ["bf16"], ["eager", "fusecell"])
    workers = FakeWorkers(slow={"fusecell": 80})
    results = measured(tmp_path, workers, tasks, seconds=60)
    assert workers.now <= 60
    assert [key.split("|")[2] for key in results.found["cells"]] == ["eager"] * 4
    assert row(results, "small", "bf16", "training").failed == "no time"


def test_without_a_truth_nothing_is_timed_and_it_is_tried_once(tmp_path):
    class NoTruth(FakeWorkers):
        def ask(self, peer, precision, method, *arguments, patience):
            if method == "truth":
                self.asked.append((peer, precision, method))
                raise Refused("OutOfMemoryError: 80 GiB")
            return super().ask(peer, precision, method, *arguments, patience=patience)

    workers = NoTruth()
    results = measured(tmp_path, workers, plan(["large"], ["bf16"], ["fusecell", "eager"]))
    assert [method for *_, method in workers.asked] == ["truth"]
    reasons = {found["failed"] for found in results.found["cells"].values()}
    assert reasons == {"no results in float64 to compare with: OutOfMemoryError: 80 GiB"}


def test_nobody_holds_the_gpu_while_a_truth_is_made(tmp_path):
    workers = FakeWorkers()
    measured(tmp_path, workers, plan(["small", "large"], ["bf16"], ["fusecell"]))
    second = len(workers.asked) - workers.asked[::-1].index(("eager", "float32", "truth")) - 1
    assert workers.asked[second - 1] == ("fusecell", "bf16", "leave")


def test_a_peer_lets_the_next_have_the_gpu(tmp_path):
    workers = FakeWorkers()
    measured(tmp_path, workers, plan(["small"], ["bf16"], ["fusecell", "eager"])[:8])
    done = [method for peer, _, method in workers.asked if method in ("hold", "leave")]
    assert done == ["hold"] * 4 + ["leave"] + ["hold"] * 4


@pytest.mark.parametrize("seconds", ["500", "5"])
def test_where_nothing_can_be_measured(seconds, tmp_path, monkeypatch, capsys):
    def ask(self, peer, precision, method, *_, patience):
        raise Gone("eager, bf16: its process ended with 1: no GPU")

    monkeypatch.setattr(gpu_training.Workers, "ask", ask)
    monkeypatch.setattr(gpu_training.signal, "signal", lambda *_: None)
    command = ["--json", str(tmp_path / "found.json"), "--seconds", seconds, "--peers", "eager"]
    if seconds == "5":
        assert gpu_training.main(command) == 0
    else:
        with pytest.raises(SystemExit, match="nothing can be measured: eager, bf16: its process ended with 1: no GPU"):
            gpu_training.main(command)
    assert capsys.readouterr().out.count("no time") == 30


def test_another_machine_is_refused(tmp_path):
    results = Results(tmp_path / "found.json")
    results.expect_machine({"device": "one"})
    results.expect_machine({"device": "one"})
    with pytest.raises(ValueError, match=r"expected the machine of .*found\.json, .*'one'.*, got .*'another'"):
        results.expect_machine({"device": "another"})


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="expected the results of this program, got rows"):
        Results.read(tmp_path / "other.json")


def test_rivals_take_turns_with_fusecell(tmp_path):
    ms = {("fusecell", True): 4, ("fusecell", False): 5, ("eager", False): 20, ("eager", True): 12,
          ("channels_last", False): 11, ("compile", True): 6, ("compile", False): 8}  # fmt: skip
    workers = FakeWorkers(ms)
    results = measured(tmp_path, workers, plan(["small"], ["bf16"], ["fusecell", "eager", "channels_last", "compile"]))
    played = results.found["rematches"]["small|bf16|training"]
    assert played == {"fusecell, graph": [4] * 5, "compile, graph": [6] * 5, "channels_last, graph": [10] * 5}
    last = [peer for peer, _, method in workers.asked if method == "series"][-15:]
    assert last == ["fusecell", "compile", "channels_last"] * 5
    one = row(results, "small", "bf16", "training")
    assert (one.ours, one.ms, one.best, one.best_ms, one.ratio) == ("fusecell, graph", 4, "compile, graph", 6, 1.5)
    assert one.by_turns
    assert one.over_eager == 4.0  # 20 by 5: both as called


def test_a_rematch_is_played_again_when_a_faster_rival_appears(tmp_path):
    results = measured(tmp_path, FakeWorkers(), plan(["small"], ["bf16"], ["fusecell", "eager"]))
    assert set(results.found["rematches"]["small|bf16|training"]) == {"fusecell", "eager"}
    faster = FakeWorkers({("JAX", False): 3})
    tasks = plan(["small"], ["bf16"], ["fusecell", "eager", "JAX"])
    measured(tmp_path, faster, tasks, results=results)
    assert set(results.found["rematches"]["small|bf16|training"]) == {"fusecell", "JAX", "eager"}
    assert row(results, "small", "bf16", "training").best == "JAX"


def test_a_rematch_that_cannot_be_played_leaves_the_first_timings(tmp_path):
    results = found_with(tmp_path, {("fusecell", False): 4.0, ("eager", False): 6.0}, "small")
    measured(
        tmp_path,
        FakeWorkers(broken={("eager", False): Refused("x")}),
        [Rematch("small", "bf16", "training")],
        results=results,
    )
    assert results.found["rematches"]["small|bf16|training"] == {"fusecell": [], "eager": []}
    one = row(results, "small", "bf16", "training")
    assert (one.ratio, one.by_turns) == (1.5, False)
    assert "1.50*" in gpu_results.tables(results, ["small"], ["bf16"])


@pytest.mark.parametrize(("ms", "left", "count"), [(10, 1e3, 60), (0.01, 1e3, 100), (1e4, 1e3, 5), (10, 4, 20)])
def test_how_often_a_run_is_repeated(ms, left, count):
    assert gpu_training.repetitions(ms, 0.6, left) == count


def test_compilations_go_ahead_together_for_a_quarter_of_the_time(tmp_path):
    class Compiling:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append((self.name, "closed"))

        def ask(self, method, sizes, mode, graph, truth, patience):
            assert (method, graph, truth) == ("hold", False, None)
            assert patience <= 100
            asked.append((sizes, mode))
            if sizes[0] == 2:
                raise Refused("too large")

    asked, workers = [], FakeWorkers()
    workers.start = lambda peer, precision, threads: Compiling((peer, precision, threads >= 1))
    tasks = plan(["reference", "large"], ["bf16"], ["fusecell", "compile"])
    results = measured(tmp_path, workers, tasks, seconds=400)
    large, reference = ((*vars(gpu_results.SHAPES[name]).values(),) for name in ("large", "reference"))
    assert sorted(asked[:5], key=str) == sorted(
        [(large, "training"), (reference, "training"), (reference, "inference")]
        + [(("compile", "bf16", True), "closed")] * 2,
        key=str,
    )
    assert len(asked) == 5  # once
    assert results.timing(Cell("large", "bf16", "compile", "inference", True))


# ----------------------------------------------------------------------------------------------------------- processes
class FakeProcess:
    def __init__(self, *answers):
        self.answers, self.asked, self.closed = list(answers), [], False

    def ask(self, method, *arguments, patience):
        self.asked.append(method)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        ([1], True),
        ([Refused("wrong"), None], True),
        ([Refused("CUDA error"), Refused("CUDA error")], False),
        ([Silent("late")], False),
        ([Gone("died")], False),
    ],
)
def test_a_process_that_may_be_harmed_is_closed(answers, kept, tmp_path, monkeypatch):
    process = FakeProcess(*answers)
    workers = gpu_training.Workers("cpu", tmp_path)
    monkeypatch.setattr(workers, "start", lambda *_: process)
    if isinstance(answers[0], Exception):
        with pytest.raises(type(answers[0]), match=str(answers[0])):
            workers.ask("eager", "bf16", "hold", patience=5)
    else:
        assert workers.ask("eager", "bf16", "hold", patience=5) == 1
    assert process.closed is not kept
    assert (("eager", "bf16") in workers.processes) is kept


def test_who_keeps_memory_is_closed_when_it_is_left(tmp_path, monkeypatch):
    workers = gpu_training.Workers("cpu", tmp_path)
    made = {}
    monkeypatch.setattr(workers, "start", lambda peer, *_: made.setdefault(peer, FakeProcess(1, None)))
    for peer in ("JAX", "eager"):
        workers.ask(peer, "bf16", "hold", patience=5)
        workers.leave(peer, "bf16")
    assert made["JAX"].closed
    assert made["eager"].asked == ["hold", "rest"]
    workers.close_all()
    assert made["eager"].closed


def echo(tmp_path, body):
    path = tmp_path / "served.py"
    path.write_text(f"import sys, time, os\nsys.path.append({str(BENCH)!r})\nfrom processes import serve\n{body}")
    return Process("echo", [sys.executable, str(path)], {"ADDED": "1"})


def test_a_process_answers_refuses_is_silent_and_dies(tmp_path):
    body = """
class Served:
    def add(self, a, b): print("by the way"); return a + b
    def added(self): return os.environ["ADDED"]
    def wrong(self): raise AssertionError("off by 1")
    def sleep(self): time.sleep(60)
    def die(self): print("last words", file=sys.stderr); os._exit(3)
serve(Served())
"""
    with echo(tmp_path, body) as one:
        assert one.ask("add", 1, 2) == 3
        assert one.ask("added") == "1"
        with pytest.raises(Refused, match=r"^off by 1$"):
            one.ask("wrong")
        with pytest.raises(Gone, match="echo: its process ended with 3: last words"):
            one.ask("die")
        with pytest.raises(Gone):
            one.ask("add", 1, 2)
    with echo(tmp_path, body) as one, pytest.raises(Silent, match="no answer to sleep in 0 s"):
        one.ask("sleep", patience=0.2)


# ----------------------------------------------------------------------------------------------- aims, floors, tables
@pytest.mark.parametrize(
    ("shape", "precision", "mode", "wanted", "over_eager"),
    [
        ("reference", "bf16", "training", 1.3, 1.9),
        ("small", "bf16", "training", 2.0, 4.0),
        ("small, k5", "bf16", "training", 2.0, 4.0),
        ("wide", "bf16", "training", None, None),
        ("reference", "bf16", "inference", None, None),
        ("large", "TF32", "training", 1.0, None),
        ("wide", "float32", "inference", 1.0, None),
    ],
)
def test_the_aims_are_those_of_the_issue(shape, precision, mode, wanted, over_eager):
    assert gpu_results.aim_of_speed(shape, precision, mode) == wanted
    assert gpu_results.aim_over_eager(shape, precision, mode) == over_eager


@pytest.mark.parametrize(("best", "verdict"), [(13.0, "met"), (12.9, "missed")])
def test_an_aim_is_met_or_missed(best, verdict, tmp_path):
    times = {("fusecell", False): 10.0, ("eager", False): 25.0, ("compile", True): best}
    one = row(found_with(tmp_path, times), "reference", "bf16", "training")
    assert one.best == "compile, graph"
    assert one.aim.verdict == verdict
    assert one.over_eager == 2.5


def test_recompute_is_no_rival_and_not_fusecells_time(tmp_path):
    times = {("fusecell", False): 10.0, ("fusecell, recompute", False): 1.0, ("eager", False): 20.0}
    one = row(found_with(tmp_path, times), "reference", "bf16", "training")
    assert (one.ours, one.best, one.ratio) == ("fusecell", "eager", 2.0)


def test_without_a_rival_there_is_no_figure(tmp_path):
    one = row(found_with(tmp_path, {("fusecell", False): 10.0}), "reference", "bf16", "training")
    assert (one.ms, one.ratio, one.aim.verdict) == (10.0, None, "no figure")


@pytest.mark.parametrize(("shape", "us"), [("reference", 48), ("wide", 73), ("large", 388), ("small, k5", 1.3)])
def test_the_floors_are_those_of_the_docs(shape, us):
    """Where operations are the longer part; a forward step of inference writes no gates."""
    assert 1e3 * gpu_results.floor_ms(gpu_results.SHAPES[shape], "bf16", {}) == pytest.approx(us, rel=0.015)


def test_a_floor_of_bytes_and_ceilings_of_the_run_itself():
    small, pixels = gpu_results.SHAPES["small"], 4 * 64 * 64
    nbytes = pixels * (2 * (1 + 16 + 16) + 4 * 2 * 16)
    assert gpu_results.floor_ms(small, "bf16", {}) == pytest.approx(1e3 * nbytes / 3.0e12)
    found = {"bf16": {"operations": 1e15, "bytes": 1e12}}
    assert gpu_results.floor_ms(small, "bf16", found) == pytest.approx(1e3 * nbytes / 1e12)
    wide = gpu_results.floor_ms(gpu_results.SHAPES["reference"], "float32", found)
    assert wide == pytest.approx(1e3 * 38.65e9 / 52e12, rel=1e-3)


def test_a_forward_step_is_held_against_its_floor(tmp_path):
    times = {("fusecell", False): 2.0, ("fusecell", True): 20 * 0.0485 / 0.6}
    results = found_with(tmp_path, times, mode="inference")
    one = row(results, "reference", "bf16", "inference")
    assert one.floor == pytest.approx(0.6, rel=2e-3)
    (aim,) = [aim for aim in gpu_results.aims(results, [one]) if "floor" in aim.what]
    assert (aim.wanted, aim.got) == (0.6, one.floor)


def test_the_other_aims(tmp_path):
    times = {("fusecell", False): 10.0, ("fusecell, recompute", False): 12.0, ("eager", False): 19.0}
    peaks = {"fusecell": 65, "fusecell, recompute": 46, "eager": 100}
    results = found_with(tmp_path, times, peaks=peaks)
    found = gpu_results.aims(results, [row(results, "reference", "bf16", "training")])
    assert [(a.what, a.wanted, a.got, a.verdict) for a in found] == [
        ("training, reference, bf16: by eager", 1.9, 1.9, "met"),
        ("training, reference, bf16: by the best rival (stretch)", 1.6, 1.9, "met"),
        ("peak memory, reference, bf16: fusecell by eager", 0.65, 0.65, "met"),
        ("peak memory, reference, bf16: fusecell, recompute by eager", 0.45, 0.46, "missed"),
    ]


def test_the_tables_of_nothing(tmp_path):
    text = gpu_results.tables(Results(tmp_path / "found.json"), SHAPES, PRECISIONS)
    assert text.count("no time") == 30
    assert text.count("no figure") == 3 + 2 * 5 + 2  # eager, memory, and the stretch and the floor


def test_the_tables(tmp_path):
    times = {("fusecell", False): 10.0, ("eager", False): 19.0, ("compile", True): 12.5}
    text = gpu_results.tables(found_with(tmp_path, times), ["reference"], ["bf16"])
    (line,) = [line for line in text.splitlines() if line.startswith("| reference | bf16      | training")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:] == ["fusecell", "10.000", "compile, graph", "12.500", "1.25*", "1.90", "1.30", "missed"]


# ---------------------------------------------------------------------------------------------------------- the command
def test_the_list_and_the_reading(tmp_path, capsys):
    assert gpu_training.main(["--list", "--peers", "fusecell", "eager"]) == 0
    assert capsys.readouterr().out.startswith("cell reference|bf16|fusecell|training|call\n")
    results = found_with(tmp_path, {("fusecell", False): 10.0, ("eager", False): 19.0})
    results.write()
    assert gpu_training.main(["--read", "--json", str(results.path), "--peers", "eager"]) == 0
    assert "1.90*" in capsys.readouterr().out
    results.put("cells", Cell("small", "bf16", "fusecell", "training").key, {"failed": "y is off"})
    assert gpu_training.main(["--read", "--json", str(results.path), "--peers", "eager"]) == 1
    assert "small|bf16|fusecell|training|call: y is off" in capsys.readouterr().out


def test_a_file_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        gpu_training.main([])
    assert "--json: expected a file, got none" in capsys.readouterr().err


def test_a_peer_whose_module_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(gpu_results.importlib.util, "find_spec", lambda name: None if name == "keras" else name)
    assert gpu_training.parsed(["--list"]).peers == [name for name in PEERS if name != "Keras"]


PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
*--target*) mkdir -p build/gpu-check/installed ;;
*--read*) echo "the tables" ;;
*gpu_training.py*) touch "$5" ;;
*--version*) echo Python 3 ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A checkout with little in it, and a python3 that writes down how it is called."""
    for name in ("bench/x", "csrc/a.cu", "python/b.py", "cmake/c", "tools/build_backend.py", "CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "pyproject.toml").touch()
    shutil.copy(BENCH / "gpu_check.sh", tmp_path / "bench")
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return tmp_path


def check(machine, *arguments):
    """The exit status, what was printed, and the calls of Python."""
    calls = machine / "calls"
    calls.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHON": str(machine / "python3"), "CALLS": str(calls)}
    command = ["bash", str(machine / "bench/gpu_check.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, calls.read_text() if calls.exists() else ""


def test_gpu_check_measures_training_on_the_build_of_its_sources(machine):
    folder = str(machine / "out")
    for builds in (True, False):
        status, printed, calls = check(machine, folder, "training")
        assert status == 0
        assert "\nthe tables\n0 failed, " in printed
        assert (Path(folder) / "training.txt").read_text() in printed
        assert ("pip install" in calls) is builds
        assert f"--json {folder}/training.json --resume" in calls
        assert "-m pytest" not in calls
        assert "bench/gpu.py" not in calls
    (machine / "csrc/a.cu").write_text("changed")
    assert "pip install" in check(machine, folder, "training")[2]


def test_gpu_check_without_a_second_word_checks(machine):
    status, printed, calls = check(machine, str(machine / "out"))
    for call in ("-m pip install", "-m pytest", "bench/gpu.py", "bench/bench_torch.py"):
        assert call in calls
    assert "gpu_training" not in calls
    assert status > 0  # compute-sanitizer is not there, or has no summary
    assert printed.endswith((machine / "out/summary.txt").read_text())


@pytest.mark.parametrize("arguments", [[], ["out", "everything"], ["out", "training", "more"]])
def test_gpu_check_says_how_it_is_called(machine, arguments):
    status, _, calls = check(machine, *arguments)
    assert (status, calls) == (64, "")
