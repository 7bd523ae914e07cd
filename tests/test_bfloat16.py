"""Convolutions as products of bfloat16: what is rounded and how, what is not, in which order sums go, what is refused.

On what stands for AMX in plain C++ (conftest.py asks for it); with FUSECELL_EMULATE_AMX=0, on a machine that has it, on
AMX itself. That every option of the ops is honoured is in test_cases.py, which walks the table.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusecell import _dispatch, info, ops, reference
from fusecell._cases import TOLERANCE, largest_error

ROOT = Path(__file__).parent.parent
EXACT = TOLERANCE["direct"]["float32"].outputs  # of sums in float32 of products that nothing rounds
LEAST = np.float32(2.0**-126)  # below it, a number is not normal

pytestmark = pytest.mark.skipif(
    _dispatch.amx() in ("absent", "refused"), reason="FUSECELL_EMULATE_AMX=0, and no AMX that can be used"
)


def rounded(a: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even; finite numbers only."""
    bits = a.astype(np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def convolved(x: Any, weight: Any, **options: Any) -> np.ndarray:
    y: np.ndarray = ops.conv2d_forward(x, weight, algorithm="bfloat16", **options)
    return y


def pixels(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


ONE = np.ones((1, 1, 1, 1), np.float32)


# ------------------------------------------------------------------------------------------------------ what is rounded
def test_factors_are_rounded_to_nearest_even() -> None:
    ulp = 2.0**-7
    x = pixels(1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 + 2**-20, -(1 + ulp / 4), 3.3962e38, np.inf)
    assert np.array_equal(convolved(x, ONE), pixels(1, 1 + 2 * ulp, 1 + ulp, -1, np.inf, np.inf))
    assert np.array_equal(convolved(pixels(1), ONE * np.float32(1 + 3 * ulp / 2)), pixels(1 + 2 * ulp)), "weights, too"
    quiet = np.array([0x7F800001], np.uint32).view(np.float32)  # which would become infinity if it were cut
    assert np.isnan(convolved(pixels(*quiet), ONE)).all()


def test_numbers_that_are_not_normal_are_zero() -> None:
    small = LEAST / 2
    assert np.array_equal(convolved(pixels(small, -small, LEAST), ONE), pixels(0, 0, LEAST))
    assert np.array_equal(convolved(pixels(LEAST), ONE / 2), pixels(0)), "a product"
    assert np.array_equal(convolved(pixels(1), ONE * small), pixels(0)), "a weight"


SHAPES = [(2, 3, 5, 7, 6, (3, 3)), (1, 40, 70, 9, 37, (5, 2)), (2, 33, 17, 5, 17, (2, 4)), (3, 64, 8, 12, 33, (1, 1))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_bfloat16_holds_is_not_rounded_again(shape: Any, rng: np.random.Generator) -> None:
    """Products are exact and sums are float32's: forward, and both gradients."""
    batch, inputs, outputs, height, width, kernel = shape
    x = rounded(rng.standard_normal((batch, inputs, height, width)))
    weight = rounded(rng.standard_normal((outputs, inputs, *kernel)))
    y = convolved(x, weight)
    dy = rounded(rng.standard_normal(y.shape))
    assert largest_error({"y": y}, {"y": reference.conv2d_forward(x, weight)}) < EXACT
    got = ops.conv2d_backward(dy, x, weight, algorithm="bfloat16")
    assert largest_error(got, reference.conv2d_backward(dy, x, weight)) < EXACT


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_those_of_two_rounded_factors(shape: Any, rng: np.random.Generator) -> None:
    """Element by element: each factor errs by 2^-8 of itself at most, so each term by 2^-7 and 2^-16."""
    batch, inputs, outputs, height, width, kernel = shape
    x = rng.standard_normal((batch, inputs, height, width)).astype(np.float32)
    weight = rng.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
    dy = rng.standard_normal((batch, outputs, height, width)).astype(np.float32)
    allowed = 2.0**-7 + 2.0**-16 + 2.0**-17  # and what float32's sums add
    y, bound = reference.conv2d_forward(x, weight), reference.conv2d_forward(abs(x), abs(weight))
    assert (abs(convolved(x, weight) - y) <= allowed * bound).all()
    got = ops.conv2d_backward(dy, x, weight, algorithm="bfloat16")
    expected = reference.conv2d_backward(dy, x, weight)
    bounds = reference.conv2d_backward(abs(dy), abs(x), abs(weight))
    for name in ("x", "weight"):
        error = abs(got[name] - expected[name])
        assert (error <= allowed * bounds[name]).all()
        assert error.max() > EXACT * abs(expected[name]).max(), "something is rounded"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [(0, 0), (3, 16)])
def test_what_is_not_finite_stays_where_it_is_read(bad: float, at: tuple[int, int], rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((2, 3, 4, 17)), rng.standard_normal((5, 3, 3, 2))
    x[(0, 1, *at)] = bad
    y, expected = convolved(x.astype(np.float32), weight.astype(np.float32)), reference.conv2d_forward(x, weight)
    assert np.array_equal(np.isfinite(y), np.isfinite(expected))
    dy = np.ones(y.shape, np.float32)
    got = ops.conv2d_backward(dy, x.astype(np.float32), weight.astype(np.float32), algorithm="bfloat16")
    assert np.isfinite(got["x"]).all()
    assert np.isfinite(got["weight"][:, [0, 2]]).all(), "the weights of other channels"


def test_gates_and_states_are_not_rounded(rng: np.random.Generator) -> None:
    """A step of numbers that bfloat16 holds has float32's errors: z, its bias, the gates and c are float32."""
    x, h = rounded(rng.standard_normal((1, 2, 5, 6, 18))), rounded(rng.uniform(-0.9, 0.9, (2, 3, 6, 18)))
    weights = [rounded(0.2 * rng.standard_normal((12, n, 3, 3))) for n in (5, 3)]
    bias, c = rng.standard_normal(12).astype(np.float32), rng.standard_normal(h.shape).astype(np.float32)
    y, _, c_n, _ = ops.conv_lstm_forward(x, *weights, bias, None, h, c, algorithm="bfloat16")
    expected = reference.conv_lstm_forward(x, *weights, bias, None, h, c)
    assert largest_error({"y": y, "c": c_n}, {"y": expected[0], "c": expected[2]}) < EXACT


# --------------------------------------------------------------------------------------------------- the order of sums
def test_sums_go_in_the_order_of_the_instruction(rng: np.random.Generator) -> None:
    """Bit for bit: of 32 channels first the even ones and the odd ones, then both, then what was there before."""
    channels, width = 80, 21
    x = rounded(rng.standard_normal((1, channels, 1, width)))
    weight = rounded(rng.standard_normal((1, channels, 1, 1)))
    expected = np.zeros(width, np.float32)
    for first in range(0, channels, 32):
        halves = [np.zeros(width, np.float32), np.zeros(width, np.float32)]
        for k in range(first, min(first + 32, channels)):
            halves[k % 2] = halves[k % 2] + weight[0, k, 0, 0] * x[0, k, 0]  # exact products: one rounding each
        expected = expected + (halves[0] + halves[1])
    assert convolved(x, weight).tobytes() == expected.tobytes()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="AMX's instructions need x86-64, Linux and a C++ compiler",
)
def test_the_instructions_do_what_stands_for_them(tmp_path: Path) -> None:
    """The kernels with AMX's own instructions, run by the processor or, where it has none, by who catches the trap."""
    probe = tmp_path / "probe"
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", f"-I{ROOT / 'csrc'}"]
    command = [os.environ.get("CXX", "g++"), *flags, str(ROOT / "tests" / "amx_probe.cpp"), "-o", str(probe)]
    subprocess.run(command, check=True, timeout=300)
    done = subprocess.run([probe], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"same bits, (by the processor|[1-9]\d* instructions caught)\n", done.stdout)


# ------------------------------------------------------------------------------------------------------ what is refused
EXPECTED = (
    'algorithm: expected "auto" or "direct" (bfloat16 takes float32 arrays, stride 1 and dilation 1, on a processor '
    'with AMX-BF16), got "bfloat16" with '
)


def arrays(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    shapes = {"x": (1, 1, 2, 5, 5), "weight_ih": (4, 2, 3, 3), "weight_hh": (4, 1, 3, 3)}
    return {name: np.ones(shape, dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        (np.float64, {}, "float64 arrays"),
        (np.float32, {"stride": (1, 2)}, "stride (1, 2)"),
        (np.float32, {"dilation": 3}, "dilation (3, 3)"),
    ],
)
def test_what_it_does_not_take(dtype: Any, options: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(EXPECTED + reason)}$"):
        ops.conv_lstm_forward(**arrays(dtype), **options, algorithm="bfloat16")


def test_cuda_does_not_take_it() -> None:
    pytest.importorskip("fusecell._emulated", reason="not a test build: `make test` makes one")
    with (
        _dispatch.using("emulated"),
        pytest.raises(ValueError, match=re.escape(EXPECTED + "arrays that CUDA's kernels compute on")),
    ):
        ops.conv_lstm_forward(**arrays(), algorithm="bfloat16")


def on_its_own(code: str, emulate: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSECELL_EMULATE_AMX": emulate}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_where_there_is_no_amx_and_none_is_emulated() -> None:
    code = """
import numpy as np
from fusecell import _dispatch, ops
print(_dispatch.amx())
try:
    print(ops.conv2d_forward(*np.ones((2, 1, 1, 1, 1), np.float32), algorithm="bfloat16").item())
except ValueError as error:
    print(error)
"""
    answers = {
        "usable": "1.0",
        "refused": EXPECTED + "a system that refuses AMX's registers",
        "absent": EXPECTED + "a processor without AMX (FUSECELL_EMULATE_AMX=1 computes the same, slowly)",
    }
    for emulate in ("0", ""):
        done = on_its_own(code, emulate)
        amx, _, answer = done.stdout.partition("\n")
        assert answer == f"{answers[amx]}\n", done.stderr
    assert on_its_own(code, "1").stdout == "emulated\n1.0\n"


def test_emulation_is_0_or_1() -> None:
    done = on_its_own("import fusecell", "yes")
    assert done.returncode != 0
    assert "FUSECELL_EMULATE_AMX: expected 0 or 1, got yes" in done.stderr


def test_info_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = set()
    for amx in ("usable", "emulated", "refused", "absent"):
        monkeypatch.setattr(_dispatch, "amx", lambda found=amx: found)
        said.add(dict(info.report())["  AMX"])
    assert len(said) == 4
