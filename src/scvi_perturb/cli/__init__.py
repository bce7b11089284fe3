"""The command line: `scvi-perturb demo`, `scvi-perturb check` and `scvi-perturb benchmark`."""

from __future__ import annotations

from scvi_perturb.cli._main import main

__all__ = ["main"]
