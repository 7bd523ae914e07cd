"""Threads: more than one really works, any number gives the same bits, many callers at once, and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import fusecell
from fusecell import _cpu, ops


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = fusecell.get_num_threads()
    yield
    fusecell.set_num_threads(before)


def work(seed: int = 0, dtype: type = np.float32) -> list[np.ndarray]:
    """Enough of every op that each thread gets its share: dozens of tasks in every parallel region."""
    rng = np.random.default_rng(seed)

    def make(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    x, wi, wh, b, p = make(3, 4, 5, 40, 30), make(80, 5, 3, 3), make(80, 20, 3, 3) / 8, make(80), make(60)
    y, h_n, c_n, saved = ops.conv_lstm_forward(x, wi, wh, b, p, zoneout_h=0.1, training=True)
    gradients = ops.conv_lstm_backward(saved, make(*y.shape), h_n, c_n)
    z, c = make(2, 80, 50, 50), make(2, 20, 50, 50)
    h, c_new, saved_gates = ops.lstm_gates_forward(z, c, None, b, p)
    gate_gradients = ops.lstm_gates_backward(saved_gates, h, c_new)
    image, kernel = make(4, 8, 30, 30), make(9, 8, 5, 5)
    out = ops.conv2d_forward(image, kernel)
    conv_gradients = ops.conv2d_backward(out, image, kernel)
    steps, _, saved_network = ops.rnn_forward(make(10, 70, 30), make(90, 30), make(90, 90) / 9)
    network_gradients = ops.rnn_backward(saved_network, steps)
    big = [make(300_000), make(200_001)]
    norm = np.array([ops.clip_by_global_norm_(big, 1.0)])
    soft = ops.softmax_forward(make(500, 400))
    return [
        y, h_n, c_n, *gradients.values(), h, c_new, *gate_gradients.values(), out, *conv_gradients.values(), steps,
        *network_gradients.values(), norm, *big, soft, ops.activation_forward("tanh", make(400_000)),
    ]  # fmt: skip


def same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_convolution_back_to_h_0_runs_where_its_gradient_is_wanted(steps: int) -> None:
    fusecell.set_num_threads(2)
    rng = np.random.default_rng(0)
    x, wi, wh = (rng.standard_normal(s) for s in ((steps, 4, 2, 9, 9), (80, 2, 3, 3), (80, 20, 3, 3)))
    *_, saved = ops.conv_lstm_forward(x, wi, wh)
    regions = {}
    for name in ("c_0", "h_0"):
        _cpu.reset_pool_statistics()
        ops.conv_lstm_backward(saved, np.ones((steps, 4, 20, 9, 9)), needs=[name])
        regions[name] = _cpu.pool_statistics()["parallel_regions"]
    # The convolution; and, where there is no other, the packing of its weights.
    assert regions["h_0"] - regions["c_0"] == (2 if steps == 1 else 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_while_several_workers_take_part(dtype: type) -> None:
    fusecell.set_num_threads(1)
    _cpu.reset_pool_statistics()
    one = work(dtype=dtype)
    assert _cpu.pool_statistics() == {"parallel_regions": 0, "most_workers": 0}
    for threads in (2, 4):
        fusecell.set_num_threads(threads)
        _cpu.reset_pool_statistics()
        for _ in range(20):  # a helper may sleep through one run on a busy machine
            assert same_bits(work(dtype=dtype), one)
            if _cpu.pool_statistics()["most_workers"] >= 2:
                break
        assert _cpu.pool_statistics()["most_workers"] >= 2
        assert _cpu.pool_statistics()["parallel_regions"] > 30


def test_little_work_is_shared_with_nobody() -> None:
    fusecell.set_num_threads(2)
    z, c = np.ones((1, 40, 6, 6), np.float32), np.ones((1, 10, 6, 6), np.float32)
    _cpu.reset_pool_statistics()
    for _ in range(300):
        *_, saved = ops.lstm_gates_forward(z, c)
        ops.lstm_gates_backward(saved, c)
    assert _cpu.pool_statistics() == {"parallel_regions": 600, "most_workers": 0}


def test_many_callers_at_once() -> None:
    fusecell.set_num_threads(2)
    expected = [work(seed) for seed in range(4)]
    results: dict[int, list[np.ndarray]] = {}
    start = threading.Barrier(4)

    def call(seed: int) -> None:
        start.wait()
        results[seed] = work(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(same_bits(results[seed], expected[seed]) for seed in range(4))


FORK = """
import os, sys
import numpy as np, fusecell
from fusecell import _cpu, ops
fusecell.set_num_threads(2)
rng = np.random.default_rng(0)
x, wi, wh = (rng.standard_normal(s).astype("float32") for s in ((2, 4, 3, 40, 40), (64, 3, 3, 3), (64, 16, 3, 3)))
parent = ops.conv_lstm_forward(x, wi, wh)[0]
for _ in range(5):
    child = os.fork()
    if child == 0:
        _cpu.reset_pool_statistics()
        for _ in range(200):  # a helper of the child's own must turn up
            if ops.conv_lstm_forward(x, wi, wh)[0].tobytes() != parent.tobytes():
                os._exit(1)
            if _cpu.pool_statistics()["most_workers"] >= 2:
                os._exit(0)
        os._exit(2)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the child failed")
assert ops.conv_lstm_forward(x, wi, wh)[0].tobytes() == parent.tobytes()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes() -> None:
    # In a process of its own: a hang must end, and pytest's own threads stay out of it.
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


def test_the_default_is_what_this_process_may_use() -> None:
    code = "import fusecell; print(fusecell.get_num_threads())"
    alone = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {code}"
    assert subprocess.run([sys.executable, "-c", alone], check=True, capture_output=True, text=True).stdout == "1\n"
    free = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 1 <= int(free.stdout) <= len(os.sched_getaffinity(0))


BAD_NUMBERS = [(0, ValueError), (-1, ValueError), (1025, ValueError), (2**70, ValueError),
               (1.5, TypeError), (True, TypeError), ("2", TypeError)]  # fmt: skip


@pytest.mark.parametrize(("n", "error"), BAD_NUMBERS)
def test_a_bad_number_of_threads(n: object, error: type[Exception]) -> None:
    before = fusecell.get_num_threads()
    with pytest.raises(error, match="n: expected"):
        fusecell.set_num_threads(n)  # type: ignore[arg-type]
    assert fusecell.get_num_threads() == before
