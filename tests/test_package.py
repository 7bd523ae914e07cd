"""The package as users and type checkers see it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fusecell
from fusecell import _cpu, _dispatch, cli, info, ops, reference, selftest

PACKAGE = Path(fusecell.__file__).parent


def test_one_version_everywhere() -> None:
    assert fusecell.__version__ == importlib.metadata.version("fusecell") == _dispatch.build_info()["version"]


def test_the_stubs_name_what_the_module_has() -> None:
    stub = Path(__file__).parents[1] / "python" / "fusecell" / "_cpu.pyi"
    declared = {node.name for node in ast.parse(stub.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert declared == {name for name in dir(_cpu) if not name.startswith("_")}


def test_the_reference_has_every_op() -> None:
    assert {name for name in ops.__all__ if not name.startswith("Saved")} <= set(reference.__all__)


def test_importing_is_light() -> None:
    heavy = "{'matplotlib', 'sklearn', 'imageio', 'PIL', 'torch', 'jax', 'keras', 'cupy', 'scipy', 'tqdm'}"
    code = (
        f"import sys, fusecell.ops, fusecell.layers, fusecell.optim; assert not {heavy} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info_names_the_kernels_and_the_threads() -> None:
    report = dict(info.report())
    assert report["fusecell"] == fusecell.__version__
    assert report["CPU kernels"].split()[0] in _dispatch.build_info()["isas_usable"]
    assert report["threads"].startswith(f"{fusecell.get_num_threads()} ")


def test_info_says_how_float32_tensors_are_computed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "fusecell.torch._tensor_cores"
    for has, allowed, expected in (
        (True, None, "on a GPU in TF32 unless torch.backends.cudnn.allow_tf32 is set to False"),
        (True, True, "on a GPU in TF32 unless"),
        (True, False, "on a GPU in full: torch.backends.cudnn.allow_tf32,"),
        (False, True, "on a GPU in full: TF32 needs GPUs of compute capability 8.0 or more"),
    ):
        loaded = None if allowed is None else types.SimpleNamespace(torch_allows_tf32=lambda answer=allowed: answer)
        monkeypatch.setitem(sys.modules, module, loaded)  # type: ignore[arg-type]
        monkeypatch.setattr(_dispatch, "tensor_cores", lambda backend, answer=has: answer)
        assert dict(info.report())["  float32"].startswith(expected)


def test_selftest_fails_when_an_op_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ops.softmax_forward
    monkeypatch.setattr(ops, "softmax_forward", lambda x, axis=-1: right(x, axis) * 1.001)
    assert cli.main(["selftest"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED") == 2 * len(selftest.backends()), "two dtypes on every backend"
    assert cli.main(["selftest", "--backend", "tpu"]) == 2
    assert "expected one that works here (cpu" in capsys.readouterr().err


def test_the_example_learns() -> None:
    script = Path(__file__).parents[1] / "examples" / "numpy_script.py"
    losses = runpy.run_path(str(script))["main"](25)
    assert losses[-1] < 0.3 * losses[0]


def test_poison_mode_poisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "POISON", True)
    assert np.isnan(_dispatch.empty((3, 4), np.float32, _dispatch.Place())).all()
    assert np.isnan(_dispatch.empty((), np.float64, _dispatch.Place())).all()
    assert (_dispatch.empty((100,), np.uint8, _dispatch.Place()) == 255).all()
    code = "from fusecell import _dispatch; assert _dispatch.POISON"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "FUSECELL_POISON": "1"})


def test_without_pytorch_its_adapter_says_what_to_install() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest); import fusecell.torch"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingExtraError: fusecell.torch needs torch: pip install torch" in done.stderr
