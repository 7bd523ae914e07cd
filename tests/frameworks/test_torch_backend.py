"""fusecell.torch against the reference: every case of the table, through autograd, on the CPU and the emulated kernels.

What PyTorch itself asks of an operator (opcheck, gradcheck, compile, export, ...) is in test_torch_citizen.py.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fusecell.reference  # noqa: E402
import fusecell.torch as ft  # noqa: E402
from fusecell import _dispatch  # noqa: E402
from fusecell._cases import CASES, largest_error, run_case, upstream_of  # noqa: E402
from fusecell.reference import bernoulli  # noqa: E402
from fusecell.selftest import backends  # noqa: E402


@pytest.fixture(params=[name for name in backends() if name != "cuda"])
def kernels(request):
    """Tensors on the CPU, computed by each backend of host memory."""
    with _dispatch.using(request.param):
        yield request.param
