"""CUDA's names on the host: what is right in every order, and what each mode of the emulation is there to find.

emulation_probe.cu is compiled with the emulation as it stands, plainly and with sanitizers, and run with one kernel's
name. It exits with 0 if the answer is right, 1 if it is wrong, 2 if the launch failed, 66 if ThreadSanitizer reported.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
EMULATION = ROOT / "csrc" / "emulation"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-pthread"]
VARIANTS = {
    "plain": [],
    "ucontext": ["-DFUSECELL_EMULATION_UCONTEXT"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread", "-fno-omit-frame-pointer"],
}

ORDERS = ["forward", "reversed", "random"]
RIGHT = [
    "block_sum",
    "warp_sum",
    "load_matrices",
    "multiply_bfloat16",
    "multiply_float16",
    "multiply_columns",
    "pipeline",
    "bulk",
    "sites",
    "places",
    "by_value",
    "two_host_threads",
    "after_a_fault",
    "refused",
    "api",
]

# Of the parent process, which may itself run under a sanitizer.
FOREIGN = re.compile(r"LD_PRELOAD|[A-Z]+SAN_OPTIONS|FUSECELL_EMULATION")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Probe = Callable[..., Result]


def compile_and_link(sources: list[Path], target: Path, flags: list[str]) -> None:
    include = [f"-I{folder}" for folder in (ROOT / "csrc", EMULATION / "language", EMULATION / "api")]
    command = [COMPILER, "-x", "c++", *FLAGS, *flags, *include, *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ThreadSanitizer fails where the kernel spreads addresses widely.
def fixed_addresses(variant: str) -> list[str]:
    wanted = variant == "thread" and shutil.which("setarch") is not None
    works = wanted and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    return ["setarch", "-R"] if works else []


def execute(command: list[str], emulation: str = "") -> Result:
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
    # A launch that fails leaves fibres where they were, and what the runtime allocated for them is not to be counted.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**environment, "FUSECELL_EMULATION": emulation}
    )
    return Result(done.returncode, done.stdout.strip(), done.stderr)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Probe]:
    """Return the probe of a variant, built when it is first asked for."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} on this machine")
    folder = tmp_path_factory.mktemp("emulation")

    def build(variant: str) -> Path:
        program = folder / variant
        if program.exists():
            return program
        empty = folder / "empty.cpp"
        empty.write_text("int main() {}\n")
        try:
            compile_and_link([empty], folder / f"empty_{variant}", VARIANTS[variant])
            works = execute([*fixed_addresses(variant), str(folder / f"empty_{variant}")]).code == 0
        except AssertionError:
            works = False
        if not works:
            pytest.skip(f"{COMPILER} {' '.join(VARIANTS[variant])}: does not work on this machine")
        compile_and_link([*EMULATION.glob("*.cpp"), ROOT / "tests" / "emulation_probe.cu"], program, VARIANTS[variant])
        return program

    def probe(variant: str) -> Probe:
        command = [*fixed_addresses(variant), str(build(variant))]

        def run(name: str, **controls: object) -> Result:
            return execute([*command, name], ",".join(f"{key}={value}" for key, value in controls.items()))

        return run

    return probe


@pytest.fixture
def plain(probes: Callable[[str], Probe]) -> Probe:
    return probes("plain")


@pytest.fixture
def under_address(probes: Callable[[str], Probe]) -> Probe:
    return probes("address")


@pytest.fixture
def under_thread(probes: Callable[[str], Probe]) -> Probe:
    return probes("thread")


# ------------------------------------------------------------------------------------------ right is right
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("variant", ["plain", "ucontext", "address"])
def test_right_in_every_mode(probes: Callable[[str], Probe], variant: str, name: str) -> None:
    probe = probes(variant)
    for copies, order in itertools.product(["eager", "late"], ORDERS):
        result = probe(name, copies=copies, order=order, seed=len(name))
        assert result.code == 0, (copies, order, result)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("variant", ["plain", "thread"])
def test_right_with_threads(probes: Callable[[str], Probe], variant: str, name: str) -> None:
    probe = probes(variant)
    for copies, order in [("eager", "forward"), ("late", "random")]:
        result = probe(name, engine="threads", copies=copies, order=order)
        assert result.code == 0, (copies, order, result)
        assert "ThreadSanitizer" not in result.err


@pytest.mark.parametrize("engine", ["fibres", "threads"])
def test_a_forked_child_launches_too(plain: Probe, engine: str) -> None:
    assert plain("after_a_fork", engine=engine).out.split() == ["right"] * 4


def test_launches_are_counted_by_name(plain: Probe) -> None:
    assert plain("launched").out.splitlines()[-2:] == ["block_sum 2", "warp_sum 1"]


# ------------------------------------------------------------------------------------------ orders
def test_orders(plain: Probe) -> None:
    # When each thread of two blocks of four ran, in the first and in the second interval.
    forward = [*range(0, 4), *range(8, 12), *range(4, 8), *range(12, 16)]
    backward = [*range(11, 7, -1), *range(3, -1, -1), *range(15, 11, -1), *range(7, 3, -1)]

    def order(**controls: object) -> list[int]:
        return [int(when) for when in plain("order", **controls).out.replace("|", "").split()]

    assert order(order="forward") == forward
    assert order(order="reversed") == backward
    seen = {tuple(order(order="random", seed=seed)) for seed in range(12)}
    assert len(seen) > 6
    assert all(sorted(times) == list(range(16)) for times in seen)
    assert order(order="random", seed=5) == order(order="random", seed=5)


def test_words_that_nobody_knows(plain: Probe) -> None:
    result = plain("block_sum", engine="fibers")
    assert result.code == 4
    assert "expected engine=fibres|threads" in result.out
    assert "got 'engine=fibers'" in result.out
    assert plain("block_sum", seed="x").code == plain("block_sum", sede=1).code == 4


# ------------------------------------------------------------------------------------------ missing barriers
def test_missing_barriers_by_order(plain: Probe) -> None:
    assert plain("block_sum_without_barriers", order="forward").code == 1
    assert plain("block_sum_without_barriers", order="random", seed=1).code == 1
    assert plain("block_sum_without_barriers", order="reversed").code == 0  # by luck: its halves are ready in time
    for order in ORDERS:
        assert plain("late_race", order=order).code == 1
    assert plain("left_neighbour", order="forward").code == 0  # by luck, too
    assert plain("left_neighbour", order="reversed").code == 1
    assert plain("left_neighbour", order="random", seed=1).code == 1
    assert plain("bulk_without_barrier", order="forward").code == 0  # and this
    assert plain("bulk_without_barrier", order="reversed").code == 1


# late_race: after a barrier that is right; the threads' way through that one must not order what follows.
# shuffle_is_no_barrier: what a shuffle hands over is its value alone.
@pytest.mark.parametrize(
    "name",
    [
        "block_sum_without_barriers",
        "late_race",
        "left_neighbour",
        "shuffle_is_no_barrier",
        "blocks_race",
        "bulk_without_barrier",
    ],
)
def test_races_are_seen(under_thread: Probe, name: str) -> None:
    result = under_thread(name)
    assert result.code == 66
    assert "WARNING: ThreadSanitizer: data race" in result.err


# ------------------------------------------------------------------------------------------ asynchronous copies
def test_missing_wait_is_seen_when_copies_are_late(plain: Probe) -> None:
    for name, engine in itertools.product(["pipeline_without_wait", "pipeline_without_commit"], ["fibres", "threads"]):
        assert plain(name, engine=engine, copies="eager").code == 0
        assert plain(name, engine=engine, copies="late").code == 1


def test_missing_second_barrier_is_seen_when_copies_are_at_once(plain: Probe) -> None:
    for order in ORDERS:
        assert plain("pipeline_without_second_barrier", copies="eager", order=order).code == 1


def test_missing_second_barrier_is_a_race(under_thread: Probe) -> None:
    assert under_thread("pipeline_without_second_barrier", copies="eager").code == 66


def test_the_newest_group_may_be_pending(plain: Probe) -> None:
    assert plain("newest_group_pending", copies="late").out.split() == ["pending"] * 4
    assert plain("newest_group_pending", copies="eager").out.split() == ["there"] * 4


# ------------------------------------------------------------------------------------------ memory
@pytest.mark.parametrize("engine", ["fibres", "threads"])
def test_unwritten_shared_memory_is_nan(plain: Probe, engine: str) -> None:
    assert plain("unwritten", engine=engine).code == 0


@pytest.mark.parametrize("engine", ["fibres", "threads"])
def test_overrun_is_seen(under_address: Probe, engine: str) -> None:
    assert "AddressSanitizer: heap-buffer-overflow" in under_address("overrun", engine=engine).err


# ------------------------------------------------------------------------------------------ faults
FAULTS = {
    "leave_early": r"kernel leave_early, block \(1,0,0\): __syncthreads not reached by 156 of 256 threads",
    "two_barriers": r"kernel two_barriers, .*: __syncthreads at line \d+ while others wait at line \d+",
    "leave_before_shuffle": r"kernel leave_before_shuffle, .*: shuffle_xor not reached by 3 of 32 threads of warp \d",
    "partial_warp": r"kernel warp_sum, .*thread \(3\d,0,0\): shuffle_xor in a warp of 8 threads",
    "leave_before_product": r"kernel .*: multiply_add not reached by 1 of 32 threads of warp 1",
    "product_of_half_a_warp": r"kernel .*: multiply_add in a warp of 16 threads",
    "product_meets_shuffle": r"kernel .*: (multiply_add|shuffle_xor) while others wait for (multiply_add|shuffle_xor)",
    "misaligned_rows": r"kernel .*: load_matrices: the address is not aligned to 16 bytes",
    "rows_past_the_end": r"kernel .*load_matrices: the 16 bytes to be read are not in a shared array",
    "columns_from_within_a_turn": r"kernel .*warpgroup_multiply_add: columns from a row on that is no multiple of 8",
    "columns_past_the_end": r"kernel .*warpgroup_multiply_add: rows that are not in a shared array",
    "throws": r"kernel throws, block \(0,0,0\): thread \(3,0,0\): an exception: out of range",
    "misaligned_copy": r"kernel misaligned_copy, .*: copy_async_16: the shared address is not aligned to 16 bytes",
    "bulk_without_wait": r"kernel bulk, .*: copy_bulk: nobody has waited for the copy before",
    "bulk_wrong_turn": r"kernel bulk, .*: wait_for_bulk: the copy under way is of another turn",
    "bulk_not_begun": r"kernel bulk, .*: copy_bulk: the arrivals were not begun",
    "bulk_misaligned": r"kernel bulk, .*: copy_bulk: the shared address is not aligned to 16 bytes",
    "bulk_past_the_end": r"kernel bulk, .*: copy_bulk: the bytes to be written are not in a shared array",
    "copy_past_the_end": r"kernel copy_past_the_end, .*: the 16 bytes to be written are not in a shared array",
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize(("variant", "engine"), [("plain", "fibres"), ("address", "fibres"), ("thread", "threads")])
def test_faults(probes: Callable[[str], Probe], variant: str, engine: str, name: str) -> None:
    probe = probes(variant)
    for order in ORDERS if engine == "fibres" else ["forward"]:
        result = probe(name, engine=engine, order=order)
        assert result.code == 2, result
        assert re.fullmatch(f"cudaErrorLaunchFailure: {FAULTS[name]}", result.out), result.out
        assert "Sanitizer" not in result.err


# ------------------------------------------------------------------------------------------ time
@pytest.mark.parametrize("engine", ["fibres", "threads"])
def test_time(plain: Probe, engine: str) -> None:
    result = plain("time", engine=engine)
    print(f"{engine}: {result.out}")
    assert result.code == 0
