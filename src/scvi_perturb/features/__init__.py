"""What is known about a perturbation before it is measured."""

from __future__ import annotations

from scvi_perturb.features._store import PerturbationFeatures

__all__ = ["PerturbationFeatures"]
