"""Split a screen into training, validation and held-out cells."""

from __future__ import annotations

from scvi_perturb.data.split.kinds import SplitKind, split
from scvi_perturb.data.split.record import Split, SplitOptions

__all__ = ["Split", "SplitKind", "SplitOptions", "split"]
