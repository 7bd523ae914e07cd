"""What nvcc made of each CUDA kernel: registers, shared memory and stack per GPU, compile times and sizes.

    python tools/kernel_report.py BUILD_FOLDER

Reads the objects that `make cuda` left there; `cuobjdump` comes from PATH or from PyPI's wheel. Exit status 1: other
kernels than csrc/cuda/kernels.def lists, or more than 64 for one GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_KERNELS = 64
COLUMNS = {"REG": "registers", "SHARED": "shared", "STACK": "stack"}

Kernels = dict[str, dict[str, str]]
"""GPU -> kernel -> what it uses."""


def listed_kernels(text: str) -> list[tuple[str, str]]:
    """(header, name with all its template arguments) for each line `KERNEL(header.cuh, name<...>)` of kernels.def."""
    lines = [line.partition("//")[0].strip() for line in text.splitlines()]
    found = [re.fullmatch(r"KERNEL\(([\w/]+\.cuh), (.+)\)", line) for line in lines if line]
    if not found or not all(found):
        raise SystemExit(
            "kernels.def: expected lines such as KERNEL(gates.cuh, lstm_gates_forward<float, SigmoidTanh>)"
        )
    return [(match[1], match[2]) for match in found if match]


def plain_name(function: str) -> str:
    """A kernel's name as c++filt or a person writes it, less result, arguments, namespaces, spaces, literals' types."""
    depth = 0
    for at, sign in enumerate(function):
        depth += {"<": 1, ">": -1}.get(sign, 0)
        if sign == "(" and depth == 0:
            function = function[:at]
            break
    name = re.sub(r"^void |\([\w:]+\)(?=-?\d)|\b\w+::|\s", "", function)
    return re.sub(r"(\d)u?l{0,2}(?=[,>])", r"\1", name)


def parse(dump: str) -> Kernels:
    """Read what `cuobjdump -res-usage` prints, its names demangled."""
    kernels: Kernels = {}
    gpu = name = ""
    for line in dump.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            gpu = match[1]
        elif match := re.match(r" Function (.+):$", line):
            name = plain_name(match[1])
        elif match := re.match(r"  REG:", line):
            used = dict(re.findall(r"(\w+):(\d+)", line))
            kernels.setdefault(gpu, {})[name] = ", ".join(f"{used[key]} {word}" for key, word in COLUMNS.items())
    return kernels


def cuobjdump() -> str:
    """Where it is. The wheel unpacks to the folder of the package `nvidia`."""
    if found := shutil.which("cuobjdump"):
        return found
    import nvidia

    found = [str(path) for folder in nvidia.__path__ for path in Path(folder).glob("cu1?/bin/cuobjdump")]
    if not found:
        raise SystemExit("there is no cuobjdump: pip install nvidia-cuda-cuobjdump")
    return found[0]


def seconds(build: Path) -> dict[str, float]:
    """Ninja's own record: object -> compile time, its last one."""
    log = build / ".ninja_log"
    rows = [line.split("\t") for line in log.read_text().splitlines()[1:]] if log.exists() else []
    return {row[3]: (int(row[1]) - int(row[0])) / 1000 for row in rows if len(row) > 3}


def complaints(kernels: Kernels, listed: list[str]) -> list[str]:
    """What is wrong with these kernels."""
    found = []
    for gpu, names in kernels.items():
        if len(names) > MOST_KERNELS:
            found.append(f"{gpu}: {len(names)} kernels, {MOST_KERNELS} are allowed")
        for name in sorted({plain_name(name) for name in listed} ^ set(names)):
            found.append(
                f"{gpu}: {name} is {'compiled, but not' if name in names else 'not compiled, but'} in kernels.def"
            )
    return found or ([] if kernels else ["there are no kernels"])


def main() -> int:
    """Print the report."""
    build = Path(sys.argv[1])
    times, everything = seconds(build), Kernels()
    recipe = (build / "build.ninja").read_text()  # an object of a source that is gone may lie there still
    for file in sorted(build.glob("CMakeFiles/fusecell_cuda_kernels.dir/**/*.o")):
        if str(file.relative_to(build)) not in recipe:
            continue
        dump = subprocess.run([cuobjdump(), "-res-usage", file], capture_output=True, text=True, check=True).stdout
        kernels = parse(subprocess.run(["c++filt"], input=dump, capture_output=True, text=True, check=True).stdout)
        time = times.get(str(file.relative_to(build)), float("nan"))
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB, {time:.1f} s")
        for gpu, names in kernels.items():
            everything.setdefault(gpu, {}).update(names)
            for name in sorted(names):
                print(f"  {gpu:<7} {name}: {names[name]}")
    modules = [file for file in build.glob("_cuda.*.so")]
    print("".join(f"{file.name}: {file.stat().st_size / 1000:.0f} kB\n" for file in modules), end="")
    print(", ".join(f"{gpu}: {len(names)} kernels" for gpu, names in everything.items()))

    listed = listed_kernels((ROOT / "csrc/cuda/kernels.def").read_text(encoding="utf-8"))
    wrong = complaints(everything, [name for _, name in listed])
    print("".join(f"{complaint}\n" for complaint in wrong), end="", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
