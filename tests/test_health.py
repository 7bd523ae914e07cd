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
    assert str(verdict) in monitor.report()


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


# -------------------------------------------------------------------------------------------------- fusecell's layers
def conv_lstm(**options):
    return layers.ConvLSTM2D(1, 3, 3, rng=rng(), **options)


def watch(model, losses, make_x, **options):
    monitor = health.Monitor(model)
    for n, loss in enumerate(losses):
        y = model.forward(make_x(n), **options)
        model.backward(np.ones_like(y) / y.size)
        monitor.observe(loss)
        for parameter in model.parameters().values():
            parameter += 1e-3 * rng(n).standard_normal(parameter.shape).astype(parameter.dtype)
    return monitor


def some_frames(n, steps=6, batch=3):
    return rng(n).standard_normal((steps, batch, 1, 4, 4)).astype(np.float32)


def test_steps_that_all_samples_are_too_short_for_are_left_out():
    monitor = watch(conv_lstm(bidirectional=True), flat(), some_frames, lengths=np.array([2, 3, 4]))
    steps = monitor.observations[-1].steps
    assert {name: len(step.dh) for name, step in steps.items()} == {"l0": 4, "l0_reverse": 4}
    assert min(step.forget.min() for step in steps.values()) > 0.4
    assert names(monitor) == []


def test_the_kernels_sum_only_for_the_steps_that_are_read():
    layer = conv_lstm()
    monitor = health.Monitor(layer, every=2)
    watched = []
    for n in range(4):
        watched.append(layer.watched)
        y = layer.forward(some_frames(n))
        layer.backward(np.ones_like(y))
        monitor.observe(1.0)
    assert watched == [True, False, True, False]
    monitor.detach()
    assert not layer.watched
    with pytest.raises(RuntimeError, match="after detach"):
        monitor.observe(1.0)


def test_a_layer_that_was_watched_before_stays_so():
    layer = conv_lstm()
    layer.watched = True
    health.Monitor(layer).detach()
    assert layer.watched


@pytest.mark.parametrize(("gate", "row"), [("i", 0), ("f", 1), ("o", 3)])
def test_saturated_gates(gate, row):
    model = conv_lstm()
    model.parameters()["bias_l0"][3 * row : 3 * row + 3] = 20.0
    saturated = {v.where: v.words for v in watch(model, flat(), some_frames).verdicts() if v.name == "saturated gates"}
    assert saturated == {"l0": f"100 % of {gate} are at a bound"}
    assert "saturated gates" not in names(watch(model, falling(), some_frames))


def test_a_gradient_that_vanishes_in_the_reverse_direction():
    step = readings.StepReading(np.geomspace(1.0, 1e-9, 20), reverse=True)
    assert step.span == "from step 1 to 20"
    assert step.state[0] == pytest.approx(1e-9)
    both = readings.StepReading(np.array([3.0, 0.0]), np.array([4.0, 2.0]))
    assert both.state.tolist() == [5.0, 2.0]


def test_a_gradient_that_vanishes_over_the_layers():
    model = layers.Sequential(
        [layer for _ in range(12) for layer in (layers.Dense(6, 6, rng=rng()), layers.Activation("sigmoid"))]
    )
    found = watch(model, flat(), lambda n: rng(n).standard_normal((20, 6)).astype(np.float32)).verdicts()
    assert "0.weight" in [verdict.where for verdict in found if verdict.name == "vanishing gradient"]


def test_a_level_loss_that_explains_nothing_counts_as_not_falling():
    def outputs(right):
        return lambda n: rng(n).standard_normal((20, 1)) if right else 0.5 * rng(n + 999).standard_normal((20, 1))

    losses = np.concatenate([np.geomspace(9.0, 1.0, 10), np.ones(N - 10)])
    found = {}
    for right in (True, False):
        monitor = run(
            losses,
            steps=over_time(1e-9, 1.0),
            outputs=outputs(right),
            targets=lambda n: rng(n).standard_normal((20, 1)),
        )
        found[right] = names(monitor)
    assert found == {True: [], False: ["vanishing gradient"]}


def test_the_last_layer_may_saturate():
    model = layers.Sequential([layers.Dense(3, 2, rng=rng()), layers.Activation("sigmoid")])
    model.parameters()["0.bias"][...] = 50.0
    found = names(watch(model, flat(), lambda n: rng(n).standard_normal((9, 3)).astype(np.float32)))
    assert "saturated units" not in found
    hidden = layers.Sequential([*model.layers, layers.Dense(2, 1, rng=rng())])
    found = names(watch(hidden, flat(), lambda n: rng(n).standard_normal((9, 3)).astype(np.float32)))
    assert "saturated units" in found


# --------------------------------------------------------------------------------------------------------- what comes
def test_bad_gradients_are_named_in_the_order_of_backward():
    monitor, w = health.Monitor(), np.ones((2, 3))
    bad = np.full((2, 3), np.nan)
    monitor.observe(1.0, parameters={"first": w, "last": w}, gradients={"first": bad, "last": bad})
    (verdict,) = monitor.verdicts()
    assert verdict.where == "the gradient of last"


def test_a_negative_loss_that_falls_is_not_stuck():
    assert names(run(np.linspace(-2.0, -5.0, N), steps=over_time(1e-9, 1.0))) == []


def test_rows_of_one_number_may_be_equal():
    monitor, w = health.Monitor(), np.round(rng().standard_normal((64, 1)), 1)
    for loss in falling(10):
        monitor.observe(loss, parameters={"w": w}, gradients={"w": np.ones_like(w)})
        w = w - 0.1
    assert names(monitor) == []


def test_lists_and_nothing_at_all():
    monitor = health.Monitor()
    monitor.observe(
        1.0, parameters={"w": [[1.0, 2.0]], "none": np.ones((0, 2))}, gradients={"w": [[0.1, 0.2]]},
        units={"h": np.ones((0, 4))}, steps={"rnn": np.ones(0)}, outputs=np.ones((0, 1)), targets=np.ones((0, 1)),
    )  # fmt: skip
    monitor.look("list", [1.0, 2.0])
    (observation,) = monitor.observations
    assert observation.parameters["w"].gradient == pytest.approx(np.hypot(0.1, 0.2))
    assert (observation.units, observation.steps, observation.outputs) == ({}, {}, None)
    assert monitor.report()


def test_complex_numbers_have_a_norm_too():
    monitor = health.Monitor()
    monitor.observe(1.0, parameters={"w": np.array([3.0 + 4.0j])})
    assert monitor.observations[-1].parameters["w"].norm == pytest.approx(5.0)


def test_the_plot_shows_what_was_observed(tmp_path):
    pictures = []
    for last in (1e-3, 1e-8):
        run(falling(), steps=over_time(last, 1.0)).plot(tmp_path / "p.png")
        pictures.append((tmp_path / "p.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_an_exploding_gradient_is_told_though_the_loss_falls():
    assert names(run(1e3 * falling(), steps=over_time(1e7, 1.0))) == ["exploding gradient"]
