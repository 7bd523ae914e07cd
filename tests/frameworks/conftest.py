"""What tests of several files share. Frameworks are imported where they are used: each file skips without its own."""

from __future__ import annotations

import pytest


@pytest.fixture
def fused_calls(monkeypatch):
    """The shapes of x in each call that a converted module makes of the fused op."""
    from fusecell.torch.conversion import fused

    calls = []
    original = fused._conv_lstm

    def counted(x, *args, **kwargs):
        calls.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(fused, "_conv_lstm", counted)
    return calls


@pytest.fixture
def dynamo():
    """Nothing compiled before the test, or left by it."""
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
