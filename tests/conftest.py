"""Options, hypothesis profiles and the random generator that all tests share."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# Before the core is loaded, which asks once. 0 where a machine's AMX itself is to be tested.
os.environ.setdefault("FUSECELL_EMULATE_AMX", "1")

from fusecell.selftest import backends

# No deadline: an example may wait for a core that somebody else uses. On CI the same examples every time:
# a failure there is the change's own, never luck.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

_MARKS = {"slow": "--run-slow", "packaging": "--run-packaging"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run what takes minutes or many gigabytes")
    parser.addoption("--run-packaging", action="store_true", help="also build wheels and virtual environments")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for mark, option in _MARKS.items():
        if not config.getoption(option):
            for item in items:
                if mark in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"{mark}: {option} runs it"))


def pytest_report_header() -> str:
    return f"backends: {', '.join(backends())}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ignored = [Path(path).name for path in config.getoption("ignore") or []]
    if "frameworks" in ignored:
        terminalreporter.section("left out")
        terminalreporter.line("tests/frameworks (needs torch, jax or keras): `make test-frameworks` runs it")


@pytest.fixture(scope="session", params=list(backends()))
def backend(request: pytest.FixtureRequest) -> Any:
    """Each backend of this machine: something with the functions of fusecell.ops, on NumPy arrays."""
    return backends()[request.param]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: the same numbers alone, in any order, anywhere."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
