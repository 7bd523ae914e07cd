"""Prints requirements that pyproject.toml states, one a line, for `pip install -r`.

    python tools/requirements.py GROUP...

A group is an extra's name, `runtime` (project.dependencies), `build` (build-system.requires) or `backend`
(what the build backend asks for besides: CMake, Ninja or a CUDA compiler where it needs one and the machine has none;
`build` must be installed).
They are installed apart from fusecell, so that a change of the C++ sources asks the package index nothing.
"""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

_ROOT = Path(__file__).parent.parent


def requirements(groups: list[str]) -> list[str]:
    """Return the requirements of `groups` without repeats; an extra that names others stands for theirs."""
    # Not tomllib.load: pip 22, which Ubuntu 22.04 brings, carries a tomli that opens files otherwise.
    pyproject = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    found: dict[str, None] = {}
    for group in groups:
        if group == "build":
            listed = pyproject["build-system"]["requires"]
        elif group == "backend":
            from build_backend import get_requires_for_build_editable

            listed = get_requires_for_build_editable()
        elif group == "runtime":
            listed = pyproject["project"]["dependencies"]
        elif group in extras:
            listed = extras[group]
        else:
            raise SystemExit(f"pyproject.toml has no extra {group!r}, only {', '.join(extras)}")
        for requirement in listed:
            own = re.fullmatch(r"fusecell\[(.+)\]", requirement)
            names = requirements([name.strip() for name in own[1].split(",")]) if own else [requirement]
            found.update(dict.fromkeys(names))
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
