"""A stack of predictors, weighted by left-out error."""

from __future__ import annotations

from scvi_perturb.predictors.stack.stacked_mean import StackedMean

__all__ = ["StackedMean"]
