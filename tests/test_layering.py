"""Who may include and import whom: the law that CONTRIBUTING.md states, read off the sources themselves."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# --------------------------------------------------------------------------------------------- C++
# A room may include itself and what stands here.
ROOMS = {
    "base": set(),
    "cell": {"base"},
    "problem": {"base", "cell"},
    "cpu": {"base", "cell", "problem"},
    "cuda": {"base", "cell", "problem"},
    "emulation": {"base", "cell", "problem", "cuda"},
    "bindings": {"base", "cell", "problem", "cpu", "cuda", "emulation"},
}
# Of cuda/, the bindings may see what launches, not kernels.
LAUNCH_SUFFIXES = {".h", ".hpp"}

PYTHON_HEADER = re.compile(r"Python\.h|structmember\.h|(pybind11|nanobind|numpy)/")
CUDA_HEADER = re.compile(
    r"cuda|cu(blas|rand|dnn|sparse|solver|fft)|nvrtc|nvtx|nvml|cub/|thrust/|nv/|crt/|cooperative_groups|mma\.h|sm_\d"
    r"|(device_launch_parameters|driver_types|vector_types|vector_functions|host_defines)\.h"
)
FRAMEWORK_HEADERS = {
    "torch": re.compile(r"(torch|ATen|c10|caffe2)/"),
    "jax": re.compile(r"(xla|jax|jaxlib)/"),
    "tensorflow": re.compile(r"(tensorflow|tsl)/"),
}

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include(?:_next)?[ \t]*(.*)$", re.MULTILINE)


def includes(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, what follows `#include`), those in comments left out."""
    text = COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), file.read_text(encoding="utf-8"))
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1].strip()


def header_breach(csrc: Path, file: Path, included: str) -> str | None:
    """Return what is wrong with this include, if anything."""
    room = file.relative_to(csrc).parts[0]
    quoted = re.fullmatch(r'"([^"]+)"|<([^>]+)>', included)
    if not quoted:
        return f"cannot read what it includes: {included}"
    name = quoted[1] or quoted[2]

    beside, below = (file.parent / name).resolve(), (csrc / name).resolve()
    target = beside if quoted[1] and beside.is_file() else below
    inside = target.is_file() and target.is_relative_to(csrc.resolve())
    if inside or Path(name).parts[0] in ROOMS:
        other = target.relative_to(csrc.resolve()).parts[0]
        if other != room and other not in ROOMS[room]:
            return f"{room} may not include {other} ({name})"
        if room == "bindings" and other == "cuda" and target.suffix not in LAUNCH_SUFFIXES:
            return f"bindings may not include a kernel ({name})"
        return None
    if quoted[1]:
        return f"there is no {name} in csrc; a header from elsewhere goes in <>"

    if PYTHON_HEADER.match(name) and room != "bindings":
        return f"Python stays in bindings ({name})"
    if CUDA_HEADER.match(name) and room not in {"cuda", "base", "emulation"}:
        return f"CUDA's headers stay in cuda and base ({name})"
    for framework, header in FRAMEWORK_HEADERS.items():
        if header.match(name) and not (room == "bindings" and file.name.startswith(f"{framework}_")):
            return f"{framework}'s headers stay in bindings/{framework}_*.cpp ({name})"
    return None


def header_breaches(csrc: Path) -> Iterator[str]:
    for file in sorted(path for path in csrc.rglob("*") if path.is_file()):
        where = file.relative_to(csrc.parent)
        if len(where.parts) < 3 or where.parts[1] not in ROOMS:
            yield f"{where}: stands in none of the rooms {', '.join(ROOMS)}"
            continue
        for line, included in includes(file):
            if breach := header_breach(csrc, file, included):
                yield f"{where}:{line}: {breach}"


# ------------------------------------------------------------------------------------------ Python
PACKAGE = "fusecell"
BACKENDS = {"_cpu", "_cuda", "_emulated"}
# Installed with fusecell. Everything else is a choice and may be missing, so it is imported where it is used.
INSTALLED = {"numpy", "safetensors", "threadpoolctl", "tqdm"}
# An adapter may import its framework as it is imported itself; so may a file of that name within another part.
ADAPTERS = {"torch": {"torch"}, "jax": {"jax", "jaxlib"}, "keras": {"keras"}, "cupy": {"cupy"}}

# A module may import itself, the leaves (private helpers that import no other part) and what stands here.
MODULES = {
    "_dispatch": BACKENDS,
    "ops": {"_dispatch"},
    "layers": {"ops", "initializers"},
    "losses": {"ops"},
    "reference": set(),
    "weights": set(),
    **{adapter: {"_dispatch"} for adapter in ADAPTERS},
}
# Of what is not Python's own; in functions, too.
NUMPY_ALONE = {"reference", "weights"}
# May ask the backends for versions, threads and devices.
INSPECTORS = {"", "info", "selftest"}


def is_leaf(module: str) -> bool:
    return module.startswith("_") and module not in {"_dispatch", "__main__", *BACKENDS}


def imports(package: Path, file: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, dotted name, whether merely importing the file does it) of every import in a file.

    What `if TYPE_CHECKING:` guards is not imported at all. A call of import_module counts, given a literal.
    """
    inside = file.relative_to(package.parent).with_suffix("").parts[: None if file.stem != "__init__" else -1]
    # `from . import x` starts from the package that the file stands in.
    base = inside if file.stem == "__init__" else inside[:-1]

    def is_module(dotted: str) -> bool:
        path = package.parent.joinpath(*dotted.split("."))
        return path.is_dir() or path.with_suffix(".py").exists() or dotted.rpartition(".")[2] in BACKENDS

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                # The package's own names are imported from the package, its modules are themselves.
                whole = f"{source}.{alias.name}"
                own = source.split(".")[0] == PACKAGE
                yield node.lineno, whole if own and is_module(whole) else source, at_import
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if called in {"import_module", "__import__"} and isinstance(name, str):
                yield node.lineno, f"{'.'.join(base)}{name}" if name.startswith(".") else name, at_import
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, at_import)
            return
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not later)

    yield from visit(ast.parse(file.read_text(encoding="utf-8")), True)


def import_breach(module: str, imported: str, at_import: bool, adapter: str) -> str | None:
    """Return what is wrong with this import, if anything.

    `module` is a part of fusecell, "" its __init__; `adapter` the framework that the file is for by its name.
    """
    top, _, rest = imported.partition(".")
    name = module or PACKAGE
    if top != PACKAGE:
        if module in NUMPY_ALONE and top != "numpy" and top not in sys.stdlib_module_names:
            return f"{module} may import NumPy only ({imported})"
        known = top in sys.stdlib_module_names or top in INSTALLED or top in ADAPTERS.get(adapter, set())
        if at_import and not known:
            return f"{imported} may be missing: import it where it is used"
        return None

    other = rest.split(".")[0]
    if other == module:
        return None
    if module == "reference":
        return f"reference may import NumPy only ({imported})"
    if is_leaf(module) and not is_leaf(other):
        return f"{name} is a leaf: it may import no other part of fusecell ({imported})"
    if is_leaf(other):
        return None
    if module in MODULES:
        return None if other in MODULES[module] else f"{name} may not import {other or PACKAGE}"
    if other in BACKENDS and module not in INSPECTORS:
        return f"only _dispatch, info and selftest may import {other}"
    if other == "_dispatch" and module not in INSPECTORS:
        return f"{name} may not import _dispatch: use ops"
    if other in ADAPTERS and at_import:
        return f"{imported} imports its framework: import it where it is used"
    return None


def import_breaches(package: Path) -> Iterator[str]:
    for file in sorted(package.rglob("*.py")):
        part = file.relative_to(package).parts[0].removesuffix(".py")
        module = "" if part == "__init__" else part
        adapter = module if module in ADAPTERS else file.stem.removeprefix("_")
        for line, imported, at_import in imports(package, file):
            if breach := import_breach(module, imported, at_import, adapter):
                yield f"{file.relative_to(package.parent.parent)}:{line}: {breach}"


# ------------------------------------------------------------------------------------- the two tests
def test_headers_keep_the_law() -> None:
    csrc = ROOT / "csrc"
    assert list(header_breaches(csrc)) == []
    # And there was something to read.
    read = {file.relative_to(csrc).parts[0] for file in csrc.rglob("*") if file.is_file() and any(includes(file))}
    assert read >= {"cell", "problem", "cpu", "bindings"}


def test_imports_keep_the_law() -> None:
    package = ROOT / "python" / PACKAGE
    assert list(import_breaches(package)) == []
    edges = {
        (file.relative_to(package).parts[0], name)
        for file in package.rglob("*.py")
        for _, name, _ in imports(package, file)
    }
    assert {("ops", "fusecell._dispatch"), ("layers", "fusecell.ops"), ("reference", "numpy")} <= edges


# --------------------------------------------------------------------------- the law itself is tested
LAWFUL = {
    "csrc/base/macros.h": "#include <cmath>\n#include <cuda_runtime.h>\n",
    "csrc/cell/gates.h": '#include "base/macros.h"\n// #include "cpu/a.h"\n/*\n#include "cpu/a.h"\n*/\n',
    "csrc/problem/shape.h": '#include "cell/gates.h"\n',
    "csrc/cpu/direct.h": '#include "problem/shape.h"\n',
    "csrc/cpu/direct.cpp": '#include "direct.h"\n#include <vector>\n',
    "csrc/cuda/launch.h": '#include "problem/shape.h"\n',
    "csrc/cuda/kernel.cuh": '#include "../cell/gates.h"\n#include <cuda_bf16.h>\n',
    "csrc/emulation/run.cpp": '#include "cuda/kernel.cuh"\n',
    "csrc/bindings/module.cpp": '#include <Python.h>\n#include "cpu/direct.h"\n#include "cuda/launch.h"\n',
    "csrc/bindings/torch_ops.cpp": "#include <torch/library.h>\n",
    "python/fusecell/__init__.py": "from fusecell import ops\nfrom fusecell._cpu import version\n",
    "python/fusecell/_typing.py": "import numpy as np\n",
    "python/fusecell/_dispatch.py": "from fusecell import _cpu\nfrom fusecell._typing import Array\n",
    "python/fusecell/ops.py": "from . import _dispatch\n",
    "python/fusecell/layers/__init__.py": "from fusecell.layers.dense import Dense\n",
    "python/fusecell/layers/dense.py": "from fusecell import ops\nfrom .. import initializers\n",
    "python/fusecell/initializers.py": "from fusecell._typing import Array\n",
    "python/fusecell/reference.py": "import math\nimport numpy as np\n",
    "python/fusecell/weights/__init__.py": "from fusecell.weights.canonical import A\n",
    "python/fusecell/weights/canonical.py": "import numpy as np\nfrom fusecell._typing import Array\n",
    "python/fusecell/torch.py": "import torch\nfrom fusecell import _dispatch\n",
    "python/fusecell/plot.py": "def plot():\n    import matplotlib\n    from fusecell import torch\n",
    "python/fusecell/info.py": "from fusecell import _cpu, _dispatch\n",
}

BREACHES = [
    ("csrc/base/macros.h", '#include "cell/gates.h"', "base may not include cell"),
    ("csrc/cell/gates.h", '#include "problem/shape.h"', "cell may not include problem"),
    ("csrc/cell/gates.h", '#include "../cpu/direct.h"', "cell may not include cpu"),
    ("csrc/cell/gates.h", "#include <cpu/direct.h>", "cell may not include cpu"),
    ("csrc/cell/gates.h", "#  include <cuda_runtime.h>", "CUDA's headers stay in cuda and base"),
    ("csrc/problem/shape.h", '#include "cpu/direct.h"', "problem may not include cpu"),
    ("csrc/problem/shape.h", "#include <cuda_fp16.h>", "CUDA's headers stay in cuda and base"),
    ("csrc/cpu/direct.cpp", '#include "cuda/launch.h"', "cpu may not include cuda"),
    ("csrc/cpu/direct.cpp", '#include "cuda/not_written_yet.h"', "cpu may not include cuda"),
    ("csrc/cpu/direct.cpp", '#include "bindings/module.h"', "cpu may not include bindings"),
    ("csrc/cpu/direct.cpp", "#include <Python.h>", "Python stays in bindings"),
    ("csrc/cpu/direct.cpp", "#include <pybind11/numpy.h>", "Python stays in bindings"),
    ("csrc/cpu/direct.cpp", "#include DIRECT", "cannot read what it includes"),
    ("csrc/cpu/direct.cpp", '#include "somewhere_else.h"', "there is no somewhere_else.h"),
    ("csrc/cuda/kernel.cuh", '#include "cpu/direct.h"', "cuda may not include cpu"),
    ("csrc/emulation/run.cpp", '#include "cpu/direct.h"', "emulation may not include cpu"),
    ("csrc/bindings/module.cpp", '#include "cuda/kernel.cuh"', "bindings may not include a kernel"),
    ("csrc/bindings/module.cpp", "#include <cuda_runtime.h>", "CUDA's headers stay in cuda and base"),
    ("csrc/bindings/module.cpp", "#include <torch/extension.h>", "torch's headers stay in bindings/torch_*.cpp"),
    ("csrc/util/help.h", "#include <vector>", "stands in none of the rooms"),
    ("python/fusecell/_typing.py", "from fusecell import ops", "is a leaf"),
    ("python/fusecell/_dispatch.py", "from fusecell import ops", "_dispatch may not import ops"),
    ("python/fusecell/ops.py", "from fusecell import layers", "ops may not import layers"),
    ("python/fusecell/ops.py", "from fusecell import _cpu", "ops may not import _cpu"),
    ("python/fusecell/ops.py", "def f():\n    from ._cpu import version", "ops may not import _cpu"),
    (
        "python/fusecell/ops.py",
        "from importlib import import_module\nimport_module('fusecell._cpu')",
        "may not import _cpu",
    ),
    ("python/fusecell/layers/dense.py", "from .._dispatch import run", "layers may not import _dispatch"),
    ("python/fusecell/layers/dense.py", "import fusecell.reference", "layers may not import reference"),
    ("python/fusecell/layers/dense.py", "from fusecell import __version__", "layers may not import fusecell"),
    ("python/fusecell/reference.py", "from fusecell import ops", "reference may import NumPy only"),
    ("python/fusecell/reference.py", "def f():\n    import scipy.signal", "reference may import NumPy only"),
    ("python/fusecell/weights/canonical.py", "from fusecell import ops", "weights may not import ops"),
    ("python/fusecell/weights/canonical.py", "def f():\n    import torch", "weights may import NumPy only"),
    ("python/fusecell/torch.py", "from fusecell import ops", "torch may not import ops"),
    ("python/fusecell/torch.py", "import jax", "jax may be missing"),
    ("python/fusecell/health/monitor.py", "import torch", "torch may be missing"),
    ("python/fusecell/health/_torch.py", "import jax", "jax may be missing"),
    ("python/fusecell/plot.py", "import matplotlib.pyplot as plt", "matplotlib.pyplot may be missing"),
    ("python/fusecell/plot.py", "try:\n    from PIL import Image\nexcept ImportError: ...", "PIL may be missing"),
    ("python/fusecell/plot.py", "class A:\n    import sklearn", "sklearn may be missing"),
    ("python/fusecell/plot.py", "from fusecell import torch", "imports its framework"),
    ("python/fusecell/plot.py", "from fusecell import _cpu", "only _dispatch, info and selftest may import _cpu"),
    ("python/fusecell/plot.py", "from fusecell import _dispatch", "plot may not import _dispatch"),
]


def write_tree(root: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return [*header_breaches(root / "csrc"), *import_breaches(root / "python" / PACKAGE)]


def test_a_lawful_tree_passes(tmp_path: Path) -> None:
    assert write_tree(tmp_path, LAWFUL) == []


def test_type_checking_imports_nothing(tmp_path: Path) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert write_tree(tmp_path, {**LAWFUL, "python/fusecell/plot.py": guarded}) == []


@pytest.mark.parametrize(("file", "line", "complaint"), BREACHES)
def test_a_breach_is_seen(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    breaches = write_tree(tmp_path, {**LAWFUL, file: LAWFUL.get(file, "") + line + "\n"})
    assert len(breaches) == 1
    assert complaint in breaches[0]
    assert breaches[0].startswith(f"{file}:")
