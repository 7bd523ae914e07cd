"""A bad call raises ValueError or TypeError that says what was expected and what came, and changes nothing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecell import _cpu, _dispatch, ops, selftest

MESSAGE = re.compile(r"^[\w\[\]]+: expected .+, got .+$", re.DOTALL)
Call = tuple[Callable[..., Any], dict[str, Any]]


def make(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def sequence() -> Call:
    arrays = {
        "x": make(3, 2, 2, 5, 6), "weight_ih": make(12, 2, 3, 3), "weight_hh": make(12, 3, 3, 3),
        "bias": make(12, 5, 6), "peephole": make(9, 5, 6), "h_0": make(2, 3, 5, 6), "c_0": make(2, 3, 5, 6),
        "dropout_mask": make(2, 3, 5, 6), "zoneout_mask_h": np.zeros((3, 2, 3, 5, 6), np.uint8),
        "zoneout_mask_c": np.ones((3, 2, 3, 5, 6), np.uint8), "lengths": np.array([3, 1]),
    }  # fmt: skip
    return ops.conv_lstm_forward, arrays


def sequence_backward() -> Call:
    function, arrays = sequence()
    saved = function(**arrays)[-1]
    return ops.conv_lstm_backward, {
        "saved": saved,
        "dy": make(3, 2, 3, 5, 6),
        "dh_n": make(2, 3, 5, 6),
        "dc_n": make(2, 3, 5, 6),
    }


def step() -> Call:
    _, arrays = sequence()
    kept = ("weight_ih", "weight_hh", "bias", "peephole")
    rest = {"x": make(2, 2, 5, 6), "h": make(2, 3, 5, 6), "c": make(2, 3, 5, 6)}
    return ops.conv_lstm_step_forward, {**{name: arrays[name] for name in kept}, **rest}


def gates() -> Call:
    state = (2, 3, 4, 5)
    arrays = {
        "z": make(2, 12, 4, 5), "c": make(*state), "h": make(*state), "bias": make(12, 4, 5), "peephole": make(9, 4, 5),
        "zoneout_mask_h": np.zeros(state, np.uint8), "zoneout_mask_c": np.zeros(state, np.uint8),
    }  # fmt: skip
    return ops.lstm_gates_forward, arrays


def gates_backward() -> Call:
    function, arrays = gates()
    return ops.lstm_gates_backward, {"saved": function(**arrays)[-1], "dh": make(2, 3, 4, 5), "dc": make(2, 3, 4, 5)}


def convolution() -> Call:
    return ops.conv2d_forward, {"x": make(2, 3, 5, 6), "weight": make(4, 3, 3, 3), "bias": make(4)}


def convolution_backward() -> Call:
    return ops.conv2d_backward, {"dy": make(2, 4, 5, 6), "x": make(2, 3, 5, 6), "weight": make(4, 3, 3, 3)}


def activation() -> Call:
    return ops.activation_backward, {"name": "tanh", "x": make(7), "y": make(7), "dy": make(7)}


def softmax() -> Call:
    return ops.softmax_backward, {"y": make(3, 4), "dy": make(3, 4)}


def clip() -> Call:
    return ops.clip_by_global_norm_, {"gradients": [make(3, 4), make(5)], "max_norm": 0.1}


def plain_network() -> Call:
    shapes = {"x": (4, 2, 3), "weight_ih": (5, 3), "weight_hh": (5, 5), "bias": (5,), "h_0": (2, 5)}
    return ops.rnn_forward, {name: make(*shape) for name, shape in shapes.items()}


def plain_network_backward() -> Call:
    function, arrays = plain_network()
    return ops.rnn_backward, {"saved": function(**arrays)[-1], "dy": make(4, 2, 5), "dh_n": make(2, 5)}


CALLS = [sequence, sequence_backward, step, gates, gates_backward, plain_network, plain_network_backward,
         convolution, convolution_backward, activation, softmax, clip]  # fmt: skip
KERNEL_AXES = {("weight_ih", 2), ("weight_ih", 3), ("weight_hh", 2), ("weight_hh", 3), ("weight", 2), ("weight", 3)}
FREE_AXES = {convolution: {("x", 0), ("x", 2), ("x", 3)}, plain_network: {("x", 0)}}  # nothing else fixes these extents
NOT_ARRAYS = ["array", 3, 2.5, [[1.0]], b"x", object(), np.float32(1), {"a": 1}]
BAD_DTYPES = [np.float16, np.int32, np.int64, np.complex64, np.dtype("O"), np.dtype("S3"), np.bool_, np.float64]
INTEGERS = [2.0, "2", None, True, 2**65]
Maker = Callable[[], Call]
BAD_OPTIONS: dict[str, list[Any]] = {
    "stride": [0, -1, (1, 2, 3), (1,), 1.5, "1", None, True, 2**70, (2, "a")],
    "dilation": [0, -2, (0, 1), 2**40, 1.0],
    "padding": ["full", "explicit", "\ud800", -1, (1, 2, 3), ((1, 2), (3,)), 1.5, None, ((0, -1), 0), 2**40],
    "algorithm": ["fast", "", "Direct", "winograd ", "\ud800", 1, True, None],
    "recurrent_activation": ["tanh", "relu", "", "Sigmoid", 3, None],
    "activation": ["sigmoid", "elu", "softmax", "gelu", "\ud800", 1, None],
    "slope": ["a", None, [1.0], True, float("nan"), float("inf")],
    "relu_at_zero": [0.3, -1, 2, "0", float("nan"), None],
    "zoneout_h": [-0.1, 1.5, float("nan"), "0.1", None],
    "zoneout_c": [-1, 2, float("inf"), b"0"],
    "recurrent_dropout": [1.0, -0.1, 1.5, float("nan"), "a", None],
    "truncation": [-1, *INTEGERS],
    "reverse": [1, 0, "yes", None],
    "training": [1, "no", None],
    "seed": [-1, 2**64, *INTEGERS[:-1]],
    "offset": [-1, 2**64, 0.5],
    "lengths": [1, [[1], [1, 2]], [1], [1, 2, 3], [4, 1], [-1, 2], [1.0, 2.0], [[1, 2]], "ab", [2**63, 1], [None, 1]],
    "save": ["all", True, 1],
    "name": ["gelu", "", "\ud800", 3, None],
    "alpha": ["x", None, float("nan")],
    "at_zero": [0.25, -0.5, None, "0"],
    "axis": [2, -3, 1.0, None, 2**70],
    "max_norm": [-1, float("nan"), "1", None],
    "norm_type": [0, 3, -2, float("nan"), "fro", None, -float("inf")],
    "error_if_nonfinite": [1, None, "yes"],
    "needs": ["x", ["nothing"], [1], ["y", "x"], 5],
    "saved": [None, 1, {}, "saved"],
    "statistics": [1, 0, "yes", None],
}
OPTIONS_OF = {
    sequence: ["stride", "dilation", "padding", "recurrent_activation", "activation", "slope", "relu_at_zero",
               "zoneout_h", "zoneout_c", "recurrent_dropout", "truncation", "reverse", "training", "seed", "offset",
               "lengths", "save", "algorithm"],
    step: ["stride", "padding", "activation", "seed", "zoneout_h", "algorithm"],
    sequence_backward: ["needs", "saved"],
    gates: ["recurrent_activation", "activation", "slope", "relu_at_zero", "zoneout_h", "zoneout_c", "training",
            "seed"],
    gates_backward: ["needs", "saved"],
    plain_network: ["slope", "alpha", "relu_at_zero"],
    plain_network_backward: ["needs", "saved", "statistics"],
    convolution: ["stride", "dilation", "padding", "algorithm"],
    convolution_backward: ["stride", "dilation", "padding", "algorithm", "needs"],
    activation: ["name", "slope", "alpha", "at_zero"],
    softmax: ["axis"],
    clip: ["max_norm", "norm_type", "error_if_nonfinite"],
}  # fmt: skip


def reshaped(draw: Any, maker: Maker, name: str, a: np.ndarray) -> np.ndarray:
    free = KERNEL_AXES | FREE_AXES.get(maker, set())
    axes = [axis for axis in range(a.ndim) if (name, axis) not in free]
    axis = draw(st.sampled_from(axes))
    way = draw(st.sampled_from(["longer", "shorter", "empty", "drop", "add"]))
    if way == "drop":
        return np.ascontiguousarray(a[(slice(None),) * axis + (0,)])
    if way == "add":
        return np.expand_dims(a, axis)
    extent = {"longer": a.shape[axis] + draw(st.integers(1, 3)), "shorter": a.shape[axis] - 1, "empty": 0}[way]
    return np.resize(a, (*a.shape[:axis], extent, *a.shape[axis + 1 :]))


def spoiled(draw: Any, maker: Maker, name: str, value: Any) -> Any:
    """A value that cannot stand where `value` stood."""
    if isinstance(value, list):  # of gradients
        broken = list(value)
        at = draw(st.integers(0, len(value) - 1))
        read_only = value[at].copy()
        read_only.flags.writeable = False
        bad = [value[at].astype(t) for t in BAD_DTYPES if t is not np.float64]
        broken[at] = draw(st.sampled_from([*NOT_ARRAYS, read_only, None, *bad]))
        return broken
    way = draw(st.sampled_from(["type", "dtype", "shape"]))
    if way == "type":
        return draw(st.sampled_from(NOT_ARRAYS if name != "lengths" else ["ab", 2.5, [[1.0]], object(), {"a": 1}]))
    if way == "dtype":
        if name == "lengths":
            return value.astype(draw(st.sampled_from([np.float32, np.complex64, np.bool_, np.dtype("S3")])))
        allowed = (np.bool_,) if name.startswith("zoneout_mask") else ()
        return value.astype(draw(st.sampled_from([t for t in BAD_DTYPES if t not in allowed])))
    return reshaped(draw, maker, name, value)


def bad_call(draw: Any) -> Call:
    maker = draw(st.sampled_from(CALLS))
    function, arguments = maker()
    arrays = [name for name, value in arguments.items() if isinstance(value, (np.ndarray, list))]
    if draw(st.booleans()):
        option = draw(st.sampled_from(OPTIONS_OF[maker]))
        return function, {**arguments, option: draw(st.sampled_from(BAD_OPTIONS[option]))}
    name = draw(st.sampled_from(arrays))
    return function, {**arguments, name: spoiled(draw, maker, name, arguments[name])}


@dataclass
class Quiet:
    """A drawn value whose repr stays short: hypothesis prints what it draws."""

    value: Any

    def __repr__(self) -> str:
        return repr(self.value)[:200]


def snapshot(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes() if not value.dtype.hasobject else repr(value)
    return [snapshot(v) for v in value] if isinstance(value, list) else None


@settings(max_examples=1000)
@given(st.data())
def test_a_bad_call_raises_and_changes_nothing(data: st.DataObject) -> None:
    function, arguments = bad_call(lambda strategy: data.draw(strategy.map(Quiet)).value)
    before = {name: snapshot(value) for name, value in arguments.items()}
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**arguments)
    assert MESSAGE.match(str(caught.value)), str(caught.value)
    assert {name: snapshot(value) for name, value in arguments.items()} == before


EVERY_BAD_OPTION = [
    (maker, name, n) for maker in CALLS for name in OPTIONS_OF[maker] for n in range(len(BAD_OPTIONS[name]))
]


@pytest.mark.parametrize(("maker", "name", "n"), EVERY_BAD_OPTION)
def test_every_bad_option_once(maker: Maker, name: str, n: int) -> None:
    function, arguments = maker()
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**{**arguments, name: BAD_OPTIONS[name][n]})
    assert MESSAGE.match(str(caught.value)), str(caught.value)


@pytest.mark.parametrize("maker", CALLS)
def test_the_calls_are_good_before_they_are_spoiled(maker: Callable[[], Call]) -> None:
    function, arguments = maker()
    function(**arguments)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        ({"weight_hh": make(12, 2, 3, 3)}, ValueError, "weight_hh: expected (12, 3, 3, 3), got (12, 2, 3, 3)"),
        ({"weight_ih": make(10, 2, 3, 3)}, ValueError, "weight_ih: expected a first extent that is 4 times"),
        ({"bias": make(4)}, ValueError, "bias: expected (12,) or (12, 5, 6), got (4,)"),
        ({"c_0": make(2, 3, 5, 6).astype(float)}, TypeError, "c_0: expected dtype float32, got float64"),
        ({"x": [1.0]}, TypeError, "x: expected a NumPy array or an array on a GPU, got builtins.list"),
        ({"x": make(3, 2, 2, 5, 6).astype(np.float16)}, TypeError, "x: expected dtype float32 or float64, got float16"),
        ({"lengths": [4, 1]}, ValueError, "lengths: expected values from 0 to 3, got 4"),
        ({"algorithm": "fast"}, ValueError, '"winograd", "bfloat16", "tensor_cores" or "tf32", got "fast"'),
        ({"activation": "gelu"}, ValueError, 'activation: expected one of identity, sigmoid'),
        ({"zoneout_mask_c": np.full((3, 2, 3, 5, 6), 2, np.uint8)}, ValueError, "zoneout_mask_c: expected only 0 and"),
        ({"padding": "valid", "dilation": 4}, ValueError, "x: expected height of at least 9 for this kernel"),
    ],
)  # fmt: skip
def test_messages(spoil: dict[str, Any], error: type[Exception], message: str) -> None:
    function, arguments = sequence()
    with pytest.raises(error, match=re.escape(message)):
        function(**{**arguments, **spoil})


def test_an_output_is_never_touched_by_a_bad_call() -> None:
    """One level down: the core checks before it writes."""
    x, y = make(4), np.full(5, 7, np.float32)
    with pytest.raises(ValueError, match="y: expected"):
        _dispatch.call("activation_forward", _dispatch.Place(), "tanh", x, y, 0.01, 1.0)
    assert (y == 7).all()


def test_the_core_refuses_scratch_that_is_too_small_and_unknown_names() -> None:
    arrays = {"x": make(1, 1, 4, 4), "weight": make(1, 1, 3, 3), "y": make(1, 1, 4, 4)}
    before = arrays["y"].copy()
    with pytest.raises(ValueError, match="scratch: expected"):
        _cpu.conv2d_forward(_dispatch.describe_all(arrays), {}, (make(4).ctypes.data, 16, 1, 0, 0))
    place, described = _dispatch.Place(), _dispatch.describe_all(arrays)
    with pytest.raises(TypeError, match="weigth: expected a known argument"):
        _dispatch.plan("conv2d", place, {**described, "weigth": described["weight"]}, {})
    with pytest.raises(TypeError, match="padding: expected"):
        _dispatch.plan("conv2d", place, described, {"padding": 3})
    assert np.array_equal(arrays["y"], before)


def test_what_no_machine_can_hold_is_a_memory_error() -> None:
    x, weight = make(1024, 1024, 1, 1), np.zeros((1, 1024, 3, 3), np.float32)
    with pytest.raises(MemoryError, match="scratch: expected at most"):
        ops.conv2d_forward(x, weight, dilation=2**20)
    with pytest.raises(MemoryError):
        ops.conv2d_forward(make(1, 1, 1, 1), np.zeros((2**12, 1, 1, 1), np.float32), padding=2**20)


def test_a_stride_far_beyond_the_image_costs_nothing() -> None:
    x, weight = make(8, 16, 4, 4), make(4, 16, 3, 3)
    y = ops.conv2d_forward(x, weight, stride=2**20)
    assert y.shape == (8, 4, 1, 1)
    near = ops.conv2d_backward(y, x, weight, stride=7, padding=((1, 3), (1, 3)))
    far = ops.conv2d_backward(y, x, weight, stride=2**20, padding=((1, 3), (1, 3)))
    assert all(np.array_equal(far[n], near[n]) for n in far)


def test_a_step_speaks_of_its_own_arguments() -> None:
    function, arguments = step()
    for name, bad in (("h", make(2, 3, 5, 5)), ("c", make(1))):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            function(**{**arguments, name: bad})
    saved = function(**arguments)[-1]
    with pytest.raises(ValueError, match=r"^dh: expected"):
        ops.conv_lstm_step_backward(saved, make(1))
    with pytest.raises(ValueError, match="needs: expected names among x, weight_ih, weight_hh, bias, peephole, h, c"):
        ops.conv_lstm_step_backward(saved, needs=["h_0"])
    with pytest.raises(TypeError, match=r"^h_0: expected only"):
        function(**arguments, h_0=arguments["h"])


def test_a_strided_array_never_reaches_the_core() -> None:
    with pytest.raises(_dispatch.SilentCopyError):
        _dispatch.describe(make(4, 4)[:, ::2])


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_an_array_on_a_gpu_without_cupy_names_what_to_install() -> None:
    class OnGpu:
        __cuda_array_interface__: ClassVar[dict[str, Any]] = {}

    with pytest.raises(ImportError, match=r"an array on a GPU needs cupy: pip install 'fusecell\[cuda13\]'"):
        ops.activation_forward("tanh", OnGpu())  # type: ignore[arg-type]


def test_a_backend_that_was_not_built_says_how_to_build_it() -> None:
    if "cuda" in selftest.backends():
        pytest.skip("it was built, and there is a GPU")
    with pytest.raises(
        RuntimeError, match=r"expected NumPy arrays, since this fusecell has no kernels .* FUSECELL_CUDA=on"
    ):
        _ = _dispatch.Place("not_there").module
