"""Flows: transport from control to response, or an exact density."""

from __future__ import annotations

from scvi_perturb.model.flow.model import PerturbFlow

__all__ = ["PerturbFlow"]
