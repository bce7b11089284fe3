"""A mean by regression, and the cells around it by a generator."""

from __future__ import annotations

from scvi_perturb.model.hybrid.model import HybridResidualModel

__all__ = ["HybridResidualModel"]
