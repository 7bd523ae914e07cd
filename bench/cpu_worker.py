"""A process for each peer, since torch, JAX and TensorFlow bring thread pools, and Keras has one backend in a process.

    python bench/cpu_worker.py PEERS|STREAMS NAME THREADS      reads requests, a line of JSON each, and answers them

`Worker` starts one and asks it, as processes.py has it. Whatever is timed is timed inside.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from processes import Process, serve
from timing import stopwatch
from torch_memory import GIVE_BACK, peak_of_a_step

ALL_GIVE_BACK = {**GIVE_BACK, "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}  # its own keeps what was freed
TICKS = os.sysconf("SC_CLK_TCK")


class Worker(Process):
    """A peer in a process of its own; `with` ends it.

    measured: malloc gives freed memory back at once, as torch_memory.py explains. The process runs on the caller's
    CPUs, and XLA and TensorFlow size their pools by their number.
    """

    def __init__(self, table: str, name: str, threads: int, *, measured: bool = False) -> None:
        from cpu_peers import PEERS, STREAMS

        entry = {"PEERS": PEERS, "STREAMS": STREAMS}[table][name]
        environment = {
            **entry.environment, **(ALL_GIVE_BACK if measured else {}),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
            "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }  # fmt: skip
        super().__init__(name, [sys.executable, __file__, table, name, str(threads)], environment)

    def busy_seconds(self) -> float:
        """Of all its threads, so far."""
        after_the_name = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, after_the_name[11:13])) / TICKS


class Served:
    """What a worker answers."""

    def __init__(self, table: str, name: str, threads: int) -> None:
        import cpu_peers

        self.name, self.entry = name, getattr(cpu_peers, table)[name]
        _use_threads(self.entry.needs, threads)
        self.made: Any = None

    def peer(self, path: str) -> float:
        """Make the peer of this shape and check both of its passes, which runs all there is once; the largest error."""
        from array_peers import Numbers
        from verify import largest_error

        self.made = None
        gc.collect()
        numbers = Numbers.read(Path(path))
        made = self.entry.make(numbers)
        rules = numbers.expected, self.entry.tolerance
        error = largest_error(self.name, made.results(made.step()), *rules)
        forward = {"y": made.results(made.infer())["y"]}
        error = max(error, largest_error(f"{self.name}, forward", forward, *rules))
        made.forget()
        self.made = made
        return error

    def step(self) -> float:
        return stopwatch(self._made().step)()

    def infer(self) -> float:
        self._made().forget()
        return stopwatch(self._made().infer)()

    def peak(self, path: str) -> int:
        """Bytes, in a process that has run nothing else."""
        from array_peers import Numbers

        return peak_of_a_step(self.entry.make(Numbers.read(Path(path))))

    def stream(self, path: str) -> float:
        """As `peer`, for a Stream: its sequence is the first sample."""
        import numpy as np
        from array_peers import Numbers
        from verify import largest_error

        numbers = Numbers.read(Path(path))
        made = self.entry.make(numbers)
        got = {"y": np.stack(made.outputs())}
        error = largest_error(self.name, got, {"y": numbers.expected["y"][:, 0]}, self.entry.tolerance)
        self.made = made
        return error

    def frames(self, count: int) -> list[float]:
        return self._made().seconds(count)

    def _made(self) -> Any:
        if self.made is None:
            raise RuntimeError(f"{self.name}: expected a peer that has been checked, got none: nothing is timed")
        return self.made


def _use_threads(needs: tuple[str, ...], threads: int) -> None:
    """What environment variables do not say."""
    import fusecell

    fusecell.set_num_threads(threads)
    if "torch" in needs:
        import torch

        torch.set_num_threads(threads)
    if "tensorflow" in needs:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


class Load:
    """Who uses the CPUs of this process from here on: its workers, or others, who make every figure worthless."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = list(workers)
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        """The clock; the seconds that all CPUs were busy, or another machine had them; and that the workers used."""
        return time.perf_counter(), _busy_seconds(), sum(worker.busy_seconds() for worker in self._workers)

    def cores(self) -> tuple[float, float]:
        """The number of CPUs that workers kept busy, and others (but this process)."""
        elapsed, busy, own = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return own / elapsed, max(0.0, busy - own) / elapsed


def _busy_seconds() -> float:
    mine = {f"cpu{index}" for index in os.sched_getaffinity(0)}
    lines = (line.split() for line in Path("/proc/stat").read_text(encoding="ascii").splitlines())
    # user, nice, system, then idle and iowait, which are left out, then irq, softirq, steal
    ticks = (sum(map(int, line[1:4] + line[6:9])) for line in lines if line[0] in mine)
    return sum(ticks) / TICKS - time.process_time()


def main(table: str, name: str, threads: str) -> None:
    serve(Served(table, name, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])
