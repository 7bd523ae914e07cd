"""What docs/pytorch.md shows runs, block after block, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"


def blocks(text):
    """The Python of the page, each block with as many empty lines before it as make its line numbers the page's."""
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text.count("\n", 0, found.start(1)) + found[1]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inside torch.compile
@pytest.mark.filterwarnings("ignore:on the CPU fusecell computes .* in float32:UserWarning")
def test_every_block_of_the_page_runs(capsys, monkeypatch, tmp_path):
    # Inductor's cache on disk does not know that a fake kernel has changed.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # which a block sets
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    found, names = list(blocks(text)), {"__name__": "pytorch.md"}
    assert len(found) == text.count("```python") > 10
    for block in found:
        exec(compile(block, PAGE, "exec"), names)
    assert "forward-mode differentiation" in capsys.readouterr().out
