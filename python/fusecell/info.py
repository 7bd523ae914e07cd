"""`fusecell info`: what was built, what this machine uses of it, and why it uses no more."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import fusecell
from fusecell import _dispatch

_DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver for each major version of CUDA's runtime.
_OLDEST_DRIVER = {12: "525", 13: "580"}


def _cuda_module() -> Any:
    """The CUDA backend, or None if it was not built. It imports on machines without a driver, too."""
    try:
        return importlib.import_module("fusecell._cuda")
    except ModuleNotFoundError:
        return None


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _runtime_lines(runtime: int, driver: int) -> list[tuple[str, str]]:
    needs = f"needs driver {_OLDEST_DRIVER.get(runtime // 1000, '?')} or newer"
    has = f"the driver here knows CUDA {_cuda_version(driver)}" if driver else "no driver answers here"
    return [("  runtime", f"CUDA {_cuda_version(runtime)}, part of the module; {needs}, {has}")]


def _device_lines(devices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (f"GPU {i}", f"{d['name']}, compute capability {d['compute_capability']}, {int(d['memory']) / 2**30:.1f} GiB")
        for i, d in enumerate(devices)
    ]


def _hopper_line(module: Any) -> tuple[str, str]:
    wanted = "on" if module.hopper_wanted() else "off"
    return (
        "  Hopper's own",
        f"{wanted}, by FUSECELL_HOPPER=on|off: wgmma, bulk copies, overlapping steps; not yet run on a GPU",
    )


def _gpu_lines() -> list[tuple[str, str]]:
    """What of a GPU's use is there, then what is missing of it, then how to get the kernels if they are."""
    module = _cuda_module()
    lines = [("CUDA kernels", str(_dispatch.build_info().get("cuda", "unknown")))]
    devices: list[dict[str, Any]] = []
    driver = _DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if module is not None:
        runtime, answers = module.build_info()["runtime"], module.build_info()["driver"]
        driver = driver or bool(answers)
        # One that is too old for this build answers, but not about its GPUs.
        devices = module.devices() if answers // 1000 >= runtime // 1000 else []
        lines += _runtime_lines(runtime, answers) + _device_lines(devices) + [_hopper_line(module)]
    missing = {
        "CUDA compiler": module is not None or shutil.which(os.environ.get("CUDACXX") or "nvcc"),
        "CUDA kernels and runtime": module,
        "NVIDIA driver": driver,
        "GPU": devices or (module is None and driver),
        "CuPy (arrays on the GPU: pip install fusecell[cuda12] or [cuda13])": importlib.util.find_spec("cupy"),
    }
    lacking = [name for name, found in missing.items() if not found]
    lines += [("  missing", ", ".join(lacking))] if lacking else []
    return lines if module is not None else [*lines, ("  rebuild", _dispatch.REBUILD)]


def _torch_line() -> str:
    """Whether fusecell.torch can be used, without importing torch, which takes seconds."""
    try:
        return f"{importlib.metadata.version('torch')}; on the CPU, 16 bits are computed in float32"
    except importlib.metadata.PackageNotFoundError:
        return "not installed: fusecell.torch needs it"


def _float32_line() -> str:
    """How convolutions of float32 tensors are computed on a GPU. A new process has torch's switch as it is at first."""
    needs = "TF32 needs GPUs of compute capability 8.0 or more"
    try:
        possible = _dispatch.tensor_cores("cuda")
    except RuntimeError:  # no kernels, or a driver too old to say what is there
        possible = True
    if not possible:
        return f"on a GPU in full: {needs}, and not every one here is"
    loaded = sys.modules.get("fusecell.torch._tensor_cores")
    if loaded is not None and not loaded.torch_allows_tf32():
        return "on a GPU in full: torch.backends.cudnn.allow_tf32, or conv.fp32_precision there, says so"
    return f"on a GPU in TF32 unless torch.backends.cudnn.allow_tf32 is set to False; {needs}"


_AMX = {
    "usable": 'for algorithm="bfloat16", where it is asked for',
    "emulated": 'emulated for tests (FUSECELL_EMULATE_AMX): algorithm="bfloat16" is slow',
    "refused": 'this machine has it, but its system refuses the registers: no algorithm="bfloat16"',
    "absent": 'this machine lacks it: no algorithm="bfloat16"',
}


def report() -> list[tuple[str, str]]:
    """(name, value) pairs, in the order in which they are printed."""
    build = _dispatch.build_info()
    isas = ", ".join(build["isas_built"])
    unusable = [isa for isa in build["isas_built"] if isa not in build["isas_usable"]]
    forced = os.environ.get("FUSECELL_ISA")
    return [
        ("fusecell", fusecell.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("compiler", build["compiler"] + (f", sanitizers {build['sanitize']}" if build["sanitize"] else "")),
        ("CPU kernels", f"{build['isa']}" + (" (FUSECELL_ISA)" if forced else " (the best of this machine)")),
        ("  built", isas + (f"; this machine lacks {', '.join(unusable)}" if unusable else "")),
        ("  algorithm", "auto: Winograd's for 3x3 and 5x5 kernels in float32 where it pays, else direct"),
        ("  AMX", _AMX[_dispatch.amx()]),
        ("threads", f"{fusecell.get_num_threads()} (default {build['default_num_threads']}: affinity and quota)"),
        ("PyTorch", _torch_line()),
        ("  float32", _float32_line()),
        ("poison mode", "on (FUSECELL_POISON)" if _dispatch.POISON else "off"),
        *_gpu_lines(),
    ]


def main(args: argparse.Namespace) -> int:
    """Print the report. Always 0."""
    del args
    for name, value in report():
        sys.stdout.write(f"{name:<12}  {value}\n")
    return 0
