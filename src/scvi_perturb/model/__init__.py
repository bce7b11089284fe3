"""Models: AnnData in, AnnData out."""

from scvi_perturb.model._causal import CausalPerturbVAE
from scvi_perturb.model._diffusion import PerturbDiffusion
from scvi_perturb.model._flow import PerturbFlow
from scvi_perturb.model._hybrid import HybridResidualModel

__all__ = ["CausalPerturbVAE", "HybridResidualModel", "PerturbDiffusion", "PerturbFlow"]
