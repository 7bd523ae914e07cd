"""The build backend: scikit-build-core's, which is told what a CUDA build needs besides on this machine (PEP 517)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403

# 13.0 and not newer: what a newer one compiles needs a newer driver than 580.
_COMPILER = ["nvidia-cuda-nvcc==13.0.88", *(f"nvidia-{name}==13.0.*" for name in ("cuda-runtime", "cuda-crt", "nvvm"))]
_COMPILER += ["nvidia-cuda-cccl==13.0.*"]
# The one of CUDA 12 that has the static library; for a compiler that came without one.
_RUNTIME_12 = ["nvidia-cuda-runtime-cu12==12.9.79"]


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def _lacks_runtime(nvcc: str) -> bool:
    """Whether this is an nvcc 12 with no static runtime at its side (cmake/FusecellCuda.cmake looks there, too)."""
    root = re.search(r"TOP=(.+)", _ask(nvcc, "--dryrun", "fusecell.cu"))
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    if root is None or "release 12." not in version:
        return False
    folders = [Path("/usr/lib", f"{os.uname().machine}-linux-gnu"), *Path(root[1]).glob("targets/*-linux/lib")]
    folders += [Path(root[1], "lib64"), Path(root[1], "lib")]
    return not any(Path(folder, "libcudart_static.a").exists() for folder in folders)


def _requires_for_cuda() -> list[str]:
    wanted = os.environ.get("FUSECELL_CUDA", "auto")
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if wanted == "off" or (wanted != "on" and not driver):
        return []
    if nvcc is None:
        return _COMPILER if wanted == "on" else []
    return _RUNTIME_12 if _lacks_runtime(nvcc) else []


def get_requires_for_build_wheel(config_settings: dict[str, list[str] | str] | None = None) -> list[str]:
    """What a wheel's build needs besides build-system.requires."""
    return [*_build.get_requires_for_build_wheel(config_settings), *_requires_for_cuda()]


def get_requires_for_build_editable(config_settings: dict[str, list[str] | str] | None = None) -> list[str]:
    """What an editable install's build needs besides build-system.requires."""
    return [*_build.get_requires_for_build_editable(config_settings), *_requires_for_cuda()]
