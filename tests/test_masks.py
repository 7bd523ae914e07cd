"""Random masks: the same numbers on every backend, to the last element and to the threshold itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusecell import reference

# Philox4x32-10 of counter and key zero, as its authors give it.
WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 1023, 1025])
def test_any_size(backend: Any, size: int) -> None:
    where = {"seed": 2**63 + 5, "offset": 2**40, "stream": 2}
    np.testing.assert_array_equal(backend.bernoulli(size, 0.4, **where), reference.bernoulli((size,), 0.4, **where))


@pytest.mark.parametrize("element", range(4))
def test_a_number_is_below_the_threshold_or_not(backend: Any, element: int) -> None:
    for above, drawn in ((0, 0), (1, 1)):
        assert backend.bernoulli(4, (WORDS[element] + above) / 2**32, seed=0)[element] == drawn
