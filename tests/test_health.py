"""fusecell.health.Monitor: every verdict on readings made for it, none on those of a run that is well."""

from __future__ import annotations

import numpy as np
import pytest

from fusecell import health, layers
from fusecell.health import _readings as readings

N = 60  # iterations


def rng(seed=0):
    return np.random.default_rng(seed)


def falling(n=N):
    return np.geomspace(1.0, 0.05, n)


def flat(n=N):
    return 1.0 + 0.01 * rng(1).standard_normal(n)


def names(monitor):
    return [verdict.name for verdict in monitor.verdicts()]


def run(losses, *, n=N, monitor=None, step=1e-2, **observed):
    """A run by hand of one matrix and one bias; observed: name to a function of the iteration."""
    monitor = monitor or health.Monitor()
    g = rng()
    w, b = g.standard_normal((8, 5)), np.ones(8)
    for n, loss in enumerate(losses):
        dw, db = g.standard_normal(w.shape), g.standard_normal(b.shape)
        given = {"parameters": {"w": w, "b": b}, "gradients": {"w": dw, "b": db}}
        given.update({name: make(n) for name, make in observed.items()})
        monitor.observe(loss, **given)
        w -= step * dw
        b -= step * db
    return monitor


def over_time(first, last, steps=20):
    return lambda n: {"rnn": np.geomspace(first, last, steps)}


# ------------------------------------------------------------------------------------------------------------- healthy
@pytest.mark.parametrize("losses", [falling(), flat()], ids=["falling", "flat"])
def test_a_run_that_is_well_gets_no_verdict(losses):
    units = rng(3).standard_normal((50, 6))
    monitor = run(losses, units=lambda n: {"hidden": units}, steps=over_time(1e-3, 1.0))
    assert names(monitor) == []
    assert "nothing wrong was found" in monitor.report()


def test_a_vanished_gradient_is_no_illness_where_the_loss_falls():
    assert names(run(falling(), steps=over_time(1e-9, 1.0))) == []


def test_nothing_is_said_of_a_handful_of_steps():
    assert names(run(flat(3), steps=over_time(1e-9, 1.0))) == []


# ------------------------------------------------------------------------------------------------------ over the steps
def test_vanishing():
    (verdict,) = run(flat(), steps=over_time(1e-9, 1.0)).verdicts()
    assert (verdict.name, verdict.where) == ("vanishing gradient", "rnn")
    assert "1e+09-fold from step 20 to 1" in verdict.words


def test_exploding_over_the_steps():
    (verdict,) = run(flat(), steps=over_time(1e5, 1.0)).verdicts()
    assert (verdict.name, verdict.where) == ("exploding gradient", "rnn")


def test_a_jump_that_the_loss_does_not_come_back_from():
    losses = np.concatenate([falling(30), np.full(30, 50.0)])
    monitor = health.Monitor()
    w = np.ones((3, 3))
    for n, loss in enumerate(losses):
        monitor.observe(loss, parameters={"w": w}, gradients={"w": np.full((3, 3), 1e9 if n == 30 else 1.0)})
        w = w - 0.01 * rng(n).standard_normal((3, 3))
    assert "exploding gradient" in names(monitor)
    assert "iteration 30" in monitor.verdicts()[0].words


def test_a_jump_that_the_loss_comes_back_from_is_none():
    monitor = health.Monitor()
    w = rng().standard_normal((3, 3))
    for n, loss in enumerate(falling()):
        monitor.observe(loss, parameters={"w": w}, gradients={"w": np.full((3, 3), 1e9 if n == 30 else 1.0)})
        w = w - 0.01 * rng(n).standard_normal((3, 3))
    assert names(monitor) == []


# ------------------------------------------------------------------------------------------------------- not a number
def test_not_finite_says_where_first():
    def units(n):
        y = np.ones((4, 3))
        if n >= 7:
            y[2, 1] = np.inf
        return {"first": rng(n).standard_normal((4, 3)), "second": y * rng(n).standard_normal((4, 1))}

    losses = [0.5] * 8 + [np.nan] * 4
    (verdict,) = run(losses, units=units).verdicts()
    assert verdict.name == "not finite"
    assert verdict.where == "the output of second"
    assert "iteration 7" in verdict.words
    assert "[2, 1]" in verdict.words


def test_look_finds_memory_that_nobody_wrote():
    monitor = health.Monitor()
    with health.poisoned():
        total = np.empty(3)
        for t in range(4, -1, -1):
            total += np.ones(3)
            monitor.look("db", total, step=t)
    (verdict,) = monitor.verdicts()
    assert (verdict.name, verdict.where) == ("uninitialised memory", "db")
    assert "iteration 0 at time step 4" in verdict.words


def test_steps_may_be_gradients_or_their_norms():
    monitor = run(
        falling(3), steps=lambda n: {"norms": np.array([3.0, 5.0]), "all": np.array([[3.0, 4.0], [0.0, 2.0]])}
    )
    steps = monitor.observations[-1].steps
    assert steps["norms"].dh.tolist() == [3.0, 5.0]
    assert steps["all"].dh.tolist() == [5.0, 2.0]


def test_look_without_poison_says_not_finite():
    monitor = health.Monitor()
    monitor.look("a", np.ones(3))
    assert names(monitor) == []
    monitor.look("a", np.array([1.0, np.nan]))
    assert names(monitor) == ["not finite"]


# ---------------------------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_symmetric(value):
    monitor, w = health.Monitor(), np.full((4, 3), value)
    for loss in falling(10):
        monitor.observe(loss, parameters={"w": w}, gradients={"w": np.full((4, 3), 1e-3)})
        w -= 1e-3
    (verdict,) = monitor.verdicts()
    assert verdict.name == "symmetric units"
    assert "100 % of its 4 rows" in verdict.words


def test_a_last_layer_that_starts_at_zero_is_not_symmetric():
    monitor, w = health.Monitor(), np.zeros((4, 3))
    for n, loss in enumerate(falling(10)):
        gradient = rng(n).standard_normal((4, 3))
        monitor.observe(loss, parameters={"w": w}, gradients={"w": gradient})
        w -= 1e-3 * gradient
    assert names(monitor) == []


def test_outputs_that_never_occur_stay_equal_and_harm_nothing():
    monitor, hidden, last = health.Monitor(), rng().standard_normal((5, 3)), np.zeros((8, 5))
    for n, loss in enumerate(falling()):
        gradient = np.zeros_like(last)
        gradient[:3] = rng(n).standard_normal((3, 5))
        own = rng(n).standard_normal(hidden.shape)
        monitor.observe(loss, parameters={"hidden": hidden, "last": last}, gradients={"hidden": own, "last": gradient})
        hidden -= 1e-3 * own
        last -= 1e-3 * gradient
    assert names(monitor) == []


def test_hidden_units_that_are_one_are_told_though_the_loss_falls():
    monitor, hidden, last = health.Monitor(), np.ones((5, 3)), rng().standard_normal((2, 5))
    for n, loss in enumerate(falling()):
        own = rng(n).standard_normal(last.shape)
        arrays = {"hidden": hidden, "last": last}
        monitor.observe(loss, parameters=arrays, gradients={"hidden": np.ones_like(hidden), "last": own})
        hidden -= 1e-3
        last -= 1e-3 * own
    (verdict,) = monitor.verdicts()
    assert (verdict.name, verdict.where) == ("symmetric units", "hidden")


def test_a_parameter_without_a_gradient():
    monitor, w, b = health.Monitor(), rng().standard_normal((4, 3)), np.ones(4)
    for n, loss in enumerate(falling()):
        gradient = rng(n).standard_normal((4, 3))
        monitor.observe(loss, parameters={"w": w, "b": b}, gradients={"w": gradient, "b": np.zeros(4)})
        w -= 1e-3 * gradient
    (verdict,) = monitor.verdicts()
    assert (verdict.name, verdict.where) == ("parameter gets no gradient", "b")


def test_a_parameter_that_is_not_updated():
    monitor, w, b = health.Monitor(), rng().standard_normal((4, 3)), np.ones(4)
    for n, loss in enumerate(falling()):
        gradient = rng(n).standard_normal((4, 3))
        monitor.observe(loss, parameters={"w": w, "b": b}, gradients={"w": gradient, "b": np.ones(4)})
        w -= 1e-3 * gradient
    (verdict,) = monitor.verdicts()
    assert (verdict.name, verdict.where) == ("parameter is not updated", "b")


def test_a_parameter_that_is_frozen_on_purpose():
    for frozen, found in (((), ["parameter is not updated"]), (("b",), [])):
        monitor, w, b = health.Monitor(frozen=frozen), rng().standard_normal((4, 3)), np.ones(4)
        for n, loss in enumerate(falling()):
            gradient = rng(n).standard_normal((4, 3))
            monitor.observe(loss, parameters={"w": w, "b": b}, gradients={"w": gradient, "b": np.ones(4)})
            w -= 1e-3 * gradient
        assert names(monitor) == found


@pytest.mark.parametrize(("factor", "name"), [(1 + 1e-9, "updates too small"), (-1.0, "updates too large")])
@pytest.mark.parametrize("falls", [False, True])
def test_updates(factor, name, falls):
    monitor, w = health.Monitor(), rng().standard_normal((4, 3))
    for n, loss in enumerate(falling() if falls else flat()):
        monitor.observe(loss, parameters={"w": w}, gradients={"w": rng(n).standard_normal((4, 3))})
        w *= factor
    assert names(monitor) == ([] if falls else [name])


def test_a_loss_that_goes_up():
    assert names(run(np.geomspace(1, 100, N))) == ["updates too large"]


# --------------------------------------------------------------------------------------------------------------- units
def test_dead_units():
    y = rng().standard_normal((30, 10))
    y[:, :9] = 0
    (verdict,) = run(falling(), units=lambda n: {"hidden": y}).verdicts()
    assert (verdict.name, verdict.where) == ("dead units", "hidden")
    assert "90 %" in verdict.words


def test_units_that_take_turns_are_not_dead():
    def one_example(n):
        y = np.zeros((1, 10))
        y[0, n % 10] = 1.0
        return {"hidden": y}

    assert names(run(falling(), units=one_example)) == []


@pytest.mark.parametrize(("dead", "losses", "found"), [(6, flat(), True), (6, falling(), False), (3, flat(), False)])
def test_half_of_the_units_dead(dead, losses, found):
    y = rng().standard_normal((30, 10))
    y[:, :dead] = 0
    assert (names(run(losses, units=lambda n: {"hidden": y})) == ["dead units"]) is found


def test_saturated_units_that_are_the_same_for_all():
    y = 1 - 1e-9 * rng().random((30, 10))
    (verdict,) = run(falling(), units=lambda n: {"hidden": y}, bounds=lambda n: {"hidden": (0, 1)}).verdicts()
    assert (verdict.name, verdict.where) == ("saturated units", "hidden")


def test_sure_decisions_are_not_saturated_units():
    y = (rng().random((30, 10)) > 0.5).astype(float)
    assert names(run(falling(), units=lambda n: {"hidden": y}, bounds=lambda n: {"hidden": (0, 1)})) == []


def test_a_first_update_that_ruins_everything_is_no_loss_that_falls():
    def ruined(n):
        y = (rng(n).standard_normal((50, 6)) > 0).astype(float)
        return {"hidden": y}

    losses = np.concatenate([[75.0], np.linspace(580, 500, 59)])  # of logistic units in layers of 1000, rate 3
    losses[5:] += 20 * rng(2).standard_normal(55)
    assert names(run(losses, units=ruined, bounds=lambda n: {"hidden": (0, 1)})) == ["saturated units"]
    losses[0] = 600
    assert names(run(losses, units=ruined, bounds=lambda n: {"hidden": (0, 1)})) == []


def test_a_loss_that_grows_with_its_targets():
    def targets(n):
        return (1 + n) * rng(n).standard_normal((20, 1))

    losses = 0.1 * (1 + np.arange(N)) ** 2.0
    found = {}
    for right in (0.9, 0.1):
        found[right] = names(run(losses, outputs=lambda n, r=right: r * targets(n), targets=targets))
    assert found == {0.9: [], 0.1: ["updates too large"]}


# ------------------------------------------------------------------------------------------------- outputs and targets
def labels(n):
    return rng(n).integers(0, 4, 20)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda z: np.maximum(z, 0), "relu before softmax"),
        (lambda z: 1 / (1 + np.exp(-z)), "sigmoid before softmax"),
        (lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), "sigmoid before softmax"),
    ],
)
def test_what_goes_into_a_softmax(make, name):
    found = run(flat(), outputs=lambda n: make(rng(n).standard_normal((20, 4))), targets=labels).verdicts()
    assert [v.name for v in found] == [name]


def test_logits_may_go_into_a_softmax():
    assert names(run(falling(), outputs=lambda n: rng(n).standard_normal((20, 4)), targets=labels)) == []


def test_a_constant_output():
    monitor = run(flat(), outputs=lambda n: np.full((20, 1), 0.3), targets=lambda n: rng(n).standard_normal((20, 1)))
    assert names(monitor) == ["constant output"]


@pytest.mark.parametrize(("spread", "found"), [(0.02, ["constant output"]), (0.3, [])])
def test_an_output_that_hardly_moves(spread, found):
    def targets(n):
        return rng(n).standard_normal((200, 1))

    assert (
        names(run(flat(), outputs=lambda n: 0.1 + spread * rng(n + 99).standard_normal((200, 1)), targets=targets))
        == found
    )


def test_one_example_at_a_time_is_enough_to_see_a_constant_output():
    monitor = run(flat(), outputs=lambda n: np.full((1, 1), 0.3), targets=lambda n: rng(n).standard_normal((1, 1)))
    assert names(monitor) == ["constant output"]


def test_a_constant_output_whose_constant_still_moves():
    monitor = run(
        flat(),
        outputs=lambda n: np.full((20, 1), 0.3 + 0.01 * (-1) ** n),
        targets=lambda n: rng(n).standard_normal((20, 1)),
    )
    assert names(monitor) == ["constant output"]


@pytest.mark.parametrize(("strength", "found"), [(5.0, ["penalty drowns the loss"]), (0.1, [])])
def test_a_penalty(strength, found):
    losses = np.full(N, 1.0 + strength)
    assert names(run(losses, penalty=lambda n: strength)) == found


def test_a_penalty_that_has_pressed_the_weights_to_nothing():
    penalties = np.geomspace(20.0, 1e-6, N)
    assert names(run(1.0 + penalties, penalty=lambda n: penalties[n])) == ["penalty drowns the loss"]


# ----------------------------------------------------------------------------------------------------------- the class
def test_a_run_that_overflows_is_read_without_a_warning_and_named():
    monitor, w = health.Monitor(), rng().standard_normal((3, 2))
    for n in range(30):
        y = np.full((4, 3), 10.0 ** min(10 * n, 300))
        monitor.observe(y[0, 0] ** 0.5, outputs=y, targets=-y, parameters={"w": w}, gradients={"w": y[:3, :2]})
        w = w * 1e10
    assert {"exploding gradient", "updates too large"} <= set(names(monitor))
    monitor.observe(np.nan, outputs=np.full((4, 3), np.inf), targets=np.full((4, 3), np.inf))
    assert "not finite" in names(monitor)


def test_every_nth_step_alone_is_read():
    monitor = run(falling(), monitor=health.Monitor(every=10))
    assert [o.iteration for o in monitor.observations] == [0, 10, 20, 30, 40, 50]
    assert all(o.parameters["w"].update is not None for o in monitor.observations)


def test_a_long_run_keeps_its_beginning_and_its_end():
    monitor = run(falling(200), monitor=health.Monitor(keep=64))
    kept = [o.iteration for o in monitor.observations]
    assert len(kept) <= 64
    assert kept[0] == 0
    assert kept[-20:] == list(range(180, 200))
    assert kept == sorted(kept)


def test_the_update_is_the_change_over_the_weight():
    monitor, w = health.Monitor(), np.full((2, 2), 2.0)
    monitor.observe(1.0, parameters={"w": w}, gradients={"w": w})
    w += 0.5
    monitor.observe(1.0, parameters={"w": w}, gradients={"w": w})
    assert monitor.observations[0].parameters["w"].update == pytest.approx(0.25)


def test_what_does_not_fit():
    monitor = health.Monitor()
    with pytest.raises(ValueError, match=r"gradients: v: expected one of the parameters \['w'\]"):
        monitor.observe(1.0, parameters={"w": np.ones(2)}, gradients={"v": np.ones(2)})
    with pytest.raises(ValueError, match=r"gradients: w: expected \(2,\), got \(3,\)"):
        monitor.observe(1.0, parameters={"w": np.ones(2)}, gradients={"w": np.ones(3)})
    with pytest.raises(TypeError, match=r"expected a fusecell Layer, a torch.nn.Module or None, got int"):
        health.Monitor(3)
    with pytest.raises(ValueError, match="at least one observation"):
        health.Monitor().plot("never.png")


def test_the_plot(tmp_path):
    run(falling(), steps=over_time(1e-3, 1.0)).plot(tmp_path / "steps.png")
    run(falling()).plot(tmp_path / "parameters.png")
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("steps", "parameters")]
    assert min(sizes) > 5000


def test_vanished_gradients_have_a_norm():
    """Squares of 1e-30 are 0 in float32."""
    from fusecell.health import _arrays

    assert _arrays.norm(np.full(4, 1e-30, np.float32)) == pytest.approx(2e-30)


def test_units_of_images_are_their_channels():
    y = np.zeros((2, 3, 5, 4, 4), np.float32)
    y[:, :, 0] = rng().random((2, 3, 4, 4))
    read = readings.read_units(y, readings.unit_axis(y), None)
    assert (read.units, read.examples, read.dead) == (5, 96, 0.8)


@pytest.mark.parametrize(
    ("size", "pressed", "found"), [(100.0, True, ["bounded output"]), (100.0, False, []), (0.5, True, [])]
)
def test_targets_out_of_reach(size, pressed, found):
    """Beyond what tanh units and these weights allow; where the outputs do not press against it, it may be noise."""
    model = layers.Sequential([layers.Activation("tanh"), layers.Dense(4, 1, rng=rng())])
    model.parameters()["1.weight"][...] = 0.5
    monitor = health.Monitor(model)
    for n, loss in enumerate(falling()):
        x = rng(n).standard_normal((30, 4)).astype(np.float32)
        y = model.forward(x * (100 if pressed else 0.01))
        model.backward(np.ones_like(y))
        monitor.observe(loss, outputs=y, targets=(size * rng(n).standard_normal(y.shape)).astype(np.float32))
        model.parameters()["1.bias"][...] += 1e-4
    assert [name for name in names(monitor) if name == "bounded output"] == found


def test_a_bounded_last_activation_is_a_reach():
    model = layers.Sequential([layers.Dense(3, 1, rng=rng()), layers.Activation("sigmoid")])
    monitor = health.Monitor(model)
    for n, loss in enumerate(falling()):
        x = 10 * rng(n).standard_normal((30, 3)).astype(np.float32)
        y = model.forward(x)
        model.backward(np.ones_like(y))
        monitor.observe(loss, outputs=y, targets=np.float32(3.0) * np.sign(x[:, :1]))
    assert "bounded output" in names(monitor)


def test_output_bounds():
    weight, bias = np.array([[1.0, -2.0], [0.5, 0.5]]), np.array([0.1, 0.0])
    assert health.output_bounds(weight, bias, (-1.0, 1.0)) == pytest.approx((-2.9, 3.1))
    assert health.output_bounds(weight, bias, (0.0, 1.0)) == pytest.approx((-1.9, 1.1))
