"""Which algorithm computes the convolutions: what "auto" takes, what "winograd" refuses; backward does as forward.

That its results are right is in test_cases.py, which walks the table once for each algorithm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusecell
from fusecell import _dispatch, layers, ops
from fusecell.selftest import backends

Options = dict[str, Any]


def tensor_cores_are_emulated() -> bool:
    return "emulated" in backends() and _dispatch.tensor_cores("emulated")


@pytest.fixture
def algorithm(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each by its name, on a backend that has it."""
    with _dispatch.using("emulated" if request.param == "tf32" else "cpu"):
        yield request.param


EVERYWHERE = ["auto", "direct", "winograd", "bfloat16", *["tf32"] * tensor_cores_are_emulated()]
each_algorithm = pytest.mark.parametrize("algorithm", EVERYWHERE, indirect=True)


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def sequence(
    inputs: int = 4, channels: int = 8, k: Any = 3, kh: Any = 3, dtype: Any = np.float32, **shape: int
) -> Options:
    size = {"T": 2, "B": 2, "H": 13, "W": 14} | shape
    kernels = [(n, n) if isinstance(n, int) else n for n in (k, kh)]
    return {
        "x": draw(size["T"], size["B"], inputs, size["H"], size["W"], dtype=dtype),
        "weight_ih": 0.2 * draw(4 * channels, inputs, *kernels[0], dtype=dtype),
        "weight_hh": 0.2 * draw(4 * channels, channels, *kernels[1], dtype=dtype),
    }


def convolution(inputs: int = 8, outputs: int = 8, k: int = 3, dtype: Any = np.float32) -> Options:
    return {"x": draw(2, inputs, 13, 14, dtype=dtype), "weight": 0.2 * draw(outputs, inputs, k, k, dtype=dtype)}


def chosen(op: str, arrays: Options, **options: Any) -> str:
    plan = _dispatch.plan(op, _dispatch.place_of(arrays), _dispatch.describe_all(arrays), options)
    return str(plan["algorithm"])


AUTO = {
    "3x3": (sequence(), {}, "winograd"),
    "5x5": (sequence(k=5, kh=5), {}, "winograd"),
    "one frame": (sequence(T=1, B=1), {}, "winograd"),
    "explicit padding": (sequence(), {"padding": "explicit", "pad_h": (0, 3), "pad_w": (2, 1)}, "winograd"),
    "valid": (sequence(H=15, W=16), {"padding": "valid"}, "winograd"),
    "float64": (sequence(dtype=np.float64), {}, "direct"),
    "one input": (sequence(1, 8), {}, "winograd"),
    "too few channels": (sequence(8, 7), {}, "direct"),
    "too few tiles": (sequence(H=12, W=12), {}, "direct"),
    "more tiles of 2x2": (sequence(k=5, kh=5, H=8, W=8), {}, "winograd"),
    "1x1": (sequence(k=1, kh=1), {}, "direct"),
    "7x7": (sequence(k=7, kh=7), {}, "direct"),
    "two kernels": (sequence(k=5, kh=3), {}, "direct"),
    "not square": (sequence(k=(3, 5), kh=(3, 5)), {}, "direct"),
    "stride": (sequence(), {"stride": (1, 2)}, "direct"),
    "dilation": (sequence(), {"dilation": (2, 1)}, "direct"),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto(name: str) -> None:
    arrays, options, expected = AUTO[name]
    assert chosen("conv_lstm", arrays, **options) == expected
    assert chosen("conv_lstm", arrays, **options, algorithm="auto") == expected, "the default"
    assert chosen("conv_lstm", arrays, **options, algorithm="direct") == "direct"


def test_auto_of_a_convolution() -> None:
    assert chosen("conv2d", convolution()) == "winograd"
    assert chosen("conv2d", convolution(k=5)) == "winograd"
    assert chosen("conv2d", convolution(k=4)) == "direct"
    assert chosen("conv2d", convolution(16, 1)) == "direct"
    assert chosen("conv2d", convolution(dtype=np.float64)) == "direct"
    assert chosen("conv2d", convolution(dtype=np.float64), algorithm="winograd") == "winograd"
    assert chosen("conv2d", convolution(1, 1), algorithm="winograd") == "winograd"


REFUSED = {
    "kernel": (sequence(k=7, kh=7), {}, "kernels 7x7 and 7x7"),
    "kernels": (sequence(k=5, kh=3), {}, "kernels 5x5 and 3x3"),
    "state's kernel": (sequence(k=3, kh=(3, 1)), {}, "kernels 3x3 and 3x1"),
    "stride": (sequence(), {"stride": (2, 1)}, "stride (2, 1)"),
    "dilation": (sequence(), {"dilation": (1, 3)}, "dilation (1, 3)"),
}
EXPECTED = (
    'algorithm: expected "auto" or "direct" (winograd takes 3x3 or 5x5 kernels, equal for input and recurrent '
    'convolution, stride 1 and dilation 1, on the CPU), got "winograd" with '
)


@pytest.mark.parametrize("name", REFUSED)
def test_winograd_where_it_is_not_possible(name: str) -> None:
    arrays, options, reason = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(EXPECTED + reason)}$"):
        ops.conv_lstm_forward(**arrays, **options, algorithm="winograd")


def test_winograd_of_a_convolution_where_it_is_not_possible() -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(EXPECTED + 'kernels 4x4')}$"):
        ops.conv2d_forward(**convolution(k=4), algorithm="winograd")
    with pytest.raises(ValueError, match=f"^{re.escape(EXPECTED + 'stride (2, 2)')}$"):
        ops.conv2d_backward(draw(2, 4, 5, 4), **convolution(), stride=2, algorithm="winograd")


def test_cuda_has_the_direct_one_alone() -> None:
    pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    with _dispatch.using("emulated"):
        assert chosen("conv_lstm", sequence()) == "direct"
        assert chosen("conv2d", convolution()) == "direct"
        with pytest.raises(ValueError, match=re.escape(EXPECTED + "arrays that CUDA's kernels compute on")):
            ops.conv_lstm_forward(**sequence(), algorithm="winograd")


@pytest.mark.parametrize("algorithm", ["tensor_cores", "tf32"])
def test_tensor_cores_where_they_are_not_possible(algorithm: Any) -> None:
    expected = (
        'algorithm: expected "auto" or "direct" (tensor_cores takes 16-bit arrays, tf32 float32 ones, on GPUs from '
        f'compute capability 8.0 on), got "{algorithm}" with '
    )
    for call, arrays in ((ops.conv_lstm_forward, sequence()), (ops.conv2d_forward, convolution())):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}no such GPU$"):
            call(**arrays, algorithm=algorithm)
    if not tensor_cores_are_emulated():
        return
    wrong = {"tensor_cores": (np.float32, np.float64), "tf32": (np.float16, np.float64)}[algorithm]
    for dtype in wrong:
        with (
            _dispatch.using("emulated"),
            pytest.raises(ValueError, match=f"^{re.escape(expected)}{np.dtype(dtype).name}( arrays)?$"),
        ):
            ops.conv_lstm_forward(**sequence(dtype=dtype), algorithm=algorithm)


@pytest.mark.skipif(not tensor_cores_are_emulated(), reason="not a test build whose kernels take tensor cores")
def test_auto_on_a_gpu() -> None:
    """16 bits on tensor cores; float32 in TF32 only by name, as arrays have no switch of a framework."""
    with _dispatch.using("emulated"):
        assert chosen("conv_lstm", sequence(dtype=np.float16)) == "tensor_cores"
        assert chosen("conv_lstm", sequence(dtype=np.float16), algorithm="direct") == "direct"
        assert chosen("conv_lstm", sequence()) == chosen("conv_lstm", sequence(dtype=np.float64)) == "direct"
        assert chosen("conv_lstm", sequence(), algorithm="tf32") == "tf32"


@pytest.mark.skipif(not tensor_cores_are_emulated(), reason="not a test build whose kernels take tensor cores")
def test_tf32_is_another_algorithm() -> None:
    """What the tables cannot see: that the option has an effect at all, and on how much of what is read."""
    with _dispatch.using("emulated"):
        direct, tf32 = (gradients_and_outputs(sequence(8, 8), name) for name in ("direct", "tf32"))
        assert all(direct[name] != tf32[name] for name in direct)
        # Where there is nothing to be rounded, the same sums: x and weights of 10 bits and no state.
        short = {name: a.astype(np.float16).astype(np.float32) for name, a in sequence(4, 8, T=1).items()}
        exact, rounded = (ops.conv_lstm_forward(**short, algorithm=name)[0] for name in ("direct", "tf32"))
        np.testing.assert_allclose(rounded, exact, rtol=1e-5, atol=1e-6)


def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A list that fills with the core's functions as they are called, and the algorithm that each is told."""
    seen: list[tuple[str, str]] = []
    run = _dispatch.run

    def spied(function: str, place: Any, tensors: Any, options: Any, *rest: Any) -> None:
        seen.append((function, options["algorithm"]))
        run(function, place, tensors, options, *rest)

    monkeypatch.setattr(_dispatch, "run", spied)
    return seen


@each_algorithm
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_backward_does_as_forward(algorithm: Any, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = runs(monkeypatch)
    y, *_, saved = ops.conv_lstm_forward(**sequence(), algorithm=algorithm, save=save)
    ops.conv_lstm_backward(saved, y)
    arrays = sequence()
    h, _, saved = ops.conv_lstm_step_forward(arrays.pop("x")[0], **arrays, algorithm=algorithm)
    ops.conv_lstm_step_backward(saved, h)
    y = ops.conv2d_forward(**convolution(), algorithm=algorithm)
    ops.conv2d_backward(y, **convolution(), algorithm=algorithm)
    ways = ("conv_lstm_forward", "conv_lstm_backward") * 2 + ("conv2d_forward", "conv2d_backward")
    assert seen == [(way, algorithm) for way in ways]


@each_algorithm
def test_layers_pass_it_on(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = runs(monkeypatch)
    rng = np.random.default_rng(0)
    net = layers.Sequential(
        [
            layers.ConvLSTM2D(2, 4, 3, num_layers=2, bidirectional=True, algorithm=algorithm, rng=rng),
            layers.Conv2D(8, 1, 5, algorithm=algorithm, rng=rng),
        ]
    )
    net.backward(net.forward(draw(2, 1, 2, 6, 6)))
    ways = ["conv_lstm_forward"] * 4 + ["conv2d_forward", "conv2d_backward"] + ["conv_lstm_backward"] * 4
    assert seen == [(way, algorithm) for way in ways]


def gradients_and_outputs(arrays: Options, algorithm: Any) -> dict[str, bytes]:
    y, h_n, c_n, saved = ops.conv_lstm_forward(**arrays, algorithm=algorithm)
    found = {"y": y, "h_n": h_n, "c_n": c_n, **{f"d{n}": d for n, d in ops.conv_lstm_backward(saved, y).items()}}
    return {name: a.tobytes() for name, a in found.items()}


@pytest.mark.parametrize("k", [3, 5, 7])
def test_auto_has_the_bits_of_what_it_chose(k: int) -> None:
    arrays = sequence(8, 8, k, k)
    assert gradients_and_outputs(arrays, "auto") == gradients_and_outputs(arrays, chosen("conv_lstm", arrays))


def test_winograd_is_another_algorithm() -> None:
    """What the tables cannot see: that the option has an effect at all."""
    for k in (3, 5):
        direct, winograd = (gradients_and_outputs(sequence(8, 8, k, k), name) for name in ("direct", "winograd"))
        assert all(direct[name] != winograd[name] for name in direct)


@each_algorithm
def test_a_step_and_a_sample_alone_have_the_bits_of_the_sequence(algorithm: Any) -> None:
    """Streaming a forecast frame by frame, or for one place alone, changes nothing."""
    arrays = sequence(5, 7, T=3, B=3)
    x, weights = arrays.pop("x"), arrays
    y, *_ = ops.conv_lstm_forward(x, **weights, algorithm=algorithm)
    # On tensor cores the order of a sum depends on how many tiles there are, and so on B.
    for samples in [slice(0, 3)] if algorithm == "tf32" else [slice(b, b + 1) for b in range(3)]:
        h, c = None, None
        for t in range(3):
            frame = x[t, samples]
            h, c, _ = ops.conv_lstm_step_forward(frame, **weights, h=h, c=c, algorithm=algorithm, save=None)
            assert h.tobytes() == y[t, samples].tobytes()


@pytest.fixture
def threads() -> Iterator[Any]:
    before = fusecell.get_num_threads()
    yield fusecell.set_num_threads
    fusecell.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "H", "W"), [(3, 37, 29), (3, 13, 53), (5, 19, 23)])
def test_how_tiles_are_shared_out_changes_no_bit(k: int, H: int, W: int, dtype: Any, threads: Any) -> None:
    """Blocks of tiles end elsewhere with other threads or samples: pixels then lie in a vector, or behind the last."""
    arrays = sequence(1, 9, k, k, dtype, B=5, H=H, W=W)
    arrays |= {"peephole": draw(27, dtype=dtype), "zoneout_h": 0.2, "zoneout_c": 0.1}
    x = arrays.pop("x")

    def outputs(x: np.ndarray) -> list[np.ndarray]:
        y, _, c_n, saved = ops.conv_lstm_forward(x, **arrays, algorithm="winograd")
        gradients = ops.conv_lstm_backward(saved, y)
        return [y, c_n[None], gradients["x"], gradients["weight_ih"], gradients["weight_hh"]]

    threads(1)
    alone, first = outputs(x), outputs(x[:, :1])
    assert all(one.tobytes() == of_all[:, :1].tobytes() for one, of_all in zip(first[:3], alone, strict=False))
    for n in (2, 3, 7):
        threads(n)
        assert [a.tobytes() for a in outputs(x)] == [a.tobytes() for a in alone]


@pytest.mark.parametrize("outputs", [1, 5, 12])
def test_a_convolution_of_few_channels_has_the_same_bits_on_every_thread(outputs: int, threads: Any) -> None:
    arrays = {"x": draw(5, 3, 31, 27), "weight": draw(outputs, 3, 3, 3)}
    found = []
    for n in (1, 2, 5):
        threads(n)
        y = ops.conv2d_forward(**arrays, algorithm="winograd")
        gradients = ops.conv2d_backward(y, **arrays, algorithm="winograd")
        found.append([y.tobytes(), *(gradient.tobytes() for gradient in gradients.values())])
    assert found[0] == found[1] == found[2]
