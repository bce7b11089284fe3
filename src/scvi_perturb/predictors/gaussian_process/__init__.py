"""A Gaussian process over conditions."""

from __future__ import annotations

from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP

__all__ = ["ConditionGP"]
