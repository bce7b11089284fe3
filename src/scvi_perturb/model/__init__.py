"""Models: AnnData in, AnnData out."""

from scvi_perturb.model.causal.model import CausalPerturbVAE
from scvi_perturb.model.diffusion import PerturbDiffusion
from scvi_perturb.model.flow.model import PerturbFlow
from scvi_perturb.model.hybrid.model import HybridResidualModel
from scvi_perturb.model.latent.model import LatentModel

__all__ = [
    "CausalPerturbVAE",
    "HybridResidualModel",
    "LatentModel",
    "PerturbDiffusion",
    "PerturbFlow",
]
