"""The command line: `scvi-perturb train`, `predict` and so on, and commands of other packages."""

from __future__ import annotations

from scvi_perturb.cli._app import UsageError, main

__all__ = ["UsageError", "main"]
