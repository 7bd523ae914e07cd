"""The mutations of `make mutants` stay in step with the kernels."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "csrc"
sys.path.insert(0, str(ROOT / "tools"))
try:
    from mutations import MUTATIONS, Mutation
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_its_text_stands_once_in_the_sources(mutation: Mutation) -> None:
    assert len(mutation.pattern.findall((SOURCES / mutation.file).read_text(encoding="utf-8"))) == 1


def test_each_kernel_has_three_of_its_own() -> None:
    listed = set(re.findall(r"KERNEL\([\w.]+, (\w+)", (SOURCES / "cuda" / "kernels.def").read_text(encoding="utf-8")))
    counted = Counter(m.kernel for m in MUTATIONS)
    assert set(counted) == listed
    assert min(counted.values()) >= 3
    assert len({str(m) for m in MUTATIONS}) == len(MUTATIONS)


def test_every_barrier_is_taken_out_once() -> None:
    barriers = {
        str(file.relative_to(SOURCES)): count
        for file in sorted(SOURCES.glob("cuda/*.cuh"))
        if (count := file.read_text(encoding="utf-8").count("__syncthreads();"))
    }
    assert Counter(m.file for m in MUTATIONS if m.removes_a_barrier) == barriers
