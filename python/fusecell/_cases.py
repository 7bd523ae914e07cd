"""The one table of cases. Tests, gradient checks, `fusecell selftest` and the benchmarks all walk it, on every backend.

Each case is there for a reason, which it states; a new option or a new tile size gets its cases here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fusecell._typing import Array

Arrays = dict[str, Array | None]

_SMOOTH = ("tanh", "softsign", "identity", "sigmoid", "softplus")


@dataclass(frozen=True)
class Case:
    """A call of an op: `arguments(rng)` makes its arrays, named as the op's positional arguments."""

    op: str  # conv_lstm, lstm_gates, conv2d or rnn: the prefix of <op>_forward and <op>_backward
    reason: str
    shape: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}: {self.reason}"

    @property
    def algorithm(self) -> str:
        """How its convolutions are computed; "direct" where there are none."""
        return str(self.options.get("algorithm", "direct"))

    @property
    def smooth(self) -> bool:
        """Whether finite differences apply everywhere: no kinks."""
        return self.options.get("activation", "tanh") in _SMOOTH and not self.options.get(
            "recurrent_activation", "sigmoid"
        ).startswith("hard")

    def arguments(self, rng: np.random.Generator, dtype: Any = np.float64) -> Arrays:
        """The arrays of the call, in the order of the op's positional arguments; None where there is none."""
        made: Arrays = _BUILDERS[self.op](rng, self.shape, self.options)
        return {name: None if a is None else a.astype(dtype) for name, a in made.items()}


def output_extent(extent: int, kernel: int, stride: int, dilation: int, padding: Any, axis: int) -> int:
    """The size of a convolution's output along one axis (0: height, 1: width)."""
    reach = dilation * (kernel - 1) + 1
    if padding == "same":
        return -(-extent // stride)
    if padding == "valid":
        low = high = 0
    else:
        both = padding[axis] if isinstance(padding, tuple) else padding
        low, high = both if isinstance(both, tuple) else (both, both)
    return (extent + low + high - reach) // stride + 1


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _state_size(shape: dict[str, Any], options: dict[str, Any]) -> tuple[int, int]:
    kernel, stride, dilation = (_pair(v) for v in (shape["k"], options.get("stride", 1), options.get("dilation", 1)))
    padding = options.get("padding", "same")
    height, width = (
        output_extent(shape[name], kernel[axis], stride[axis], dilation[axis], padding, axis)
        for axis, name in enumerate("HW")
    )
    return height, width


def _parameter(
    rng: np.random.Generator, kind: str | None, channels: int, spatial: tuple[int, ...], scale: float
) -> Array | None:
    if kind is None:
        return None
    values: Array = scale * rng.standard_normal((channels,) if kind == "channel" else (channels, *spatial))
    return values


def _conv_lstm(rng: np.random.Generator, shape: dict[str, Any], options: dict[str, Any]) -> Arrays:
    s = {"T": 3, "B": 2, "I": 2, "C": 3, "H": 5, "W": 6, "k": 3, "kh": 3} | shape
    channels, spatial = s["C"], _state_size(s, options)
    state = (s["B"], channels, *spatial)
    kernel, kernel_hh = _pair(s["k"]), _pair(s["kh"])

    def weight(inputs: int, k: tuple[int, int]) -> Array:  # keeps z of order 1 for any size
        scale: float = (inputs * k[0] * k[1]) ** -0.5
        return scale * rng.standard_normal((4 * channels, inputs, *k))

    start = s.get("start", True)
    return {
        "x": rng.standard_normal((s["T"], s["B"], s["I"], s["H"], s["W"])),
        "weight_ih": weight(s["I"], kernel),
        "weight_hh": weight(channels, kernel_hh),
        "bias": _parameter(rng, s.get("bias", "channel"), 4 * channels, spatial, 0.5),
        "peephole": _parameter(rng, s.get("peephole"), 3 * channels, spatial, 0.5),
        "h_0": rng.uniform(-0.9, 0.9, state) if start else None,
        "c_0": rng.standard_normal(state) if start else None,
    }


def _lstm_gates(rng: np.random.Generator, shape: dict[str, Any], options: dict[str, Any]) -> Arrays:
    batch, channels, spatial = shape["B"], shape["C"], tuple(shape["spatial"])
    return {
        "z": 2.0 * rng.standard_normal((batch, 4 * channels, *spatial)),
        "c": rng.standard_normal((batch, channels, *spatial)),
        "h": rng.uniform(-0.9, 0.9, (batch, channels, *spatial)) if options.get("zoneout_h") else None,
        "bias": _parameter(rng, shape.get("bias"), 4 * channels, spatial, 0.5),
        "peephole": _parameter(rng, shape.get("peephole"), 3 * channels, spatial, 0.5),
    }


def _conv2d(rng: np.random.Generator, shape: dict[str, Any], options: dict[str, Any]) -> Arrays:
    kernel = _pair(shape["k"])
    return {
        "x": rng.standard_normal((shape["B"], shape["I"], shape["H"], shape["W"])),
        "weight": rng.standard_normal((shape["O"], shape["I"], *kernel)) / np.sqrt(shape["I"] * kernel[0] * kernel[1]),
        "bias": rng.standard_normal(shape["O"]),
    }


def _rnn(rng: np.random.Generator, shape: dict[str, Any], options: dict[str, Any]) -> Arrays:
    s = {"T": 4, "B": 3, "I": 3, "C": 5} | shape
    state = (s["B"], s["C"])
    return {
        "x": rng.standard_normal((s["T"], s["B"], s["I"])),
        "weight_ih": rng.standard_normal((s["C"], s["I"])) / np.sqrt(s["I"]),
        "weight_hh": rng.standard_normal((s["C"], s["C"])) / np.sqrt(s["C"]),
        "bias": rng.standard_normal(s["C"]) if s.get("bias", True) else None,
        "h_0": rng.uniform(-0.9, 0.9, state) if s.get("start", True) else None,
    }


_BUILDERS: dict[str, Callable[[np.random.Generator, dict[str, Any], dict[str, Any]], Arrays]] = {
    "conv_lstm": _conv_lstm,
    "lstm_gates": _lstm_gates,
    "conv2d": _conv2d,
    "rnn": _rnn,
}


_DIRECT = {"algorithm": "direct"}


def _sequences() -> Iterator[Case]:
    def case(reason: str, shape: dict[str, Any] | None = None, **options: Any) -> Case:
        return Case("conv_lstm", reason, {"H": 5, "W": 6, "k": 3, "kh": 3} | (shape or {}), _DIRECT | options)

    yield case("the default cell")
    for bias in (None, "channel", "pixel"):
        for peephole in (None, "channel", "pixel"):
            yield case(f"bias {bias}, peephole {peephole}", {"bias": bias, "peephole": peephole})
    yield case("no initial state", {"start": False})
    for k in range(1, 12):
        yield case(f"kernel {k} for input and state", {"k": k, "kh": k, "H": 7, "W": 6, "T": 2, "C": 2})
    yield case("kernels not square, not alike", {"k": (5, 2), "kh": (1, 4), "H": 8})
    yield case("kernel larger than the image", {"k": 7, "kh": 9, "H": 2, "W": 3})
    yield case("stride 2", {"H": 9, "W": 8}, stride=2)
    yield case("stride (2, 3), dilation (1, 2)", {"H": 9, "W": 11}, stride=(2, 3), dilation=(1, 2))
    yield case("stride larger than the kernel: input pixels that nothing reads", {"k": 2, "H": 9, "W": 10}, stride=3)
    yield case("dilation 2, valid", {"H": 9, "W": 8}, dilation=2, padding="valid")
    yield case("explicit padding, uneven, wider than the kernel", {}, padding=((0, 4), (5, 1)))
    yield case("padding as one number", {"k": 5}, padding=1)
    yield case("height 1 (a 1-D ConvLSTM)", {"H": 1, "W": 9, "k": (1, 3), "kh": (1, 3)})
    yield case("width 1", {"H": 7, "W": 1})
    yield case("one pixel, kernel 1: an ordinary LSTM", {"H": 1, "W": 1, "k": 1, "kh": 1, "C": 5})
    yield case("T of 1", {"T": 1})
    yield case("B of 0", {"B": 0})
    yield case("T of 0: the state passes through", {"T": 0})
    yield case("one channel", {"C": 1, "I": 1})
    yield case("channels that fill no register tile, two groups of rows", {"C": 19, "I": 3, "H": 6, "W": 7, "T": 2})
    yield case(
        "more channels than a tile of either direction has rows",
        {"C": 67, "T": 2, "B": 1, "H": 2, "W": 3, "k": 1, "kh": 1},
    )
    yield case("rows longer than a block of pixels", {"C": 2, "I": 1, "H": 2, "W": 1100, "T": 2, "B": 1})
    yield case("several blocks of rows", {"C": 2, "I": 1, "H": 60, "W": 40, "T": 2, "B": 1})
    yield case(
        "more samples than a group of the CPU's backward, of which the last is smaller",
        {"C": 8, "I": 1, "H": 60, "W": 56, "T": 2, "B": 3, "k": 1, "kh": (3, 1), "peephole": "pixel"},
        lengths=[2, 1, 2], zoneout_h=0.2, zoneout_c=0.1, recurrent_dropout=0.25, training=True,
    )  # fmt: skip
    for sigma in ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"):
        for phi in ("tanh", "relu", "leaky_relu", "hard_tanh", "softsign", "identity"):
            if (sigma, phi) != ("sigmoid", "tanh"):
                yield case(f"{sigma}, {phi}", {"peephole": "channel"}, recurrent_activation=sigma, activation=phi)
    yield case("leaky_relu of another slope", {}, activation="leaky_relu", slope=0.3)
    yield case("reverse", {"T": 4}, reverse=True)
    yield case("lengths", {"T": 4, "B": 4}, lengths=[4, 0, 2, 1])
    yield case("lengths, reverse", {"T": 4, "B": 4}, lengths=[4, 0, 2, 1], reverse=True)
    yield case("truncation every 2 steps", {"T": 5}, truncation=2)
    yield case("truncation every step", {"T": 3, "peephole": "pixel"}, truncation=1)
    yield case("truncation, lengths, reverse", {"T": 5, "B": 3}, truncation=2, lengths=[5, 3, 1], reverse=True)
    yield case("zoneout by expectation", {"peephole": "channel"}, zoneout_h=0.3, zoneout_c=0.2)
    yield case("zoneout by masks", {}, zoneout_h=0.3, zoneout_c=0.4, training=True, seed=7)
    yield case("zoneout of h alone, lengths", {"B": 3}, zoneout_h=0.5, training=True, seed=3, lengths=[3, 1, 2])
    yield case("recurrent dropout", {}, recurrent_dropout=0.4, training=True, seed=11)
    yield case(
        "everything at once",
        {"T": 5, "B": 3, "H": 8, "W": 7, "k": (4, 3), "bias": "pixel", "peephole": "pixel"},
        stride=(1, 2), padding=((1, 2), (0, 3)), recurrent_activation="hard_sigmoid", activation="softsign",
        lengths=[5, 2, 4], reverse=True, truncation=3, zoneout_h=0.2, zoneout_c=0.1, recurrent_dropout=0.25,
        training=True, seed=2**63 + 1, offset=2**40,
    )  # fmt: skip


def _gates() -> Iterator[Case]:
    def case(reason: str, shape: dict[str, Any] | None = None, **options: Any) -> Case:
        return Case("lstm_gates", reason, {"B": 2, "C": 3, "spatial": (4, 5)} | (shape or {}), options)

    yield case("the default cell")
    yield case("no spatial dimension", {"spatial": ()})
    yield case("three spatial dimensions, everything per pixel",
               {"spatial": (2, 3, 4), "bias": "pixel", "peephole": "pixel"})  # fmt: skip
    yield case("bias and peephole per channel", {"bias": "channel", "peephole": "channel"})
    yield case("more pixels than a run, no multiple of a vector", {"C": 1, "spatial": (1031,), "bias": "channel"})
    yield case("more pixels than a task", {"B": 1, "C": 1, "spatial": (4100,), "peephole": "channel"})
    yield case("zoneout by expectation", {"peephole": "pixel"}, zoneout_h=0.3, zoneout_c=0.2)
    yield case("zoneout by masks", {}, zoneout_h=0.3, zoneout_c=0.2, training=True, seed=5)
    yield case("B of 0", {"B": 0, "bias": "channel"})
    yield case("hard_sigmoid_keras2, relu", {}, recurrent_activation="hard_sigmoid_keras2", activation="relu")


def _convolutions() -> Iterator[Case]:
    def case(reason: str, shape: dict[str, Any] | None = None, **options: Any) -> Case:
        return Case(
            "conv2d", reason, {"B": 2, "I": 3, "O": 5, "H": 7, "W": 6, "k": 3} | (shape or {}), _DIRECT | options
        )

    yield case("3x3")
    yield case("1x1", {"k": 1})
    yield case("even, not square", {"k": (2, 4)})
    yield case("more channels than a tile has rows", {"I": 66, "O": 70, "H": 3, "W": 4})
    yield case("stride 2, same", {}, stride=2)
    yield case("stride 3, dilation 2, explicit padding", {"H": 13, "W": 11}, stride=3, dilation=2, padding=(2, 1))
    yield case("valid, leaving one pixel", {"H": 3, "W": 3}, padding="valid")
    yield case("an image larger than the weight gradient's block", {"B": 1, "I": 1, "O": 1, "H": 150, "W": 130})
    yield case("B of 0", {"B": 0})


def _plain_networks() -> Iterator[Case]:
    def case(reason: str, shape: dict[str, Any] | None = None, **options: Any) -> Case:
        return Case("rnn", reason, shape or {}, options)

    yield case("the default network")
    yield case("no bias, no initial state", {"bias": False, "start": False})
    for activation in ACTIVATIONS:
        yield case(activation, {"T": 3, "B": 2}, activation=activation)
    yield case("leaky_relu and its slope", {}, activation="leaky_relu", slope=0.3)
    yield case("elu and its alpha", {}, activation="elu", alpha=0.6)
    yield case("one sample, two units: a step is smaller than a vector", {"T": 9, "B": 1, "C": 2}, activation="sigmoid")
    yield case("one unit, one input", {"C": 1, "I": 1})
    yield case("one more sample than a group, one more unit than two vectors", {"B": 9, "C": 33, "I": 17})
    yield case("tiles of three vectors, and two more", {"B": 8, "C": 80, "I": 79, "T": 2})
    yield case(
        "several groups, several blocks of rows, more terms than are summed at a time", {"T": 5, "B": 70, "C": 9}
    )
    yield case("T of 1", {"T": 1})
    yield case("T of 1, no initial state", {"T": 1, "start": False})
    yield case("T of 0: the state passes through", {"T": 0})
    yield case("B of 0", {"B": 0})


def _tiles() -> Iterator[Case]:
    """What Winograd's tiles ask for beyond the table: 4 or 2 outputs wide, 6x6 pixels each."""
    for k, side in ((3, 4), (5, 2)):
        for height, width in ((side - 1, 3 * side + 1), (side, 3 * side), (side + 1, 3 * side - 1)):
            reason = f"kernel {k}, {height} rows and {width} columns: tiles of {side}, whole and cut"
            shape = {"C": 4, "I": 5, "H": height, "W": width, "k": k, "kh": k}
            yield Case("conv_lstm", reason, shape)
            yield Case("conv2d", reason, {"B": 3, "I": 4, "O": 6, "H": height, "W": width, "k": k})
    many = {"C": 19, "I": 17, "H": 9, "W": 10, "T": 2, "B": 3, "k": 3, "kh": 3, "peephole": "pixel"}
    yield Case("conv_lstm", "more channels than any tile", many)
    yield Case("conv_lstm", "more channels than any tile, kernel 5", many | {"k": 5, "kh": 5})
    yield Case("conv_lstm", "20 steps, over which gradients are bounded", {"C": 8, "I": 4, "T": 20, "k": 3, "kh": 3})
    for padding in ("valid", 2, ((0, 3), (2, 1))):
        for k in (3, 5):
            shape = {"C": 4, "I": 4, "H": 8, "W": 9, "k": k, "kh": k}
            yield Case("conv_lstm", f"padding {padding}, kernel {k}", shape, {"padding": padding})


def _bfloat16_tiles() -> Iterator[Case]:
    """What tiles of 16 pixels, 16 outputs and 32 channels, two on either side, ask for beyond the table."""
    for inputs, outputs, width in ((31, 15, 15), (32, 16, 16), (33, 17, 17), (16, 31, 31), (1, 32, 32), (65, 33, 33)):
        reason = f"{inputs} channels, {outputs} outputs, {width} columns"
        yield Case("conv2d", reason, {"B": 2, "I": inputs, "O": outputs, "H": 3, "W": width, "k": (3, 2)})
    yield Case("conv2d", "more outputs than a block of rows", {"B": 1, "I": 2, "O": 67, "H": 2, "W": 18, "k": 1})
    yield Case("conv_lstm", "36 rows, 33 inputs, 18 columns", {"C": 9, "I": 33, "H": 4, "W": 18, "k": 5, "kh": 2})


CASES: tuple[Case, ...] = (*_sequences(), *_gates(), *_convolutions())


ACTIVATIONS = (
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus",
    "hard_sigmoid", "hard_sigmoid_keras2", "hard_tanh", "softsign",
)  # fmt: skip

RNN_CASES: tuple[Case, ...] = tuple(_plain_networks())
"""Of the plain recurrent network. For the CPU alone."""


def _steps_by_one(case: Case) -> bool:
    steps = (_pair(case.options.get(name, 1)) for name in ("stride", "dilation"))
    return case.op != "lstm_gates" and all(step == (1, 1) for step in steps)


def _takes_winograd(case: Case) -> bool:
    kernels = {_pair(case.shape[name]) for name in ("k", "kh") if name in case.shape}
    return kernels in ({(3, 3)}, {(5, 5)}) and _steps_by_one(case)


def _computed_by(algorithm: str, cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(
        replace(case, reason=f"{algorithm}, {case.reason}", options=case.options | {"algorithm": algorithm})
        for case in cases
    )


WINOGRAD_CASES = _computed_by("winograd", filter(_takes_winograd, (*CASES, *_tiles())))
"""Every case of the table that Winograd's algorithm can take, and those that its tiles ask for. For the CPU alone."""


def _takes_bfloat16(case: Case) -> bool:
    """A kink's derivative is another one where z is rounded to its other side, which no bound foresees."""
    return _steps_by_one(case) and case.smooth


BFLOAT16_CASES = _computed_by("bfloat16", filter(_takes_bfloat16, (*CASES, *_bfloat16_tiles())))
"""The smooth cases of the table that products of bfloat16 can take, and those that their tiles ask for. For the CPU, in
float32, where `fusecell._dispatch.amx()` is "usable" or "emulated"."""


def _tensor_core_tiles() -> Iterator[Case]:
    """What copies of 4 channels, groups of 16 of them and tiles of 256 pixels ask for beyond the table."""
    for inputs, channels in ((8, 8), (16, 16), (12, 20), (33, 31)):
        few = {"C": channels, "I": inputs, "H": 7, "W": 10, "T": 2, "k": 3, "kh": 3}
        yield Case("conv_lstm", f"{inputs} inputs, {channels} channels", few)
    many = {"C": 8, "I": 4, "H": 9, "W": 31, "T": 2, "B": 3, "k": (2, 5), "kh": (5, 2), "peephole": "pixel"}
    yield Case("conv_lstm", "more pixels than a tile, kernels not square", many, {"lengths": [2, 0, 1]})


_ON_TENSOR_CORES = [case for case in (*CASES, *_tensor_core_tiles()) if case.op != "lstm_gates"]

TENSOR_CORES_CASES = _computed_by("tensor_cores", _ON_TENSOR_CORES)
"""Every case of the table that is a convolution, and those that tensor cores' tiles ask for: in 16 bits, on GPUs that
have them (`fusecell._dispatch.tensor_cores`)."""

TF32_CASES = _computed_by("tf32", (case for case in _ON_TENSOR_CORES if case.smooth))
"""The smooth ones of these, in float32; a kink is as for bfloat16."""


# ------------------------------------------------------------------------------------------------ running a case
Results = dict[str, Array]


@dataclass
class Outcome:
    """What a case gave: outputs by name, gradients by argument name, and the gradients that were sent in."""

    outputs: Results
    gradients: Results


class Tolerance(NamedTuple):
    """The largest deviation from the reference, relative to each result's largest value."""

    outputs: float
    gradients: float


# Direct: float64 errs by rounding alone; float32 too, in sums of some hundred products, and in gradients through a few
# steps of them. Winograd: float64 shows that the algebra is right, float32 keeps to the bounds that are promised.
# bfloat16: two factors that err by 2^-8 of themselves at most make a product that errs by 2^-7, and the steps of a
# sequence add up to twice that (over four seeds the table showed 0.011 at most; where nothing has to be rounded,
# tests/test_bfloat16.py asks for float32's own). tf32: two factors that err by 2^-11 make a product that errs by 2^-10,
# and the steps again twice that (over three seeds the table showed 0.0014 at most, and it allows 0.00195).
TOLERANCE = {
    "direct": {"float64": Tolerance(1e-13, 1e-13), "float32": Tolerance(5e-6, 5e-6)},
    "winograd": {"float64": Tolerance(1e-10, 1e-10), "float32": Tolerance(2e-5, 1e-4)},
    "bfloat16": {"float32": Tolerance(2.0**-6, 2.0**-6)},
    "tf32": {"float32": Tolerance(2.0**-9, 2.0**-9)},
}

OUTPUTS = {"conv_lstm": ("y", "h_n", "c_n"), "lstm_gates": ("h", "c"), "conv2d": ("y",), "rnn": ("y", "h_n")}


def run_case(module: Any, case: Case, arguments: Arrays, upstream: list[Array] | None, **extra: Any) -> Outcome:
    """Run a case forward and backward with `module`, which is fusecell.ops or fusecell.reference.

    upstream: the gradients of the outputs; None makes them from the outputs' shapes by `upstream_of`.
    """
    forward = getattr(module, f"{case.op}_forward")
    backward = getattr(module, f"{case.op}_backward")
    given = list(arguments.values())
    if case.op == "conv2d":
        y = forward(*given, **case.options)
        sent = upstream or upstream_of([y])
        return Outcome({"y": y}, backward(sent[0], given[0], given[1], **case.options))
    *outputs, saved = forward(*given, **case.options, **extra)
    sent = upstream or upstream_of(outputs)
    return Outcome(dict(zip(OUTPUTS[case.op], outputs, strict=True)), backward(saved, *sent))


def upstream_of(outputs: list[Array], seed: int = 1) -> list[Array]:
    """Gradients to send into backward: drawn anew from the seed, in the outputs' shapes and dtype."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(y.shape).astype(y.dtype) for y in outputs]


def largest_error(got: Results, expected: Results) -> float:
    """The largest deviation, relative to the largest value of each result; inf if shapes or names differ."""
    if set(got) != set(expected):
        return float("inf")
    worst = 0.0
    for name, want in expected.items():
        if got[name].shape != want.shape:
            return float("inf")
        if want.size:
            error = np.max(np.abs(got[name].astype(np.float64) - want))
            worst = max(worst, float(error / max(np.max(np.abs(want)), 1e-30)))
            if not np.isfinite(error):
                return float("inf")
    return worst
