"""examples/cases: each runs at its small size, finds the cause, and draws its picture."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples" / "cases"
CASES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """run(name): the figures of a case and the folder of its picture; each case runs once."""

    @cache
    def run(name: str) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp(name)
        return runpy.run_path(str(FOLDER / f"{name}.py"))["main"](["--small", "--out", str(out)]), out

    return run


def names(verdicts) -> set[str]:
    return {verdict.name for verdict in verdicts}


@pytest.mark.parametrize("name", CASES)
def test_a_case_draws_its_picture(run, name):
    assert (run(name)[1] / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", CASES)
def test_a_case_tells_its_question_cause_and_cure(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert 40 <= len(text.splitlines()) <= 120
    assert all(word in text for word in ("The question", "The cause", "The cure"))


def test_loss_flattens(run):
    found, _ = run("loss_flattens")
    assert found["first"] == pytest.approx(6.93, abs=0.01)
    assert found["plateau"] == pytest.approx(3.25, abs=0.01)
    for (start, rate), end in found["ends"].items():
        said = names(found["verdicts"][start, rate])
        if start == "random":
            assert not said
            assert end < 0.5 * found["plateau"]
        else:
            assert "symmetric units" in said
        if start == "zero":
            assert end == pytest.approx(found["plateau"], abs=0.05)


def test_last_layer(run):
    found, _ = run("last_layer")
    assert all("relu before softmax" in names(v) for v in found["verdicts"]["relu"])
    assert all("sigmoid before softmax" in names(v) for v in found["verdicts"]["sigmoid"])
    assert not any(found["verdicts"]["identity"])
    assert found["losses"]["sigmoid"] > found["floor"] > 1.46 > found["losses"]["identity"]
    assert min(found["accuracies"]["identity"]) > max(found["accuracies"]["relu"])


def test_relu_collapse(run):
    found, _ = run("relu_collapse")
    collapsed, cured = found["accuracies"].pop("relu"), found["accuracies"]
    assert max(collapsed) > 0.8
    assert collapsed[-1] < 0.3
    assert all(accuracy[-1] > 0.9 for accuracy in cured.values())
    verdicts = found["verdicts"]
    assert names(verdicts.pop("relu")) == {"dead units"}
    assert not any(verdicts.values())
    assert max(found["dead"]["relu"].values()) > 0.9


def test_prediction_ceiling(run):
    found, _ = run("prediction_ceiling")
    capped, scaled, relu = found["tanh"], found["tanh, scaled targets"], found["relu"]
    assert names(capped["verdicts"]) == {"bounded output"}
    assert capped["predicted"].max() <= capped["reach"][-1, 1] < 90
    assert scaled["reach"][-1, 1] > 100
    assert not scaled["verdicts"]
    assert not relu["verdicts"]
    assert scaled["error"] < relu["error"] < capped["error"]
