"""The one place where the version is written, and those of what results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import version

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions on which results may depend, by package."""
    names = ("numpy", "scipy", "pandas", "scikit-learn", "anndata", "torch", "lightning")
    found = {name: version(name) for name in (*names, "scvi-tools")}
    return {"scvi-perturb": __version__, "python": platform.python_version()} | found
