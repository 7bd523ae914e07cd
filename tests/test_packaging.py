"""A source archive and a wheel built as for a release, and the wheel used where nothing else is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent
LARGEST_WHEEL = 5_000_000
LARGEST_SDIST = 2_000_000

SMOKE = """
import numpy as np
import fusecell
from fusecell import ops

rng = np.random.default_rng(0)
x = rng.standard_normal((3, 2, 1, 5, 7), dtype=np.float32)
weight_ih = rng.standard_normal((8, 1, 3, 3), dtype=np.float32)
weight_hh = rng.standard_normal((8, 2, 3, 3), dtype=np.float32)
y, h_n, c_n, saved = ops.conv_lstm_forward(x, weight_ih, weight_hh, save="gates")
gradients = ops.conv_lstm_backward(saved, dy=np.ones_like(y))
assert y.shape == (3, 2, 2, 5, 7) and gradients["weight_hh"].shape == weight_hh.shape
assert all(np.isfinite(array).all() and array.any() for array in (y, h_n, c_n, *gradients.values()))
print(fusecell.__file__)
"""


def attempt(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody with no part of this checkout in sight."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "FUSECELL_CUDA", "CUDACXX", "SKBUILD")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """As `attempt`, but it must succeed; return what it prints."""
    done = attempt(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from the sdist: what `python -m build` does unless told otherwise."""
    outdir = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", outdir, ROOT, cwd=outdir)
    return outdir


def install(place: Path, *requirements: str | Path) -> Path:
    """A fresh environment in `place` with these; return its folder of programs."""
    run(sys.executable, "-m", "venv", place / "venv", cwd=place)
    programs = place / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "--no-input", *requirements, cwd=place)
    return programs


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that has the wheel and what it requires, nothing else."""
    place = tmp_path_factory.mktemp("fresh")
    return install(place, *dist.glob("*.whl"))


def test_wheel_holds_what_it_should(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert wheel.stat().st_size < LARGEST_WHEEL
    assert {name.split("/")[0] for name in names} == {"fusecell", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert {"fusecell/py.typed", "fusecell/_cpu.pyi", "fusecell/reference/__init__.py"} <= set(names)
    assert len([name for name in names if re.fullmatch(r"fusecell/_cpu\..*\.so", name)]) == 1
    assert not [name for name in names if "_emulated." in name]
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    assert not [name for name in names if re.search(r"tests?/|\.(cpp|h|o|pyc)$|CMake", name)]
    # An optional requirement carries a marker, `; extra == ...`.
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert sorted(required) == ["numpy", "safetensors", "threadpoolctl", "tqdm"]


def test_sdist_holds_the_sources_and_no_more(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert sdist.stat().st_size < LARGEST_SDIST
    assert {"CMakeLists.txt", "LICENSE", "README.md", "csrc/bindings/module.cpp", "tests/conftest.py"} <= names
    assert not [name for name in names if re.search(r"\.(so|o|pyc)$|^(\.venv|build|dist|runs|\.git)/", name)]


def test_wheel_works_where_nothing_else_is(installed: Path, tmp_path: Path) -> None:
    imported = run(installed / "python", "-I", "-c", SMOKE, cwd=tmp_path).strip()
    assert Path(imported).is_relative_to(installed.parent)


def test_installed_commands(installed: Path, tmp_path: Path) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version in run(installed / "fusecell", "info", cwd=tmp_path)
    run(installed / "fusecell", "selftest", cwd=tmp_path)


# --------------------------------------------------------------------------------------------- FUSECELL_CUDA
@pytest.fixture(scope="module")
def installed_with_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `installed`, of a wheel with the CUDA backend for two GPUs."""
    place = tmp_path_factory.mktemp("cuda")
    asked = {"FUSECELL_CUDA": "on", "FUSECELL_CUDA_ARCHITECTURES": "80-real;90-real"}
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        place,
        ROOT,
        cwd=place,
        SKBUILD_BUILD_DIR=f"{place}/b",
        **asked,
    )
    return install(place, *place.glob("*.whl"))


def test_cuda_wheel_imports_without_a_driver(installed_with_cuda: Path, tmp_path: Path) -> None:
    python = installed_with_cuda / "python"
    run(python, "-I", "-c", SMOKE, cwd=tmp_path)
    run(python, "-I", "-c", "from fusecell import _cuda; _cuda.build_info(); _cuda.devices()", cwd=tmp_path)
    assert not list(installed_with_cuda.parent.rglob("_emulated*.so"))
    told = run(installed_with_cuda / "fusecell", "info", cwd=tmp_path)
    assert re.search(r"built with nvcc 1[23]\.[\d.]+ for sm_80 sm_90\n", told)
    assert "CuPy" in told
    if not has_driver():
        assert re.search(r"missing .*NVIDIA driver, GPU", told)


def test_auto_builds_no_cuda_without_a_driver(installed: Path, tmp_path: Path) -> None:
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    assert not list(installed.parent.rglob("_cuda*.so"))
    told = run(installed / "fusecell", "info", cwd=tmp_path)
    assert re.search(r"not built: no (NVIDIA driver|CUDA compiler) was found\n", told)
    assert "FUSECELL_CUDA=on pip install --no-cache-dir" in told


def test_cuda_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    programs = tmp_path / "programs"  # PATH, less nvcc
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(folder).glob("*"):
            if program.name != "nvcc":
                (programs / program.name).unlink(missing_ok=True)
                (programs / program.name).symlink_to(program)
    python = install(tmp_path, "scikit-build-core", "pybind11") / "python"
    arguments = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", tmp_path, ROOT]
    failed = attempt(
        *(python, "-m", "pip", "wheel", *arguments),
        cwd=tmp_path,
        PATH=str(programs),
        FUSECELL_CUDA="on",
        SKBUILD_BUILD_DIR=f"{tmp_path}/build",
    )
    said = " ".join((failed.stdout + failed.stderr).split())
    assert failed.returncode
    assert "FUSECELL_CUDA=on, but no CUDA compiler was found. Put nvcc 12.4 or newer on PATH" in said
