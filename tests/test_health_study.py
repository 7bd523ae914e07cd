"""bench/health_study.py: its runs are what their names say, and its table counts what the doctor said of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("health_study")


def test_two_healthy_and_two_sick_runs(bench):
    names = ["all_from_zero_without_hidden_units", "sure_outputs", "line_diverges", "gate_left_shut"]
    rows = bench.study(names, quiet=True)
    assert [(row.name, row.kind) for row in rows] == [
        ("all_from_zero_without_hidden_units", "healthy"), ("sure_outputs", "healthy"),
        ("gate_left_shut", "sick"), ("gate_left_shut", "cured twin"),
        ("line_diverges", "sick"), ("line_diverges", "cured twin"),
    ]  # fmt: skip
    assert all(row.as_named for row in rows)
    assert [row.result for row in rows if row.kind == "sick"] == ["right", "right"]
    assert [row.given for row in rows if row.kind == "healthy"] == [[], []]


def test_two_healthy_and_two_sick_runs_of_the_second_set(bench):
    names = ["a_dozen_steps", "hinge_to_nothing", "loop_by_hand_sums_from_empty", "the_same_example"]
    rows = bench.study(names, ["second"], quiet=True)
    assert {row.name for row in rows} == set(names)
    assert [row.kind for row in rows] == ["healthy", "healthy", "sick", "cured twin", "sick", "cured twin"]
    assert all(row.as_named and row.set == "second" for row in rows)


def row(bench, kind, right, given, name="a"):
    return bench.Row("second", name, 0, kind, "what it is", right, given, 1.0, 1.0, True)


def test_the_confusion_table_and_the_errors(bench):
    rows = [
        row(bench, "healthy", [], []),
        row(bench, "healthy", [], ["dead units"], "alarmed"),
        row(bench, "sick", ["dead units"], ["saturated units", "dead units"]),
        row(bench, "sick", ["dead units"], ["saturated units"], "mistaken"),
        row(bench, "sick", ["dead units"], [], "missed"),
        row(bench, "sick, no rule made", [], [], "allowed"),
    ]
    text = bench.tables(rows)
    assert "| healthy | 2 | 1 |  | 1 |" in text
    assert "| sick | 3 | 1 | 1 | 1 |" in text
    assert "| sick, no rule made | 1 | 1 |  | 0 |" in text
    assert [r.name for r in rows if r.errs] == ["alarmed", "mistaken", "missed"]
    assert "| `mistaken` | what it is | saturated units | not yet explained |" in text
    assert "| `allowed` | what it is | nothing |" in text
    assert "allowed" not in bench.tables(rows, unruled=False)


def test_what_was_kept_is_read_back(bench, tmp_path, capsys):
    name = "gate_left_shut"
    assert bench.main(["--only", name, "--set", "first", "--json", str(tmp_path / "a.json")]) == 0
    ran = capsys.readouterr().out
    assert bench.main(["--set", "first", "--read", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == ran
    assert "| sick | 1 |" in ran


def test_every_right_verdict_is_one_that_the_doctor_knows(bench):
    health = BENCH.parent / "python" / "fusecell" / "health"
    known = "".join((health / name).read_text(encoding="utf-8") for name in ("_verdicts.py", "monitor.py"))
    for _, run in bench.all_runs():
        for verdict in getattr(run, "right", ()):
            assert f'"{verdict}"' in known, run.name


def test_every_run_has_a_name_of_its_own(bench):
    names = [run.name for _, run in bench.all_runs()]
    assert len(names) == len(set(names))
    explained = {name.removesuffix(" (cured)") for name in bench.WHY}
    assert {name for name in explained if not name.startswith("torch_")} <= set(names)


def test_an_unknown_run(bench):
    with pytest.raises(ValueError, match="--only: expected names of runs, got nobody"):
        bench.study(["nobody"])
