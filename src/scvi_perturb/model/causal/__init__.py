"""Grouped latents with perturbations as additive operators."""

from __future__ import annotations

from scvi_perturb.model.causal.model import CausalPerturbVAE

__all__ = ["CausalPerturbVAE"]
