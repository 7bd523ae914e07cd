"""Work goes to CuPy's current stream, in order with what is there, and nobody waits for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from on_gpu import Sequence5D, bits, cupy, digest, normal, put, spin, wait

from fusecell import ops


def stream() -> Any:
    """A stream that does not wait for the default one."""
    return cupy.cuda.Stream(non_blocking=True)


def test_the_same_bits_on_two_streams_at_once(rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    expected = bits(problem.run())
    results = []
    for current in [stream() for _ in range(2)] * 3:
        with current:
            results.append((current, problem.run()))
    assert all(bits(result) == expected for _, result in results)


def test_the_same_bits_from_two_threads(rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    expected = bits(problem.run())

    def work(_: int) -> list[list[str]]:
        own, found = stream(), []
        with own:
            for _ in range(5):
                result = problem.run()
                own.synchronize()
                found.append([digest(array.get()) for array in result])
        return found

    with ThreadPoolExecutor(2) as threads:
        assert all(found == expected for each in threads.map(work, range(2)) for found in each)


def test_in_order_behind_what_the_stream_has_to_do(rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    expected, late = bits(problem.run()), problem.x.copy()
    wait()
    current = stream()
    with current:
        problem.run()  # so that the pool of this stream has the memory already
        problem.x.fill(0)
        current.synchronize()
        spin(0.2)
        put(problem.x, late)
        result = problem.run()
    assert bits(result) == expected


def test_the_default_stream_is_not_waited_for(rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    expected = bits(problem.run())
    spin(0)  # compiled
    current = stream()
    with current:
        problem.run()
    wait()
    spin(2.0)
    busy = cupy.cuda.get_current_stream().record()
    with current:
        result = problem.run()
    current.synchronize()
    assert not busy.done
    assert bits(result) == expected


def test_nobody_waits_for_the_gpu(rng: np.random.Generator) -> None:
    problem = Sequence5D(rng)
    gradients, slots = [normal(rng, n) for n in (70_000, 9)], [[normal(rng, n) for n in (70_000, 9)] for _ in range(3)]
    slots[2] = [abs(a) for a in slots[2]]
    wait()

    def everything() -> list[Any]:
        norm = ops.clip_by_global_norm_(gradients, 1.0)
        ops.adam_update_(slots[0], gradients, slots[1], slots[2], step=1, lr=1e-3, norm=norm, max_norm=1.0)
        ops.clip_by_value_(gradients, 0.5)
        return [norm, *ops.clip_by_norm_(gradients, 1.0), *ops.clip_if_any_exceeds_(gradients, 1.0), *problem.run()]

    current = stream()
    with current:
        everything()
        spin(0)
        current.synchronize()
        spin(2.0)
        results = everything()
        assert not current.done
    assert all(isinstance(r, cupy.ndarray) for r in results)
    wait()
