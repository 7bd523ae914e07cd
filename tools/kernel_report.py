"""What nvcc made of each CUDA kernel: registers, shared memory and stack per GPU, how many blocks a multiprocessor
holds at once, instructions of tensor cores, compile times and sizes.

    python tools/kernel_report.py BUILD_FOLDER

Reads the objects that `make cuda` left there; `cuobjdump` comes from PATH or from PyPI's wheel. Exit status 1: other
kernels than csrc/cuda/kernels.def lists, more than 96 for one GPU, or a convolution of the channels-last path that is
not on tensor cores where the GPU has them for all its types (from sm_80 on), or another kernel that is, or one whose
products of warpgroups are waited for one by one, as the compiler has it when it does not see through them (it tells
that as a remark, no warning: C7510 to C7519). Blocks at once are those that registers and static shared memory leave
room for; the channels-last path takes as much dynamic shared memory as two blocks of it have, and is compiled for two.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_KERNELS = 96  # 90 take a minute and a half on two cores for two GPUs; a wheel for all GPUs may have 20 MB
COLUMNS = {"REG": "registers", "SHARED": "shared", "STACK": "stack"}
ON_TENSOR_CORES = re.compile(r"tensor_(forward_step|backward_step|correlate|gradient)<")
# What a multiprocessor has, by compute capability: KiB of shared memory, of which a block takes one more than it asks
# for from 80 on, which cuobjdump counts from 90 on; and threads. Of registers it has 65536 everywhere.
MULTIPROCESSORS = {75: (64, 1024), 80: (164, 2048), 86: (100, 1536), 89: (100, 1536), 90: (228, 2048)}
MULTIPROCESSORS |= {100: (228, 2048), 120: (100, 1536)}
THREADS = 256  # of every block
# What cuobjdump -sass says of tensor cores, and of waiting for products of warpgroups.
INSTRUCTION = re.compile(r"\b(HMMA|HGMMA|WARPGROUP\.DEPBAR)\.")
IN_SASS = re.compile(rf"^arch = |Function : |{INSTRUCTION.pattern}")

Kernels = dict[str, dict[str, str]]
"""GPU -> kernel -> what it uses."""
Instructions = dict[str, dict[str, Counter[str]]]
"""GPU -> kernel -> how many of each INSTRUCTION."""


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
            words = [f"{used[key]} {word}" for key, word in COLUMNS.items()]
            if capability(gpu) in MULTIPROCESSORS:
                words.append(f"{blocks_at_once(gpu, int(used['REG']), int(used['SHARED']))} blocks at once")
            kernels.setdefault(gpu, {})[name] = ", ".join(words)
    return kernels


def matrix_instructions(dump: str) -> Instructions:
    """Count them in what `cuobjdump -sass` prints, its names demangled."""
    counts: Instructions = {}
    gpu = name = ""
    for line in dump.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            gpu = match[1]
        elif match := re.match(r"\s+Function : (.+)$", line):
            name = plain_name(match[1])
            counts.setdefault(gpu, {})[name] = Counter()
        elif match := INSTRUCTION.search(line):
            counts[gpu][name][match[1]] += 1
    return counts


def capability(gpu: str) -> int:
    """90 for sm_90a."""
    return int(re.sub(r"\D", "", gpu))


def blocks_at_once(gpu: str, registers: int, shared: int) -> int:
    """How many blocks a multiprocessor holds: registers go to warps in units of 256, shared memory in units of 128."""
    kibibytes, threads = MULTIPROCESSORS[capability(gpu)]
    of_block = -(-shared // 128) * 128 + 1024 * (80 <= capability(gpu) < 90)
    most = [65536 // (-(-registers // 8) * 8 * THREADS), threads // THREADS]
    return min([*most, kibibytes * 1024 // of_block] if of_block else most)


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


def products(instructions: Counter[str]) -> int:
    """Those of tensor cores."""
    return instructions["HMMA"] + instructions["HGMMA"]


def complaints(kernels: Kernels, listed: list[str], instructions: Instructions) -> list[str]:
    """What is wrong with these kernels."""
    found = []
    for gpu, names in kernels.items():
        if len(names) > MOST_KERNELS:
            found.append(f"{gpu}: {len(names)} kernels, {MOST_KERNELS} are allowed")
        for name in sorted({plain_name(name) for name in listed} ^ set(names)):
            found.append(
                f"{gpu}: {name} is {'compiled, but not' if name in names else 'not compiled, but'} in kernels.def"
            )
        for name in names:
            wanted = capability(gpu) >= 80 and ON_TENSOR_CORES.match(name) is not None
            if wanted != (products(instructions[gpu][name]) > 0):
                found.append(f"{gpu}: {name} {'does not use' if wanted else 'uses'} tensor cores")
            if 0 < instructions[gpu][name]["HGMMA"] <= instructions[gpu][name]["WARPGROUP.DEPBAR"]:
                found.append(f"{gpu}: {name} waits for each product of a warpgroup")
    return found or ([] if kernels else ["there are no kernels"])


def dumped(option: str, file: Path) -> str:
    """What cuobjdump says of an object, its names demangled."""
    said = subprocess.run([cuobjdump(), option, file], capture_output=True, text=True, check=True).stdout
    kept = "".join(f"{line}\n" for line in said.splitlines() if option != "-sass" or IN_SASS.search(line))
    return subprocess.run(["c++filt"], input=kept, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print the report."""
    build = Path(sys.argv[1])
    times, everything = seconds(build), Kernels()
    instructions: Instructions = {}
    recipe = (build / "build.ninja").read_text()  # an object of a source that is gone may lie there still
    for file in sorted(build.glob("CMakeFiles/fusecell_cuda_kernels.dir/**/*.o")):
        if str(file.relative_to(build)) not in recipe:
            continue
        kernels, matrix = parse(dumped("-res-usage", file)), matrix_instructions(dumped("-sass", file))
        time = times.get(str(file.relative_to(build)), float("nan"))
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB, {time:.1f} s")
        for gpu, names in kernels.items():
            everything.setdefault(gpu, {}).update(names)
            instructions.setdefault(gpu, {}).update(matrix[gpu])
            for name in sorted(names):
                print(f"  {gpu:<7} {name}: {names[name]}, {products(matrix[gpu][name])} of tensor cores")
    modules = [file for file in build.glob("_cuda.*.so")]
    print("".join(f"{file.name}: {file.stat().st_size / 1000:.0f} kB\n" for file in modules), end="")
    print(", ".join(f"{gpu}: {len(names)} kernels" for gpu, names in everything.items()))

    listed = listed_kernels((ROOT / "csrc/cuda/kernels.def").read_text(encoding="utf-8"))
    wrong = complaints(everything, [name for _, name in listed], instructions)
    print("".join(f"{complaint}\n" for complaint in wrong), end="", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
