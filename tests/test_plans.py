"""What the core says of a call is asked once for its shapes and options, and no check is lost by that."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fusecell
from fusecell import _cpu, _dispatch, ops


def arguments(**size: int) -> dict[str, np.ndarray]:
    s = {"T": 3, "B": 2, "C": 3, "H": 5, "W": 6} | size
    x = np.random.default_rng(0).standard_normal((s["T"], s["B"], 2, s["H"], s["W"]))
    channels = 4 * s["C"]
    return {"x": x, "weight_ih": np.ones((channels, 2, 3, 3)), "weight_hh": np.ones((channels, s["C"], 3, 3))}


def train(**options: Any) -> None:
    size = {name: options.pop(name) for name in ("T", "B", "C", "H", "W") if name in options}
    y, *_, saved = ops.conv_lstm_forward(**arguments(**size), **options)
    ops.conv_lstm_backward(saved, y)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Fills with one entry for each plan that the core makes: whether it is backward's."""
    _dispatch._plans.cache_clear()
    made: list[bool] = []
    original = _cpu.conv_lstm_plan

    def counted(tensors: Any, options: Any, backward: bool, threads: int) -> dict[str, Any]:
        made.append(backward)
        return original(tensors, options, backward, threads)

    monkeypatch.setattr(_cpu, "conv_lstm_plan", counted)
    return made


def test_a_call_that_was_made_before_asks_for_no_plan(asked: list[bool]) -> None:
    for _ in range(3):
        train()
    assert asked == [False, True]


def test_what_a_plan_depends_on_asks_anew(asked: list[bool]) -> None:
    before = fusecell.get_num_threads()
    try:
        fusecell.set_num_threads(2)
        train()
        for size in ("T", "B", "C", "H", "W"):
            train(**{size: 7})
        train(padding=1)
        train(lengths=[3, 1])
        fusecell.set_num_threads(3)
        train()
    finally:
        fusecell.set_num_threads(before)
    assert asked == [False, True] * 9


def test_plans_do_not_fill_the_memory(asked: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_MOST_PLANS", 4)
    for rows in range(1, 10):
        ops.conv_lstm_forward(**arguments(H=rows), save=None)
    workers = fusecell.get_num_threads()
    assert len(asked) == 9
    assert len(_dispatch._plans(_dispatch.place("cpu"), "conv_lstm", workers)) <= 4


def test_numbers_are_checked_though_the_plan_is_known(asked: list[bool]) -> None:
    good = arguments()
    ops.conv_lstm_forward(**good, lengths=[3, 1])
    with pytest.raises(ValueError, match="lengths: expected values from 0 to 3, got 4"):
        ops.conv_lstm_forward(**good, lengths=[4, 1])
    assert asked == [False]


def test_where_an_array_lies() -> None:
    whole = np.arange(12.0).reshape(3, 4)
    fixed = whole.copy()
    fixed.flags.writeable = False
    arrays = (whole, whole[1:, 2:], whole.T, fixed, whole.astype(ml_dtypes.bfloat16), np.empty((0, 3)), np.array(1.0))
    for array in arrays:
        assert _cpu.address(array) == array.ctypes.data
    with pytest.raises(AttributeError):
        _cpu.address([1.0])
