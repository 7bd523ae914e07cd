"""Shows that the tests see errors in the CUDA kernels: puts in one at a time and runs the tests until one is red.

    python tools/mutants.py [--only TEXT] [--again] [--write]

--only TEXT takes the mutations whose name contains TEXT. --again takes those that were not as they should be in the
last whole run, or that have changed since, or their file, and keeps the other verdicts. --write puts the table into
docs/mutants.md. The list is in mutations.py. Everything happens in a copy under build/mutants, where the kernels' own
sources are compiled for the host (csrc/emulation). A mutation that the tests let pass there is compiled again with a
sanitizer, which sees races and accesses out of bounds that change no result. Python is that of an environment with
fusecell built in it.

Exit status 1: a mutation lives that is not said to be equivalent, or one that is said to be is killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pybind11
from mutations import ELEMENTWISE, LISTS, MUTATIONS, SEQUENCE, Mutation

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "mutants"
TREE = PLACE / "tree"
RESULTS = PLACE / "results.json"
TABLE = ROOT / "docs" / "mutants.md"
COPIED = ("CMakeLists.txt", "cmake", "csrc", "pyproject.toml", "python", "tests")
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
SECONDS = 240  # a family's tests that take longer, and thrice as long as without a mutation, hang, and are red

EMULATED = "emulated or tensor"  # tests of the kernels, by their names

# Each family's tests, the likeliest to be red first.
TESTS = {
    SEQUENCE: [
        "tests/test_cases.py::test_against_the_reference",
        "tests/test_emulated.py",
        "tests/test_half_precision.py",
        "tests/test_layouts.py",
        "tests/test_statistics.py",
        "tests/test_tensor_gradient.py",
        "tests/test_cases.py::test_nothing_is_left_uninitialised",
        "tests/test_cases.py::test_recomputing_gives_the_same_bits",
        "tests/test_cases.py::test_keeping_nothing_changes_no_output",
        "tests/test_cases.py::test_absent_upstream_gradients_are_zero",
        "tests/test_cases.py::test_a_step_is_a_sequence_of_one",
        "tests/test_cases.py::test_what_stands_in_the_padding_affects_nothing",
        "tests/test_cases.py::test_a_pixel_that_a_tap_never_reads_does_not_reach_its_gradient",
        "tests/test_gradients.py::test_truncation_leaves_short_samples_whole",
    ],
    ELEMENTWISE: [
        "tests/test_activations.py",
        "tests/test_masks.py",
        "tests/test_properties.py::test_a_counter_that_lies_in_memory_is_read_as_the_numbers_are_drawn",
        "tests/test_gradients.py::test_softmax",
        "tests/test_emulated.py::test_the_same_bits_in_any_manner_without_a_convolution",
        "tests/test_emulated.py::test_pointwise_on_memory_that_is_not_aligned_to_16_bytes",
        "tests/test_half_precision.py::test_activations",
        "tests/test_half_precision.py::test_softmax",
        "tests/test_cases.py::test_against_the_reference",
    ],
    LISTS: [
        "tests/test_updates.py",
        "tests/test_clipping.py",
        "tests/test_emulated.py::test_the_same_bits_in_any_manner_without_a_convolution",
        "tests/test_emulated.py::test_pointwise_on_memory_that_is_not_aligned_to_16_bytes",
        "tests/test_half_precision.py::test_clipping_a_list_of_all_dtypes",
        "tests/test_half_precision.py::test_adam_keeps_its_slots_in_float32",
    ],
}
# With a thread for each thread of a block one case takes seconds.
UNDER_THREAD = {
    SEQUENCE: [
        f"tests/test_cases.py::test_against_the_reference[emulated-{case}-float32]"
        for case in (
            "conv_lstm: the default cell",
            "conv_lstm: channels that fill no register tile, two groups of rows",
            "lstm_gates: bias and peephole per channel",
            "conv2d: 3x3",
        )
    ],
    ELEMENTWISE: ["tests/test_activations.py::test_softmax_is_shifted_and_sums_to_one", "tests/test_masks.py"],
    LISTS: ["tests/test_clipping.py::test_mixed_dtypes_in_one_list", "tests/test_updates.py::test_many_arrays"],
}


@dataclass
class Verdict:
    """What became of a mutation. by: the test that was red, and how; empty: none was."""

    by: str
    seconds: float
    source: str


Verdicts = dict[str, Verdict]


# ------------------------------------------------------------------------------------------ the copy and its builds
def write_if_new(target: Path, content: bytes) -> None:
    """Leave a file alone that holds this already: what is newer is compiled again."""
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def copy_tree() -> None:
    """Make TREE what ROOT is."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *COPIED],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    files = {Path(name) for name in listed if name and (ROOT / name).exists()}
    for file in files:
        write_if_new(TREE / file, (ROOT / file).read_bytes())
    for old in [p for p in TREE.rglob("*") if p.is_file() and p.relative_to(TREE) not in files]:
        old.unlink()


def make_environment() -> Path:
    """Return a Python that has this one's packages, less fusecell: an editable install's .pth file is left behind."""
    python = PLACE / "env" / "bin" / "python"
    if not python.exists():
        venv.create(PLACE / "env")
    [packages] = (PLACE / "env" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    return python


class Build:
    """_emulated of TREE, plain or with a sanitizer, and the tests on it."""

    def __init__(self, sanitizer: str = "") -> None:
        self.sanitizer = sanitizer
        self.folder = PLACE / (sanitizer or "plain")
        self.python = make_environment()
        self.limits: dict[str, float] = {}  # of a family's tests; none while they are green for the first time
        self.package = self.folder / "site" / "fusecell"
        self._link_package()
        self._configure()

    def _link_package(self) -> None:
        shutil.rmtree(self.package, ignore_errors=True)
        self.package.mkdir(parents=True)
        for file in (TREE / "python" / "fusecell").iterdir():
            (self.package / file.name).symlink_to(file)
        # The CPU's core is not what is tested: the one of this environment serves.
        core = subprocess.check_output([sys.executable, "-c", "from fusecell import _cpu; print(_cpu.__file__)"])
        shutil.copy(Path(core.decode().strip()), self.package)

    def _configure(self) -> None:
        definitions = {
            "CMAKE_BUILD_TYPE": "Debug" if self.sanitizer else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": self.package,
            "FUSECELL_EMULATED": "ON",
            "FUSECELL_EMULATED_OPTIMISE": "-O1",
            "FUSECELL_SANITIZE": SANITIZERS.get(self.sanitizer, ""),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "SKBUILD_PROJECT_VERSION": "0",
        }
        command = ["cmake", "-G", "Ninja", "-S", TREE, "-B", self.folder]
        done = self._run([*command, *(f"-D{name}={value}" for name, value in definitions.items())])
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}\n{self.folder}: cmake failed")

    def _run(self, command: Iterable[str | Path]) -> subprocess.CompletedProcess[str]:
        # cmake and ninja may be this environment's.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "FUSECELL_CUDA": "off"}
        return subprocess.run([*command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def compile(self) -> None:
        """Bring the module up to date."""
        done = self._run(["cmake", "--build", self.folder, "--target", "_emulated", "-j2"])
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}\na mutation has to compile")

    # ---------------------------------------------------------------------------------------- tests
    def tests(self, family: str, killer: str = "") -> list[str]:
        """Pytest's arguments."""
        if self.sanitizer == "thread":
            return [*UNDER_THREAD[family], "-k", EMULATED]
        if self.sanitizer == "address":  # what threads and orders show, it does not see
            return [*TESTS[family], "-k", f"({EMULATED}) and not thread_for_each and not in_any_manner"]
        late = killer == "late copies"
        return [*sorted(TESTS[family], key=lambda name: late and "test_emulated" not in name), "-k", EMULATED]

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FUSECELL_")}
        environment |= {"PYTHONPATH": str(self.package.parent), "OPENBLAS_NUM_THREADS": "1", "CI": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if self.sanitizer:  # as tools/sanitize.sh, which says why
            compiler, library = os.environ.get("CXX", "g++"), {"address": "libasan.so", "thread": "libtsan.so"}
            preloaded = [
                subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
                for name in (library[self.sanitizer], "libstdc++.so")
            ]
            environment |= {
                "LD_PRELOAD": " ".join(str(Path(p).resolve()) for p in preloaded),
                "PYTHONMALLOC": "malloc",
                "FUSECELL_EMULATION": "engine=threads" if self.sanitizer == "thread" else "",
                "ASAN_OPTIONS": "detect_leaks=0",
                "UBSAN_OPTIONS": "halt_on_error=1",
                "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0:exitcode=66",
            }
        return environment

    def first_red(self, family: str, killer: str = "") -> str:
        """Run a family's tests. What the first red one is called, and how it ended; "" if all are green."""
        fixed = ["setarch", "-R"] if self.sanitizer == "thread" and shutil.which("setarch") else []
        command = [*fixed, str(self.python), "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", "-x", "-v"]
        process = subprocess.Popen(
            [*command, "--tb=line", *self.tests(family, killer)],
            cwd=TREE, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=self.limits.get(family))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            return f"{last_test(said)}: not over after {self.limits[family]:.0f} s"
        (self.folder / "tests.log").write_text(said, encoding="utf-8")
        if process.returncode == 0:
            return ""
        return red(said, process.returncode)


def last_test(said: str) -> str:
    """The test that pytest -v named last."""
    found = re.findall(r"^(?:\S*/)?(test_\w+\.py::\w+(?:\[[^\]\n]*\])?)", said, re.MULTILINE)
    return found[-1] if found else "before the first test"


def red(said: str, status: int) -> str:
    """How the tests ended that are not green."""
    if report := re.search(r"(Address|Thread)Sanitizer: ([a-z-]+(?: race| overflow)?)", said):
        return f"{last_test(said)}: {report[1]}Sanitizer, {report[2]}"
    if report := re.search(r"runtime error: (.*?)(?: for type| 0x|$)", said, re.MULTILINE):
        return f"{last_test(said)}: UndefinedBehaviorSanitizer, {report[1]}"
    if failed := re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(test_\w+\.py(?:::.*?)?)(?: - |$)", said, re.MULTILINE):
        return failed[1]
    if status < 0:
        return f"{last_test(said)}: {signal.Signals(-status).name}"
    raise SystemExit(f"{said}\npytest ended with {status}")


# ------------------------------------------------------------------------------------------ the mutations
class Bench:
    """The copy with its builds; a sanitizer's is made when it is first asked for."""

    def __init__(self) -> None:
        copy_tree()
        self._builds: dict[str, Build] = {}

    def build(self, sanitizer: str) -> Build:
        """A build that is green without a mutation."""
        if sanitizer not in self._builds:
            build = Build(sanitizer)
            build.compile()
            for family in TESTS:
                start = time.monotonic()
                if by := build.first_red(family):
                    raise SystemExit(f"without a mutation, {family}, {sanitizer or 'plain'}: {by}")
                seconds = time.monotonic() - start
                build.limits[family] = max(SECONDS, 3 * seconds)
                print(f"green as it is: {family}, {sanitizer or 'plain'}, {seconds:.0f} s", flush=True)
            self._builds[sanitizer] = build
        return self._builds[sanitizer]

    def try_out(self, mutation: Mutation) -> str:
        """Who kills it; "" if nobody does."""
        sanitizer = "thread" if mutation.removes_a_barrier or mutation.killer == "thread" else "address"
        file = TREE / "csrc" / mutation.file
        clean = (ROOT / "csrc" / mutation.file).read_text(encoding="utf-8")
        mutated, count = mutation.pattern.subn(lambda _: mutation.replace, clean)
        if count != 1:
            raise SystemExit(f"{mutation}: its text stands {count} times in {mutation.file}")
        # One that computes the same has the same accesses, too, or its reason says why not: two minutes each are saved.
        for name in ("",) if mutation.equivalent else ("", sanitizer):
            build = self.build(name)
            try:
                write_if_new(file, mutated.encode())
                build.compile()
                by = build.first_red(mutation.family, mutation.killer)
            finally:
                write_if_new(file, clean.encode())
            if by:
                return by
        return ""


def fate(mutation: Mutation, verdict: Verdict) -> str:
    """As the table has it."""
    if verdict.by:
        return f"`{verdict.by}`" + (", BUT IT IS SAID TO BE EQUIVALENT" if mutation.equivalent else "")
    return f"lives: {mutation.equivalent}" if mutation.equivalent else "ALIVE"


def source_of(mutation: Mutation) -> str:
    """Which text was mutated, and how."""
    text = (ROOT / "csrc" / mutation.file).read_bytes() + f"{mutation.find}\0{mutation.replace}".encode()
    return hashlib.sha256(text).hexdigest()


def is_wrong(mutation: Mutation, verdict: Verdict) -> bool:
    """Whether the list and the tests disagree."""
    return bool(verdict.by) == bool(mutation.equivalent)


def table(verdicts: Verdicts) -> str:
    """The page for docs/: those that live are last."""
    rows = sorted(((m, verdicts[str(m)]) for m in MUTATIONS), key=lambda row: not row[1].by)
    living = sum(not verdict.by for _, verdict in rows)
    lines = [
        "# Mutants: what the kernels' tests see",
        "",
        "`make mutants` puts one error at a time into the CUDA kernels, compiles them for the host and runs the tests",
        "until one is red; where none is, once more with a sanitizer. It wrote this page. A mutant may live only if it",
        "computes the same, with its reason. The list is `tools/mutations.py`.",
        "",
        f"{len(rows)} mutants, {len(rows) - living} killed, {living} equivalent; "
        f"{sum(verdict.seconds for _, verdict in rows) / 60:.0f} minutes on two cores.",
        "",
        "| kernel | what is wrong | in | killed by | s |",
        "|---|---|---|---|---|",
    ]
    for mutation, verdict in rows:
        file = mutation.file.removeprefix("cuda/")
        cells = mutation.kernel, mutation.what, file, fate(mutation, verdict), f"{verdict.seconds:.0f}"
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ what was found before
def remembered() -> Verdicts:
    """The verdicts that were as they should be, where neither the mutation nor its file has changed."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    verdicts = {str(m): (m, Verdict(**found[str(m)])) for m in MUTATIONS if str(m) in found}
    return {
        name: verdict
        for name, (mutation, verdict) in verdicts.items()
        if verdict.source == source_of(mutation) and not is_wrong(mutation, verdict)
    }


def remember(verdicts: Verdicts) -> None:
    """For --again."""
    listed = {name: asdict(verdict) for name, verdict in verdicts.items()}
    RESULTS.write_text(json.dumps(listed, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="the mutations whose name contains this")
    parser.add_argument("--again", action="store_true", help="those that were not as they should be")
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    arguments = parser.parse_args()
    if arguments.write and arguments.only:
        parser.error("--write: a table has all of them")
    return arguments


def main() -> int:
    """Try them."""
    arguments = parse()
    verdicts = remembered() if arguments.again else {}
    chosen = [m for m in MUTATIONS if arguments.only in str(m) and str(m) not in verdicts]
    bench = Bench()
    bench.build("")
    for number, mutation in enumerate(chosen, 1):
        start = time.monotonic()
        verdict = Verdict(bench.try_out(mutation), time.monotonic() - start, source_of(mutation))
        verdicts[str(mutation)] = verdict
        print(f"{number}/{len(chosen)} {mutation}: {fate(mutation, verdict)}, {verdict.seconds:.0f} s", flush=True)
        if not arguments.only:
            remember(verdicts)
    if arguments.write:
        TABLE.write_text(table(verdicts), encoding="utf-8")
    wrong = [m for m in MUTATIONS if str(m) in verdicts and is_wrong(m, verdicts[str(m)])]
    print(f"{len(chosen)} mutants tried, {len(wrong)} not as they should be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
