"""`fusecell info`: what was built, what this machine uses of it, and why it uses no more."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

import fusecell
from fusecell import _dispatch

_DRIVER = Path("/proc/driver/nvidia/version")


def _gpu_lines() -> list[tuple[str, str]]:
    driver = "an NVIDIA driver is loaded" if _DRIVER.exists() else "no NVIDIA driver is loaded"
    return [("CUDA", "this version has no CUDA kernels"), ("GPU", f"none used: {driver}, and see CUDA above")]


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
        ("  algorithm", "direct"),
        ("threads", f"{fusecell.get_num_threads()} (default {build['default_num_threads']}: affinity and quota)"),
        ("poison mode", "on (FUSECELL_POISON)" if _dispatch.POISON else "off"),
        *_gpu_lines(),
    ]


def main(args: argparse.Namespace) -> int:
    """Print the report. Always 0."""
    del args
    for name, value in report():
        sys.stdout.write(f"{name:<12}  {value}\n")
    return 0
