"""examples/cases: each runs at its small size, finds the cause, and draws its picture."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusecell import ops

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
    assert all(word in text for word in ("The question", "The cure"))
    assert "The cause" in text or "The answer" in text


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


def test_conv_lstm_by_hand(run):
    found, _ = run("conv_lstm_by_hand")
    good, again = found["good"]
    assert len(good) == 50
    assert good == again, "sums begun in zeros: the same bits"
    assert np.mean(good[-5:]) < np.mean(good[:5]), "and it learns"
    healthy, sick = found["monitors"]
    assert healthy.verdicts() == []

    one, another = np.array(found["faulty"])
    assert one[0] == another[0], "the first example's loss knows nothing of the sums"
    assert (one[1:] != another[1:]).all()
    verdict = sick.verdicts()[0]
    assert verdict.name == "uninitialised memory"
    assert verdict.where.startswith("dbias_i")
    assert "iteration 0 at time step 7" in str(verdict)

    one_step, four_steps, flipped = found["unflipped"], found["unflipped, 4 steps"], found["flipped, 4 steps"]
    assert one_step.errors["h"] > 1
    assert "needs the kernel flipped" in one_step.gradients["h"].cause
    assert [name for name, gradient in one_step.gradients.items() if not gradient.right] == ["h"]
    assert four_steps.errors["kernel"] > 0.05, "over time the mistake reaches the weights' gradients, too"
    flipped.raise_if_wrong()


def test_conv_lstm_by_hand_clips_in_the_script_s_order(monkeypatch: pytest.MonkeyPatch):
    """Seven gradients at each step, the sums before they grow on; the readout is updated before its two are clipped."""
    case = runpy.run_path(str(FOLDER / "conv_lstm_by_hand.py"))
    scaled: list[Any] = []
    clip = ops.clip_if_any_exceeds_

    def record(given: list[Any], limit: float):
        scaled.append((limit, clip(given, limit)))

    monkeypatch.setattr(ops, "clip_if_any_exceeds_", record)
    p = case["state_file"](8, 16)
    p["readout"] *= 10  # a kernel's gradient that is to be clipped
    p["bias_y"] -= 1  # and the readout's
    before = {name: array.copy() for name, array in p.items()}
    _, gradients = case["bptt"](p, case["wave"](0, 8, 16))
    assert [(limit, len(found)) for limit, found in scaled] == [(1.0, 7)] * 8
    kernel = [found[0] for _, found in scaled]
    assert sum(kernel) > 1, "the running sum is scaled more than once"
    monkeypatch.setattr(ops, "clip_if_any_exceeds_", lambda given, limit: None)
    _, whole = case["bptt"]({name: array.copy() for name, array in before.items()}, case["wave"](0, 8, 16))
    assert ops.global_norm(gradients["kernel"]) < 0.9 * ops.global_norm(whole["kernel"])
    assert scaled[0][1][5], "the readout's gradient at the first step"
    for name in ("kernel", *case["GATES"]):
        assert np.array_equal(p[name], before[name] - case["RATE"] * gradients[name])
    assert ops.global_norm(gradients["readout"]) == pytest.approx(1)
    assert ops.global_norm(p["readout"] - before["readout"]) > 1.1 * case["RATE"], "not clipped when it was used"


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


def test_wide_logistic_network(run):
    found, _ = run("wide_logistic_network")
    overflow, stalled = found["pixels to 255"], found["large steps"]
    assert names(overflow["verdicts"]) == {"not finite"}
    assert (overflow["verdicts"][0].where, overflow["verdicts"][1].where) == ("e^z of layer 1", "the output of 1")
    assert "iteration 0" in overflow["verdicts"][0].words
    assert stalled["tiny"][:2] == ("layer 3", 1)
    assert names(stalled["verdicts"]) == {"saturated units"}
    assert stalled["accuracy"] < 0.2
    for name in ("smaller steps", "relu, Glorot"):
        assert not found[name]["verdicts"]
        assert found[name]["tiny"] is None
        assert found[name]["accuracy"] > 0.85
    best = {width: max((found["map"][width, rate], rate) for rate in (0.3, 3.0, 15.0))[1] for width in (10, 200)}
    assert best == {10: 3.0, 200: 0.3}, "the wider, the smaller the rate must be"


def test_batch_norm_order(run):
    found, _ = run("batch_norm_order")
    early = {order: accuracy[:, 1].mean() for order, accuracy in found["accuracies"].items()}
    assert min(early["before"], early["after"]) > early["none"] + 0.1
    assert abs(found["difference"][0]) < 1, "the place matters less than the thing"
    assert not any(verdicts for order in found["verdicts"].values() for verdicts in order)


def test_vanishing_gradient_rnn(run):
    found, _ = run("vanishing_gradient_rnn")
    costs = {key: of["costs"][-1] for key, of in found.items() if "costs" in of}
    assert costs["small", 100] < 1e-5
    assert costs["large", 100] > 3e-3 > 1.3 * costs["large, cured", 100]
    said = {key: names(of["verdicts"]) for key, of in found.items() if "costs" in of}
    assert said.pop(("large", 100)) == {"vanishing gradient"}
    assert not any(said.values())
    assert (found["the teacher", 100]["norms"] / found["the teacher", 100]["norms"][-1]).max() < 2
    for (_, length), of in found.items():
        if length == 100:
            s, back = np.linalg.norm(of["weight_hh"], 2), np.arange(99, -1, -1)
            assert (of["norms"] <= of["norms"][-1] * (s / 4) ** back * (1 + 1e-9)).all()


def test_xor_biases(run):
    found, _ = run("xor_biases")
    faulty, cured = found["faulty"], found["cured"]
    assert faulty["wrong"] == ["b1", "b2"]
    assert "saturated units" in faulty["verdicts"]
    assert not cured["wrong"]
    assert not cured["verdicts"]
    assert cured["loss"] < 1e-3 < 0.5 < faulty["loss"]


def test_same_prediction(run):
    found, _ = run("same_prediction")
    asked, raw = found["relu, Adam, L2"], found["no L2, raw inputs, rate 0.3"]
    for same in (asked, found["tanh for relu"], found["SGD for Adam"]):
        assert "penalty drowns the loss" in same["verdicts"]
        assert "constant output" in same["verdicts"]
        assert same["spread"] < 1e-6
    assert "dead units" in raw["verdicts"]
    assert "penalty drowns the loss" not in raw["verdicts"]
    assert raw["spread"] < 1e-6
    for cured in (found["L2 of 0.001"], found["no L2, inputs scaled, rate 0.01"]):
        assert not cured["verdicts"]
        assert cured["error"] < 0.05


def test_drowning_penalty(run):
    found, _ = run("drowning_penalty")
    *drowned, slow, faster, softmax = found.values()
    assert all(run["verdicts"] == ["penalty drowns the loss"] for run in drowned)
    assert all(run["accuracy"] < 0.2 for run in (*drowned, slow))
    assert all(run["accuracy"] > 0.9 and not run["verdicts"] for run in (faster, softmax))


def test_all_ones(run):
    found, _ = run("all_ones")
    for name in ("as asked", "+ bias", "+ log loss"):
        assert "saturated units" in found[name]["verdicts"]
        assert (found[name]["hidden"] == 1).all()
        assert found[name]["accuracy"] < 0.1
    for name in ("... and the log loss", "... and a bias"):
        assert not found[name]["verdicts"]
        assert found[name]["accuracy"] > 0.95
    assert found["+ weights of both signs"]["hidden"].std(axis=0).max() > 0.05
    assert found["cause"].startswith("0.1 times the right one")
    assert found["mended"]


def test_relu_at_zero(run):
    found, _ = run("relu_at_zero")
    for kind, runs in found.items():
        zero, half, one = (runs[at_zero] for at_zero in (0.0, 0.5, 1.0))
        if kind == "random numbers":
            assert zero["zeros"] == 0
            assert np.array_equal(zero["losses"], half["losses"])
            assert np.array_equal(zero["losses"], one["losses"])
        else:
            assert zero["zeros"] > 0.2
            assert not np.array_equal(zero["losses"], half["losses"])
            assert not half["verdicts"]
            assert not one["verdicts"]
    zero, half, _ = found["first layer starts at 0"].values()
    assert {"dead units", "symmetric units"} <= set(zero["verdicts"])
    assert half["losses"][-1] < 0.6 * zero["losses"][-1]


def test_levenberg_marquardt(run):
    found, _ = run("levenberg_marquardt")
    small, raw, slow = found["small start"], found["inputs 0 to 10"], found["descent"]
    assert small["needed"].max() < 50
    assert np.isinf(raw["needed"]).sum() >= 3
    assert slow["errors"][-1] > 3e-4, "after 3000 steps"
    assert not slow["verdicts"]


def test_levenberg_marquardt_has_the_jacobian_of_its_residuals():
    case = runpy.run_path(str(FOLDER / "levenberg_marquardt.py"))
    net, vector = case["network"](3, 1)
    x, step = case["X"], 1e-6 * np.eye(len(vector))
    slopes = [(case["residuals"](vector + e, net, x) - case["residuals"](vector - e, net, x)) / 2e-6 for e in step]
    assert np.allclose(case["jacobian"](vector, net, x), np.transpose(slopes), atol=1e-8)


def test_saved_gradients(run):
    found, _ = run("saved_gradients")
    for way in ("read after clearing", "kept before, not copied"):
        assert not found[way]["vectors"].any()
        assert found[way]["verdicts"] == ["parameter gets no gradient"]
    copied = found["copied before"]
    assert np.linalg.norm(copied["vectors"], axis=1).min() > 0.1
    assert not copied["verdicts"]
    assert copied["losses"][-1] < 0.5 * copied["losses"][0]
    assert found["stays"] == {"backward": True, "clip_norm": True, "clip_value": False}


def test_train_and_eval(run):
    found, _ = run("train_and_eval")
    assert not found["verdicts"]
    curves = found["curves"]
    for order in ("shuffled", "sorted by class"):
        assert min(curves[f"eval, {order}"]) > 0.95
        assert curves[f"train, {order}"][0] < 0.7
    assert curves["train, sorted by class"][0] < 0.15
    assert found["after"] < found["before"] - 0.02
    assert found["repeats"] == {True: False, False: True}


def test_stacked_autoencoder(run):
    found, _ = run("stacked_autoencoder")
    assert found["error"] == "x: expected [..., 250], got [1280, 784]"
    assert min(found["codes in training mode"]["differ"]) > 0.3
    assert found["codes in eval mode"]["differ"] == [0, 0, 0]
    together, random = found["... then all together"], found["all from random weights"]
    assert together["unexplained"] < 0.9 * random["unexplained"] < 0.9
    assert not any(found[name]["verdicts"] for name in found if name != "error")
