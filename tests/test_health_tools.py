"""health.check_gradients, health.poisoned and health.largest_singular_value: what they find, and what they leave."""

from __future__ import annotations

import doctest
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fusecell import health, layers, losses, ops, reference
from fusecell.health import _check_gradients

Array = np.ndarray[Any, Any]
Result = tuple[float, dict[str, Array]]


# ------------------------------------------------------------------------------------------------- check_gradients


def test_the_docstring_s_example_runs() -> None:
    assert doctest.testmod(_check_gradients).attempted > 5
    assert doctest.testmod(_check_gradients).failed == 0


def test_a_stack_of_layers_is_right(rng: np.random.Generator) -> None:
    x, target = rng.standard_normal((3, 2, 1, 4, 5)), rng.standard_normal((3, 2, 1, 4, 5))
    net = layers.Sequential(
        [
            layers.ConvLSTM2D(1, 2, 3, peephole="channel", rng=rng, dtype="float64"),
            layers.Conv2D(2, 1, 1, rng=rng, dtype="float64"),
        ]
    )
    before = {name: array.copy() for name, array in net.parameters().items()}

    def fn(x: Array, **parameters: Array) -> Result:
        net.load_parameters(parameters)
        loss, dy = losses.mean_squared(net.forward(x), target)
        return loss, {"x": net.backward(dy), **net.gradients()}

    check = health.check_gradients(fn, {"x": x, **net.parameters()}, most=40)
    check.raise_if_wrong()
    assert check.ok
    assert check.errors.keys() == {"x", *net.parameters()}
    assert max(check.errors.values()) < 1e-6
    assert "40 of 72" in str(check), "weight_hh is larger than `most`, and the table says so"
    for name, array in net.parameters().items():
        assert np.array_equal(array, before[name]), "the last call is made with the inputs as they were"


def tanh_layer(w: Array, x: Array, **_: Any) -> Result:
    y = np.tanh(w @ x)
    dz = np.cos(np.arange(y.size)).reshape(y.shape) * (1 - y * y)
    return float(np.sum(np.cos(np.arange(y.size)).reshape(y.shape) * y)), {"w": dz @ x.T, "x": w.T @ dz}


def broken(change: Callable[[Array], Array], name: str = "w") -> Callable[..., Result]:
    def fn(**inputs: Array) -> Result:
        loss, gradients = tanh_layer(**inputs)
        return loss, {**gradients, name: change(gradients[name])}

    return fn


def first_row_only(gradient: Array) -> Array:
    result = 1.5 * gradient
    result[0] = gradient[0]
    return result


def not_a_number(gradient: Array) -> Array:
    result = gradient.copy()
    result[1, 2] = np.nan
    return result


CAUSES: list[tuple[Callable[[Array], Array], str]] = [
    (lambda g: -g, "-1 times the right one throughout: its sign is turned"),
    (lambda g: 2 * g, "2 times the right one throughout: the 2 of a square too often?"),
    (lambda g: g / 2, "0.5 times the right one throughout: the 2 of a square forgotten?"),
    (lambda g: g / 5, "0.2 times the right one throughout: axis 1 of x is 5; a mean where"),
    (lambda g: g * 20, "20 times the right one throughout: the size of x is 20; a sum where"),
    (lambda g: g * 1.7, "1.7 times the right one throughout\n"),
    (lambda g: g.T, "transposed"),
    (lambda g: g[::-1], "flipped: right when turned around along axis 0"),
    (lambda g: g[:, ::-1], "flipped: right when turned around along axis 1"),
    (np.zeros_like, "zero everywhere"),
    (first_row_only, "right at 4 of 16 elements; cosine with the right one 0.9"),
    (not_a_number, "not finite: 1 of its values"),
    (lambda g: g[:3], "shape: expected (4, 4), got (3, 4)\n"),
    (lambda g: np.roll(g, 1), "right at 0 of 16 elements; cosine with the right one"),
]


@pytest.mark.parametrize(("change", "words"), CAUSES, ids=[words[:40] for _, words in CAUSES])
def test_the_cause_is_named(change: Callable[[Array], Array], words: str, rng: np.random.Generator) -> None:
    inputs = {"w": rng.standard_normal((4, 4)), "x": rng.standard_normal((4, 5))}
    assert health.check_gradients(tanh_layer, inputs).ok
    check = health.check_gradients(broken(change), inputs)
    assert not check.ok
    assert words in str(check)
    assert check.errors["w"] > 0.1
    assert check.errors["x"] < 1e-8
    assert not check.gradients["w"].right
    assert check.gradients["x"].right
    with pytest.raises(AssertionError, match="WRONG"):
        check.raise_if_wrong()


def test_where_the_wrong_elements_lie_is_said(rng: np.random.Generator) -> None:
    def third_column(gradient: Array) -> Array:
        return gradient * np.where(np.arange(4) == 2, 3, 1)

    inputs = {"w": rng.standard_normal((4, 4)), "x": rng.standard_normal((4, 5))}
    check = health.check_gradients(broken(third_column), inputs)
    assert "right at 12 of 16 elements, wrong only where axis 1 is 2" in check.gradients["w"].likeness
    row, column = check.gradients["w"].worst
    assert column == 2
    assert check.gradients["w"].analytic == pytest.approx(3 * check.gradients["w"].numeric)
    assert 0 <= row < 4


def test_a_transposed_gradient_of_another_shape(rng: np.random.Generator) -> None:
    inputs = {"w": rng.standard_normal((4, 4)), "x": rng.standard_normal((4, 5))}
    check = health.check_gradients(broken(lambda g: g.T, "x"), inputs)
    assert check.gradients["x"].cause == "shape: expected (4, 5), got (5, 4): transposed"
    assert check.errors["x"] == np.inf


def convolution(change: Callable[[Array, Array, Array], Array]) -> Callable[..., Result]:
    def fn(x: Array, weight: Array, bias: Array) -> Result:
        y = ops.conv2d_forward(x, weight, bias)
        gradients = ops.conv2d_backward(y, x, weight)
        return float(np.sum(y * y) / 2), {**gradients, "x": change(gradients["x"], y, weight)}

    return fn


def test_the_unflipped_kernel_is_named(rng: np.random.Generator) -> None:
    inputs = {"x": rng.standard_normal((2, 3, 5, 6)), "weight": rng.standard_normal((3, 3, 3, 3))}
    inputs["bias"] = rng.standard_normal(3)
    assert health.check_gradients(convolution(lambda dx, dy, weight: dx), inputs).ok

    unflipped = convolution(lambda dx, dy, weight: ops.conv2d_forward(dy, weight.swapaxes(0, 1).copy()))
    check = health.check_gradients(unflipped, inputs, most=60)
    assert check.errors["x"] > 0.5
    assert "needs the kernel flipped" in str(check)
    flipped = convolution(lambda dx, dy, weight: ops.conv2d_forward(dy, weight.swapaxes(0, 1)[..., ::-1, ::-1].copy()))
    assert health.check_gradients(flipped, inputs, most=60).ok
    doubled = health.check_gradients(convolution(lambda dx, dy, weight: 2 * dx), inputs, most=60)
    assert not doubled.ok
    assert "flipped" not in str(doubled), "a cause that was measured comes before one that is only likely"


def test_a_kernel_that_is_flipped_is_named(rng: np.random.Generator) -> None:
    def fn(x: Array, weight: Array) -> Result:
        y = ops.conv2d_forward(x, weight)
        return float(np.sum(y * y) / 2), {"weight": ops.conv2d_backward(y, x, weight)["weight"][..., ::-1, ::-1]}

    check = health.check_gradients(fn, {"x": rng.standard_normal((1, 2, 5, 6)), "weight": np.ones((2, 2, 3, 3))})
    assert check.gradients["weight"].cause == "flipped: right when turned around along its last two axes"


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_at_a_kink_every_slope_between_is_right(at_zero: float) -> None:
    x = np.array([-1.0, 0.0, 2.0, 0.0, 1e-8])

    def fn(x: Array, scale: float) -> Result:
        return float(np.sum(np.maximum(x, 0))), {"x": scale * np.where(x == 0, at_zero, x > 0)}

    check = health.check_gradients(fn, {"x": x, "scale": 1})
    assert check.ok
    assert check.gradients["x"].kinks == 3
    assert "kinks: at 3 elements" in str(check)
    assert not health.check_gradients(fn, {"x": x, "scale": 2}).ok


@pytest.mark.parametrize("jump", [1.0, 0.003])
@pytest.mark.parametrize("distance", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, -0.1, -0.2, -0.9])
def test_beside_a_kink_a_right_gradient_is_right(distance: float, jump: float) -> None:
    """distance: in steps. Where the slope jumps by less than its size, the difference of both sides is small."""

    def fn(x: Array, factor: float) -> Result:
        slope = 1 + jump * (x > 0)
        return float(np.sum(x + jump * np.maximum(x, 0))), {"x": factor * slope}

    x = np.full(3, distance * 6e-6)
    assert health.check_gradients(fn, {"x": x, "factor": 1}).ok
    assert not health.check_gradients(fn, {"x": x, "factor": 2.1}).ok


def test_curvature_is_no_kink() -> None:
    """At a minimum both slopes differ in sign; they shrink with the step, as a kink's do not."""

    def fn(x: Array) -> Result:
        return float(np.sum(50 * x * x)), {"x": 100 * x}

    check = health.check_gradients(fn, {"x": np.array([0.0, 1e-7, -1e-6, 1.0])})
    assert check.ok
    assert check.gradients["x"].kinks == 0


def test_two_calls_that_differ_are_not_right(rng: np.random.Generator) -> None:
    total = np.zeros((4, 4))

    def accumulating(gradient: Array) -> Array:
        total[...] = gradient + 1e-12 * total  # far below the tolerance: only the bits show it
        return total  # the same memory in every call

    inputs = {"w": rng.standard_normal((4, 4)), "x": rng.standard_normal((4, 5))}
    check = health.check_gradients(broken(accumulating), inputs)
    assert not check.gradients["w"].repeatable
    assert check.gradients["x"].repeatable
    assert check.errors["w"] < 1e-4
    assert not check.ok
    assert "not repeatable: two calls differ" in str(check)


def test_a_loss_that_draws_is_named(rng: np.random.Generator) -> None:
    def fn(x: Array) -> Result:
        kept = rng.random(x.shape) < 0.5
        return float(np.sum(kept * x)), {"x": kept.astype(float)}

    check = health.check_gradients(fn, {"x": rng.standard_normal(20)})
    assert not check.ok
    assert "loss: two calls of fn differ" in str(check)


def test_a_loss_that_differs_in_a_bit_is_named() -> None:
    calls = iter(range(100))

    def fn(x: Array) -> Result:
        return float(np.sum(x)) * (1 + 1e-15 * next(calls)), {"x": np.ones_like(x)}

    check = health.check_gradients(fn, {"x": np.ones(3)})
    assert check.gradients["x"].right
    assert not check.ok


def test_a_nan_that_was_not_drawn_counts(rng: np.random.Generator) -> None:
    def fn(x: Array) -> Result:
        return float(np.sum(x)), {"x": np.where(np.arange(1000) == at, np.nan, 1.0)}

    at = -1
    assert health.check_gradients(fn, {"x": np.ones(1000)}, most=1).ok
    at = next(
        k for k in (0, 1) if k != health.check_gradients(fn, {"x": np.ones(1000)}, most=1).gradients["x"].worst[0]
    )
    assert not health.check_gradients(fn, {"x": np.ones(1000)}, most=1).ok


def test_what_rounding_hides_is_not_called_wrong() -> None:
    def fn(x: Array, slope: float) -> Result:
        return float(1e6 + 1e-7 * np.sum(x)), {"x": np.full_like(x, slope)}

    assert health.check_gradients(fn, {"x": np.ones(5), "slope": 1}).ok is False
    check = health.check_gradients(lambda x: fn(x, 1e-7), {"x": np.ones(5)})
    assert check.ok
    assert check.errors["x"] > 1e-4, "the figure is given as it is"
    assert "too small to be compared" in str(check)


def test_gradients_of_any_magnitude() -> None:
    """Squares of either leave float64's range."""

    def fn(x: Array, scale: float, error: float) -> Result:
        return float(scale * np.sum(np.sin(x))), {"x": error * scale * np.cos(x)}

    x = np.linspace(0, 1, 5)
    for scale in (1e200, 1e-200):
        assert health.check_gradients(fn, {"x": x, "scale": scale, "error": 1.0}).ok
        assert "3 times" in str(health.check_gradients(fn, {"x": x, "scale": scale, "error": 3.0}))


def test_an_infinite_gradient_is_wrong_without_a_warning() -> None:
    check = health.check_gradients(lambda x: (float(np.sum(x)), {"x": np.full(3, np.inf)}), {"x": np.ones(3)})
    assert not check.ok
    assert check.gradients["x"].not_finite == 3
    assert check.errors["x"] == np.inf


def test_wrong_at_kinks_alone() -> None:
    check = health.check_gradients(lambda x: (float(np.sum(np.abs(x))), {"x": np.full(3, 7.0)}), {"x": np.zeros(3)})
    assert not check.ok
    assert check.gradients["x"].cause == ""


def test_inputs_may_be_written_into_and_need_not_be_contiguous(rng: np.random.Generator) -> None:
    def fn(w: Array, x: Array) -> Result:
        result = tanh_layer(w, x)
        w[...] = 0
        return result

    w = rng.standard_normal((4, 4)).T
    before = w.copy()
    assert health.check_gradients(fn, {"w": w, "x": rng.standard_normal((4, 5))}).ok
    assert np.array_equal(w, before)


def test_an_unused_input_and_an_empty_one(rng: np.random.Generator) -> None:
    def fn(x: Array, unused: Array, none: Array) -> Result:
        return float(np.sum(x)), {"x": np.ones_like(x), "unused": np.ones_like(unused), "none": none}

    check = health.check_gradients(fn, {"x": np.ones(3), "unused": np.ones(3), "none": np.ones((0, 2))})
    assert check.gradients["unused"].cause == "the loss does not change with it: does fn use this input?"
    assert check.gradients["x"].right
    assert check.gradients["none"].right


BAD_CALLS: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (lambda x: (0.0, {"x": x}), {"x": np.ones(2, np.float32)}, TypeError, "x: expected float64, .* got .*float32"),
    (lambda x: (0.0, {"x": x.astype("f4")}), {"x": np.ones(2)}, TypeError, "gradients.'x'.: .* got .*float32"),
    (lambda x: (np.float32(1), {"x": x}), {"x": np.ones(2)}, TypeError, "loss: expected one number in float64"),
    (lambda x: (x, {"x": x}), {"x": np.ones(2)}, TypeError, "loss: expected one number"),
    (lambda x: 1.0, {"x": np.ones(2)}, TypeError, "fn: expected .loss, a dict of gradients."),
    (lambda x: (1.0, {"dx": x}), {"x": np.ones(2)}, ValueError, "gradients: expected names among x, got dx"),
    (lambda x: (1.0, {}), {"x": np.ones(2)}, ValueError, "gradients: expected names among x, got none"),
    (lambda x: (1.0, {"x": None}), {"x": np.ones(2)}, TypeError, "got NoneType"),
    (
        lambda x: (1.0, {"x": np.ones(2)}),
        {"x": np.arange(2)},
        TypeError,
        "x: expected a NumPy array of float64, .* ndarray of int64",
    ),
    (lambda x: (np.nan, {"x": x}), {"x": np.ones(2)}, ValueError, "loss: expected a finite number, got nan"),
]


@pytest.mark.parametrize(("fn", "inputs", "error", "words"), BAD_CALLS, ids=[call[3] for call in BAD_CALLS])
def test_bad_calls(fn: Callable[..., Any], inputs: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        health.check_gradients(fn, inputs)


def test_a_step_that_is_none() -> None:
    with pytest.raises(ValueError, match="eps: expected a step between 0 and 1, got 0"):
        health.check_gradients(tanh_layer, {"w": np.ones((2, 2)), "x": np.ones((2, 2))}, eps=0)


# -------------------------------------------------------------------------------------------------------- poisoned


FRESH = 1 << 22  # elements: memory so large comes from the system, and is 0


def sum_begun_in_empty(x: Array) -> Array:
    total = np.empty(x.shape[1:])
    for row in x:
        total += row
    return total


def test_memory_nobody_wrote_is_nan() -> None:
    empty, empty_like = np.empty, np.empty_like
    x = np.ones((3, 4))
    with health.poisoned():
        assert np.isnan(sum_begun_in_empty(x)).all()
        for dtype in (np.float16, np.float32, np.float64, np.complex128):
            assert np.isnan(np.empty((2, 3), dtype)).all()
            assert np.isnan(np.empty_like(np.zeros((2, 3), dtype, order="F"))).all()
        assert (np.empty(FRESH, np.int16) == 32767).all()
        assert (np.empty(FRESH, np.uint8) == 255).all()
        assert np.empty(FRESH, bool).all()
        assert np.isnan(np.empty(())).all()
        assert np.empty((0, 3)).shape == (0, 3)
        assert np.empty(2, "datetime64[s]").shape == (2,)
        assert (np.zeros(3) == 0).all()
    assert np.empty is empty
    assert np.empty_like is empty_like


def test_bfloat16_is_poisoned_too() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with health.poisoned():
        assert np.isnan(np.empty(FRESH, ml_dtypes.bfloat16).astype(float)).all()


def fail_within(value: float) -> None:
    with health.poisoned(value=value):
        assert (np.empty(3) == value).all()
        raise KeyError(value)


def test_nested_and_left_by_an_exception() -> None:
    empty = np.empty
    with health.poisoned(value=1.0):
        with pytest.raises(KeyError):
            fail_within(2.0)
        assert (np.empty(3) == 1).all()
    assert np.empty is empty


def test_a_module_that_has_the_function_by_name() -> None:
    script = types.ModuleType("script")
    exec("from numpy import empty\ndef total(): return empty(3)", script.__dict__)
    before = script.empty
    with health.poisoned(script):
        assert np.isnan(script.total()).all()
    assert script.empty is before


def test_poison_takes_modules_only() -> None:
    empty = np.empty
    with pytest.raises(TypeError, match="modules: expected modules, as cupy, got list"), health.poisoned([]):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="modules: expected one that has empty or empty_like, got doctest"):
        health.poisoned(doctest).__enter__()
    assert np.empty is empty


def test_fusecell_reads_nothing_that_it_did_not_write(rng: np.random.Generator) -> None:
    x, wi, wh = (rng.standard_normal(shape) for shape in ((3, 2, 1, 5, 4), (8, 1, 3, 3), (8, 2, 3, 3)))

    def both_ways() -> dict[str, Array]:
        y, _, _, saved = ops.conv_lstm_forward(x, wi, wh)
        return ops.conv_lstm_backward(saved, y)

    clean = both_ways()
    with health.poisoned():
        poisoned = both_ways()
    assert all(np.array_equal(clean[name], poisoned[name]) for name in clean)


# ------------------------------------------------------------------------------------------ largest_singular_value


def dense(kernel: Array, image: tuple[int, int]) -> Array:
    """The matrix [O * H * W, I * H * W] of the convolution, column by column, by the reference."""
    inputs = kernel.shape[1] * image[0] * image[1]
    units = np.eye(inputs).reshape(inputs, kernel.shape[1], *image)
    return reference.conv2d_forward(units, kernel, padding="same").reshape(inputs, -1).T


@pytest.mark.parametrize(
    ("kernel", "image"),
    [((3, 3), (6, 5)), ((1, 1), (4, 4)), ((5, 3), (4, 6)), ((2, 4), (5, 5)), ((5, 5), (2, 3)), ((1, 3), (1, 7))],
)
def test_of_a_convolution_as_of_its_dense_matrix(
    kernel: tuple[int, int], image: tuple[int, int], rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((8, 2, *kernel))
    exact = {"iterations": 4000, "tolerance": 1e-15}
    expected = np.linalg.norm(dense(weight, image), 2)
    assert health.largest_singular_value(weight, image, **exact) == pytest.approx(expected, rel=1e-8)  # type: ignore[call-overload]
    per_gate = health.largest_singular_value(weight, image, gates=4, **exact)  # type: ignore[call-overload]
    blocks = [np.linalg.norm(dense(block, image), 2) for block in np.split(weight, 4)]
    assert per_gate == pytest.approx(np.array(blocks), rel=1e-8)
    default = health.largest_singular_value(weight.astype(np.float32), image)
    assert 0.99 * expected < default <= expected * (1 + 1e-6), "it comes from below"


def test_of_a_matrix_by_svd(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((12, 3))
    assert health.largest_singular_value(weight) == pytest.approx(np.linalg.svd(weight)[1][0])
    per_gate = health.largest_singular_value(weight, gates=4)
    assert per_gate.shape == (4,)
    assert per_gate[1] == pytest.approx(np.linalg.svd(weight[3:6])[1][0])


def test_of_weights_that_are_zero_or_not_finite() -> None:
    assert health.largest_singular_value(np.zeros((4, 4, 3, 3)), (5, 5)) == 0.0
    assert np.isnan(health.largest_singular_value(np.full((4, 4, 3, 3), np.inf), (5, 5)))
    found = health.largest_singular_value(np.array([[1.0], [np.nan]]), gates=2)
    assert found[0] == 1
    assert np.isnan(found[1])


def test_singular_values_of_what_is_no_weight() -> None:
    with pytest.raises(ValueError, match=r"weight: expected \[G \* C, C\] or .*, got \(3,\)"):
        health.largest_singular_value(np.ones(3))
    with pytest.raises(ValueError, match=r"image: expected the state's \(H, W\), .* got None"):
        health.largest_singular_value(np.ones((4, 4, 3, 3)))
    with pytest.raises(ValueError, match="gates: expected a divisor of the weight's 4 rows, got 3"):
        health.largest_singular_value(np.ones((4, 4)), gates=3)
