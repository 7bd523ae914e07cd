"""Every instruction set that was built and that this machine has gives the reference's results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fusecell import _dispatch


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSECELL_ISA": isa}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("isa", _dispatch.build_info()["isas_usable"])
def test_selftest_on(isa: str) -> None:
    code = """
from fusecell import _dispatch, cli
print(_dispatch.build_info()["isa"], flush=True)
raise SystemExit(cli.main(["selftest", "--backend", "cpu"]))
"""
    done = run(isa, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{isa}\n")


def test_an_unknown_instruction_set_is_refused() -> None:
    done = run("mmx", "-c", "import fusecell")
    assert done.returncode != 0
    assert "FUSECELL_ISA: expected one of" in done.stderr
    assert "got mmx" in done.stderr
