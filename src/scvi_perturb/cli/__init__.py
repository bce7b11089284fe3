"""The command line: `scvi-perturb demo` and `scvi-perturb check`."""

from __future__ import annotations

from scvi_perturb.cli._main import main

__all__ = ["main"]
