"""Models: AnnData in, AnnData out."""

from scvi_perturb.model._diffusion import PerturbDiffusion

__all__ = ["PerturbDiffusion"]
