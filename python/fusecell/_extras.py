"""Optional dependencies: found, or named in one line with the command that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

_PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow"}
_INSTALL = {
    "cupy": "pip install 'fusecell[cuda13]' (for drivers older than 580: [cuda12])",
    "torch": "pip install torch   (pytorch.org names the build for your machine)",
}


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed; the message holds the command that installs it."""


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module. Raises MissingExtraError if its package is not installed."""
    require_installed(module, purpose)
    return importlib.import_module(module)


def require_installed(module: str, purpose: str) -> None:
    """Raise MissingExtraError if an optional package is not installed; import nothing."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        name = _PACKAGES.get(package, package)
        install = _INSTALL.get(package, f"pip install {name}   (or all of them: 'fusecell[demo]')")
        raise MissingExtraError(f"{purpose} needs {name}: {install}")
