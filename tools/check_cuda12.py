"""Whether CUDA 12 takes the kernels and the launches, on a machine that has neither its compiler nor a GPU.

    python tools/check_cuda12.py

Kernels: NVRTC 12 compiles every line of csrc/cuda/kernels.def for each GPU; a warning is an error. Launch files: g++
reads them with the headers of CUDA 12 and the emulation's words of the language. Both come as wheels.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kernel_report import ROOT, listed_kernels

# Machine code for those with the fewest instructions and with some of their own, PTX for the others: ptxas takes most
# of the time.
TARGETS = ("sm_75", "compute_80", "sm_90a", "compute_100", "compute_120")
# NVRTC has no files of its own. It knows the language's words already; this is used besides.
HEADERS = {
    "cuda_runtime.h": """#pragma once
#define __builtin_sqrt sqrt
#define __builtin_sqrtf sqrtf
""",
    "cstdint": """#pragma once
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long uint64_t; typedef unsigned long uintptr_t;
#define INT32_MAX 0x7FFFFFFF
#define INT32_MIN (-INT32_MAX - 1)
namespace std {
using ::int8_t; using ::int16_t; using ::int32_t; using ::int64_t;
using ::uint8_t; using ::uint16_t; using ::uint32_t; using ::uint64_t; using ::uintptr_t;
}
""",
}
PROGRAM = """#include "cuda/{}"
namespace fusecell::cuda {{}}
using namespace fusecell;
using namespace fusecell::cuda;
"""


def wheel(inside: str) -> Path:
    """Where PyPI's wheels put this file or folder."""
    import nvidia

    found = [path for folder in nvidia.__path__ if (path := Path(folder, inside)).exists()]
    if not found:
        raise SystemExit(f"there is no nvidia/{inside}: make cuda12 installs it")
    return found[0]


def strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    """Texts as C has them."""
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


class Nvrtc:
    """The few functions of NVRTC that this needs."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(wheel("cuda_nvrtc/lib/libnvrtc.so.12")))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, function: str, *arguments: object) -> None:
        """Call one; RuntimeError if it fails."""
        if status := getattr(self.library, function)(*arguments):
            raise RuntimeError(f"{function}: {self.library.nvrtcGetErrorString(status).decode()}")

    def compile(self, source: str, names: list[str], options: list[str]) -> str:
        """Instantiate the kernels `names` for the GPU that the options name; return the compiler's words."""
        program = ctypes.c_void_p()
        headers = strings([*HEADERS.values()]), strings([*HEADERS])
        self.call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", len(HEADERS), *headers)
        for name in names:
            self.call("nvrtcAddNameExpression", program, name.encode())
        failure = ""
        try:
            self.call("nvrtcCompileProgram", program, len(options), strings(options))
        except RuntimeError as error:
            failure = f"{error}\n"
        size = ctypes.c_size_t()
        self.call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetProgramLog", program, log)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return failure + log.value.decode().strip()


def check_kernels(csrc: Path) -> bool:
    """Compile every kernel for every GPU."""
    nvrtc, right = Nvrtc(), True
    kernels: dict[str, list[str]] = {}
    for header, name in listed_kernels((csrc / "cuda/kernels.def").read_text(encoding="utf-8")):
        kernels.setdefault(header, []).append(name)
    for header, names in kernels.items():
        for target in TARGETS:
            # NVRTC takes a lambda in a kernel for the host's, unless it is told that there is none.
            options = [f"--gpu-architecture={target}", "--device-as-default-execution-space", "-std=c++20", f"-I{csrc}"]
            log = nvrtc.compile(PROGRAM.format(header), names, options)
            print(f"{header}, {target}: {len(names)} kernels{': ' + log if log else ''}", flush=True)
            right = right and not log
    return right


def check_launches(csrc: Path) -> bool:
    """Read every launch file with the headers of CUDA 12."""
    folders = [f"-I{csrc}", f"-I{csrc / 'emulation/language'}"]
    # -isystem: NVIDIA's headers have warnings of their own.
    folders += [f"-isystem{wheel(folder)}" for folder in ("cuda_runtime/include", "cuda_nvcc/include")]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # unroll
    command = ["g++", "-fsyntax-only", "-x", "c++", "-std=c++20", *warnings, *folders]
    files = sorted((csrc / "cuda").glob("*.cu"))
    failed = [file.name for file in files if subprocess.run([*command, str(file)], check=False).returncode]
    print(f"{len(files)} launch files, g++ with the headers of CUDA 12: {', '.join(failed) or 'none'} failed")
    return bool(files) and not failed


def main() -> int:
    """Both checks, whatever the first one says."""
    csrc = ROOT / "csrc"
    return not all([check_kernels(csrc), check_launches(csrc)])


if __name__ == "__main__":
    sys.exit(main())
